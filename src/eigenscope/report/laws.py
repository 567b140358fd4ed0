"""What noise and a power law would look like beside the singular values of a record, from its readings alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eigenscope.report.cells import MISSING, significant, visible
from eigenscope.report.curves import finite_values
from eigenscope.results import Record

Array = NDArray[np.float64]

DENSITY_POINTS, TAIL_POINTS = 33, 25
FEWEST_BINS, MOST_BINS = 4, 60
NARROW = 0.04
"""Share of the picture below which the noise would be a single line at its left end."""


@dataclass(frozen=True)
class Histogram:
    """How many singular values lie in each of some equal intervals.

    Attributes:
        low: where the first interval begins.
        width: of each interval. The noise edge, where there is one, is the end of an interval.
        counts: values in each.
        beyond: values above the last interval: a few outliers would leave no room for the others.
    """

    low: float
    width: float
    counts: tuple[int, ...]
    beyond: int

    @property
    def middles(self) -> list[float]:
        """The middle of each interval."""
        return [self.low + (i + 0.5) * self.width for i in range(len(self.counts))]


def number(record: Record, name: str) -> float | None:
    """A reading of the record if it is a finite number."""
    value = record.readings.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def histogram(record: Record) -> Histogram | None:
    """The histogram of a record's singular values; None where it has no finite ones, or only zeros."""
    values = finite_values(record)
    if values is None:
        return None
    smallest, largest, edge = float(values[-1]), float(values[0]), number(record, "noise_edge") or 0.0
    top = max(1.5 * edge, 1.2 * float(np.quantile(values, 0.97)))
    top = (
        max(largest, 1.3 * edge) if top > 0.8 * largest else top
    )  # the edge and its label are seen, also beyond all values
    if 0.0 < edge < NARROW * top:
        top = 4.0 * edge  # of a few values far beyond the noise the picture is that of the noise
    low = 0.0 if smallest < 0.3 * top else smallest
    if top - low < 1e-6 * top:
        low, top = 0.9 * low, 1.1 * top
    bins = min(max(FEWEST_BINS, round(2.0 * math.sqrt(len(values)))), MOST_BINS)
    width = (top - low) / bins
    if low < edge < top:
        width = (edge - low) / max(1, round((edge - low) / width))
        bins = math.ceil((top - low) / width - 1e-9)
    # The largest value must not fall out of the last interval by the rounding of its end.
    place = np.floor((values - low) / width * (1.0 - 1e-12)).astype(np.int64)
    counts = np.bincount(place[place < bins], minlength=bins)
    return Histogram(low, width, tuple(counts.tolist()), int(np.count_nonzero(place >= bins)))


def bulk_density(record: Record) -> tuple[Array, Array] | None:
    """Density of the singular values of the noise that explains the bulk, as a share of all min(m, n) values.

    The noise is an (m−r)×(n−r) matrix of independent entries of the standard deviation ``noise_level``, and stands for the
    values up to the edge. Marchenko & Pastur, Math. USSR Sb. 1, 1967: with β = (short−r)/(long−r) the eigenvalues
    x = σ²/(level²·(long−r)) have the density √((x−a)(b−x))/(2πβx) on [a, b] = (1 ∓ √β)². In σ that is multiplied by
    dx/dσ, and by the share of the values that it stands for.

    Returns:
        Two vectors, σ and the density per unit of σ; None where the record has no noise bulk.
    """
    level, edge, rank = (number(record, name) for name in ("noise_level", "noise_edge", "noise_rank"))
    rows, cols = number(record, "rows"), number(record, "cols")
    if level is None or edge is None or rank is None or rows is None or cols is None or level <= 0.0:
        return None
    least = min(rows, cols)
    if rank >= least:
        return None
    removed = _removed(edge / level, rank, (rows, cols))
    short, long = least - removed, max(rows, cols) - removed
    beta = short / long
    low, high = (1.0 - math.sqrt(beta)) ** 2, (1.0 + math.sqrt(beta)) ** 2
    # In the angle both ends, where the density is steep, are finely divided. At x = 0 it is finite in σ, not in x.
    angle = np.linspace(0.0, math.pi, DENSITY_POINTS)
    x = np.maximum(low + (high - low) * np.sin(angle / 2.0) ** 2, 1e-9)
    scale = level * math.sqrt(long)
    density = np.sqrt(np.maximum((x - low) * (high - x), 0.0)) / (2.0 * math.pi * beta * x)
    return scale * np.sqrt(x), density * 2.0 * np.sqrt(x) / scale * ((least - rank) / least)


def _removed(edge: float, rank: float, shape: tuple[float, float]) -> float:
    """r, the directions that the noise matrix of unit level lacks: those above the edge, or none.

    A bulk that is not noise is measured against noise of the full size, others against what the signal leaves. The record
    tells by the edge, which lies just above the end √(m−r) + √(n−r) of the law.
    """
    ends = {r: math.sqrt(shape[0] - r) + math.sqrt(shape[1] - r) for r in (0.0, rank)}
    return min(ends, key=lambda r: (ends[r] > edge, edge - ends[r]))


def tail_line(record: Record) -> tuple[Array, Array] | None:
    """The fitted power law of the eigenvalues as a line of σᵢ over i: σ_c·(i/n)^(−1/(2(α−1))) for i ≤ n.

    Of n eigenvalues with the density λ^−α above λ_c, n·(λ/λ_c)^(1−α) exceed λ (Clauset, Shalizi & Newman, SIAM Review
    51(4), 2009, eq. 2.6); λ = σ².

    Returns:
        Two vectors, i and σ; None where no tail was fitted.
    """
    alpha, cutoff, size = number(record, "alpha"), number(record, "alpha_cutoff"), number(record, "alpha_tail")
    if alpha is None or cutoff is None or size is None or alpha <= 1.0 or size < 2:
        return None
    places = np.geomspace(1.0, size, TAIL_POINTS)
    with np.errstate(over="ignore"):
        sigma = cutoff * (places / size) ** (-0.5 / (alpha - 1.0))
    return (places, sigma) if np.isfinite(sigma).all() else None


def is_power_law(record: Record) -> bool:
    """Whether the evidence carries the fitted tail."""
    return record.readings.get("alpha_verdict") == "power law"


def noise_note(record: Record, symbol: str = "W") -> str:
    """What stands above the noise, in words, or why that cannot be said; empty where nobody has looked."""
    edge, rank = number(record, "noise_edge"), number(record, "noise_rank")
    if edge is None or rank is None:
        verdict = record.readings.get("noise_verdict")
        return f"No law of noise is drawn: {visible(verdict)}." if isinstance(verdict, str) else ""
    energy = number(record, "signal_energy")
    share = MISSING if energy is None else f"{significant(100.0 * energy, 3)} %"
    of = f" of {len(record.values):,}" if record.values is not None else ""
    verb = "value lies" if rank == 1 else "values lie"
    return (
        f"{int(rank):,}{of} {verb} above the noise edge {significant(edge)}, with {share} of ‖{symbol}‖F². "
        "Over the histogram: the Marchenko-Pastur law of the noise below it."
    )


def tail_note(record: Record) -> str:
    """The fitted tail in words, or why there is none; empty where nobody has looked."""
    verdict, alpha = record.readings.get("alpha_verdict"), number(record, "alpha")
    if not isinstance(verdict, str):
        return ""
    if alpha is None:
        return f"No tail is drawn: {visible(verdict)}."
    stderr, size = number(record, "alpha_stderr"), number(record, "alpha_tail")
    doubt = "" if stderr is None else f" ± {significant(stderr, 2)}"
    over = "" if size is None else f" over the {int(size):,} largest values"
    drawn = "." if is_power_law(record) else ", drawn dashed as the evidence does not carry it."
    return f"Tail fitted{over}: α = {significant(alpha, 3)}{doubt}{drawn}"
