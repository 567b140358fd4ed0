"""The ``eigenscope`` executable: parse, call the task, print."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer

import eigenscope
from eigenscope.cli import adapter
from eigenscope.cli import curvature as curvature_verb
from eigenscope.cli import options as shared
from eigenscope.errors import EigenscopeError

app = typer.Typer(
    help="The spectral instrument for neural networks.",
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
)
app.add_typer(adapter.app, name="adapter")
app.command()(curvature_verb.curvature)

# Typer re-exports only this error of those it raises for a bad command line.
UsageError = cast("type[Exception]", typer.BadParameter.__mro__[1])
FINISHED, FOUND, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"eigenscope {eigenscope.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


@app.command()
def scan(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="MODEL…", help="A folder, a file, a hub id owner/name, or demo; several make a series."),
    ],
    output: shared.Output = None,
    report: shared.Page = None,
    json: shared.Json = False,
    plan: shared.Plan = False,
    coverage: shared.WithCoverage = False,
    columns: Annotated[str, typer.Option(metavar="A,B,…", help="Columns to show, or weightwatcher.")] = "",
    fail_on: Annotated[
        list[str] | None, typer.Option(metavar="CONDITION", help='Exit 1 if a row meets it: "condition > 1e6".')
    ] = None,
    target_condition: Annotated[float, typer.Option(metavar="κ", help="Condition number that `ridge` aims at.")] = 1e4,
    eigenvalues: Annotated[bool, typer.Option("--eigenvalues", help="Also the eigenvalues of square maps.")] = False,
    conv_grid: Annotated[int, typer.Option(metavar="N", help="Image size for the norm of 2-D convolutions.")] = 16,
    include: shared.Include = None,
    exclude: shared.Exclude = None,
    tail_tests: Annotated[int, typer.Option(metavar="N", help="p-value of the tail from N synthetic spectra.")] = 0,
    tail_stability: Annotated[int, typer.Option(metavar="N", help="Spread of α over N copies without a tenth.")] = 0,
    fixed_aspect: Annotated[float, typer.Option(metavar="Q", help="Also α over submatrices of sides 1:Q.")] = 0.0,
    device: shared.Device = "cpu",
    dtype: shared.Dtype = "float64",
    workers: shared.Workers = None,
    seed: shared.Seed = 0,
    quiet: shared.Quiet = False,
) -> None:
    """Spectrum and readings of every weight matrix of a checkpoint, or of several checkpoints of one training run."""
    from eigenscope.cli.scan import run_scan
    from eigenscope.cli.tables import Wanted
    from eigenscope.tasks.readings import ScanOptions

    options = ScanOptions(
        device=device, dtype=dtype, target_condition=target_condition, eigenvalues=eigenvalues, conv_grid=conv_grid,
        include=tuple(include or ()), exclude=tuple(exclude or ()), seed=seed, tail_tests=tail_tests,
        tail_stability=tail_stability, fixed_aspect=fixed_aspect,
    )  # fmt: skip
    wanted = Wanted(
        output=output, report=report, json=json, plan=plan, coverage=coverage,
        columns=tuple(name.strip() for name in columns.split(",") if name.strip()),
        fail_on=tuple(fail_on or ()), quiet=quiet,
    )  # fmt: skip
    if run_scan(sources, options, workers, wanted):
        raise typer.Exit(FOUND)


@app.command()
def diff(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="BASE TUNED…", help="Two checkpoints; more of one training make a series."),
    ],
    output: shared.Output = None,
    report: shared.Page = None,
    json: shared.Json = False,
    plan: shared.Plan = False,
    coverage: shared.WithCoverage = False,
    columns: Annotated[str, typer.Option(metavar="A,B,…", help="Columns to show.")] = "",
    fail_on: Annotated[
        list[str] | None, typer.Option(metavar="CONDITION", help='Exit 1 if a row meets it: "relative_change > 1".')
    ] = None,
    include: shared.Include = None,
    exclude: shared.Exclude = None,
    workers: shared.Workers = None,
    quiet: shared.Quiet = False,
) -> None:
    """What training changed: the spectrum of the difference of two checkpoints, and a verdict on each matrix and on all."""
    from eigenscope.cli.diff import run_diff
    from eigenscope.cli.tables import Wanted
    from eigenscope.tasks.diff import DiffOptions

    wanted = Wanted(
        output=output, report=report, json=json, plan=plan, coverage=coverage,
        columns=tuple(name.strip() for name in columns.split(",") if name.strip()),
        fail_on=tuple(fail_on or ()), quiet=quiet,
    )  # fmt: skip
    if run_diff(sources, DiffOptions(tuple(include or ()), tuple(exclude or ())), workers, wanted):
        raise typer.Exit(FOUND)


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN…", help="Run files, as written by -o; the others are compared with the first."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="PAGE", help="Default: the first RUN with the ending .html."),
    ] = None,
) -> None:
    """Write the page of a run file, or of several side by side."""
    from eigenscope.cli.curvature_run import wrote_page
    from eigenscope.cli.files import check_page
    from eigenscope.report.html import write_page
    from eigenscope.tasks.load import load_run

    page = output or runs[0].with_suffix(".html")
    for run in runs:
        check_page(page, run)
    if not wrote_page(runs, page):
        first, *others = (load_run(run) for run in runs)
        write_page(first, page, others)
    typer.echo(page)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run file, as written by -o.")],
    output: Annotated[Path, typer.Argument(metavar="TABLE", help="A file ending in .csv, .parquet or .json.")],
) -> None:
    """Write the rows of a run file as CSV, Parquet or JSON."""
    from eigenscope.cli.files import check_output
    from eigenscope.engine.export import write
    from eigenscope.tasks.load import load_run

    check_output(output, run)
    write(load_run(run), output)
    typer.echo(output)


@app.command()
def svd(
    source: Annotated[
        str,
        typer.Argument(metavar="MATRIX", help="npy, npz, mtx, csv, tsv, parquet, safetensors, png, jpeg; FILE:NAME."),
    ],
    k: Annotated[
        int | None, typer.Option("-k", metavar="N", help="Leading triplets; default: all values up to 4096, else 20.")
    ] = None,
    energy: Annotated[float | None, typer.Option(metavar="SHARE", help="As many as keep it of ‖A‖F².")] = None,
    error: Annotated[float | None, typer.Option(metavar="E", help="As many as bring the relative error to E.")] = None,
    tol: Annotated[float | None, typer.Option(metavar="T", help="Largest residual, relative to ‖A‖; 1e-6.")] = None,
    passes: Annotated[int | None, typer.Option(metavar="1|2", help="Read the file by rows, at most so often.")] = None,
    pca: Annotated[bool, typer.Option("--pca", help="Principal components: columns centred.")] = False,
    solve: Annotated[str | None, typer.Option(metavar="B", help="Least squares for the right-hand side B.")] = None,
    ridge: Annotated[float | None, typer.Option(metavar="λ", help="Of the least squares: plus λ‖x‖².")] = None,
    target_condition: Annotated[
        float | None, typer.Option(metavar="κ", help="Choose λ for this condition number; 1e4 for the reading.")
    ] = None,
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="Factors as .npz or .safetensors.")] = None,
    picture: Annotated[Path | None, typer.Option(metavar="PAGE", help="The picture alone, as an HTML page.")] = None,
    report: shared.Page = None,
    json: shared.Json = False,
    plan: shared.Plan = False,
    device: shared.Device = "cpu",
    dtype: shared.Dtype = "float64",
    seed: shared.Seed = 0,
    quiet: shared.Quiet = False,
) -> None:
    """Singular values of any matrix file: rank, condition, low-rank error; principal components; least squares."""
    from eigenscope.cli.svd import SvdWanted, run_svd
    from eigenscope.tasks.decompose import DecomposeOptions

    options = DecomposeOptions(
        k=k, energy=energy, error=error, tol=tol, passes=passes, pca=pca, device=device, dtype=dtype, seed=seed,
        target_condition=1e4 if target_condition is None else target_condition,
    )  # fmt: skip
    wanted = SvdWanted(save, solve, ridge, target_condition, picture, report, json, plan, quiet)
    run_svd(source, options, wanted)


@app.command()
def compress(
    source: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a hub id, or demo.")],
    text: Annotated[list[str] | None, typer.Option(metavar="FILE", help="To fit to: text, folder, parquet or jsonl; several kinds are better.")] = None,
    keep: Annotated[float | None, typer.Option(metavar="SHARE", help="Of the layers' parameters.")] = None,
    keep_bytes: Annotated[float | None, typer.Option(metavar="SHARE", help="Of the whole model's bytes.")] = None,
    loss_budget: Annotated[float | None, typer.Option(metavar="L", help="Predicted loss added; nats per token.")] = None,
    ranks: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON: layer → rank, or an earlier eigenscope.json.")] = None,
    objective: Annotated[str, typer.Option(metavar="NAME", help="two-sided, one-sided, scaled or plain.")] = "two-sided",
    uniform: Annotated[bool, typer.Option("--uniform", help="The same share of every layer.")] = False,
    sweep: Annotated[str, typer.Option(metavar="A,B,…", help="Also the loss at these shares.")] = "",
    evaluate: Annotated[list[str] | None, typer.Option("--eval", metavar="FILE", help="Also the loss on this text.")] = None,
    rivals: Annotated[bool, typer.Option("--rivals", help="Also plain SVD, ASVD and one-sided whitening, with uniform ranks.")] = False,
    second_pass: Annotated[bool, typer.Option("--second-pass", help="Fit again to the compressed model's own inputs; kept if that helps.")] = False,
    tokens: Annotated[int, typer.Option(metavar="N", help="Of the texts, a fifth of them held out.")] = 20480,
    length: Annotated[int | None, typer.Option(metavar="N", help="Of a window, in tokens.")] = None,
    prior: Annotated[float | None, typer.Option(metavar="SHARE", help="Of random tokens in the inputs' metric; default: tried.")] = None,
    multiple: Annotated[int, typer.Option(metavar="N", help="Ranks are multiples of it.")] = 1,
    recover: Annotated[int, typer.Option(metavar="STEPS", help="Of training the factors to say what the dense model says.")] = 0,
    learning_rate: Annotated[float, typer.Option(metavar="η", help="Of that training.")] = 2e-4,
    speed: Annotated[bool, typer.Option("--speed", help="Also tokens per second and peak memory, dense and compressed.")] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="DIR", help="Folder to write; it appears when it is whole.")] = None,
    dense: Annotated[bool, typer.Option("--dense", help="Write the factors multiplied out, for programs that know none, as llama.cpp's converter to GGUF.")] = False,
    include: shared.Include = None,
    exclude: shared.Exclude = None,
    batch: Annotated[int, typer.Option(metavar="N", help="Windows at a time.")] = 2,
    force: shared.Force = False,
    report: shared.Page = None,
    json: shared.Json = False,
    plan: shared.Plan = False,
    seed: shared.Seed = 0,
    quiet: shared.Quiet = False,
) -> None:  # fmt: skip
    """A smaller model: layers in low rank where the loss minds least, the loss predicted and measured."""
    from eigenscope.cli.compress import CompressWanted, run_compress, shares, weighting, with_ranks
    from eigenscope.tasks.compress_options import CompressOptions

    options = CompressOptions(
        keep=keep, keep_bytes=keep_bytes, loss_budget=loss_budget, objective=weighting(objective),
        allocation="uniform" if uniform else "global", tokens=tokens, length=length, prior=prior, multiple=multiple,
        batch=batch, include=tuple(include or ()), exclude=tuple(exclude or ()), seed=seed,
        second_pass=second_pass,
    )  # fmt: skip
    wanted = CompressWanted(
        texts=tuple(text or ()), evaluate=tuple(evaluate or ()), sweep=shares(sweep), recover=recover,
        learning_rate=learning_rate, output=output, dense=dense, force=force, speed=speed, rivals=rivals,
        report=report, json=json, plan=plan, quiet=quiet,
    )  # fmt: skip
    run_compress(source, with_ranks(options, ranks), wanted)


def main() -> None:
    """Run the program and leave with its exit code: 0 done, 1 found what --fail-on names, 2 bad input, 130 interrupted."""
    _open_closed_streams()
    try:
        # Not app(): it would turn an interrupt and a closed pipe into exit codes of its own.
        command = typer.main.get_command(app)
        with command.make_context("eigenscope", sys.argv[1:]) as context:
            command.invoke(context)
        sys.stdout.flush()
        code = FINISHED
    except typer.Exit as left:
        code = left.exit_code
    except EigenscopeError as error:
        code = _complain(str(error))
    except BrokenPipeError:
        # The reader (`| head`) has what it wanted.
        code = FINISHED
    except (KeyboardInterrupt, typer.Abort):
        _complain("interrupted; finished rows are kept in the run file, where -o named one; the same command goes on")
        sys.stderr.flush()
        # Leaving the usual way would wait for the matrices that the workers are in the middle of.
        os._exit(INTERRUPTED)
    except OSError as error:
        code = _complain(f"{error.filename or 'output'}: {error.strerror or error}{_remedy(error)}")
    except UsageError as error:
        code = _misused(error)
    _discard_unwritten()
    sys.exit(code)


def _open_closed_streams() -> None:
    """Python has no stream where the caller closed one (``>&-``); every print would then fail."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))


def _complain(text: str) -> int:
    from eigenscope.report.cells import visible  # names of files and tensors are not trusted to be plain text

    print(f"eigenscope: {visible(' '.join(text.split()))}", file=sys.stderr)
    return BAD_INPUT


def _remedy(error: OSError) -> str:
    remedies = {
        errno.ENOENT: "name a folder that exists", errno.ENOSPC: "free some space, or name another disk",
        errno.EACCES: "check its rights", errno.EROFS: "name a folder that may be written",
        errno.EISDIR: "name a file",
    }  # fmt: skip
    remedy = remedies.get(error.errno or 0)
    return f"; {remedy}" if remedy else ""


def _misused(error: Any) -> int:
    message = error.format_message()
    if "\n" in message:  # the help text, for an empty command line
        print(message, file=sys.stderr)
        return BAD_INPUT
    command = error.ctx.command_path if error.ctx else "eigenscope"
    return _complain(f"{message} Try '{command} --help'.")


def _discard_unwritten() -> None:
    """Drop what standard output will not take: Python would complain once more when it flushes at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
