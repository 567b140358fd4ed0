"""A run file → the run with what its verb makes of it: findings, a verdict."""

from __future__ import annotations

from pathlib import Path

from eigenscope.engine.runfile import RunFile
from eigenscope.errors import InputError
from eigenscope.results import Run
from eigenscope.tasks import diff, scan


def load_run(path: str | Path) -> Run:
    """The run of a run file, finished or not, with its findings.

    Raises:
        RunFileError: not a run file, or damaged.
        InputError: of a verb that has no table.
    """
    with RunFile(path) as file:
        run = file.load()
    if run.verb == "curvature":
        raise InputError(
            "an analysis of curvature has no table of matrices", where=str(path),
            remedy="use eigenscope report for its page, or curvature --json",
        )  # fmt: skip
    return diff.judged(run) if run.verb == "diff" else scan.judged(run)
