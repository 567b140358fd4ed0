"""The few smallest singular values of a matrix whose others are known: inverse iteration with a block of vectors."""

from __future__ import annotations

import torch
from torch import Tensor

OVERSAMPLED = 8
ITERATIONS = 24


def smallest_values(A: Tensor, count: int, above: float, accepted: float) -> tuple[Tensor, float] | None:
    """The ``count`` smallest singular values, where it is known that all others exceed ``above``.

    Subspace iteration with (RᵀR)⁻¹, R = A or its triangular factor (Golub & Van Loan, Matrix Computations, 4th ed.,
    §8.2.4), and the singular value decomposition of UᵀRV. In orthonormal bases that begin with its vectors u and v,
    R is [[S, E], [F, R⊥]] with ‖E‖ ≤ ‖Rᵀu − vS‖ and ‖F‖ ≤ ‖Rv − uS‖: its singular values differ by at most the larger
    of the two, C, from those of S and R⊥ together (Weyl). At most ``count`` of these lie below ``above`` − C; if all of
    S does, then they are the smallest of A.

    Args:
        A: (m, n) real float64 on the CPU, its squares in range. Never changed.
        count: 1 ≤ count < min(m, n).
        above: lower bound on the values that are not asked for.
        accepted: C at which the iteration ends.

    Returns:
        (count,) values, descending, and C, which bounds the error of each of them besides the rounding of R and UᵀRV;
        None where A is singular to the last bit, or the iteration does not reach ``accepted``.
    """
    tall = A.mT if A.shape[0] < A.shape[1] else A
    R = tall if tall.shape[0] == tall.shape[1] else torch.linalg.qr(tall, mode="r")[1]
    n = R.shape[0]
    factors, pivots, zero_pivot = torch.linalg.lu_factor_ex(R)
    if int(zero_pivot):
        return None
    block = min(n, 2 * count + OVERSAMPLED)
    V = torch.randn(n, block, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for _ in range(ITERATIONS):
        U = torch.linalg.qr(torch.linalg.lu_solve(factors, pivots, V, adjoint=True))[0]
        V = torch.linalg.qr(torch.linalg.lu_solve(factors, pivots, U))[0]
        if not bool(torch.isfinite(V).all()):
            return None
        left, values, right = torch.linalg.svd(U.mT @ (R @ V))
        # U is not taken from RV: where S is 1e-6 of the norm, that has lost six digits.
        u, S, v = U @ left[:, -count:], values[-count:], V @ right[-count:].mT
        rest = max(float(torch.linalg.vector_norm(x)) for x in (R @ v - u * S, R.mT @ u - v * S))
        if rest <= accepted:
            return (S, rest) if float(S[0]) < above - rest else None
    return None
