"""The verb ``scan``: plan, run with progress, write the page, print, judge."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from eigenscope.cli.files import check_page
from eigenscope.columns import BY_NAME
from eigenscope.engine.export import as_json
from eigenscope.engine.progress import Progress
from eigenscope.errors import InputError
from eigenscope.report import text
from eigenscope.report.cells import unknown
from eigenscope.results import Run
from eigenscope.tasks import weightwatcher
from eigenscope.tasks.conditions import Condition
from eigenscope.tasks.readings import ScanOptions
from eigenscope.tasks.scan import ScanPlan, judged, make_plan, open_run_file, run_plan

WEIGHTWATCHER = "weightwatcher"
"""The name that stands for all of that program's columns."""


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


def run_scan(sources: list[str], options: ScanOptions, workers: int | None, wanted: Wanted) -> bool:
    """Do what the command line asked for; whether a row meets a condition of ``--fail-on``.

    What would fail at the end is found out before the work.
    """
    _check_columns(wanted)
    conditions = [Condition(text) for text in wanted.fail_on]
    if wanted.report is not None:
        check_page(wanted.report, wanted.output)
    plans = [make_plan(source, options, workers) for source in sources]
    if wanted.plan:
        _print_plans(plans, wanted)
        return False
    runs = [
        _run(plan, file, wanted.quiet) for plan, file in zip(plans, _run_files(sources, wanted.output), strict=True)
    ]
    try:
        if wanted.report is not None:
            from eigenscope.report.html import write_page

            write_page(runs[0], wanted.report, runs[1:])
    finally:  # a page that cannot be written is no reason to keep the rows back
        _print_runs(runs, wanted)
    if wanted.report is not None and not wanted.json:
        print(wanted.report)
    met = [_report_condition(condition, run) for condition in conditions for run in runs]
    return any(met)


def _run(plan: ScanPlan, output: Path | None, quiet: bool) -> Run:
    with open_run_file(plan, output) as runfile:
        with text.ProgressBar(quiet=quiet) as bar:

            def show(event: Progress) -> None:
                bar.update(event.done, event.total, event.label)

            for _ in run_plan(plan, runfile, progress=show):
                pass
        return judged(runfile.load())


def _run_files(sources: list[str], output: Path | None) -> list[Path | None]:
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


def _print_plans(plans: list[ScanPlan], wanted: Wanted) -> None:
    if wanted.json:
        lines = [plan.lines() for plan in plans]
        sys.stdout.write(json.dumps(lines if len(lines) > 1 else lines[0], indent=1) + "\n")
        return
    for plan in plans:
        text.print_plan(plan.lines())


def _print_runs(runs: list[Run], wanted: Wanted) -> None:
    if wanted.json:
        texts = [_as_json(run, wanted) for run in runs]
        sys.stdout.write((f"[{', '.join(texts)}]" if len(texts) > 1 else texts[0]) + "\n")
        return
    for run in runs:
        if wanted.columns == (WEIGHTWATCHER,):
            rows = [[r.readings.get(c.name) for c in weightwatcher.COLUMNS] for r in weightwatcher.as_run(run).records]
            text.print_rows(weightwatcher.COLUMNS, rows)
        elif len(runs) == 1:
            text.print_run(run, columns=wanted.columns or None)
        if wanted.coverage:
            text.print_coverage(run)
    if len(runs) > 1 and wanted.columns != (WEIGHTWATCHER,):
        text.print_series(runs, columns=wanted.columns or None)


def _as_json(run: Run, wanted: Wanted) -> str:
    if wanted.columns == (WEIGHTWATCHER,):
        return as_json(weightwatcher.as_run(run), columns=weightwatcher.COLUMNS)
    return as_json(run)


def _report_condition(condition: Condition, run: Run) -> bool:
    """Say on standard error which rows meet a condition; whether any does."""
    names = [record.name for record in run.records if condition.holds(record)]
    if names:
        few = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        rows = "1 row meets" if len(names) == 1 else f"{len(names)} rows meet"
        print(f"eigenscope: {run.source}: {rows} {condition.text!r}: {few}", file=sys.stderr)
    return bool(names)


def _check_columns(wanted: Wanted) -> None:
    if wanted.columns == (WEIGHTWATCHER,):
        return
    if wanted.columns and wanted.json:
        raise InputError("--columns with --json", expected="one of them", remedy="JSON holds every column")
    known = (*BY_NAME, text.SHAPE.name, WEIGHTWATCHER)
    for name in wanted.columns:
        if name not in known:
            raise unknown("column", name, known)
        if name == WEIGHTWATCHER:
            raise InputError(
                "weightwatcher among other columns", expected="it alone: its names have meanings of their own"
            )
