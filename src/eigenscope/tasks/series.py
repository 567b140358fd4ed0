"""``scan A B C``, ``diff A B C``: the checkpoints of one training run → each reading over time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from eigenscope.errors import InputError
from eigenscope.results import Run
from eigenscope.tasks.diff import diff
from eigenscope.tasks.scan import scan
from eigenscope.tasks.tables import TableResult

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

T = TypeVar("T")


class Series:
    """The result of :func:`scan_series` and :func:`diff_series`.

    Attributes:
        runs: one per checkpoint, in the order given; of a comparison one per checkpoint after the first, against the first.
        steps: of a comparison, each checkpoint against the one before it; else empty.
    """

    def __init__(self, runs: Sequence[Run], steps: Sequence[Run] = ()) -> None:
        self.runs, self.steps = tuple(runs), tuple(steps)

    @property
    def table(self) -> pd.DataFrame:
        """One row per run and matrix: the columns of the verb's table after ``checkpoint`` (0, 1, …) and ``source``."""
        return _joined(self.runs)

    @property
    def step_table(self) -> pd.DataFrame:
        """The same of the steps from one checkpoint to the next.

        Raises:
            InputError: the series compares no checkpoints.
        """
        if not self.steps:
            raise InputError("a series without steps", expected="that of diff_series")
        return _joined(self.steps)

    def figure(self, reading: str | None = None, role: str | None = None) -> go.Figure:
        """A reading over the checkpoints, a line for each layer of a role.

        Args:
            reading: default: ``stable_rank``, of a comparison ``relative_change``.
            role: default: the one with the most matrices.

        Raises:
            InputError: no such reading or role; near names are offered.
        """
        from eigenscope.report import figures

        return figures.over_runs(self.runs, reading or ("relative_change" if self.steps else "stable_rank"), role)

    def report(self, path: str | Path) -> Path:
        """Write the self-contained HTML page and return its path."""
        from eigenscope.report.html import write_page

        write_page(self.runs[0], path, self.runs[1:], self.steps)
        return Path(path)

    def __repr__(self) -> str:
        return f"Series({', '.join(repr(run.source) for run in self.runs)})"


def _joined(runs: Sequence[Run]) -> pd.DataFrame:
    import pandas as pd

    tables = [TableResult(run).table for run in runs]
    for place, (run, table) in enumerate(zip(runs, tables, strict=True)):
        table.insert(0, "checkpoint", place)
        table.insert(1, "source", run.source)
    return pd.concat(tables, ignore_index=True)


def scan_series(sources: Sequence[Any], **options: Any) -> Series:
    """Scan several checkpoints of one training run.

    Args:
        sources: at least one, each as for :func:`eigenscope.scan`; named ``checkpoint 0``, … where they have no path.
        options: those of :func:`eigenscope.scan`, except ``output``.

    Raises:
        InputError: no source, or an option that a series does not take; otherwise as :func:`eigenscope.scan`.
    """
    if isinstance(sources, str | Path) or not len(sources):
        raise InputError(f"sources {sources!r}", expected="a list of at least one checkpoint")
    if "output" in options:
        raise InputError("output of a series", expected="no run file", remedy="use eigenscope scan A B C -o FOLDER")
    return Series([scan(source, **options).run for source in sources])


def diff_series(sources: Sequence[Any], **options: Any) -> Series:
    """Compare several checkpoints of one training run with the first, and each with the one before it.

    Args:
        sources: at least two, in order, each as for :func:`eigenscope.diff`.
        options: those of :func:`eigenscope.diff`, except ``output``.

    Raises:
        InputError: fewer than two sources, or an option that a series does not take; otherwise as :func:`eigenscope.diff`.
    """
    if isinstance(sources, str | Path) or len(sources) < 2:
        raise InputError(f"sources {sources!r}", expected="a list of at least two checkpoints, in order")
    if "output" in options:
        raise InputError("output of a series", expected="no run file", remedy="use eigenscope diff A B C -o FOLDER")
    since_first, steps = comparisons(range(len(sources)))
    made = {(a, b): diff(sources[a], sources[b], **options).run for a, b in dict.fromkeys((*since_first, *steps))}
    return Series([made[pair] for pair in since_first], [made[pair] for pair in steps])


def comparisons(sources: Sequence[T]) -> tuple[list[tuple[T, T]], list[tuple[T, T]]]:
    """(first, each of the others), and (each, the next one)."""
    return [(sources[0], other) for other in sources[1:]], list(pairwise(sources))
