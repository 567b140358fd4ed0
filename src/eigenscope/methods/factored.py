"""Products of two thin factors, s·B A, decomposed and added without ever being formed.

With thin decompositions B = Q_B R_B and Aᵀ = Q_A R_A the product is Q_B (s R_B R_Aᵀ) Q_Aᵀ, and the r×r matrix in the middle
has its singular values (Golub & Van Loan, Matrix Computations, 4th ed., §5.4.4 for the idea; Halko, Martinsson & Tropp,
SIAM Review 53(2), 2011, §5.1): 𝒪((m + n)r²) operations where the product's own SVD takes 𝒪(mn·min(m, n)). A sum of
products is one product of stacked factors: Σ sᵢ Bᵢ Aᵢ = [s₁B₁ … s_pB_p][A₁; …; A_p].
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from eigenscope.errors import InputError
from eigenscope.methods.bounds import ROUNDING
from eigenscope.methods.exact import DEFAULT_TOLERANCE
from eigenscope.results import Spectrum

SEEN = 1e-6
"""Of an error: what rounding to the format of storage cannot move it by is not looked for."""


@dataclass(frozen=True)
class Factors:
    """The map s·B A.

    Attributes:
        B: (m, r).
        A: (r, n).
        scale: s.
    """

    B: Tensor
    A: Tensor
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.B.dim() != 2 or self.A.dim() != 2 or self.B.shape[1] != self.A.shape[0]:
            raise InputError(
                f"B of shape {tuple(self.B.shape)} and A of shape {tuple(self.A.shape)}", where="factors",
                expected="(m, r) and (r, n)",
            )  # fmt: skip
        if not math.isfinite(self.scale):
            raise InputError(f"scale {self.scale}", where="factors", expected="a finite number")

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return int(self.B.shape[0]), int(self.A.shape[1])

    @property
    def rank(self) -> int:
        """r, an upper bound on the rank of the map."""
        return int(self.B.shape[1])

    def __neg__(self) -> Factors:
        return Factors(self.B, self.A, -self.scale)

    def matmat(self, X: Tensor) -> Tensor:
        """s·B (A X) for X (n, k), in float64."""
        return self.scale * (self.B.double() @ (self.A.double() @ X))

    @property
    def T(self) -> Factors:
        """The transpose, s·Aᵀ Bᵀ."""
        return Factors(self.A.T, self.B.T, self.scale)


@dataclass(frozen=True)
class Core:
    """The singular values of s·B A, and its singular vectors by their coordinates in the factors.

    Attributes:
        upper: (p, r) R_B. lower: (q, r) R_A, of which s R_B R_Aᵀ is the map in orthonormal bases.
        left: (p, k), right: (q, k) singular vectors of that matrix.
        values: (k,) float64, descending.
        bound: on the absolute error of every value.
    """

    upper: Tensor
    lower: Tensor
    left: Tensor
    right: Tensor
    values: Tensor
    bound: float


def core_svd(factors: Factors) -> Core:
    """Singular values of s·B A from the triangular factors alone, in float64.

    QR, products and SVD are backward stable (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., Theorems 19.4
    and 3.5; LAPACK Users' Guide, §4.9.1), so every value errs by at most (m + n + r)·eps·|s|·‖B‖_F‖A‖_F. Beside σ₁
    that is much where large factors make a small product.

    Args:
        factors: any floating dtype; r may exceed m or n.

    Raises:
        InputError: entries that are not finite.
        ArithmeticError: LAPACK did not converge.
    """
    upper = torch.linalg.qr(factors.B.double(), mode="r").R
    lower = torch.linalg.qr(factors.A.double().T, mode="r").R
    size = abs(factors.scale) * float(upper.norm()) * float(lower.norm())
    if not math.isfinite(size):
        raise InputError("factors with entries that are not finite", where="core_svd", expected="finite numbers")
    try:
        left, values, right = torch.linalg.svd(factors.scale * (upper @ lower.T), full_matrices=False)
    except RuntimeError as error:  # torch's LinAlgError, which it does not export
        raise ArithmeticError(f"the SVD of a core of {tuple(upper.shape)} did not converge: {error}") from error
    bound = (sum(factors.shape) + factors.rank) * 2.0 * ROUNDING[torch.float64] * size
    return Core(upper, lower, left, right.mT, values, bound)


def factored_svd(factors: Factors) -> Spectrum:
    """Singular values and orthonormal singular vectors of s·B A.

    Returns:
        A complete :class:`Spectrum` of min(m, n, r) values (the others are 0), in float64, residuals measured from products
        with the factors.

    Raises:
        InputError, ArithmeticError: as :func:`core_svd`.
    """
    found = core_svd(factors)
    # Householder's R is unique only up to signs, so the bases are those of the same routine.
    left = torch.linalg.qr(factors.B.double()).Q @ found.left
    right = torch.linalg.qr(factors.A.double().T).Q @ found.right
    forward = torch.linalg.vector_norm(factors.matmat(right) - left * found.values, dim=0)
    backward = torch.linalg.vector_norm(factors.T.matmat(left) - right * found.values, dim=0)
    residuals = torch.maximum(forward, backward)
    values = found.values
    largest = float(values[0]) if len(values) else 0.0
    return Spectrum(
        values=values, left=left, right=right, residuals=residuals, bounds=torch.full_like(values, found.bound),
        converged=residuals <= DEFAULT_TOLERANCE * largest, kind="singular", shape=factors.shape, complete=True,
        frobenius=float(torch.linalg.vector_norm(values)), method="factored",
        reason=f"QR of both factors and the SVD of their {found.upper.shape[0]}×{found.lower.shape[0]} core",
        products=2 * len(values),
    )  # fmt: skip


def stacked(terms: Iterable[Factors]) -> Factors:
    """The sum of several products as one, its rank the sum of theirs; float64.

    Raises:
        InputError: no terms, or terms of different shapes.
    """
    terms = list(terms)
    if not terms:
        raise InputError("a sum of no terms", where="stacked", expected="at least one")
    for term in terms:
        if term.shape != terms[0].shape:
            raise InputError(
                f"shapes {terms[0].shape} and {term.shape}", where="stacked", expected="maps between the same spaces"
            )
    # The root of the scale goes to either side: two terms of very different scales then keep one size of factors.
    roots = [math.sqrt(abs(term.scale)) for term in terms]
    B = torch.cat(
        [term.B.double() * math.copysign(root, term.scale) for term, root in zip(terms, roots, strict=True)], 1
    )
    A = torch.cat([term.A.double() * root for term, root in zip(terms, roots, strict=True)], 0)
    return Factors(B, A)


@dataclass(frozen=True)
class Approximation:
    """A map of lower rank in place of a product, as it is stored.

    Attributes:
        factors: in the dtype of storage.
        error: ‖s·B A − factors‖_F, measured; the rounding of storage is in it unless it is below ``SEEN`` of it.
        least: √Σ_{i>k} σᵢ², which no map of that rank can be below.
    """

    factors: Factors
    error: float
    least: float


def recompressed(
    factors: Factors, rank: int, *, scale: float = 1.0, dtype: torch.dtype = torch.float32, core: Core | None = None
) -> Approximation:
    """The best approximation of that rank (Eckart & Young, Psychometrika 1, 1936), as s′·(U√(Σ/|s′|))(√(Σ/|s′|)Vᵀ).

    No orthonormal basis is formed: with M = s·B A and singular triplets σ, u, v, U√Σ = M V/√Σ = s B (A V)/√Σ, where A V
    is R_Aᵀ times the core's vectors. In the product that errs as the core does; that a small σ costs a column digits
    of its length does not matter there.

    Args:
        factors: the product.
        rank: 0 ≤ k ≤ the core's values; values of 0 are left out, so that fewer columns may come back.
        scale: s′ ≠ 0 that the new factors go with.
        dtype: of storage.
        core: :func:`core_svd` of the factors, where the caller has it.

    Raises:
        InputError: a rank that it does not have, a scale of 0, factors that the dtype cannot hold.
    """
    wide = Factors(factors.B.double(), factors.A.double(), factors.scale)
    found = core_svd(wide) if core is None else core
    if not 0 <= rank <= len(found.values) or scale == 0.0:
        raise InputError(
            f"rank {rank} with scale {scale}",
            where="recompressed",
            expected=f"0 to {len(found.values)}, and a scale ≠ 0",
        )
    k = int((found.values[:rank] > 0.0).sum())
    roots = (found.values[:k] * abs(scale)).sqrt()
    T = factors.scale * (found.lower.T @ found.right[:, :k]) / roots * math.copysign(1.0, scale)
    S = factors.scale * (found.upper.T @ found.left[:, :k]) / roots
    B, A = wide.B @ T, S.T @ wide.A
    stored = Factors(B.to(dtype), A.to(dtype), scale)
    least = float(torch.linalg.vector_norm(found.values[k:]))
    X = wide.scale * torch.eye(wide.rank, dtype=torch.float64) - scale * (T @ S.T)
    error = float(torch.linalg.matrix_norm(found.upper @ X @ found.lower.T))
    if not _rounding_bound(found.values[:k], sum(B.shape) * sum(A.shape), scale, dtype) <= SEEN * error:
        error = _rounded(wide, found, (X, T, S), (stored.B.double() - B, stored.A.double() - A), scale, error)
    if not math.isfinite(error):
        raise InputError(
            f"factors beyond the range of {dtype}", where="recompressed", remedy="store them as bfloat16 or float32"
        )
    return Approximation(stored, error, least)


def _rounding_bound(values: Tensor, entries: int, scale: float, dtype: torch.dtype) -> float:
    """Bound on what rounding U√(Σ/|s′|) and √(Σ/|s′|)Vᵀ can do to their product, in the Frobenius norm; ∞ if they overflow."""
    if not len(values):
        return 0.0
    kind = torch.finfo(dtype)
    longest, whole = math.sqrt(float(values[0]) / abs(scale)), math.sqrt(float(values.sum()) / abs(scale))
    if not longest < kind.max:
        return math.inf
    off = 0.5 * kind.eps * whole + kind.smallest_normal * kind.eps * math.sqrt(entries)
    return abs(scale) * off * (2.0 * longest + off)


def _rounded(
    factors: Factors,
    core: Core,
    coefficients: tuple[Tensor, Tensor, Tensor],
    roundings: tuple[Tensor, Tensor],
    scale: float,
    inside: float,
) -> float:
    """‖s·B A − s′(B T + E)(Sᵀ A + F)‖_F, measured from what the factors became.

    With X = s I − s′ T Sᵀ the difference is B X A, what was cut and is ``inside`` long, less s′(B T F + E Sᵀ A + E F), what
    rounding did. Norms and inner products with these are traces of small matrices, in which nothing large cancels:
    ‖P K Qᵀ‖_F² = Σ (PᵀP K QᵀQ) ∘ K.
    """
    (X, T, S), (E, F) = coefficients, roundings
    rank, k = T.shape
    K = -scale * torch.cat([torch.cat([torch.zeros_like(X), T], 1), torch.cat([S.T, torch.eye(k).double()], 1)])
    W = _gram(core.upper, factors.B, E) @ K @ _gram(core.lower, factors.A.T, F.T)
    squares = inside**2 + float((W * K).sum()) + 2.0 * float((W[:rank, :rank] * X).sum())
    return math.sqrt(max(squares, 0.0))


def _gram(triangle: Tensor, factor: Tensor, rounding: Tensor) -> Tensor:
    """Gram matrix of [factor, rounding], that of the factor from its triangle."""
    mixed = factor.T @ rounding
    return torch.cat([torch.cat([triangle.T @ triangle, mixed], 1), torch.cat([mixed.T, rounding.T @ rounding], 1)])


def frobenius(factors: Factors) -> float:
    """‖s·B A‖_F, from the two triangular factors."""
    upper = torch.linalg.qr(factors.B.double(), mode="r").R
    lower = torch.linalg.qr(factors.A.double().T, mode="r").R
    return abs(factors.scale) * float(torch.linalg.matrix_norm(upper @ lower.T))
