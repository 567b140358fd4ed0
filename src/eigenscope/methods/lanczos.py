"""Lanczos recurrences of many start vectors in one block, and the Gauss quadratures that they define.

A symmetric map is reduced to tridiagonal form (Golub & Van Loan, Matrix Computations, 4th ed., §10.1), any other to
bidiagonal form (Golub & Kahan 1965; ibid., §10.4), which is the Lanczos recurrence of AᴴA without squaring: small
singular values keep their digits. The first needs one product a step, the second one with A and one with Aᴴ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eigenscope.errors import InputError
from eigenscope.methods.probes import sphere
from eigenscope.operators.base import LinearOperator

MEMORY = 2**31
"""Bytes that the basis vectors of all start vectors may take; beyond, they are neither kept nor orthogonalised."""
BREAKDOWN = 30.0
"""A remainder of fewer roundings of ‖A‖ than this is noise: the Krylov space is invariant."""
LARGE = 50
"""The recurrence that finds what is set aside serves as a probe where there are so many times as many values."""
CONVERGED = 1e-5
"""Residual, relative to the value itself, of a pair that is set aside."""


@dataclass(frozen=True)
class Recurrence:
    """What p recurrences left: their coefficients, float64 on the CPU, and their basis vectors.

    Attributes:
        diagonal: (j, p) αⱼ of each product; 0 throughout in the bidiagonal form.
        coupling: (j, p) norm of the remainder after each product; 0 from a breakdown on.
        lengths: (p,) basis vectors on the side of the start: the nodes that a quadrature has.
        closed: (p,) whether an invariant subspace was reached, so that the quadrature is exact.
        bases: per side, (p, k, n) orthonormal rows; empty where they took too much memory.
        products: columns multiplied.
    """

    diagonal: Tensor
    coupling: Tensor
    lengths: list[int]
    closed: list[bool]
    bases: tuple[Tensor, ...]
    products: int

    def quadrature(self, probe: int, length: int | None = None) -> tuple[Tensor, Tensor]:
        """Nodes (k,) and weights (k,), summing to 1, of the Gauss rule of one start vector.

        Golub & Meurant, Matrices, Moments and Quadrature with Applications, 2010, §6.2 (Golub & Welsch 1969): the
        eigenvalues of T and the squared first components of its eigenvectors; for the bidiagonal B those of BᵀB,
        by the SVD of B.

        Args:
            probe: 0 … p−1.
            length: use the leading part of the recurrence only.
        """
        values, right, _ = self.small(probe, length)
        return values, right[0] ** 2

    def small(self, probe: int, length: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Decomposition of the small matrix: values (k,), right and left vectors (k, k)."""
        size = self.lengths[probe] if length is None else min(length, self.lengths[probe])
        if len(self.bases) == 1:
            off = self.coupling[: size - 1, probe]
            matrix = torch.diag(self.diagonal[:size, probe]) + torch.diag(off, 1) + torch.diag(off, -1)
            values, vectors = torch.linalg.eigh(matrix)
            return values, vectors, vectors
        entries = self.coupling[: 2 * size, probe]
        left, values, right = torch.linalg.svd(torch.diag(entries[0::2]) + torch.diag(entries[1::2][: size - 1], 1))
        return values, right.mH, left

    def pairs(self) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """Ritz values (k,) of the first start vector, their vectors on each side (n, k), and their residuals (k,).

        The residual is the coupling to what was not computed times the last component (Golub & Van Loan, Matrix
        Computations, 4th ed., Theorem 10.1.2); it holds as long as the basis is orthonormal.
        """
        values, right, left = self.small(0)
        size, sides = len(values), len(self.bases)
        last = sides * size - 1
        outside = self.coupling[last, 0] if last < len(self.coupling) else torch.zeros((), dtype=torch.float64)
        vectors = tuple(
            basis[0, :size].T @ small.to(basis.device, basis.dtype)
            for basis, small in zip(self.bases, (right, left)[:sides], strict=True)
        )
        return values, vectors, outside * left[-1].abs()


def recurrence(
    sides: Sequence[LinearOperator],
    start: Tensor,
    steps: int,
    locked: Sequence[Tensor] = (),
    scale: float = 0.0,
) -> Recurrence:
    """Run the recurrences of p start vectors side by side, each product one block of p columns.

    Every new vector is orthogonalised twice against the earlier ones of its own recurrence ("twice is enough":
    Giraud, Langou, Rozložník & van den Eshof, Numer. Math. 101, 2005), unless all bases together exceed ``MEMORY``.
    Then ghosts of converged values appear, but they share the weight of the value that they repeat, and the
    quadrature stays one of a nearby measure (Greenbaum, Linear Algebra Appl. 113, 1989).

    Args:
        sides: (A,) for symmetric A; (A, Aᴴ) for the bidiagonal form, which starts in the row space of A.
        start: (n, p) unit columns, orthogonal to ``locked[0]``.
        steps: k ≥ 1, nodes of the quadrature.
        locked: per side, (n, d) orthonormal columns that the recurrences are kept orthogonal to.
        scale: ‖A‖₂ as far as known, by which a breakdown is judged.

    Raises:
        InputError: a product holds NaN or infinity.
    """
    period, probes = len(sides), start.shape[1]
    lengths = [side.shape[1] for side in sides]
    fits = probes * steps * sum(lengths) * start.element_size() <= MEMORY
    bases = tuple(start.new_zeros(probes, steps if fits else 0, length) for length in lengths)
    largest = torch.full((probes,), scale, dtype=torch.float64, device=start.device)
    alive = torch.ones(probes, dtype=torch.bool, device=start.device)
    counts = torch.full((probes,), steps)
    diagonal: list[Tensor] = []
    coupling: list[Tensor] = []
    current, previous = start, start
    for product in range(period * steps):
        here, there = product % period, (product + 1) % period
        if fits:
            bases[here][:, product // period] = current.T
        known = (locked[there] if locked else None, bases[there][:, : (product + 1) // period])
        rest, alpha, beta = _step(
            sides[here], current, previous, coupling[-1] if coupling else None, known, period == 1
        )
        largest = torch.maximum(largest, alpha.abs() + beta)
        ending = alive & (beta <= BREAKDOWN * torch.finfo(start.dtype).eps * largest)
        counts[ending.cpu()] = product // period + 1
        alive = alive & ~ending
        beta = torch.where(alive, beta, 0.0)
        diagonal.append(alpha)
        coupling.append(beta)
        if not bool(alive.any()):
            break
        previous, current = current, torch.where(alive, rest / torch.where(alive, beta, 1.0).to(rest.dtype), 0.0)
    closed = (~alive.cpu()) | (counts >= start.shape[0] - (locked[0].shape[1] if locked else 0))
    return Recurrence(
        torch.stack(diagonal).cpu(), torch.stack(coupling).cpu(), counts.tolist(), closed.tolist(), bases,
        probes * len(coupling),
    )  # fmt: skip


def _step(
    side: LinearOperator, current: Tensor, previous: Tensor, beta: Tensor | None,
    known: tuple[Tensor | None, Tensor], symmetric: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """One product and what is new in it: the remainder (n, p), α (p,), and the norm of the remainder (p,)."""
    exact = torch.complex128 if current.is_complex() else torch.float64
    rest = side @ current
    if beta is not None:
        rest = rest - previous * beta.to(rest.dtype)
    alpha = torch.zeros(current.shape[1], dtype=torch.float64, device=current.device)
    if symmetric:
        alpha = (current.conj() * rest).sum(dim=0, dtype=exact).real.to(torch.float64)
        rest = rest - current * alpha.to(rest.dtype)
    for _ in range(2):
        rest = _orthogonal(rest, *known)
    norm = torch.linalg.vector_norm(rest, dim=0, dtype=exact)
    if not bool((alpha + norm).isfinite().all()):
        raise InputError("a product holds NaN or infinity", where=repr(side), expected="finite products")
    return rest, alpha, norm


def _orthogonal(rest: Tensor, locked: Tensor | None, basis: Tensor) -> Tensor:
    """Columns of ``rest`` (n, p) less their parts along the locked columns (n, d) and each along its own basis."""
    if locked is not None:
        rest = rest - locked @ (locked.mH @ rest)
    if basis.shape[1] == 0:
        return rest
    rows = rest.T.unsqueeze(2)
    return (rows - basis.mT @ (basis.conj() @ rows)).squeeze(2).T


@dataclass(frozen=True)
class Deflation:
    """What is set aside, and what the recurrence that found it says about the rest.

    Attributes:
        values: (d,) float64.
        vectors: per side, (n, d) orthonormal columns.
        rule: nodes and weights (k,) of the start's part beside them, weights summing to 1; None where it tells nothing.
        closed: whether that rule is exact for that start.
        products: columns multiplied.
    """

    values: Tensor
    vectors: tuple[Tensor, ...]
    rule: tuple[Tensor, Tensor] | None
    closed: bool
    products: int


def deflated(sides: Sequence[LinearOperator], most: int, generator: torch.Generator) -> Deflation:
    """Converged pairs of one recurrence with full reorthogonalisation, those farthest from the median first.

    A pair counts as converged when its residual is below 1e-5 of the value, or is rounding. The value is then off by
    no more than that, and by residual²/gap where it stands apart (Parlett, The Symmetric Eigenvalue Problem,
    Theorem 11.7.1). Of a repeated value one copy is found; the others stay with the probes.

    The start is as good a probe as any other: less the nodes that are set aside, its rule is that of a vector uniform on
    the sphere beside them. Not where values are repeated: all that it has of their eigenvectors lies in the one that is set
    aside. A node then weighs more than the 1/n that one vector is given in the mean, with variance 2/n²: where all weigh more
    than the mean and three standard deviations, the rule is not used, nor where what would pass unseen could matter.

    Args:
        sides: as in :func:`recurrence`.
        most: how many pairs at most, d ≤ most; the recurrence has 2·most + 20 steps.

    """
    size = sides[0].shape[1]
    memory = MEMORY // (sum(side.shape[1] for side in sides) * sides[0].dtype.itemsize)
    steps = min(2 * most + 20, size, memory)
    if most == 0 or steps == 0:
        empty = tuple(torch.empty(side.shape[1], 0, dtype=side.dtype, device=side.device) for side in sides)
        return Deflation(torch.empty(0, dtype=torch.float64), empty, None, False, 0)
    found = recurrence(sides, sphere(sides[0], 1, generator), steps)
    values, vectors, residuals = found.pairs()
    noise = BREAKDOWN * torch.finfo(sides[0].dtype).eps * float(values.abs().max())
    good = (residuals <= CONVERGED * values.abs()) | (residuals <= noise)
    # The median of the rule: far from it lie the values that add most to the variance of the probes.
    rising, weights = values.argsort(), found.small(0)[1][0].square()
    median = values[rising[int((weights[rising].cumsum(dim=0) < 0.5).sum())]]
    order = (values - median).abs().masked_fill(~good, -1.0).argsort(descending=True, stable=True)
    chosen = order[: min(most, int(good.sum()))]
    count = len(chosen)
    others = torch.ones(len(values), dtype=torch.bool)
    others[chosen] = False
    simple = size * float(weights[chosen].sum()) <= count + 3.0 * math.sqrt(2.0 * count)
    usable = simple and size >= LARGE * count and bool(others.any())
    rule = (values[others], weights[others] / weights[others].sum()) if usable else None
    aside = tuple(side[:, chosen.to(side.device)] for side in vectors)
    return Deflation(values[chosen], aside, rule, found.closed[0], found.products)
