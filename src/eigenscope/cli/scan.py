"""The verb ``scan``: plan, run with progress, write the page, print, judge."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from eigenscope.cli.tables import (
    Wanted,
    prepare,
    print_json,
    print_plans,
    report_conditions,
    rows_with_progress,
    run_files,
)  # fmt: skip
from eigenscope.engine.export import as_json
from eigenscope.errors import InputError
from eigenscope.report import text
from eigenscope.results import Run
from eigenscope.tasks import weightwatcher
from eigenscope.tasks.readings import ScanOptions
from eigenscope.tasks.scan import judged, make_plan, open_run_file, run_plan

WEIGHTWATCHER = "weightwatcher"
"""The name that stands for all of that program's columns."""


def run_scan(sources: list[str], options: ScanOptions, workers: int | None, wanted: Wanted) -> bool:
    """Do what the command line asked for; whether a row meets a condition of ``--fail-on``.

    What would fail at the end is found out before the work.
    """
    conditions = prepare("scan", _without_weightwatcher(wanted), (WEIGHTWATCHER,))
    plans = [make_plan(source, options, workers) for source in sources]
    if wanted.plan:
        print_plans(plans, wanted)
        return False
    files = run_files(sources, wanted.output)
    runs = [
        rows_with_progress(open_run_file(plan, file), partial(run_plan, plan), judged, wanted.quiet)
        for plan, file in zip(plans, files, strict=True)
    ]
    try:
        if wanted.report is not None:
            from eigenscope.report.html import write_page

            write_page(runs[0], wanted.report, runs[1:])
    finally:  # a page that cannot be written is no reason to keep the rows back
        _print_runs(runs, wanted)
    if wanted.report is not None and not wanted.json:
        print(wanted.report)
    return report_conditions(conditions, runs)


def _print_runs(runs: list[Run], wanted: Wanted) -> None:
    if wanted.json:
        print_json([_as_json(run, wanted) for run in runs])
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


def _without_weightwatcher(wanted: Wanted) -> Wanted:
    if wanted.columns == (WEIGHTWATCHER,):
        return replace(wanted, columns=())
    if WEIGHTWATCHER in wanted.columns:
        raise InputError("weightwatcher among other columns", expected="it alone: its names have meanings of their own")
    return wanted
