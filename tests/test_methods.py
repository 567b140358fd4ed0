"""Every method on every spectrum: values within the stated bounds, residuals measured, orthonormality, scaling."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch

import eigenscope as es
from cases import SPECTRA, symmetric_with_spectrum, with_spectrum
from eigenscope.errors import InputError
from eigenscope.methods import choose, exact, lapack

SHAPES = [(40, 40), (120, 30), (30, 120), (1, 7), (7, 1)]
METHODS = ["auto", "gram", "lapack"]
U = 2.0**-53


def truth(shape, name):
    """A matrix of prescribed singular values, and the values themselves, descending."""
    values = torch.as_tensor(SPECTRA[name](min(shape)), dtype=torch.float64).sort(descending=True).values
    return with_spectrum(*shape, values, seed=7), values


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12, 1e-200, 1e200])
def test_values_lie_within_their_bounds(name, shape, method, scale):
    matrix, values = truth(shape, name)
    result = es.spectrum(matrix * scale, method=method)
    # Building the matrix in float64 moves its own singular values by a few roundings of σ₁.
    made = 8 * max(shape) * U * float(values[0])
    assert torch.all((result.values / scale - values).abs() <= result.bounds / scale + made)
    assert result.complete
    assert len(result) == min(shape)
    assert torch.all(result.values[:-1] >= result.values[1:])


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", ["auto", "lapack", "krylov", "propack", "randomized"])
@pytest.mark.parametrize("part", ["one", "some", "all"])
def test_triplets_have_the_residuals_they_state(name, shape, method, part):
    matrix, values = truth(shape, name)
    k = {"one": 1, "some": max(1, min(shape) // 4), "all": min(shape)}[part]
    result = es.svd(matrix, k, method=method, generator=torch.Generator().manual_seed(0))
    assert method == "auto" or result.method.startswith(method)
    assert result.left.shape == (shape[0], k)
    assert result.right.shape == (shape[1], k)
    identity = torch.eye(k, dtype=torch.float64)
    assert (result.left.T @ result.left - identity).abs().max() < 1e-8
    assert (result.right.T @ result.right - identity).abs().max() < 1e-8
    again = torch.maximum(
        torch.linalg.vector_norm(matrix @ result.right - result.left * result.values, dim=0),
        torch.linalg.vector_norm(matrix.T @ result.left - result.right * result.values, dim=0),
    )
    slack = 1e-13 * float(values[0]) + 1e-300
    assert torch.all(again <= result.residuals + slack)
    assert torch.all(result.converged == (result.residuals <= 1e-6 * result.values[0]))
    assert bool(result.converged.all()) or method == "randomized"  # its cost is fixed, not its accuracy
    # An iteration cannot order values closer together than its tolerance: one within the bound, the i-th within 1e-6.
    nearest = (result.values[:, None] - values[None, :]).abs().min(dim=1).values
    made = 8 * max(shape) * U * float(values[0])
    assert torch.all(nearest <= result.bounds + made)
    exact_route = result.method in ("gram", "lapack")
    limit = result.bounds if exact_route else torch.full_like(values[:k], 1e-6 * float(values[0]))
    if method != "randomized":
        assert torch.all((result.values - values[:k]).abs() <= limit + made)
    assert result.complete == (k == min(shape))


@pytest.mark.parametrize("k", [1, 5, 30])
def test_truncation_error_is_that_of_eckart_and_young(k):
    matrix, values = truth((90, 30), "decaying")
    result = es.svd(matrix, k)
    error = float(torch.linalg.vector_norm(matrix - (result.left * result.values) @ result.right.T))
    assert error == pytest.approx(float(torch.linalg.vector_norm(values[k:])), rel=1e-9, abs=1e-13)
    left_out = max(0.0, result.frobenius**2 - float((result.values**2).sum())) ** 0.5
    assert left_out == pytest.approx(float(torch.linalg.vector_norm(values[k:])), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("which", ["LA", "SA", "LM", "both"])
@pytest.mark.parametrize("k", [1, 4, 9])
@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12, 1e-250])
@pytest.mark.parametrize("method", ["auto", "lapack", "krylov"])
def test_eigenpairs_of_each_end(which, k, scale, method):
    values = torch.tensor([-9.0, -4.0, -4.0, -1.0, 0.0, 0.5, 2.0, 2.0, 6.0], dtype=torch.float64)
    matrix = symmetric_with_spectrum(values, seed=3) * scale
    result = es.eigh(matrix, k, which=which, method=method)
    assert method in ("auto", result.method)
    ordered = values.sort(descending=True).values
    if which == "LA":
        expected = ordered[:k]
    elif which == "SA":
        expected = ordered[-k:]
    elif which == "LM":
        expected = values[values.abs().argsort(descending=True, stable=True)[:k]].sort(descending=True).values
    else:
        expected = torch.cat([ordered[: k - k // 2], ordered[len(ordered) - k // 2 :]])
    assert torch.allclose(result.values / scale, expected, atol=1e-13 * 9)
    residual = torch.linalg.vector_norm(matrix @ result.right - result.right * result.values, dim=0)
    assert torch.all(residual <= result.residuals + 1e-14 * 9 * scale)
    assert bool(result.converged.all())
    assert result.kind == "eigen"


def test_gram_route_is_left_where_the_smallest_value_is_near_its_floor():
    sound = with_spectrum(60, 60, torch.logspace(0, -3, 60, dtype=torch.float64), seed=1)
    assert es.spectrum(sound).method == "gram"
    hard = with_spectrum(60, 60, torch.logspace(0, -9, 60, dtype=torch.float64), seed=1)
    result = es.spectrum(hard)
    assert result.method == "lapack"
    assert "σ_min/σ_max" in result.reason
    assert float(result.values[-1]) == pytest.approx(1e-9, rel=1e-5)
    # The knob matters: the Gram route alone has no correct digit there.
    assert abs(float(es.spectrum(hard, method="gram").values[-1]) - 1e-9) > 1e-10


def test_an_accuracy_that_is_asked_for_is_given():
    matrix = with_spectrum(60, 60, torch.logspace(0, -5, 60, dtype=torch.float64), seed=2)
    assert es.spectrum(matrix, tol=1e-4).method == "gram"
    strict = es.spectrum(matrix, tol=1e-12)
    assert strict.method == "lapack"
    assert bool(strict.converged.all())
    impossible = es.spectrum(matrix, tol=1e-18)
    assert not bool(impossible.converged.any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_narrow_formats_are_promoted_before_they_are_decomposed(dtype):
    matrix = torch.randn(50, 20, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = np.linalg.svd(matrix.to(torch.float64).numpy(), compute_uv=False)
    assert np.allclose(es.spectrum(matrix).values.numpy(), expected, rtol=1e-10)
    assert es.svd(matrix, 3).values.dtype == torch.float64


def test_complex_matrices_keep_their_conjugates():
    generator = torch.Generator().manual_seed(5)
    matrix = torch.randn(20, 12, dtype=torch.complex128, generator=generator)
    result = es.svd(matrix, 4)
    assert torch.allclose(matrix @ result.right, result.left * result.values.to(torch.complex128))
    hermitian = matrix.mH @ matrix
    pairs = es.eigh(hermitian, 3)
    assert torch.allclose(pairs.values.real, result.values[:3] ** 2)
    assert np.allclose(es.spectrum(matrix).values.numpy(), np.linalg.svd(matrix.numpy(), compute_uv=False))
    with pytest.raises(InputError, match="real matrices"):
        es.spectrum(matrix, method="gram")


@pytest.mark.parametrize("shape", [(3000, 20), (20, 3000), (1024, 8), (1025, 8)])
def test_gram_matrix_by_blocks_is_the_gram_matrix(shape):
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    gram, exponent = exact.gram_matrix(matrix)
    whole = matrix.double() @ matrix.double().T if shape[0] < shape[1] else matrix.double().T @ matrix.double()
    assert exponent == 0
    assert torch.allclose(gram.triu(), whole.triu(), rtol=1e-12)


def test_lapack_by_address_equals_numpy():
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((50, 30))
    gram = matrix.T @ matrix
    values, none = lapack.symmetric_eigen(gram.copy())
    assert none is None
    assert np.allclose(values, np.linalg.eigvalsh(gram))
    top, vectors = lapack.symmetric_eigen(gram.copy(), largest=4)
    assert np.allclose(top, np.linalg.eigvalsh(gram)[-4:])
    assert np.allclose(gram @ vectors, vectors * top)


def test_lapack_says_when_it_did_not_converge():
    with pytest.raises(ArithmeticError, match="syevr"):
        lapack.symmetric_eigen(np.full((4, 4), np.nan), largest=2)


@pytest.mark.parametrize("call", [es.svd, es.spectrum])
def test_inputs_are_not_changed(call):
    matrix = torch.randn(30, 12, generator=torch.Generator().manual_seed(0))
    before = matrix.clone()
    call(matrix)
    assert torch.equal(matrix, before)


def test_an_operator_is_decomposed_through_its_products():
    left = torch.randn(40, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    right = torch.randn(25, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    result = es.svd(es.LowRank(left, right), 3)
    assert np.allclose(result.values.numpy(), np.linalg.svd((left @ right.T).numpy(), compute_uv=False)[:3])
    assert result.products == 25


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: es.svd(a, 0), "k = 0"),
        (lambda a: es.svd(a, 13), "1 ≤ k ≤ 12"),
        (lambda a: es.svd(a, 2, tol=-1.0), "tol = -1"),
        (lambda a: es.svd(a, 2, tol=float("nan")), "tol = nan"),
        (lambda a: es.svd(a, 2, method="lanczos"), "unknown method"),
        (lambda a: es.spectrum(a, method="fast"), "unknown method"),
        (es.eigh, "square"),
        (lambda a: es.eigh(a @ a.T, which="XX"), "unknown which"),
        (lambda a: es.eigh(a @ a.T, method="gram"), "unknown method"),
        (lambda a: es.eigh(torch.randn(4, 4, generator=torch.Generator().manual_seed(0))), "symmetric"),
        (lambda a: es.svd(a * float("nan")), "NaN"),
        (lambda a: es.svd(torch.zeros(3)), r"\(3,\)"),
        (lambda a: es.svd(torch.zeros(0, 3)), "k = 0"),
    ],
)
def test_bad_arguments_are_named(call, message):
    matrix = torch.randn(30, 12, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match=message):
        call(matrix)


def test_general_eigenvalues_are_sorted_by_modulus():
    rotation = torch.tensor([[0.0, -2.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    values = exact.eigenvalues(rotation)
    assert np.allclose(values.abs().numpy(), [2.0, 2.0, 1.0])
    with pytest.raises(InputError, match="square"):
        exact.eigenvalues(torch.zeros(2, 3))


def test_empty_matrices_have_empty_spectra():
    assert len(es.spectrum(torch.zeros(0, 5))) == 0
    assert len(es.spectrum(torch.zeros(5, 0))) == 0


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("method", ["auto", "lapack", "krylov"])
def test_the_smallest_triplets_of_each_method(name, method):
    matrix, values = truth((60, 30), name)
    result = es.svd(matrix, 4, which="smallest", method=method)
    assert torch.allclose(result.values, values[-4:], atol=1e-6)
    assert torch.linalg.vector_norm(matrix @ result.right - result.left * result.values, dim=0).max() <= 1e-6
    assert bool(result.converged.all())


def test_methods_that_cannot_find_the_smallest_say_so():
    for method in ("gram", "propack", "randomized"):
        with pytest.raises(InputError, match=r"smallest|largest"):
            es.svd(torch.eye(5), 2, which="smallest", method=method)
    with pytest.raises(InputError, match="unknown which"):
        es.svd(torch.eye(5), 2, which="middle")


class Known(es.LinearOperator):
    """A matrix by its products, with an adjoint of one's choosing."""

    def __init__(self, matrix, adjoint=None, symmetric=False):
        super().__init__(tuple(matrix.shape), matrix.dtype, "cpu", symmetric)
        self.matrix, self.back = matrix, matrix.mH if adjoint is None else adjoint

    def _matmat(self, X):
        return self.matrix @ X

    def _adjoint(self):
        return Known(self.back, self.matrix)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
def test_an_adjoint_that_is_not_one_is_refused(dtype):
    matrix = torch.randn(300, 200, dtype=dtype, generator=torch.Generator().manual_seed(1))
    assert es.svd(Known(matrix), 2).products > 0
    wrong = matrix.mH.clone()
    wrong[:, 7] *= 2.0  # one row of A, which its adjoint does not know
    for call in (es.svd, choose.diagonal, choose.density):
        square = Known(matrix[:200], wrong[:, :200])
        with pytest.raises(InputError, match=r"adjoint do not match.*_adjoint"):
            call(square, **({"k": 2} if call is es.svd else {}))
    if dtype.is_complex:  # the transpose is no adjoint
        with pytest.raises(InputError, match="adjoint do not match"):
            es.svd(Known(matrix, matrix.T), 2)


def test_a_map_that_wrongly_says_it_is_symmetric_is_refused():
    matrix = torch.randn(100, 100, generator=torch.Generator().manual_seed(1))
    with pytest.raises(InputError, match="says that it is symmetric"):
        es.eigh(Known(matrix, symmetric=True), 2)
    assert es.eigh(Known(matrix + matrix.T, symmetric=True), 2).products > 2


def test_auto_says_why():
    tall, wide = (torch.randn(n, 5, generator=torch.Generator().manual_seed(n)).double() for n in (70000, 9000))
    few = es.svd(es.LowRank(tall, wide), 3)
    assert few.method == "krylov"
    assert "GiB" in few.reason
    small = Known(torch.randn(40, 30, generator=torch.Generator().manual_seed(1)))
    assert es.svd(small, 5).method in ("gram", "lapack")
    assert "30 products give the whole matrix" in es.svd(small, 5).reason
    large = torch.randn(1200, 1000, generator=torch.Generator().manual_seed(1))
    assert es.svd(large, 4, tol=1e-2).method == "propack"
    assert "of the time of an exact decomposition" in es.svd(large, 4, tol=1e-2).reason
    assert es.svd(large, 200, tol=1e-2).method == "gram"
    sparse = scipy.sparse.random_array((3000, 2000), density=0.01, rng=np.random.default_rng(0))
    assert es.svd(sparse, 4).method == "krylov"
    assert es.eigh(sparse @ sparse.T, 4).method == "krylov"


@pytest.mark.parametrize("method", ["gram", "lapack", "krylov"])
def test_no_method_is_ignored_for_an_operator(method):
    matrix = torch.randn(60, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    result = es.svd(Known(matrix), 3, method=method)
    assert result.method == method
    assert np.allclose(result.values.numpy(), np.linalg.svd(matrix.numpy(), compute_uv=False)[:3], rtol=1e-6)


def test_a_cluster_of_equal_values_is_found_whole_by_index():
    basis = np.linalg.qr(np.random.default_rng(7).standard_normal((40, 40)))[0]
    for count in range(1, 41):
        values, vectors = lapack.symmetric_eigen((basis @ basis.T).copy(), largest=count)
        assert np.allclose(values, 1.0)
        assert np.allclose(vectors.T @ vectors, np.eye(count))


def test_entry_points_for_what_is_estimated():
    matrix = torch.diag(torch.arange(1.0, 41.0).double())
    generator = torch.Generator().manual_seed(0)
    assert choose.trace(matrix, generator=generator).value == pytest.approx(820.0, rel=0.05)
    assert torch.allclose(choose.diagonal(matrix, generator=generator).values, matrix.diagonal(), rtol=0.2)
    assert choose.density(es.Dense(matrix, symmetric=True), generator=generator).size == 40


@pytest.mark.parametrize("shape", [(300, 300), (500, 200), (200, 500)], ids=str)
@pytest.mark.parametrize("name", ["polynomial", "repeated", "clustered"])
def test_float32_gram_matrix_where_the_tolerance_allows_it(shape, name):
    matrix = truth(shape, name)[0].to(torch.float32)
    values = torch.linalg.svdvals(matrix.double())
    quick = es.svd(matrix, 20, method="gram", tol=1e-3)
    assert "float32" in quick.reason
    assert float(quick.residuals.max()) < 1e-5 * float(values[0])
    assert torch.all((quick.values - values[:20]).abs() <= quick.bounds)
    again = torch.linalg.vector_norm(matrix.double().T @ quick.left - quick.right * quick.values, dim=0)
    assert torch.allclose(again, quick.residuals, atol=1e-6 * float(values[0]))
    assert (quick.left.T @ quick.left - torch.eye(20).double()).abs().max() < 1e-12
    assert "float32" not in es.svd(matrix, 20, method="gram", tol=1e-6).reason
    assert "float32" not in es.svd(matrix.double(), 20, method="gram", tol=1e-3).reason


def test_float32_gram_matrix_is_left_where_it_would_not_do():
    huge = torch.randn(60, 60, generator=torch.Generator().manual_seed(0)) * 1e25  # the squares overflow
    assert "float32" not in es.svd(huge, 5, method="gram", tol=1e-3).reason
    # The squares of the last values are lost in float32, and their left vectors with them.
    steep = with_spectrum(60, 60, torch.logspace(0, -6, 60, dtype=torch.float64), seed=1).to(torch.float32)
    result = es.svd(steep, 60, method="gram", tol=1e-3)
    assert bool(result.converged.all())
    assert torch.allclose(result.values, torch.linalg.svdvals(steep.double()), atol=1e-6)
