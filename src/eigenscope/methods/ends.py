"""Both ends of a symmetric spectrum from one Lanczos recurrence, in little memory, with what was found whenever it ends.

For operators whose product is dear and whose vectors are long: one vector at a time, full reorthogonalisation, thick
restart where the basis reaches its limit (Wu & Simon, SIAM J. Matrix Anal. Appl. 22(2), 2000), and no product beyond
those of the recurrence: A V = V H + q rᵀ holds to rounding, so that it gives the residuals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from eigenscope.errors import InputError
from eigenscope.methods.probes import source
from eigenscope.methods.recurrence import Lanczos, Products, Ritz
from eigenscope.operators.base import LinearOperator
from eigenscope.results import Spectrum

LARGEST = 200
"""Columns of a basis at most: beyond, its reorthogonalisation costs more than a restart."""

RELATIVE, NEGLIGIBLE = 0.1, 0.01
"""A residual is at most a tenth of its value, too, or a hundredth of the tolerance: a Ritz value in the middle of a bulk
lies near some eigenvalue long before it is the one that its place says."""
CALM = 4
"""Steps for which the wanted values must stay where they are after all have converged: of two near values one is seen long
before the other, and the next one takes its place meanwhile."""

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
        restarted = False
        try:
            while self.products.count < budget and not self.finished:
                if self.state.V.count == self.capacity:
                    ritz = self.state.ritz()
                    self.state.restart(ritz, self._kept(len(ritz.values)))
                    restarted = True
                if not self.state.next.shape[1]:
                    # The space is invariant: what is missing, copies of multiple values too, lies beside it.
                    self.state.inject(self.state.random(1))
                self.state.expand()
                self.steps += not restarted
                ritz = self.state.ritz()
                converged = self._converged(ritz)
                all_there = converged == self.top + self.bottom and self._calm(ritz)
                self.finished = all_there or self.state.V.count == self.A.shape[0]
                if watcher is not None:
                    watcher(self.products.count, converged)
        except KeyboardInterrupt:
            if not self.state.V.count:
                raise

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

    def _calm(self, ritz: Ritz) -> bool:
        """Whether the wanted values, all converged, have been the same for a few steps."""
        values = ritz.values[self._wanted(len(ritz.values))]
        if self.settled is None or float((values - self.settled).abs().max()) > self.tol * self.norm:
            self.settled, self.calm = values, 0
        self.calm += 1
        return self.calm > CALM

    def _accepted(self, values: Tensor, residuals: Tensor) -> Tensor:
        rounding = self.A.shape[0] ** 0.5 * torch.finfo(self.A.dtype).eps * self.norm
        limit = self.tol * self.norm
        own = (RELATIVE * values.abs()).clamp(min=max(NEGLIGIBLE * limit, rounding), max=max(limit, rounding))
        return residuals <= own

    def found(self, seed: int) -> Ends:
        ritz = self.state.ritz()
        places = self._wanted(len(ritz.values))
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
