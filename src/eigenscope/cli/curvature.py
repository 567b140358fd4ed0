"""``eigenscope curvature``: the shape of a model's loss around its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eigenscope.cli import options as shared


def curvature(
    source: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A language model with --text; module:function → (model, loss, batches); or demo."
        ),
    ],
    text: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="Text for a language model.")] = None,
    tokens: Annotated[int, typer.Option(metavar="N", help="Of the text, about.")] = 2048,
    length: Annotated[int, typer.Option(metavar="N", help="Tokens of a window.")] = 128,
    batch: Annotated[int, typer.Option(metavar="N", help="Windows in a batch.")] = 4,
    params: Annotated[str, typer.Option(metavar="REGEX", help="Only parameters whose names match.")] = "",
    top: Annotated[int, typer.Option(metavar="K", help="Largest eigenvalues.")] = 5,
    bottom: Annotated[int, typer.Option(metavar="K", help="Smallest eigenvalues.")] = 5,
    tol: Annotated[float, typer.Option(metavar="T", help="Residual of an eigenpair, relative to max |λ|.")] = 1e-3,
    density: Annotated[bool, typer.Option("--density/--no-density", help="Distribution of all eigenvalues.")] = True,
    trace: Annotated[bool, typer.Option("--trace/--no-trace", help="Trace, of every layer too.")] = True,
    blocks: Annotated[str, typer.Option(metavar="layers", help="Spectra of layers, modules or parameters.")] = "",
    landscape: Annotated[str, typer.Option(metavar="PLANE", help="Loss over a plane: eigenvectors or random.")] = "",
    gauss_newton: Annotated[bool, typer.Option("--gauss-newton", help="Of the Gauss-Newton matrix instead.")] = False,
    learning_rate: Annotated[float | None, typer.Option("--lr", metavar="η", help="Yours, to be judged.")] = None,
    budget: Annotated[int, typer.Option(metavar="N", help="Hessian-vector products at most.")] = 400,
    memory: Annotated[
        float | None, typer.Option(metavar="GiB", help="For graphs and vectors; default: half of it.")
    ] = None,
    dtype: Annotated[str, typer.Option(metavar="DTYPE", help="float32 or float64; default: the model's.")] = "",
    output: shared.Output = None,
    report: shared.Page = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Time a product, print what it would cost, then stop.")] = False,
    seed: shared.Seed = 0,
    quiet: shared.Quiet = False,
) -> None:
    """The Hessian of the loss: verdict on the point, eigenvalues, density, what step sizes it bears, and advice."""
    from eigenscope.cli.curvature_run import CurvatureWanted, run_curvature
    from eigenscope.tasks.curvature_options import CurvatureOptions
    from eigenscope.tasks.curvature_source import TextOptions

    kinds = {"layers": "layer", "modules": "module", "parameters": "parameter"}
    options = CurvatureOptions(
        top=top, bottom=bottom, tol=tol, density=density, trace=trace, blocks=kinds.get(blocks, blocks), landscape=landscape,
        learning_rate=learning_rate, budget=budget, memory=None if memory is None else int(memory * 2**30), seed=seed,
    )  # fmt: skip
    texts = TextOptions(tuple(str(path) for path in text or ()), tokens, length, batch, seed)
    run_curvature(
        source, texts, options, CurvatureWanted(params, gauss_newton, dtype, output, report, json, plan, quiet)
    )
