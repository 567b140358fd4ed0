"""What a rank costs and what it loses, layer by layer, and how a budget is spent over all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eigenscope.errors import InputError


@dataclass(frozen=True)
class RankCurve:
    """Loss against cost of one layer. The last point is the dense layer: the rank is then ``dense``, the loss 0.

    Attributes:
        ranks: (p,) int64, ascending.
        costs: (p,) float64, numbers stored, ascending.
        losses: (p,) float64, what is lost, descending, in a unit that all layers share.
        corners: (c,) int64 places of the points on the lower convex hull, the first and the last point among them.
        dense: rank that stands for the dense layer.
    """

    ranks: NDArray[np.int64]
    costs: NDArray[np.float64]
    losses: NDArray[np.float64]
    corners: NDArray[np.int64]
    dense: int


def interpolative_cost(rank: int, rows: int, cols: int) -> int:
    """Numbers that hold a rows×cols matrix of that rank by rows and combinations: r(m + n − r)."""
    return rank * (rows + cols - rank)


def factored_cost(rank: int, rows: int, cols: int) -> int:
    """Numbers of two plain factors: r(m + n)."""
    return rank * (rows + cols)


def cut_losses(values: NDArray[np.float64], unit: float = 0.5) -> NDArray[np.float64]:
    """(s + 1,): ``unit`` · Σ_{i>r} σᵢ² for r = 0 … s, what the best rank-r approximation loses (Eckart & Young, 1936).

    Args:
        values: (s,) singular values of the weighted matrix, descending.
        unit: ½ where they are those of a second-order expansion of the loss.
    """
    energy: NDArray[np.float64] = unit * np.append(np.cumsum((values**2)[::-1])[::-1], 0.0)
    return energy


def rank_curve(
    losses: NDArray[np.float64], rows: int, cols: int, *, multiple: int = 1, plain: bool = False
) -> RankCurve:
    """The curve of a layer.

    Args:
        losses: (min(m, n) + 1,) what is lost at rank 0, 1, …; taken as non-increasing: a rank never loses more than a smaller one
            did in an estimate with noise.
        rows, cols: m and n.
        multiple: only ranks that are multiples of it, and the dense layer.
        plain: two plain factors, instead of rows and combinations.

    Raises:
        InputError: a wrong number of losses, losses that are not finite, or ``multiple`` < 1.
    """
    size = min(rows, cols)
    if len(losses) != size + 1 or not bool(np.isfinite(losses).all()) or multiple < 1:
        raise InputError(
            f"{len(losses)} losses, ranks in multiples of {multiple}", where=f"curve of a {rows}×{cols} layer",
            expected=f"{size + 1} finite losses and a multiple of at least 1",
        )  # fmt: skip
    cost = factored_cost if plain else interpolative_cost
    ranks = np.arange(multiple, size + 1, multiple, dtype=np.int64)
    costs = np.array([cost(int(rank), rows, cols) for rank in ranks], np.float64)
    cheaper = costs < rows * cols
    ranks, costs = np.append(ranks[cheaper], size), np.append(costs[cheaper], float(rows * cols))
    kept = np.minimum.accumulate(np.maximum(losses, 0.0))[ranks]
    kept[-1] = 0.0
    return RankCurve(ranks, costs, kept, _lower_hull(costs, kept), size)


def _lower_hull(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.int64]:
    """Andrew's monotone chain (Inform. Process. Lett. 9(5), 1979), lower half."""
    hull: list[int] = []
    for i in range(len(x)):
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            if (y[b] - y[a]) * (x[i] - x[a]) < (y[i] - y[a]) * (x[b] - x[a]):
                break
            hull.pop()
        hull.append(i)
    return np.array(hull, np.int64)


def spend(curves: Sequence[RankCurve], budget: float) -> list[int]:
    """Ranks whose total cost is at most ``budget`` and whose total loss is least, up to one step of one layer.

    Every layer goes down its hull as long as a number stored there saves most: one threshold on the slope for all layers
    (Everett, Oper. Res. 11(3), 1963; optimal for every budget that the hulls' corners meet). The step that no longer fits is
    taken as far as its ranks allow. More budget never loses more.

    Args:
        curves: of all layers, their losses in one unit.
        budget: sum of costs.

    Returns:
        A rank for each curve; ``curve.dense`` for a layer that stays dense.

    Raises:
        InputError: the budget does not hold every layer's first point.
    """
    places = [0] * len(curves)
    budget = math.floor(budget)
    spent = sum(float(curve.costs[0]) for curve in curves)
    if spent > budget:
        raise InputError(
            f"a budget of {budget:,.0f} numbers", expected=f"at least {spent:,.0f}, the smallest ranks' cost"
        )
    for layer, start, end in _steps(curves):
        curve = curves[layer]
        price = float(curve.costs[end] - curve.costs[start])
        if spent + price > budget:
            places[layer] = int(np.searchsorted(curve.costs, curve.costs[start] + budget - spent, side="right")) - 1
            break
        spent += price
        places[layer] = end
    return [int(curve.ranks[place]) for curve, place in zip(curves, places, strict=True)]


def spend_for_loss(curves: Sequence[RankCurve], loss: float) -> list[int]:
    """Ranks of the least total cost whose total loss is at most ``loss``, up to one step of one layer.

    Raises:
        InputError: ``loss`` is negative.
    """
    if not loss >= 0.0:
        raise InputError(f"a loss of {loss}", expected="0 or more")
    places = [0] * len(curves)
    lost = sum(float(curve.losses[0]) for curve in curves)
    for layer, start, end in _steps(curves):
        if lost <= loss:
            break
        curve = curves[layer]
        allowed = float(curve.losses[start]) - (lost - loss)
        enough = (
            int(np.argmax(curve.losses[start : end + 1] <= allowed)) + start if allowed >= curve.losses[end] else end
        )
        lost -= float(curve.losses[start] - curve.losses[enough])
        places[layer] = enough
    return [int(curve.ranks[place]) for curve, place in zip(curves, places, strict=True)]


def _steps(curves: Sequence[RankCurve]) -> list[tuple[int, int, int]]:
    """Layer, point, next point of every hull's every edge that saves anything, steepest first, a layer's in their order."""
    steps = []
    for layer, curve in enumerate(curves):
        for start, end in zip(curve.corners[:-1], curve.corners[1:], strict=True):
            slope = (curve.losses[start] - curve.losses[end]) / (curve.costs[end] - curve.costs[start])
            if slope > 0.0:
                steps.append((-float(slope), layer, int(start), int(end)))
    return [step[1:] for step in sorted(steps)]


def uniform_ranks(curves: Sequence[RankCurve], share: float) -> list[int]:
    """The largest rank of each layer that costs at most ``share`` of the dense layer, or its first point."""
    ranks = []
    for curve in curves:
        place = int(np.searchsorted(curve.costs, share * curve.costs[-1], side="right")) - 1
        ranks.append(int(curve.ranks[max(place, 0)]))
    return ranks


def total(curves: Sequence[RankCurve], ranks: Sequence[int]) -> tuple[float, float]:
    """Cost and loss of these ranks over all layers.

    Raises:
        InputError: a rank that its curve does not have.
    """
    cost = loss = 0.0
    for curve, rank in zip(curves, ranks, strict=True):
        place = int(np.searchsorted(curve.ranks, rank))
        if place == len(curve.ranks) or curve.ranks[place] != rank:
            raise InputError(
                f"rank {rank}", expected=f"one of the curve's {len(curve.ranks)} ranks, up to {curve.dense}"
            )
        cost, loss = cost + float(curve.costs[place]), loss + float(curve.losses[place])
    return cost, loss
