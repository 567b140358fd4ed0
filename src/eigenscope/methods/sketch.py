"""Test vectors, their images and an orthonormal basis of these: what leave-one-out estimates are made of.

Epperly, Tropp & Webber, XTrace: making the most of every sample in stochastic trace estimation, SIAM J. Matrix Anal.
Appl. 45(1), 2024. With Y = AΩ = QR, a basis of all images but the i-th spans what Q spans less the one direction Qsᵢ,
sᵢ = R⁻ᴴeᵢ/‖R⁻ᴴeᵢ‖ (ibid., §2.1 and the supplement), so that no decomposition is repeated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from eigenscope.errors import InputError
from eigenscope.operators.base import LinearOperator
from eigenscope.results import DiagonalEstimate, Estimate

DEPENDENCE = math.sqrt(2.0)
"""Leave-one-out terms are not independent: what two test vectors do together enters the terms of both, so that its
part of the variance of the mean is twice what the spread of the terms says; it is counted so throughout."""
Draw = Callable[[LinearOperator, int, torch.Generator], Tensor]


class Sketch:
    """Ω, Y = AΩ = QR, and Z, the products of Q with A or Aᴴ. Each is (n, k), k ≤ n.

    Args:
        A: (n, n).
        of_basis: the map that multiplies Q: A for the trace, Aᴴ for the diagonal.
        draw: test vectors (n, count) with E[ωωᴴ] = I.
    """

    def __init__(self, A: LinearOperator, of_basis: LinearOperator, draw: Draw) -> None:
        self.A, self.of_basis, self.draw = A, of_basis, draw
        empty = torch.empty(A.shape[0], 0, dtype=A.dtype, device=A.device)
        self.vectors = self.images = self.basis = self.mapped = empty
        self.factor = empty[:0]
        self.products = 0

    def extend(self, count: int, generator: torch.Generator) -> None:
        """Go up to ``count`` test vectors in all, n at most; the products of the earlier ones are kept.

        Raises:
            InputError: a product holds NaN or infinity.
        """
        size, have = self.basis.shape
        more = min(count, size) - have
        if more <= 0:
            return
        new = self.draw(self.A, more, generator)
        images = multiply(self.A, new)
        # Householder's Q is orthonormal even where the new images depend on the old basis, or vanish.
        basis, factor = (part[..., have:] for part in torch.linalg.qr(torch.cat([self.basis, images], dim=1)))
        upper = torch.cat([self.factor, self.basis.mH @ images], dim=1)
        lower = torch.cat([factor.new_zeros(more, have), factor[have:]], dim=1)
        self.factor = torch.cat([upper, lower])
        self.vectors = torch.cat([self.vectors, new], dim=1)
        self.images = torch.cat([self.images, images], dim=1)
        self.basis = torch.cat([self.basis, basis], dim=1)
        self.mapped = torch.cat([self.mapped, multiply(self.of_basis, basis)], dim=1)
        self.products += 2 * more

    def captured(self) -> float:
        """tr(QᴴAQ), real part: the trace on the range of the sketch."""
        return float(inner(self.basis, self.mapped).sum())

    def left_out(self) -> Tensor:
        """(k, k) unit columns sᵢ, coordinates in Q of the direction that only the i-th image gives.

        Where Y is rank-deficient to working precision, R⁻ᴴ is cut at the rounding of R: sᵢ then points where no image
        has more than rounding, and leaving it out changes nothing.
        """
        left, values, right = torch.linalg.svd(self.factor)
        floor = len(values) * torch.finfo(values.dtype).eps * values.max()
        values = values.clamp(min=max(float(floor), torch.finfo(values.dtype).tiny))
        columns = (left * (values.min() / values)) @ right
        unit: Tensor = columns / torch.linalg.vector_norm(columns, dim=0)
        return unit

    def trace(self, normalized: bool = True) -> Estimate:
        """Mean over i of tr(QᵢᴴAQᵢ) + uᵢᴴAuᵢ, uᵢ = (I − QᵢQᵢᴴ)ωᵢ, scaled to the norm √(n − k + 1) if normalised."""
        size, count = self.basis.shape
        if count == size:
            return Estimate(self.captured(), 0.0, count, self.products)
        out = self.left_out()
        inside = self.basis.mH @ self.vectors
        inside = inside - out * (out.conj() * inside).sum(dim=0)
        rest = self.vectors - self.basis @ inside
        sampled = inner(rest, self.images - self.mapped @ inside)
        if normalized:
            sampled = sampled * (size - count + 1) / inner(rest, rest)
        terms = self.captured() - inner(self.basis @ out, self.mapped @ out) + sampled
        plain = mean(terms, self.products)
        return replace(plain, stderr=DEPENDENCE * plain.stderr)

    def diagonal(self) -> DiagonalEstimate:
        """Mean over i of diag(QᵢQᵢᴴA) + ω̄ᵢ ∘ (I − QᵢQᵢᴴ)Aωᵢ, for test vectors of entries of modulus 1."""
        count = self.basis.shape[1]
        out = self.left_out()
        directions, images = self.basis @ out, self.mapped @ out
        exact = (self.basis * self.mapped.conj()).sum(dim=1, keepdim=True)
        remainder = directions * (out.conj() * self.factor).sum(dim=0)
        terms = exact - directions * images.conj() + self.vectors.conj() * remainder
        if self.A.symmetric:
            terms = terms.real
        stderr = DEPENDENCE * terms.std(dim=1) / math.sqrt(count)
        if count == self.basis.shape[0]:
            terms, stderr = exact.real if self.A.symmetric else exact, torch.zeros_like(stderr)
        return DiagonalEstimate(terms.mean(dim=1), stderr, count, self.products)


def multiply(A: LinearOperator, block: Tensor) -> Tensor:
    """A @ block, refused where it is not finite.

    Raises:
        InputError: the product holds NaN or infinity.
    """
    product = A @ block
    if not bool(product.isfinite().all()):
        raise InputError("a product holds NaN or infinity", where=repr(A), expected="finite products")
    return product


def inner(left: Tensor, right: Tensor) -> Tensor:
    """(k,) real parts of the inner products of the columns, float64 on the CPU."""
    wide = torch.complex128 if left.is_complex() else torch.float64
    return (left.conj() * right).sum(dim=0, dtype=wide).real.to("cpu", torch.float64)


def mean(terms: Tensor, products: int, offset: float = 0.0) -> Estimate:
    """Estimate from (s,) samples and a part known exactly; of one sample the standard error is infinite."""
    samples = len(terms)
    stderr = float(terms.std()) / math.sqrt(samples) if samples > 1 else math.inf
    return Estimate(offset + float(terms.mean()), stderr, samples, products)
