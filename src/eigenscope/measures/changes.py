"""What a change of weights amounts to: its direction and magnitude, a verdict on each matrix, one on the whole model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from eigenscope.measures.outliers import Deviation, deviations, in_words, title
from eigenscope.measures.rounding import Rounding
from eigenscope.results import Compared, Finding, Record, Value

UNCHANGED, ROUNDING, LOW, FULL, RETRAINED, SMALL = (
    "unchanged", "within rounding", "low-rank", "full-rank", "retrained", "too small"
)  # fmt: skip
FEWEST = 16
"""Singular values below which neither low nor full rank is said: an adapter of rank 1 is then much of the matrix."""
FEW, ENDS = 16, 4
"""Low-rank: 90 % of the energy within 1/16 of the directions, or 99 % within a quarter of them."""
MOSTLY = 2.0 / 3.0
"""Share of the changed matrices that one verdict needs to be that of the model."""
COMPARED = (
    "relative_change",
    "frobenius",
    "rank_90",
    "stable_rank",
    "effective_rank",
    "noise_rank",
    "direction_change",
)
"""Readings compared over depth, as for the outliers of a scan."""
HALF = 0.5 + 2.0**-10
"""Units in the last place by which rounding moves a number at most, on the way from float64 by float32 included."""
AS_LARGE = 1.15
"""Up to which ratio two norms count as the same where one is an estimate of the quantisation error."""
SMALLER = 0.7
"""Below this share of the quantisation error the change does not contain it: both come from the same quantised weights."""
LARGE_VECTOR = 0.05
"""Relative change from which a bias or norm is a finding."""


@dataclass(frozen=True)
class Parts:
    """DoRA's decomposition of a change.

    Attributes:
        magnitude: mean change of a column's length, relative to the mean length before; None where that is 0.
        direction: mean 1 − cos of a column's turn; None where no column has a direction before and after.
    """

    magnitude: float | None
    direction: float | None


def magnitude_and_direction(D: Tensor, W: Tensor) -> Parts:
    """How far the columns' lengths moved, and how far their directions.

    Liu et al., DoRA, ICML 2024, §3.2, eqs. (3) and (4): ΔM = Σⱼ |m′ⱼ − mⱼ|/n and ΔD = Σⱼ (1 − cos(w′ⱼ, wⱼ))/n over the n
    columns (inputs), m their lengths. ΔM is divided by the mean length, so that layers compare. (PEFT's DoRA takes the
    lengths of rows.) Both are formed without cancellation: ‖w′‖ − ‖w‖ = (2w·d + d·d)/(‖w′‖ + ‖w‖) and 1 − cos = (d·d −
    (‖w′‖ − ‖w‖)²)/(2‖w′‖‖w‖), so that tiny changes keep their digits.

    Args:
        D: (m, n) float64, the change.
        W: (m, n) the base.
    """
    cols = D.shape[1]
    dots, squares, before = (torch.zeros(cols, dtype=torch.float64, device=D.device) for _ in range(3))
    for d, w in zip(torch.split(D, 1024), torch.split(W, 1024), strict=True):
        w = w.to(torch.float64)
        dots += (w * d).sum(dim=0)
        squares += d.square().sum(dim=0)
        before += w.square().sum(dim=0)
    length = before.sqrt()
    after = (before + 2.0 * dots + squares).clamp(min=0.0).sqrt()
    both = length + after
    moved = torch.where(both > 0.0, (2.0 * dots + squares) / both.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    mean = float(length.mean()) if cols else 0.0
    known = (length > 0.0) & (after > 0.0)
    turns = ((squares - moved.square()).clamp(min=0.0) / (2.0 * length * after))[known]
    return Parts(
        magnitude=float(moved.abs().mean()) / mean if mean > 0.0 else None,
        direction=float(turns.mean()) if len(turns) else None,
    )


def is_rounded(formats: tuple[str, str], units: float) -> bool:
    """Whether one matrix is the other, rounded to a coarser format; rounded twice it may be off by a little more."""
    return formats[0] != formats[1] and units <= HALF


def judge(
    readings: Mapping[str, Value], formats: tuple[str, str], rounding: Rounding, rest: float, error: float = 0.0
) -> tuple[str, str]:
    """The verdict on one matrix, and what it rests on.

    *unchanged*: every entry is the same. *within rounding*: what the storage formats or the quantisation alone may
    leave. *retrained*: ‖ΔW‖_F > ‖W‖_F (of two independent matrices of one norm it is √2). *too small*: changed, and
    fewer than 16 singular values, of which no rank is told. *low-rank*: 90 % of ‖ΔW‖_F² within min(m, n)/16 directions, so that a LoRA
    of that rank has at most an eighth of a matrix's numbers; or all that is not rounding within min(m, n)/4, or 99 %: a
    merged LoRA of rank r leaves nothing beyond r but rounding, and the usual ranks are less than that. *full-rank*: the rest.
    (Biderman et al., LoRA Learns Less and Forgets Less, TMLR 2024, found full fine-tuning to need 10 to 100 times the usual
    ranks; noise needs half of all directions for 90 % in a square matrix, three quarters in one of sides 1:4.)

    Args:
        readings: of the change.
        formats: storage formats of the base and of the tuned matrix.
        rounding: what rounding alone may have done.
        rest: root of the sum of squares of the singular values beyond the numerical rank.
        error: ‖·‖_F of the quantisation error that the change contains; 0 for none.
    """
    size, change = _number(readings["sigma_max"]), _number(readings["relative_change"])
    short = min(int(readings["rows"] or 0), int(readings["cols"] or 0))
    r90, r99, above = (int(readings[name] or 0) for name in ("rank_90", "rank_99", "numerical_rank"))
    if size == 0.0:
        return UNCHANGED, "every entry is the same"
    explained = _explained(size, formats, rounding)
    if explained:
        return ROUNDING, f"not distinguishable from rounding ({' and '.join(dict.fromkeys(formats))}): {explained}"
    norm, limit = _number(readings["frobenius"]), _number(readings.get("quantization_floor"))
    if error and norm <= AS_LARGE * error and size <= AS_LARGE * limit:
        return ROUNDING, "not distinguishable from the quantisation error: as large, and σ max is not above its floor"
    if change > 1.0:
        return RETRAINED, f"‖ΔW‖ is {_percent(change)} of ‖W‖; 90 % in {r90} of {short} directions"
    if short < FEWEST:
        return SMALL, f"changed; {short} singular values are too few to tell a rank"
    needs = f"90 % in {r90}, 99 % in {r99} of {short} directions"
    if FEW * r90 <= short or ENDS * r99 <= short:
        return LOW, needs
    if ENDS * above <= short and rest <= AS_LARGE * rounding.norm:
        return LOW, f"{needs}; the values beyond {above} are not distinguishable from rounding"
    return FULL, needs


def _explained(size: float, formats: tuple[str, str], rounding: Rounding) -> str:
    """Why a change may be nothing but rounding; empty if it may not."""
    if is_rounded(formats, rounding.units):
        return "no entry is off by more than half a unit in the last place"
    if rounding.units <= 1.0 and size <= rounding.floor:
        return "no entry is off by more than one unit in the last place, and σ max is below what rounding leaves"
    return ""


def verdict(records: Sequence[Record], coverage: Iterable[Compared] = ()) -> str:
    """The verdict on the whole model in a sentence, with the counts and figures it rests on.

    It is *unchanged* where no matrix changed, else that of two thirds of the changed matrices, else *mixed*.
    """
    counts = Counter(str(record.readings.get("verdict") or "not measured") for record in records)
    changed = [record for record in records if record.readings.get("verdict") in (LOW, FULL, RETRAINED, SMALL)]
    vectors = [entry for entry in coverage if entry.relative_change is not None and not entry.matrices]
    moved = sum(bool(entry.relative_change) for entry in vectors)
    listed = ", ".join(f"{counts[name]:,} {name}" for name in (*_ORDER, "not measured") if counts[name])
    beside = f"; {moved:,} of {len(vectors):,} vectors (biases, norms) changed" if vectors else ""
    tail = f"Of {len(records):,} matrices {listed}{beside}."
    if not records:
        return "Nothing was compared."
    if not changed:
        head = "Unchanged" if counts[UNCHANGED] == len(records) else "No change beyond rounding" if counts[ROUNDING] else (
            "Nothing could be measured" if counts["not measured"] == len(records) else "No matrix changed"
        )  # fmt: skip
        return f"{head}. {tail}"
    judged = [record for record in changed if record.readings["verdict"] != SMALL]
    most, of = (
        Counter(str(r.readings["verdict"]) for r in judged).most_common(1)[0] if judged else (SMALL, len(changed))
    )
    kind = _KINDS[most] if of >= MOSTLY * len(judged) else "Mixed change"
    return f"{kind}: {_evidence(judged or changed)}. {tail}"


_ORDER = (FULL, LOW, RETRAINED, SMALL, ROUNDING, UNCHANGED)
_KINDS = {FULL: "Full-rank change", LOW: "Low-rank change", RETRAINED: "Retrained from scratch", SMALL: "Change"}


def _evidence(changed: Sequence[Record]) -> str:
    """Medians over the changed matrices, in words."""

    def middle(values: Iterable[float]) -> float:
        return median([value for value in values if math.isfinite(value)] or [math.nan])

    shares = [
        _number(r.readings["rank_90"]) / min(int(r.readings["rows"] or 0), int(r.readings["cols"] or 0))
        for r in changed
    ]
    sizes = sorted(_number(r.readings["relative_change"]) for r in changed)
    held = middle(_number(r.readings["energy_16"]) for r in changed)
    span = _percent(sizes[0]) if sizes[0] == sizes[-1] else f"{_percent(sizes[0])} to {_percent(sizes[-1])}"
    return (
        f"‖ΔW‖ is {span} of ‖W‖, 90 % of ‖ΔW‖² needs {_percent(middle(shares))} of the directions and rank 16 "
        f"holds {_percent(held)} (medians of {len(changed):,} changed matrices)"
    )


def find(records: Sequence[Record], coverage: Sequence[Compared] = ()) -> tuple[Finding, ...]:
    """Everything in a comparison that a person should look at, most severe first.

    Matrices with another verdict than most; intruder dimensions; matrices that differ from their role's others; vectors
    that moved by more than 5 %.
    """
    found = [*_apart(records), *_intruders(records)]
    moved = [r for r in records if r.readings.get("verdict") in (LOW, FULL, RETRAINED)]
    remarks: dict[str, list[Deviation]] = {}
    for record, deviation in deviations(moved, COMPARED, "diff"):
        remarks.setdefault(record.name, []).append(deviation)
    for record in moved:
        ranked = sorted(remarks.get(record.name, ()), key=lambda d: -abs(d.z) / d.threshold)
        if ranked:
            words = "; ".join(in_words(deviation, "diff") for deviation in ranked[:3])
            worst = ranked[0]
            found.append(
                Finding((record.name,), f"{title(record)}: {words}", abs(worst.z) / worst.threshold, worst.reading)
            )
    for entry in coverage:
        change = entry.relative_change
        if change is not None and not entry.matrices and change > LARGE_VECTOR:
            sentence = f"{entry.tensor}: a vector that changed by {_percent(change)}"
            found.append(Finding((entry.tensor,), sentence, min(change / LARGE_VECTOR, 20.0) / 4.0))
    return tuple(sorted(found, key=lambda finding: -finding.severity))


def _apart(records: Sequence[Record]) -> Iterable[Finding]:
    """Verdicts that few matrices share, each with the matrices that have it."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(str(record.readings.get("verdict")), []).append(record)
    if len(groups) < 2:
        return
    for name, severity in ((RETRAINED, 20.0), (UNCHANGED, 6.0), (LOW, 3.0), (FULL, 5.0), (ROUNDING, 2.0)):
        members = groups.get(name, [])
        if members and 3 * len(members) <= len(records):
            many = f"{len(members):,} matrices are" if len(members) > 1 else f"{members[0].name} is"
            why = f": {members[0].readings['evidence']}" if len(members) == 1 else f", {_named(members)}"
            sentence = f"{many} {name}{why}"
            yield Finding(tuple(record.name for record in members), sentence, severity, "relative_change")


def _intruders(records: Sequence[Record]) -> Iterable[Finding]:
    having = [r for r in records if r.readings.get("verdict") != RETRAINED and int(r.readings.get("intruders") or 0)]
    if having:
        having.sort(key=lambda r: -int(r.readings["intruders"] or 0))
        total = sum(int(record.readings["intruders"] or 0) for record in having)
        dimensions = "1 intruder dimension" if total == 1 else f"{total:,} intruder dimensions"
        where = f"{len(having):,} matrices, {_named(having)}" if len(having) > 1 else having[0].name
        sentence = f"{dimensions} in {where}: leading singular vectors that the base does not have"
        yield Finding(tuple(record.name for record in having), sentence, 4.0, "intruders")


def _named(records: Sequence[Record]) -> str:
    return ", ".join(record.name for record in records[:3]) + (", …" if len(records) > 3 else "")


def _number(value: Value) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _percent(share: float) -> str:
    return "∞" if math.isinf(share) else f"{100.0 * share:.3g} %"
