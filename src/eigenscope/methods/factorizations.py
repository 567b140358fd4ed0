"""The classical factorisations, by LAPACK, each with its backward error measured and not assumed.

All are computed in float64 (complex128) and come back on the device of the matrix. A backward error η means that the
factors are exact for some A + E with ‖E‖_F ≤ η‖A‖_F (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed.,
§1.5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from eigenscope.errors import InputError
from eigenscope.methods.randomized import entries_norm
from eigenscope.methods.recurrence import wide
from eigenscope.operators.arrays import Dense, as_operator

_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class QR:
    """A[:, permutation] = Q R.

    Attributes:
        Q: (m, k) orthonormal columns, k = min(m, n).
        R: (k, n) upper triangular; where pivoted, |r₁₁| ≥ |r₂₂| ≥ …
        permutation: (n,) int64, or None without pivoting.
        error: ‖A[:, permutation] − QR‖_F/‖A‖_F.
        orthogonality: max|QᴴQ − I|.
    """

    Q: Tensor
    R: Tensor
    permutation: Tensor | None
    error: float
    orthogonality: float


@dataclass(frozen=True)
class Polar:
    """A = U H.

    Attributes:
        U: (m, n) orthonormal columns (rows where m < n); the nearest such matrix to A where A has full rank.
        H: (n, n) symmetric (Hermitian) positive semidefinite, √(AᴴA).
        error: ‖A − UH‖_F/‖A‖_F.
        orthogonality: max|UᴴU − I|, of the smaller side.
        distance: ‖A − U‖_F, how far A is from having orthonormal columns (rows).
    """

    U: Tensor
    H: Tensor
    error: float
    orthogonality: float
    distance: float


@dataclass(frozen=True)
class Schur:
    """A = Z T Zᴴ.

    Attributes:
        Z: (n, n) orthogonal (unitary).
        T: (n, n) upper triangular, or in the real form with 2×2 blocks on the diagonal, one a conjugate pair.
        eigenvalues: (n,) complex128, in the order of the diagonal.
        error: ‖A − ZTZᴴ‖_F/‖A‖_F.
        orthogonality: max|ZᴴZ − I|.
        departure: √(‖A‖_F² − Σ|λ|²)/‖A‖_F, Henrici's departure from normality: 0 where the eigenvectors are orthogonal.
    """

    Z: Tensor
    T: Tensor
    eigenvalues: Tensor
    error: float
    orthogonality: float
    departure: float


@dataclass(frozen=True)
class Eigen:
    """A x = λ x and yᴴA = λ yᴴ, by descending |λ|.

    Attributes:
        values: (n,) complex128.
        right: (n, n) columns x of norm 1.
        left: (n, n) columns y of norm 1.
        condition: (n,) 1/|yᴴx| ≥ 1: what a perturbation of A of norm ε moves λ by, in units of ε and to first order;
            infinite for a defective eigenvalue.
        residuals: (n,) the larger of ‖Ax − λx‖ and ‖yᴴA − λyᴴ‖.
        bounds: (n,) condition·(the residual and n·eps·‖A‖_F): how far each λ can be off, to first order.
        error: the largest residual/‖A‖_F.
    """

    values: Tensor
    right: Tensor
    left: Tensor
    condition: Tensor
    residuals: Tensor
    bounds: Tensor
    error: float


@dataclass(frozen=True)
class GeneralizedEigen:
    """A x = λ B x with A symmetric (Hermitian) and B positive definite as well.

    Attributes:
        values: (n,) float64, descending.
        vectors: (n, n) columns x with XᴴBX = I.
        residuals: (n,) ‖Ax − λBx‖ in the norm of B⁻¹, √(rᴴB⁻¹r): an exact eigenvalue lies within it of each value.
        error: the largest residual/max|λ|.
        orthogonality: max|XᴴBX − I|.
        condition: κ₂(B): the residuals themselves are known to some κ₂(B)·eps·max|λ| only.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    error: float
    orthogonality: float
    condition: float


def qr(A: Any, *, pivoted: bool = False) -> QR:
    """Thin QR factorisation (Golub & Van Loan, Matrix Computations, 4th ed., §5.2), with column pivoting on request
    (§5.4.2).

    Args:
        A: (m, n) tensor, ndarray, SciPy sparse matrix or operator.
        pivoted: order the columns so that R's diagonal falls, which tells the numerical rank, mostly.

    Raises:
        InputError: not a matrix of finite entries.
    """
    matrix, device = _entries(A)
    done = scipy.linalg.qr(matrix, mode="economic", pivoting=pivoted, check_finite=False)
    Q, R = done[0], done[1]
    moved = matrix[:, done[2]] if pivoted else matrix
    return QR(
        _back(Q, device), _back(R, device), _back(done[2].astype(np.int64), device) if pivoted else None,
        _relative(moved - Q @ R, matrix), _off(Q),
    )  # fmt: skip


def polar(A: Any) -> Polar:
    """Polar decomposition from the SVD A = W Σ Vᴴ: U = WVᴴ, H = VΣVᴴ (Higham, Functions of Matrices, 2008, §8.1).

    Args:
        A: (m, n) as in :func:`qr`. For a matrix that lacks full rank U is one of many.

    Raises:
        InputError: not a matrix of finite entries.
    """
    matrix, device = _entries(A)
    W, sigma, Vh = np.linalg.svd(matrix, full_matrices=False)
    U, H = W @ Vh, (Vh.conj().T * sigma) @ Vh
    H = (H + H.conj().T) / 2
    small = U if U.shape[0] >= U.shape[1] else U.conj().T
    distance = entries_norm(torch.from_numpy(matrix - U))
    return Polar(_back(U, device), _back(H, device), _relative(matrix - U @ H, matrix), _off(small), distance)


def schur(A: Any, *, form: Literal["auto", "real", "complex"] = "auto") -> Schur:
    """Schur decomposition of a square matrix (Golub & Van Loan, 4th ed., §7.1.3 and §7.4.1).

    Args:
        A: (n, n) as in :func:`qr`.
        form: "real" for a real matrix, "complex" for triangular T whatever A is, "auto" for that of A's entries.

    Raises:
        InputError: not square, entries not finite, or the real form of a complex matrix.
    """
    matrix, device = _square(A, "schur")
    if form not in ("auto", "real", "complex"):
        raise InputError(f"unknown form {form!r}", where="schur", expected="auto, real or complex")
    if form == "real" and np.iscomplexobj(matrix):
        raise InputError("the matrix is complex", where="schur", expected="a real matrix for form='real'")
    output = "complex" if form == "complex" or np.iscomplexobj(matrix) else "real"
    T, Z = scipy.linalg.schur(matrix, output=output, check_finite=False)
    values = _block_eigenvalues(T)
    norm = _norm(matrix)
    # The strictly upper part, rather than a difference of squares: a normal matrix shows rounding and not its root.
    departure = 0.0 if norm == 0.0 else _departure(T) / norm
    return Schur(
        _back(Z, device), _back(T, device), _back(values, device), _relative(matrix - Z @ T @ Z.conj().T, matrix), _off(Z),
        departure,
    )  # fmt: skip


def eig(A: Any) -> Eigen:
    """Eigenvalues of a general square matrix, with vectors on both sides and the condition number of each.

    Condition number: Golub & Van Loan, Matrix Computations, 4th ed., §7.2.2; Wilkinson, The Algebraic Eigenvalue
    Problem, 1965, ch. 2, §8.

    Args:
        A: (n, n) as in :func:`qr`.

    Raises:
        InputError: not square, or entries not finite.
    """
    matrix, device = _square(A, "eig")
    if not matrix.size:
        none, square = torch.empty(0, dtype=torch.float64), torch.empty(0, 0, dtype=torch.complex128)
        return Eigen(none.to(torch.complex128), square, square, none, none, none, 0.0)
    values, left, right = scipy.linalg.eig(matrix, left=True, right=True, check_finite=False)
    order = np.argsort(-np.abs(values), kind="stable")
    values, left, right = values[order].astype(complex), left[:, order].astype(complex), right[:, order].astype(complex)
    left, right = left / np.linalg.norm(left, axis=0), right / np.linalg.norm(right, axis=0)
    with np.errstate(divide="ignore"):
        condition = 1.0 / np.abs((left.conj() * right).sum(axis=0))
    adjoint = matrix.conj().T
    residuals = np.maximum(_columns(matrix @ right - right * values), _columns(adjoint @ left - left * values.conj()))
    norm = _norm(matrix)
    rounding = matrix.shape[0] * _EPS * norm
    with np.errstate(invalid="ignore"):
        bounds = condition * (residuals + rounding)
    bounds = np.where(np.isnan(bounds), 0.0, bounds)
    error = float(residuals.max()) / norm if norm else 0.0
    return Eigen(
        _back(values, device), _back(right, device), _back(left, device), _back(condition, device),
        _back(residuals, device), _back(bounds, device), error,
    )  # fmt: skip


def generalized_eigh(A: Any, B: Any) -> GeneralizedEigen:
    """Eigenvalues of a symmetric-definite pencil A − λB (Golub & Van Loan, Matrix Computations, 4th ed., §8.7).

    By the Cholesky factor B = LLᴴ: the eigenvalues are those of L⁻¹AL⁻ᴴ, and the residual bound is that of this matrix
    (Parlett, The Symmetric Eigenvalue Problem, §15.9).

    Args:
        A: (n, n) symmetric (Hermitian), as in :func:`qr`.
        B: (n, n) symmetric (Hermitian) positive definite.

    Raises:
        InputError: not square, shapes that differ, not symmetric, B not positive definite, or entries not finite.
    """
    left, device = _square(A, "generalized_eigh A")
    right, _ = _square(B, "generalized_eigh B")
    if left.shape != right.shape:
        raise InputError(f"A is {left.shape} and B is {right.shape}", where="generalized_eigh", expected="equal shapes")
    for matrix in (left, right):
        Dense(torch.from_numpy(matrix), symmetric=True)  # refuses a matrix that is not
    if not left.size:
        none, square = torch.empty(0, dtype=torch.float64), torch.empty(0, 0, dtype=torch.float64)
        return GeneralizedEigen(none, square, none, 0.0, 0.0, 1.0)
    try:
        L = np.linalg.cholesky(right)
    except np.linalg.LinAlgError as error:
        least = float(np.linalg.eigvalsh(right)[0])
        raise InputError(
            f"B is not positive definite: its least eigenvalue is {least:.3g}", where="generalized_eigh",
            expected="all eigenvalues positive", remedy="add a multiple of the identity to B, or use eig",
        ) from error  # fmt: skip
    values, vectors = scipy.linalg.eigh(left, right, check_finite=False)
    values, vectors = values[::-1].copy(), vectors[:, ::-1].copy()
    rest = left @ vectors - (right @ vectors) * values
    residuals = _columns(scipy.linalg.solve_triangular(L, rest, lower=True, check_finite=False))
    gram = vectors.conj().T @ right @ vectors
    largest = float(np.abs(values).max())
    return GeneralizedEigen(
        _back(values, device), _back(vectors, device), _back(residuals, device),
        float(residuals.max()) / largest if largest else 0.0, float(np.abs(gram - np.eye(len(gram))).max()),
        float(np.linalg.cond(right)),
    )  # fmt: skip


def _entries(A: Any) -> tuple[np.ndarray[Any, Any], torch.device]:
    operator = as_operator(A)
    entries = operator.matrix if isinstance(operator, Dense) else operator.to_dense()
    wider = entries.to(wide(entries.dtype)).resolve_conj().resolve_neg()
    # A copy in any case: LAPACK is not to write into the caller's memory.
    return np.array(wider.cpu().numpy()), entries.device


def _square(A: Any, where: str) -> tuple[np.ndarray[Any, Any], torch.device]:
    matrix, device = _entries(A)
    if matrix.shape[0] != matrix.shape[1]:
        raise InputError(f"a {matrix.shape[0]}×{matrix.shape[1]} matrix", where=where, expected="a square matrix")
    return matrix, device


def _back(array: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def _norm(matrix: np.ndarray[Any, Any]) -> float:
    return entries_norm(torch.from_numpy(matrix))


def _relative(rest: np.ndarray[Any, Any], matrix: np.ndarray[Any, Any]) -> float:
    norm = _norm(matrix)
    return _norm(np.ascontiguousarray(rest)) / norm if norm else 0.0


def _off(Q: np.ndarray[Any, Any]) -> float:
    gram = Q.conj().T @ Q
    return float(np.abs(gram - np.eye(len(gram))).max()) if gram.size else 0.0


def _columns(X: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    lengths: np.ndarray[Any, Any] = np.linalg.norm(X, axis=0)
    return lengths


def _block_eigenvalues(T: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Of a triangular matrix, or of one with 2×2 blocks on the diagonal."""
    values = np.diagonal(T).astype(complex)
    for i in np.flatnonzero(np.diagonal(T, -1)):
        values[i : i + 2] = np.linalg.eigvals(T[i : i + 2, i : i + 2])
    return values


def _departure(T: np.ndarray[Any, Any]) -> float:
    """√(‖T‖_F² − Σ|λ|²) without the cancellation: what lies above the diagonal, and above that of the 2×2 blocks."""
    above = np.triu(T, 1)
    for i in np.flatnonzero(np.diagonal(T, -1)):
        # LAPACK's standard form has equal diagonal entries and b·c < 0: the block's own part is |b| − |c|.
        above[i, i + 1] = abs(T[i, i + 1]) - abs(T[i + 1, i])
    return _norm(np.ascontiguousarray(above))
