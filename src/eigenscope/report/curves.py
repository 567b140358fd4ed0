"""Singular values → the few points, and the few numbers, that a drawing of them needs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eigenscope.results import Record

MAX_POINTS = 200
ENERGIES = (90, 95, 99)


@dataclass(frozen=True)
class Curve:
    """One spectrum, thinned.

    Attributes:
        index: (p,) which singular values are kept, counted from 1; the first and the last always are.
        sigma: (p,) the values there.
        energy: (p,) share of ‖W‖_F² that the leading ``index`` values hold.
        size: min(m, n).
        ranks: (rank, percent) where 90, 95 and 99 % of the energy are reached, as in the table.
        floor: what the row's error bound allows every value to be off by; None where that is not known.
    """

    index: NDArray[np.int64]
    sigma: NDArray[np.float64]
    energy: NDArray[np.float64]
    size: int
    ranks: tuple[tuple[int, int], ...]
    floor: float | None


def thin(count: int, limit: int = MAX_POINTS) -> NDArray[np.int64]:
    """At most ``limit`` indexes from 1 to ``count``, both ends among them: half evenly spaced, half evenly in log."""
    if count <= limit:
        return np.arange(1, count + 1)
    even = np.linspace(1, count, limit - limit // 2)
    log = np.geomspace(1, count, limit // 2)
    return np.unique(np.concatenate([even, log]).round().astype(np.int64))


def curve_of(record: Record, limit: int = MAX_POINTS) -> Curve | None:
    """The curve of a record; None where it has no finite singular values, or only zeros."""
    values = record.values
    if values is None or not len(values) or not np.isfinite(values).all() or values[0] <= 0.0:
        return None
    readings = record.readings
    sides = [s for s in (readings.get("rows"), readings.get("cols")) if isinstance(s, int)]
    size = max(min(sides, default=0), len(values))
    # Relative to the largest, so that squares neither overflow nor vanish whatever the scale of the weights.
    held = np.cumsum((values / values[0]) ** 2)
    frobenius = readings.get("frobenius")
    partial = len(values) < size and isinstance(frobenius, float)
    total = max((frobenius / float(values[0])) ** 2, held[-1]) if partial and isinstance(frobenius, float) else held[-1]
    index = thin(len(values), limit)
    bound = readings.get("error_bound")
    ranks = ((readings.get(f"rank_{percent}"), percent) for percent in ENERGIES)
    return Curve(
        index=index,
        sigma=values[index - 1],
        energy=held[index - 1] / total,
        size=size,
        ranks=tuple((rank, percent) for rank, percent in ranks if isinstance(rank, int)),
        floor=float(bound) * float(values[0]) if isinstance(bound, int | float) and bound > 0 else None,
    )
