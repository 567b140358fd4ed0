"""What every verb with a table does around its rows: checks before the work, progress, plans, conditions after it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from eigenscope.cli.files import check_page
from eigenscope.columns import named
from eigenscope.engine.progress import Progress
from eigenscope.engine.runfile import RunFile
from eigenscope.errors import InputError
from eigenscope.report import text
from eigenscope.report.cells import unknown
from eigenscope.results import Record, Run
from eigenscope.tasks.conditions import Condition


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for besides the measuring itself.

    Attributes:
        output: run file; of several sources, the folder of their run files.
        report: the page.
        json: print JSON instead of tables.
        plan: print the plan and stop.
        coverage: also list what became of every tensor.
        columns: names to show, or "weightwatcher"; empty for what fits.
        fail_on: conditions that no row may meet.
        quiet: no progress.
    """

    output: Path | None
    report: Path | None
    json: bool
    plan: bool
    coverage: bool
    columns: tuple[str, ...]
    fail_on: tuple[str, ...]
    quiet: bool


class Plan(Protocol):
    """What can say what it would do."""

    def lines(self) -> dict[str, str]:
        """The plan in words."""
        ...


def prepare(verb: str, wanted: Wanted, others: Sequence[str] = ()) -> list[Condition]:
    """The conditions, once everything that would fail at the end has been looked at.

    Args:
        verb: whose columns are asked for.
        wanted: what the command line asks for.
        others: names that stand for columns without being one.

    Raises:
        InputError: unknown columns, a bad condition, a page that cannot be written.
    """
    if wanted.columns and wanted.json:
        raise InputError("--columns with --json", expected="one of them", remedy="JSON holds every column")
    known = (*named(verb), text.SHAPE.name, *others)
    for name in wanted.columns:
        if name not in known:
            raise unknown("column", name, known)
    conditions = [Condition(line, verb) for line in wanted.fail_on]
    if wanted.report is not None:
        check_page(wanted.report, wanted.output)
    return conditions


def rows_with_progress(
    opened: AbstractContextManager[RunFile],
    rows: Callable[..., Iterable[Record]],
    judged: Callable[[Run], Run],
    quiet: bool,
) -> Run:
    """Make all rows of a run, with a bar on a terminal.

    Args:
        opened: the run file.
        rows: (run file, progress=…) → the rows that were missing.
        judged: adds the findings.
        quiet: no bar.
    """
    with opened as runfile:
        with text.ProgressBar(quiet=quiet) as bar:

            def show(event: Progress) -> None:
                bar.update(event.done, event.total, event.label)

            for _ in rows(runfile, progress=show):
                pass
        return judged(runfile.load())


def run_files(sources: Sequence[str], output: Path | None) -> list[Path | None]:
    """A run file for each source; those of several lie in a folder, numbered in the order of the command line."""
    if output is None or len(sources) == 1:
        return [output] * len(sources)
    if output.exists() and not output.is_dir():
        raise InputError(
            f"a file, for {len(sources)} sources", where=str(output), expected="a folder for their run files"
        )
    output.mkdir(exist_ok=True)
    stems = [re.sub(r"[^\w.-]+", "_", Path(source).name) for source in sources]
    return [output / f"{place:03}-{stem}.db" for place, stem in enumerate(stems, 1)]


def print_plans(plans: Sequence[Plan], wanted: Wanted) -> None:
    """Print what would be done."""
    if wanted.json:
        lines: list[Any] = [plan.lines() for plan in plans]
        sys.stdout.write(json.dumps(lines if len(lines) > 1 else lines[0], indent=1) + "\n")
        return
    for plan in plans:
        text.print_plan(plan.lines())


def print_json(texts: Sequence[str]) -> None:
    """Print one JSON object, or several as a list."""
    sys.stdout.write((f"[{', '.join(texts)}]" if len(texts) > 1 else texts[0]) + "\n")


def report_conditions(conditions: Iterable[Condition], runs: Sequence[Run]) -> bool:
    """Say on standard error which rows meet which condition; whether any does."""
    met = False
    for condition in conditions:
        for run in runs:
            names = [record.name for record in run.records if condition.holds(record)]
            if names:
                met = True
                few = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
                rows = "1 row meets" if len(names) == 1 else f"{len(names)} rows meet"
                print(f"eigenscope: {run.source}: {rows} {condition.text!r}: {few}", file=sys.stderr)
    return met
