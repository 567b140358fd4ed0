"""A run → everything that the page's script draws, as plain values."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from eigenscope.columns import Column
from eigenscope.report import compare, figures, laws, plots
from eigenscope.report.cells import MISSING, format_value, plotly_text, rounded, shown_columns, visible
from eigenscope.report.curves import Curve, curve_of
from eigenscope.report.grid import Grid, Shading, lay_out, shade
from eigenscope.report.layouts import Layout, layout_of
from eigenscope.results import Record, Run, Value

# Up to MAX_POINTS of each spectrum, fewer where there are many: what the browser reads at once.
MAX_POINTS, POINTS_IN_ALL, FEWEST_POINTS = 1024, 60_000, 24
DRAWN_DIGITS = 4


def page_data(run: Run, others: Sequence[Run] = ()) -> dict[str, Any]:
    """Everything that the page's script draws, as plain values."""
    grid = lay_out(run)
    columns, layout = shown_columns(run), layout_of(run)
    names = compare.letters(1 + len(others))
    limit = max(FEWEST_POINTS, min(MAX_POINTS, POINTS_IN_ALL // max(1, sum(len(r.records) for r in (run, *others)))))
    return {
        "names": [visible(record.name) for record in run.records],
        "columns": _table(run, columns, layout),
        "layout": {"facts": layout.facts, "remarks": layout.remarks, "calm": layout.calm, "perRank": layout.per_rank},
        "heat": _heat(run, grid, columns) | {"white": plots.WHITE_BELOW},
        "curves": _curves(run.records, limit, layout),
        "spectra": {
            "figure": plots.spectra_figure(figures.depth_range(run)),
            "roles": [{"role": role, "of": len(rows), "rows": figures.spread(rows)}
                      for role, rows in figures.lines_by_role(run).items()],
            "depth": figures.depth_range(run),
            "light": plots.DEPTH_ON_LIGHT,
            "dark": plots.DEPTH_ON_DARK,
        },
        "spectrum": plots.spectrum_figure(),
        "energy": plots.energy_figure("", layout.symbol),
        "runs": [f"{name}: {compare.title(each)}" for name, each in zip(names, (run, *others), strict=True)],
        "letters": names,
        "others": [_other(run, other, grid, limit) for other in others],
        "diverging": {"figure": plots.heat_figure(grid, plots.DIVERGING_ON_LIGHT),
                      "light": plots.DIVERGING_ON_LIGHT, "dark": plots.DIVERGING_ON_DARK},
        "over": plots.runs_figure("", log=False),
    }  # fmt: skip


def _table(run: Run, columns: Sequence[Column], layout: Layout) -> list[dict[str, Any]]:
    table = [_column(run, column, column.name in layout.key) for column in columns]
    sides = [(record.readings.get("rows"), record.readings.get("cols")) for record in run.records]
    sizes = [rows * cols if isinstance(rows, int) and isinstance(cols, int) else None for rows, cols in sides]
    shape = {"name": "shape", "label": "shape", "kind": "count", "key": True, "values": sizes,
             "texts": [MISSING if size is None else f"{m}×{n}" for size, (m, n) in zip(sizes, sides, strict=True)]}  # fmt: skip
    place = next((i for i, column in enumerate(columns) if column.name == "rows"), len(columns))
    return [*table[:place], shape, *table[place:]]


def _column(run: Run, column: Column, key: bool) -> dict[str, Any]:
    values: list[Value] = [record.readings.get(column.name) for record in run.records]
    if column.name == "name":
        values = [record.name for record in run.records]
    texts = [format_value(column, value) for value in values]
    about = {
        "name": column.name,
        "label": column.label,
        "kind": column.kind,
        "key": key,
        "log": column.scale == "log",
    }
    if column.kind == "text":
        return {**about, "texts": texts}
    return {**about, "values": [rounded(value) for value in values], "texts": texts}


def _heat(run: Run, grid: Grid, columns: Sequence[Column]) -> dict[str, Any]:
    readings = {}
    for column in columns:
        if column.reading:
            readings[column.name] = _shading(shade(run, grid, column))
            texts = [f"{column.label}: {format_value(column, r.readings.get(column.name))}" for r in run.records]
            # Most cells hold one matrix and no doubt: what hovers over them, the script knows from the table.
            readings[column.name]["hover"] = [
                [
                    None if len(cell) == 1 and hover == texts[cell[0]] else hover
                    for cell, hover in zip(*rows, strict=True)
                ]
                for rows in zip(grid.cells, readings[column.name]["hover"], strict=True)
            ]
    return {"figure": plots.heat_figure(grid), "cells": grid.cells, "readings": readings,
            "roles": grid.roles, "layers": grid.layers}  # fmt: skip


def _shading(shading: Shading) -> dict[str, Any]:
    return {
        "z": [[rounded(color) for color in row] for row in shading.colors],
        "text": shading.texts, "hover": shading.hovers, "zmin": shading.low, "zmax": shading.high,
        "tickvals": [value for value, _ in shading.ticks], "ticktext": [text for _, text in shading.ticks],
    }  # fmt: skip


def _curves(records: Sequence[Record | None], limit: int, layout: Layout) -> dict[str, Any]:
    """Each spectrum in few digits. Spectra of one length share the list of places that were kept."""
    index: dict[int, list[int]] = {}
    rows: list[dict[str, Any] | None] = []
    for record in records:
        curve = None if record is None else curve_of(record, limit)
        if curve is None or record is None:
            rows.append(None)
            continue
        count = int(curve.index[-1])
        index.setdefault(count, curve.index.tolist())
        rows.append({"count": count, **_curve(record, curve), **_laws(record, layout)})
    return {"index": index, "rows": rows}


def _curve(record: Record, curve: Curve) -> dict[str, Any]:
    largest = float(curve.sigma[0])
    # In base64 of float32 (7 digits): half as long as in decimals, and read faster.
    packed = np.concatenate([curve.sigma / largest, curve.energy, curve.error, curve.spectral_error]).astype("<f4")
    return {
        "size": curve.size, "largest": rounded(largest, 8), "packed": base64.b64encode(packed.tobytes()).decode("ascii"),
        "norm": rounded(curve.frobenius, 8), "ranks": curve.ranks, "floor": rounded(curve.floor),
        "shape": [record.readings.get("rows"), record.readings.get("cols")], "bytes": bytes_per_entry(record),
        "head": f"<b>{plotly_text(record.name)}</b>", "layer": record.readings.get("layer"),
    }  # fmt: skip


def _laws(record: Record, layout: Layout) -> dict[str, Any]:
    """What is drawn beside the values: the histogram, the noise, the tail."""
    shown, bulk, tail = laws.histogram(record), laws.bulk_density(record), laws.tail_line(record)
    drawn: dict[str, Any] = {"edge": rounded(laws.number(record, "noise_edge")),
                             "notes": [note for note in (laws.noise_note(record, layout.symbol), laws.tail_note(record)) if note]}  # fmt: skip
    if shown is not None:
        drawn["bars"] = [rounded(shown.low, 7), rounded(shown.width, 7), shown.counts, shown.beyond]
    if bulk is not None and shown is not None and record.values is not None:
        # In values per interval, as the bars are.
        scale = len(record.values) * shown.width
        drawn["bulk"] = [_short(bulk[0], DRAWN_DIGITS), _short(bulk[1] * scale, DRAWN_DIGITS)]
        drawn["above"] = laws.number(record, "noise_rank")
    if tail is not None:
        drawn["tail"] = [_short(tail[0], DRAWN_DIGITS), _short(tail[1], DRAWN_DIGITS), laws.is_power_law(record)]
        drawn["alpha"] = rounded(laws.number(record, "alpha"), 3)
    return drawn


def _short(values: Sequence[float] | np.ndarray[Any, Any], digits: int) -> list[Value]:
    return [rounded(float(value), digits) for value in values]


def bytes_per_entry(record: Record) -> float | None:
    """Bytes that one entry takes in the storage format; None where the record does not tell.

    The record has both what a factorisation saves in entries and what in bytes; where that is 0, only the usual float
    formats are known by name.
    """
    for percent in (90, 95, 99):
        entries, size = laws.number(record, f"params_saved_{percent}"), laws.number(record, f"bytes_saved_{percent}")
        # Bytes are whole numbers: of few entries they do not tell the size of one.
        if entries is not None and size is not None and abs(entries) >= 100:
            return float(f"{size / entries:.4g}")
    known = {"float64": 8.0, "float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "float8_e4m3fn": 1.0, "float8_e5m2": 1.0}
    return known.get(str(record.readings.get("dtype")))


def _other(run: Run, other: Run, grid: Grid, limit: int) -> dict[str, Any]:
    """A run to compare with, its matrices in the order of the first run's."""
    pairing = compare.pair(run, other)
    partners = [None if i is None else other.records[i] for i in pairing.partners]
    readings = {}
    for column in compare.common_readings(run, other, pairing):
        amounts = compare.changes(run, other, pairing, column)
        values = [None if record is None else record.readings.get(column.name) for record in partners]
        readings[column.name] = _shading(compare.shade_change(run, other, pairing, grid, column)) | {
            "values": [rounded(value) for value in values],
            "texts": [format_value(column, value) for value in values],
            "changes": [rounded(amount) for amount in amounts],
            "said": [compare.format_change(column, amount) for amount in amounts],
        }
    return {"readings": readings, "curves": _curves(partners, limit, layout_of(run))}
