"""The two recurrences of a Krylov method, each with a basis that is orthonormal at every step and can be restarted.

Lanczos keeps A V = V H + Q R Eᴴ + F, Golub-Kahan A V = U B and Aᴴ U = V Bᴴ + Q R Eᴴ + F: E picks the columns of the
last block, Q is the next block, and F, of which only the column norms are kept, is what was dropped. H and B are
not assumed to be banded: every new column is the full projection, so a restart needs no special first step (Wu &
Simon, SIAM J. Matrix Anal. Appl. 22(2), 2000, for Lanczos; Baglama & Reichel, SIAM J. Sci. Comput. 27(1), 2005, for
Golub-Kahan). Since B and not BᴴB is decomposed, the residuals of small singular values are not squared.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from eigenscope.errors import InputError
from eigenscope.operators.arrays import Dense
from eigenscope.operators.base import LinearOperator

ROWS = 1024
"""Rows of a dense matrix promoted at a time."""

SHARE_OF_ROWS = 2**18
"""Rows of a basis that are replaced at a time."""

KEPT_BYTES = 2**28
"""Most that the products with a basis of Lanczos may take, where they are kept for the residuals."""

SAFE = 1e4
"""Where the diagonal of R exceeds the rounding by this factor, the SVD that would tell its rank is not computed."""


def wide(dtype: torch.dtype) -> torch.dtype:
    """float64, or complex128 for a complex dtype."""
    return torch.complex128 if dtype.is_complex else torch.float64


class Products:
    """Counted products with A and Aᴴ, scaled by a power of two so that squared norms neither overflow nor vanish.

    The scale is set by the first product that is not zero; it is exact, and ``scale`` takes values back.

    Args:
        A: (m, n). Blocks of another precision are rounded to its dtype.

    Raises:
        InputError: a product holds NaN or an infinity.
    """

    def __init__(self, A: LinearOperator) -> None:
        self.A, self.adjoint = A, A.T
        self.count = 0
        self.double = False
        """Multiply a dense matrix in double precision, whatever its dtype; for residuals finer than its rounding."""
        self._exponent: int | None = None

    @property
    def scale(self) -> float:
        """What the computed values are multiplied by."""
        return math.ldexp(1.0, self._exponent or 0)

    def forward(self, X: Tensor) -> Tensor:
        """A X / scale, (m, b)."""
        return self._scaled(self.A, X)

    def backward(self, Y: Tensor) -> Tensor:
        """Aᴴ Y / scale, (n, b)."""
        return self._scaled(self.adjoint, Y)

    def _scaled(self, operator: LinearOperator, X: Tensor) -> Tensor:
        self.count += X.shape[1]
        if isinstance(operator, Dense):
            operator.products += X.shape[1]
            X = X.to(wide(X.dtype) if self.double else operator.dtype)
            # A thin block is multiplied several times faster from the left: 1 against 15 GFLOP/s for AᵀX.
            parts = torch.split(operator.matrix, ROWS) if X.dtype != operator.dtype else (operator.matrix,)
            W = torch.cat([X.mT @ rows.to(X.dtype).mT for rows in parts], dim=1).mT
        else:
            W = operator @ X.to(operator.dtype)
        largest = float(W.abs().max()) if W.numel() else 0.0
        if not math.isfinite(largest):
            raise InputError("a product holds NaN or an infinity", where=repr(self.A), expected="finite entries")
        if self._exponent is None:
            if largest == 0.0:
                return W
            self._exponent = max(-1000, min(1000, math.frexp(largest)[1]))
        return W * math.ldexp(1.0, -self._exponent) if self._exponent else W


class _Columns:
    """Up to ``capacity`` orthonormal columns of length n, contiguous one by one."""

    def __init__(self, length: int, capacity: int, like: Tensor) -> None:
        self._buffer = like.new_empty(capacity, length).mT
        self.count = 0

    @property
    def all(self) -> Tensor:
        return self._buffer[:, : self.count]

    def append(self, block: Tensor) -> None:
        end = self.count + block.shape[1]
        self._buffer[:, self.count : end] = block
        self.count = end

    def combined(self, coefficients: Tensor) -> Tensor:
        return self.all @ _like(coefficients, self._buffer)

    def rotate(self, coefficients: Tensor) -> None:
        """Replace the columns by combinations of them, some rows at a time: nothing as large is allocated."""
        mixing, count = _like(coefficients, self._buffer), coefficients.shape[1]
        for rows in torch.split(self._buffer, SHARE_OF_ROWS):
            rows[:, :count] = rows[:, : self.count] @ mixing
        self.count = count


def orthonormalise(W: Tensor, basis: Tensor, floor: float, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """W = basis C + Q R with Q orthonormal and orthogonal to the basis: two passes of block Gram-Schmidt.

    Two passes give orthogonality to a few eps (Barlow & Smoktunowicz, Numer. Math. 123, 2013). Directions of the
    remainder with a singular value ≤ ``floor`` are rounding and are dropped, as are those beyond ``limit``.

    Args:
        W: (n, b).
        basis: (n, j) orthonormal.

    Returns:
        Q (n, r), C (j, b) and R (r, b), the last two in double precision on the CPU; r ≤ min(b, limit).
    """
    C = basis.mH @ W
    Q, R = torch.linalg.qr(W - basis @ C)
    second = basis.mH @ Q
    Q, again = torch.linalg.qr(Q - basis @ second)
    C, R = _small(C) + _small(second) @ _small(R), _small(again) @ _small(R)
    if R.numel() and R.shape[0] <= limit and float(R.diagonal().abs().min()) > SAFE * floor:
        return Q, C, R
    P, sizes, _ = torch.linalg.svd(R)
    rank = min(int((sizes > floor).sum()), limit)
    if rank < Q.shape[1]:
        P = P[:, :rank]
        Q, R = Q @ _like(P, Q), P.mH @ R
    return Q, C, R


def _small(coefficients: Tensor) -> Tensor:
    # In two steps, like _like: not every device has double precision.
    return coefficients.cpu().to(wide(coefficients.dtype))


def _like(coefficients: Tensor, block: Tensor) -> Tensor:
    return coefficients.to(block.dtype).to(block.device)


@dataclass(frozen=True)
class Ritz:
    """Ritz values of the present basis, in the order of its decomposition.

    Attributes:
        values: (j,) eigenvalues of H, or singular values of B with zeros where U has fewer columns than V.
        right: (j, j) coefficients of the vectors in V.
        left: (i, j) coefficients in U, zero where U has no vector; None for Lanczos.
        residuals: (j,) bounds on their residual norms that the recurrence gives, before rounding.
        dropped: (j,) the part of them that lies neither in the basis nor in the next block.
    """

    values: Tensor
    right: Tensor
    left: Tensor | None
    residuals: Tensor
    dropped: Tensor


class Recurrence(ABC):
    """A basis V of at most ``capacity`` columns, the next block Q, and the projected matrix.

    Args:
        products: of A, (m, n).
        capacity: most columns of V, ≤ n.
        generator: of the random directions, on the CPU.
        keep: the products with the basis, too, where they are dear and fit; Lanczos only.
    """

    def __init__(self, products: Products, capacity: int, generator: torch.Generator, keep: bool = False) -> None:
        A = products.A
        self.products, self.capacity, self.length = products, capacity, A.shape[1]
        self._like = torch.empty(0, dtype=A.dtype, device=A.device)
        self._generator = generator
        self.eps = torch.finfo(A.dtype).eps
        self.V = _Columns(A.shape[1], capacity, self._like)
        self.projected = torch.zeros(0, 0, dtype=wide(A.dtype))
        self.next = self.random(0)
        self._coupling = self.projected
        self._dropped = torch.zeros(0, dtype=torch.float64)
        self._largest = 0.0

    @abstractmethod
    def expand(self) -> None:
        """Move the next block into the basis, multiply by A, and find the block after it."""

    @abstractmethod
    def ritz(self) -> Ritz:
        """Decompose the projected matrix."""

    @abstractmethod
    def restart(self, ritz: Ritz, keep: Tensor) -> None:
        """Reduce the basis to the Ritz vectors ``keep``; the next block stays."""

    @property
    def images(self) -> Tensor | None:
        """Orthonormal basis of A V, where one is kept."""
        return None

    @abstractmethod
    def refresh(self, floor: float) -> None:
        """Multiply the basis again and make the next block of what it lacks, but for directions below the floor."""

    def random(self, count: int) -> Tensor:
        """(n, count) standard normal entries, drawn in double precision on the CPU."""
        entries = torch.randn(self.length, count, generator=self._generator, dtype=wide(self._like.dtype))
        return entries.to(self._like)

    def inject(self, block: Tensor) -> None:
        """Replace the next block by the part of ``block`` orthogonal to the basis; what it held is dropped.

        The Ritz vectors lose their coupling to it: their residual norms are kept in its place.
        """
        if self.next.shape[1]:
            start = len(self._dropped) - self._coupling.shape[1]
            self._dropped[start:] += torch.linalg.vector_norm(self._coupling, dim=0)
        floor = self.eps * math.sqrt(self.length) * (float(block.abs().max()) if block.numel() else 0.0)
        self.next = orthonormalise(block, self.V.all, floor, self.capacity - self.V.count)[0]
        self._coupling = self._coupling.new_zeros(self.next.shape[1], self._coupling.shape[1])

    def vectors(self, ritz: Ritz, chosen: Tensor) -> tuple[Tensor | None, Tensor]:
        """The chosen left and right vectors."""
        return None, self.V.combined(ritz.right[:, chosen])

    def multiplied(self, ritz: Ritz, chosen: Tensor) -> Tensor | None:
        """A times the chosen right vectors, made of products with the basis; None where those are not kept."""
        return None

    def _floor(self, W: Tensor) -> float:
        """Below it a remainder of W is rounding: 8·eps·(largest column of any product)."""
        if W.numel():
            self._largest = max(self._largest, float(torch.linalg.vector_norm(W, dim=0).max()))
        return 8.0 * self.eps * self._largest

    def _coupled(self, coefficients: Tensor) -> Tensor:
        """R Eᴴ Y for the coefficients Y of Ritz vectors."""
        return self._coupling @ coefficients[coefficients.shape[0] - self._coupling.shape[1] :]

    def _bounds(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        dropped = self._dropped @ coefficients.abs()
        return torch.linalg.vector_norm(self._coupled(coefficients), dim=0) + dropped, dropped

    def _rotate_rest(self, coefficients: Tensor) -> None:
        self._coupling = self._coupled(coefficients)
        self._dropped = self._dropped @ coefficients.abs()

    def _extend(self, columns: Tensor, coupled: int) -> None:
        """Append columns (j, b) to the projected matrix, and room for what ``coupled`` columns will drop."""
        height, width = self.projected.shape
        larger = self.projected.new_zeros(columns.shape[0], width + columns.shape[1])
        larger[:height, :width] = self.projected
        larger[:, width:] = columns
        self.projected = larger
        self._dropped = torch.cat([self._dropped, self._dropped.new_zeros(coupled)])


class Lanczos(Recurrence):
    """Of a symmetric (Hermitian) A."""

    def __init__(self, products: Products, capacity: int, generator: torch.Generator, keep: bool = False) -> None:
        super().__init__(products, capacity, generator)
        keep = keep and self.length * capacity * self._like.element_size() <= KEPT_BYTES
        self.W = _Columns(self.length, capacity, self._like) if keep else None

    def multiplied(self, ritz: Ritz, chosen: Tensor) -> Tensor | None:
        """As in the base."""
        return None if self.W is None else self.W.combined(ritz.right[:, chosen])

    def expand(self) -> None:
        """One product with the block."""
        before, width = self.V.count, self.next.shape[1]
        self.V.append(self.next)
        W = self.products.forward(self.next)
        if self.W is not None:
            self.W.append(W)
        self.next, C, self._coupling = orthonormalise(W, self.V.all, self._floor(W), self.length - self.V.count)
        C[before:] = (C[before:] + C[before:].mH) / 2
        self._extend(C, width)
        self.projected[before:, :before] = C[:before].mH

    def ritz(self) -> Ritz:
        """Eigenpairs of H, ascending."""
        values, right = torch.linalg.eigh(self.projected)
        return Ritz(values, right, None, *self._bounds(right))

    def restart(self, ritz: Ritz, keep: Tensor) -> None:
        """H becomes the diagonal of the Ritz values."""
        right = ritz.right[:, keep]
        self._rotate_rest(right)
        self.projected = torch.diag(ritz.values[keep]).to(self.projected.dtype)
        for columns in (self.V, self.W):
            if columns is not None:
                columns.rotate(right)

    def refresh(self, floor: float) -> None:
        """As many products as the basis has columns."""
        W = self.products.forward(self.V.all)
        if self.W is not None:
            self.W.count = 0
            self.W.append(W)
        self.next, C, self._coupling = orthonormalise(W, self.V.all, floor, self.capacity - self.V.count)
        self.projected = (C + C.mH) / 2
        self._dropped = torch.zeros_like(self._dropped)


class GolubKahan(Recurrence):
    """Of any A, best with n ≤ m: then V can span the whole space."""

    def __init__(self, products: Products, capacity: int, generator: torch.Generator, keep: bool = False) -> None:
        super().__init__(products, capacity, generator)
        self.U = _Columns(products.A.shape[0], capacity, self._like)

    @property
    def images(self) -> Tensor | None:
        """U."""
        return self.U.all

    def expand(self) -> None:
        """One product with A and one with Aᴴ; U grows by the rank of what is new in A V."""
        self.V.append(self.next)
        W = self.products.forward(self.next)
        new, C, S = orthonormalise(W, self.U.all, self._floor(W), self.products.A.shape[0] - self.U.count)
        self.U.append(new)
        self._extend(torch.cat([C, S]), new.shape[1])
        Z = self.products.backward(new) if new.shape[1] else self.random(0)
        self.next, _, self._coupling = orthonormalise(Z, self.V.all, self._floor(Z), self.length - self.V.count)

    def ritz(self) -> Ritz:
        """Singular triplets of B, descending."""
        left, sigma, right = torch.linalg.svd(self.projected)
        rows, cols = self.projected.shape
        values = torch.cat([sigma, sigma.new_zeros(cols - len(sigma))])
        padded = torch.cat([left, left.new_zeros(rows, cols - rows)], dim=1)
        return Ritz(values, right.mH, padded, *self._bounds(padded))

    def restart(self, ritz: Ritz, keep: Tensor) -> None:
        """B becomes the diagonal of the singular values, without the rows of absent left vectors."""
        left, right = self._left(ritz, keep), ritz.right[:, keep]
        self._rotate_rest(left)
        self.projected = left.mH @ self.projected @ right
        self.U.rotate(left)
        self.V.rotate(right)

    def refresh(self, floor: float) -> None:
        """As many products with Aᴴ as U has columns; nothing is ever dropped from A V = U B."""
        Z = self.products.backward(self.U.all)
        self.next, _, self._coupling = orthonormalise(Z, self.V.all, floor, self.capacity - self.V.count)
        self._dropped = torch.zeros_like(self._dropped)

    def vectors(self, ritz: Ritz, chosen: Tensor) -> tuple[Tensor | None, Tensor]:
        """As in the base; a left vector is missing where U has none."""
        return self.U.combined(self._left(ritz, chosen)), self.V.combined(ritz.right[:, chosen])

    def _left(self, ritz: Ritz, chosen: Tensor) -> Tensor:
        if ritz.left is None:
            raise TypeError("Golub-Kahan needs left coefficients")
        return ritz.left[:, chosen[chosen < self.U.count]]
