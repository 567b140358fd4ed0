"""Least squares with a decomposed matrix: the solution, its residual, and how much errors of the data are amplified."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eigenscope.errors import InputError
from eigenscope.measures import conditioning, rank
from eigenscope.operators.arrays import Dense, Sparse, as_operator
from eigenscope.results import Spectrum

PROBES = 32


@dataclass(frozen=True)
class Solution:
    """The x of least ‖A x − b‖² + λ‖x‖², for each column b; of several such x the shortest.

    Attributes:
        x: (n, p).
        ridge: λ.
        rank: singular values used: those above the rounding of the storage format, or all of them where λ > 0.
        residual: (p,) ‖A x − b‖/‖b‖, from products.
        outside: (p,) ‖b − A A⁺ b‖/‖b‖: what no x reaches, and no residual goes below.
        condition: κ = σ₁·‖A_λ⁺‖ of what was solved.
        predicted: (p,) most that a relative error of b can grow on its way to x: κ·‖b‖/‖A x‖ (Golub & Van Loan, Matrix
            Computations, 4th ed., Theorem 5.3.1, first term; with λ = 0, ‖b‖/‖A x‖ = 1/cos θ).
        worst: (p,) how much an error in the worst direction grows for this b: ‖A_λ⁺‖·‖b‖/‖x‖ (Chan & Foulser, SIAM J.
            Sci. Stat. Comput. 9(6), 1988, eq. (2.2)).
        seen: (p,) the largest growth of random errors of b.
        probes: how many of these were tried.
    """

    x: Tensor
    ridge: float
    rank: int
    residual: NDArray[np.float64]
    outside: NDArray[np.float64]
    condition: float
    predicted: NDArray[np.float64]
    worst: NDArray[np.float64]
    seen: NDArray[np.float64]
    probes: int


def solve(
    operator: Dense | Sparse, spectrum: Spectrum, b: Tensor, *, ridge: float | None = None,
    target_condition: float | None = None, dtype: str = "float64", seed: int = 0,
) -> Solution:  # fmt: skip
    """Solve with all singular triplets of A; nothing is factored again.

    Args:
        operator: A (m, n).
        spectrum: all min(m, n) triplets of A.
        b: (m, p), finite.
        ridge: λ ≥ 0.
        target_condition: the condition number of [A; √λ I] that λ is chosen for.
        dtype: real storage format of A; singular values that it cannot tell from 0 are left out, where λ is 0.
        seed: of the random errors.

    Raises:
        InputError: b has another number of rows, λ is negative, both λ and a target are given, A is the zero matrix, or
            triplets are missing.
    """
    rows, cols = operator.shape
    if b.shape[0] != rows:
        raise InputError(f"a right-hand side of {b.shape[0]} rows", expected=f"{rows}, as the matrix has")
    if spectrum.left is None or spectrum.right is None or not spectrum.complete:
        raise InputError("not all singular triplets", expected="all of them", remedy="leave -k out")
    values = spectrum.values.numpy()
    if values[0] == 0.0:
        raise InputError("the zero matrix", expected="a matrix that reaches something")
    level = _ridge(values, (rows, cols), ridge, target_condition)
    count = rank.numerical_rank(values, (rows, cols), conditioning.storage_eps(dtype)) if level == 0.0 else len(values)
    sigma = spectrum.values[:count]
    left, right = spectrum.left[:, :count], spectrum.right[:, :count]
    wide = torch.result_type(left, b) if b.is_complex() else left.dtype
    left, right, b = left.to(wide), right.to(wide), b.to(wide)
    # σ/(σ² + λ), written so that neither σ² nor 1/σ² leaves the range.
    gains = 1.0 / (sigma + level / sigma.clamp(min=torch.finfo(torch.float64).tiny))
    inside = left.mH @ b
    x = right @ (gains.unsqueeze(1) * inside)
    reached = _times(operator, x)
    norm_b, norm_x, norm_ax = _norms(b), _norms(x), _norms(reached)
    largest_gain = float(gains.max())
    generator = torch.Generator().manual_seed(seed)
    errors = torch.randn(rows, PROBES, generator=generator, dtype=wide)
    grown = float((_norms(right @ (gains.unsqueeze(1) * (left.mH @ errors))) / _norms(errors)).max())
    condition = float(values[0]) * largest_gain
    with np.errstate(divide="ignore", invalid="ignore"):
        return Solution(
            x=x, ridge=level, rank=count, residual=_over(_norms(reached - b), norm_b),
            outside=_over(_norms(b - left @ inside), norm_b), condition=condition,
            predicted=_over(condition * norm_b, norm_ax), worst=_over(largest_gain * norm_b, norm_x),
            seen=_over(grown * norm_b, norm_x), probes=PROBES,
        )  # fmt: skip


def _ridge(values: NDArray[np.float64], shape: tuple[int, int], ridge: float | None, target: float | None) -> float:
    if ridge is not None and target is not None:
        raise InputError("both a ridge and a target condition number", expected="one of them")
    if ridge is not None:
        if not (math.isfinite(ridge) and ridge >= 0.0):
            raise InputError(f"ridge {ridge}", expected="0 or more")
        return ridge
    if target is None:
        return 0.0
    return conditioning.ridge_for_condition(values if shape[0] >= shape[1] else np.append(values, 0.0), target) or 0.0


def _times(operator: Dense | Sparse, x: Tensor) -> Tensor:
    """A x in double precision, whatever A is held in."""
    if isinstance(operator, Dense):
        return operator.matrix.cpu().to(x.dtype) @ x
    return as_operator(operator.matrix.astype(str(x.dtype).removeprefix("torch."))) @ x


def _norms(columns: Tensor) -> NDArray[np.float64]:
    norms: NDArray[np.float64] = torch.linalg.vector_norm(columns, dim=0).numpy()
    return norms


def _over(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """The quotient; 0 of 0 is 0: nothing asked for, nothing amplified."""
    return np.where(above == 0.0, 0.0, above / below)
