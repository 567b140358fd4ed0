"""``scan A B C``: the checkpoints of one training run → each reading over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eigenscope.errors import InputError
from eigenscope.results import Run
from eigenscope.tasks.scan import Scan, scan

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


class Series:
    """The result of :func:`scan_series`.

    Attributes:
        runs: one per checkpoint, in the order given.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = tuple(runs)

    @property
    def table(self) -> pd.DataFrame:
        """One row per checkpoint and matrix: the columns of ``Scan.table`` after ``checkpoint`` (0, 1, …) and ``source``."""
        import pandas as pd

        tables = [Scan(run).table for run in self.runs]
        for place, (run, table) in enumerate(zip(self.runs, tables, strict=True)):
            table.insert(0, "checkpoint", place)
            table.insert(1, "source", run.source)
        return pd.concat(tables, ignore_index=True)

    def figure(self, reading: str = "stable_rank", role: str | None = None) -> go.Figure:
        """A reading over the checkpoints, a line for each layer of a role.

        Raises:
            InputError: no such reading or role; near names are offered.
        """
        from eigenscope.report import figures

        return figures.over_runs(self.runs, reading, role)

    def report(self, path: str | Path) -> Path:
        """Write the self-contained HTML page and return its path."""
        from eigenscope.report.html import write_page

        write_page(self.runs[0], path, self.runs[1:])
        return Path(path)

    def __repr__(self) -> str:
        return f"Series({', '.join(repr(run.source) for run in self.runs)})"


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
