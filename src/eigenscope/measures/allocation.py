"""One budget spread over the ranks of many matrices: whoever leaves out more energy per number stored gives way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eigenscope.errors import InputError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class _Steps:
    """What may be bought: for each step its matrix, the rank before and after, and what it costs."""

    matrix: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    cost: Array


def allocate(
    spectra: Sequence[Array],
    costs: Sequence[float],
    budget: float,
    *,
    multiple_of: int = 1,
    dense: Sequence[float] | None = None,
) -> list[int]:
    """Ranks that keep as much energy Σσ² as a budget buys, for matrices that each cost a fixed price per rank.

    The best rank-k approximation leaves out Σ_{i>k} σᵢ² (Eckart & Young 1936), so each matrix's return per unit of
    cost, σₖ²/c, falls with k: buying in the order of σ²/c, until nothing more fits, is the greedy solution of this
    knapsack. Before the first step that does not fit it is optimal at what it has spent (Fox, Discrete optimization via
    marginal analysis, Management Science 13(3), 1966, §2); after that it loses less than that one step. One rank for all
    matrices is tried beside it, and taken where it leaves out less, so that the result is never worse than uniform ranks
    at the same cost. The energy left out never grows with the budget: a step that only the larger of two budgets can buy
    keeps more than all that the smaller one could still get for what it has left.

    Args:
        spectra: singular values of each matrix, descending: (k,) ≥ 0; scale them to weigh one matrix against another.
        costs: what one rank costs of each matrix, as (m + n)·bytes.
        budget: in the same unit; never exceeded.
        multiple_of: every rank is a multiple of it, or all values of its matrix.
        dense: what each matrix costs whole. Its rank then costs no more than that: from the break-even on it is bought
            whole (all its values that are not 0) or not at all.

    Returns:
        A rank for each matrix, 0 where nothing of it was worth its price. Values of 0 are never bought.

    Raises:
        InputError: lengths that differ, values that are negative, not finite or not descending, a cost that is not
            positive, a negative budget, ``multiple_of`` below 1.
    """
    _check(spectra, costs, budget, multiple_of, dense)
    if not spectra:
        return []
    largest = max((float(values[0]) for values in spectra if len(values)), default=0.0)
    energies = [(np.asarray(values, np.float64) / largest) ** 2 if largest else np.zeros(0) for values in spectra]
    energies = [energy[energy > 0.0] for energy in energies]
    whole = [math.inf] * len(spectra) if dense is None else [float(cost) for cost in dense]
    ranks = _greedy(_steps(energies, costs, whole, multiple_of), len(spectra), budget)
    uniform = _uniform(energies, costs, whole, budget, multiple_of)
    return uniform if _left_out(energies, uniform) < _left_out(energies, ranks) else ranks


def _check(
    spectra: Sequence[Array], costs: Sequence[float], budget: float, multiple_of: int, dense: Sequence[float] | None
) -> None:
    if len(costs) != len(spectra) or (dense is not None and len(dense) != len(spectra)):
        raise InputError(f"{len(costs)} costs for {len(spectra)} spectra", where="allocate", expected="one for each")
    for place, values in enumerate(spectra):
        if not np.isfinite(values).all() or (len(values) and (values[-1] < 0.0 or bool((np.diff(values) > 0.0).any()))):
            raise InputError(f"spectrum {place}", where="allocate", expected="finite values ≥ 0, the largest first")
    for cost in (*costs, *(dense or ())):
        if not (cost > 0.0 and math.isfinite(cost)):
            raise InputError(f"a cost of {cost}", where="allocate", expected="a positive number")
    if not budget >= 0.0:
        raise InputError(f"a budget of {budget}", where="allocate", expected="a number ≥ 0")
    if multiple_of < 1:
        raise InputError(f"multiple_of={multiple_of}", where="allocate", expected="at least 1")


def _ranks(count: int, multiple_of: int) -> NDArray[np.int64]:
    """0, the multiples, and all values."""
    return np.unique(np.append(np.arange(0, count, multiple_of), count))


def _steps(energies: Sequence[Array], costs: Sequence[float], whole: Sequence[float], multiple_of: int) -> _Steps:
    """Every step of every matrix, best return first; the steps of a matrix in the order of its ranks."""
    columns: list[tuple[NDArray[Any], ...]] = []
    for place, (energy, cost, limit) in enumerate(zip(energies, costs, whole, strict=True)):
        if not len(energy):
            continue
        ranks = _ranks(len(energy), multiple_of)
        ranks = ranks[ranks * cost < limit] if len(energy) * cost > limit else ranks
        tails = np.append(np.cumsum(energy[::-1])[::-1], 0.0)
        start, end = ranks[:-1], ranks[1:]
        price = (end - start) * cost
        # Means of descending values descend but for rounding, and a step out of order could never be bought.
        ratio = (
            np.minimum.accumulate(np.add.reduceat(energy[: ranks[-1]], start) / price) if len(start) else np.zeros(0)
        )
        if len(energy) * cost > limit:
            # The tangent from the whole matrix to the curve of kept energy over cost: the upper hull of both.
            slopes = tails[ranks] / (limit - ranks * cost)
            tangent = int(np.argmin(slopes))
            start, end = np.insert(start, tangent, ranks[tangent]), np.insert(end, tangent, len(energy))
            price = np.insert(price, tangent, limit - ranks[tangent] * cost)
            ratio = np.insert(ratio, tangent, slopes[tangent])
            ratio[tangent + 1 :] = np.minimum(ratio[tangent + 1 :], slopes[tangent])
        columns.append((np.full(len(start), place), start, end, price, ratio))
    if not columns:
        columns.append((np.zeros(0, np.int64),) * 3 + (np.zeros(0),) * 2)
    joined: list[NDArray[Any]] = [np.concatenate(parts) for parts in zip(*columns, strict=True)]
    order = np.argsort(-joined[-1], kind="stable")
    return _Steps(*(part[order] for part in joined[:-1]))


def _greedy(steps: _Steps, count: int, budget: float) -> list[int]:
    """Buy in order whatever fits; a step counts only where its matrix stands at the rank that the step starts from.

    A matrix that could be bought whole but does not fit goes on by single steps, which come later in the order: by the
    choice of the tangent each of them returns less than the whole.
    """
    ranks = [0] * count
    left = budget * (1.0 + 1e-12)
    # Once the cheapest step still to come is too dear, nothing fits.
    cheapest = np.minimum.accumulate(steps.cost[::-1])[::-1]
    for place in range(len(steps.matrix)):
        if left < cheapest[place]:
            break
        matrix = int(steps.matrix[place])
        if steps.cost[place] <= left and steps.start[place] == ranks[matrix]:
            ranks[matrix] = int(steps.end[place])
            left -= float(steps.cost[place])
    return ranks


def _uniform(
    energies: Sequence[Array], costs: Sequence[float], whole: Sequence[float], budget: float, multiple_of: int
) -> list[int]:
    """The largest rank, one for all, that the budget pays for; a matrix of fewer values has them all."""

    def of(rank: int) -> tuple[list[int], float]:
        ranks, total = [], 0.0
        for energy, cost, limit in zip(energies, costs, whole, strict=True):
            bought = min(rank, len(energy))
            ranks.append(len(energy) if bought * cost >= limit else bought)
            total += min(bought * cost, limit)
        return ranks, total

    low, high = 0, -(-max(map(len, energies)) // multiple_of)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if of(middle * multiple_of)[1] <= budget * (1.0 + 1e-12) else (low, middle - 1)
    return of(low * multiple_of)[0]


def _left_out(energies: Sequence[Array], ranks: Sequence[int]) -> float:
    return math.fsum(float(energy[rank:].sum()) for energy, rank in zip(energies, ranks, strict=True))
