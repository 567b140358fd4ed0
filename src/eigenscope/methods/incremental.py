"""A truncated SVD that is kept up to date as rows or columns of the matrix arrive.

Brand, Fast low-rank modifications of the thin singular value decomposition, Linear Algebra Appl. 415(1), 2006; with the
mean of the columns removed, Ross, Lim, Lin & Yang, Incremental learning for robust visual tracking, Int. J. Comput.
Vis. 77, 2008. Both by one SVD of the old factors stacked on what is new, which is all that is needed of the past.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from eigenscope.errors import InputError
from eigenscope.methods.bounds import lapack_bound
from eigenscope.methods.exact import DEFAULT_TOLERANCE
from eigenscope.methods.probes import check_count
from eigenscope.methods.randomized import entries_norm
from eigenscope.methods.recurrence import wide
from eigenscope.operators.arrays import Dense, as_operator
from eigenscope.results import Spectrum


class IncrementalSVD:
    """Rank-k approximation U diag(σ) Vᴴ of a growing matrix A, and a bound on its error.

    Each update cuts a part Tₛ off. While only rows (or only columns) arrive, the Tₛ have orthogonal column (row)
    spaces, so ‖A − UΣVᴴ‖_F² = Σ‖Tₛ‖_F², an equality; at each change from the one to the other the triangle inequality
    adds what was before. The same holds of the spectral norm as an upper bound.

    An update of b rows costs one SVD of a (k + b) × n matrix and 2mk² for U: bring rows in blocks of about k.

    Args:
        k: ≥ 1, values kept; fewer while the matrix has fewer rows or columns.
        centred: decompose A − 1μᵀ, μ the mean of the rows seen so far; of m rows that has m − 1 values at most.
        left: keep U, of which the memory grows with the rows; False for streams of rows only.

    Raises:
        InputError: k < 1.
    """

    def __init__(self, k: int, *, centred: bool = False, left: bool = True) -> None:
        check_count(k, "k")
        self.k, self.centred, self.keep_left = k, centred, left
        self.shape = (0, 0)
        self.mean: Tensor | None = None
        """(n,) mean of the rows where centred."""
        self._U = self._sigma = self._V = torch.empty(0)
        self._energy = self._rounding = 0.0
        self._last: Literal["rows", "columns"] | None = None
        self._settled = (0.0, 0.0)
        self._running = (0.0, 0.0)

    @property
    def error_bound(self) -> float:
        """Upper bound on ‖A − U diag(σ) Vᴴ‖_F, A centred where that was asked for; but for rounding an equality while
        only rows, or only columns, have come."""
        return self._settled[0] + self._running[0] + self._rounding

    def append_rows(self, block: Any) -> IncrementalSVD:
        """A becomes [A; block].

        Args:
            block: (b, n) tensor, ndarray or SciPy sparse matrix. Never changed.

        Raises:
            InputError: another number of columns, another kind of numbers, or entries that are not finite.
        """
        rows = self._checked(block, axis=1)
        if not len(rows):
            return self
        stacked = [self._V.mH * self._sigma.unsqueeze(1)]
        before = self.shape[0]
        if self.centred:
            mean = rows.mean(dim=0)
            stacked.append(_reflected(rows - mean)[1:])
            if before and self.mean is not None:
                # The two means differ: one more direction, w ⟂ U and ⟂ the new rows' own.
                weight = math.sqrt(before * len(rows) / (before + len(rows)))
                stacked.append(((self.mean - mean) * weight).unsqueeze(0))
                mean = self.mean + (mean - self.mean) * (len(rows) / (before + len(rows)))
            self.mean = mean
        else:
            stacked.append(rows)
        small = torch.cat(stacked)
        coefficients, V = self._decomposed(small, torch.cat(stacked[1:]), "rows")
        self._V = V
        if self.keep_left:
            self._U = self._extended(coefficients, before, len(rows))
        self.shape = (before + len(rows), self.shape[1])
        return self

    def append_cols(self, block: Any) -> IncrementalSVD:
        """A becomes [A, block].

        Args:
            block: (m, c) tensor, ndarray or SciPy sparse matrix. Never changed.

        Raises:
            InputError: as :meth:`append_rows`, and where U is not kept.
        """
        if not self.keep_left:
            raise InputError("columns need the left vectors", where="IncrementalSVD", remedy="use left=True")
        cols = self._checked(block, axis=0)
        if not cols.shape[1]:
            return self
        U = self._U
        if self.centred:
            mean = cols.mean(dim=0)
            self.mean = mean if self.mean is None else torch.cat([self.mean, mean])
            # In coordinates without the direction of the mean, so that U stays orthogonal to it.
            cols, U = _reflected(cols - mean)[1:], _reflected(U)[1:]
        small = torch.cat([self._sigma.unsqueeze(1) * U.mH, cols.mH])
        coefficients, U = self._decomposed(small, cols, "columns")
        self._U = _reflected(torch.cat([U.new_zeros(1, U.shape[1]), U])) if self.centred else U
        old = coefficients[: self._V.shape[1]]
        self._V = torch.cat([self._V @ old, coefficients[self._V.shape[1] :]])
        self.shape = (self.shape[0], self.shape[1] + block.shape[1])
        return self

    def spectrum(self, *, tol: float | None = None) -> Spectrum:
        """The triplets now. ``residuals`` is None, as A is gone; ``bounds`` is that on ‖A − U diag(σ) Vᴴ‖₂ (Weyl).

        Args:
            tol: largest bound that counts as converged, relative to σ₁; default 1e-6.

        Raises:
            InputError: nothing has come yet.
        """
        if self._last is None:
            raise InputError("nothing has come yet", where="IncrementalSVD", remedy="append rows or columns first")
        bound = min(self._settled[0] + self._running[0], self._settled[1] + self._running[1]) + self._rounding
        bounds = torch.full_like(self._sigma, bound)
        largest = float(self._sigma[:1].sum())
        return Spectrum(
            values=self._sigma, left=self._U if self.keep_left else None, right=self._V, residuals=None, bounds=bounds,
            converged=bounds <= (DEFAULT_TOLERANCE if tol is None else tol) * largest, kind="singular",
            shape=self.shape, complete=len(self._sigma) == min(self.shape), frobenius=self._energy,
            method="incremental", reason=f"rank {self.k}, updated as rows or columns came",
        )  # fmt: skip

    def _checked(self, block: Any, axis: int) -> Tensor:
        """The block in double precision, where it fits; the first one says how many rows (columns) there are."""
        operator = as_operator(block)
        size = operator.shape[axis]
        entries = operator.matrix if isinstance(operator, Dense) else operator.to_dense()
        entries = entries.to(wide(entries.dtype))
        name = ("rows", "columns")[axis]
        if self._last is None:
            check_count(size, f"{name} of the first block")
            self.shape = (size, 0) if axis == 0 else (0, size)
            empty = entries.new_empty(0)
            self._sigma = empty.to(torch.float64)
            self._U, self._V = empty.new_empty(self.shape[0], 0), empty.new_empty(self.shape[1], 0)
        elif size != self.shape[axis]:
            raise InputError(
                f"a block of {size} {name}", where="IncrementalSVD", expected=f"{self.shape[axis]}, as in the matrix"
            )
        if entries.dtype != self._V.dtype or entries.device != self._V.device:
            raise InputError(
                f"a block in {entries.dtype} on {entries.device}", where="IncrementalSVD",
                expected=f"{self._V.dtype} on {self._V.device}, as the first",
            )  # fmt: skip
        return entries

    def _decomposed(self, small: Tensor, new: Tensor, kind: Literal["rows", "columns"]) -> tuple[Tensor, Tensor]:
        """The k leading triplets of the stacked matrix: σ is kept here; coefficients and vectors are returned."""
        left, sigma, right = torch.linalg.svd(small, full_matrices=False)
        cut = sigma[self.k :]
        if self._last not in (None, kind):
            self._settled = (self._settled[0] + self._running[0], self._settled[1] + self._running[1])
            self._running = (0.0, 0.0)
        self._last = kind
        largest = float(cut[0]) if len(cut) else 0.0
        self._running = (math.hypot(self._running[0], entries_norm(cut)), math.hypot(self._running[1], largest))
        self._rounding += lapack_bound((small.shape[0], small.shape[1]), float(sigma[:1].sum()))
        self._energy = math.hypot(self._energy, entries_norm(new))
        self._sigma = sigma[: self.k]
        return left[:, : self.k], right[: self.k].mH

    def _extended(self, coefficients: Tensor, before: int, count: int) -> Tensor:
        """U for ``count`` more rows, from coefficients of the old left vectors, of the new rows, and of their means."""
        old = self._U.shape[1]
        upper = self._U @ coefficients[:old]
        if not self.centred:
            return torch.cat([upper, coefficients[old:]])
        inner = coefficients[old : old + count - 1]
        lower = _reflected(torch.cat([inner.new_zeros(1, inner.shape[1]), inner]))
        if before:
            total = before + count
            last = coefficients[-1:]
            upper = upper + last * math.sqrt(count / (before * total))
            lower = lower - last * math.sqrt(before / (count * total))
        return torch.cat([upper, lower])


def _reflected(X: Tensor) -> Tensor:
    """H X for the Householder reflection H (b, b) that exchanges the mean direction 1/√b and the first coordinate.

    Golub & Van Loan, Matrix Computations, 4th ed., §5.1.2. Its other columns are an orthonormal basis of all
    directions of mean 0.
    """
    count = len(X)
    if count < 2:
        return X
    v = torch.full((count,), 1.0 / math.sqrt(count), dtype=torch.float64, device=X.device)
    v[0] -= 1.0
    v = (v / torch.linalg.vector_norm(v)).to(X.dtype)
    return X - 2.0 * torch.outer(v, v @ X)
