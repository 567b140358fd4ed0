"""The driver of the Krylov methods: expand, look at the Ritz pairs, restart, and make sure that none is missed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from eigenscope.methods.recurrence import Lanczos, Products, Recurrence, Ritz

MAX_STEPS = 1000
"""Block steps after which the search gives up where no ``max_products`` does it earlier, and 50·k/b more."""

NEAR = 1e-4
"""Values no further apart, relative to ‖A‖, may count as copies of one, if the tolerance does not tell them apart."""

Score = Callable[[Tensor], Tensor]
SCORES: dict[str, Score] = {
    "LA": lambda values: values,
    "SA": lambda values: -values,
    "LM": lambda values: values.abs(),
}
"""How much a Ritz value is wanted."""


@dataclass(frozen=True)
class Task:
    """What is looked for.

    Attributes:
        k: how many pairs.
        ends: a score, and how many of the highest by it are wanted; k in all.
        tol: residual relative to ‖A‖.
        relative: ask for residuals of a tenth of the values, too, and always look for missed ones: for small singular
            values, which may all be below the tolerance.
        width: columns of a block.
        capacity: columns of the basis at which it is restarted.
        budget: products at which the search ends.
        start: (n, s) first block, or None for a random one.
        cheap: whether products are.
    """

    k: int
    ends: tuple[tuple[Score, int], ...]
    tol: float
    relative: bool
    width: int
    capacity: int
    budget: float
    start: Tensor | None
    cheap: bool

    def order(self, values: Tensor) -> Tensor:
        """Indices of the values, the most wanted first; with two ends they alternate."""
        ranked = [score(values).argsort(descending=True, stable=True) for score, _ in self.ends]
        if len(ranked) == 1:
            return ranked[0]
        half = (len(values) + 1) // 2
        return torch.stack([ranked[0][:half], ranked[1][:half]], dim=1).flatten()[: len(values)]

    def scores(self, values: Tensor) -> list[Tensor]:
        """The scores of the wanted values of each end, descending: none falls while the basis grows (Cauchy)."""
        return [score(values).sort(descending=True).values[:count] for score, count in self.ends]


@dataclass(frozen=True)
class Found:
    """Vectors of the wanted Ritz pairs, fewer than k where the budget did not suffice for a basis of k.

    Attributes:
        left: (m, ≤ k), None for Lanczos.
        basis: (m, j) basis of the images of all vectors tried: a left null vector is orthogonal to it. None for Lanczos.
        right: (n, ≤ k).
        multiplied: A times them, from the products of the search; None where those were not kept.
        norm: ‖A‖ by the largest Ritz value ever seen, in the units of ``products``.
        unchecked: whether a search for missed copies was needed and could not be finished.
    """

    left: Tensor | None
    basis: Tensor | None
    right: Tensor
    multiplied: Tensor | None
    norm: float
    unchecked: bool


class Search:
    """One run on one operator.

    Args:
        products: of A.
        kind: the recurrence.
        task: what is looked for.
        source: of the random directions.
    """

    def __init__(self, products: Products, kind: type[Recurrence], task: Task, source: torch.Generator) -> None:
        self.products, self.task = products, task
        self.state = kind(products, task.capacity, source, keep=not task.cheap)
        self.state.inject(self.state.random(task.width) if task.start is None else task.start)
        self.step = 0
        self._per_column = 1 if kind is Lanczos else 2
        self._square = kind is not Lanczos
        self._norm = 0.0
        self._verified: tuple[Tensor | None, Tensor, Tensor | None] | None = None
        self._scores: list[Tensor] = []
        self._probes_left = 0
        self._next_look = 0
        self._last_look = (0, math.inf)
        self._until = 0

    def run(self) -> Found:
        """Search until done, out of budget, or at the end of the space."""
        found = None
        while found is None and self.step < MAX_STEPS + 50 * self.task.k // self.task.width:
            self._make_room()
            if self.products.count + self._per_column * self.state.next.shape[1] > self.task.budget:
                break
            self.state.expand()
            self.step += 1
            found = self._look()
        if found is not None:
            return found
        pairs = self._verified_pairs(unchecked=True)
        if pairs is not None:
            return pairs
        ritz = self.state.ritz()
        self._norm = max(self._norm, float(ritz.values.abs().max())) if len(ritz.values) else 0.0
        return self._found(ritz, self.task.order(ritz.values)[: self.task.k])

    def _found(self, ritz: Ritz, chosen: Tensor) -> Found:
        left, right = self.state.vectors(ritz, chosen)
        return Found(left, self.state.images, right, self.state.multiplied(ritz, chosen), self._norm, False)

    def _verified_pairs(self, unchecked: bool) -> Found | None:
        if self._verified is None:
            return None
        left, right, multiplied = self._verified
        return Found(left, self.state.images, right, multiplied, self._norm, unchecked)

    def _make_room(self) -> None:
        """Restart where the next block does not fit, and go on at random where the basis is an invariant subspace."""
        state, task = self.state, self.task
        wanted = state.next.shape[1] or min(task.width, state.length - state.V.count)
        if state.V.count + wanted > task.capacity:
            ritz = state.ritz()
            spare = (task.capacity - task.k - wanted) // 2
            state.restart(ritz, task.order(ritz.values)[: task.k + max(spare, 0)])
        if not state.next.shape[1]:
            state.inject(state.random(wanted))

    def _look(self) -> Found | None:
        """What was found, if the search is over."""
        state, task = self.state, self.task
        everything = state.V.count == state.length
        if not everything and (state.V.count < task.k or self.step < self._next_look):
            return None
        ritz = state.ritz()
        chosen = task.order(ritz.values)[: task.k]
        self._norm = max(self._norm, float(ritz.values.abs().max()))
        if everything:
            return self._found(ritz, chosen)
        close = max(task.tol**1.5, 100.0 * state.eps) * self._norm
        if self._verified is not None:
            self._probes_left -= 1
            rises = zip(task.scores(ritz.values), self._scores, strict=True)
            if all(bool((new <= old + close).all()) for new, old in rises):
                return None if self._probes_left > 0 else self._verified_pairs(False)
            self._verified = None  # a value above the last one had been missed: it is among the Ritz values now
        if not self._converged(ritz, chosen):
            return None
        needed, limit = self._probes_needed(ritz.values, chosen, close)
        if needed == 0:
            return self._found(ritz, chosen)
        if needed > limit and not task.cheap:
            return self._confirmed(ritz, chosen, limit, close)
        self._probes_left = limit if needed > limit else int(needed)
        self._verified = (*state.vectors(ritz, chosen), state.multiplied(ritz, chosen))
        self._scores = task.scores(ritz.values)
        state.restart(ritz, chosen)
        state.inject(state.random(min(task.width, task.capacity - state.V.count)))
        return None

    def _converged(self, ritz: Ritz, chosen: Tensor) -> bool:
        """Whether the residuals are small enough; if not, when to look again: decomposing a large B is dear."""
        whole = self.task.relative and self.task.capacity == self.state.length
        if whole and ritz.left is not None and not bool(ritz.left[:, chosen].any(dim=0).all()):
            return False  # a left null vector shows only when the basis spans the whole space
        # The residual will be measured with the rounding that the recurrence does not see.
        goal = torch.full_like(ritz.values[chosen], (0.9 * self.task.tol - 4.0 * self.state.eps) * self._norm)
        if self.task.relative:
            goal = torch.minimum(goal, 0.1 * ritz.values[chosen])
        goal = goal.clamp(min=max(4.0 * self.state.eps * self._norm, 1e-300))
        # Values that rounding does not tell apart may come out of the measurement with their vectors mixed.
        values = ritz.values[chosen]
        alike = (values[:, None] - values).abs() <= 100.0 * self.state.eps * self._norm
        residuals = (alike.to(goal.dtype) @ ritz.residuals[chosen].square()).sqrt()
        excess = float((residuals / goal).max())
        if excess <= 1.0:
            return True
        self._next_look = self.step + 1
        before, then = self._last_look
        if self.task.cheap and excess < then < math.inf:
            rate = math.log(then / excess) / (self.step - before)
            self._next_look = self.step + max(1, min(8, int(0.7 * math.log(excess) / rate)))
        self._last_look = (self.step, excess)
        if float((ritz.dropped[chosen] / goal).max()) > 0.5:
            # What was dropped when the pairs were locked is out of reach for the basis: find it anew.
            self.state.restart(ritz, chosen)
            self.state.refresh(0.1 * float(goal.min()) / math.sqrt(len(goal)))
        return False

    def _confirmed(self, ritz: Ritz, chosen: Tensor, steps: int, close: float) -> Found | None:
        """What was found, once the wanted values have not risen for some steps and no Ritz value may be one of them.

        There is an eigenvalue within the residual of every Ritz value (Saad, §3.2.1). One whose vector the start had
        almost nothing of comes late, as a Ritz value that rises with a residual that reaches beyond the wanted ones.
        """
        scores = self.task.scores(ritz.values)
        if not self._scores or any(bool((new > old + close).any()) for new, old in zip(scores, self._scores)):
            self._scores, self._until = scores, self.step + steps
        self._next_look = self.step + 1
        others = torch.ones(len(ritz.values), dtype=torch.bool)
        others[chosen] = False
        reach = any(
            bool((score(ritz.values) + ritz.residuals > best[-1] + self.task.tol * self._norm)[others].any())
            for (score, _), best in zip(self.task.ends, scores, strict=True)
        )
        # Near the edge of a bulk such intervals overlap for long: that much longer, and no more.
        enough = self.step >= self._until + (steps if reach else 0)
        return self._found(ritz, chosen) if enough else None

    def _probes_needed(self, values: Tensor, chosen: Tensor, close: float) -> tuple[float, int]:
        """Steps needed from fresh random directions, and how many are worth it; 0 where no copy can be missing.

        An eigenvalue λ above the last wanted one, θ, has had as many copies found as the block is wide, and perhaps
        more. Against the rest of the spectrum, of width s, t steps amplify it by the Chebyshev polynomial
        T_t(1 + 2(λ − θ)/s), and a random vector has a component of 0.01/√n or more along it with probability 0.99:
        the Rayleigh quotient passes θ when T_t² · (λ − θ) · 1e-4/n exceeds s.
        """
        task = self.task
        found = values[chosen]
        spread = values.square() if self._square else values
        width = float(spread.max() - spread.min())
        near = max(min(task.tol, NEAR), 100.0 * self.state.eps) * self._norm
        gaps = [math.inf] if task.start is None and not task.relative else [0.0]
        for (score, _), scores in zip(task.ends, task.scores(values), strict=True):
            edge = float(scores[-1])
            for value, rank in zip(found.tolist(), score(found).tolist(), strict=True):
                copies = int(((found - value).abs() <= near).sum())
                if rank > edge + close and copies >= task.width:
                    gaps.append(abs(rank**2 - edge**2) if self._square else rank - edge)
        if min(gaps) == math.inf:
            return 0, 0
        limit = 10 + 2 * self.step if task.cheap else max(3, self.step // 4)
        if min(gaps) == 0.0 or width == 0.0:
            return math.inf, limit
        gap = min(1.0, min(gaps) / width)
        growth = math.acosh(1.0 + 2.0 * gap)
        needed = math.ceil(math.acosh(100.0 * math.sqrt(self.state.length / gap)) / growth)
        restarted = needed * task.width > task.capacity - task.k  # and slower for it
        return 2 * needed if restarted else needed, limit
