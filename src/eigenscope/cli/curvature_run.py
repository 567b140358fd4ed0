"""What ``eigenscope curvature`` does with its options: plan, work with progress, page, text or JSON."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from eigenscope.cli.files import check_output, check_page
from eigenscope.engine.export import plain
from eigenscope.errors import InputError
from eigenscope.report import text
from eigenscope.report.curvature_text import print_curvature
from eigenscope.tasks.curvature import VERB, load_curvature, operator, run_plan, verb_of
from eigenscope.tasks.curvature_content import content_of
from eigenscope.tasks.curvature_options import CurvatureOptions, make_plan
from eigenscope.tasks.curvature_source import TextOptions, open_problem


@dataclass(frozen=True)
class CurvatureWanted:
    """What the command line asks for besides the analysis itself.

    Attributes:
        params: a regular expression over names of parameters, or "".
        gauss_newton: the operator.
        dtype: "float32", "float64" or "".
        output: run file.
        report: the page.
        json: print JSON.
        plan: print the plan and stop.
        quiet: no progress.
    """

    params: str
    gauss_newton: bool
    dtype: str
    output: Path | None
    report: Path | None
    json: bool
    plan: bool
    quiet: bool


def run_curvature(source: str, texts: TextOptions, options: CurvatureOptions, wanted: CurvatureWanted) -> None:
    """Do what the command line asked for. What would fail at the end is found out before the work.

    Raises:
        InputError, SourceError, RunFileError: as the tasks raise them.
        KeyboardInterrupt: the work was interrupted; what was done has been printed.
    """
    if wanted.dtype not in ("", "float32", "float64"):
        raise InputError(f"dtype {wanted.dtype!r}", expected="float32 or float64")
    if wanted.report is not None:
        check_page(wanted.report, wanted.output)
    if wanted.output is not None:
        check_output(wanted.output, None)
    if texts.files and (wanted.quiet or not sys.stderr.isatty()) and importlib.util.find_spec("transformers"):
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    problem = open_problem(source, texts)
    options = _of_optimizer(options, problem.optimizer)
    dtype = getattr(torch, wanted.dtype) if wanted.dtype else None
    H = operator(
        problem.model, problem.loss, problem.batches, wanted.params or None, problem.count, wanted.gauss_newton, dtype,
        options.memory,
    )  # fmt: skip
    for note in problem.notes:
        H.note(note)
    plan = make_plan(H, options)
    if wanted.plan:
        lines = {"source": problem.source, **plan.lines(), **{f"note {i}": note for i, note in enumerate(H.notes, 1)}}
        print(json.dumps(lines, indent=2)) if wanted.json else text.print_plan(lines)
        return
    with text.ProgressBar(quiet=wanted.quiet) as bar:
        found = run_plan(
            H, plan, problem.source, output=wanted.output, optimizer=problem.optimizer,
            progress=lambda event: bar.update(event.done, event.total, event.label),
        )  # fmt: skip
    content = content_of(found)
    if wanted.report is not None:
        from eigenscope.report import curvature_page

        curvature_page.write_page(content, wanted.report)
    if wanted.json:
        print(json.dumps(plain(content)))
    else:
        print_curvature(content)
        if wanted.report is not None:
            print(wanted.report)
    if found.interrupted:
        raise KeyboardInterrupt


def wrote_page(runs: Sequence[Path], page: Path) -> bool:
    """Write the page of a run file, if it is of an analysis of curvature; whether it was.

    Raises:
        InputError: several runs, the first of which is.
    """
    if verb_of(runs[0]) != VERB:
        return False
    if len(runs) > 1:
        raise InputError(
            f"{len(runs)} runs", where=str(runs[0]), expected="one: analyses of curvature have no comparison"
        )
    load_curvature(runs[0]).report(page)
    return True


def _of_optimizer(options: CurvatureOptions, optimizer: torch.optim.Optimizer | None) -> CurvatureOptions:
    """With the learning rate and β₁ of a live optimiser, where none was given."""
    if optimizer is None or options.learning_rate is not None:
        return options
    group = optimizer.param_groups[0]
    return replace(options, learning_rate=float(group["lr"]), beta1=float(group.get("betas", (0.9,))[0]))
