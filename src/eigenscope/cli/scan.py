"""The verb ``scan``: plan, run with progress, write the page, print."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from eigenscope.cli.files import check_page
from eigenscope.columns import BY_NAME
from eigenscope.engine.export import as_json
from eigenscope.engine.progress import Progress
from eigenscope.errors import InputError
from eigenscope.report import text
from eigenscope.report.cells import unknown
from eigenscope.tasks.readings import ScanOptions
from eigenscope.tasks.scan import make_plan, open_run_file, run_plan


def run_scan(
    source: str,
    options: ScanOptions,
    *,
    workers: int | None,
    output: Path | None,
    report: Path | None,
    as_json_text: bool,
    plan_only: bool,
    show_coverage: bool,
    columns: tuple[str, ...],
    quiet: bool,
) -> None:
    """Do what the command line asked for. What would fail at the end is found out before the work."""
    _check_columns(columns, as_json_text)
    if report is not None:
        check_page(report, output)
    plan = make_plan(source, options, workers)
    if plan_only:
        if as_json_text:
            sys.stdout.write(json.dumps(plan.lines(), indent=1) + "\n")
        else:
            text.print_plan(plan.lines())
        return
    with open_run_file(plan, output) as runfile:
        with text.ProgressBar(quiet=quiet) as bar:

            def show(event: Progress) -> None:
                bar.update(event.done, event.total, event.label)

            for _ in run_plan(plan, runfile, progress=show):
                pass
        run = runfile.load(with_values=report is not None)
    try:
        if report is not None:
            from eigenscope.report.html import write_page

            write_page(run, report)
    finally:  # a page that cannot be written is no reason to keep the rows back
        if as_json_text:
            sys.stdout.write(as_json(run) + "\n")
        else:
            text.print_scan(run, columns=columns or None)
            if show_coverage:
                text.print_coverage(run)
    if report is not None and not as_json_text:
        print(report)


def _check_columns(columns: tuple[str, ...], as_json_text: bool) -> None:
    if columns and as_json_text:
        raise InputError("--columns with --json", expected="one of them", remedy="JSON holds every column")
    known = (*BY_NAME, text.SHAPE.name)
    for name in columns:
        if name not in known:
            raise unknown("column", name, known)
