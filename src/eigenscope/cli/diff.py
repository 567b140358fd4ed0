"""The verb ``diff``: plan, compare with progress, write the page, print, judge."""

from __future__ import annotations

from functools import partial
from pathlib import Path

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
from eigenscope.tasks.diff import DiffOptions, DiffPlan, judged, make_plan, open_run_file, run_plan
from eigenscope.tasks.series import comparisons


def run_diff(sources: list[str], options: DiffOptions, workers: int | None, wanted: Wanted) -> bool:
    """Do what the command line asked for; whether a row meets a condition of ``--fail-on``.

    Of more than two checkpoints each is compared with the first, and with the one before it. What would fail at the end
    is found out before the work.
    """
    if len(sources) < 2:
        raise InputError("one checkpoint", expected="BASE and TUNED, or more of one training, in order")
    conditions = prepare("diff", wanted)
    since_first, steps = comparisons(sources)
    plans = {pair: make_plan(*pair, options, workers) for pair in dict.fromkeys((*since_first, *steps))}
    if wanted.plan:
        print_plans(list(plans.values()), wanted)
        return False
    files = run_files([f"{Path(a).name}-{Path(b).name}" for a, b in plans], wanted.output)
    made = {pair: _run(plans[pair], file, wanted.quiet) for pair, file in zip(plans, files, strict=True)}
    runs, between = [made[pair] for pair in since_first], [made[pair] for pair in steps]
    try:
        if wanted.report is not None:
            from eigenscope.report.html import write_page

            write_page(runs[0], wanted.report, runs[1:], between)
    finally:  # a page that cannot be written is no reason to keep the rows back
        _print_runs(list(made.values()), runs, between, wanted)
    if wanted.report is not None and not wanted.json:
        print(wanted.report)
    return report_conditions(conditions, runs)


def _run(plan: DiffPlan, file: Path | None, quiet: bool) -> Run:
    return rows_with_progress(open_run_file(plan, file), partial(run_plan, plan), judged, quiet)


def _print_runs(made: list[Run], runs: list[Run], steps: list[Run], wanted: Wanted) -> None:
    if wanted.json:
        print_json([as_json(run) for run in made])
        return
    if len(runs) == 1:
        text.print_run(runs[0], columns=wanted.columns or None)
    if wanted.coverage:
        for run in made:
            text.print_coverage(run)
    if len(runs) > 1:
        text.print_series(runs, columns=wanted.columns or None, title="Since the first checkpoint")
        text.print_series(steps, columns=wanted.columns or None, title="Step by step")
