"""How far rounding can move the values that LAPACK returns."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ROUNDING = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.complex128: 2.0**-53,
    torch.complex64: 2.0**-24,
}


def gram_bound(frobenius: float, largest: float, inner: int, size: int) -> float:
    """Bound ε on the error of every eigenvalue of the computed Gram matrix: |σ̂² − σ²| ≤ ε.

    Forming an inner product of length ``inner`` in float64 errs by at most √inner·u·Σ|aᵢbᵢ| with high probability
    (Higham & Mary, SIAM J. Sci. Comput. 41(5), 2019, Theorem 3.1), hence the matrix by √inner·u·‖A‖_F²; the
    symmetric eigensolver is backward stable with p(n)·u·σ₁², p(n) = n (LAPACK Users' Guide, §4.7); Weyl's
    inequality adds the two. Doubled for the terms of second order.
    """
    return 2.0 * ROUNDING[torch.float64] * (math.sqrt(inner) * frobenius**2 + size * largest**2)


def value_bounds(values: Tensor, epsilon: float) -> Tensor:
    """Bounds (k,) on |σ̂ − σ| that follow from |σ̂² − σ²| ≤ ε: never more than √ε, and ε/σ̂ where that is less."""
    root = math.sqrt(epsilon)
    return torch.full_like(values, 0.0) if root == 0.0 else epsilon / values.clamp(min=root)


def lapack_bound(shape: tuple[int, int], largest: float, dtype: torch.dtype = torch.float64) -> float:
    """Bound on the absolute error of every value of a backward stable SVD: max(m, n)·eps·σ₁.

    LAPACK Users' Guide, 3rd ed., §4.9.1, with p(m, n) = max(m, n).
    """
    return max(shape) * 2.0 * ROUNDING[dtype] * largest
