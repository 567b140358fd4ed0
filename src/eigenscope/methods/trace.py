"""Trace and diagonal of a square map from products, each with its standard error.

Girard 1989 and Hutchinson 1989 average xᴴAx over random x; Hutch++ (Meyer, Musco, Musco & Woodruff, SOSA 2021) first
takes out the range of a sketch, where the trace is exact; XTrace and XDiag (Epperly, Tropp & Webber, SIAM J. Matrix
Anal. Appl. 45(1), 2024) let every test vector serve both ends by leaving out one at a time. All are unbiased, for maps
that are not symmetric too. Of a complex trace the real part is estimated.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from eigenscope.errors import InputError
from eigenscope.methods.probes import check_count, signs, source, sphere
from eigenscope.methods.sketch import Sketch, inner, mean, multiply
from eigenscope.operators.arrays import as_operator
from eigenscope.operators.base import LinearOperator
from eigenscope.results import DiagonalEstimate, Estimate

METHODS = ("auto", "xtrace", "hutchinson", "exact")
FIRST = 32
"""Products of the first round where a tolerance is asked for; each round doubles the sum of them."""
BLOCK = 64
"""Columns multiplied at once where only their sum is kept."""
MEMORY = 2**31
"""Bytes of the four (n, k) blocks of a sketch beyond which ``auto`` goes on without extending it."""


def hutchinson(A: Any, samples: int = 100, *, generator: torch.Generator | None = None) -> Estimate:
    """Mean of xᴴAx over vectors x of random signs (complex: phases); one product a sample.

    The variance of one sample of a real map is 2(‖S‖_F² − Σ sᵢᵢ²), S = (A + Aᵀ)/2: none where A is diagonal
    (Hutchinson, Commun. Statist. Simul. 18(3), 1989).

    Args:
        A: (n, n) tensor, ndarray, SciPy sparse matrix or operator, symmetric or not. Never changed.
        samples: how many vectors; the standard error of a single one is infinite.
        generator: source of randomness; None draws a fresh seed.

    Raises:
        InputError: A is not square, fewer than one sample, or a product with NaN or infinity.
    """
    operator = _square(A)
    check_count(samples, "samples")
    return mean(_sampled(operator, samples, source(generator)[0]), samples)


def hutchpp(A: Any, products: int = 100, *, generator: torch.Generator | None = None) -> Estimate:
    """Hutch++: a third of the products finds the range Q of A, a third the trace on it, a third samples the rest.

    tr A = tr(QᴴAQ) + tr((I − QQᴴ)A(I − QQᴴ)), the second by Hutchinson's mean (Meyer, Musco, Musco & Woodruff, SOSA
    2021, Algorithm 1). The standard error is that of the second part.

    Args:
        A: as in :func:`hutchinson`.
        products: columns to multiply, at least 3; what three does not divide goes to the samples.
        generator: source of randomness; None draws a fresh seed.

    Raises:
        InputError: A is not square, too few products, or a product with NaN or infinity.
    """
    operator = _square(A)
    check_count(products, "products", 3)
    generator, _ = source(generator)
    rank = min(products // 3, operator.shape[0])
    basis = torch.linalg.qr(multiply(operator, signs(operator, rank, generator)))[0]
    captured = float(inner(basis, multiply(operator, basis)).sum())
    if rank == operator.shape[0]:
        return Estimate(captured, 0.0, rank, 2 * rank)
    return mean(_sampled(operator, products - 2 * rank, generator, basis), products, captured)


def xtrace(
    A: Any, products: int = 100, *, normalized: bool = True, generator: torch.Generator | None = None
) -> Estimate:
    """XTrace: mean over test vectors ωᵢ of tr(QᵢᴴAQᵢ) + uᵢᴴAuᵢ, Qᵢ a basis of the range of A on all the others.

    Epperly, Tropp & Webber, SIAM J. Matrix Anal. Appl. 45(1), 2024, §1.2 and §2. uᵢ is ωᵢ less its part in Qᵢ;
    normalised, it has the norm √(n − k + 1) that it would have in the mean, and so adds the variance of a direction
    but not that of a length. The standard error is √2 times that of k independent terms, which they are not: in
    simulations (oracles/quadrature.py traces) the true error was 0.7 to 1.0 times the stated one.

    Args:
        A: as in :func:`hutchinson`.
        products: columns to multiply, at least 4; half of them are test vectors, n at most.
        normalized: scale the residual vectors.
        generator: source of randomness; None draws a fresh seed.

    Raises:
        InputError: A is not square, too few products, or a product with NaN or infinity.
    """
    operator = _square(A)
    check_count(products, "products", 4)
    sketch = Sketch(operator, operator, _spherical)
    sketch.extend(products // 2, source(generator)[0])
    return sketch.trace(normalized)


def estimate(
    A: Any,
    *,
    tol: float = 0.01,
    method: str = "auto",
    max_products: int | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Trace of a square map to a relative standard error, by doubling the products until it is reached.

    Nothing multiplied is thrown away between rounds. Where a round would take the products beyond n, the columns of
    the identity give the trace exactly, and end it.

    Args:
        A: as in :func:`hutchinson`.
        tol: standard error to reach, relative to the estimate itself. A trace near 0 among large entries does not
            reach it; the identity or ``max_products`` ends that.
        method: "xtrace"; "hutchinson"; "exact" for the identity at once; "auto" for xtrace, which stops extending its
            sketch where that would exceed 2 GiB and samples the complement, as Hutch++ does.
        max_products: columns to multiply at most, at least 32; None for 2n. A warning says when they ended short of
            ``tol``.
        generator: source of randomness; None draws a fresh seed.

    Raises:
        InputError: A is not square, an unknown method, tol or max_products out of range, products with NaN or infinity.
    """
    operator = _square(A)
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}", expected=", ".join(METHODS))
    limit = _limit(operator, tol, max_products)
    found = None
    for found in _rounds(operator, method, limit, source(generator)[0]):
        if found.stderr <= tol * abs(found.value):
            return found
    size, spent = operator.shape[0], found.products if found else 0
    if found is None or spent + size <= limit:
        return Estimate(float(_entries(operator).real.sum(dtype=torch.float64)), 0.0, size, spent + size)
    _warn(found.stderr, abs(found.value), tol, spent)
    return found


def _rounds(A: LinearOperator, method: str, limit: int, generator: torch.Generator) -> Iterator[Estimate]:
    sketch = Sketch(A, A, _spherical)
    values = torch.empty(0, dtype=torch.float64)
    total = FIRST
    while method != "exact" and total <= min(limit, A.shape[0]):
        held = 4 * A.shape[0] * (total // 2) * A.dtype.itemsize
        if method == "xtrace" or (method == "auto" and held <= MEMORY):
            sketch.extend(total // 2, generator)
            yield sketch.trace()
        else:
            more = total - sketch.products - len(values)
            values = torch.cat([values, _sampled(A, more, generator, sketch.basis)])
            yield mean(values, total, sketch.captured())
        total *= 2


def diagonal(
    A: Any,
    *,
    samples: int | None = None,
    tol: float = 0.05,
    method: str = "xdiag",
    max_products: int | None = None,
    generator: torch.Generator | None = None,
) -> DiagonalEstimate:
    """Diagonal of a square map, each entry with its standard error.

    "xdiag" (Epperly, Tropp & Webber 2024, §1.3) takes out the range of A on all test vectors but one, where a
    product with Aᴴ gives the diagonal exactly: two products a sample. "plain" is the mean of x̄ ∘ Ax over vectors of
    signs or phases (Bekas, Kokiopoulou & Saad, Appl. Numer. Math. 57, 2007), of variance Σⱼ|aᵢⱼ|² over j ≠ i: one
    product a sample. Both are unbiased.

    Args:
        A: as in :func:`hutchinson`. "xdiag" multiplies by Aᴴ too.
        samples: how many test vectors, at least 2; None doubles them until ``tol`` is reached, or, where a round
            would take more than n products, reads the diagonal off the columns of the identity.
        tol: norm of the standard errors to reach, relative to the norm of the diagonal.
        method: "xdiag" or "plain".
        max_products: with ``samples=None``, as in :func:`estimate`.
        generator: source of randomness; None draws a fresh seed.

    Returns:
        Values (n,) in A's dtype, real where A is symmetric, and real standard errors (n,).

    Raises:
        InputError: A is not square, an unknown method, a count out of range, or products with NaN or infinity.
    """
    operator = _square(A)
    if method not in ("xdiag", "plain"):
        raise InputError(f"unknown method {method!r}", expected="xdiag or plain")
    limit, size = _limit(operator, tol, max_products), operator.shape[0]
    if samples is not None:
        check_count(samples, "samples", 2)
    each = 2 if method == "xdiag" else 1
    holder = Sketch(operator, operator.T, signs) if method == "xdiag" else _Mean(operator)
    generator, _ = source(generator)
    count = FIRST // each if samples is None else samples
    found, error, norm = None, math.inf, 0.0
    while samples is not None or each * count <= min(limit, size):
        holder.extend(count, generator)
        found = holder.diagonal()
        error, norm = (float(torch.linalg.vector_norm(part)) for part in (found.stderr, found.values))
        if samples is not None or error <= tol * norm:
            return found
        count *= 2
    spent = found.products if found else 0
    if found is None or spent + size <= limit:
        values = _entries(operator)
        values = values.real if operator.symmetric else values
        return DiagonalEstimate(values, torch.zeros_like(values.abs()), size, spent + size)
    _warn(error, norm, tol, spent)
    return found


class _Mean:
    """Running mean and squares of x̄ ∘ Ax, which need no more than a block of columns at a time."""

    def __init__(self, A: LinearOperator) -> None:
        self.A, self.samples = A, 0
        self.mean = torch.zeros(A.shape[0], dtype=A.dtype.to_real() if A.symmetric else A.dtype, device=A.device)
        self.squares = torch.zeros(A.shape[0], dtype=A.dtype.to_real(), device=A.device)

    def extend(self, count: int, generator: torch.Generator) -> None:
        """Go up to ``count`` samples, by the update of Chan, Golub & LeVeque, The American Statistician 37, 1983."""
        while self.samples < count:
            more = min(BLOCK, count - self.samples)
            vectors = signs(self.A, more, generator)
            terms = vectors.conj() * multiply(self.A, vectors)
            terms = terms.real if self.A.symmetric else terms
            center = terms.mean(dim=1)
            step = center - self.mean
            total = self.samples + more
            spread = (terms - center.unsqueeze(1)).abs().square().sum(dim=1)
            self.squares = self.squares + spread + step.abs().square() * (self.samples * more / total)
            self.mean = self.mean + step * (more / total)
            self.samples = total

    def diagonal(self) -> DiagonalEstimate:
        stderr = (self.squares / (self.samples - 1) / self.samples).sqrt()
        return DiagonalEstimate(self.mean, stderr, self.samples, self.samples)


def _square(A: Any) -> LinearOperator:
    operator = as_operator(A)
    rows, cols = operator.shape
    if rows != cols:
        raise InputError(
            f"trace or diagonal of a {rows}×{cols} map", where=repr(operator), expected="a square map",
            remedy="for ‖A‖_F² take the trace of A.gram()",
        )  # fmt: skip
    return operator


def _limit(A: LinearOperator, tol: float, max_products: int | None) -> int:
    if not tol > 0.0:
        raise InputError(f"tol = {tol}", expected="a positive number, relative to the result")
    if max_products is None:
        return 2 * A.shape[0]
    check_count(max_products, "max_products", FIRST)
    return max_products


def _spherical(A: LinearOperator, count: int, generator: torch.Generator) -> Tensor:
    return sphere(A, count, generator) * math.sqrt(A.shape[1])


def _sampled(A: LinearOperator, count: int, generator: torch.Generator, basis: Tensor | None = None) -> Tensor:
    """(count,) values xᴴAx, x random signs less their part in the columns of an orthonormal basis (n, k)."""
    values = []
    for start in range(0, count, BLOCK):
        vectors = signs(A, min(BLOCK, count - start), generator)
        if basis is not None:
            vectors = vectors - basis @ (basis.mH @ vectors)
        values.append(inner(vectors, multiply(A, vectors)))
    return torch.cat(values)


def _entries(A: LinearOperator) -> Tensor:
    """(n,) the diagonal, read off the products with the columns of the identity."""
    size = A.shape[0]
    entries = torch.zeros(size, dtype=A.dtype, device=A.device)
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        unit = torch.zeros(size, stop - start, dtype=A.dtype, device=A.device)
        unit[start:stop] = torch.eye(stop - start, dtype=A.dtype, device=A.device)
        entries[start:stop] = multiply(A, unit)[start:stop].diagonal()
    return entries


def _warn(error: float, norm: float, tol: float, products: int) -> None:
    reached = error / norm if norm else math.inf
    warnings.warn(
        f"relative standard error {reached:.1e} after {products} products, {tol:.1e} was asked for; "
        "raise max_products or tol", RuntimeWarning, stacklevel=3,
    )  # fmt: skip
