"""Leading singular triplets and eigenpairs of any operator by a restarted block Krylov method.

Block Golub-Kahan for singular triplets, block Lanczos for symmetric maps (``recurrence.py``), one driver for both:
expand the basis until the wanted Ritz pairs have small residuals; when it is full, restart from the best Ritz
vectors (thick restart: Wu & Simon, SIAM J. Matrix Anal. Appl. 22(2), 2000; Baglama & Reichel, SIAM J. Sci. Comput.
27(1), 2005). The residuals in a result are measured afterwards, by k (2k for triplets) further products; of eigenpairs of an
operator whose products are dear, by those with the basis, where 256 MiB hold them.

*Multiplicities.* A block of b random vectors meets at most b vectors of any eigenspace. With b ≥ k nothing can be
missed but by an unlucky draw; otherwise, where b or more equal values lie above the last wanted one, the converged
pairs are locked and b fresh random directions, orthogonal to them, are iterated on. If a value above the last one
appears, the search goes on with it; the number of steps is that after which a missed copy would have appeared, by
the growth of Chebyshev polynomials (Saad, Numerical Methods for Large Eigenvalue Problems, 2nd ed., §6.6), within
limits. Where products are dear and that would take more than a quarter of the steps made before, the iteration goes on for
that quarter instead, at least three steps: a copy may be missed, a simple value that the start had little of is not.

*Smallest values.* The same iteration, keeping the other end. It is slow where the small values lie close together in
units of σ₁, as they mostly do, and it finds left vectors of a zero value only where min(m, n) ≤ 500; what has not
converged is flagged. A matrix in memory wants an exact method instead.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from eigenscope.errors import ConvergenceWarning, InputError
from eigenscope.methods.ends import eigenpairs as single_vector
from eigenscope.methods.krylov_search import SCORES, Found, Score, Search, Task
from eigenscope.methods.probes import source
from eigenscope.methods.randomized import entries_norm
from eigenscope.methods.recurrence import GolubKahan, Lanczos, Products, Recurrence, wide
from eigenscope.operators.arrays import Dense, LowRank, Sparse
from eigenscope.operators.base import LinearOperator
from eigenscope.operators.loss_operator import LossOperator
from eigenscope.results import Spectrum

DEFAULT_TOLERANCE = 1e-6
SMALL = 500
"""Basis for the smallest singular values: at least this large, so that a small matrix is decomposed completely."""
NARROW_LIMIT = 1e-4
"""Tolerances below it have the residuals of a float32 matrix measured by float64 products."""


def singular_triplets(
    A: LinearOperator,
    k: int,
    *,
    which: Literal["largest", "smallest"] = "largest",
    tol: float = DEFAULT_TOLERANCE,
    block: int | None = None,
    max_products: int | None = None,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Spectrum:
    """k singular triplets from one end of the spectrum.

    Args:
        A: (m, n) operator on any device. Its products are computed in its own dtype.
        k: 1 ≤ k ≤ min(m, n).
        which: "largest" or "smallest"; the latter is slow, see above.
        tol: residual at which a triplet is converged, relative to σ₁. Below the rounding of A's products nothing
            converges, and the flags say so.
        block: vectors multiplied at a time; None for a wide block where products are cheap (a matrix in memory)
            and 1 elsewhere.
        max_products: columns to multiply by A and Aᴴ before giving up; measuring the result is not cut short.
            None for 1000 steps and more for a large k.
        start: (n, s) real or complex vectors near the wanted right singular vectors; the block is then of their rank.
        generator: on the CPU; None for a fresh seed. ``seed`` of the result says which.

    Returns:
        :class:`Spectrum` of k triplets, values descending, in double precision; never fewer, those that did not
        converge are flagged and a :class:`ConvergenceWarning` says what to do. ``bounds`` are the residuals and
        the rounding of the products by which they were measured.

    Raises:
        InputError: k, tol, block, max_products, which or start out of range, or a product that is not finite.
    """
    _check(A, k, tol, block, max_products, start)
    if which not in ("largest", "smallest"):
        raise InputError(f"unknown which={which!r}", expected="largest or smallest")
    flipped = A.shape[0] < A.shape[1]
    inner = A.T if flipped else A
    if flipped and start is not None:
        start = A @ start.to(A.dtype)
    ends = ((SCORES["LA" if which == "largest" else "SA"], k),)
    run = Run(inner, GolubKahan, ends, k, tol, block, max_products, generator, which == "smallest")
    result = run.result(start)
    if flipped:
        result = replace(result, left=result.right, right=result.left, shape=A.shape)
    return run.told(result)


def eigenpairs(
    A: LinearOperator,
    k: int,
    *,
    which: Literal["LA", "SA", "LM", "both"] = "LA",
    tol: float = DEFAULT_TOLERANCE,
    block: int | None = None,
    max_products: int | None = None,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Spectrum:
    """k eigenpairs of a symmetric (Hermitian) operator.

    Args:
        A: (n, n) symmetric operator.
        k: 1 ≤ k ≤ n.
        which: "LA" largest, "SA" smallest, "LM" largest in magnitude, "both": ⌈k/2⌉ largest and ⌊k/2⌋ smallest.
        tol: residual at which a pair is converged, relative to max |λ|.
        block, max_products, start, generator: as in :func:`singular_triplets`.

    Returns:
        :class:`Spectrum` as in :func:`singular_triplets`.

    Raises:
        InputError: A is not symmetric, or as in :func:`singular_triplets`.
    """
    if not A.symmetric:
        raise InputError("the operator is not said to be symmetric", where=repr(A), remedy="use singular_triplets")
    _check(A, k, tol, block, max_products, start)
    if isinstance(A, LossOperator) and which in ("LA", "SA", "both") and block is None and start is None:
        return single_vector(A, k, which, tol=tol, max_products=max_products, generator=generator)
    if which == "both":
        ends = tuple((SCORES[end], count) for end, count in (("LA", k - k // 2), ("SA", k // 2)) if count)
    elif which in SCORES:
        ends = ((SCORES[which], k),)
    else:
        raise InputError(f"unknown which={which!r}", expected="LA, SA, LM or both")
    run = Run(A, Lanczos, ends, k, tol, block, max_products, generator)
    return run.told(run.result(start))


def is_cheap(A: LinearOperator) -> bool:
    """Whether a product with a block costs little more than with a vector: matrices in memory, and what is made of them."""
    if isinstance(A, Dense | Sparse | LowRank):
        return True
    parts = [part for part in vars(A).values() if isinstance(part, LinearOperator)]
    return bool(parts) and all(is_cheap(part) for part in parts)


def seconds(A: LinearOperator, k: int, tol: float, sides: int = 2) -> float:
    """Rough time of k triplets (``sides=2``) or eigenpairs (1) of a dense matrix on one CPU core, for comparisons.

    A flat spectrum is assumed, as that of weights is. The number of columns multiplied is a fit to Gaussian matrices from
    384² to 2048².
    """
    rows, cols = A.shape
    width = _default_width(k, cheap=True)
    digits = -math.log10(min(0.1, max(tol, 1e-15)))
    columns = max(3.0 * k, 1.8 * math.pow(k, 0.4) * math.sqrt(min(rows, cols)) * (digits - 0.75))
    slower = (4.0 if A.dtype.is_complex else 1.0) * (2.0 if A.dtype == wide(A.dtype) else 1.0)
    operations = 2.0 * rows * cols + 8.0 * (rows + cols) * _capacity(k, width)
    return slower * columns * operations * sides / 2.0 / 45e9 + 1e-3 * columns / width


def _default_width(k: int, cheap: bool) -> int:
    # For a matrix in memory: narrower blocks need fewer columns, wider ones are multiplied faster.
    return (32 if k > 64 else 16 if k > 8 else 8) if cheap else 1


def _capacity(k: int, width: int) -> int:
    return max(k + max(k, 4 * width), 40) + width


class Run:
    """A search and the measurement of what it found."""

    def __init__(
        self, A: LinearOperator, kind: type[Recurrence], ends: tuple[tuple[Score, int], ...], k: int, tol: float,
        block: int | None, max_products: int | None, generator: torch.Generator | None, smallest: bool = False,
    ) -> None:  # fmt: skip
        self.A, self.kind, self.ends, self.k, self.tol = A, kind, ends, k, tol
        self.block, self.max_products, self.smallest = block, max_products, smallest
        self.source, self.seed = source(generator)

    def result(self, start: Tensor | None) -> Spectrum:
        """Search and measure; a float32 matrix again in double precision where its rounding was in the way."""
        first = self._searched(start)
        if bool(first.converged.all()) or self.max_products is not None or self.A.dtype == wide(self.A.dtype):
            return first
        if not isinstance(self.A, Dense) or self.A.device.type == "mps":
            return first
        self.A = Dense(self.A.matrix.to(wide(self.A.dtype)), symmetric=self.A.symmetric)
        second = self._searched(first.right)
        return replace(second, products=first.products + second.products)

    def _searched(self, start: Tensor | None) -> Spectrum:
        cheap, n, k = is_cheap(self.A), self.A.shape[1], self.k
        start = None if start is None else start.reshape(n, -1).to(self.A.dtype)
        width = self.block or _default_width(k, cheap)
        self.width = min(n, width if start is None else max(width, start.shape[1]))
        capacity = min(n, max(_capacity(k, self.width), SMALL if self.smallest else 0))
        budget = math.inf if self.max_products is None else self.max_products
        task = Task(k, self.ends, self.tol, self.smallest, self.width, capacity, budget, start, cheap)
        self.products = Products(self.A)
        return self.measured(Search(self.products, self.kind, task, self.source).run())

    def measured(self, found: Found) -> Spectrum:
        """The pairs found, orthonormal, with residuals from products: k of them for eigenpairs, 2k for triplets."""
        self.products.double = self.tol < NARROW_LIMIT
        return self._triplets(found) if self.kind is GolubKahan else self._pairs(found)

    def _triplets(self, found: Found) -> Spectrum:
        """Two-sided Rayleigh-Ritz with the vectors found, B = Uᴴ A V, and both residuals of every triplet."""
        left = self._completed(found.left, self.A.shape[0], found.basis)
        right = self._completed(found.right, self.A.shape[1], found.right)
        W, Z = self.products.forward(right), self.products.backward(left)
        P, values, Q = torch.linalg.svd(left.mH @ W.to(left.dtype))
        Q = Q.mH
        left, right = left @ P, right @ Q
        residuals = torch.maximum(
            torch.linalg.vector_norm(W.to(Q.dtype) @ Q - left * values, dim=0),
            torch.linalg.vector_norm(Z.to(P.dtype) @ P - right * values, dim=0),
        )
        return self._result(values, left, right, residuals, found, "block Golub-Kahan")

    def _pairs(self, found: Found) -> Spectrum:
        """Rayleigh-Ritz with the vectors found, and the residual of every pair."""
        vectors = self._completed(found.right, self.A.shape[1], found.right)
        if found.multiplied is not None and found.multiplied.shape[1] == self.k:
            # What has been multiplied is not multiplied again: A(VY) = (AV)Y.
            mixed = vectors.mH @ found.right.to(vectors.dtype)
            W = torch.linalg.solve(mixed, found.multiplied.to(vectors.dtype), left=False)
        else:
            W = self.products.forward(vectors).to(vectors.dtype)
        H = vectors.mH @ W
        values, Y = torch.linalg.eigh((H + H.mH) / 2)
        values, Y = values.flip(0), Y.flip(1)
        vectors = vectors @ Y
        residuals = torch.linalg.vector_norm(W @ Y - vectors * values, dim=0)
        return self._result(values, None, vectors, residuals, found, "block Lanczos")

    def _completed(self, found: Tensor | None, length: int, beside: Tensor | None) -> Tensor:
        """(length, k) orthonormal: what was found, and random directions orthogonal to it and to ``beside``."""
        dtype = self.A.dtype if self.A.device.type == "mps" else wide(self.A.dtype)  # which has no double precision
        empty = torch.empty(length, 0, dtype=dtype, device=self.A.device)
        vectors, others = (empty if block is None else block.to(dtype) for block in (found, beside))
        missing = self.k - vectors.shape[1]
        if missing:
            more = torch.randn(length, missing, generator=self.source, dtype=wide(dtype)).to(dtype).to(self.A.device)
            for _ in range(2):
                more = more - others @ (others.mH @ more)
            vectors = torch.cat([vectors, more / torch.linalg.vector_norm(more, dim=0)], dim=1)
        basis: Tensor = torch.linalg.qr(vectors)[0]
        return basis

    def _result(
        self, values: Tensor, left: Tensor | None, right: Tensor, residuals: Tensor, found: Found, what: str
    ) -> Spectrum:
        values, residuals = values.cpu().to(torch.float64), residuals.cpu().to(torch.float64)
        norm = max(found.norm, float(values.abs().max()))
        exact = isinstance(self.A, Dense) and self.products.double
        eps = torch.finfo(wide(self.A.dtype) if exact else self.A.dtype).eps
        scale = self.products.scale
        self.norm = norm * scale
        reason = f"{what}, {self.width} {'vector' if self.width == 1 else 'vectors'} at a time"
        if found.unchecked:
            reason += "; the search for missed copies of a value was not finished"
        self.unchecked = found.unchecked
        return Spectrum(
            values=values * scale, left=left, right=right, residuals=residuals * scale,
            bounds=(residuals + max(self.A.shape) * eps * norm) * scale, converged=residuals <= self.tol * norm,
            kind="eigen" if left is None else "singular", shape=self.A.shape, complete=self.k == min(self.A.shape),
            frobenius=_frobenius(self.A), method="krylov", reason=reason, products=self.products.count, seed=self.seed,
        )  # fmt: skip

    def told(self, result: Spectrum) -> Spectrum:
        """The result; a warning where some of it did not converge, or may be missing."""
        failed = int((~result.converged).sum())
        if self.unchecked and not failed:
            warnings.warn(
                f"the {self.k} pairs converged, but the search for missed copies of a multiple value was not finished;"
                " raise max_products or block", ConvergenceWarning, stacklevel=3,
            )  # fmt: skip
        if failed and result.residuals is not None:
            eps = torch.finfo(self.A.dtype).eps
            remedy = "raise max_products or tol" if self.max_products is not None else "raise tol"
            if self.tol < 16.0 * eps:
                remedy = f"ask for no less than the rounding of {self.A.dtype} products allows"
            warnings.warn(
                f"{failed} of {self.k} pairs have residuals above {self.tol:g}·‖A‖, the largest"
                f" {float(result.residuals.max()) / self.norm:.1e}; {remedy}",
                ConvergenceWarning,
                stacklevel=3,
            )
        return result


def _frobenius(A: LinearOperator) -> float | None:
    return entries_norm(A.matrix) if isinstance(A, Dense) else None


def _check(
    A: LinearOperator, k: int, tol: float, block: int | None, max_products: int | None, start: Tensor | None
) -> None:
    where = repr(A)
    if not 1 <= k <= min(A.shape):
        raise InputError(f"k = {k}", where=where, expected=f"1 ≤ k ≤ {min(A.shape)}")
    if not tol >= 0.0:
        raise InputError(f"tol = {tol}", where=where, expected="a tolerance ≥ 0, relative to ‖A‖₂")
    for name, number in (("block", block), ("max_products", max_products)):
        if number is not None and number < 1:
            raise InputError(f"{name} = {number}", where=where, expected="1 or more")
    if start is None:
        return
    if start.ndim not in (1, 2) or start.shape[0] != A.shape[1] or start.numel() == 0:
        raise InputError(
            f"start has shape {tuple(start.shape)}", where=where, expected=f"({A.shape[1]},) or ({A.shape[1]}, s)"
        )
    if start.device != A.device or (start.is_complex() and not A.dtype.is_complex):
        raise InputError(
            f"start is {start.dtype} on {start.device}", where=where, expected=f"as {A.dtype} on {A.device}"
        )
    if not bool(start.isfinite().all()):
        raise InputError("start holds NaN or an infinity", where=where)
