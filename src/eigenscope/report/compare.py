"""Two runs beside each other: which matrices are the same, how readings changed, and what else differs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from eigenscope.columns import Column, columns_of
from eigenscope.report.cells import MISSING, format_value, plotly_text, significant, visible
from eigenscope.report.grid import Grid, Shading, colour_range, compact, even_ticks
from eigenscope.results import Record, Run, Value

# What every run has of its own, and what changes no reading.
_CIRCUMSTANCES = frozenset({
    "started", "wall seconds", "CPU seconds", "rows measured", "rows resumed", "workers", "machine", "format", "notes",
    "python", "torch", "numpy", "scipy", "eigenscope", "base", "tuned", "formats",
})  # fmt: skip

_FACTORS = (
    *(1.0 + 10.0**-d for d in (4, 3, 2)),
    1.02,
    1.05,
    1.1,
    1.2,
    1.5,
    2.0,
    3.0,
    5.0,
    *(10.0**d for d in range(1, 300)),
)


@dataclass(frozen=True)
class Pairing:
    """Which matrices two runs have in common, by name.

    Attributes:
        partners: for each record of the first run its place in the second, or None.
        only_first, only_second: names, in the order of the runs.
        reshaped: matrices in both whose shapes differ.
    """

    partners: tuple[int | None, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    reshaped: tuple[str, ...]

    @property
    def matched(self) -> int:
        """Matrices in both."""
        return sum(partner is not None for partner in self.partners)


def pair(run: Run, other: Run) -> Pairing:
    """The matrices of two runs matched by name."""
    places = {record.name: i for i, record in enumerate(other.records)}
    names = {record.name for record in run.records}
    partners = tuple(places.get(record.name) for record in run.records)
    both = [(r, other.records[i]) for r, i in zip(run.records, partners, strict=True) if i is not None]
    return Pairing(
        partners=partners,
        only_first=tuple(r.name for r, i in zip(run.records, partners, strict=True) if i is None),
        only_second=tuple(r.name for r in other.records if r.name not in names),
        reshaped=tuple(a.name for a, b in both if _shape(a) != _shape(b)),
    )


def _shape(record: Record) -> tuple[Value, Value]:
    return record.readings.get("rows"), record.readings.get("cols")


def letters(count: int) -> list[str]:
    """A, B, …, Z, A2, B2, …: what the runs are called."""
    return [chr(ord("A") + i % 26) + (str(i // 26 + 1) if i >= 26 else "") for i in range(count)]


def version(run: Run) -> str:
    """The version that made a run."""
    return visible(run.provenance.get("eigenscope") or "an unknown version")


def title(run: Run) -> str:
    """The last part of what the user named, or of both that are compared."""
    parts = [Path(part).name or part for part in run.source.split(" → ")]
    return visible(" → ".join(parts) or "a run")


def differences(runs: Sequence[Run]) -> list[str]:
    """What makes runs hard to compare: versions and options that are not the same, one sentence each."""
    names = letters(len(runs))
    lines = []
    if len({version(run) for run in runs}) > 1:
        made = _listed([f"{name} {'was made ' if not i else ''}by {version(run)}"
                        for i, (name, run) in enumerate(zip(names, runs, strict=True))])  # fmt: skip
        lines.append(f"{made}: readings may differ for that reason.")
    if len({run.verb for run in runs}) > 1:
        lines.append(f"{_of_each(names, [visible(run.verb) for run in runs])}: they are runs of different verbs.")
    keys = dict.fromkeys(key for run in runs for key in run.provenance if key not in _CIRCUMSTANCES)
    for key in keys:
        # An option that a version does not know is told by the versions.
        values = [str(run.provenance[key]) for run in runs if key in run.provenance]
        if len(set(values)) > 1:
            said = [visible(run.provenance.get(key, MISSING)) for run in runs]
            lines.append(f"The option “{visible(key)}” differs: {_of_each(names, said)}.")
    return lines


def _of_each(names: Sequence[str], values: Sequence[str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))


def _listed(parts: Sequence[str]) -> str:
    return ", ".join(parts)


def change(column: Column, before: Value, after: Value) -> float | None:
    """log₁₀(after/before) for a column that is shown in log, else after − before; None where either is not defined.

    From 0 to more than 0, and to ∞, it is ∞; what stays the same is 0, ∞ included.
    """
    if not isinstance(before, int | float) or not isinstance(after, int | float):
        return None
    if math.isnan(before) or math.isnan(after):
        return None
    if before == after:
        return 0.0
    if column.scale == "linear":
        return float(after) - float(before)
    if before < 0.0 or after < 0.0:
        return None
    ends = [math.log10(v) if 0.0 < v < math.inf else math.copysign(math.inf, v - 1.0) for v in (after, before)]
    return ends[0] - ends[1]


def format_change(column: Column, amount: float | None, *, short: bool = False) -> str:
    """A change as text: a factor for a column that is shown in log, else a signed difference."""
    if amount is None:
        return MISSING
    if column.scale == "log":
        if not abs(amount) < 300.0:
            return "×∞" if amount > 0 else "×0"
        return f"×{float(f'{10.0**amount:.3g}'):g}" if short else f"×{significant(10.0**amount)}"
    if amount == 0.0:
        return "±0"
    size = compact(column, abs(amount)) if short else format_value(column, _whole(column, abs(amount)))
    return f"{'+' if amount > 0 else '−'}{size}"


def _whole(column: Column, amount: float) -> Value:
    return int(amount) if column.kind == "count" and amount == int(amount) else amount


def changes(run: Run, other: Run, pairing: Pairing, column: Column) -> list[float | None]:
    """The change of a reading for each record of the first run; None where there is no partner, or no reading."""
    return [
        None if partner is None
        else change(column, record.readings.get(column.name), other.records[partner].readings.get(column.name))
        for record, partner in zip(run.records, pairing.partners, strict=True)
    ]  # fmt: skip


def shade_change(run: Run, other: Run, pairing: Pairing, grid: Grid, column: Column) -> Shading:
    """The change of a reading over the grid of the first run, colours centred at none; the median of several."""
    amounts = changes(run, other, pairing, column)
    middles = [[_middle([amounts[i] for i in cell]) for cell in row] for row in grid.cells]
    finite = [m for row in middles for m in row if m is not None and math.isfinite(m)]
    reach = max(map(abs, colour_range(finite))) if any(finite) else 1.0
    return Shading(
        colors=tuple(tuple(None if m is None else min(max(m, -reach), reach) for m in row) for row in middles),
        texts=tuple(tuple("" if m is None else format_change(column, m, short=True) for m in row) for row in middles),
        hovers=tuple(
            tuple(_hover(run, other, pairing, cell, column, amounts) for cell in row) for row in grid.cells
        ),
        low=-reach,
        high=reach,
        ticks=_ticks(column, reach, finite),
    )  # fmt: skip


def _ticks(column: Column, reach: float, finite: Sequence[float]) -> tuple[tuple[float, str], ...]:
    """No change in the middle, round ones beside it, and a sign at each end beyond which there are changes."""
    if column.scale == "log":
        inside = [math.log10(factor) for factor in _FACTORS if math.log10(factor) <= 0.9 * reach]
        steps = [*inside[-1:], *[step for step in inside if step < 0.55 * inside[-1]][-1:]]
    else:
        steps = [value for value in even_ticks(0.0, 0.9 * reach) if value > 0.0]
    places = [0.0, *(sign * step for step in steps for sign in (-1.0, 1.0))]
    ticks = [(place, format_change(column, place, short=True)) for place in places]
    for end, sign, outside in (
        (-reach, "≤", min(finite, default=0.0) < -reach),
        (reach, "≥", max(finite, default=0.0) > reach),
    ):
        if outside:
            ticks = [tick for tick in ticks if abs(tick[0] - end) > 0.15 * reach]
            ticks.append((end, f"{sign} {format_change(column, end, short=True)}"))
    return tuple(sorted(ticks))


def _middle(amounts: Sequence[float | None]) -> float | None:
    known = [amount for amount in amounts if amount is not None]
    middle = median(known) if known else None
    return None if middle is None or math.isnan(middle) else middle


def _hover(
    run: Run, other: Run, pairing: Pairing, cell: Sequence[int], column: Column, amounts: Sequence[float | None]
) -> str:
    if not cell:
        return ""
    known = [amount for i in cell if (amount := amounts[i]) is not None]
    if not known:
        return f"{plotly_text(column.label)}: not in both"
    if len(cell) == 1:
        partner = pairing.partners[cell[0]]
        values = [run.records[cell[0]].readings.get(column.name)]
        values += [] if partner is None else [other.records[partner].readings.get(column.name)]
        before_after = " → ".join(format_value(column, value) for value in values)
        return f"{column.label}: {before_after} ({format_change(column, known[0])})"
    lowest, middle, highest = (format_change(column, f(known)) for f in (min, median, max))
    return f"{column.label}: median {middle} of {len(known)}, from {lowest} to {highest}"


def common_readings(run: Run, other: Run, pairing: Pairing) -> list[Column]:
    """The readings that some matrix has in both runs."""
    both = [(r, other.records[i]) for r, i in zip(run.records, pairing.partners, strict=True) if i is not None]
    return [
        column for column in columns_of(run.verb)
        if column.reading and any(a.readings.get(column.name) is not None and b.readings.get(column.name) is not None
                                  for a, b in both)
    ]  # fmt: skip
