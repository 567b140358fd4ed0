"""Traces and diagonals against the entries themselves: unbiased, honest about their errors, and worth their products."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cases import SPECTRA, gaussian, orthonormal, symmetric_with_spectrum, with_spectrum
from eigenscope.errors import InputError
from eigenscope.methods import trace
from eigenscope.methods.sketch import Sketch
from eigenscope.methods.trace import diagonal, estimate, hutchinson, hutchpp, xtrace
from eigenscope.operators.arrays import Dense
from eigenscope.operators.base import LinearOperator
from eigenscope.results import Estimate

ESTIMATORS = (hutchinson, hutchpp, xtrace)
Estimator = Callable[..., Estimate]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def symmetric(values: Tensor, seed: int = 0, dtype: torch.dtype = torch.float64) -> Dense:
    return Dense(symmetric_with_spectrum(values, seed, dtype), symmetric=True)


def repeated(function: Estimator, A: object, products: int, seeds: int) -> tuple[Tensor, Tensor]:
    """Values and standard errors of many seeds."""
    found = [function(A, products, generator=seeded(seed)) for seed in range(seeds)]
    assert all(one.products <= products for one in found)
    return torch.tensor([one.value for one in found]).double(), torch.tensor([one.stderr for one in found]).double()


def root_mean_square(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


class Counting(LinearOperator):
    """A dense map that counts on both sides what is multiplied."""

    def __init__(self, matrix: Tensor, symmetric: bool = False, flaw: float = 0.0) -> None:
        super().__init__((matrix.shape[0], matrix.shape[1]), matrix.dtype, matrix.device, symmetric)
        self.matrix, self.flaw, self.columns = matrix, flaw, [0]

    def _matmat(self, X: Tensor) -> Tensor:
        self.columns[0] += X.shape[1]
        return self.matrix @ X + self.flaw

    def _adjoint(self) -> LinearOperator:
        twin = Counting(self.matrix.mH)
        twin.columns = self.columns
        return twin


def _maps() -> dict[str, Tensor]:
    return {
        "decaying": symmetric_with_spectrum(0.9 ** torch.arange(100.0).double(), 1),
        "indefinite": symmetric_with_spectrum(torch.linspace(-1.0, 1.5, 100).double(), 1),
        "not symmetric": gaussian(100, 100, 1) + torch.diag(torch.linspace(0, 10, 100)).double(),
        "Hermitian": symmetric_with_spectrum(torch.linspace(-1.0, 1.5, 100).double(), 1, torch.complex128),
        "complex": gaussian(100, 100, 1, torch.complex128) + torch.diag(torch.linspace(0, 10, 100)).double(),
    }


# Traces.


@pytest.mark.parametrize("name", _maps())
@pytest.mark.parametrize("function", ESTIMATORS)
def test_unbiased_and_honest(function, name):
    matrix = _maps()[name]
    truth = float(matrix.diagonal().real.sum())
    values, stated = repeated(function, matrix, 24, 200)
    assert abs(float(values.mean()) - truth) < 3.0 * float(values.std()) / math.sqrt(200)
    # The standard error of the root mean square of 200 normal errors is 5 %; XTrace counts dependence throughout.
    ratio = root_mean_square(values - truth) / root_mean_square(stated)
    assert (0.6 if function is xtrace else 0.8) < ratio < 1.25
    held = ((values - truth).abs() <= 2.0 * stated).double().mean()
    assert 0.85 <= float(held) <= (1.0 if function is xtrace else 0.99)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("function", ESTIMATORS)
def test_every_spectrum(function, name):
    for size in (1, 2, 9, 60):
        values = SPECTRA[name](size)
        found = function(symmetric(values, 1), 30, generator=seeded(2))
        assert math.isfinite(found.value)
        assert abs(found.value - float(values.sum())) <= 5.0 * found.stderr + 1e-12


@pytest.mark.parametrize("function", [hutchpp, xtrace])
def test_low_rank_is_exact(function):
    factor = orthonormal(80, 5, 1) * torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0]).double()
    found = function(factor @ factor.T, 30, generator=seeded(0))
    assert found.value == pytest.approx(55.0, rel=1e-12)
    assert found.stderr < 1e-12
    assert hutchinson(factor @ factor.T, 30, generator=seeded(0)).stderr > 1.0
    # The knob: a sketch of fewer columns than the rank is not exact.
    assert function(factor @ factor.T, 9, generator=seeded(0)).stderr > 1e-3


def test_sketches_beat_samples_where_the_spectrum_decays():
    values = 1.0 / (1.0 + torch.arange(200.0).double()) ** 2
    operator, truth = symmetric(values, 1), float(values.sum())
    errors = [root_mean_square(repeated(function, operator, 60, 40)[0] - truth) for function in ESTIMATORS]
    plain, hutch, cross = errors
    assert hutch < plain / 20
    assert cross < hutch


def test_sketches_cost_little_where_it_is_flat():
    values = torch.linspace(0.5, 1.5, 200).double()
    operator, truth = symmetric(values, 1), float(values.sum())
    plain, hutch, cross = (root_mean_square(repeated(f, operator, 60, 60)[0] - truth) for f in ESTIMATORS)
    assert hutch < 4.0 * plain  # a third of the samples, and no diagonal that costs nothing
    assert cross < 2.0 * plain


def test_resphering_takes_the_variance_of_the_length():
    identity = torch.eye(60).double()
    assert xtrace(identity, 20, generator=seeded(0)).stderr < 1e-12
    plain = xtrace(identity, 20, normalized=False, generator=seeded(0))
    assert plain.stderr > 0.1
    assert abs(plain.value - 60.0) < 5.0 * plain.stderr


def test_leave_one_out_is_what_leaving_one_out_gives():
    matrix = gaussian(30, 30, 1)
    sketch = Sketch(Dense(matrix), Dense(matrix), trace._spherical)
    for count in (3, 8):  # the second extends the first
        sketch.extend(count, seeded(5))
    assert torch.allclose(sketch.basis.mT @ sketch.basis, torch.eye(8).double(), atol=1e-13)
    assert torch.allclose(sketch.basis @ sketch.factor, matrix @ sketch.vectors)
    terms = []
    for left in range(8):
        others = torch.cat([sketch.vectors[:, :left], sketch.vectors[:, left + 1 :]], dim=1)
        basis = torch.linalg.qr(matrix @ others)[0]
        rest = sketch.vectors[:, left] - basis @ (basis.mT @ sketch.vectors[:, left])
        scale = (30 - 7) / float(rest @ rest)
        terms.append(float((basis * (matrix @ basis)).sum()) + scale * float(rest @ matrix @ rest))
    assert sketch.trace().value == pytest.approx(sum(terms) / 8, rel=1e-11)
    assert sketch.trace().stderr == pytest.approx(
        math.sqrt(2.0) * float(torch.tensor(terms, dtype=torch.float64).std()) / math.sqrt(8), rel=1e-9
    )


@pytest.mark.parametrize("function", ESTIMATORS)
def test_products_are_counted(function):
    counted = Counting(gaussian(90, 90, 1))
    for products in (20, 41):
        before = counted.columns[0]
        found = function(counted, products, generator=seeded(0))
        assert counted.columns[0] - before == found.products
        assert products - 1 <= found.products <= products


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_single_precision_at_any_scale(scale, dtype):
    values = 0.8 ** torch.arange(100.0).double()
    matrix = symmetric_with_spectrum(values * scale, 1, dtype)
    for function in ESTIMATORS:
        found = function(matrix, 60, generator=seeded(3))
        assert abs(found.value / scale - 5.0) < 4.0 * found.stderr / scale + 1e-5
    found = diagonal(matrix, samples=40, generator=seeded(3))
    assert float((found.values - matrix.diagonal()).abs().max()) < 5.0 * float(found.stderr.max()) + 1e-6 * scale


@pytest.mark.parametrize("method", ["auto", "xtrace", "hutchinson"])
def test_tolerance_is_reached(method):
    values = 1.0 / (1.0 + torch.arange(300.0).double())
    counted, truth = Counting(symmetric_with_spectrum(values, 1), symmetric=True), float(values.sum())
    cost = []
    for tol in (0.2, 0.02):
        before = counted.columns[0]
        found = estimate(counted, tol=tol, method=method, generator=seeded(1))
        assert found.stderr <= tol * abs(found.value)
        assert abs(found.value - truth) <= 4.0 * found.stderr + 1e-12 * truth
        cost.append(counted.columns[0] - before)
        assert cost[-1] == found.products
    assert cost[0] == 32
    assert cost[1] > cost[0]


def test_tolerance_out_of_reach_ends_with_the_identity():
    matrix = gaussian(150, 150, 1)
    counted = Counting(matrix)
    for method in ("xtrace", "hutchinson"):
        found = estimate(counted, tol=1e-9, method=method, generator=seeded(0))
        assert found.value == pytest.approx(float(matrix.trace()), rel=1e-12)
        assert found.stderr == 0.0
        assert found.products <= 300
    before = counted.columns[0]
    assert estimate(counted, method="exact").products == counted.columns[0] - before == 150
    with pytest.warns(RuntimeWarning, match="raise max_products"):
        short = estimate(counted, tol=1e-9, max_products=64, generator=seeded(0))
    assert short.products == 64
    assert short.stderr > 0.0


def test_sketch_that_does_not_fit_is_not_extended(monkeypatch):
    values = torch.cat([torch.full((10,), 50.0), torch.linspace(0.5, 1.5, 390)]).double()
    counted, truth = Counting(symmetric_with_spectrum(values, 1), symmetric=True), float(values.sum())
    monkeypatch.setattr(trace, "MEMORY", 4 * 400 * 16 * 8)
    found = estimate(counted, tol=0.004, generator=seeded(1))
    assert found.samples == found.products - 32  # 16 test vectors, then samples of the complement
    assert counted.columns[0] == found.products
    assert abs(found.value - truth) < 4.0 * found.stderr
    assert found.stderr < hutchinson(counted, found.products, generator=seeded(1)).stderr / 4
    monkeypatch.setattr(trace, "MEMORY", 0)
    none = estimate(counted, tol=0.5, generator=seeded(1))
    assert none.samples == none.products == 32


# Diagonals.


@pytest.mark.parametrize("name", _maps())
@pytest.mark.parametrize("method", ["xdiag", "plain"])
def test_diagonal_is_unbiased_and_honest(method, name):
    matrix = _maps()[name]
    operator = Dense(matrix, symmetric=name not in ("not symmetric", "complex"))
    truth = matrix.diagonal()
    found = [diagonal(operator, samples=12, method=method, generator=seeded(seed)) for seed in range(100)]
    assert all(one.samples == 12 for one in found)
    assert found[0].values.is_complex() == (name == "complex")
    errors = torch.stack([one.values for one in found]) - truth
    errors = errors.real if operator.symmetric else errors
    stated = torch.stack([one.stderr for one in found])
    bias = errors.mean(dim=0).abs() / (errors.std(dim=0) / 10.0)
    assert float(bias.square().mean().sqrt()) < 1.25  # of 100 entries, each of variance 1
    ratio = float(errors.abs().square().mean().sqrt() / stated.square().mean().sqrt())
    assert (0.6 if method == "xdiag" else 0.9) < ratio < 1.2


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_leave_one_out_of_the_diagonal(dtype):
    matrix = gaussian(25, 25, 1, dtype)
    sketch = Sketch(Dense(matrix), Dense(matrix).T, trace.signs)
    sketch.extend(6, seeded(5))
    terms = []
    for left in range(6):
        others = torch.cat([sketch.vectors[:, :left], sketch.vectors[:, left + 1 :]], dim=1)
        basis = torch.linalg.qr(matrix @ others)[0]
        project = basis @ basis.mH
        vector = sketch.vectors[:, left]
        image = matrix @ vector
        terms.append((project @ matrix).diagonal() + vector.conj() * (image - project @ image))
    assert torch.allclose(sketch.diagonal().values, torch.stack(terms).mean(dim=0), atol=1e-11)


def test_diagonal_of_low_rank_is_exact_and_beats_the_plain_mean():
    factor = gaussian(60, 3, 1)
    matrix = factor @ factor.T
    cross, plain = (diagonal(matrix, samples=8, method=m, generator=seeded(0)) for m in ("xdiag", "plain"))
    assert torch.allclose(cross.values, matrix.diagonal(), rtol=1e-10)
    assert float(cross.stderr.max()) < 1e-10
    assert float(plain.stderr.max()) > 0.1


def test_diagonal_of_a_diagonal_map_is_exact_by_one_pair_of_signs():
    values = torch.linspace(-3, 5, 40).double()
    found = diagonal(torch.diag(values), samples=2, method="plain", generator=seeded(0))
    assert torch.allclose(found.values, values, rtol=1e-14)
    assert float(found.stderr.max()) < 1e-14


@pytest.mark.parametrize("method", ["xdiag", "plain"])
def test_diagonal_to_a_tolerance(method):
    values = 0.8 ** torch.arange(200.0).double()
    matrix = symmetric_with_spectrum(values, 1)
    counted = Counting(matrix, symmetric=True)
    found = diagonal(counted, tol=0.3, method=method, generator=seeded(1))
    assert counted.columns[0] == found.products
    error = float(torch.linalg.vector_norm(found.values - matrix.diagonal()))
    size = float(torch.linalg.vector_norm(found.values))
    assert float(torch.linalg.vector_norm(found.stderr)) <= 0.3 * size
    assert error < 0.6 * size
    exact = diagonal(counted, tol=1e-15, method=method, generator=seeded(1))
    assert torch.allclose(exact.values, matrix.diagonal(), rtol=1e-13)
    assert exact.products <= 400
    with pytest.warns(RuntimeWarning, match="raise max_products"):
        short = diagonal(counted, tol=1e-15, method=method, max_products=40, generator=seeded(1))
    assert short.products == 32


def test_running_moments_are_those_of_all_samples():
    matrix = gaussian(20, 20, 1)
    found = diagonal(matrix, samples=150, method="plain", generator=seeded(4))  # three blocks
    generator, operator = seeded(4), Dense(matrix)
    vectors = torch.cat([trace.signs(operator, count, generator) for count in (64, 64, 22)], dim=1)
    terms = vectors * (matrix @ vectors)
    assert torch.allclose(found.values, terms.mean(dim=1))
    assert torch.allclose(found.stderr, terms.std(dim=1) / math.sqrt(150))


# What no estimate may do.


def test_one_sample_has_no_error():
    assert math.isinf(hutchinson(gaussian(9, 9, 1), 1, generator=seeded(0)).stderr)
    assert math.isinf(hutchpp(gaussian(9, 9, 1), 3, generator=seeded(0)).stderr)


def test_same_seed_same_bits_and_nothing_else_is_touched():
    matrix = gaussian(50, 50, 1)
    before, state = matrix.clone(), torch.get_rng_state()
    for function in (*ESTIMATORS, estimate):
        assert function(matrix, generator=seeded(3)) == function(matrix, generator=seeded(3))
    for function in ESTIMATORS:
        assert function(matrix, 10) != function(matrix, 10)
    one, two = (diagonal(matrix, samples=9, generator=seeded(3)) for _ in range(2))
    assert torch.equal(one.values, two.values)
    assert torch.equal(matrix, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_bad_input_is_refused():
    square = gaussian(6, 6, 1)
    for function in (*ESTIMATORS, estimate, diagonal):
        with pytest.raises(InputError, match="square"):
            function(with_spectrum(5, 4, torch.ones(4), 1))
        with pytest.raises(InputError, match="NaN"):
            function(Counting(torch.eye(6).double(), flaw=math.nan))
    for call, words in (
        (lambda: hutchinson(square, 0), "samples"),
        (lambda: hutchpp(square, 2), "products"),
        (lambda: xtrace(square, 3), "products"),
        (lambda: estimate(square, tol=0.0), "tol"),
        (lambda: estimate(square, tol=math.nan), "tol"),
        (lambda: estimate(square, method="hutch"), "xtrace"),
        (lambda: estimate(square, max_products=3), "max_products"),
        (lambda: diagonal(square, samples=1), "samples"),
        (lambda: diagonal(square, method="other"), "xdiag"),
        (lambda: diagonal(square, tol=-1.0), "tol"),
    ):
        with pytest.raises(InputError, match=words):
            call()
    empty = torch.zeros(0, 0).double()
    assert estimate(empty).value == hutchinson(empty).value == xtrace(empty).value == 0.0
    assert len(diagonal(empty).values) == 0
