"""A run → one page that needs nothing else: no server, no network, no second file."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from eigenscope.columns import Column
from eigenscope.files import replacing
from eigenscope.report import figures
from eigenscope.report.cells import (
    MISSING,
    doubt,
    format_value,
    plotly_text,
    rounded,
    shown_columns,
    significant,
    visible,
)
from eigenscope.report.curves import MAX_POINTS, curve_of
from eigenscope.report.grid import Grid, lay_out, shade
from eigenscope.report.summary import OUTCOMES, counted, duration, summarize
from eigenscope.results import Run, Value

# How the list of readings is grouped. What is in none of these groups is listed under the last heading.
GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Conditioning", ("condition", "digits_lost", "digits_left", "digits_left_fp16", "ridge")),
    ("Rank", ("numerical_rank", "stable_rank", "effective_rank", "participation", "rank_90", "rank_95", "rank_99")),
    ("Size", ("sigma_max", "sigma_min", "frobenius", "nuclear", "conv_norm", "spectral_radius")),
    ("Factoring", ("params_saved_90", "params_saved_95", "params_saved_99",
                   "bytes_saved_90", "bytes_saved_95", "bytes_saved_99")),
    ("Half precision", ("overflow_fp16", "underflow_fp16")),
    ("Other", ()),
)  # fmt: skip

# Shown in the table before "all readings" is asked for.
KEY_COLUMNS = frozenset({
    "name", "layer", "role", "dtype", "sigma_max", "sigma_min", "condition", "digits_left",
    "numerical_rank", "stable_rank", "effective_rank", "rank_90", "rank_99", "status",
})  # fmt: skip

POINTS_IN_ALL = 60_000
FEWEST_POINTS = 24


def write_page(run: Run, path: str | Path) -> None:
    """Write the page of a run; it opens from disk, in any browser, without a network.

    Args:
        run: the run. Without singular values the page has no spectra.
        path: the file; replaced in one step, never half written.

    Raises:
        OSError: the file cannot be written; an older one of that name is then untouched.
    """
    page = render(run)
    with replacing(path) as beside:
        beside.write_bytes(page.encode("utf-8"))


def render(run: Run) -> str:
    """The page as text."""
    scripts = [_script(get_plotlyjs()), _script(_part("page.js"))]
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    columns = shown_columns(run)
    return template.from_string(_part("page.html")).render(
        style=Markup(_part("page.css")),
        plotly=Markup(scripts[0]),
        script=Markup(scripts[1]),
        policy="; ".join((
            "default-src 'none'", "style-src 'unsafe-inline'", "img-src data: blob:", "base-uri 'none'",
            "form-action 'none'", f"script-src {' '.join(map(_hash, scripts))}",
        )),
        data=Markup(_json(page_data(run))),
        verb=visible(run.verb),
        source=visible(run.source),
        title=visible(Path(run.source).name or run.source),
        lines=_sentences(run),
        doubtful=[(i, visible(r.name), why) for i, r in enumerate(run.records)
                  if (why := doubt(r.readings.get("status")))],
        readings=_grouped(columns),
        columns=columns,
        outcomes=_outcomes(run),
        provenance=_provenance(run),
        counted=counted,
    )  # fmt: skip


def page_data(run: Run) -> dict[str, Any]:
    """Everything that the page's script draws, as plain values."""
    grid = lay_out(run)
    columns = shown_columns(run)
    limit = max(FEWEST_POINTS, min(MAX_POINTS, POINTS_IN_ALL // max(1, len(run.records))))
    return {
        "names": [visible(record.name) for record in run.records],
        "columns": _table(run, columns),
        "heat": _heat(run, grid, columns) | {"white": figures.WHITE_BELOW},
        "curves": _curves(run, limit),
        "spectra": {
            "figure": figures.spectra_figure(figures.depth_range(run)),
            "roles": [{"role": role, "of": len(rows), "rows": figures.spread(rows)}
                      for role, rows in figures.lines_by_role(run).items()],
            "depth": figures.depth_range(run),
            "light": figures.DEPTH_ON_LIGHT,
            "dark": figures.DEPTH_ON_DARK,
        },
        "spectrum": figures.spectrum_figure(),
    }  # fmt: skip


def _table(run: Run, columns: Sequence[Column]) -> list[dict[str, Any]]:
    table = [_column(run, column) for column in columns]
    sides = [(record.readings.get("rows"), record.readings.get("cols")) for record in run.records]
    sizes = [rows * cols if isinstance(rows, int) and isinstance(cols, int) else None for rows, cols in sides]
    shape = {"name": "shape", "label": "shape", "kind": "count", "key": True, "values": sizes,
             "texts": [MISSING if size is None else f"{m}×{n}" for size, (m, n) in zip(sizes, sides, strict=True)]}  # fmt: skip
    place = next((i for i, column in enumerate(columns) if column.name == "rows"), len(columns))
    return [*table[:place], shape, *table[place:]]


def _column(run: Run, column: Column) -> dict[str, Any]:
    values: list[Value] = [record.readings.get(column.name) for record in run.records]
    if column.name == "name":
        values = [record.name for record in run.records]
    texts = [format_value(column, value) for value in values]
    about = {"name": column.name, "label": column.label, "kind": column.kind, "key": column.name in KEY_COLUMNS}
    if column.kind == "text":
        return {**about, "texts": texts}
    return {**about, "values": [rounded(value) for value in values], "texts": texts}


def _heat(run: Run, grid: Grid, columns: Sequence[Column]) -> dict[str, Any]:
    readings = {}
    for column in columns:
        if column.reading:
            shading = shade(run, grid, column)
            readings[column.name] = {
                "z": [[rounded(color) for color in row] for row in shading.colors],
                "text": shading.texts, "hover": shading.hovers, "zmin": shading.low, "zmax": shading.high,
                "tickvals": [value for value, _ in shading.ticks], "ticktext": [text for _, text in shading.ticks],
            }  # fmt: skip
    return {"figure": figures.heat_figure(grid), "cells": grid.cells, "readings": readings}


def _curves(run: Run, limit: int) -> dict[str, Any]:
    """Each spectrum in few digits. Spectra of one length share the list of places that were kept."""
    index: dict[int, list[int]] = {}
    rows: list[dict[str, Any] | None] = []
    for record in run.records:
        curve = curve_of(record, limit)
        if curve is None:
            rows.append(None)
            continue
        count = int(curve.index[-1])
        index.setdefault(count, curve.index.tolist())
        rows.append({
            "count": count, "size": curve.size, "sigma": [rounded(float(s)) for s in curve.sigma],
            "energy": [rounded(float(e)) for e in curve.energy], "ranks": curve.ranks, "floor": rounded(curve.floor),
            "head": f"<b>{plotly_text(record.name)}</b>", "layer": record.readings.get("layer"),
        })  # fmt: skip
    return {"index": index, "rows": rows}


def _grouped(columns: Sequence[Column]) -> list[tuple[str, list[Column]]]:
    readings = [column for column in columns if column.reading]
    grouped = {name for _, names in GROUPS for name in names}
    groups = [
        (heading, [c for c in readings if c.name in names or (not names and c.name not in grouped)])
        for heading, names in GROUPS
    ]
    return [(heading, members) for heading, members in groups if members]


def _outcomes(run: Run) -> list[dict[str, Any]]:
    summary = summarize(run)
    return [
        {
            "outcome": outcome, "tensors": summary.outcomes[outcome],
            "groups": [
                {"reason": visible(group.reason), "matrices": group.matrices, "tensors": [
                    {"name": visible(entry.tensor), "shape": "×".join(map(str, entry.shape)) or "scalar",
                     "dtype": visible(entry.dtype), "matrices": entry.matrices}
                    for entry in group.tensors
                ]}
                for group in summary.groups if group.outcome == outcome
            ],
        }
        for outcome in OUTCOMES if summary.outcomes[outcome]
    ]  # fmt: skip


def _sentences(run: Run) -> list[str]:
    """The run in a paragraph."""
    summary = summarize(run)
    lines = [
        f"{counted(summary.measured, 'weight matrix', 'weight matrices')} with {summary.share} "
        f"{'was' if summary.measured == 1 else 'were'} decomposed"
        + (f" in {duration(summary.seconds)}." if summary.seconds is not None else ".")
    ]
    if summary.worst is not None:
        bound = significant(summary.worst[0], 2).replace("-", "\u2011")  # no line may end inside 6e-9
        lines.append(f"No singular value is off by more than {bound} of its matrix’s largest.")
    left = summary.outcomes["not readable"]
    missed = summary.matrices - summary.measured
    if left:
        lines.append(f"{counted(left, 'tensor')} could not be read; the reasons are under Coverage.")
    if missed:
        lines.append(f"{counted(missed, 'matrix', 'matrices')} could not be measured.")
    if not left and not missed:
        lines.append("Every matrix could be read.")
    return lines


def _provenance(run: Run) -> list[tuple[str, str]]:
    lines = [(visible(key), _plain(value)) for key, value in run.provenance.items()]
    worst = summarize(run).worst
    if worst is not None:
        bound = f"every singular value within {significant(worst[0], 2)} · σ max; the worst is {visible(worst[1])}"
        lines.append(("error bounds", bound))
    return lines


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        value = [f"{key}: {item}" for key, item in value.items()]
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    return visible(value) if value not in ("", None) else MISSING


def _part(name: str) -> str:
    return resources.files("eigenscope.report").joinpath(name).read_text("utf-8")


def _script(text: str) -> str:
    """A script as the browser will hash it: with line ends as HTML reads them."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode('utf-8')).digest()).decode('ascii')}'"


def _json(data: Any) -> str:
    """JSON that cannot end the element it stands in, nor open a comment there."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
