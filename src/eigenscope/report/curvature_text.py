"""An analysis of curvature as text for the terminal, and its readings in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from eigenscope.columns import Column
from eigenscope.report import text
from eigenscope.report.cells import significant, visible

PAIRS = (
    Column("end", "end", "text", "Which end of the spectrum."), Column("λ", "λ", "number", "Eigenvalue."),
    Column("residual", "residual", "number", "‖H v − λ v‖."), Column("bound", "bound", "number", "Residual and rounding."),
    Column("converged", "converged", "text", "Within the tolerance."),
)  # fmt: skip
BLOCKS = (
    Column("block", "block", "text", "Parameters of a layer."), Column("size", "size", "count", "How many."),
    Column("λ max", "λ max", "number", "Largest eigenvalue."), Column("± max", "± max", "number", "Its residual."),
    Column("λ min", "λ min", "number", "Smallest eigenvalue."), Column("± min", "± min", "number", "Its residual."),
    Column("trace", "trace", "number", "Sum of the eigenvalues."), Column("± trace", "± trace", "number", "Standard error."),
)  # fmt: skip


def print_curvature(content: Mapping[str, Any], *, file: TextIO | None = None, width: int | None = None) -> None:
    """Print verdict, advice, readings, eigenpairs and blocks.

    Args:
        content: of an analysis, as its JSON has it.
        file, width: as for :func:`eigenscope.report.text.print_run`.
    """
    text.print_lines([(visible(content["verdict"]["sentence"]), "bold")], file=file, width=width)
    numbered = [(f"{place:>3}. {visible(line)}", "") for place, line in enumerate(content["advice"], 1)]
    text.print_lines([("", ""), *numbered, ("", "")], file=file, width=width)
    shown = {key: f"{value} {doubt}".rstrip() for key, value, doubt in facts(content)}
    text.print_plan(shown, file=file, width=width)
    text.print_lines([("", "")], file=file, width=width)
    rows = [
        (end, pair["value"], pair["residual"], pair["bound"], "yes" if pair["converged"] else "no")
        for end in ("top", "bottom") for pair in content[end]
    ]  # fmt: skip
    text.print_rows(PAIRS, rows, file=file, width=width)
    if content["blocks"]:
        text.print_lines([("", "")], file=file, width=width)
        text.print_rows(BLOCKS, [_block(block) for block in content["blocks"]], file=file, width=width)
    if content["notes"]:
        text.print_lines([("", ""), *((visible(note), "dim") for note in content["notes"])], file=file, width=width)


def facts(content: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and doubt of every reading."""
    return list(_facts(content))


def _facts(content: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    place, verdict = content["point"], content["verdict"]
    gradient = verdict["gradient"]
    yield "loss", significant(place["loss"], 5), ""
    noise = gradient["noise"]
    yield "‖∇L‖", significant(gradient["norm"], 4), "" if noise is None else f"± {significant(noise, 2)} over batches"
    yield "parameters", f"{place['parameters']:,}", f"‖θ‖ {significant(place['size'], 4)}"
    for name, end, index in (("λ max", "top", 0), ("λ min", "bottom", -1)):
        if content[end]:
            pair = content[end][index]
            yield name, significant(pair["value"], 6), f"± {significant(pair['bound'], 2)}"
    reach = verdict["unseen"]
    if reach is not None:
        chance = f"with a chance of {100.0 * reach['certainty']:g} %"
        yield "all λ within", f"{significant(reach['low'], 3)} … {significant(reach['high'], 3)}", chance
    yield "index", f"{'' if verdict['exact_index'] else '≥ '}{verdict['index']:,}", "negative eigenvalues"
    for name, label in (("trace", "trace"), ("frobenius", "‖H‖F")):
        found = content[name]
        if found is not None:
            yield (
                label,
                significant(found["value"], 5),
                f"± {significant(found['stderr'], 2)}" if found["stderr"] else "",
            )
    share = content["negative"]
    if share is not None and share["low"] < share["high"]:
        text = f"{significant(100 * share['low'], 3)} … {significant(100 * share['high'], 3)} %"
        yield "negative share", f"{significant(100 * share['value'], 3)} %", text
    valley = content["valley"]
    if valley is not None:
        yield "κ of the positive part", f"{'' if valley['exact'] else '≥ '}{significant(valley['condition'], 4)}", ""
        yield "learning rate <", significant(valley["step_bound"], 4), "2/λ max"
        yield "heavy ball", significant(valley["momentum_step"], 4), f"momentum {significant(valley['momentum'], 4)}"
    metric = content["metric"]
    if metric is not None and metric["largest"] > 0.0:
        yield "λ max for Adam", significant(metric["largest"], 5), f"± {significant(metric['residual'], 2)}"
        if metric["valley"] is not None:
            found = metric["valley"]
            yield "κ for Adam", f"{'' if found['exact'] else '≥ '}{significant(found['condition'], 4)}", ""
    sharp = content["sharpness"]
    if sharp is not None:
        yield (
            f"rise within {sharp['radius']:g}",
            significant(sharp["measured"], 4),
            f"model {significant(sharp['second_order'], 4)}",
        )
        if sharp["invariant"] is not None:
            error = f"± {significant(sharp['invariant_residual'], 2)}"
            yield "scale-invariant λ max", significant(sharp["invariant"], 5), error


def _block(block: Mapping[str, Any]) -> tuple[Any, ...]:
    top, bottom, trace = block["top"], block["bottom"], block["trace"]
    ends = [(part[0 if end == "top" else -1] if part else {}) for end, part in (("top", top), ("bottom", bottom))]
    return (
        visible(block["name"]), block["size"], *(end.get(key) for end in ends for key in ("value", "residual")),
        None if trace is None else trace["value"], None if trace is None else trace["stderr"],
    )  # fmt: skip
