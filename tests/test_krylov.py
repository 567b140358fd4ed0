"""The Krylov solvers against planted spectra, exact ones and LAPACK: nothing missed, nothing flagged that is not so."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.sparse.linalg._special_sparse_arrays import MikotaPair, Sakurai

from cases import SPECTRA, gaussian, orthonormal, symmetric_with_spectrum, with_spectrum
from eigenscope.errors import ConvergenceWarning, InputError
from eigenscope.methods import krylov_search, recurrence
from eigenscope.methods.krylov import eigenpairs, is_cheap, singular_triplets
from eigenscope.operators.arrays import Dense, LowRank, Sparse
from eigenscope.operators.base import LinearOperator

TOL = 1e-6


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Opaque(LinearOperator):
    """A matrix known by its products only, which it counts on both sides."""

    def __init__(self, matrix, symmetric=False, counts=None):
        super().__init__(tuple(matrix.shape), matrix.dtype, "cpu", symmetric)
        self.matrix, self.counts = matrix, [0] if counts is None else counts

    def _matmat(self, X):
        self.counts[0] += X.shape[1]
        return self.matrix @ X

    def _adjoint(self):
        return Opaque(self.matrix.mH, counts=self.counts)


def wide(matrix):
    return matrix.to(torch.complex128 if matrix.is_complex() else torch.float64)


def check(result, matrix, truth, tol=TOL, norm=None):
    """Orthonormal, residuals as stated by new products, flags by the residuals, values true and in their places."""
    matrix = wide(matrix)
    k, sigma = len(truth), float(truth.abs().max()) if norm is None else norm
    assert len(result) == k
    identity = torch.eye(k, dtype=matrix.dtype)
    assert (result.right.mH @ result.right - identity).abs().max() < 1e-12
    left = result.right if result.left is None else result.left
    assert (left.mH @ left - identity).abs().max() < 1e-12
    residuals = torch.maximum(
        torch.linalg.vector_norm(matrix @ result.right - left * result.values, dim=0),
        torch.linalg.vector_norm(matrix.mH @ left - result.right * result.values, dim=0),
    )
    assert torch.allclose(residuals, result.residuals, rtol=1e-3, atol=1e-13 * sigma)
    assert torch.all(result.values[:-1] >= result.values[1:])
    assert bool(result.converged.all())
    assert torch.all(result.residuals <= tol * sigma)
    assert torch.all((result.values - truth).abs() <= tol * sigma)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("shape", [(40, 40), (30, 120), (7, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
@pytest.mark.parametrize("block", [None, 1, 3])
def test_largest_triplets(name, shape, dtype, block):
    matrix = with_spectrum(*shape, SPECTRA[name](min(shape)), 7, dtype)
    every = torch.linalg.svdvals(wide(matrix))
    for k in sorted({1, max(1, min(shape) // 4), min(shape)}):
        result = singular_triplets(Dense(matrix), k, block=block, tol=TOL, generator=seeded())
        check(result, matrix, every[:k])
        nearest = (result.values[:, None] - every[None, :]).abs().min(dim=1).values
        assert torch.all(nearest <= result.bounds + 1e-14)
        assert result.complete == (k == min(shape))
        assert result.frobenius == pytest.approx(float(torch.linalg.vector_norm(every)), abs=1e-13)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("shape", [(40, 40), (60, 20), (20, 60)], ids=str)
@pytest.mark.parametrize("block", [None, 1])
def test_smallest_triplets(name, shape, block):
    matrix = with_spectrum(*shape, SPECTRA[name](min(shape)), 7)
    every = torch.linalg.svdvals(matrix)
    for k in (1, 5, 20):
        result = singular_triplets(Dense(matrix), k, which="smallest", block=block, generator=seeded())
        check(result, matrix, every[-k:], norm=float(every[0]))


@pytest.mark.parametrize("scale", [1e-200, 1e-150, 1e-12, 1e12, 1e150, 1e200])
@pytest.mark.parametrize("name", ["decaying", "rank-deficient", "one"])
def test_scale_changes_nothing(name, scale):
    matrix = with_spectrum(40, 25, SPECTRA[name](25), 7)
    plain = singular_triplets(Dense(matrix), 6, generator=seeded())
    scaled = singular_triplets(Dense(matrix * scale), 6, generator=seeded())
    assert torch.allclose(scaled.values / scale, plain.values, rtol=1e-9, atol=1e-13)
    assert bool(scaled.converged.all())
    assert scaled.products == plain.products
    assert scaled.frobenius == pytest.approx(plain.frobenius * scale, rel=1e-12)


@pytest.mark.parametrize("name", [*SPECTRA, "signed"])
@pytest.mark.parametrize("which", ["LA", "SA", "LM", "both"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
@pytest.mark.parametrize("block", [None, 1, 3])
def test_eigenpairs(name, which, dtype, block):
    for n in (1, 2, 40):
        values = SPECTRA["polynomial" if name == "signed" else name](n)
        if name == "signed":
            values[1::2] *= -1.0
        matrix = symmetric_with_spectrum(values, 3, dtype)
        every = torch.linalg.eigvalsh(wide(matrix)).flip(0)
        for k in sorted({1, max(1, n // 4), n}):
            result = eigenpairs(Dense(matrix, symmetric=True), k, which=which, block=block, generator=seeded())
            top = {"LA": k, "SA": 0, "both": k - k // 2}.get(which)
            if top is not None:
                truth = torch.cat([every[:top], every[n - (k - top) :]])
            else:
                truth = every[every.abs().argsort(descending=True, stable=True)[:k]].sort(descending=True).values
                # ±λ may be taken in either sign where both have the last magnitude.
                assert torch.allclose(result.values.abs().sort().values, truth.abs().sort().values, atol=1e-6)
                truth = result.values
            check(result, matrix, truth, tol=2e-6, norm=float(every.abs().max()))
            assert result.left is None
            assert result.kind == "eigen"


def periodic_laplacian(side):
    """Sparse (side², side²) and its exact eigenvalues, descending: two cosines added, so multiplicities 1, 2, 4, 8."""
    ones = np.ones(side)
    line = sp.diags_array([2 * ones, -ones[1:], -ones[1:], [-1.0], [-1.0]], offsets=[0, 1, -1, side - 1, 1 - side])
    waves = 2 - 2 * np.cos(2 * np.pi * np.arange(side) / side)
    return sp.kronsum(line, line).tocsr(), np.sort((waves[:, None] + waves).ravel())[::-1]


@pytest.mark.parametrize(("block", "k", "tol"), [
    (1, 5, 1e-3), (1, 5, 1e-10), (1, 20, 1e-6), (2, 20, 1e-6), (2, 20, 1e-10), (3, 20, 1e-3), (3, 50, 1e-6),
    (8, 50, 1e-3), (8, 111, 1e-6), (None, 50, 1e-10), (None, 900, 1e-6),
])  # fmt: skip
def test_no_copy_of_a_multiple_eigenvalue_is_missed(block, k, tol):
    matrix, truth = periodic_laplacian(30)
    assert len(np.unique(truth.round(9))) == 111
    for seed in (0, 1):
        result = eigenpairs(Sparse(matrix, symmetric=True), k, block=block, tol=tol, generator=seeded(seed))
        assert np.abs(result.values.numpy() - truth[:k]).max() <= max(tol * 16.0, 1e-12)
        assert bool(result.converged.all())


@pytest.mark.parametrize("block", [1, 2])
def test_without_the_search_for_copies_they_are_missed(block, monkeypatch):
    monkeypatch.setattr(krylov_search.Search, "_probes_needed", lambda *_: (0, 0))
    matrix, truth = periodic_laplacian(30)
    result = eigenpairs(Sparse(matrix, symmetric=True), 20, block=block, tol=1e-3, generator=seeded())
    assert bool(result.converged.all())
    assert np.abs(result.values.numpy() - truth[:20]).max() > 0.1


def test_a_cluster_wider_than_the_block_is_found_whole():
    values = torch.cat([1.0 - 1e-9 * torch.arange(12), 0.1 * SPECTRA["decaying"](28)]).double()
    result = singular_triplets(Dense(with_spectrum(60, 40, values, 1)), 12, block=3, generator=seeded())
    assert float(result.values.min()) > 0.9


def test_without_reorthogonalisation_ghosts_appear(monkeypatch):
    values = torch.cat([torch.tensor([10.0, 5.0]), torch.linspace(0.0, 1.0, 298)]).double()
    operator = Dense(symmetric_with_spectrum(values, 5), symmetric=True)
    sound = eigenpairs(operator, 3, block=1, tol=1e-12, generator=seeded())
    assert torch.allclose(sound.values, torch.tensor([10.0, 5.0, 1.0]).double(), atol=1e-9)

    def three_terms(W, basis, floor, limit):
        """Orthogonal to the last two vectors only, as the plain recurrence."""
        C = basis.mH @ W
        C[:-2] = 0.0
        W = W - basis @ C
        R = torch.linalg.vector_norm(W, dim=0)
        return W / R, C, R.reshape(1, -1)

    search = krylov_search.Search(
        recurrence.Products(operator), recurrence.Lanczos,
        krylov_search.Task(3, ((krylov_search.SCORES["LA"], 3),), 1e-12, False, 1, 80, 80, None, True), seeded(),
    )  # fmt: skip
    monkeypatch.setattr(recurrence, "orthonormalise", three_terms)
    monkeypatch.setattr(krylov_search.Search, "_look", lambda self: None)
    search.run()
    assert int((search.state.ritz().values > 9.999).sum()) > 1  # one eigenvalue, several times


def propack(name):
    path = Path(importlib.util.find_spec("scipy.sparse.linalg").origin).parent / "tests" / "propack_test_data.npz"
    return np.load(path, allow_pickle=True)[name].item()


@pytest.mark.parametrize(("name", "k"), [("A_real", 40), ("A_complex", 20)])
def test_propack_matrices(name, k):
    matrix = propack(name)
    truth = np.linalg.svd(matrix.toarray(), compute_uv=False)
    result = singular_triplets(Sparse(matrix), k, tol=1e-9, generator=seeded())
    assert np.abs(result.values.numpy() - truth[:k]).max() <= 1e-9 * truth[0]
    assert bool(result.converged.all())


def test_exact_spectra_of_sakurai_and_mikota():
    sakurai = Sakurai(500)
    top = eigenpairs(Sparse(sakurai.tosparse().tocsr().astype(float), symmetric=True), 8, generator=seeded())
    assert np.allclose(top.values.numpy(), np.sort(sakurai.eigenvalues())[-8:][::-1], atol=1e-6 * 16)
    stiffness = MikotaPair(64, dtype=np.float64).k.tosparse().toarray()
    roots = np.sqrt(np.arange(1.0, 65.0))  # M is diag(1, ½, ⅓, …)
    pairs = eigenpairs(Dense(torch.tensor(roots[:, None] * stiffness * roots), symmetric=True), 10, generator=seeded())
    assert np.allclose(pairs.values.numpy(), np.arange(64.0, 54.0, -1.0) ** 2, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_low_precision_promises_no_more_than_it_has(dtype):
    matrix = with_spectrum(80, 50, SPECTRA["polynomial"](50), 4, dtype)
    reached = singular_triplets(Opaque(matrix), 4, tol=1e-5, generator=seeded())
    assert bool(reached.converged.all())
    with pytest.warns(ConvergenceWarning, match=f"rounding of {dtype}"):
        result = singular_triplets(Opaque(matrix), 4, tol=1e-18, generator=seeded())
    assert not bool(result.converged.any())
    assert float(result.residuals.max()) < 50 * torch.finfo(dtype).eps
    truth = torch.linalg.svdvals(matrix.double())[:4]
    assert torch.all((result.values - truth).abs() <= result.bounds)


def test_too_few_products_are_told_and_nothing_is_cut_short():
    matrix = with_spectrum(300, 200, torch.linspace(1.0, 0.5, 200).double(), 4)
    for budget in (1, 10, 60):
        with pytest.warns(ConvergenceWarning, match="raise max_products"):
            result = singular_triplets(Dense(matrix), 12, max_products=budget, block=4, generator=seeded())
        assert len(result) == 12
        assert not bool(result.converged.all())
        assert result.products <= budget + 24
        left_over = wide(matrix) @ result.right - result.left * result.values
        assert torch.all(torch.linalg.vector_norm(left_over, dim=0) <= result.residuals + 1e-12)
        assert result.left.shape == (300, 12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bool(singular_triplets(Dense(matrix), 12, max_products=5000, generator=seeded()).converged.all())


def test_a_budget_that_ends_the_search_for_copies_is_named():
    matrix = symmetric_with_spectrum(torch.cat([torch.tensor([5.0, 4.0, 3.0]), torch.linspace(0, 1, 97)]), 2)
    full = eigenpairs(Dense(matrix, symmetric=True), 3, block=1, generator=seeded())
    with pytest.warns(ConvergenceWarning, match="missed copies"):
        cut = eigenpairs(Dense(matrix, symmetric=True), 3, block=1, max_products=full.products - 5, generator=seeded())
    assert "copies" in cut.reason
    assert "copies" not in full.reason
    assert torch.equal(cut.values, full.values)


def test_products_are_counted_and_few():
    """A map with outliers, as a Hessian has: one vector at a time, a documented few to check."""
    values = torch.cat([torch.tensor([14.8, 10.8, 9.2, 8.6, 6.0, 2.0]), 1e-2 * torch.randn(994, generator=seeded(3))])
    matrix = symmetric_with_spectrum(values, 2)
    operator = Opaque(matrix, symmetric=True)
    result = eigenpairs(operator, 5, tol=1e-3, generator=seeded())
    assert result.products == operator.counts[0]
    assert result.products <= 12 + 3 + 5  # steps, steps of the search for copies, measured residuals
    assert torch.allclose(result.values, values[:5].double(), rtol=1e-4)
    wide_block = eigenpairs(operator, 5, tol=1e-3, block=8, generator=seeded())
    assert wide_block.products > result.products
    both_sides = Opaque(gaussian(30, 20, 1))
    assert singular_triplets(both_sides, 2, generator=seeded()).products == both_sides.counts[0]


def test_a_start_near_the_answer_saves_products():
    matrix = with_spectrum(200, 150, torch.linspace(1.0, 0.5, 150).double(), 4)
    cold = singular_triplets(Opaque(matrix), 4, block=4, generator=seeded())
    warm = singular_triplets(Opaque(matrix), 4, block=4, start=cold.right, generator=seeded())
    assert warm.products < cold.products / 2
    flipped = singular_triplets(Opaque(matrix.mH.contiguous()), 4, block=4, start=cold.left, generator=seeded())
    assert flipped.products < cold.products / 2
    assert torch.allclose(warm.values, cold.values, atol=1e-6)


@pytest.mark.parametrize("kind", ["wrong vectors", "null vectors", "zeros", "one vector"])
def test_a_start_that_misleads_is_overcome(kind):
    left, right = orthonormal(60, 40, 1), orthonormal(40, 40, 2)
    values = torch.cat([SPECTRA["polynomial"](20), torch.zeros(20).double()])
    matrix = (left * values) @ right.mH
    start = {
        "wrong vectors": right[:, 5:9], "null vectors": right[:, 30:34],
        "zeros": torch.zeros(40, 3).double(), "one vector": right[:, 7],
    }[kind]  # fmt: skip
    before = start.clone()
    result = singular_triplets(Dense(matrix), 3, block=1, start=start, generator=seeded())
    assert torch.allclose(result.values, values[:3], atol=1e-6)
    assert torch.equal(start, before)


def test_the_same_seed_gives_the_same_bits_and_a_fresh_one_is_recorded():
    operator = Dense(gaussian(60, 40, 1))
    state = torch.get_rng_state()
    first, again = (singular_triplets(operator, 5, generator=seeded(11)) for _ in range(2))
    assert torch.equal(first.left, again.left)
    assert torch.equal(first.residuals, again.residuals)
    assert first.seed == 11
    fresh, other = singular_triplets(operator, 5), singular_triplets(operator, 5)
    assert fresh.seed != other.seed
    assert torch.equal(singular_triplets(operator, 5, generator=seeded(fresh.seed)).right, fresh.right)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_matrix_is_not_changed():
    matrix = gaussian(60, 40, 1)
    before = matrix.clone()
    singular_triplets(Dense(matrix), 5, generator=seeded())
    eigenpairs(Opaque(torch.eye(30).double(), symmetric=True), 5, generator=seeded())
    assert torch.equal(matrix, before)


def test_an_operator_that_returns_its_argument_is_safe():
    class Identity(LinearOperator):
        def __init__(self):
            super().__init__((50, 50), torch.float64, "cpu", True)

        def _matmat(self, X):
            return X

        def _adjoint(self):
            return self

    assert torch.allclose(eigenpairs(Identity(), 7, generator=seeded()).values, torch.ones(7).double())


def test_cheap_operators_are_those_made_of_matrices():
    dense, sparse = Dense(gaussian(6, 5, 1)), Sparse(sp.csr_array(gaussian(6, 5, 2).numpy()))
    low_rank = LowRank(gaussian(6, 2, 1), gaussian(5, 2, 1))
    assert all(is_cheap(A) for A in (dense, sparse, low_rank, dense + sparse, 2.0 * (sparse - low_rank), dense.gram()))
    assert not is_cheap(Opaque(gaussian(6, 5, 1)))
    assert not is_cheap(dense + Opaque(gaussian(6, 5, 1)))


@pytest.mark.parametrize(("arguments", "message"), [
    ({"k": 0}, "k = 0"), ({"k": 11}, "1 ≤ k ≤ 10"), ({"tol": -1.0}, "tol"), ({"tol": float("nan")}, "tol = nan"),
    ({"block": 0}, "block = 0"), ({"max_products": 0}, "max_products = 0"), ({"which": "LA"}, "unknown which"),
    ({"start": torch.zeros(9, 1)}, r"\(9, 1\)"), ({"start": torch.zeros(10, 0)}, r"\(10, 0\)"),
    ({"start": torch.full((10,), float("nan"))}, "NaN"), ({"start": torch.zeros(10, dtype=torch.complex64)}, "complex"),
])  # fmt: skip
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        singular_triplets(Dense(gaussian(12, 10, 1)), **{"k": 3, **arguments})


def test_eigenpairs_refuses_what_it_cannot_do():
    with pytest.raises(InputError, match="not said to be symmetric"):
        eigenpairs(Dense(gaussian(5, 5, 1)), 2)
    with pytest.raises(InputError, match="unknown which"):
        eigenpairs(Dense(torch.eye(5), symmetric=True), 2, which="LX")
    broken = Opaque(torch.eye(5), symmetric=True)
    broken.matrix[2, 2] = float("inf")
    with pytest.raises(InputError, match="NaN or an infinity"):
        eigenpairs(broken, 2, generator=seeded())
