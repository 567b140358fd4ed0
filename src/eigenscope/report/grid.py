"""A reading laid out over layer × role: colours, texts and ticks of the heat map, still without Plotly."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from eigenscope.columns import Column
from eigenscope.report.cells import MISSING, doubt, format_value, plotly_text, significant, visible
from eigenscope.results import Record, Run

MAX_TICKS = 6

# The order in which a signal meets them; other roles follow as the checkpoint lists them.
_USUAL = ("embedding", "position_embedding", "token_type_embedding", "q", "k", "v", "qkv", "o", "gate", "up", "down")

Rows = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Grid:
    """Which records share a layer and a role.

    Attributes:
        layers: labels, – first for what belongs to no layer.
        roles: labels.
        cells: roles × layers → places of the records in the run; empty where there is no such matrix.
        heads: roles × layers → what the cell holds, as Plotly text.
    """

    layers: tuple[str, ...]
    roles: tuple[str, ...]
    cells: tuple[tuple[tuple[int, ...], ...], ...]
    heads: Rows


@dataclass(frozen=True)
class Shading:
    """One reading over a grid.

    Attributes:
        colors: roles × layers → the value, or its log₁₀ for a log column; ∞ at the top of the range, and what has
            no logarithm at the bottom; None where no matrix of the cell has the reading.
        texts: the value in few characters; in brackets where the verdict on it says that it is not to be read.
        hovers: the value in words, as Plotly text.
        low, high: ends of the range of colours, never equal.
        ticks: (place in the range, label).
    """

    colors: tuple[tuple[float | None, ...], ...]
    texts: Rows
    hovers: Rows
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]


def lay_out(run: Run) -> Grid:
    """The grid of a run. Several matrices share a cell where a layer has several of one role (experts)."""
    places: dict[tuple[str, str], list[int]] = {}
    order: dict[str, float] = {}
    for i, record in enumerate(run.records):
        layer, role = record.readings.get("layer"), visible_role(record)
        label = MISSING if layer is None else str(layer)
        order[label] = float(layer) if isinstance(layer, int | float) else -1.0
        places.setdefault((role, label), []).append(i)
    seen = dict.fromkeys(role for role, _ in places)
    roles = tuple(r for r in _USUAL if r in seen) + tuple(r for r in seen if r not in _USUAL)
    layers = tuple(sorted(order, key=lambda label: order[label]))
    cells = tuple(tuple(tuple(places.get((role, layer), ())) for layer in layers) for role in roles)
    return Grid(layers, roles, cells, tuple(tuple(_head(run, cell) for cell in row) for row in cells))


def visible_role(record: Record) -> str:
    """The role as a label of an axis or a list."""
    return visible(record.readings.get("role") or MISSING)


def shade(run: Run, grid: Grid, column: Column) -> Shading:
    """A reading over the grid; the median where a cell holds several matrices."""
    middles = [[_middle(run, cell, column) for cell in row] for row in grid.cells]
    colors = [[_color(value, column) for value in row] for row in middles]
    finite = [color for row in colors for color in row if color is not None and math.isfinite(color)]
    low, high = colour_range(finite)
    return Shading(
        colors=tuple(tuple(None if c is None else min(max(c, low), high) for c in row) for row in colors),
        texts=tuple(
            tuple("" if v is None else _text(run, cell, column, v) for v, cell in zip(*rows, strict=True))
            for rows in zip(middles, grid.cells, strict=True)
        ),
        hovers=tuple(tuple(_hover(run, cell, column) for cell in row) for row in grid.cells),
        low=low,
        high=high,
        ticks=_ends(low, high, finite, column, _ticks(low, high, column)),
    )


def colour_range(finite: Sequence[float]) -> tuple[float, float]:
    """The range of the colours: all values, but not what lies beyond Tukey's outer fences.

    One matrix of κ = 10¹⁶ would otherwise leave one colour for all others (Tukey, Exploratory Data Analysis, 1977, §2D).
    """
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    if len(finite) >= 8:
        first, _, third = quantiles(finite, n=4)
        if third > first:
            low, high = max(low, first - 3 * (third - first)), min(high, third + 3 * (third - first))
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _ends(
    low: float, high: float, finite: Sequence[float], column: Column, ticks: tuple[tuple[float, str], ...]
) -> tuple[tuple[float, str], ...]:
    """The ticks, and a sign at each end beyond which there are values."""
    beyond = []
    for end, sign, outside in (
        (low, "≤", any(color < low for color in finite)), (high, "≥", any(color > high for color in finite))
    ):  # fmt: skip
        if outside:
            value = 10.0**end if column.scale == "log" else end
            beyond.append((end, f"{sign} {compact(column, float(f'{value:.2g}'))}"))
    clear = [t for t in ticks if all(abs(t[0] - end) > 0.07 * (high - low) for end, _ in beyond)]
    return tuple(sorted([*clear, *beyond]))


def _numbers(run: Run, cell: Sequence[int], column: Column) -> list[float]:
    values = (run.records[i].readings.get(column.name) for i in cell)
    return [float(v) for v in values if isinstance(v, int | float) and not math.isnan(v)]


def _middle(run: Run, cell: Sequence[int], column: Column) -> float | None:
    numbers = _numbers(run, cell, column)
    return median(numbers) if numbers else None


def _color(value: float | None, column: Column) -> float | None:
    if value is None or column.scale == "linear":
        return value
    return math.log10(value) if value > 0 else -math.inf


def compact(column: Column, value: float) -> str:
    """A value in about five characters, for a cell of the map."""
    if not math.isfinite(value) or column.kind == "share" or 0 < abs(value) < 1e-3:
        return format_value(column, value)
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size <= abs(value) < 1e12:
            return significant(value / size, 3) + unit
    return format_value(column, int(value)) if column.kind == "count" and value == int(value) else significant(value, 3)


def _text(run: Run, cell: Sequence[int], column: Column, value: float) -> str:
    text = compact(column, value)
    return f"({text})" if all(_objection(run.records[i], column) for i in cell) else text


def _objection(record: Record, column: Column) -> str:
    """What the verdict says against an exponent; empty where it carries it, and for every other reading."""
    verdict = record.readings.get("alpha_verdict") if column.name.startswith("alpha") else None
    return visible(verdict) if isinstance(verdict, str) and verdict != "power law" else ""


def _head(run: Run, cell: Sequence[int]) -> str:
    if not cell:
        return ""
    readings = [run.records[i].readings for i in cell]
    shapes = dict.fromkeys(f"{r.get('rows')}×{r.get('cols')} {plotly_text(r.get('dtype'))}" for r in readings)
    first = plotly_text(run.records[cell[0]].name)
    name = f"<b>{first}</b>" if len(cell) == 1 else f"<b>{len(cell)} matrices</b>, the first {first}"
    return f"{name}<br>{', '.join([*shapes][:3])}"


def _hover(run: Run, cell: Sequence[int], column: Column) -> str:
    if not cell:
        return ""
    numbers = _numbers(run, cell, column)
    lines = [f"{column.label}: not defined"]
    if len(cell) == 1 and numbers:
        lines = [f"{column.label}: {format_value(column, numbers[0])}"]
    elif numbers:
        lowest, middle, highest = (format_value(column, f(numbers)) for f in (min, median, max))
        lines = [f"{column.label}: median {middle} of {len(numbers)}, from {lowest} to {highest}"]
    records = [run.records[i] for i in cell]
    doubts = dict.fromkeys(text for r in records for text in (_objection(r, column), doubt(r.readings.get("status"))))
    for text in [text for text in doubts if text][:3]:
        lines += [plotly_text(line) for line in textwrap.wrap(text, 72)[:3]]
    return "<br>".join(lines)


def _ticks(low: float, high: float, column: Column) -> tuple[tuple[float, str], ...]:
    if column.scale == "linear":
        return tuple((value, _tick_label(value, column)) for value in even_ticks(low, high))
    decades = range(math.floor(low), math.ceil(high) + 1)
    for mantissas in ((1, 2, 5), (1, 3), (1,)):
        values = [m * 10.0**d for d in decades for m in mantissas]
        inside = [v for v in values if low <= math.log10(v) <= high]
        if 2 <= len(inside) <= MAX_TICKS:
            return tuple((math.log10(v), _tick_label(v, column)) for v in inside)
    if len(decades) > MAX_TICKS:
        inside = [10.0**d for d in decades[:: math.ceil(len(decades) / MAX_TICKS)] if low <= d <= high]
    else:
        inside = [v for v in even_ticks(10.0**low, 10.0**high) if v > 0]
    return tuple((math.log10(v), _tick_label(v, column)) for v in inside)


def even_ticks(low: float, high: float) -> list[float]:
    """Round numbers, evenly spaced, between two ends."""
    rough = (high - low) / (MAX_TICKS - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _tick_label(value: float, column: Column) -> str:
    if column.kind == "share":
        return f"{100 * value:.6g} %"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:,.6g}".replace("-", "−")
    if column.kind == "count":
        return compact(column, value)
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}".replace("-", "−", 1 if value < 0 else 0)
