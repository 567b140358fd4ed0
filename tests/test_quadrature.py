"""Stochastic Lanczos quadrature against dense eigenvalues, exact moments, and the known variance of its probes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor

from cases import SPECTRA, Diagonal, gaussian, orthonormal, symmetric_with_spectrum, with_spectrum
from eigenscope.errors import InputError
from eigenscope.measures import rank
from eigenscope.methods import lanczos
from eigenscope.methods.quadrature import (
    density,
    effective_rank,
    log_determinant,
    nuclear_norm,
    schatten_norm,
    spectral_sum,
)  # fmt: skip
from eigenscope.operators.arrays import Dense
from eigenscope.operators.base import LinearOperator
from eigenscope.results import Density


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def symmetric(values: Tensor, seed: int = 0, dtype: torch.dtype = torch.float64) -> Dense:
    return Dense(symmetric_with_spectrum(values, seed, dtype), symmetric=True)


def distance(found: Density, truth: Tensor) -> float:
    """Wasserstein-1, by SciPy."""
    weights = found.weights.mean(dim=0)
    assert float(weights.min()) >= 0.0
    return float(wasserstein_distance(found.nodes.numpy(), truth.numpy(), weights.numpy()))


def like_a_hessian(size: int = 500) -> Tensor:
    outliers = torch.linspace(20.0, 300.0, 10, dtype=torch.float64)
    return torch.cat([0.05 * gaussian(size - 10, 1, 4)[:, 0], outliers]).sort().values


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


# The recurrence and its rule.


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("kind", ["eigen", "singular"])
def test_rule_of_k_nodes_has_2k_moments_and_no_more(kind, dtype):
    matrix = (
        symmetric_with_spectrum(torch.linspace(-1.0, 1.5, 30), 1, dtype)
        if kind == "eigen"
        else gaussian(40, 30, 1, dtype)
    )
    operator = Dense(matrix, symmetric=kind == "eigen")
    start = orthonormal(30, 3, 2, dtype)
    sides = (operator,) if kind == "eigen" else (operator, operator.T)
    steps = 4
    found = lanczos.recurrence(sides, start, steps)
    base = matrix if kind == "eigen" else matrix.mH @ matrix
    norm = float(torch.linalg.matrix_norm(base, 2))
    for probe in range(3):
        nodes, weights = found.quadrature(probe)
        points = nodes if kind == "eigen" else nodes**2
        vector = start[:, probe]
        gaps = []
        for power in range(2 * steps + 1):
            truth = float((start[:, probe].conj() @ vector).real)
            gaps.append(abs(float((weights * points**power).sum()) - truth) / norm**power)
            vector = base @ vector
        assert max(gaps[:-1]) < 1e-13
        assert gaps[-1] > 1e-9  # the next moment is the first that a rule of k nodes misses


def test_staircase_is_bracketed_by_its_neighbouring_weights():
    values = torch.cat([torch.linspace(-1, 1, 200).double(), torch.zeros(50), torch.tensor([3.0, 5.0])]).double()
    matrix = symmetric_with_spectrum(values, 3)
    exact_values, vectors = torch.linalg.eigh(matrix)
    operator, start = Dense(matrix, symmetric=True), orthonormal(len(values), 5, 4)
    found = lanczos.recurrence((operator,), start, 12)
    widest = 0.0
    for probe in range(5):
        nodes, weights = found.quadrature(probe)
        masses = (vectors.mT @ start[:, probe]).square()
        for x in torch.linspace(-1.2, 5.2, 641).double() + 1e-7:
            truth = float(masses[exact_values <= x].sum())
            passed = int((nodes <= x).sum())
            stairs = float(weights[:passed].sum())
            below = float(weights[passed - 1]) if passed else 0.0
            above = float(weights[passed]) if passed < len(nodes) else 0.0
            assert stairs - below - 1e-10 <= truth <= stairs + above + 1e-10
            widest = max(widest, abs(truth - stairs))
    assert widest > 0.02  # so that a bracket of nothing would have failed


@pytest.mark.parametrize("kind", ["eigen", "singular"])
def test_pairs_set_aside_are_pairs(kind):
    values = like_a_hessian(200).abs() if kind == "singular" else like_a_hessian(200)
    matrix = symmetric_with_spectrum(values, 1) if kind == "eigen" else with_spectrum(250, 200, values.flip(0), 1)
    operator = Dense(matrix, symmetric=kind == "eigen")
    sides = (operator,) if kind == "eigen" else (operator, operator.T)
    aside = lanczos.deflated(sides, 8, seeded(0))
    found, vectors = aside.values, aside.vectors
    assert len(found) == 8
    assert aside.products == 36 * len(sides)
    target = vectors[0] if kind == "eigen" else vectors[1]
    gaps = torch.linalg.vector_norm(matrix @ vectors[0] - target * found, dim=0)
    assert float((gaps / found.abs()).max()) < 1.1e-5
    assert torch.allclose(vectors[0].mT @ vectors[0], torch.eye(8, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(found.sort().values, values.sort().values[-8:], rtol=1e-9)


def test_pairs_that_have_not_converged_stay_with_the_probes():
    matrix = symmetric_with_spectrum(torch.linspace(-1.0, 1.0, 400, dtype=torch.float64), 1)
    aside = lanczos.deflated((Dense(matrix, symmetric=True),), 20, seeded(0))
    found, (vectors,) = aside.values, aside.vectors
    assert len(found) < 20
    gaps = torch.linalg.vector_norm(matrix @ vectors - vectors * found, dim=0)
    assert bool((gaps <= 1.1e-5 * found.abs()).all())
    aside = lanczos.deflated((Dense(matrix, symmetric=True),), 60, seeded(0))
    many, (vectors,) = aside.values, aside.vectors
    gaps = torch.linalg.vector_norm(matrix @ vectors - vectors * many, dim=0)
    assert 2 <= len(many) < 60
    assert bool((gaps <= 1.1e-5 * many.abs()).all())


@pytest.mark.parametrize("kind", ["eigen", "singular"])
def test_locked_vectors_leave_the_map_on_their_complement(kind):
    matrix = symmetric_with_spectrum(torch.linspace(-1.0, 2.0, 40), 1) if kind == "eigen" else gaussian(50, 40, 1)
    operator = Dense(matrix, symmetric=kind == "eigen")
    sides = (operator,) if kind == "eigen" else (operator, operator.T)
    right = orthonormal(40, 6, 2)  # no eigenvectors: nothing but the projection keeps the recurrence off them
    left = right if kind == "eigen" else orthonormal(50, 6, 3)
    start = gaussian(40, 2, 4)
    start = start - right @ (right.mT @ start)
    start = start / torch.linalg.vector_norm(start, dim=0)
    found = lanczos.recurrence(sides, start, 10, (right, left)[: len(sides)])
    compressed = matrix - left @ (left.mT @ matrix)
    compressed = compressed - (compressed @ right) @ right.mT
    compressed = Dense((compressed + compressed.mT) / 2, symmetric=True) if kind == "eigen" else Dense(compressed)
    twin = lanczos.recurrence((compressed,) if kind == "eigen" else (compressed, compressed.T), start, 10)
    for probe in range(2):
        for one, other in zip(found.quadrature(probe), twin.quadrature(probe), strict=True):
            assert torch.allclose(one, other, atol=1e-12)


# Densities.


@pytest.mark.parametrize("size", [1, 2, 7, 90])
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("kind", ["eigen", "singular"])
def test_every_spectrum_is_inside_its_band(kind, name, size):
    values = SPECTRA[name](size)
    matrix: Any = symmetric(values, 5) if kind == "eigen" else with_spectrum(size, size + 3, values, 5)
    found = density(matrix, generator=seeded(1), level=5.0)
    assert found.kind == kind
    assert found.size == size
    assert bool(found.nodes.isfinite().all())
    assert bool(found.weights.isfinite().all())
    assert torch.allclose(found.weights.sum(dim=1), torch.ones(8, dtype=torch.float64))
    for x in (*values.unique().tolist()[:12], -0.1, 0.5, 2.0):
        share = found.below(x)
        truth = float((values < x - 1e-12).double().mean())
        assert share.low - 1e-12 <= truth <= share.high + 1e-12
        assert share.low <= share.value <= share.high


def test_few_eigenvalues_are_found_exactly():
    values = SPECTRA["polynomial"](15)
    for found in (
        density(symmetric(values), generator=seeded(0)),
        density(with_spectrum(15, 20, values, 1), generator=seeded(0)),
    ):
        assert found.deflated == 15
        assert distance(found, values) < 1e-13
        assert found.count(0.15, 2.0).value == pytest.approx(6.0, rel=1e-12)
        assert found.count(0.15, 2.0).stderr == 0.0


@pytest.mark.parametrize("kind", ["eigen", "singular"])
def test_breakdown_leaves_fewer_nodes_and_no_nan(kind):
    cases = {"one": 2, "flat": 1, "zero": 1}
    for name, distinct in cases.items():
        values = SPECTRA[name](50)
        matrix: Any = symmetric(values) if kind == "eigen" else with_spectrum(50, 60, values, 1)
        found = density(matrix, generator=seeded(0), deflate=0)
        assert len(found.nodes) <= 8 * (distinct + 1)  # a zero that rounding separated is one node more
        assert distance(found, values) < 0.05
        assert float(found.bracket.max()) < 1e-12 or name == "one"
        assert found.products <= 8 * 2 * (distinct + 2)
        with_deflation = density(matrix, generator=seeded(0))
        assert distance(with_deflation, values) < 1e-14


def test_band_of_two_standard_errors_holds_the_truth_in_95_percent():
    # Three values and 8 steps: the rule is exact, and only the probes err. Of Student's t with 7 degrees of freedom
    # 91.4 % lie within 2; the shares near the middle are nearly normal.
    values = torch.tensor([0.0] * 120 + [1.0] * 80 + [2.0] * 40, dtype=torch.float64)
    operator = symmetric(values, 7)
    held = []
    for seed in range(50):
        found = density(operator, generator=seeded(seed), deflate=0, steps=8)
        assert float(found.bracket.max()) < 1e-12
        for x in (0.5, 1.5):
            share = found.below(x)
            held.append(share.low <= float((values < x).double().mean()) <= share.high)
    assert 0.90 <= sum(held) / len(held) <= 0.98


def test_band_holds_the_truth_where_standard_errors_alone_do_not():
    values = torch.linspace(-1.0, 1.0, 300, dtype=torch.float64)
    operator = symmetric(values, 7)
    held, alone, counted = [], [], []
    for seed in range(50):
        found = density(operator, generator=seeded(seed), steps=8)
        for x in (-0.63, -0.21, 0.0, 0.35, 0.72):
            truth, share = float((values < x).double().mean()), found.below(x)
            held.append(share.low <= truth <= share.high)
            inside = found.weights[:, found.nodes < x].sum(dim=1)
            alone.append(abs(float(inside.mean()) - truth) <= 2.0 * float(inside.std()) / math.sqrt(8))
        count = found.count(-0.63, 0.35)
        counted.append(abs(count.value - 147) <= 2.0 * count.stderr)
    assert sum(held) / len(held) >= 0.98
    assert sum(counted) / len(counted) >= 0.95
    assert sum(alone) / len(alone) < 0.6


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_spread_over_probes_is_that_of_the_sphere(dtype):
    values = torch.tensor([0.0] * 60 + [1.0] * 30, dtype=torch.float64)
    found = density(symmetric(values, 3, dtype), probes=2000, steps=3, deflate=0, generator=seeded(5))
    below = found.weights[:, found.nodes < 0.5].sum(dim=1)
    share, size = 2.0 / 3.0, 90
    theory = share * (1 - share) * (2.0 / (size + 2) if dtype == torch.float64 else 1.0 / (size + 1))
    assert float(below.var()) == pytest.approx(theory, rel=0.13)
    assert abs(float(below.mean()) - share) < 4.0 * math.sqrt(theory / 2000)


def test_density_is_unbiased_with_deflation():
    values = torch.cat([torch.zeros(60), torch.ones(30), torch.tensor([7.0, -9.0, 11.0])]).double()
    operator = symmetric(values, 3)
    shares = torch.tensor([density(operator, generator=seeded(s), probes=2).below(0.5).value for s in range(150)])
    assert abs(float(shares.mean()) - 61 / 93) < 3.0 * float(shares.std()) / math.sqrt(150)


def test_deflation_reaches_the_plain_distance_with_a_quarter_of_the_products():
    values = like_a_hessian()
    operator = symmetric(values, 7)
    plain = [density(operator, steps=100, probes=10, deflate=0, generator=seeded(s)) for s in range(3)]
    deflated = [density(operator, steps=45, probes=4, generator=seeded(s)) for s in range(3)]
    assert all(found.products <= plain[0].products / 4 for found in deflated)
    assert all(10 <= found.deflated <= 20 for found in deflated)
    assert max(distance(found, values) for found in deflated) <= min(distance(found, values) for found in plain)
    # The knob: the same probes and steps without deflation are worse by far.
    same = [density(operator, steps=45, probes=4, deflate=0, generator=seeded(s)) for s in range(3)]
    assert min(distance(found, values) for found in same) > 10 * max(distance(found, values) for found in deflated)
    # And the outliers are counted without error.
    count = deflated[0].count(10.0, 400.0)
    assert count.value == pytest.approx(10.0, abs=0.01)
    assert count.stderr < 1.0  # what the rule leaves open between the bulk and 10


def test_more_steps_and_probes_come_closer():
    values = torch.linspace(-1.0, 1.0, 300, dtype=torch.float64)
    operator = symmetric(values, 7)

    def mean_distance(**options: int) -> float:
        return sum(distance(density(operator, generator=seeded(s), **options), values) for s in range(3)) / 3

    assert mean_distance(steps=3, probes=32) > 3 * mean_distance(steps=40, probes=32)
    assert mean_distance(steps=40, probes=2) > 1.5 * mean_distance(steps=40, probes=32)


def test_ends_of_a_count_are_open_and_closed():
    # A projector: rounding puts its eigenvalues on either side of 0 and 1.
    found = density(symmetric(torch.tensor([0.0] * 12 + [1.0] * 8).double(), 3), generator=seeded(0))
    inside, both, none = found.count(0.0, 1.0), found.count(-1.0, 1.0), found.count(1.0, 2.0)
    assert both.value == pytest.approx(20.0)
    assert none.value == pytest.approx(0.0, abs=1e-12)
    assert abs(inside.value - 8.0) < 4.0 * inside.stderr
    assert inside.value == pytest.approx(20.0 * (1.0 - found.below(1.0).value))


def test_one_probe_says_that_it_knows_nothing():
    values = torch.linspace(-1, 1, 80).double()
    found = density(symmetric(values), probes=1, generator=seeded(0))
    assert 2 <= found.deflated < 80
    rest = 1.0 - found.deflated / 80  # what was set aside is known, on either side of the middle
    share = found.below(0.0)
    assert share.low > 0.0
    assert share.high - share.low == pytest.approx(rest)
    assert share.low <= 0.5 <= share.high
    assert found.below(-2.0).low == 0.0
    assert found.below(2.0).high == 1.0
    assert math.isinf(found.count(-0.5, 0.5).stderr)
    assert math.isinf(spectral_sum(symmetric(torch.linspace(-1, 1, 80).double()), torch.square, probes=1).stderr)


def test_left_of_all_nodes_there_may_be_as_much_as_the_first_weights():
    found = density(symmetric(torch.linspace(-1, 1, 80).double()), steps=6, deflate=0, generator=seeded(0))
    firsts = [float(row[row > 0.0][0]) for row in found.weights]
    share = found.below(-1.5)
    assert share.value == share.low == 0.0
    assert share.high == pytest.approx(sum(firsts) / 8)


def test_negative_share_has_an_interval():
    values = torch.cat([torch.linspace(-0.1, -0.01, 60), torch.zeros(80), torch.linspace(0.01, 2, 60)]).double()
    operator = symmetric(values, 2)
    short, long = (density(operator, steps=k, generator=seeded(3)).below(0.0) for k in (10, 60))
    for share in (short, long):
        assert share.low <= 0.3 <= share.high
    assert long.high - long.low < short.high - short.low
    zeros = density(symmetric(SPECTRA["rank-deficient"](15)), generator=seeded(3))
    assert zeros.below(0.0).high == 0.0  # zeros that rounding makes negative are none


@pytest.mark.parametrize("scale", [1e-12, 1e12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scale_changes_nothing(scale, dtype):
    values = like_a_hessian(120)
    for kind in ("eigen", "singular"):
        matrix = symmetric_with_spectrum(values, 1, dtype)
        one = density(Dense(matrix, symmetric=True), kind=kind, generator=seeded(0))
        matrix = matrix * scale
        other = density(Dense((matrix + matrix.mH) / 2, symmetric=True), kind=kind, generator=seeded(0))
        truth = values.abs() if kind == "singular" else values
        assert one.deflated >= 10
        assert other.deflated >= 10
        # Not the same bits: rounding moves the Ritz values of a converged end.
        assert distance(other, truth * scale) / scale == pytest.approx(distance(one, truth), rel=0.05)
        assert other.count(10 * scale, 400 * scale).value == pytest.approx(10.0, abs=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.complex128])
def test_other_arithmetic(dtype):
    values = like_a_hessian(200)
    found = density(symmetric(values, 1, dtype), generator=seeded(0))
    assert found.nodes.dtype == found.weights.dtype == torch.float64
    assert distance(found, values) < 5e-3
    tall = density(with_spectrum(260, 200, SPECTRA["decaying"](200), 1, dtype), generator=seeded(0))
    assert distance(tall, SPECTRA["decaying"](200)) < 0.02


def test_singular_values_keep_their_small_digits():
    # By the Gram matrix a singular value of 0 would come out near √eps·σ_max = 1.5e-8.
    values = torch.cat([torch.ones(5), torch.full((3,), 1e-11), torch.zeros(4)]).double()
    found = density(with_spectrum(20, 12, values, 1), generator=seeded(0), deflate=0, probes=4)
    small = found.nodes[found.nodes < 0.5]
    assert float(small.max()) < 1.1e-11
    assert found.count(1e-12, 1e-10).value > 0.5


def test_shape_does_not_matter_to_singular_values():
    matrix = gaussian(90, 60, 3)
    tall, wide = density(matrix, generator=seeded(2)), density(matrix.T, generator=seeded(2))
    assert tall.size == wide.size == 60
    assert torch.equal(tall.nodes, wide.nodes)


def test_products_are_counted_on_both_sides():
    symmetric_map = Counting(symmetric_with_spectrum(torch.linspace(-1, 1, 100).double(), 1), symmetric=True)
    found = density(symmetric_map, steps=20, probes=3, generator=seeded(0))
    assert symmetric_map.columns[0] == found.products == 60 + 20 * 3
    general = Counting(gaussian(120, 100, 1))
    found = density(general, steps=20, probes=3, generator=seeded(0))
    assert general.columns[0] == found.products == 2 * (60 + 20 * 3)
    result = spectral_sum(general, torch.square, steps=20, probes=3, generator=seeded(0))
    assert result.products == found.products


def test_bases_that_do_not_fit_are_not_kept(monkeypatch):
    values = like_a_hessian()
    operator = symmetric(values, 7)
    full = density(operator, deflate=0, generator=seeded(1))
    monkeypatch.setattr(lanczos, "MEMORY", 0)
    lean = density(operator, deflate=20, generator=seeded(1))
    assert lean.deflated == 0  # there is no basis to take pairs from
    assert lanczos.recurrence((operator,), orthonormal(500, 2, 1), 5).bases[0].shape == (2, 0, 500)
    assert distance(lean, values) == pytest.approx(distance(full, values), rel=0.2)


def test_same_seed_same_bits_and_nothing_else_is_touched():
    matrix = symmetric_with_spectrum(torch.linspace(-1, 1, 90).double(), 1)
    operator, before, state = Dense(matrix, symmetric=True), matrix.clone(), torch.get_rng_state()
    one, two = density(operator, generator=seeded(4)), density(operator, generator=seeded(4))
    assert torch.equal(one.nodes, two.nodes)
    assert torch.equal(one.weights, two.weights)
    assert one.seed == 4
    fresh, other = density(operator), density(operator)
    assert fresh.seed != other.seed
    again = density(operator, generator=seeded(fresh.seed))
    assert torch.equal(fresh.nodes, again.nodes)
    assert spectral_sum(operator, torch.square, generator=seeded(1)) == spectral_sum(
        operator, torch.square, generator=seeded(1)
    )
    assert torch.equal(matrix, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_smoothed_density_is_a_density():
    noise = gaussian(400, 400, 1)
    semicircle = Dense((noise + noise.T) / math.sqrt(8 * 400), symmetric=True)  # of radius 1
    found = density(semicircle, steps=40, probes=40, deflate=0, generator=seeded(0))
    points = torch.linspace(-2.0, 2.0, 801, dtype=torch.float64)
    curve, stderr = found.smoothed(points)
    assert float(torch.trapezoid(curve, points)) == pytest.approx(1.0, abs=1e-6)
    law = (1 - points.square()).clamp(min=0.0).sqrt() * 2.0 / math.pi
    middle = points.abs() < 0.9
    assert 0.0 < float(stderr[middle].max()) < 0.05
    assert float(((curve - law).abs() - 3.0 * stderr)[middle].max()) < 0.02
    sharp, _ = found.smoothed(points, width=1e-3)
    assert float((sharp - law)[middle].abs().max()) > 0.3  # narrower than the resolution: spikes
    with pytest.raises(InputError, match="width"):
        found.smoothed(points, width=0.0)
    with pytest.raises(InputError, match="width"):
        density(symmetric(torch.zeros(5).double()), generator=seeded(0)).smoothed(points)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"steps": 0}, "steps"), ({"probes": 0}, "probes"), ({"deflate": -1}, "deflate"), ({"kind": "other"}, "kind"),
     ({"level": -1.0}, "level"), ({"kind": "eigen"}, "symmetric")],
)  # fmt: skip
def test_bad_options_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        density(gaussian(6, 6, 1), **options)


def test_bad_maps_are_refused():
    with pytest.raises(InputError, match="no values"):
        density(torch.zeros(0, 4))
    with pytest.raises(InputError, match="symmetric"):
        density(gaussian(6, 4, 1), kind="eigen")
    with pytest.raises(InputError, match="NaN"):
        density(Counting(torch.eye(6).double(), symmetric=True, flaw=math.nan))
    assert density(torch.eye(6).double(), kind="eigen", generator=seeded(0)).kind == "eigen"


# Sums of functions.


def _truths(values: Tensor) -> dict[Any, float]:
    return {
        nuclear_norm: float(values.abs().sum()),
        effective_rank: rank.effective_rank(values.abs().sort(descending=True).values.numpy()) or 0.0,
        log_determinant: float(values.abs().log().sum()),
    }


@pytest.mark.parametrize("name", ["square", "indefinite", "decaying"])
def test_sums_are_within_their_errors(name):
    size = 120
    if name == "square":
        matrix = gaussian(size, size, 1)
        operator, values = Dense(matrix), torch.linalg.svdvals(matrix)
    else:
        values = torch.linspace(-1.0, 3.0, size).double() if name == "indefinite" else SPECTRA["polynomial"](size)
        operator = symmetric(values, 1)
    for function, truth in _truths(values).items():
        for steps in (8, 40):
            scores = []
            for seed in range(12):
                found = function(operator, steps=steps, generator=seeded(seed))
                assert found.stderr > 0.0
                scores.append((found.value - truth) / found.stderr)
            # Of 12 draws of a t with 7 degrees of freedom, the root mean square is below 2 in all but one in 10^4.
            assert math.sqrt(sum(score**2 for score in scores) / 12) < 2.0, (function, steps)


def test_sums_of_all_values_are_exact():
    values = SPECTRA["polynomial"](12)
    for operator in (symmetric(values), Dense(with_spectrum(12, 12, values, 1))):
        for function, truth in _truths(values).items():
            found = function(operator, generator=seeded(0))
            assert found.value == pytest.approx(truth, rel=1e-12)
            assert found.stderr == 0.0
    assert nuclear_norm(torch.zeros(5, 4), generator=seeded(0)).value == 0.0
    assert schatten_norm(torch.zeros(5, 4), 3.0, generator=seeded(0)).value == 0.0


@pytest.mark.parametrize("order", [0.5, 1.0, 2.0, 10.0])
def test_schatten_norms(order):
    matrix = gaussian(120, 80, 1) * 1e40  # whose tenth powers leave float64
    truth = float((torch.linalg.svdvals(matrix) / 1e40).pow(order).sum().pow(1.0 / order)) * 1e40
    found = schatten_norm(matrix, order, generator=seeded(0))
    assert abs(found.value - truth) < 4.0 * found.stderr
    assert found.stderr < 0.1 * truth
    with pytest.raises(InputError, match="order"):
        schatten_norm(matrix, 0.0)


def test_few_steps_are_biased_and_say_so():
    values = 10.0 ** torch.linspace(0, -4, 150, dtype=torch.float64)
    operator, truth = symmetric(values, 2), float(values.log().sum())
    short = log_determinant(operator, steps=4, probes=64, generator=seeded(0))
    long = log_determinant(operator, steps=100, probes=64, generator=seeded(0))
    sampling = long.stderr
    assert short.value - truth > 10.0 * sampling  # above: the even derivatives of the logarithm are negative
    assert abs(short.value - truth) < 3.0 * short.stderr
    assert abs(long.value - truth) < 4.0 * long.stderr


def test_deflation_lowers_the_error_of_sums():
    values = like_a_hessian(300)
    operator = symmetric(values, 1)
    plain = spectral_sum(operator, torch.abs, deflate=0, generator=seeded(0))
    deflated = spectral_sum(operator, torch.abs, generator=seeded(0))
    assert deflated.stderr < 0.02 * plain.stderr
    for found in (plain, deflated):
        assert abs(found.value - float(values.abs().sum())) < 4.0 * found.stderr


def test_sums_are_unbiased():
    values = torch.linspace(0.1, 1.0, 60).double()
    operator = symmetric(values, 1)
    found = torch.tensor([spectral_sum(operator, torch.log, probes=2, generator=seeded(s)).value for s in range(100)])
    assert abs(float(found.mean()) - float(values.log().sum())) < 3.0 * float(found.std()) / 10.0


def test_tolerance_is_reached_or_missed_aloud():
    values = 10.0 ** torch.linspace(0, -3, 200, dtype=torch.float64)
    operator, truth = symmetric(values, 2), float(values.log().sum())
    rough = log_determinant(operator, steps=8, generator=seeded(1))
    fine = log_determinant(operator, steps=8, tol=0.01, generator=seeded(1))
    assert fine.stderr <= 0.01 * abs(fine.value) < rough.stderr
    assert fine.products > rough.products
    assert abs(fine.value - truth) < 4.0 * fine.stderr
    with pytest.warns(RuntimeWarning, match="raise max_products"):
        stopped = log_determinant(operator, steps=8, tol=1e-6, max_products=2000, generator=seeded(1))
    assert stopped.products <= 2000


def test_what_is_to_blame_is_doubled():
    values = 10.0 ** torch.linspace(0, -4, 150, dtype=torch.float64)
    operator = symmetric(values, 2)
    # Few steps, many probes: the rule is to blame, and what the short rules gave is dropped.
    by_steps = log_determinant(operator, steps=4, probes=64, deflate=0, tol=0.02, generator=seeded(0))
    assert by_steps.samples == 64
    assert abs(by_steps.value / float(values.log().sum()) - 1.0) < 0.06
    # A trace has no error of the rule: only probes are added, as many as there were.
    costs = [
        spectral_sum(operator, lambda x: x, probes=4, deflate=0, steps=8, tol=tol, generator=seeded(0))
        for tol in (0.5, 0.03)
    ]
    assert costs[0].samples == 4
    assert costs[1].samples in (8, 16, 32, 64, 128, 256)
    assert costs[1].products == 8 * costs[1].samples
    assert abs(costs[1].value - float(values.sum())) < 4.0 * costs[1].stderr


def test_bad_sums_are_refused():
    singular = symmetric(SPECTRA["rank-deficient"](40))
    with pytest.raises(InputError, match="singular"):
        log_determinant(singular, generator=seeded(0))
    with pytest.raises(InputError, match="square"):
        log_determinant(gaussian(4, 5, 1))
    with pytest.raises(InputError, match="NaN"):
        spectral_sum(symmetric(torch.linspace(-1, 1, 30).double()), torch.log, generator=seeded(0))
    with pytest.raises(InputError, match="zero map"):
        effective_rank(torch.zeros(4, 4))
    with pytest.raises(InputError, match="steps"):
        nuclear_norm(gaussian(4, 4, 1), steps=3)
    with pytest.raises(InputError, match="tol"):
        nuclear_norm(gaussian(4, 4, 1), tol=0.0)


@pytest.mark.parametrize("name", ["semicircle", "atoms", "half"])
def test_band_of_the_blurred_share_covers_as_often_as_it_says(name):
    steps = torch.arange(200, dtype=torch.float64)
    values = {
        "semicircle": torch.cos(math.pi * (steps + 0.5) / 200).sort().values,
        "atoms": (steps // 67),
        "half": torch.where(steps < 100, 0.0, steps / 200),
    }[name]
    operator = Dense(symmetric_with_spectrum(values, seed=1), symmetric=True)
    points = torch.quantile(values, torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)) + 1e-3
    held, narrow = [], []
    for seed in range(50):
        found = density(operator, steps=12, deflate=0, generator=seeded(seed))
        value, low, high = found.cumulative(points, 0.15)
        blurred = (0.5 + 0.5 * torch.erf((points.unsqueeze(1) - values) / (0.15 * 2**0.5))).mean(dim=1)
        held.append((low <= blurred) & (blurred <= high))
        narrow.append(((value - blurred).abs() <= 0.4 * (high - value)).double().mean())
    # 200 checks, those of a seed alike: 0.9 to 0.99, two standard errors of 50 about 0.95.
    assert 0.88 <= float(torch.stack(held).double().mean()) <= 0.995
    assert float(torch.stack(narrow).mean()) < 0.85  # a band of less than half the width does not cover


def test_blurred_share_of_one_probe_and_of_a_known_spectrum():
    operator = Dense(symmetric_with_spectrum(torch.arange(30.0).double(), seed=1), symmetric=True)
    points = torch.tensor([-50.0, 10.5, 80.0], dtype=torch.float64)
    _, low, high = density(operator, probes=1, deflate=0, generator=seeded(0)).cumulative(points)
    assert low.tolist() == [0.0] * 3
    assert high.tolist() == [1.0] * 3
    value, low, high = density(operator, steps=60, deflate=30, generator=seeded(0)).cumulative(points, 1e-3)
    assert torch.allclose(value, torch.tensor([0.0, 11 / 30, 1.0]).double(), atol=1e-6)
    assert bool((high - low <= 1e-12).all())
    with pytest.raises(InputError, match="cumulative"):
        density(operator, generator=seeded(0)).cumulative(points, 0.0)


# The recurrence that sets pairs aside, as a probe.


def test_what_sets_pairs_aside_is_a_probe_without_bias():
    values = torch.cat([torch.linspace(-1.0, 1.0, 1400).double(), torch.zeros(590).double(), torch.arange(3.0, 13.0)])
    few = {"steps": 30, "probes": 2, "deflate": 15}
    found = [density(Diagonal(values), generator=seeded(s), **few) for s in range(60)]
    assert {part.products for part in found} == {50 + 30}
    assert {len(part.weights) for part in found} == {2}
    for x in (-0.5, 0.25, 0.5):
        shares = torch.stack([part.weights[:, part.nodes < x].sum(dim=1) for part in found])
        truth = float((values < x).double().mean())
        for probe in (0, 1):  # the one that set pairs aside is as good as the other
            error = float(shares[:, probe].std()) / math.sqrt(60)
            assert abs(float(shares[:, probe].mean()) - truth) < 4.0 * error + 0.005
    one = density(Diagonal(values), generator=seeded(0), steps=30, probes=1, deflate=15)
    assert one.products == 50
    assert float(one.weights.sum()) == pytest.approx(1.0, rel=1e-12)


def test_it_is_none_where_values_are_repeated():
    values = torch.cat(
        [torch.linspace(-1.0, 1.0, 1900).double(), torch.arange(3.0, 13.0).double().repeat_interleave(10)]
    )
    found = [density(Diagonal(values), generator=seeded(s), steps=30, probes=2, deflate=15) for s in range(20)]
    assert {part.products for part in found} == {50 + 60}
    counts = torch.tensor([part.count(2.0, 20.0).value for part in found])
    assert abs(float(counts.mean()) - 100.0) < 4.0 * float(counts.std()) / math.sqrt(20)


def test_it_brings_the_distance_of_ten_probes_with_a_sixth_of_the_products():
    values = torch.cat([0.02 * gaussian(1960, 1, 4)[:, 0], 2.0 * 0.93 ** torch.arange(40.0).double()])

    def median(**options: int) -> float:
        return sorted(distance(density(Diagonal(values), generator=seeded(s), **options), values) for s in range(3))[1]

    assert median(steps=30, probes=3, deflate=39) <= median(steps=100, probes=10, deflate=0)  # 158 products for 1000
