"""Several runs of one training: medians over the matrices that all have, the same in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from eigenscope.columns import Column, named
from eigenscope.report.cells import format_value, shown_columns
from eigenscope.report.layouts import layout_of
from eigenscope.results import Record, Run, Value


@dataclass(frozen=True)
class Medians:
    """Readings over runs.

    Attributes:
        names: matrices that all runs have, in the order of the first.
        left_out: matrices that some run lacks.
        labels: of the readings.
        cells: readings × runs.
    """

    names: tuple[str, ...]
    left_out: int
    labels: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]


def medians(runs: Sequence[Run]) -> Medians:
    """The medians of the most telling readings over the matrices in all runs, one column a run.

    Args:
        runs: at least one.
    """
    rows = by_name(runs)
    names, left_out = common(rows)
    known = [set(shown_columns(run)) for run in runs]
    columns = named(runs[0].verb)
    wanted = [columns[name] for name in layout_of(runs[0]).in_series if name in columns]
    shown = [column for column in wanted if all(column in each for each in known)]
    cells = tuple(tuple(format_value(column, _median(column, row, names)) for row in rows) for column in shown)
    return Medians(tuple(names), left_out, tuple(column.label for column in shown), cells)


def by_name(runs: Sequence[Run]) -> list[dict[str, Record]]:
    """Name → record of each run."""
    return [{record.name: record for record in run.records} for run in runs]


def common(rows: Sequence[dict[str, Record]]) -> tuple[list[str], int]:
    """Names that all runs have, in the order of the first, and how many others there are."""
    names = [name for name in rows[0] if all(name in row for row in rows)]
    return names, len({name for row in rows for name in row}) - len(names)


def _median(column: Column, row: dict[str, Record], names: Sequence[str]) -> Value:
    values = [v for name in names if isinstance(v := row[name].readings.get(column.name), int | float)]
    return median(values) if values else None
