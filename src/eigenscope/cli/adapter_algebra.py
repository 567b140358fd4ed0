"""``eigenscope adapter resize``, ``merge``, ``init`` and ``show``: what needs no second model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eigenscope.cli import options as shared

if TYPE_CHECKING:
    from eigenscope.methods.merging import Rule
    from eigenscope.tasks.adapter_init import Start

Source = Annotated[Path, typer.Argument(metavar="ADAPTER", help="A folder in PEFT's format, or its weights.")]
FOUND = 1


def resize(
    adapter: Source,
    output: shared.Folder,
    rank: shared.Rank = None,
    energy: shared.Energy = None,
    error: shared.ErrorLimit = None,
    budget: shared.Budget = None,
    dtype: Annotated[str, typer.Option(metavar="DTYPE", help="Of the factors; default: as they are.")] = "",
    alpha: shared.Alpha = None,
    force: shared.Force = False,
    json: shared.Json = False,
) -> None:
    """The adapter at a lower rank: each layer's best, from its factors alone, with the error measured."""
    from eigenscope.cli.adapter import print_adapter
    from eigenscope.models.write import check_folder
    from eigenscope.tasks.adapter import Adapter

    check_folder(output, force=force)
    made = Adapter.load(adapter, alpha=alpha).resize(rank=rank, energy=energy, error=error, budget=budget, dtype=dtype)
    made.save(output, force=force)
    print_adapter(made, output, as_json=json)


def merge(
    adapters: Annotated[list[Path], typer.Argument(metavar="ADAPTER…", help="Folders in PEFT's format.")],
    output: shared.Folder,
    weights: Annotated[str, typer.Option(metavar="W,W,…", help="One for each adapter; default: 1.")] = "",
    rule: Annotated[str, typer.Option(metavar="RULE", help="sum, ties, dare or dare-ties.")] = "sum",
    align: Annotated[bool, typer.Option("--align", help="KnOTS: ties and dare in a basis that all share.")] = False,
    density: Annotated[float, typer.Option(metavar="SHARE", help="Of the entries that ties and dare keep.")] = 0.5,
    rank: shared.Rank = None,
    energy: shared.Energy = None,
    error: shared.ErrorLimit = None,
    budget: shared.Budget = None,
    dtype: Annotated[str, typer.Option(metavar="DTYPE", help="Of the factors; default: the widest of theirs.")] = "",
    alpha: shared.Alpha = None,
    force: shared.Force = False,
    json: shared.Json = False,
    seed: shared.Seed = 0,
) -> None:
    """One adapter that does what several do together; a sum without a size is exact."""
    from typing import cast

    from eigenscope.cli.adapter import print_adapter
    from eigenscope.models.write import check_folder
    from eigenscope.tasks.adapter import Adapter
    from eigenscope.tasks.adapter_merge import merge_adapters

    check_folder(output, force=force)
    made = merge_adapters(
        [Adapter.load(adapter, alpha=alpha) for adapter in adapters], _numbers(weights), rule=cast("Rule", rule),
        align=align, density=density, rank=rank, energy=energy, error=error, budget=budget, dtype=dtype, seed=seed,
    )  # fmt: skip
    made.save(output, force=force)
    print_adapter(made, output, as_json=json)


def _numbers(text: str) -> list[float] | None:
    from eigenscope.errors import InputError

    try:
        return [float(part) for part in text.split(",")] if text else None
    except ValueError as error:
        raise InputError(f"weights {text!r}", expected="numbers with commas between them, such as 1,0.5,-1") from error


def init(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model: a folder, a file, a hub id, or demo.")],
    output: shared.Folder,
    start: Annotated[
        str, typer.Option(metavar="START", help="pissa, milora, mica, olora, corda or corda-kpm.")
    ] = "pissa",
    rank: Annotated[int, typer.Option(metavar="R", help="Of every layer.")] = 16,
    alpha: Annotated[float | None, typer.Option(metavar="α", help="The scale is α/R; default: R.")] = None,
    text: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="Of corda: what the base reads.")] = None,
    tokens: Annotated[int, typer.Option(metavar="N", help="Of the text, about.")] = 16384,
    dtype: Annotated[str, typer.Option(metavar="DTYPE", help="Of the factors.")] = "float32",
    include: Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Only modules of these names.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="No modules of these names.")] = None,
    force: shared.Force = False,
    json: shared.Json = False,
    workers: shared.Workers = None,
    seed: shared.Seed = 0,
    quiet: shared.Quiet = False,
) -> None:
    """An adapter to begin training from: DIR/adapter, and DIR/base, the model without what is in the adapter."""
    from typing import cast

    from eigenscope.cli.adapter import print_adapter
    from eigenscope.models.write import check_folder
    from eigenscope.report import text as printed
    from eigenscope.tasks.adapter_init import init_adapter

    check_folder(output, force=force)
    with printed.ProgressBar(quiet=quiet) as bar:
        made = init_adapter(
            base, start=cast("Start", start), rank=rank, alpha=alpha, text=list(map(str, text)) if text else None,
            tokens=tokens, dtype=dtype, include=include or (), exclude=exclude or (), seed=seed, workers=workers,
            progress=lambda event: bar.update(event.done, event.total, event.label),
        )  # fmt: skip
        made.save(output, force=force)
    print_adapter(made, output, as_json=json)


def show(
    adapter: Source,
    base: Annotated[str | None, typer.Option(metavar="BASE", help="The base model, for ‖ΔW‖/‖W‖.")] = None,
    alpha: shared.Alpha = None,
    report: shared.Page = None,
    json: shared.Json = False,
    columns: Annotated[str, typer.Option(metavar="A,B,…", help="Columns to show.")] = "",
    fail_on: Annotated[
        list[str] | None, typer.Option(metavar="CONDITION", help='Exit 1 if a row meets it: "wasted_rank > 8".')
    ] = None,
) -> None:
    """What each layer of an adapter does: used and wasted rank, size, scale; its base is not needed."""
    from eigenscope.cli.tables import Wanted, prepare, print_json, report_conditions
    from eigenscope.engine.export import as_json
    from eigenscope.report import text
    from eigenscope.tasks.adapter_show import VERB, show_adapter

    names = tuple(name.strip() for name in columns.split(",") if name.strip())
    wanted = Wanted(None, report, json, False, False, names, tuple(fail_on or ()), True)
    conditions = prepare(VERB, wanted)
    found = show_adapter(adapter, base=base, alpha=alpha)
    try:
        if report is not None:
            found.report(report)
    finally:  # a page that cannot be written is no reason to keep the rows back
        print_json([as_json(found.run)]) if json else text.print_run(found.run, columns=names or None)
    if report is not None and not json:
        print(report)
    if report_conditions(conditions, [found.run]):
        raise typer.Exit(FOUND)
