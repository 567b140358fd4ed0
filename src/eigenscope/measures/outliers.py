"""Which matrices of a run stand out, and in what: findings in words, most severe first."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from eigenscope.columns import named
from eigenscope.measures.duplicates import find_duplicates
from eigenscope.results import Finding, Record

COMPARED = (
    "sigma_max", "frobenius", "condition", "numerical_rank", "stable_rank", "effective_rank", "noise_rank",
)  # fmt: skip
"""Readings compared over depth; of those that tell the same story the first that stands out most is named."""
FEWEST_PEERS = 3
CHANCE = 5e-4
"""Probability, to one side, with which a matrix of a normal population would be named for one reading."""
LEAST_SCALE = 0.05
"""Spread in natural logarithms below which peers count as equal: 5 %."""
LARGEST = 1e18
"""An infinite condition number counts as this: more than float64 can tell."""
NAMED = 3
"""Readings named, at most, in one sentence."""
UNTRAINED_SEVERITY = 6.0
ZERO_SEVERITY = 20.0


@dataclass(frozen=True)
class Deviation:
    """One reading of one matrix against the same role in other layers.

    Attributes:
        reading: the column.
        z: robust z-score, in standard deviations of the peers' logarithms.
        threshold: the |z| that one matrix in 1/:data:`CHANCE` exceeds to that side.
        value: the reading.
        low, high: least and largest of the peers.
        peers: how many there are.
    """

    reading: str
    z: float
    threshold: float
    value: float
    low: float
    high: float
    peers: int


def find(records: Sequence[Record]) -> tuple[Finding, ...]:
    """Everything in a run that a person should look at, most severe first.

    Matrices that are identical or nearly so; zero matrices, rows and columns; matrices that noise alone explains;
    matrices that differ from their role's others by :func:`deviations`; entries quantised to a few levels.
    """
    found: dict[str, list[tuple[float, str, str]]] = defaultdict(list)
    for record, deviation in deviations(records):
        found[record.name].append((abs(deviation.z) / deviation.threshold, in_words(deviation), deviation.reading))
    for record in records:
        found[record.name] += list(_alone(record))
    findings = [*find_duplicates(records), *_quantised(records)]
    for record in records:
        remarks = sorted(found[record.name], key=lambda remark: -remark[0])
        if remarks:
            sentence = f"{title(record)}: {'; '.join(text for _, text, _ in remarks[:NAMED])}"
            findings.append(Finding((record.name,), sentence, remarks[0][0], remarks[0][2]))
    return tuple(sorted(findings, key=lambda finding: -finding.severity))


def title(record: Record) -> str:
    """ "layer 4 v", or the name where layer and role do not say which matrix it is."""
    layer, role = record.readings.get("layer"), record.readings.get("role")
    return f"layer {layer} {role}" if layer is not None and role and role != "other" else record.name


def deviations(
    records: Sequence[Record], compared: Sequence[str] = COMPARED, verb: str = "scan"
) -> list[tuple[Record, Deviation]]:
    """The readings that lie far from those of the same role and shape in other layers.

    For each matrix the median and the median absolute deviation of its peers' logarithms, itself left out, give a robust
    z-score (Iglewicz & Hoaglin, How to Detect and Handle Outliers, 1993, §3.3); the scale is not less than the median of
    that over all roles, nor than 5 %. Named is what exceeds Student's quantile for that many peers: with five peers
    |z| > 9.4, with thirty |z| > 3.7.

    Args:
        records: of one run.
        compared: the columns to compare; of those that tell the same story the one that stands out most is named first.
        verb: whose columns they are.
    """
    counts = frozenset(name for name, column in named(verb).items() if column.kind == "count")
    groups: dict[tuple[object, ...], list[Record]] = defaultdict(list)
    for record in records:
        if record.values is not None or isinstance(record.readings.get("sigma_max"), float):
            key = tuple(record.readings.get(name) for name in ("role", "rows", "cols"))
            groups[key].append(record)
    usable = [members for members in groups.values() if len(members) > FEWEST_PEERS]
    result = []
    for reading in compared:
        counted = reading in counts
        columns = [[_logarithm(record, reading, counted) for record in members] for members in usable]
        known = [sorted(filter(math.isfinite, column)) for column in columns]
        scales = sorted(_scale(logs) for logs in known if len(logs) > FEWEST_PEERS)
        least = max(LEAST_SCALE, _median(scales) if scales else 0.0)
        for members, column, logs in zip(usable, columns, known, strict=True):
            for record, own in zip(members, column, strict=True):
                place = bisect_left(logs, own)
                deviation = _deviation(reading, record, logs[:place] + logs[place + 1 :], own, least, counted)
                if deviation is not None:
                    result.append((record, deviation))
    return result


def _deviation(
    reading: str, record: Record, peers: list[float], own: float, least: float, counted: bool
) -> Deviation | None:
    if len(peers) < FEWEST_PEERS or not math.isfinite(own):
        return None
    threshold = -float(stdtrit(len(peers) - 1, CHANCE)) * math.sqrt(1.0 + 1.0 / len(peers))
    distance = own - _median(peers)
    if abs(distance) <= threshold * least:
        return None
    z = distance / max(_scale(peers), least)
    if abs(z) <= threshold:
        return None
    value = record.readings[reading]
    low, high = (_plain(extreme, counted) for extreme in (peers[0], peers[-1]))
    return Deviation(reading, z, threshold, float(value or 0.0), low, high, len(peers))


def _median(ascending: list[float]) -> float:
    return 0.5 * (ascending[(len(ascending) - 1) // 2] + ascending[len(ascending) // 2])


def _scale(ascending: list[float]) -> float:
    middle = _median(ascending)
    return 1.4826 * _median(sorted(abs(x - middle) for x in ascending))


def _logarithm(record: Record, reading: str, counted: bool) -> float:
    value = record.readings.get(reading)
    if not isinstance(value, int | float) or math.isnan(value) or value < 0.0:
        return math.nan
    if counted:
        return math.log1p(value)
    return math.log(min(float(value), LARGEST)) if value > 0.0 else math.nan


def _plain(logarithm: float, counted: bool) -> float:
    if counted:
        return round(math.expm1(logarithm))
    return math.inf if logarithm >= math.log(LARGEST) else math.exp(logarithm)


def in_words(deviation: Deviation, verb: str = "scan") -> str:
    """The deviation as part of a sentence; ``verb`` says whose column it is."""
    column = named(verb)[deviation.reading]
    label = column.label
    value, low, high = (_number(x, column.kind == "share") for x in (deviation.value, deviation.low, deviation.high))
    between = low if low == high else f"{low} to {high}"
    return f"{label} {value} where its {deviation.peers} peers have {between}"


def _number(value: float, share: bool = False) -> str:
    if math.isinf(value):
        return "∞"
    if share:
        return f"{100.0 * value:.3g} %"
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e6 else f"{value:.3g}"


def _alone(record: Record) -> Iterable[tuple[float, str, str]]:
    """What can be said of a matrix without looking at others: (severity, words, reading)."""
    readings = record.readings
    if readings.get("sigma_max") == 0.0:
        yield ZERO_SEVERITY, "every entry is 0", "sigma_max"
        return
    for column, side, what in (("zero_rows", "rows", "outputs"), ("zero_cols", "cols", "inputs")):
        count, total = readings.get(column), readings.get(side)
        if isinstance(count, int) and isinstance(total, int) and count:
            noun = "rows" if side == "rows" else "columns"
            yield 1.0 + ZERO_SEVERITY * count / total, f"{count:,} of {total:,} {noun} are 0: dead {what}", column
    if readings.get("noise_verdict") == "noise only":
        total = min(int(readings.get("rows") or 0), int(readings.get("cols") or 0))
        words = f"noise alone explains all {total} singular values, as if it had not been trained"
        yield UNTRAINED_SEVERITY, words, "noise_rank"


def _quantised(records: Sequence[Record]) -> Iterable[Finding]:
    floors = [(r, r.values, f) for r in records if isinstance(f := r.readings.get("quantization_floor"), float)]
    rows = [(record, values, floor) for record, values, floor in floors if values is not None]
    if not rows:
        return
    shares = [floor / float(values[0]) for _, values, floor in rows]
    below = sum(int(np.count_nonzero(values < floor)) for _, values, floor in rows)
    which = f"{len(rows)} matrices hold" if len(rows) > 1 else f"{title(rows[0][0])} holds"
    yield Finding(
        tuple(record.name for record, _, _ in rows),
        f"{which} at most 16 levels in each block of 32 entries: quantised to 4 bits or fewer. Singular values below the "
        f"quantisation floor ({min(shares):.1%} to {max(shares):.1%} of σ max), {below:,} of "
        f"{sum(len(values) for _, values, _ in rows):,}, are rounding, not weights",
        0.0,
        "quantization_floor",
    )
