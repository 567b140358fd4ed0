"""The one contract of a linear map: its shape, and its products with blocks of columns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import overload

import torch
from torch import Tensor

from eigenscope.errors import InputError


class LinearOperator(ABC):
    """A linear map known by its products: ``A @ X`` for a block X of shape (n, k), and its adjoint ``A.T``.

    A concrete class calls ``super().__init__`` and defines ``_matmat`` and ``_adjoint``; it is final.
    ``_matmat`` always receives a validated 2-D block with k ≥ 0 columns and must not change it.

    Args:
        shape: (m, n), both ≥ 0.
        dtype: of the entries, and of the blocks it multiplies.
        device: where the products are computed.
        symmetric: whether A equals its adjoint (Hermitian when complex). Only a square map can.

    Raises:
        InputError: a negative shape, or a symmetric map that is not square.
    """

    def __init__(
        self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device | str, symmetric: bool = False
    ) -> None:
        rows, cols = int(shape[0]), int(shape[1])
        if rows < 0 or cols < 0:
            raise InputError(f"shape {shape} is negative", where=type(self).__name__)
        if symmetric and rows != cols:
            raise InputError(f"a {rows}×{cols} map cannot be symmetric", where=type(self).__name__)
        self.shape = (rows, cols)
        self.dtype = dtype
        # "cuda" alone names no device: its tensors say "cuda:0", and the two compare as different.
        self.device = torch.empty(0, device=device).device
        self.symmetric = symmetric
        self.verified = False
        """Whether the operator has itself tried ⟨Ax, y⟩ = ⟨x, Aᴴy⟩, so that nobody needs to spend products on it."""
        self.products = 0
        """How many columns ``A @ X`` has multiplied so far; those of ``A.T``, another object, are counted there."""

    @abstractmethod
    def _matmat(self, X: Tensor) -> Tensor:
        """(n, k) → (m, k)."""

    @abstractmethod
    def _adjoint(self) -> LinearOperator:
        """The map Aᴴ, of shape (n, m)."""

    @property
    def T(self) -> LinearOperator:
        """The adjoint Aᴴ (conjugate transpose); A itself where A is symmetric."""
        return self if self.symmetric else self._adjoint()

    @overload
    def __matmul__(self, other: Tensor) -> Tensor: ...
    @overload
    def __matmul__(self, other: LinearOperator) -> LinearOperator: ...
    def __matmul__(self, other: Tensor | LinearOperator) -> Tensor | LinearOperator:
        """Product with a block (n, k), a vector (n,), or another operator of shape (n, p)."""
        if isinstance(other, LinearOperator):
            from eigenscope.operators.algebra import Product

            return Product(self, other)
        if not isinstance(other, Tensor):
            return NotImplemented
        self._check(other)
        block = other if other.ndim == 2 else other.unsqueeze(1)
        self.products += block.shape[1]
        result = self._matmat(block)
        return result if other.ndim == 2 else result.squeeze(1)

    def __add__(self, other: LinearOperator) -> LinearOperator:
        if not isinstance(other, LinearOperator):
            return NotImplemented
        from eigenscope.operators.algebra import Sum

        return Sum(self, other)

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        if not isinstance(other, LinearOperator):
            return NotImplemented
        return self + (-1.0) * other

    def __mul__(self, factor: complex) -> LinearOperator:
        from eigenscope.operators.algebra import Scaled

        return Scaled(self, factor)

    __rmul__ = __mul__

    def __neg__(self) -> LinearOperator:
        return self * -1.0

    def gram(self) -> LinearOperator:
        """AᴴA, of shape (n, n), symmetric, never formed."""
        from eigenscope.operators.algebra import Gram

        return Gram(self)

    def to_dense(self) -> Tensor:
        """The (m, n) matrix, by multiplying the identity of the smaller side: min(m, n) columns."""
        rows, cols = self.shape
        if rows < cols:
            return (self.T @ torch.eye(rows, dtype=self.dtype, device=self.device)).mH
        return self @ torch.eye(cols, dtype=self.dtype, device=self.device)

    def __repr__(self) -> str:
        rows, cols = self.shape
        kind = ", symmetric" if self.symmetric else ""
        return f"{type(self).__name__}({rows}×{cols}, {str(self.dtype).removeprefix('torch.')}, {self.device}{kind})"

    def _check(self, X: Tensor) -> None:
        where = repr(self)
        if X.ndim not in (1, 2) or X.shape[0] != self.shape[1]:
            raise InputError(
                f"cannot multiply a tensor of shape {tuple(X.shape)}",
                where=where,
                expected=f"({self.shape[1]}, k) or ({self.shape[1]},)",
            )
        if X.dtype != self.dtype:
            raise InputError(
                f"the block is {X.dtype}",
                where=where,
                expected=str(self.dtype),
                remedy=f"use X.to({self.dtype})",
            )
        if X.device != self.device:
            raise InputError(
                f"the block is on {X.device}",
                where=where,
                expected=str(self.device),
                remedy="move one to the other",
            )
