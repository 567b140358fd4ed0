"""Truncated SVD of a matrix that arrives as blocks of rows and is never held: read once, or a few times.

Once: three random sketches are summed as the rows pass, and the approximation is found from them alone (Tropp,
Yurtsever, Udell & Cevher, Streaming low-rank matrix approximation with an application to scientific simulation, SIAM
J. Sci. Comput. 41(4), 2019). Several times: each pass is a step of subspace iteration with AᴴA, and the last one
measures the residuals. Memory is O((m + n)k) and one block either way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from eigenscope.errors import InputError
from eigenscope.methods.adaptive import PROBES, SAMPLED_FACTOR, SAMPLED_FAILURE, LowRankResult
from eigenscope.methods.bounds import lapack_bound
from eigenscope.methods.exact import DEFAULT_TOLERANCE
from eigenscope.methods.probes import check_count, source
from eigenscope.methods.recurrence import wide
from eigenscope.operators.arrays import Dense, as_operator
from eigenscope.results import Spectrum


@dataclass
class _Sketch:
    """Y = AΩ (m, r), X = ΥA (r, n), Z = ΦAΨ (s, s) and the error sketch W = ΘA (q, n), of the rows seen so far.

    The random maps on the side of the rows, Υ, Φ and Θ, are drawn as the rows come; Φ and Θ are kept, (s, m) and (q,
    m), since the columns of Q must be sketched with them at the end.
    """

    omega: Tensor
    psi: Tensor
    generator: torch.Generator
    X: Tensor
    Z: Tensor
    W: Tensor
    Y: list[Tensor] = field(default_factory=list)
    phi: list[Tensor] = field(default_factory=list)
    theta: list[Tensor] = field(default_factory=list)
    energies: list[float] = field(default_factory=list)

    def add(self, rows: Tensor) -> None:
        """Take in rows (b, n)."""
        count = len(rows)
        upsilon, phi, theta = (_normal(S.shape[0], count, rows, self.generator) for S in (self.X, self.Z, self.W))
        self.Y.append(rows @ self.omega)
        self.X += upsilon @ rows
        self.Z += phi @ (rows @ self.psi)
        self.W += theta @ rows
        self.phi.append(phi)
        self.theta.append(theta)
        self.energies.append(float(torch.linalg.vector_norm(rows)) ** 2)

    def triplets(self, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """The k leading ones of A ≈ Q C Pᴴ, where Q (m, r), C (r, r) and P (n, r) follow from the sketches."""
        Q = torch.linalg.qr(torch.cat(self.Y))[0]
        P = torch.linalg.qr(self.X.mH)[0]
        half = _solved(torch.cat(self.phi, dim=1) @ Q, self.Z)
        left, sigma, right = torch.linalg.svd(_solved(self.psi.mH @ P, half.mH).mH)
        return Q @ left[:, :k], sigma[:k], P @ right[:k].mH

    def error(self, left: Tensor, sigma: Tensor, right: Tensor) -> Tensor:
        """(q,) independent unbiased estimates of ‖A − U diag(σ) Vᴴ‖_F² (Tropp et al. 2019, §6)."""
        rest = self.W - ((torch.cat(self.theta, dim=1) @ left) * sigma) @ right.mH
        squares: Tensor = torch.linalg.vector_norm(rest, dim=1) ** 2
        return squares


def single_pass_svd(
    blocks: Iterable[Any],
    cols: int,
    k: int,
    *,
    sketch: int | None = None,
    tol: float | None = None,
    generator: torch.Generator | None = None,
) -> LowRankResult:
    """k leading singular triplets, approximately, of a matrix whose rows are seen once.

    With r = ``sketch`` columns and a core of s = 2r + 1, the approximation before it is cut to rank k obeys (Tropp et
    al. 2019, Theorem 5.1, real A) E‖A − Â‖_F² ≤ (s − 1)/(s − r − 1)·min_{j < r−1} (r + j − 1)/(r − j − 1)·Σ_{i > j}
    σᵢ², and the result is within twice that distance of the best approximation's error, by the triangle inequality.
    It is exact to rounding where the rank of A is at most k. Where the singular values fall slowly it is well above
    the best: then read twice.

    Args:
        blocks: tensors, ndarrays or SciPy sparse matrices of shape (b, n), any b ≥ 0, computed with in float64
            (complex128).
        cols: n.
        k: 1 ≤ k ≤ min(r, n); and k rows at least must come.
        sketch: r ≥ k, default 4k + 1, at most n.
        tol: largest bound that counts as converged, relative to σ₁; default 1e-6.
        generator: None for a fresh seed.

    Returns:
        :class:`LowRankResult` in the Frobenius norm. ``error`` is estimated from 16 probes of their own, and exceeded
        fourfold with probability 4e-7 at most. ``spectrum.residuals`` is None, as A is gone; ``bounds`` is the bound
        on the error (Weyl's inequality).

    Raises:
        InputError: a block that is not a matrix of n finite columns, no or too few rows, k or sketch out of range.
    """
    check_count(cols, "cols")
    if not 1 <= k <= cols:
        raise InputError(f"k = {k}", where="single_pass_svd", expected=f"1 ≤ k ≤ {cols}, the columns")
    size = min(4 * k + 1 if sketch is None else sketch, cols)
    if size < k:
        raise InputError(f"sketch = {sketch}", where="single_pass_svd", expected=f"sketch ≥ k = {k}")
    generator, seed = source(generator)
    reader, sums = _Reader(cols), None
    for rows in reader.rows(blocks):
        sums = _started(rows, size, generator) if sums is None else sums
        sums.add(rows)
    count = 0 if sums is None else sum(len(part) for part in sums.Y)
    if sums is None or count < k:
        raise InputError(f"{count} rows came", where="single_pass_svd", expected=f"at least k = {k}")
    left, sigma, right = sums.triplets(k)
    error = math.sqrt(float(sums.error(left, sigma, right).mean()))
    shape, scale, energy = (count, cols), reader.scale, math.sqrt(math.fsum(sums.energies))
    rounding = lapack_bound(shape, energy)
    bound = SAMPLED_FACTOR * error + rounding
    bounds = torch.full_like(sigma, bound)
    spectrum = Spectrum(
        values=sigma * scale, left=left, right=right, residuals=None, bounds=bounds * scale,
        converged=bounds <= (DEFAULT_TOLERANCE if tol is None else tol) * float(sigma[0]), kind="singular", shape=shape,
        complete=False, frobenius=energy * scale, method="single-pass",
        reason=f"one pass over the rows, sketches of {size} columns and a core of {2 * size + 1}", seed=seed,
    )  # fmt: skip
    return LowRankResult(spectrum, "frobenius", error * scale, bound * scale, SAMPLED_FAILURE)


def two_pass_svd(
    read: Callable[[], Iterable[Any]],
    cols: int,
    k: int,
    *,
    oversampling: int = 10,
    passes: int = 2,
    tol: float | None = None,
    generator: torch.Generator | None = None,
) -> LowRankResult:
    """k leading singular triplets of a matrix whose rows can be read several times.

    A pass over the rows gives AᴴA X = Σ Aᵢᴴ(Aᵢ X): all but the last are steps of subspace iteration (Halko,
    Martinsson & Tropp 2011, Algorithm 4.4), the last one projects A on the basis found, and yields the residuals too.

    Args:
        read: called once a pass; returns the same blocks (b, n) each time, as for :func:`single_pass_svd`.
        cols: n.
        k: 1 ≤ k ≤ n; and k rows at least must come.
        oversampling: p ≥ 0 columns beyond k.
        passes: ≥ 2; more make the triplets more accurate.
        tol: largest residual accepted as converged, relative to σ₁; default 1e-6.
        generator: None for a fresh seed.

    Returns:
        :class:`LowRankResult` with residuals measured; ``error`` too, and the bound is that and rounding.

    Raises:
        InputError: as in :func:`single_pass_svd`, and passes that bring different numbers of rows.
    """
    check_count(cols, "cols")
    check_count(oversampling, "oversampling", 0)
    check_count(passes, "passes", 2)
    if not 1 <= k <= cols:
        raise InputError(f"k = {k}", where="two_pass_svd", expected=f"1 ≤ k ≤ {cols}, the columns")
    generator, seed = source(generator)
    size = min(k + oversampling, cols)
    reader, seen, basis = _Reader(cols), _Pass(), torch.empty(0)
    for number in range(passes):
        count, seen = seen.count, _Pass()
        for rows in reader.rows(read()):
            if not basis.numel():
                basis = torch.linalg.qr(_normal(cols, size, rows, generator))[0]
            seen.add(rows, basis, number == passes - 1)
        if seen.count < k:
            raise InputError(f"{seen.count} rows came", where="two_pass_svd", expected=f"at least k = {k}")
        if number and seen.count != count:
            raise InputError(
                f"{count} rows came before, {seen.count} in pass {number + 1}", where="two_pass_svd",
                expected="the same blocks in each pass", remedy="let read() return a fresh iterable",
            )  # fmt: skip
        if number < passes - 1:
            basis = torch.linalg.qr(seen.back)[0]
    reason = f"{passes} passes over the rows, {size} columns; residuals and error measured in the last"
    return _projected(seen, basis, k, tol, reader.scale, reason, passes, seed)


def _projected(
    seen: _Pass, basis: Tensor, k: int, tol: float | None, scale: float, reason: str, passes: int, seed: int
) -> LowRankResult:
    """The triplets of A P for an orthonormal P (n, l), and their error, from what the last pass left."""
    tall, R = torch.linalg.qr(torch.cat(seen.images))
    left, sigma, Yh = torch.linalg.svd(R)
    shape, kept, Y = (seen.count, len(basis)), sigma[:k], Yh[:k].mH
    missing, energy = math.sqrt(math.fsum(seen.missing)), math.sqrt(math.fsum(seen.energies))
    left, right = tall @ left[:, :k], basis @ Y
    # Aᴴu − σv is the adjoint of A − APPᴴ times u: what AᴴAP says, where σ is large enough to divide by, and never more
    # than the norm of that.
    divided = seen.back @ Y / kept.clamp(min=torch.finfo(torch.float64).tiny) - right * kept
    residuals = torch.linalg.vector_norm(divided, dim=0).clamp(max=missing)
    rounding = lapack_bound(shape, energy)
    error = math.hypot(missing, float(torch.linalg.vector_norm(sigma[k:])))
    spectrum = Spectrum(
        values=kept * scale, left=left, right=right, residuals=residuals * scale,
        bounds=(residuals + rounding) * scale,
        converged=residuals <= (DEFAULT_TOLERANCE if tol is None else tol) * float(kept[0]), kind="singular",
        shape=shape, complete=k == min(shape), frobenius=energy * scale, method="two-pass", reason=reason,
        products=2 * passes * basis.shape[1], seed=seed,
    )  # fmt: skip
    return LowRankResult(spectrum, "frobenius", error * scale, (error + rounding) * scale, 0.0)


@dataclass
class _Pass:
    """What one pass gives for a basis P (n, l): AᴴAP, and in the last one AP, and the energies of A and A − APPᴴ."""

    back: Tensor = field(default_factory=lambda: torch.empty(0))
    count: int = 0
    images: list[Tensor] = field(default_factory=list)
    energies: list[float] = field(default_factory=list)
    missing: list[float] = field(default_factory=list)

    def add(self, rows: Tensor, basis: Tensor, last: bool) -> None:
        """Take in rows (b, n)."""
        image = rows @ basis
        back = rows.mH @ image
        self.back = back if not self.back.numel() else self.back + back
        self.count += len(rows)
        if last:
            self.images.append(image)
            self.energies.append(float(torch.linalg.vector_norm(rows)) ** 2)
            self.missing.append(float(torch.linalg.vector_norm(rows - image @ basis.mH)) ** 2)


class _Reader:
    """Blocks of rows in double precision, scaled by a power of two so that squares neither overflow nor vanish.

    The scale is set by the first entry that is not 0. All blocks are real, or all complex.
    """

    def __init__(self, cols: int) -> None:
        self.cols = cols
        self._exponent: int | None = None
        self._dtype: torch.dtype | None = None

    @property
    def scale(self) -> float:
        """What results are multiplied by."""
        return math.ldexp(1.0, self._exponent or 0)

    def rows(self, blocks: Iterable[Any]) -> Iterator[Tensor]:
        """Each block as a tensor (b, n) of finite entries."""
        for number, block in enumerate(blocks):
            operator = as_operator(block)
            if operator.shape[1] != self.cols:
                raise InputError(
                    f"block {number} is of shape {operator.shape}", where="rows", expected=f"(b, {self.cols})"
                )
            entries = operator.matrix if isinstance(operator, Dense) else operator.to_dense()
            entries = entries.to(wide(entries.dtype))
            if self._dtype not in (None, entries.dtype):
                raise InputError(
                    f"block {number} is {entries.dtype}", where="rows", expected=f"{self._dtype}, as the first"
                )
            self._dtype = entries.dtype
            largest = float(entries.abs().max()) if entries.numel() else 0.0
            if self._exponent is None and largest > 0.0:
                self._exponent = max(-1000, min(1000, math.frexp(largest)[1]))
            yield entries * math.ldexp(1.0, -(self._exponent or 0))


def _started(rows: Tensor, size: int, generator: torch.Generator) -> _Sketch:
    core, cols = 2 * size + 1, rows.shape[1]
    omega, psi = _normal(cols, size, rows, generator), _normal(cols, core, rows, generator)
    X, Z, W = rows.new_zeros(size, cols), rows.new_zeros(core, core), rows.new_zeros(PROBES, cols)
    return _Sketch(omega, psi, generator, X, Z, W)


def _normal(rows: int, cols: int, like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(rows, cols, dtype=like.dtype, device=generator.device, generator=generator)
    return drawn.to(like.device)


def _solved(M: Tensor, right: Tensor) -> Tensor:
    """Least squares solution of M X = right for a tall Gaussian times an orthonormal matrix, well conditioned."""
    Q, R = torch.linalg.qr(M)
    solution: Tensor = torch.linalg.solve_triangular(R, Q.mH @ right, upper=True)
    return solution
