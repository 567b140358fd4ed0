"""Operators over matrices that do not fit in memory, read a block of rows at a time; and centring without forming it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, final

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from eigenscope.errors import InputError
from eigenscope.operators.arrays import DTYPES, LowRank
from eigenscope.operators.base import LinearOperator

BLOCK_BYTES = 2**26
"""Bytes of float64 that one block may take: a few of them are in memory at a time."""


class RowSource(Protocol):
    """Where the rows of a matrix come from: a file, a database, an array.

    Attributes:
        shape: (m, n).
        dtype: of the blocks: float32, float64, complex64 or complex128.
    """

    shape: tuple[int, int]
    dtype: torch.dtype

    def read(self, start: int, stop: int) -> Tensor:
        """Rows ``start:stop`` as a (stop − start, n) tensor on the CPU."""


class SlicedRows:
    """Rows of anything that lies in memory or is mapped: an ndarray, a memory map, a SciPy sparse matrix.

    Args:
        array: (m, n), sliced by rows; sparse ones in CSR.

    Raises:
        InputError: entries without products.
    """

    def __init__(self, array: Any) -> None:
        self._array = array
        self.shape = (int(array.shape[0]), int(array.shape[1]))
        known = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
        if str(array.dtype) not in known:
            raise InputError(f"the entries are {array.dtype}", where="SlicedRows", expected=", ".join(known))
        self.dtype = known[str(array.dtype)]

    def read(self, start: int, stop: int) -> Tensor:
        """Rows ``start:stop``, dense, a copy."""
        part = self._array[start:stop]
        return torch.from_numpy(part.toarray() if scipy.sparse.issparse(part) else np.array(part))


@final
class Rows(LinearOperator):
    """A matrix read in blocks of consecutive rows: every product, and every product of the adjoint, is one pass.

    On the first pass the entries are looked through for NaN and infinity, since nobody could before.

    Args:
        source: the rows.
        block_bytes: largest size of a block, counted in float64; default 64 MiB.
        watch: called after each block with the rows of this pass that are done, and all of them.

    Raises:
        InputError: a dtype without products; on the first pass, entries that are not finite, and where the first is.
    """

    def __init__(
        self, source: RowSource, block_bytes: int | None = None, watch: Callable[[int, int], None] | None = None
    ) -> None:
        if source.dtype not in DTYPES:
            raise InputError(
                f"rows of {source.dtype}", where="Rows", expected="float32, float64, complex64 or complex128"
            )
        super().__init__(source.shape, source.dtype, "cpu")
        self.source = source
        self.passes = 0
        """How many times all rows have been read, for products of A and of its adjoint together."""
        self._nonzero = 0
        self._watch = watch
        self._height = max(1, (BLOCK_BYTES if block_bytes is None else block_bytes) // max(1, 8 * self.shape[1]))
        self._checked = 0

    @property
    def density(self) -> float | None:
        """Share of the entries that are not 0, counted on the first pass; None before it has ended."""
        return self._nonzero / max(1, self.shape[0] * self.shape[1]) if self.passes else None

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """One pass: the place of each block's first row, and the block (r, n), which the caller may not keep."""
        rows = self.shape[0]
        for start in range(0, rows, self._height):
            stop = min(rows, start + self._height)
            block = self.source.read(start, stop)
            if self._checked < stop:
                _check_finite(block, start)
                self._nonzero += int(torch.count_nonzero(block))
                self._checked = stop
            yield start, block
            if self._watch is not None:
                self._watch(stop, rows)
        self.passes += 1

    def _matmat(self, X: Tensor) -> Tensor:
        result = X.new_zeros(self.shape[0], X.shape[1])
        for start, block in self.blocks():
            result[start : start + len(block)] = block @ X
        return result

    def _adjoint(self) -> LinearOperator:
        return RowsAdjoint(self)


@final
class RowsAdjoint(LinearOperator):
    """The adjoint of :class:`Rows`: a product is the sum over the blocks, in double precision.

    Args:
        rows: the matrix it is the adjoint of; its passes are counted there.
    """

    def __init__(self, rows: Rows) -> None:
        super().__init__((rows.shape[1], rows.shape[0]), rows.dtype, "cpu")
        self.rows = rows

    def _matmat(self, X: Tensor) -> Tensor:
        wide = torch.complex128 if self.dtype.is_complex else torch.float64
        total = torch.zeros(X.shape[1], self.shape[0], dtype=wide)
        for start, block in self.rows.blocks():
            # (YᴴA)ᴴ and not AᴴY: for few columns the former is several times faster.
            total += X[start : start + len(block)].mH @ block
        return total.mH.to(self.dtype)

    def _adjoint(self) -> LinearOperator:
        return self.rows


def column_means(A: LinearOperator) -> Tensor:
    """Mean of each column, (n,): one product of the adjoint, Aᴴ1/m, conjugated.

    Raises:
        InputError: no rows.
    """
    rows = A.shape[0]
    if rows == 0:
        raise InputError("the mean of no rows", where=repr(A), expected="at least one row")
    ones = torch.ones(rows, dtype=A.dtype, device=A.device)
    return (A.T @ ones).conj().resolve_conj() / rows


def centred(A: LinearOperator, mean: Tensor) -> LinearOperator:
    """A − 1μᵀ, never formed: a sparse matrix stays sparse, a streamed one streamed.

    Args:
        A: (m, n).
        mean: μ (n,), of A's dtype and device.
    """
    ones = torch.ones(A.shape[0], 1, dtype=A.dtype, device=A.device)
    return A + LowRank(-ones, mean.conj().resolve_conj().unsqueeze(1))


def _check_finite(block: Tensor, start: int) -> None:
    parts = torch.view_as_real(block.resolve_conj()) if block.dtype.is_complex else block
    if not parts.numel() or all(bool(extreme.isfinite()) for extreme in torch.aminmax(parts)):
        return
    bad = block.isfinite().logical_not()
    row, col = bad.nonzero()[0].tolist()
    raise InputError(
        f"the entry at row {start + row}, column {col} from 0 is {block[row, col].item()}",
        where="matrix", expected="finite entries", remedy="replace it, or find what wrote it",
    )  # fmt: skip
