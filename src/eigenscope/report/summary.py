"""What a run amounts to in a few numbers: the opening of the page, the last lines in the terminal."""

from __future__ import annotations

import math
from dataclasses import dataclass

from eigenscope.report.cells import doubt, significant
from eigenscope.results import Compared, Coverage, Record, Run

OUTCOMES = ("read", "compared", "not a matrix", "not compared", "only in base", "only in tuned", "not readable")


@dataclass(frozen=True)
class Group:
    """The tensors that met the same end for the same reason."""

    outcome: str
    reason: str
    tensors: tuple[Coverage, ...]

    @property
    def matrices(self) -> int:
        return sum(entry.matrices for entry in self.tensors)


@dataclass(frozen=True)
class Summary:
    """Totals of a run.

    Attributes:
        matrices: rows of the table.
        measured: rows that have singular values.
        parameters: entries of the measured matrices.
        total: entries of all tensors of the source.
        outcomes: number of tensors by outcome.
        groups: the tensors by outcome and reason, most frequent reason first.
        doubtful: (name, status) of each row whose status is not "ok".
        worst: (error bound relative to σ max, name) of the row with the largest, or None.
        seconds: wall time, or None where the provenance does not say.
    """

    matrices: int
    measured: int
    parameters: int
    total: int
    outcomes: dict[str, int]
    groups: tuple[Group, ...]
    doubtful: tuple[tuple[str, str], ...]
    worst: tuple[float, str] | None
    seconds: float | None

    @property
    def share(self) -> str:
        """How much of the source was measured, in words."""
        if 0 < self.parameters <= self.total:
            # Cut, not rounded: 100 % is all of them.
            percent = math.floor(1000 * self.parameters / self.total) / 10
            return f"{percent:g} % of {in_short(self.total)} parameters"
        return f"{in_short(self.parameters)} parameters"


def summarize(run: Run) -> Summary:
    """The totals of a run."""
    measured = [r for r in run.records if isinstance(r.readings.get("sigma_max"), int | float)]
    bounds = [(float(b), r.name) for r in measured if isinstance(b := r.readings.get("error_bound"), int | float)]
    seconds = run.provenance.get("wall seconds")
    doubts = ((r.name, doubt(r.readings.get("status"))) for r in run.records)
    return Summary(
        matrices=len(run.records),
        measured=len(measured),
        parameters=sum(_parameters(record) for record in measured),
        total=sum(math.prod(entry.shape) for entry in run.coverage),
        outcomes={outcome: sum(entry.outcome == outcome for entry in run.coverage) for outcome in OUTCOMES},
        groups=_groups(run.coverage),
        doubtful=tuple((name, status) for name, status in doubts if status),
        worst=max(bounds, default=None),
        seconds=float(seconds) if isinstance(seconds, int | float) else None,
    )


def _parameters(record: Record) -> int:
    """Numbers stored, where a row says so; otherwise the entries of its matrix."""
    stored, rows, cols = (record.readings.get(name) for name in ("parameters", "rows", "cols"))
    if isinstance(stored, int):
        return stored
    return rows * cols if isinstance(rows, int) and isinstance(cols, int) else 0


def _groups(coverage: tuple[Coverage, ...]) -> tuple[Group, ...]:
    members: dict[tuple[str, str], list[Coverage]] = {}
    for entry in coverage:
        members.setdefault((entry.outcome, entry.reason), []).append(entry)
    ordered = sorted(members, key=lambda key: (OUTCOMES.index(key[0]), -len(members[key])))
    return tuple(Group(key[0], key[1] or "as stored", tuple(members[key])) for key in ordered)


def in_short(count: float) -> str:
    """22,565,376 → "22.6 M"; "B" for 10⁹, as parameters are counted."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:,.0f}"


def counted(count: int, noun: str, plural: str = "") -> str:
    """ "1 matrix", "40 matrices"."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """Seconds below two minutes, then minutes, then hours."""
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def change_of(entry: Coverage) -> str:
    """The relative change of a vector in a comparison; empty for everything else."""
    change = entry.relative_change if isinstance(entry, Compared) else None
    if change is None:
        return ""
    return "∞" if math.isinf(change) else f"{significant(100.0 * change, 3)} %"
