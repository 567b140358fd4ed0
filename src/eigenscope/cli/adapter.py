"""``eigenscope adapter``: low-rank adapters extracted from two checkpoints, and applied to one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eigenscope.cli import adapter_algebra
from eigenscope.cli import options as shared

if TYPE_CHECKING:
    from collections.abc import Iterator

    from eigenscope.results import Run
    from eigenscope.tasks.adapter import Adapter

app = typer.Typer(help="Low-rank adapters in PEFT's format.", rich_markup_mode=None, no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command()
def extract(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model before: a folder, a file, a hub id, or demo.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The model after training.")],
    output: shared.Folder,
    rank: shared.Rank = None,
    energy: shared.Energy = None,
    error: shared.ErrorLimit = None,
    budget: shared.Budget = None,
    dora: Annotated[bool, typer.Option("--dora", help="PEFT's DoRA: magnitudes, directions fitted with them.")] = False,
    text: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Weigh ΔW by the inputs that the base has on this text.")
    ] = None,
    tokens: Annotated[int, typer.Option(metavar="N", help="Of the text, about.")] = 16384,
    save_modules: Annotated[
        bool, typer.Option("--save-modules", help="Also write norms and biases that changed, whole.")
    ] = False,
    dtype: Annotated[str, typer.Option(metavar="DTYPE", help="Of the factors; default: as the tuned model's.")] = "",
    include: Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Only modules of these names.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="No modules of these names.")] = None,
    force: shared.Force = False,
    json: AsJson = False,
    plan: shared.Plan = False,
    workers: shared.Workers = None,
    seed: shared.Seed = 0,
    quiet: shared.Quiet = False,
) -> None:
    """The smallest adapter that carries what training changed: TUNED − BASE as LoRA or DoRA, each layer certified."""
    from eigenscope.models.write import check_folder
    from eigenscope.report import text as printed
    from eigenscope.tasks.adapter_extract import ExtractOptions, make_plan, run_plan

    options = ExtractOptions(
        rank=rank, energy=energy, error=error, budget=budget, dora=dora, save_modules=save_modules, dtype=dtype,
        include=tuple(include or ()), exclude=tuple(exclude or ()), seed=seed, tokens=tokens,
    )  # fmt: skip
    made = make_plan(base, tuned, options, text=list(map(str, text)) if text else None, workers=workers)
    if plan:
        print_lines(made.lines(), as_json=json)
        return
    check_folder(output, force=force)
    with printed.ProgressBar(quiet=quiet) as bar:
        adapter = run_plan(made, model=base, progress=lambda event: bar.update(event.done, event.total, event.label))
    adapter.save(output, force=force)
    print_adapter(adapter, output, as_json=json)


@app.command()
def apply(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model: a folder, a file, a hub id, or demo.")],
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="A folder in PEFT's format.")],
    output: shared.Folder,
    alpha: shared.Alpha = None,
    force: shared.Force = False,
    json: AsJson = False,
    plan: shared.Plan = False,
    quiet: shared.Quiet = False,
) -> None:
    """The base with the adapter in its weights, in the base's own shards and formats, streamed."""
    from eigenscope.report import text as printed
    from eigenscope.tasks.adapter_apply import check_target, make_plan, run_plan

    made = make_plan(base, adapter, alpha=alpha)
    if plan:
        print_lines(made.lines(), as_json=json)
        return
    check_target(made, output, force=force)
    with printed.ProgressBar(quiet=quiet) as bar:
        run_plan(made, output, force=force, progress=lambda event: bar.update(event.done, event.total, event.label))
    print_lines({**made.lines(), "folder": str(output)} if json else {"folder": str(output)}, as_json=json)


for _command in (adapter_algebra.resize, adapter_algebra.merge, adapter_algebra.init, adapter_algebra.show):
    app.command()(_command)


def print_lines(lines: dict[str, str], *, as_json: bool) -> None:
    """A plan, or what was done, as two columns or as JSON."""
    import json as formats

    from eigenscope.report import text

    if as_json:
        typer.echo(formats.dumps(lines, indent=1))
    else:
        text.print_plan(lines)


def print_adapter(adapter: Adapter, folder: Path | None, *, as_json: bool) -> None:
    """The table of an adapter's layers, what is doubtful, its size, and where it lies."""
    from eigenscope.columns import columns_of
    from eigenscope.engine.export import as_json as to_json
    from eigenscope.report import text

    run = adapter.run
    if as_json:
        typer.echo(to_json(run))
        return
    filled = [
        column for column in columns_of(run.verb)
        if column.name not in ("status", "role", "layer", "kind") and any(r.readings.get(column.name) is not None for r in run.records)
    ]  # fmt: skip
    text.print_rows(
        filled, [[r.readings.get(column.name) for column in filled] for r in run.records if r.readings.get("rank")]
    )
    text.print_plan(dict(_summary(adapter, run, folder)))


def _summary(adapter: Adapter, run: Run, folder: Path | None) -> Iterator[tuple[str, str]]:
    from collections import Counter

    doubtful = Counter(str(r.readings.get("status")) for r in run.records if r.readings.get("status") != "ok")
    for status, count in doubtful.most_common():
        names = [r.name for r in run.records if r.readings.get("status") == status]
        yield f"{count} of {len(run.records)}", f"{status}: {', '.join(names[:3])}{', …' if count > 3 else ''}"
    reasons = Counter(entry.reason for entry in run.coverage)
    for reason, count in reasons.most_common():
        yield f"{count} not adapted", reason
    if run.provenance.get("notes"):
        yield "note", str(run.provenance["notes"])
    size = sum(layer.nbytes for layer in adapter.file.layers.values())
    yield (
        "adapter",
        f"{len(adapter.file.layers)} layers, {adapter.parameters:,} parameters, {size / 1e6:,.1f} MB of factors",
    )
    if folder is not None:
        yield "folder", str(folder)
