"""Classical factorisations: backward errors recomputed, factors of the right form, and what must be refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cases import SPECTRA, gaussian, orthonormal, symmetric_with_spectrum, with_spectrum
from eigenscope.errors import InputError
from eigenscope.methods import factorizations as fac

SHAPES = [(12, 12), (20, 7), (7, 20), (1, 5), (5, 1)]
DTYPES = [torch.float64, torch.float32, torch.complex128]
EPS = 2.0**-52


def wide(matrix):
    return matrix.to(torch.complex128 if matrix.is_complex() else torch.float64)


def relative(rest, matrix):
    size = float(torch.linalg.vector_norm(wide(matrix)))
    return float(torch.linalg.vector_norm(rest)) / size if size else float(torch.linalg.vector_norm(rest))


def off(Q):
    return float((Q.mH @ Q - torch.eye(Q.shape[1], dtype=Q.dtype)).abs().max())


@pytest.fixture(params=[(name, shape, dtype, scale) for name in SPECTRA for shape in SHAPES for dtype, scale in (
    (torch.float64, 1.0), (torch.float64, 1e12), (torch.float64, 1e-12), (torch.float32, 1.0), (torch.complex128, 1.0)
)], ids=str)  # fmt: skip
def matrix(request):
    name, (m, n), dtype, scale = request.param
    return with_spectrum(m, n, SPECTRA[name](min(m, n)), 3, dtype) * scale


@pytest.mark.parametrize("pivoted", [False, True])
def test_qr_is_backward_stable_and_says_so(matrix, pivoted):
    before = matrix.clone()
    result = fac.qr(matrix, pivoted=pivoted)
    assert torch.equal(matrix, before)
    moved = wide(matrix)[:, result.permutation] if pivoted else wide(matrix)
    error = relative(moved - result.Q @ result.R, matrix)
    assert error <= result.error + EPS
    assert result.error < 1e-14
    assert off(result.Q) <= result.orthogonality + 4 * EPS
    assert result.orthogonality < 1e-14
    assert torch.equal(result.R, result.R.triu())
    if pivoted:
        diagonal = result.R.diagonal().abs()
        assert torch.all(diagonal[1:] <= diagonal[:-1] * (1 + 1e-12))
        assert sorted(result.permutation.tolist()) == list(range(matrix.shape[1]))
    else:
        assert result.permutation is None


def test_pivoting_tells_the_rank_that_plain_qr_hides():
    A = with_spectrum(30, 20, torch.ones(6, dtype=torch.float64), 1)
    A[:, 0] = 0.0
    assert int((fac.qr(A, pivoted=True).R.diagonal().abs() > 1e-10).sum()) == 6
    assert int((fac.qr(A).R.diagonal().abs()[:6] > 1e-10).sum()) < 6


def test_polar_factors(matrix):
    result = fac.polar(matrix)
    m, n = matrix.shape
    assert relative(wide(matrix) - result.U @ result.H, matrix) < 1e-14
    assert result.error < 1e-14
    assert off(result.U if m >= n else result.U.mH) < 1e-13
    assert result.orthogonality < 1e-13
    assert torch.equal(result.H, result.H.mH)
    size = float(torch.linalg.vector_norm(result.H))
    assert float(torch.linalg.eigvalsh(result.H)[0]) >= -1e-13 * size
    assert result.distance == pytest.approx(float(torch.linalg.vector_norm(wide(matrix) - result.U)), rel=1e-12)


def test_polar_factor_is_the_nearest_orthonormal_matrix():
    A = gaussian(9, 5, 4)
    result = fac.polar(A)
    sigma = torch.linalg.svdvals(A)
    assert result.distance == pytest.approx(float(torch.linalg.vector_norm(sigma - 1.0)), rel=1e-12)
    for seed in range(20):
        other = orthonormal(9, 5, seed)
        assert float(torch.linalg.vector_norm(A - other)) > result.distance


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["auto", "real", "complex"])
@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
def test_schur_form(dtype, form, scale):
    A = gaussian(9, 9, 5, dtype) * scale
    if form == "real" and dtype.is_complex:
        with pytest.raises(InputError, match="complex"):
            fac.schur(A, form=form)
        return
    result = fac.schur(A, form=form)
    rebuilt = result.Z @ result.T @ result.Z.mH
    assert relative(wide(A).to(rebuilt.dtype) - rebuilt, A) < 1e-14
    assert result.error < 1e-14
    assert off(result.Z) < 1e-13
    real = not dtype.is_complex and form != "complex"
    assert not result.T.tril(-2 if real else -1).any()
    assert result.T.is_complex() == (not real)
    expected = np.linalg.eigvals(wide(A).numpy())
    found = result.eigenvalues.numpy()
    assert max(np.abs(expected - value).min() for value in found) < 1e-12 * np.abs(expected).max()
    henrici = math.sqrt(float(torch.linalg.vector_norm(wide(A))) ** 2 - float((result.eigenvalues.abs() ** 2).sum()))
    assert result.departure == pytest.approx(henrici / float(torch.linalg.vector_norm(wide(A))), rel=1e-6)


def test_normal_matrices_depart_from_normality_by_rounding_only():
    rotation = torch.linalg.matrix_exp(gaussian(8, 8, 1) - gaussian(8, 8, 1).T)
    assert fac.schur(rotation).departure < 1e-14
    assert fac.schur(torch.tensor([[0.0, 1.0], [0.0, 0.0]])).departure == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
def test_eigenvectors_on_both_sides(dtype, scale):
    A = gaussian(10, 10, 6, dtype) * scale
    result = fac.eig(A)
    B = wide(A).to(torch.complex128)
    norm = float(torch.linalg.vector_norm(B))
    right = torch.linalg.vector_norm(B @ result.right - result.right * result.values, dim=0)
    left = torch.linalg.vector_norm(B.mH @ result.left - result.left * result.values.conj(), dim=0)
    assert torch.all(torch.maximum(left, right) <= result.residuals + 1e-15 * norm)
    assert result.error < 1e-13
    assert result.error == pytest.approx(float(result.residuals.max()) / norm)
    assert torch.all(result.values.abs()[:-1] >= result.values.abs()[1:])
    assert torch.allclose(torch.linalg.vector_norm(result.right, dim=0), torch.ones(10, dtype=torch.float64))
    cosines = (result.left.conj() * result.right).sum(dim=0).abs()
    assert torch.allclose(result.condition, 1 / cosines)
    assert torch.all(result.condition >= 1 - 1e-12)


def test_condition_number_says_how_far_a_perturbation_moves_an_eigenvalue():
    A = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    A[0, 1] = 1e4
    result = fac.eig(A)
    # The worst perturbation of norm ε is ε·y xᴴ: it moves λ by ε·condition.
    for i in range(3):
        worst = torch.outer(result.left[:, i], result.right[:, i].conj()) * 1e-9
        moved = torch.linalg.eigvals(A.to(torch.complex128) + worst)
        shift = float((moved - result.values[i]).abs().min())
        assert shift == pytest.approx(1e-9 * float(result.condition[i]), rel=1e-2)
    assert float(result.condition[0]) > 5e3
    assert float(result.condition[2]) < 2.0


def test_a_defective_eigenvalue_has_no_finite_condition():
    result = fac.eig(torch.tensor([[2.0, 1.0], [0.0, 2.0]], dtype=torch.float64))
    assert float(result.condition.max()) > 1e15
    assert torch.all(result.bounds > 0.1)
    symmetric = fac.eig(symmetric_with_spectrum(torch.tensor([3.0, 1.0, -2.0]), 2))
    assert torch.allclose(symmetric.condition, torch.ones(3, dtype=torch.float64))


def test_stated_bounds_hold_on_matrices_of_known_eigenvalues():
    for seed in range(20):
        values = torch.arange(1, 9, dtype=torch.float64)
        S = gaussian(8, 8, seed)
        A = S @ torch.diag(values) @ torch.linalg.inv(S)
        result = fac.eig(A)
        # A itself is only what the product rounded to: allow for that as an error of the matrix.
        made = 8 * EPS * float(torch.linalg.cond(S)) * 8.0
        expected = values.flip(0).to(torch.complex128)
        assert torch.all((result.values - expected).abs() <= result.bounds + made * result.condition)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scales", [(1.0, 1.0), (1e12, 1.0), (1.0, 1e-12), (1e-12, 1e12)])
def test_generalized_eigenpairs(dtype, scales):
    A = symmetric_with_spectrum(torch.linspace(-3, 4, 9, dtype=torch.float64), 1, dtype) * scales[0]
    B = symmetric_with_spectrum(torch.logspace(0, -2, 9, dtype=torch.float64), 2, dtype) * scales[1]
    result = fac.generalized_eigh(A, B)
    expected = scipy.linalg.eigvalsh(wide(A).numpy(), wide(B).numpy())[::-1]
    assert np.allclose(result.values.numpy(), expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    gram = result.vectors.mH @ wide(B) @ result.vectors
    assert float((gram - torch.eye(9, dtype=gram.dtype)).abs().max()) <= result.orthogonality + 1e-14
    assert result.orthogonality < 1e-11
    rest = wide(A) @ result.vectors - wide(B) @ result.vectors * result.values
    inverse = torch.linalg.inv(wide(B))
    again = (rest.conj() * (inverse @ rest)).sum(dim=0).real.clamp(min=0).sqrt()
    assert torch.allclose(again, result.residuals, rtol=1e-3, atol=1e-14 * float(result.values.abs().max()))
    assert result.error < 1e-12
    assert result.condition == pytest.approx(100.0, rel=1e-3)


def test_a_zero_pencil_and_empty_matrices():
    zero = fac.generalized_eigh(torch.zeros(3, 3), torch.eye(3))
    assert not zero.values.any()
    assert zero.error == 0.0
    empty = torch.empty(0, 0)
    assert fac.eig(empty).values.shape == (0,)
    assert fac.generalized_eigh(empty, empty).values.shape == (0,)
    assert fac.qr(torch.empty(0, 3)).R.shape == (0, 3)
    assert fac.polar(torch.empty(4, 0)).U.shape == (4, 0)
    assert fac.eig(torch.zeros(3, 3)).error == 0.0


@pytest.mark.parametrize("call", [fac.qr, fac.polar, fac.schur, fac.eig, lambda A: fac.generalized_eigh(A, A)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_entries_that_are_not_finite_are_refused(call, bad):
    A = torch.eye(3)
    A[1, 2] = bad
    with pytest.raises(InputError, match="row 1, column 2"):
        call(A)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fac.schur(torch.zeros(2, 3)), "2×3 matrix.*square"),
        (lambda: fac.eig(torch.zeros(2, 3)), "2×3 matrix.*square"),
        (lambda: fac.schur(torch.eye(2), form="diagonal"), "unknown form"),
        (lambda: fac.qr(torch.zeros(3)), r"\(3,\)"),
        (lambda: fac.qr("A"), "is a str"),
        (lambda: fac.generalized_eigh(torch.eye(2), torch.eye(3)), "equal shapes"),
        (lambda: fac.generalized_eigh(torch.tensor([[0.0, 1.0], [0.0, 0.0]]), torch.eye(2)), "symmetric"),
        (lambda: fac.generalized_eigh(torch.eye(2), torch.tensor([[1.0, 1.0], [0.0, 1.0]])), "symmetric"),
        (lambda: fac.generalized_eigh(torch.eye(2), -torch.eye(2)), "least eigenvalue is -1"),
        (lambda: fac.generalized_eigh(torch.eye(2), torch.zeros(2, 2)), "not positive definite"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(m=st.integers(1, 12), n=st.integers(1, 12), seed=st.integers(0, 99))
def test_factors_of_any_shape(m, n, seed):
    A = gaussian(m, n, seed)
    k = min(m, n)
    pivoted = fac.qr(A, pivoted=True)
    assert pivoted.Q.shape == (m, k)
    assert pivoted.R.shape == (k, n)
    # |det R| of the square part is the product of singular values where all columns are used.
    if m >= n:
        logs = pivoted.R.diagonal().abs().log().sum()
        assert float(logs) == pytest.approx(float(torch.linalg.svdvals(A).log().sum()), abs=1e-9)
    again = fac.polar(fac.polar(A).U)
    assert float(again.distance) < 1e-12
