"""The verb ``compress``: load, fit, choose, measure, train if asked, write, print."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, get_args

import torch
import typer

from eigenscope.cli.files import check_page
from eigenscope.engine.pool import available_cpus
from eigenscope.errors import InputError, SourceError
from eigenscope.models.language import LanguageModel, load_language_model
from eigenscope.models.lowrank import matrix_of
from eigenscope.models.text import read_domains, windows
from eigenscope.models.write import check_folder
from eigenscope.report import text
from eigenscope.report.compress_text import print_compressed
from eigenscope.tasks.compress import factorise
from eigenscope.tasks.compress_factors import Weighting
from eigenscope.tasks.compress_measure import HELD_OUT
from eigenscope.tasks.compress_options import CompressOptions
from eigenscope.tasks.compress_result import Compressed
from eigenscope.tasks.compress_subject import Subject, of_language_model, text_batches
from eigenscope.tasks.compressed import finish
from eigenscope.tasks.recover import apart, recover, trainable


@dataclass(frozen=True)
class CompressWanted:
    """What the command line asks for besides the compression itself.

    Attributes:
        texts: to fit to.
        evaluate: to measure the loss on.
        sweep: shares of the curve.
        recover: steps of training after it.
        learning_rate: of them.
        output: folder to write.
        dense: write the factors multiplied out.
        force: write into a folder that is not empty.
        speed: measure tokens per second and peak memory.
        rivals: cut the model as others do, too.
        report: the page.
        json, plan, quiet: as everywhere.
    """

    texts: tuple[str, ...]
    evaluate: tuple[str, ...]
    sweep: tuple[float, ...]
    recover: int
    learning_rate: float
    output: Path | None
    dense: bool
    force: bool
    speed: bool
    rivals: bool
    report: Path | None
    json: bool
    plan: bool
    quiet: bool


def run_compress(source: str, options: CompressOptions, wanted: CompressWanted) -> None:
    """Do what the command line asked for. What would fail at the end is found out before the work.

    Raises:
        InputError, SourceError: as for :func:`eigenscope.tasks.compressed.compress`.
    """
    options.check()
    _check(wanted)
    domains, others = read_domains(wanted.texts), read_domains(wanted.evaluate) if wanted.evaluate else ()
    language = load_language_model(source)
    subject = of_language_model(language, domains, options)
    if wanted.speed and subject.likelihood != "causal":
        raise InputError("--speed of a model that does not write", where=source, expected="a causal language model")
    if wanted.plan:
        lines = plan_lines(subject, options)
        typer.echo(json.dumps(lines, indent=1)) if wanted.json else text.print_plan(lines)
        return
    work = _work_folder(wanted.output)
    with text.ProgressBar(quiet=wanted.quiet) as bar:
        factored = factorise(
            subject, options, work, progress=lambda event: bar.update(event.done, event.total, event.label)
        )
        made = finish(
            factored, options, others, wanted.sweep, rivals=wanted.rivals,
            progress=lambda event: bar.update(event.done, event.total, event.label),
        )  # fmt: skip
    if wanted.recover:
        with text.ProgressBar(quiet=wanted.quiet) as bar:
            _recover(made, language, subject, options, wanted, work, bar)
    if wanted.speed:
        made.measure_speed(subject)
    if wanted.report is not None:
        made.report(wanted.report)
    if wanted.output is not None:
        made.save(wanted.output, dense=wanted.dense, force=wanted.force)
        shutil.rmtree(work)
    if wanted.json:
        typer.echo(json.dumps(made.summary(), indent=1, default=str, ensure_ascii=False))
        return
    print_compressed(made.summary())
    for written in (wanted.output, wanted.report):
        if written is not None:
            typer.echo(written)


def _check(wanted: CompressWanted) -> None:
    if not wanted.texts:
        raise InputError("no --text", where="compress", expected="text to fit to and to measure the loss on")
    for share in wanted.sweep:
        if not 0.0 < share < 1.0:
            raise InputError(f"--sweep {share}", expected="shares between 0 and 1, both excluded, as in 0.9,0.8,0.7")
    if wanted.output is None and (wanted.dense or wanted.force):
        raise InputError("--dense or --force without -o", expected="a folder to write")
    if wanted.report is not None:
        check_page(wanted.report, None)
    if wanted.output is not None and wanted.output.suffix == ".gguf":
        raise InputError(
            "a GGUF file", where=str(wanted.output), expected="a folder to write",
            remedy="write one with --dense, and run llama.cpp's convert_hf_to_gguf.py on it",
        )  # fmt: skip
    if wanted.output is not None:
        check_folder(wanted.output, force=wanted.force)


def _work_folder(output: Path | None) -> Path:
    """Beside the output, so that the same command after an interruption finds it."""
    if output is None:
        import atexit
        import tempfile

        temporary = tempfile.mkdtemp(prefix="eigenscope-")
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        return Path(temporary)
    work = output.resolve().parent / f".{output.name}.unfinished"
    work.mkdir(exist_ok=True)
    return work


def _recover(
    made: Compressed, language: LanguageModel, subject: Subject, options: CompressOptions, wanted: CompressWanted,
    work: Path, bar: text.ProgressBar,
) -> None:  # fmt: skip
    """Train on text that the layers were not fitted to, as far as there is any; measure again."""
    needed = wanted.recover * options.batch
    shape = subject.fitted[0]["input_ids"].shape
    # Twice as much as is needed, as what is measured on is left out of it.
    more = windows(
        language.tokenizer, read_domains(wanted.texts), 2 * needed * shape[1], shape[1], seed=options.seed + 3,
        passages=language.kind != "causal",
    )  # fmt: skip
    more = apart(more, subject.held_out).shuffled(options.seed)[:needed]
    factors = [parameter.detach().clone() for parameter in trainable(made.model)]
    measured = dict(made.measured)
    done = recover(
        made.model, subject.model, list(more.batches(options.batch)) or subject.fitted, subject.likelihood,
        steps=wanted.recover, learning_rate=wanted.learning_rate, state=work / "recovery.pt",
        progress=lambda event: bar.update(event.done, event.total, event.label),
    )  # fmt: skip
    made.remeasure(subject, text_batches(subject, read_domains(wanted.evaluate), options) if wanted.evaluate else {})
    before, after = measured[HELD_OUT], made.measured[HELD_OUT]
    if not after.value <= before.value:
        with torch.no_grad():
            for parameter, kept in zip(trainable(made.model), factors, strict=True):
                parameter.copy_(kept)
        made.measured = measured
        made.notes += (
            f"{done.steps} steps of recovery are not kept: on held-out text {after.value:.4f} ± {after.stderr:.4f} would be added,"
            f" without them {before.value:.4f}. A smaller --learning-rate, or more steps on more text, may do.",
        )  # fmt: skip
        return
    losses = done.losses or (float("nan"),)
    made.recovery = {"steps": done.steps, "parameters": done.parameters, "first": losses[0], "last": losses[-1]}


def plan_lines(subject: Subject, options: CompressOptions) -> dict[str, str]:
    """What would be done, and what it costs, in words."""
    tokens = sum(int(batch["attention_mask"].sum()) for batch in subject.fitted)
    held = sum(int(batch["attention_mask"].sum()) for batch in subject.held_out)
    sides = [matrix_of(subject.model.get_submodule(name)).shape for name in subject.layers]
    moments = sum(4.0 * (rows**2 + cols**2) for rows, cols in sides)
    return {
        "source": subject.source, "model": type(subject.model).__name__,
        "layers": f"{len(subject.layers)} with {subject.parameters:,} parameters",
        "left dense": "; ".join(f"{name}: {why}" for name, why in subject.left_out.items()) or "none",
        "objective": options.objective, "text": f"{tokens:,} tokens to fit to, {held:,} held out",
        "moments": f"up to {moments / 1e6:,.0f} MB on disk for each of the texts; a share of it in memory",
        "workers": str(available_cpus()), **{f"note {i + 1}": note for i, note in enumerate(subject.notes)},
    }  # fmt: skip


def read_ranks(path: Path) -> dict[str, int]:
    """Layer → rank, from a JSON file: a mapping, or the report that a compressed model comes with.

    Raises:
        SourceError: it is neither.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"cannot be read: {error}", where=str(path), expected="a JSON file") from error
    if isinstance(content, dict) and isinstance(content.get("layers"), list):
        return {layer["name"]: layer["rank"] for layer in content["layers"] if layer["share"] < 1.0}
    if isinstance(content, dict) and all(isinstance(rank, int) for rank in content.values()):
        return content
    raise SourceError("holds no ranks", where=str(path), expected='{"layer": rank, …}, or an eigenscope.json')


def with_ranks(options: CompressOptions, path: Path | None) -> CompressOptions:
    """The options with the ranks of a file, if one is named."""
    return options if path is None else replace(options, ranks=read_ranks(path))


def weighting(name: str) -> Weighting:
    """The objective of that name.

    Raises:
        InputError: there is none.
    """
    for known in get_args(Weighting):
        if name == known:
            return cast("Weighting", known)
    raise InputError(f"--objective {name}", expected=", ".join(get_args(Weighting)))


def shares(text: str) -> tuple[float, ...]:
    """Numbers separated by commas.

    Raises:
        InputError: one is no number.
    """
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise InputError(f"--sweep {text}", expected="shares such as 0.9,0.8,0.7") from error
