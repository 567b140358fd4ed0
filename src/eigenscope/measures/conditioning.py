"""What solving with a matrix, or holding it in few bits, costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
FP16_EPS = 2.0**-10
ENTRIES_AT_ONCE = 2**16
INTEGERS: dict[int, tuple[torch.dtype, type[np.unsignedinteger[Any]]]] = {
    2: (torch.int16, np.uint16), 4: (torch.int32, np.uint32), 8: (torch.int64, np.uint64),
}  # fmt: skip


def condition_number(values: Array) -> float | None:
    """σ_max/σ_min; infinite if singular, None for the zero or empty matrix.

    Golub & Van Loan, Matrix Computations, 4th ed., §2.6.2 (2-norm; for a rectangular matrix, §5.3.1).
    """
    if not len(values) or values[0] == 0.0:
        return None
    return float(values[0] / values[-1]) if values[-1] > 0.0 else math.inf


def digits_lost(condition: float) -> float:
    """log₁₀ κ: decimal digits that solving can cost (Higham, Accuracy and Stability, 2nd ed., §1.6)."""
    return math.log10(condition)


def digits_left(condition: float, eps: float) -> float:
    """Digits of a format of machine epsilon ``eps`` that remain after the loss, never less than 0."""
    return max(0.0, -math.log10(eps) - math.log10(condition))


def ridge_for_condition(values: Array, target: float) -> float | None:
    """The λ ≥ 0 for which [W; √λ I] has condition number ``target``; 0 where W already has less.

    Its singular values are √(σᵢ² + λ) (Golub & Van Loan, §6.1.4), so (σ₁² + λ)/(σₙ² + λ) = target². Where W has
    fewer rows than columns the stacked matrix has √λ itself among them, and σₙ is 0.

    Args:
        values: all singular values that count, descending; append a 0 for a matrix with more columns than rows.
        target: > 1.
    """
    if not target > 1.0:
        raise ValueError(f"target condition number {target}; expected more than 1")
    if not len(values) or values[0] == 0.0:
        return None
    smallest = float(values[-1] / values[0])
    excess = (1.0 - (target * smallest) ** 2) / ((target - 1.0) * (target + 1.0))
    return max(0.0, excess) * float(values[0]) * float(values[0])  # ** would raise where this is infinite


def storage_eps(dtype: str) -> float:
    """Machine epsilon of a storage format; of float32 for block-quantised ones, which are dequantised to it."""
    known = getattr(torch, dtype, None)
    if isinstance(known, torch.dtype) and (known.is_floating_point or known.is_complex):
        return float(torch.finfo(known).eps)
    return float(torch.finfo(torch.float32).eps)


@dataclass(frozen=True)
class Entries:
    """Facts about the entries of a matrix that its spectrum does not tell.

    Attributes:
        nan, infinite: how many.
        first: row and column of the first of them, or None.
        overflow: share that fp16 would turn into infinity: |w| ≥ 65520, which rounds up (IEEE 754-2019, §4.3.1, §7.4).
        underflow: share, not 0, that fp16 would turn into 0: |w| ≤ 2⁻²⁵, which rounds to even (§7.5).
        zero_rows, zero_cols: rows and columns without an entry that differs from 0.
    """

    nan: int
    infinite: int
    first: tuple[int, int] | None
    overflow: float
    underflow: float
    zero_rows: int
    zero_cols: int


def inspect_entries(W: Tensor) -> Entries:
    """Count what is not finite and what fp16 cannot hold, a block of rows at a time.

    The bits of an IEEE number without its sign, read as an integer, are in the order of the magnitudes, with infinity and
    then the NaNs at the end (IEEE 754-2019, §5.10): integers are compared and counted several times faster.

    Args:
        W: (m, n), any floating or complex dtype. Never changed.
    """
    rows, cols = W.shape
    limits = torch.tensor([2.0**-25, 65520.0, math.inf]).to(_real(W.dtype))
    tiny, huge, infinity = (int(limit) for limit in _magnitudes(limits))
    nan = infinite = overflow = underflow = zero_rows = 0
    used = np.zeros(cols, dtype=bool)
    first: tuple[int, int] | None = None
    height = max(1, ENTRIES_AT_ONCE // max(cols, 1))
    for start in range(0, rows if cols else 0, height):
        size = _magnitudes(W[start : start + height])
        smallest, largest = int(size.min()), int(size.max())
        if largest >= infinity:
            nan += int(np.count_nonzero(size > infinity))
            infinite += int(np.count_nonzero(size == infinity))
            if first is None:
                row, col = np.argwhere(size >= infinity)[0]
                first = (start + int(row), int(col))
        if largest >= huge:
            overflow += int(np.count_nonzero((size >= huge) & (size < infinity)))
        if smallest <= tiny:
            underflow += int(np.count_nonzero(size - size.dtype.type(1) < tiny))  # a 0 wraps around to the largest
        if smallest > 0:
            used[:] = True
        else:
            used |= size.max(axis=0) > 0
            zero_rows += int(np.count_nonzero(size.max(axis=1) == 0))
    total = max(rows * cols, 1)
    return Entries(nan, infinite, first, overflow / total, underflow / total, zero_rows, int(np.count_nonzero(~used)))


def _real(dtype: torch.dtype) -> torch.dtype:
    """The format of the magnitudes of such entries."""
    return torch.float32 if dtype.itemsize == 1 else dtype.to_real()


def _magnitudes(block: Tensor) -> NDArray[Any]:
    """|w| as unsigned integers in the order of the magnitudes."""
    block = (block.abs() if block.is_complex() else block.to(_real(block.dtype)).resolve_neg()).cpu()
    signed, unsigned = INTEGERS[block.element_size()]
    bits: NDArray[Any] = block.view(signed).numpy().view(unsigned) & unsigned(torch.iinfo(signed).max)
    return bits
