"""The loss along a line, against the quadratic model that its derivatives promise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

Line = Callable[[float], float]
"""The loss at a distance along a direction."""
POINTS = 21
GROWTH = 2.0
"""By what each trial step of an escape is longer than the one before."""
TRIALS = 14
HALVINGS = 10
HELD = 0.5
"""Share of the promised decrease that must be there for the model to hold."""


@dataclass(frozen=True)
class Slice:
    """The loss along an eigenvector.

    Attributes:
        name: which eigenvector.
        eigenvalue: λ.
        slope: gᵀv.
        distances: t, in units of the parameters.
        losses: L(θ + t v), measured.
        model: L + t·gᵀv + ½ λ t².
    """

    name: str
    eigenvalue: float
    slope: float
    distances: tuple[float, ...]
    losses: tuple[float, ...]
    model: tuple[float, ...]


@dataclass(frozen=True)
class Escape:
    """The way down from a saddle, along the eigenvector of the smallest eigenvalue.

    Attributes:
        eigenvalue: λ < 0.
        slope: gᵀv ≤ 0 of the direction walked.
        distances: steps tried, each twice the one before.
        promised: decrease of the quadratic model at each.
        measured: decrease of the loss at each.
        reach: the longest step up to which at least half of the promised decrease was there; 0 if never.
        promised_at_reach, decrease: promised and measured decrease there.
        best: the largest decrease measured on the way.
    """

    eigenvalue: float
    slope: float
    distances: tuple[float, ...]
    promised: tuple[float, ...]
    measured: tuple[float, ...]
    reach: float
    promised_at_reach: float
    decrease: float
    best: float


def reach_of(loss: float, eigenvalue: float, size: float) -> float:
    """How far to draw a slice: where the model's quadratic part is as large as the loss, ‖θ‖ at most.

    √(2|L|/|λ|); without a loss or a curvature to compare with, ‖θ‖, or 1 at the origin.
    """
    limit = size if size > 0.0 else 1.0
    if loss == 0.0 or eigenvalue == 0.0:
        return limit
    return min(math.sqrt(2.0 * abs(loss) / abs(eigenvalue)), limit)


def narrowed(line: Line, eigenvalue: float, slope: float, reach: float) -> float:
    """A reach, halved until the loss at its ends differs from the start by no more than eight times what the model has.

    Beyond, only higher derivatives would be seen. What the model has is its own change, or the loss itself if that is more.
    """
    start = line(0.0)
    for _ in range(HALVINGS):
        unit = max(abs(slope) * reach + 0.5 * abs(eigenvalue) * reach**2, abs(start))
        ends = max(abs(line(reach) - start), abs(line(-reach) - start))
        if ends <= 8.0 * unit:
            break
        reach /= 2.0
    return reach


def slice_along(name: str, line: Line, eigenvalue: float, slope: float, reach: float) -> Slice:
    """Measure the loss at 21 places from −reach to reach.

    Args:
        name: for the reader.
        line: the loss at a distance along the unit eigenvector.
        eigenvalue, slope: λ and gᵀv.
        reach: of :func:`reach_of`.
    """
    middle = POINTS // 2
    distances = tuple(reach * (i - middle) / middle for i in range(POINTS))
    losses = tuple(line(t) for t in distances)
    start = losses[middle]
    model = tuple(start + t * slope + 0.5 * eigenvalue * t * t for t in distances)
    return Slice(name, eigenvalue, slope, distances, losses, model)


def escape_along(line: Line, eigenvalue: float, slope: float, size: float) -> Escape:
    """Walk down a direction of negative curvature in doubling steps, and compare what was promised with what happened.

    Args:
        line: the loss at a distance along the unit direction, which must point down: slope ≤ 0.
        eigenvalue: λ < 0.
        slope: gᵀv ≤ 0.
        size: ‖θ‖; the first step is a thousandth of it, or of 1 at the origin, or less where the model would then promise
            more than a thousandth of the loss.
    """
    start = line(0.0)
    distances: list[float] = []
    promised: list[float] = []
    measured: list[float] = []
    step = min(1e-3 * (size if size > 0.0 else 1.0), 0.03 * reach_of(start, eigenvalue, size))
    for _ in range(TRIALS):
        distances.append(step)
        promised.append(-step * slope - 0.5 * eigenvalue * step**2)
        measured.append(start - line(step))
        if len(measured) > 3 and measured[-1] < 0.0:
            break
        step *= GROWTH
    holding = 0
    while holding < len(measured) and measured[holding] >= HELD * promised[holding]:
        holding += 1
    last = holding - 1
    return Escape(
        eigenvalue, slope, tuple(distances), tuple(promised), tuple(measured),
        distances[last] if holding else 0.0, promised[last] if holding else 0.0, measured[last] if holding else 0.0,
        max(*measured, 0.0),
    )  # fmt: skip
