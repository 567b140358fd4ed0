"""Records → text for people: tables that fit the terminal, the coverage, the plan, the progress."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self, TextIO

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column as RichColumn
from rich.table import Table
from rich.text import Text

from eigenscope.columns import Column, columns_of, named
from eigenscope.report.cells import doubt, format_value, shown_columns, significant, unknown, visible
from eigenscope.report.findings import NOTHING, in_order, sentence
from eigenscope.report.layouts import layout_of
from eigenscope.report.series import by_name, medians
from eigenscope.report.shorten import shorten
from eigenscope.report.summary import OUTCOMES, Summary, change_of, counted, duration, summarize
from eigenscope.results import Coverage, Record, Run, Value

PIPE_WIDTH = 160
GAP = 2
SHAPE = Column("shape", "shape", "text", "Outputs m × inputs n.", reading=False)


def print_run(
    run: Run, *, columns: Sequence[str] | None = None, file: TextIO | None = None, width: int | None = None
) -> None:
    """Print the table of matrices, the verdict, the findings, every doubtful row, the coverage in short, and the totals.

    Args:
        run: the run; singular values are not needed.
        columns: names to show, in that order; default: the most telling that fit.
        file: default: standard output.
        width: default: the terminal's, or 160 in a pipe.

    Raises:
        InputError: a column that does not exist; near names are offered.
    """
    sheet = _Sheet(file, width)
    wanted = _asked_for(run, columns) if columns else _by_priority(run)
    summary = summarize(run)
    if run.records:
        table, left_out = _matrix_table(run, wanted, sheet.width, by_place=not columns)
        sheet.add(table)
        if columns and left_out:
            names = ", ".join(column.name for column in left_out)
            sheet.line(f"{counted(len(left_out), 'column')} too many for {sheet.width} characters: {names}")
    if run.verdict:
        sheet.heading(visible(run.verdict))
        if run.provenance.get("notes"):
            sheet.line(visible(run.provenance["notes"]))
    _findings(sheet, run, summary)
    if summary.doubtful:
        sheet.heading(f"!  {counted(len(summary.doubtful), 'row')} to look at")
        for name, status in summary.doubtful:
            sheet.line(f"{visible(name)}: {status}", style="yellow", indent=3)
    _coverage_in_short(sheet, summary)
    sheet.line("")
    sheet.line(_totals(summary), style="bold")
    sheet.flush()


def print_series(
    runs: Sequence[Run], *, columns: Sequence[str] | None = None, title: str = "", file: TextIO | None = None,
    width: int | None = None,
) -> None:  # fmt: skip
    """Print readings over the checkpoints of a training run, one column each, in the order given.

    Args:
        runs: one or more.
        columns: readings to show matrix by matrix; default: medians of the most telling over the matrices in all runs.
        title: what the runs are.
        file, width: as in :func:`print_run`.

    Raises:
        InputError: a column that does not exist; near names are offered.
    """
    sheet = _Sheet(file, width)
    if title:
        sheet.line(title, style="bold")
    for place, run in enumerate(runs):
        sheet.line(f"{place:>3}  {visible(run.source)}: {visible(run.verdict) or _totals(summarize(run))}")
    middle = medians(runs)
    if columns:
        rows = by_name(runs)
        for column in _asked_for(runs[0], columns)[1:]:
            cells = [[_cell(row[name], column) for row in rows] for name in middle.names]
            _over_runs(sheet, column.label, shorten([visible(name) for name in middle.names], sheet.width // 2), cells)
    else:
        _over_runs(sheet, f"median of {len(middle.names)} matrices", middle.labels, middle.cells)
    if middle.left_out:
        sheet.line("")
        sheet.line(f"{counted(middle.left_out, 'matrix is', 'matrices are')} not in every checkpoint, and not shown")
    if title:
        sheet.line("")
    sheet.flush()


def _over_runs(sheet: _Sheet, title: str, labels: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    room = sheet.width - max(map(cell_len, labels), default=0)
    shown = next((n for n in range(len(widths)) if sum(widths[: n + 1]) + GAP * (n + 1) > room), len(widths))
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    table.add_column(title, no_wrap=True)
    for place in range(shown):
        table.add_column(str(place), justify="right", no_wrap=True)
    for label, line in zip(labels, cells, strict=True):
        table.add_row(Text(label), *map(Text, line[:shown]))
    sheet.line("")
    sheet.add(table)
    if shown < len(widths):
        sheet.line(f"{counted(len(widths) - shown, 'checkpoint')} too many for {sheet.width} characters")


def print_rows(
    columns: Sequence[Column], rows: Sequence[Sequence[Value]], *, file: TextIO | None = None, width: int | None = None
) -> None:
    """Print any table in full: no column is left out, so that another program can read it from a pipe.

    Args:
        columns: headings by their names, and how values are shown.
        rows: a value for each column.
        file, width: as in :func:`print_run`; wider tables run over.
    """
    sheet = _Sheet(file, width)
    cells = [[format_value(column, value) for column, value in zip(columns, row, strict=True)] for row in rows]
    lines = [[column.name for column in columns], *cells]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = (
            set_cell_size(cell, size) if column.kind == "text" else cell.rjust(size)
            for column, cell, size in zip(columns, line, widths, strict=True)
        )  # fmt: skip
        sheet.whole("  ".join(padded))
    sheet.flush()


def print_coverage(run: Run, *, file: TextIO | None = None, width: int | None = None) -> None:
    """Print what became of every tensor, grouped by outcome and reason."""
    sheet = _Sheet(file, width)
    for group in summarize(run).groups:
        sheet.heading(f"{visible(group.outcome)}: {visible(group.reason)} ({counted(len(group.tensors), 'tensor')})")
        rows = [_coverage_row(entry) for entry in group.tensors]
        names, shapes, dtypes = (max(cell_len(row[i]) for row in rows) for i in range(3))
        room = max(0, min(names, sheet.width - shapes - dtypes - 3 * GAP))
        for name, shape, dtype, matrices in rows:
            line = f"{set_cell_size(name, max(room, cell_len(name)))}  {shape:<{shapes}}  {dtype:<{dtypes}}  {matrices}"
            sheet.line(line.rstrip(), indent=GAP)
    sheet.flush()


def _coverage_row(entry: Coverage) -> tuple[str, str, str, str]:
    shape = "×".join(map(str, entry.shape)) or "scalar"
    matrices = counted(entry.matrices, "matrix", "matrices") if entry.matrices > 1 else change_of(entry)
    return visible(entry.tensor), shape, visible(entry.dtype), matrices


def print_plan(lines: Mapping[str, str], *, file: TextIO | None = None, width: int | None = None) -> None:
    """Print what would be done, as two columns."""
    sheet = _Sheet(file, width)
    columns = (RichColumn(style="dim", no_wrap=True), RichColumn(overflow="fold"))
    table = Table(*columns, box=None, show_header=False, pad_edge=False, padding=(0, GAP, 0, 0))
    for key, value in lines.items():
        table.add_row(Text(visible(key)), Text(visible(value)))
    sheet.add(table)
    sheet.flush()


def print_lines(lines: Sequence[tuple[str, str]], *, file: TextIO | None = None, width: int | None = None) -> None:
    """Print sentences, each with its style ("bold", "dim" or none), broken where the terminal ends."""
    sheet = _Sheet(file, width)
    for line, style in lines:
        sheet.line(line, style)
    sheet.flush()


class ProgressBar:
    """A bar on standard error while it is a terminal; nothing in a pipe, nothing when quiet.

    Args:
        quiet: draw nothing anywhere.
        file: default: standard error.
    """

    def __init__(self, *, quiet: bool = False, file: TextIO | None = None) -> None:
        stream = sys.stderr if file is None else file
        self._progress: Progress | None = None
        if not quiet and stream.isatty():
            label = TextColumn(
                "{task.fields[label]}",
                markup=False,
                table_column=RichColumn(ratio=1, no_wrap=True, overflow="ellipsis"),
            )
            self._progress = Progress(
                MofNCompleteColumn(), BarColumn(bar_width=30), TimeRemainingColumn(), label,
                console=_console(stream, None), transient=True, expand=True,
            )  # fmt: skip
            self._task = self._progress.add_task("", total=None, label="")

    def update(self, done: int, total: int, label: str) -> None:
        """``done`` of ``total`` are finished, the last of them ``label``."""
        if self._progress is not None:
            self._progress.update(self._task, completed=done, total=total, label=visible(label))

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()


def _console(file: TextIO, width: int | None) -> Console:
    """A console that obeys nothing in the text, and sends colour to terminals only."""
    terminal = file.isatty()
    return Console(
        file=file, width=width if width or terminal else PIPE_WIDTH, force_terminal=terminal, force_jupyter=False,
        color_system="auto" if terminal else None, markup=False, highlight=False, emoji=False,
    )  # fmt: skip


class _Sheet:
    """Collects a page of text and writes it at once, in what characters the file's encoding has."""

    def __init__(self, file: TextIO | None, width: int | None) -> None:
        self._file = sys.stdout if file is None else file
        self._console = _console(self._file, width)
        self.width = self._console.width
        self._console.begin_capture()

    def add(self, block: Table | Padding | Text) -> None:
        self._console.print(block)

    def line(self, text: str, style: str = "", indent: int = 0) -> None:
        self.add(Padding(Text(text, style=style, overflow="fold"), (0, 0, 0, indent)))

    def whole(self, text: str) -> None:
        """A line that is never broken, however long."""
        self._console.print(Text(text), soft_wrap=True)

    def heading(self, text: str) -> None:
        self.line("")
        self.line(text, style="bold")

    def flush(self) -> None:
        lines = (line.rstrip() for line in self._console.end_capture().splitlines())
        encoding = self._file.encoding or "utf-8"
        self._file.write("".join(f"{line}\n" for line in lines).encode(encoding, "replace").decode(encoding))


def _asked_for(run: Run, columns: Sequence[str]) -> list[Column]:
    known = {**named(run.verb), "shape": SHAPE}
    for name in columns:
        if name not in known:
            raise unknown("column", name, known)
    return [known[name] for name in dict.fromkeys(["name", *columns])]


def _by_priority(run: Run) -> list[Column]:
    shown = {"name", SHAPE.name, *(column.name for column in shown_columns(run))}
    return _named(run, [name for name in layout_of(run).priority if name in shown])


def _named(run: Run, names: Sequence[str]) -> list[Column]:
    known = {**named(run.verb), SHAPE.name: SHAPE}
    return [known[name] for name in names if name in known]


def _matrix_table(run: Run, wanted: list[Column], width: int, by_place: bool) -> tuple[Table, list[Column]]:
    """The table of those wanted columns that fit, in their usual places or as asked for, and those that do not."""
    doubtful = any(doubt(record.readings.get("status")) for record in run.records)
    room = width - (1 + GAP if doubtful else 0)
    cells = {column: [_cell(record, column) for record in run.records] for column in wanted}
    full = {column: max(map(cell_len, (*_heading(column).split("\n"), *cells[column]))) for column in wanted}
    least = {column: min(full[column], _least(column, width)) for column in wanted}
    chosen: list[Column] = []
    for column in wanted:
        if not chosen or sum(least[c] + GAP for c in chosen) + least[column] <= room:
            chosen.append(column)
    widths = {column: least[column] for column in chosen}
    for column in sorted(chosen, key=lambda c: c.name != "name"):
        spare = room - sum(widths.values()) - GAP * (len(chosen) - 1)
        widths[column] = max(1, min(full[column], widths[column] + spare))
    places = [column.name for column in columns_of(run.verb)]
    order = sorted(chosen, key=lambda c: _place(c, places)) if by_place else chosen
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    if doubtful:
        table.add_column("", width=1)
    for column in order:
        right = column.kind != "text" or column is SHAPE
        table.add_column(
            Text(_heading(column)), width=widths[column], justify="right" if right else "left", no_wrap=True,
            overflow="ellipsis", vertical="bottom",
        )  # fmt: skip
    texts = {c: shorten(cells[c], widths[c]) if c.name == "name" else cells[c] for c in order}
    for row, record in enumerate(run.records):
        mark = doubt(record.readings.get("status"))
        line = [Text(texts[column][row]) for column in order]
        table.add_row(*([Text("!" if mark else ""), *line] if doubtful else line), style="yellow" if mark else "")
    return table, [column for column in wanted if column not in chosen]


def _place(column: Column, names: Sequence[str]) -> float:
    return names.index("role") + 0.5 if column is SHAPE else names.index(column.name)


def _cell(record: Record, column: Column) -> str:
    if column is SHAPE:
        return f"{record.readings.get('rows', '?')}×{record.readings.get('cols', '?')}"
    if column.name == "name":
        return visible(record.name)
    return format_value(column, record.readings.get(column.name))


def _heading(column: Column) -> str:
    """The label, broken where its two lines come out shortest; a number stays with its per cent sign."""
    words = column.label.replace(" %", "\u00a0%").split(" ")
    if len(column.label) <= 6:
        return column.label
    breaks = [f"{' '.join(words[:i])}\n{' '.join(words[i:])}" for i in range(1, len(words))]
    return min(breaks, key=lambda text: max(map(len, text.split("\n"))), default=column.label)


def _least(column: Column, width: int) -> int:
    """Below this a column is not shown: words may be cut, numbers and shapes never are."""
    name = max(16, width * (28 if width < 100 else 32) // 100)
    return {"name": name, "role": max(7, width // 8), "method": 10, "status": 20}.get(column.name, width)


def _findings(sheet: _Sheet, run: Run, summary: Summary) -> None:
    found = in_order(run)
    if found:
        sheet.heading(counted(len(found), "finding"))
        for place, finding in enumerate(found, 1):
            sheet.line(f"{place:>3}. {sentence(finding)}")
    elif summary.measured:
        sheet.line("")
        sheet.line(NOTHING)


def _coverage_in_short(sheet: _Sheet, summary: Summary) -> None:
    tensors = sum(summary.outcomes.values())
    if not tensors:
        return
    sheet.heading(f"{counted(tensors, 'tensor')} in the source")
    for outcome in OUTCOMES:
        if not summary.outcomes[outcome]:
            continue
        groups = [group for group in summary.groups if group.outcome == outcome]
        matrices = sum(group.matrices for group in groups)
        into = f", {counted(matrices, 'matrix', 'matrices')}" if outcome in ("read", "compared") else ""
        sheet.line(f"{summary.outcomes[outcome]:>6,}  {outcome}{into}", indent=0)
        if len(groups) == 1 and groups[0].reason == "as stored":
            continue
        for group in groups:
            sheet.line(f"{len(group.tensors):,}  {visible(group.reason)}", style="dim", indent=8)


def _totals(summary: Summary) -> str:
    parts = [counted(summary.matrices, "matrix", "matrices")]
    if summary.measured < summary.matrices:
        parts.append(f"{summary.measured:,} of them measured")
    parts.append(summary.share)
    if summary.seconds is not None:
        parts.append(duration(summary.seconds))
    if summary.worst is not None:
        parts.append(f"errors ≤ {significant(summary.worst[0], 2)}·σ max")
    return " · ".join(parts)
