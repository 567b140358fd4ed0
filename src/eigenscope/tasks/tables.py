"""A run with a table, as a notebook sees it: frames, figures, the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from eigenscope.columns import Column, columns_of
from eigenscope.engine.export import arrow_table
from eigenscope.errors import InputError
from eigenscope.results import Coverage, Finding, Run

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


class TableResult:
    """A run and what can be made of it; the results of ``scan`` and ``diff`` are such.

    Attributes:
        run: records, coverage and provenance as plain data.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    @property
    def table(self) -> pd.DataFrame:
        """One row per matrix, columns as in ``eigenscope.columns.columns_of(verb)``."""
        return frame(self.run, columns_of(self.run.verb))

    @property
    def coverage(self) -> pd.DataFrame:
        """One row per tensor: what became of it, and why."""
        import pandas as pd

        entries = self.run.coverage
        names = [f.name for f in fields(entries[0] if entries else Coverage)]
        return pd.DataFrame([asdict(entry) for entry in entries], columns=names)

    @property
    def outliers(self) -> pd.DataFrame:
        """What stands out, most severe first: the matrices, a sentence, a severity, the reading that shows it."""
        import pandas as pd

        return pd.DataFrame([vars(found) for found in self.run.findings], columns=[f.name for f in fields(Finding)])

    def figure(self, reading: str | None = None, matrix: str | None = None) -> go.Figure:
        """A Plotly figure: a reading over layer × role, or the spectrum of one matrix; by default the verb's first reading.

        Raises:
            InputError: no such reading or matrix; near names are offered.
        """
        from eigenscope.report import figures

        if matrix is not None:
            if reading is not None:
                raise InputError("both a reading and a matrix", expected="one of them")
            return figures.spectrum(self.run, matrix)
        return figures.heat_map(self.run, reading)

    def report(self, path: str | Path) -> Path:
        """Write the self-contained HTML page and return its path."""
        from eigenscope.report.html import write_page

        write_page(self.run, path)
        return Path(path)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.run.source!r}, {len(self.run.records)} matrices)"


def frame(run: Run, columns: Sequence[Column]) -> pd.DataFrame:
    """The rows of a run as a DataFrame with these columns."""
    import pandas as pd
    import pyarrow as pa

    types = {pa.int64(): pd.Int64Dtype()}
    table: pd.DataFrame = arrow_table(run, columns=columns).to_pandas(types_mapper=types.get)
    return table
