"""A compressed model as text for the terminal: what is left, what it costs, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from eigenscope.columns import Column
from eigenscope.report import text
from eigenscope.report.cells import format_value, significant, visible

LAYERS = (
    Column("name", "layer", "text", "Its name in the model."), Column("rows", "rows", "count", "Outputs m."),
    Column("cols", "cols", "count", "Inputs n."), Column("rank", "rank", "count", "That it is held at."),
    Column("share", "kept", "share", "Share of the dense layer's numbers."),
    Column("predicted", "predicted", "number", "Loss added by this layer alone, on held-out text."),
    Column("growth", "growth", "number", "Largest coefficient by which a held row enters another."),
    Column("note", "note", "text", "Why it stays dense."),
)  # fmt: skip
TEXTS = (
    Column("text", "text", "text", "Measured on it."), Column("dense", "dense", "number", "Loss of the dense model."),
    Column("added", "added", "number", "Loss added."), Column("±", "±", "number", "Its standard error."),
)  # fmt: skip
CURVE = (
    Column("keep", "keep", "share", "Share of the layers' parameters."),
    Column("predicted", "predicted", "number", "Loss added, by the second-order expansion on held-out text."),
)  # fmt: skip


def print_compressed(summary: Mapping[str, Any], *, file: TextIO | None = None, width: int | None = None) -> None:
    """Print the layers, the curve, the losses and what is to be said.

    Args:
        summary: of a compressed model, as its JSON has it.
        file, width: as for :func:`eigenscope.report.text.print_run`.
    """
    rows = [tuple(layer[column.name] or None for column in LAYERS) for layer in summary["layers"]]
    text.print_rows(LAYERS, rows, file=file, width=width)
    if summary["trade-off"]:
        names = list(summary["trade-off"][0]["measured"])
        columns = [*CURVE, *(Column(name, name, "number", "Loss added.") for name in names)]
        points = [
            (point["keep"], point["predicted"], *(point["measured"][name]["value"] for name in names))
            for point in summary["trade-off"]
        ]
        text.print_lines([("", "")], file=file, width=width)
        text.print_rows(columns, points, file=file, width=width)
    losses = [
        (name, summary["dense loss"][name], found["value"], found["stderr"])
        for name, found in summary["measured"].items()
    ]
    text.print_lines([("", ""), (f"loss, in {summary['unit']}", "bold")], file=file, width=width)
    text.print_rows(TEXTS, losses, file=file, width=width)
    text.print_lines([("", "")], file=file, width=width)
    text.print_plan(dict(facts(summary)), file=file, width=width)
    if summary["notes"]:
        text.print_lines([("", ""), *((visible(note), "dim") for note in summary["notes"])], file=file, width=width)


def facts(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Readings of the whole model, in words."""
    cut = [layer for layer in summary["layers"] if layer["share"] < 1.0]
    yield "layers", f"{len(cut)} of {len(summary['layers'])} in low rank, ranks {summary['allocation']}"
    if summary["left dense"]:
        yield "left dense", "; ".join(f"{name}: {why}" for name, why in summary["left dense"].items())
    share = 100.0 * summary["keep"]
    yield "parameters", f"{summary['parameters']:,} of {summary['dense parameters']:,}, {significant(share, 4)} %"
    fitted = _number(summary["predicted on the fitted text"])
    yield "predicted", f"{_number(summary['predicted'])} on held-out text, {fitted} on the text fitted to"
    measured = summary["measured"]["held-out text"]
    yield "measured", f"{_number(measured['value'])} ± {_number(measured['stderr'])} on held-out text"
    if "speed" in summary:
        for name, (dense, now) in summary["speed"].items():
            gain = significant(now / dense, 3)
            yield name, f"{significant(now, 4)} tokens/s, dense {significant(dense, 4)}: {gain} ×"
    if "recovery" in summary:
        done = summary["recovery"]
        yield (
            "recovery",
            f"{done['steps']} steps on {done['parameters']:,} numbers, divergence {done['first']:.4g} → {done['last']:.4g}",
        )


def _number(value: float) -> str:
    return format_value(TEXTS[1], value)
