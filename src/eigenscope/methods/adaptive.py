"""The smallest truncated SVD that meets an error asked for, with a bound on the error that it has.

The basis Q grows by blocks of random directions, each turned towards what A − QQᴴA holds most of, until that is small
enough (Martinsson & Voronin, SIAM J. Sci. Comput. 38(5), 2016; Yu, Gu & Li, SIAM J. Matrix Anal. Appl. 39(3), 2018).
A block that continued a Krylov space would cost half of the products, but at the end, where it adds next to nothing,
it is mostly rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from eigenscope.errors import InputError
from eigenscope.methods.probes import check_count, gaussian, source
from eigenscope.methods.randomized import known_frobenius, sketched, swapped, triplets
from eigenscope.methods.recurrence import Products, orthonormalise, wide
from eigenscope.operators.arrays import as_operator
from eigenscope.operators.base import LinearOperator
from eigenscope.results import Spectrum

POWER = 1
"""Applications of AᴴA to each block before it joins the basis."""
SLACK, REFINEMENTS = 2, 2
"""How far above the least possible rank the result may lie, and how often the basis is then improved."""
PROBES = 16
SAMPLED_FACTOR = 4.0
SAMPLED_FAILURE = (math.exp(1.0 - SAMPLED_FACTOR**-2) / SAMPLED_FACTOR**2) ** (PROBES / 2)
"""4e-7: chance that the Frobenius norm exceeds four times its root mean square over the probes."""
NORM_ALPHA = 4.0
NORM_POWER = 7
NORM_FAILURE = NORM_ALPHA**-PROBES
"""2e-10: chance that the spectral norm exceeds its bound."""


@dataclass(frozen=True)
class LowRankResult:
    """A low-rank approximation, its triplets, and its error ‖A − U diag(σ) Vᴴ‖, absolute.

    Attributes:
        spectrum: the triplets.
        norm: which norm the error is in.
        error: the error as far as known; what it may be at most is ``bound``.
        bound: the error is at most this…
        failure: …but for this probability; 0.0 where nothing was sampled.
        least_rank: no approximation of lower rank than this has an error within the target (in the spectral norm,
            relative to ‖A‖₂ as found); 0 where nothing tells.
        met: whether ``bound`` is within the target; None where there was none.
    """

    spectrum: Spectrum
    norm: Literal["frobenius", "spectral"]
    error: float
    bound: float
    failure: float
    least_rank: int = 0
    met: bool | None = None


@dataclass
class _Basis:
    """Q (m, l) orthonormal, B = AᴴQ (n, l), and the energy of B; all in units of ``products.scale``."""

    products: Products
    block: int
    capacity: int
    generator: torch.Generator
    Q: Tensor
    B: Tensor
    energies: list[float] = field(default_factory=list)

    @classmethod
    def empty(cls, products: Products, block: int, capacity: int, generator: torch.Generator) -> _Basis:
        """Without columns."""
        A = products.A
        none = torch.empty(0, dtype=A.dtype, device=A.device)
        return cls(products, block, capacity, generator, none.new_empty(A.shape[0], 0), none.new_empty(A.shape[1], 0))

    def grow(self) -> bool:
        """Add up to a block of columns; False where the basis is full or holds the range of A to rounding."""
        room = min(self.block, self.capacity - self.Q.shape[1])
        new = self._orthogonal(gaussian(self.products.A, room, self.generator), room)
        for _ in range(POWER):
            # Columns orthogonal to Q: their products with Aᴴ are those with the adjoint of A − QB.
            new = self._orthogonal(torch.linalg.qr(self.products.backward(new))[0], room)
        if not new.shape[1]:
            return False
        last = self.products.backward(new)
        self.Q, self.B = torch.cat([self.Q, new], dim=1), torch.cat([self.B, last], dim=1)
        self.energies.append(float(torch.linalg.vector_norm(last, dtype=wide(last.dtype))) ** 2)
        return self.Q.shape[1] < self.capacity

    def refine(self) -> None:
        """Apply AAᴴ to the whole basis: the same columns, closer to the leading singular vectors."""
        image = self.products.forward(torch.linalg.qr(self.B)[0])
        sizes = torch.linalg.vector_norm(image, dim=0)
        floor = 8.0 * math.sqrt(image.shape[0]) * torch.finfo(image.dtype).eps * float(sizes.max())
        self.Q = orthonormalise(image, image[:, :0], floor, self.capacity)[0]
        self.B = self.products.backward(self.Q)
        self.energies = [float(torch.linalg.vector_norm(self.B, dtype=wide(self.B.dtype))) ** 2]

    def _orthogonal(self, start: Tensor, room: int) -> Tensor:
        image = self.products.forward(start)
        sizes = torch.linalg.vector_norm(image, dim=0)
        # Rounding that is kept as a direction would fill the basis with what is not in the range of A.
        floor = (
            8.0 * math.sqrt(image.shape[0]) * torch.finfo(image.dtype).eps * (float(sizes.max()) if len(sizes) else 0.0)
        )
        return orthonormalise(image, self.Q, floor, room)[0]

    def rounding(self) -> float:
        """What the products, in A's precision, and the SVD of B, in double, may add to an error, relative to ‖A‖.

        √m·eps for inner products (Higham & Mary 2019), fourfold, and l·eps for the SVD (LAPACK Users' Guide, §4.9.1).
        """
        eps = torch.finfo(self.Q.dtype).eps
        return 4.0 * math.sqrt(max(self.products.A.shape)) * eps + self.Q.shape[1] * torch.finfo(torch.float64).eps

    def leading(self, rank: int) -> Tensor:
        """(m, r) the leading left singular vectors of QBᴴ."""
        coefficients = torch.linalg.svd(torch.linalg.qr(self.B)[1])[2][:rank].mH
        leading: Tensor = self.Q @ coefficients
        return leading

    def complement(self, X: Tensor, Q: Tensor | None = None) -> Tensor:
        """X − QQᴴX, for the basis or other orthonormal columns."""
        Q = self.Q if Q is None else Q
        for _ in range(2):
            X = X - Q @ (Q.mH @ X)
        return X


@dataclass(frozen=True)
class _Rest:
    """‖A − QQᴴA‖ in units of the scale: estimate, bound, chance that the bound fails, and what rounding adds."""

    error: float
    bound: float
    failure: float
    rounding: float


def adaptive_svd(
    A: Any,
    *,
    error: float,
    norm: Literal["frobenius", "spectral"] = "frobenius",
    block: int = 32,
    max_rank: int | None = None,
    frobenius: float | None = None,
    tol: float | None = None,
    generator: torch.Generator | None = None,
) -> LowRankResult:
    """Truncated SVD of the smallest rank found whose error is at most ``error``·‖A‖.

    *Frobenius*: ‖A − QQᴴA‖_F² = ‖A‖_F² − ‖QᴴA‖_F², exact but for rounding (Yu, Gu & Li, SIAM J. Matrix Anal. Appl.
    39(3), 2018, Theorem 3: worthless below √eps·‖A‖_F). Where rounding may hide the difference, it is sampled: for E
    = A − QQᴴA and q Gaussian probes, ‖E‖_F² ≤ t·mean ‖Eωᵢ‖² but for probability (e^(1−1/t)/t)^(q/2) (Tropp,
    Yurtsever, Udell & Cevher, SIAM J. Sci. Comput. 41(4), 2019, §6).
    *Spectral*: Halko, Martinsson & Tropp 2011, eq. 4.3, ‖E‖₂ ≤ α√(2/π)·max ‖Eωᵢ‖ but for probability α^−q, applied to
    (EEᴴ)⁷E, whose norm is ‖E‖₂¹⁵: the root leaves little of the factor (Dixon, SIAM J. Numer. Anal. 20(4), 1983).

    The rank is then cut as far as the error allows. The spectral bound is some 1.15 times the norm, and keeps that much
    more. For ranks far below min(m, n): where the values fall slowly, ``svd`` of the whole matrix is faster.

    Args:
        A: (m, n) operator, tensor, ndarray or SciPy sparse matrix. Never changed.
        error: 0 < error < 1, relative to ‖A‖_F or ‖A‖₂; the latter as found, which is never too large.
        norm: "frobenius" or "spectral".
        block: columns by which the basis grows.
        max_rank: largest rank to return; None for min(m, n).
        frobenius: ‖A‖_F of an operator that is neither dense, sparse nor low-rank, for the Frobenius norm.
        tol: largest residual that counts as converged, relative to σ₁; default 1e-6.
        generator: None for a fresh seed.

    Returns:
        :class:`LowRankResult`; ``met`` is False where ``max_rank`` or the rounding of A's products left more.

    Raises:
        InputError: an argument out of range, ‖A‖_F needed and not known, entries or products not finite.
    """
    operator = as_operator(A)
    limit = min(operator.shape)
    _check(limit, error, norm, block, max_rank)
    total = _total(operator, norm, frobenius)
    generator, seed = source(generator)
    flipped = operator.shape[0] < operator.shape[1]
    products = Products(operator.T if flipped else operator)
    basis = _Basis.empty(products, block, limit if max_rank is None else min(limit, max_rank + 2 * block), generator)
    judge = _Spectral(basis) if norm == "spectral" else _Frobenius(basis, total or 0.0)
    found = _searched(basis, judge, error, limit if max_rank is None else max_rank)
    spectrum = triplets(products, basis.Q, basis.B, found.rank, tol)
    scale, rest = products.scale, found.rest
    bound = (math.hypot(rest.bound, found.tail) + rest.rounding) * scale
    estimate = (max(rest.error, found.tail) if norm == "spectral" else math.hypot(rest.error, found.tail)) * scale
    target = found.target * scale
    reason = f"rank {found.rank} of at least {found.least} for an error of {error:g} relative to the {norm} norm"
    if not bound <= target:
        reason += f", not met: at most {bound:.3g} where {target:.3g} was asked for"
    spectrum = swapped(spectrum) if flipped else spectrum
    spectrum = replace(spectrum, method="adaptive", reason=reason, frobenius=total, seed=seed)
    return LowRankResult(spectrum, norm, estimate, bound, rest.failure * found.checks, found.least, bound <= target)


@dataclass(frozen=True)
class _Found:
    """Where the search ended: the rank, the least possible one, what cutting to it leaves out, and what Q does."""

    rank: int
    least: int
    tail: float
    rest: _Rest
    target: float
    checks: int


def _searched(basis: _Basis, judge: _Frobenius | _Spectral, error: float, most: int) -> _Found:
    """Grow until the error is met and the rank is near the least possible."""
    full, improved, extra, checks = False, False, 0, 0
    while True:
        if not (full or improved):
            full = not basis.grow()
        target = error * judge.norm()
        if not (full or improved) and judge.hopeless(target):
            continue
        rest = judge.rest()
        checks += rest.failure > 0.0
        if not full and rest.bound + rest.rounding > target:
            improved = False
            continue
        tails = judge.tails(_values(basis.B))
        meets = torch.nonzero(tails.square() + rest.bound**2 <= max(target - rest.rounding, 0.0) ** 2)
        rank = int(meets[0]) if len(meets) else len(tails) - 1
        least = int((tails > target + rest.rounding).sum())
        if rank - least <= SLACK + rank // 50 or extra == REFINEMENTS:
            rank = min(rank, most)
            found = _Found(rank, least, float(tails[rank]), rest, target, max(checks, 1))
            return judge.narrowed(found)
        basis.refine()
        improved, extra = True, extra + 1


def _values(B: Tensor) -> Tensor:
    """(l,) singular values of B (n, l), descending, float64 on the CPU."""
    found: Tensor = torch.linalg.svdvals(torch.linalg.qr(B)[1].to(wide(B.dtype))).cpu()
    return found


class _Frobenius:
    """‖A − QQᴴA‖_F, by Pythagoras while that has digits, by probes after."""

    def __init__(self, basis: _Basis, total: float) -> None:
        self.basis, self.unscaled = basis, total
        self.images: Tensor | None = None

    def norm(self) -> float:
        return self.unscaled / self.basis.products.scale

    def _left(self) -> tuple[float, float]:
        total = self.norm()
        return total**2 - math.fsum(self.basis.energies), self.basis.rounding() * total**2

    def hopeless(self, target: float) -> bool:
        left, floor = self._left()
        return left - floor > target**2

    def rest(self) -> _Rest:
        left, floor = self._left()
        if left > 10.0 * floor:
            return _Rest(math.sqrt(left), math.sqrt(left + floor), 0.0, self.basis.rounding() * self.norm())
        if self.images is None:
            products = self.basis.products
            self.images = products.forward(gaussian(products.A, PROBES, self.basis.generator))
        rest = self.basis.complement(self.images)
        size = float(torch.linalg.vector_norm(rest)) / math.sqrt(PROBES)
        return _Rest(size, SAMPLED_FACTOR * size, SAMPLED_FAILURE, self.basis.rounding() * self.norm())

    def tails(self, values: Tensor) -> Tensor:
        """(l + 1,) error of cutting B to 0, 1, … l values."""
        squares = torch.cat([values.square().flip(0).cumsum(0).flip(0), values.new_zeros(1)])
        return squares.sqrt()

    def narrowed(self, found: _Found) -> _Found:
        """Nothing to gain: by Pythagoras the bound was exact."""
        return found


class _Spectral:
    """‖A − QQᴴA‖₂ by the power method with a probability bound."""

    def __init__(self, basis: _Basis) -> None:
        self.basis = basis
        products = basis.products
        found = sketched(products, min(8, *products.A.shape), 8, True, basis.generator)[1]
        self.largest = float(_values(found)[0])

    def norm(self) -> float:
        """‖A‖₂ from below, by block Krylov iteration."""
        return self.largest

    def hopeless(self, target: float) -> bool:
        """Whether the last block was still so large that what remains cannot be small enough."""
        last = self.basis.B[:, -self.basis.block :]
        return float(_values(last)[:1].sum()) > target

    def rest(self, Q: Tensor | None = None) -> _Rest:
        basis, products = self.basis, self.basis.products
        X = gaussian(products.A, PROBES, basis.generator)
        logs = torch.zeros(PROBES, dtype=torch.float64, device=X.device)
        sizes = logs
        for step in range(2 * NORM_POWER + 1):
            X = basis.complement(products.forward(X), Q) if step % 2 == 0 else products.backward(X)
            sizes = torch.linalg.vector_norm(X, dim=0).to(torch.float64)
            logs = logs + sizes.log()
            X = X / sizes.clamp(min=torch.finfo(X.dtype).tiny).to(X.dtype)
        exponent = 1.0 / (2 * NORM_POWER + 1)
        bound = math.exp((float(logs.max()) + math.log(NORM_ALPHA * math.sqrt(2.0 / math.pi))) * exponent)
        return _Rest(float(sizes.max()), bound, NORM_FAILURE, self.basis.rounding() * self.norm())

    def narrowed(self, found: _Found) -> _Found:
        """A lower rank where the norm of A less that many triplets certifies it, and not a sum of two bounds."""
        low, checks = found.least, found.checks
        while found.rank - low > SLACK + found.rank // 50:
            rank = (low + found.rank) // 2
            rest = self.rest(self.basis.leading(rank))
            checks += 1
            if rest.bound + rest.rounding <= found.target:
                found = replace(found, rank=rank, rest=rest, tail=0.0)
            else:
                low = rank + 1
        return replace(found, checks=checks)

    def tails(self, values: Tensor) -> Tensor:
        """(l + 1,) error of cutting B to 0, 1, … l values."""
        return torch.cat([values, values.new_zeros(1)])


def _total(A: LinearOperator, norm: str, frobenius: float | None) -> float | None:
    total = known_frobenius(A) if frobenius is None else frobenius
    if norm == "frobenius" and total is None:
        remedy = "pass frobenius=, or use norm='spectral'"
        raise InputError("its Frobenius norm is not known", where=repr(A), remedy=remedy)
    return total


def _check(limit: int, error: float, norm: str, block: int, max_rank: int | None) -> None:
    if norm not in ("frobenius", "spectral"):
        raise InputError(f"unknown norm {norm!r}", expected="frobenius or spectral")
    if not 0.0 < error < 1.0:
        raise InputError(f"error = {error}", expected="0 < error < 1, relative to the norm of A")
    check_count(limit, "min(m, n)")
    check_count(block, "block")
    if max_rank is not None:
        check_count(max_rank, "max_rank")
