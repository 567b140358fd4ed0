"""Operators made of operators: sum, scaling, product, Gram and block. None of them forms a matrix.

Each multiplies its operands with ``@``, so that their own ``products`` count too. The adjoints follow
(A + B)ᴴ = Aᴴ + Bᴴ, (cA)ᴴ = c̄Aᴴ, (AB)ᴴ = BᴴAᴴ (Horn & Johnson, Matrix Analysis, 2nd ed., §0.2.5).
"""

from __future__ import annotations

import cmath
from numbers import Complex, Real
from typing import final

import torch
from torch import Tensor

from eigenscope.errors import InputError
from eigenscope.operators.base import LinearOperator


@final
class Sum(LinearOperator):
    """A + B. Symmetric where both are.

    Args:
        left: A, of shape (m, n).
        right: B, of the same shape, dtype and device.

    Raises:
        InputError: shapes, dtypes or devices differ.
    """

    def __init__(self, left: LinearOperator, right: LinearOperator) -> None:
        where = f"{left!r} + {right!r}"
        if left.shape != right.shape:
            raise InputError(f"shapes {left.shape} and {right.shape} differ", where=where, expected="the same shape")
        _check_kinds(left, right, where)
        super().__init__(left.shape, left.dtype, left.device, left.symmetric and right.symmetric)
        self.left, self.right = left, right

    def _matmat(self, X: Tensor) -> Tensor:
        return (self.left @ X) + (self.right @ X)

    def _adjoint(self) -> LinearOperator:
        return Sum(self.left.T, self.right.T)


@final
class Scaled(LinearOperator):
    """c·A for a number c. Symmetric where A is and c is real.

    Args:
        operand: A, of shape (m, n).
        factor: c, a Python or NumPy number; complex only where A is complex.

    Raises:
        InputError: c is not a number, is complex while A is real, or cannot be held in A's dtype: it is NaN or
            infinite, or becomes infinite or 0 there.
    """

    def __init__(self, operand: LinearOperator, factor: complex) -> None:
        number = _number(factor, operand)
        symmetric = operand.symmetric and number.imag == 0.0
        super().__init__(operand.shape, operand.dtype, operand.device, symmetric)
        self.operand, self.factor = operand, number

    def _matmat(self, X: Tensor) -> Tensor:
        return self.factor * (self.operand @ X)

    def _adjoint(self) -> LinearOperator:
        return Scaled(self.operand.T, self.factor.conjugate())


@final
class Product(LinearOperator):
    """A B, applied right to left. Never said to be symmetric: for AᴴA use :class:`Gram`.

    Args:
        left: A, of shape (m, n).
        right: B, of shape (n, p), of the same dtype and device.

    Raises:
        InputError: the inner sizes, dtypes or devices differ.
    """

    def __init__(self, left: LinearOperator, right: LinearOperator) -> None:
        where = f"{left!r} @ {right!r}"
        if left.shape[1] != right.shape[0]:
            raise InputError(
                f"{left.shape[1]} columns do not fit {right.shape[0]} rows",
                where=where,
                expected=f"a right operand of {left.shape[1]} rows",
            )
        _check_kinds(left, right, where)
        super().__init__((left.shape[0], right.shape[1]), left.dtype, left.device)
        self.left, self.right = left, right

    def _matmat(self, X: Tensor) -> Tensor:
        return self.left @ (self.right @ X)

    def _adjoint(self) -> LinearOperator:
        return Product(self.right.T, self.left.T)


@final
class Gram(LinearOperator):
    """AᴴA, of shape (n, n): symmetric and positive semidefinite, its eigenvalues are σ(A)².

    Golub & Van Loan, Matrix Computations, 4th ed., §8.6.1. Squaring costs half of the digits of the smallest
    singular values (§5.3.2, on the normal equations).

    Args:
        operand: A, of shape (m, n).
    """

    def __init__(self, operand: LinearOperator) -> None:
        size = operand.shape[1]
        super().__init__((size, size), operand.dtype, operand.device, symmetric=True)
        # Kept, since the adjoint of a composite is a tree of new operators.
        self.operand, self.adjoint = operand, operand.T

    def _matmat(self, X: Tensor) -> Tensor:
        return self.adjoint @ (self.operand @ X)

    def _adjoint(self) -> LinearOperator:
        return self


@final
class Block(LinearOperator):
    """The rows and columns of A that are selected, in the order of the selection: A[rows][:, cols].

    Symmetric where A is and rows and columns are the same positions. A product costs one with the whole of A.

    Args:
        operand: A, of shape (m, n).
        rows: None for all; a slice, with Python's meaning of negative and excessive bounds; or a (r,) int64
            tensor of distinct positions in 0…m−1.
        cols: the same of the n columns.

    Raises:
        InputError: another kind of selection, or positions that repeat or lie outside A.
    """

    def __init__(
        self, operand: LinearOperator, rows: slice | Tensor | None = None, cols: slice | Tensor | None = None
    ) -> None:
        row_positions = _positions(rows, operand, 0)
        col_positions = _positions(cols, operand, 1)
        shape = (row_positions.shape[0], col_positions.shape[0])
        symmetric = operand.symmetric and torch.equal(row_positions, col_positions)
        super().__init__(shape, operand.dtype, operand.device, symmetric)
        self.operand = operand
        self.rows = _compact(row_positions)
        self.cols = _compact(col_positions)

    def _matmat(self, X: Tensor) -> Tensor:
        embedded = X
        if X.shape[0] != self.operand.shape[1] or isinstance(self.cols, Tensor):
            embedded = X.new_zeros(self.operand.shape[1], X.shape[1])
            embedded[self.cols] = X
        return (self.operand @ embedded)[self.rows]

    def _adjoint(self) -> LinearOperator:
        return Block(self.operand.T, self.cols, self.rows)


def _check_kinds(left: LinearOperator, right: LinearOperator, where: str) -> None:
    if left.dtype != right.dtype:
        raise InputError(f"dtypes {left.dtype} and {right.dtype} differ", where=where, expected="the same dtype")
    if left.device != right.device:
        raise InputError(f"devices {left.device} and {right.device} differ", where=where, expected="the same device")


def _number(factor: object, operand: LinearOperator) -> complex:
    """The factor as a Python float or complex that A's dtype can hold."""
    where = f"{factor!r} * {operand!r}"
    if isinstance(factor, LinearOperator):
        raise InputError("an operator is not a factor", where=where, remedy="compose operators with @")
    if not isinstance(factor, Complex):
        raise InputError(
            f"the factor is a {type(factor).__name__}",
            where=where,
            expected="a number",
            remedy="use .item() on a tensor of one element",
        )
    if not isinstance(factor, Real) and not operand.dtype.is_complex:
        raise InputError(
            "a complex factor on a real operator",
            where=where,
            expected="a real factor",
            remedy="convert the operator's entries to complex first",
        )
    try:
        number = float(factor) if isinstance(factor, Real) else complex(factor)
    except OverflowError as error:
        raise InputError("the factor exceeds float64", where=where) from error
    held = complex(torch.tensor(number, dtype=operand.dtype).item())
    if not cmath.isfinite(held) or (held == 0.0) != (number == 0.0):
        raise InputError(
            f"the factor becomes {held if isinstance(number, complex) else held.real} in {operand.dtype}",
            where=where,
            expected="a finite factor that the dtype can hold",
        )
    return number


def _positions(selection: slice | Tensor | None, operand: LinearOperator, axis: int) -> Tensor:
    """The selected rows (axis 0) or columns (axis 1) as an (r,) int64 tensor on A's device."""
    size = operand.shape[axis]
    where = f"{('rows', 'columns')[axis]} of {operand!r}"
    if selection is None:
        return torch.arange(size, device=operand.device)
    if isinstance(selection, slice):
        try:
            chosen = range(size)[selection]
        except (TypeError, ValueError) as error:
            raise InputError(f"{selection} does not slice: {error}", where=where) from error
        return torch.arange(len(chosen), device=operand.device) * chosen.step + chosen.start
    if not isinstance(selection, Tensor) or selection.dtype != torch.int64 or selection.ndim != 1:
        got = (
            f"a {selection.ndim}-D {selection.dtype} tensor"
            if isinstance(selection, Tensor)
            else f"a {type(selection).__name__}"
        )
        raise InputError(
            f"selected by {got}",
            where=where,
            expected="a slice, a 1-D int64 tensor or None",
            remedy="use torch.tensor(positions), or mask.nonzero().squeeze(1) for a mask",
        )
    outside = selection[(selection < 0) | (selection >= size)]
    if len(outside):
        raise InputError(
            f"{len(outside)} positions lie outside, the first is {int(outside[0])}",
            where=where,
            expected=f"0…{size - 1}",
        )
    distinct = len(torch.unique(selection))
    if distinct != len(selection):
        raise InputError(f"{len(selection)} positions, only {distinct} of them distinct", where=where)
    # A copy: what the caller later writes into the selection must not move the block.
    return selection.detach().clone().to(operand.device)


def _compact(positions: Tensor) -> slice | Tensor:
    """The slice that selects contiguous positions, which spares a gather; else the positions."""
    count = len(positions)
    if count == 0:
        return slice(0, 0)
    first = int(positions[0])
    contiguous = torch.arange(first, first + count, device=positions.device)
    return slice(first, first + count) if torch.equal(positions, contiguous) else positions
