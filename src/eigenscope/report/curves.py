"""Singular values → the few points, and the few numbers, that a drawing of them needs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eigenscope.results import Record

MAX_POINTS = 200
ENERGIES = (90, 95, 99)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """One spectrum, thinned; what stands at a kept place is exact there.

    Attributes:
        index: (p,) which singular values are kept, counted from 1; the first and the last always are.
        sigma: (p,) the values there.
        energy: (p,) share of ‖W‖_F² that the leading ``index`` values hold.
        error: (p,) ‖W − W_k‖_F/‖W‖_F of the best approximation of rank k = ``index`` (Eckart & Young,
            Psychometrika 1, 1936), summed from the small values up: exact where 1 − energy would not be.
        spectral_error: (p,) ‖W − W_k‖₂/‖W‖₂ = σ_{k+1}/σ₁ (Mirsky, Quart. J. Math. 11, 1960); NaN where a partial
            spectrum does not say.
        size: min(m, n).
        frobenius: ‖W‖_F.
        ranks: (rank, percent) where 90, 95 and 99 % of the energy are reached, as in the table.
        floor: what the row's error bound allows every value to be off by; None where that is not known.
    """

    index: NDArray[np.int64]
    sigma: Array
    energy: Array
    error: Array
    spectral_error: Array
    size: int
    frobenius: float
    ranks: tuple[tuple[int, int], ...]
    floor: float | None


def thin(count: int, limit: int = MAX_POINTS) -> NDArray[np.int64]:
    """At most ``limit`` indexes from 1 to ``count``, both ends among them: half evenly spaced, half evenly in log."""
    if count <= limit:
        return np.arange(1, count + 1)
    even = np.linspace(1, count, limit - limit // 2)
    log = np.geomspace(1, count, limit // 2)
    return np.unique(np.concatenate([even, log]).round().astype(np.int64))


def finite_values(record: Record) -> Array | None:
    """The singular values of a record; None where it has none that are finite, or only zeros."""
    values = record.values
    if values is None or not len(values) or not np.isfinite(values).all() or values[0] <= 0.0:
        return None
    return values


def short_side(record: Record) -> int:
    """min(m, n), or 0 where the record does not say."""
    sides = [s for s in (record.readings.get("rows"), record.readings.get("cols")) if isinstance(s, int)]
    return min(sides, default=0)


def curve_of(record: Record, limit: int = MAX_POINTS) -> Curve | None:
    """The curve of a record; None where it has no finite singular values, or only zeros."""
    values = finite_values(record)
    if values is None:
        return None
    readings, largest = record.readings, float(values[0])
    size = max(short_side(record), len(values))
    # Relative to the largest, so that squares neither overflow nor vanish whatever the scale of the weights.
    squares = (values / largest) ** 2
    held, left = np.cumsum(squares), np.append(np.cumsum(squares[::-1])[-2::-1], 0.0)
    frobenius = readings.get("frobenius")
    partial = len(values) < size
    unseen = 0.0
    if partial and isinstance(frobenius, float):
        unseen = max(0.0, (frobenius / largest) ** 2 - float(held[-1]))
    total = float(held[-1]) + unseen
    index = thin(len(values), limit)
    bound = readings.get("error_bound")
    ranks = ((readings.get(f"rank_{percent}"), percent) for percent in ENERGIES)
    return Curve(
        index=index,
        sigma=values[index - 1],
        energy=held[index - 1] / total,
        error=np.sqrt((left[index - 1] + unseen) / total),
        spectral_error=np.append(values[1:] / largest, math.nan if partial else 0.0)[index - 1],
        size=size,
        frobenius=math.sqrt(total) * largest,
        ranks=tuple((rank, percent) for rank, percent in ranks if isinstance(rank, int)),
        floor=float(bound) * largest if isinstance(bound, int | float) and bound > 0 else None,
    )
