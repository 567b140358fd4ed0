"""Both ends of a symmetric spectrum from one Lanczos recurrence, in little memory, with what was found whenever it ends.

For operators whose product is dear and whose vectors are long: one vector at a time, full reorthogonalisation, thick
restart where the basis reaches its limit (Wu & Simon, SIAM J. Matrix Anal. Appl. 22(2), 2000), and no product beyond
those of the recurrence: A V = V H + q rᵀ holds to rounding, so that it gives the residuals.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from eigenscope.errors import ConvergenceWarning, InputError
from eigenscope.methods.probes import source
from eigenscope.methods.recurrence import Lanczos, Products, Ritz
from eigenscope.operators.base import LinearOperator
from eigenscope.results import Spectrum

LARGEST = 200
"""Columns of a basis at most: beyond, its reorthogonalisation costs more than a restart."""

STEPS = 1000
"""Products after which :func:`eigenpairs` gives up, unless told."""

RELATIVE, NEGLIGIBLE = 0.1, 0.01
"""A residual is at most a tenth of its value, too, or a hundredth of the tolerance: a Ritz value in the middle of a bulk
lies near some eigenvalue long before it is the one that its place says."""
MARGIN = 0.01
"""Once all have converged, the search goes on until the residuals are that much smaller: of two near values one is seen long
before the other, whose vector the start had little of. What brings a residual down by so much brings out a vector of which
the start had a hundredth of the usual share. Of 3000 runs on a spectrum like that of a small network none ended too early."""
CALM, PART = 5, 4
"""Where residuals fall slowly: until the values have stayed where they are for five steps, or a quarter of those made."""

Watcher = Callable[[int, int], None]
"""Told the products so far, and how many of the wanted pairs have converged."""


@dataclass(frozen=True)
class Ends:
    """The eigenpairs at both ends.

    Attributes:
        top: the largest, descending.
        bottom: the smallest, ascending away from the end: its last value is the smallest of all.
        ritz: (j,) all Ritz values of the last basis, ascending.
        steps: of the recurrence before its first restart: what the bound on missed eigenvalues counts.
        finished: whether every wanted pair converged.
    """

    top: Spectrum
    bottom: Spectrum
    ritz: Tensor
    steps: int
    finished: bool


def ends(
    A: LinearOperator, top: int = 5, bottom: int = 5, *, tol: float = 1e-3, basis: int | None = None,
    max_products: int | None = None, generator: torch.Generator | None = None, watcher: Watcher | None = None,
) -> Ends:  # fmt: skip
    """The ``top`` largest and ``bottom`` smallest eigenpairs of a symmetric operator.

    An interrupt (KeyboardInterrupt) ends the search as the budget does: what has been found is returned, flagged.

    Args:
        A: (n, n) symmetric.
        top, bottom: how many; both at least 0, together 1 to n.
        tol: residual accepted as converged, relative to max |λ|; see also :data:`RELATIVE`.
        basis: columns kept before a restart, at least top + bottom + 3; None for 200, n at most.
        max_products: where the search ends at the latest; None for 500.
        generator: of the random start; None for a fresh seed.
        watcher: called after every product.

    Returns:
        :class:`Ends`; never fewer pairs than asked for, unless the products ended before the basis had as many.

    Raises:
        InputError: A is not symmetric, a number out of range, or a product that is not finite.
    """
    size, wanted = A.shape[0], top + bottom
    if not A.symmetric:
        raise InputError("the operator is not said to be symmetric", where=repr(A))
    if min(top, bottom) < 0 or not 1 <= wanted <= size:
        raise InputError(f"{top} largest and {bottom} smallest of {size}", expected=f"1 to {size} in all")
    if not tol >= 0.0:
        raise InputError(f"tol = {tol}", expected="a tolerance ≥ 0, relative to max |λ|")
    least = min(size, wanted + 3)
    capacity = min(size, LARGEST if basis is None else basis)
    if capacity < least:
        raise InputError(f"a basis of {capacity} for {wanted} pairs", where=repr(A), expected=f"at least {least}")
    random, seed = source(generator)
    search = _Search(A, top, bottom, tol, capacity, random)
    search.run(500 if max_products is None else max_products, watcher)
    return search.found(seed)


def eigenpairs(
    A: LinearOperator, k: int, which: Literal["LA", "SA", "both"], *, tol: float, max_products: int | None = None,
    generator: torch.Generator | None = None,
) -> Spectrum:  # fmt: skip
    """k eigenpairs of one end, or ⌈k/2⌉ largest and ⌊k/2⌋ smallest, descending, in the precision of A; else as :func:`ends`.

    Raises:
        InputError: as :func:`ends`.
        KeyboardInterrupt: it was interrupted.
    """
    size = A.shape[0]
    bottom = 0 if which == "LA" else k if which == "SA" else k // 2
    budget = STEPS if max_products is None else max_products
    found = ends(
        A, k - bottom, bottom, tol=tol, basis=min(size, max(2 * k, 40) + 1), max_products=budget, generator=generator
    )
    pairs = found.top if bottom == 0 else found.bottom if bottom == k else _joined(found.top, found.bottom)
    if not found.finished:
        if pairs.products < budget:
            raise KeyboardInterrupt
        warnings.warn(
            f"{int((~pairs.converged).sum())} of {k} pairs have residuals above {tol:g}·‖A‖, or the others have not been so long"
            f" enough, after {budget} products; raise {'tol' if max_products is None else 'max_products or tol'}",
            ConvergenceWarning, stacklevel=4,
        )  # fmt: skip
    return pairs


def _joined(top: Spectrum, bottom: Spectrum) -> Spectrum:
    if top.right is None or bottom.right is None or top.residuals is None or bottom.residuals is None:
        raise TypeError("a spectrum without vectors")
    return replace(
        top, values=torch.cat([top.values, bottom.values]), right=torch.cat([top.right, bottom.right], dim=1),
        residuals=torch.cat([top.residuals, bottom.residuals]), bounds=torch.cat([top.bounds, bottom.bounds]),
        converged=torch.cat([top.converged, bottom.converged]), complete=len(top) + len(bottom) == top.shape[0],
    )  # fmt: skip


class _Search:
    def __init__(
        self, A: LinearOperator, top: int, bottom: int, tol: float, capacity: int, random: torch.Generator
    ) -> None:
        self.A, self.top, self.bottom, self.tol = A, top, bottom, tol
        self.products = Products(A)
        self.state = Lanczos(self.products, capacity, random)
        self.state.inject(self.state.random(1))
        self.capacity, self.steps, self.norm, self.finished = capacity, 0, 0.0, False
        self.settled: Tensor | None = None
        self.calm = 0

    def run(self, budget: int, watcher: Watcher | None) -> None:
        restarted, moving = False, False
        try:
            while self.products.count < budget and not self.finished:
                if self.state.V.count == self.capacity:
                    ritz, moving = self.state.ritz(), True
                    self.state.restart(ritz, self._kept(len(ritz.values)))
                    restarted, moving = True, False
                if not self.state.next.shape[1]:
                    # The space is invariant: what is missing, copies of multiple values too, lies beside it.
                    self.state.inject(self.state.random(1))
                self.state.expand()
                self.steps += not restarted
                ritz = self.state.ritz()
                converged = self._converged(ritz)
                all_there = converged == self.top + self.bottom and self._sure(ritz)
                self.finished = all_there or self.state.V.count == self.A.shape[0]
                if watcher is not None:
                    watcher(self.products.count, converged)
        except KeyboardInterrupt:
            if moving or not len(self.state.projected):
                raise
            self.state.V.count = len(self.state.projected)  # without the vector whose product was interrupted

    def _wanted(self, count: int) -> Tensor:
        """Places of the wanted values among ``count`` ascending ones, the largest first."""
        top = min(self.top, count)
        bottom = min(self.bottom, count - top)
        return torch.cat([torch.arange(count - 1, count - 1 - top, -1), torch.arange(bottom - 1, -1, -1)])

    def _kept(self, count: int) -> Tensor:
        # Half of what is free beyond the wanted ones, shared as they are: what comes next at either end.
        spare = max(0, (self.capacity - self.top - self.bottom) // 2)
        more = spare * self.top // (self.top + self.bottom)
        top, bottom = self.top + more, self.bottom + spare - more
        return torch.cat([torch.arange(bottom), torch.arange(count - top, count)])

    def _converged(self, ritz: Ritz) -> int:
        count = len(ritz.values)
        self.norm = max(self.norm, float(ritz.values.abs().max()))
        # A basis of as many columns as pairs has seen nothing beside them.
        if count < min(self.top + self.bottom + 2, self.A.shape[0]):
            return 0
        places = self._wanted(count)
        return int(self._accepted(ritz.values[places], ritz.residuals[places]).sum())

    def _sure(self, ritz: Ritz) -> bool:
        """Whether the wanted values, all converged, would have been displaced by now if others were to take their places."""
        places = self._wanted(len(ritz.values))
        values, limit = ritz.values[places], self.tol * self.norm
        if self.settled is None or float((values - self.settled).abs().max()) > limit:
            self.settled, self.calm = values, 0
        self.calm += 1
        within = float(ritz.residuals[places].max()) <= MARGIN * limit
        return within or self.calm > max(CALM, self.products.count // PART)

    def _accepted(self, values: Tensor, residuals: Tensor) -> Tensor:
        rounding = self.A.shape[0] ** 0.5 * torch.finfo(self.A.dtype).eps * self.norm
        limit = self.tol * self.norm
        own = (RELATIVE * values.abs()).clamp(min=max(NEGLIGIBLE * limit, rounding), max=max(limit, rounding))
        return residuals <= own

    def found(self, seed: int) -> Ends:
        ritz = self.state.ritz()
        places = self._wanted(len(ritz.values))
        if self.capacity <= 2 * len(places):
            # Memory is scarce: in the place of the basis, which is not needed any more.
            self.state.V.rotate(ritz.right[:, places])
            vectors = self.state.V.all
        else:
            vectors = self.state.V.combined(ritz.right[:, places])
        scale, eps = self.products.scale, torch.finfo(self.A.dtype).eps
        rounding = self.A.shape[0] ** 0.5 * eps * self.norm
        top = min(self.top, len(places))
        complete = len(ritz.values) == self.A.shape[0]

        def part(chosen: slice) -> Spectrum:
            residuals = ritz.residuals[places[chosen]]
            return Spectrum(
                values=ritz.values[places[chosen]] * scale, left=None, right=vectors[:, chosen],
                residuals=residuals * scale, bounds=(residuals + rounding) * scale,
                converged=self._accepted(ritz.values[places[chosen]], residuals), kind="eigen", shape=self.A.shape,
                complete=complete and len(residuals) == len(ritz.values), frobenius=None, method="Lanczos",
                reason="few pairs of an operator with dear products", products=self.products.count, seed=seed,
            )  # fmt: skip

        return Ends(part(slice(0, top)), part(slice(top, None)), ritz.values * scale, self.steps, self.finished)
