"""A compressed model as text for the terminal, and the rows of its tables: what is left, what it costs, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

from eigenscope.columns import Column
from eigenscope.report import text
from eigenscope.report.cells import INFINITE, format_value, significant, visible

Content = Mapping[str, Any]
Rows = list[tuple[Any, ...]]
LAYERS = (
    Column("name", "layer", "text", "Its name in the model."), Column("rows", "rows", "count", "Outputs m."),
    Column("cols", "cols", "count", "Inputs n."), Column("rank", "rank", "count", "That it is held at."),
    Column("share", "kept", "share", "Share of the dense layer's numbers."),
    Column("predicted", "predicted", "number", "Loss added by this layer alone, on held-out text."),
    Column("growth", "growth", "number", "Largest coefficient by which a held row enters another."),
    Column("note", "note", "text", "Why it stays dense."),
)  # fmt: skip
COSTS = (
    Column("what", "", "text", "What was counted or measured."), Column("dense", "dense", "text", "Of the dense model."),
    Column("compressed", "compressed", "text", "Of the compressed one."),
    Column("ratio", "ratio", "text", "Compressed over dense."),
)  # fmt: skip
PERPLEXITY = "nats per token"
"""Unit of a loss whose exponential is a perplexity."""


def print_compressed(summary: Content, *, file: TextIO | None = None, width: int | None = None) -> None:
    """Print the layers, the curve, the losses and what is to be said.

    Args:
        summary: of a compressed model, as its JSON has it.
        file, width: as for :func:`eigenscope.report.text.print_run`.
    """
    text.print_rows(LAYERS, layer_rows(summary), file=file, width=width)
    columns, rows = curve_rows(summary)
    if rows:
        text.print_lines([("", "")], file=file, width=width)
        text.print_rows(columns, rows, file=file, width=width)
    text.print_lines([("", ""), (f"loss, in {summary['unit']}", "bold")], file=file, width=width)
    text.print_rows(*loss_rows(summary), file=file, width=width)
    text.print_lines([("", "")], file=file, width=width)
    text.print_plan(dict(facts(summary)), file=file, width=width)
    lines = [(f"{place:>3}. {visible(line)}", "") for place, line in enumerate(summary["findings"], 1)]
    text.print_lines([("", ""), (visible(headline(summary)), "bold"), *lines], file=file, width=width)
    if summary["notes"]:
        text.print_lines([("", ""), *((visible(note), "dim") for note in summary["notes"])], file=file, width=width)


def headline(summary: Content) -> str:
    """The compression in a sentence."""
    measured = summary["measured"]["held-out text"]
    predicted = "after training its factors" if summary["recovery"] else f"{_number(summary['predicted'])} predicted"
    return (
        f"{significant(100.0 * summary['keep'], 3)} % of the parameters of {len(summary['layers'])} layers are kept, and "
        f"{with_error(measured)} {summary['unit']} are added to the loss on held-out text, {predicted}."
    )


def layer_rows(summary: Content) -> Rows:
    """Of every layer."""
    return [tuple(layer[column.name] or None for column in LAYERS) for layer in summary["layers"]]


def loss_rows(summary: Content) -> tuple[Sequence[Column], Rows]:
    """Of every text: columns and rows."""
    columns = [
        Column("text", "text", "text", "Measured on it."), Column("dense", "dense", "number", "Loss of the dense model."),
        Column("added", "added", "number", "Loss added."), Column("±", "±", "number", "Its standard error."),
    ]  # fmt: skip
    rows: Rows = [
        (name, summary["dense loss"][name], found["value"], found["stderr"])
        for name, found in summary["measured"].items()
    ]
    if summary["unit"] == PERPLEXITY:
        columns.append(
            Column("× perplexity", "× perplexity", "number", "Factor by which the perplexity grows, e^added.")
        )
        rows = [(*row, math.exp(min(row[2], 700.0))) for row in rows]
    return columns, rows


def curve_rows(summary: Content) -> tuple[Sequence[Column], Rows]:
    """Of every point of the curves, this model's and the rivals': columns and rows."""
    texts = list(summary["measured"])
    columns = [
        Column("method", "method", "text", "This one, or another with uniform ranks in two plain factors."),
        Column("keep", "keep", "share", "Share of the layers' parameters."),
        Column("predicted", "predicted", "number", "Loss added, by the second-order expansion on held-out text."),
    ]
    for name in texts:
        columns += [
            Column(name, name, "number", "Loss added on it."),
            Column("±", "±", "number", "Its standard error."),
        ]
    curves = [("this", summary["trade-off"]), *((rival["name"], rival["points"]) for rival in summary["rivals"])]
    rows: Rows = [
        (method, point["keep"], point["predicted"],
         *(point["measured"][name][part] for name in texts for part in ("value", "stderr")))
        for method, points in curves for point in points
    ]  # fmt: skip
    return columns, rows


def costs(summary: Content) -> Rows:
    """Parameters, bytes, and what was measured of speed and memory, dense beside compressed."""
    pairs = [
        ("parameters of the layers", summary["dense parameters"], summary["parameters"], "{:,.0f}", ""),
        ("bytes of the model", *summary["bytes"], "{:,.1f}", " MB"),
    ]
    for name, (dense, now) in summary["speed"].items():
        pairs.append((name, dense, now, "{:,.1f}", " MB" if name == "peak memory" else " tokens/s"))
    rows: Rows = []
    for name, dense, now, form, unit in pairs:
        scale = 1e6 if unit == " MB" else 1.0
        shown = (form.format(value / scale) + unit for value in (dense, now))
        rows.append((name, *shown, f"{significant(now / dense, 3)} ×"))
    return rows


def facts(summary: Content) -> Iterator[tuple[str, str]]:
    """Readings of the whole model, in words."""
    cut = [layer for layer in summary["layers"] if layer["share"] < 1.0]
    yield "layers", f"{len(cut)} of {len(summary['layers'])} in low rank, ranks {summary['allocation']}"
    if summary["left dense"]:
        yield "left dense", "; ".join(f"{name}: {why}" for name, why in summary["left dense"].items())
    for name, dense, now, ratio in costs(summary):
        yield name, f"{now}, dense {dense}: {ratio}"
    fitted = _number(summary["predicted on the fitted text"])
    yield "predicted", f"{_number(summary['predicted'])} on held-out text, {fitted} on the text fitted to"
    yield "measured", f"{with_error(summary['measured']['held-out text'])} on held-out text"
    if summary["recovery"]:
        done = summary["recovery"]
        change = f"divergence {done['first']:.4g} → {done['last']:.4g}"
        yield "recovery", f"{done['steps']} steps on {done['parameters']:,} numbers, {change}"


def made(summary: Content) -> Iterator[tuple[str, str]]:
    """How it was made, in words: what the page says of it at its end."""
    yield from ((key, value) for key, value in facts(summary) if key in ("layers", "recovery", "predicted"))
    for key, value in summary["made by"].items():
        if value not in (None, "", (), []):
            yield key, ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def with_error(found: Mapping[str, float]) -> str:
    """An estimate and its standard error."""
    error = found["stderr"]
    return f"{_number(found['value'])} ± {significant(error, 2) if math.isfinite(error) else INFINITE}"


def _number(value: float) -> str:
    return format_value(LAYERS[5], value)
