"""The verb ``scan``: plan, run with progress, print, write the page."""

from __future__ import annotations

import sys
from pathlib import Path

from eigenscope.engine.export import as_json
from eigenscope.engine.progress import Progress
from eigenscope.report import text
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
    """Do what the command line asked for."""
    plan = make_plan(source, options, workers)
    if plan_only:
        text.print_plan(plan.lines())
        return
    with open_run_file(plan, output) as runfile:
        with text.ProgressBar(quiet=quiet) as bar:

            def show(event: Progress) -> None:
                bar.update(event.done, event.total, event.label)

            for _ in run_plan(plan, runfile, progress=show):
                pass
        if report is not None:
            from eigenscope.report.html import write_page

            write_page(runfile.load(), report)
        run = runfile.load(with_values=False)
    if as_json_text:
        sys.stdout.write(as_json(run) + "\n")
        return
    text.print_scan(run, columns=columns or None)
    if show_coverage:
        text.print_coverage(run)
    if report is not None:
        print(report)
