"""Records → Plotly figures: what a notebook shows, and what the page draws.

A figure is first a plain mapping, ``{"data": […], "layout": {…}}``: the page takes the same ones and fills them in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from eigenscope.columns import BY_NAME, READINGS, Column
from eigenscope.errors import InputError
from eigenscope.report.cells import doubt, plotly_text, shown_columns, unknown, visible
from eigenscope.report.curves import Curve, curve_of
from eigenscope.report.grid import Grid, Shading, lay_out, shade, visible_role
from eigenscope.results import Record, Run

Figure = dict[str, Any]

# Viridis (van der Walt & Smith, 2015): even in lightness, and readable with every kind of colour blindness. Lines
# leave out the end that vanishes against the background.
VIRIDIS = (
    "#440154", "#482475", "#414487", "#355f8d", "#2a788e", "#21918c", "#22a884", "#44bf70", "#7ad151", "#bddf26",
    "#fde725",
)  # fmt: skip
# On darker colours than this white is read more easily than black (WCAG 2.2, contrast ratio).
WHITE_BELOW = 0.42
DEPTH_ON_LIGHT, DEPTH_ON_DARK = VIRIDIS[:9], VIRIDIS[3:]
INK, MUTED, RULE, BLANK, ACCENT = "#1a1d21", "#5c6570", "#e2e5e9", "#eceef1", "#0b5fb0"
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
MANY_LAYERS = 24
MAX_LINES = 200


def heat_map(run: Run, reading: str) -> go.Figure:
    """A reading over layers (across) and roles (down); colours in log₁₀ where the reading spans decades.

    A cell with several matrices (experts) shows their median. A grey cell has matrices, but none with this reading.

    Args:
        run: the run.
        reading: name of a column of ``eigenscope.columns.READINGS``.

    Raises:
        InputError: no such reading, or no matrix of the run has it.
    """
    column = _reading(run, reading)
    grid = lay_out(run)
    figure = heat_figure(grid)
    fill_heat(figure, shade(run, grid, column))
    figure["layout"]["title"] = {"text": f"{column.label} by layer and role", "subtitle": {"text": column.meaning}}
    figure["layout"]["margin"]["t"] = 84
    return _shown(figure)


def spectra(run: Run, role: str | None = None) -> go.Figure:
    """Spectra of all matrices of a role, each relative to its largest value, coloured by layer.

    Args:
        run: the run, with singular values.
        role: default: all roles, chosen by a menu in the figure.

    Raises:
        InputError: no such role, or no matrix with singular values.
    """
    rows = lines_by_role(run)
    if not rows:
        raise InputError("no matrix has singular values", where=run.source, expected="a run with singular values")
    if role is not None and visible(role) not in rows:
        raise unknown("role", role, rows)
    chosen = [visible(role)] if role is not None else sorted(rows, key=lambda key: -len(rows[key]))
    figure = spectra_figure(depth_range(run))
    owners: list[str] = []
    for each in chosen:
        for record in (run.records[i] for i in spread(rows[each])):
            curve = curve_of(record)
            if curve is not None:
                figure["data"].append({**_line(run, record, curve), "visible": each == chosen[0]})
                owners.append(each)
    titles = {each: f"Singular values by layer: {plotly_text(each)}" for each in chosen}
    figure["layout"]["title"] = {"text": titles[chosen[0]]}
    figure["layout"]["margin"]["t"] = 72
    if len(chosen) > 1:
        figure["layout"]["updatemenus"] = [_menu([
            {"label": plotly_text(each), "method": "update", "args": [
                {"visible": [True, *(owner == each for owner in owners)]}, {"title.text": titles[each]},
            ]}
            for each in chosen
        ], "dropdown")]  # fmt: skip
    return _shown(figure)


def spectrum(run: Run, name: str) -> go.Figure:
    """The singular values of one matrix, and the energy that its leading ones hold.

    Args:
        run: the run, with singular values.
        name: of the matrix, as in the table.

    Raises:
        InputError: no such matrix, or it has no singular values.
    """
    record = next((record for record in run.records if record.name == name), None)
    if record is None:
        raise unknown("matrix", name, (record.name for record in run.records))
    curve = curve_of(record)
    if curve is None:
        why = doubt(record.readings.get("status")) or "the run does not hold any"
        raise InputError(f"no singular values to draw: {why}", where=name, expected="a matrix that was decomposed")
    figure = spectrum_figure()
    values, floor, energy, marks = figure["data"]
    values |= {"x": curve.index.tolist(), "y": curve.sigma.tolist()}
    if curve.floor is not None and curve.sigma[-1] < 100 * curve.floor:
        floor |= {"x": [1, int(curve.index[-1])], "y": [curve.floor, curve.floor]}
    energy |= {"x": curve.index.tolist(), "y": curve.energy.tolist()}
    marks |= {
        "x": [rank for rank, _ in curve.ranks], "y": [percent / 100 for _, percent in curve.ranks],
        "text": [f"{percent} %: {rank:,}" for rank, percent in curve.ranks],
    }  # fmt: skip
    shape = f"{record.readings.get('rows')}×{record.readings.get('cols')}, {record.readings.get('role')}"
    layout = figure["layout"]
    layout["title"] = {"text": plotly_text(name), "subtitle": {"text": plotly_text(shape)}}
    layout["margin"]["t"] = 96
    scales = (("log–log", "log", "log"), ("log", "linear", "log"), ("linear", "linear", "linear"))
    layout["updatemenus"] = [_menu([
        {"label": label, "method": "relayout", "args": [{"xaxis.type": x, "yaxis.type": y}]} for label, x, y in scales
    ], "buttons")]  # fmt: skip
    return _shown(figure)


def heat_figure(grid: Grid) -> Figure:
    """The heat map of a grid without a reading: grey for what is not defined, the colours, and the texts on them."""
    common = {
        "type": "heatmap", "x": list(grid.layers), "y": [plotly_text(role) for role in grid.roles],
        "xgap": 2 if len(grid.layers) <= MANY_LAYERS else 1, "ygap": 2,
        "hoverongaps": False, "customdata": [list(row) for row in grid.heads],
        "hovertemplate": "%{customdata}<br>%{hovertext}<extra></extra>",
    }  # fmt: skip
    blank = {**common, "colorscale": [[0, BLANK], [1, BLANK]], "showscale": False}
    colored = {
        **common, "colorscale": [[i / 10, color] for i, color in enumerate(VIRIDIS)],
        "colorbar": _colorbar(),
    }  # fmt: skip
    texts = {"type": "scatter", "mode": "text", "hoverinfo": "skip", "showlegend": False}
    layout = _layout(height=110 + 34 * len(grid.roles))
    layout["xaxis"] = _axis("layer", type="category", showgrid=False, ticks="")
    layout["yaxis"] = _axis("", type="category", showgrid=False, ticks="", autorange="reversed")
    return {"data": [blank, colored, texts], "layout": layout}


def fill_heat(figure: Figure, shading: Shading) -> None:
    """Put a reading into a heat map."""
    blank, colored, texts = figure["data"]
    blank["z"] = [[0 if color is None and text else None for color, text in zip(*rows, strict=True)]
                  for rows in zip(shading.colors, shading.hovers, strict=True)]  # fmt: skip
    blank["hovertext"] = colored["hovertext"] = [list(row) for row in shading.hovers]
    colored |= {
        "z": [list(row) for row in shading.colors], "zmin": shading.low, "zmax": shading.high,
    }  # fmt: skip
    colored["colorbar"] |= {"tickvals": [v for v, _ in shading.ticks], "ticktext": [t for _, t in shading.ticks]}
    if len(colored["x"]) > MANY_LAYERS:
        return
    cells = [
        (layer, role, text, (color - shading.low) / (shading.high - shading.low))
        for role, colors, row in zip(colored["y"], shading.colors, shading.texts, strict=True)
        for layer, color, text in zip(colored["x"], colors, row, strict=True) if color is not None
    ]  # fmt: skip
    texts |= {
        "x": [layer for layer, _, _, _ in cells], "y": [role for _, role, _, _ in cells],
        "text": [text for _, _, text, _ in cells],
        "textfont": {"size": 11, "color": ["#ffffff" if t < WHITE_BELOW else "#000000" for _, _, _, t in cells]},
    }  # fmt: skip


def spectra_figure(depth: tuple[int, int] | None) -> Figure:
    """The figure of spectra by layer without its lines; its first trace is the scale of depth."""
    scale: Figure = {
        "type": "scatter", "x": [None], "y": [None], "mode": "markers", "hoverinfo": "skip", "showlegend": False,
        "marker": {"color": [0], "showscale": depth is not None},
    }  # fmt: skip
    if depth is not None:
        bar = {
            **_colorbar(),
            "title": {"text": "layer", "side": "right", "font": {"size": 12}},
            "tickformat": "d",
            "nticks": 8,
        }
        colors = [[i / (len(DEPTH_ON_LIGHT) - 1), color] for i, color in enumerate(DEPTH_ON_LIGHT)]
        scale["marker"] |= {"cmin": depth[0], "cmax": depth[1], "colorscale": colors, "colorbar": bar}
    layout = _layout(height=440)
    layout["xaxis"] = _axis("i / min(m, n)", range=[0, 1])
    layout["yaxis"] = _axis("σᵢ / σ₁", type="log", exponentformat="power", nticks=4)
    return {"data": [scale], "layout": layout}


def spectrum_figure() -> Figure:
    """The figure of one spectrum without its values: values, error bound, energy, and the marks on it."""
    values = {
        "type": "scatter", "mode": "lines", "line": {"color": ACCENT, "width": 2},
        "hovertemplate": "σ<sub>%{x:,d}</sub> = %{y:.4g}<extra></extra>",
    }  # fmt: skip
    floor = {
        "type": "scatter", "mode": "lines", "line": {"color": MUTED, "width": 1, "dash": "dot"},
        "hovertemplate": "error bound %{y:.2g}<extra></extra>",
    }  # fmt: skip
    energy = {
        "type": "scatter", "mode": "lines", "line": {"color": ACCENT, "width": 2}, "xaxis": "x2", "yaxis": "y2",
        "hovertemplate": "rank %{x:,d} keeps %{y:.2%}<extra></extra>",
    }  # fmt: skip
    marks = {
        "type": "scatter", "mode": "markers+text", "xaxis": "x2", "yaxis": "y2", "textposition": "bottom right",
        "marker": {"color": ACCENT, "size": 7}, "textfont": {"size": 12}, "cliponaxis": False, "hoverinfo": "skip",
    }  # fmt: skip
    layout = _layout(height=380)
    layout["xaxis"] = _axis("index i", type="log", domain=[0, 0.45], nticks=4)
    layout["yaxis"] = _axis("singular value σᵢ", type="log", exponentformat="power", nticks=4)
    layout["xaxis2"] = _axis("rank k", anchor="y2", domain=[0.56, 1], rangemode="tozero")
    layout["yaxis2"] = _axis("energy kept, of ‖W‖F²", anchor="x2", tickformat=".0%", range=[0, 1.04])
    return {"data": [values, floor, energy, marks], "layout": layout}


def lines_by_role(run: Run) -> dict[str, list[int]]:
    """Places of the records that have a spectrum to draw, by role."""
    roles: dict[str, list[int]] = {}
    for i, record in enumerate(run.records):
        if curve_of(record, 2) is not None:
            roles.setdefault(visible_role(record), []).append(i)
    return roles


def spread(rows: Sequence[int]) -> list[int]:
    """At most 200 of the rows, evenly chosen: more lines than that are a blot."""
    if len(rows) <= MAX_LINES:
        return list(rows)
    return [rows[i * (len(rows) - 1) // (MAX_LINES - 1)] for i in range(MAX_LINES)]


def depth_range(run: Run) -> tuple[int, int] | None:
    """First and last layer, or None where there are not two to tell apart."""
    layers = [layer for r in run.records if isinstance(layer := r.readings.get("layer"), int)]
    return (min(layers), max(layers)) if layers and min(layers) < max(layers) else None


def _line(run: Run, record: Record, curve: Curve) -> Figure:
    layer, depth = record.readings.get("layer"), depth_range(run)
    color = ACCENT if depth is None else MUTED
    if depth is not None and isinstance(layer, int):
        color = sample_colorscale(list(DEPTH_ON_LIGHT), (layer - depth[0]) / (depth[1] - depth[0]))[0]
    return {
        "type": "scatter", "mode": "lines", "showlegend": False, "line": {"color": color, "width": 1.5},
        "x": (curve.index / curve.size).tolist(), "y": (curve.sigma / curve.sigma[0]).tolist(),
        "hovertemplate": f"<b>{plotly_text(record.name)}</b><br>%{{x:.3f}}: %{{y:.4g}}<extra></extra>",
    }  # fmt: skip


def _reading(run: Run, name: str) -> Column:
    column = BY_NAME.get(name)
    if column is None or not column.reading:
        raise unknown("reading", name, (column.name for column in READINGS))
    if column not in shown_columns(run):
        known = ", ".join(c.name for c in shown_columns(run) if c.reading)
        raise InputError(f"no matrix of the run has {name!r}", where=run.source, expected=known or "another run")
    return column


def _shown(figure: Figure) -> go.Figure:
    figure["layout"]["template"] = "none"
    return go.Figure(figure)


def _layout(height: int) -> Figure:
    return {
        "height": height, "margin": {"l": 64, "r": 24, "t": 28, "b": 52, "pad": 4}, "showlegend": False,
        "paper_bgcolor": "#ffffff", "plot_bgcolor": "#ffffff", "font": {"family": FONT, "size": 13, "color": INK},
        "hoverlabel": {"bgcolor": "#ffffff", "bordercolor": RULE, "font": {"family": FONT, "size": 13, "color": INK},
                       "align": "left", "namelength": -1},
        "hovermode": "closest", "dragmode": "zoom",
        # "Share chart" would send the weights' spectra to a server.
        "modebar": {"remove": ["sendChartToCloud", "select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "pan2d"]},
    }  # fmt: skip


def _axis(title: str, **options: Any) -> Figure:
    return {
        "title": {"text": title, "font": {"size": 12, "color": MUTED}, "standoff": 10}, "automargin": True,
        "tickfont": {"size": 12, "color": MUTED}, "gridcolor": RULE, "linecolor": RULE, "zeroline": False,
        **options,
    }  # fmt: skip


def _colorbar() -> Figure:
    return {"thickness": 10, "outlinewidth": 0, "ticks": "", "tickfont": {"size": 12, "color": MUTED}, "xpad": 12}


def _menu(buttons: list[Figure], kind: str) -> Figure:
    return {
        "type": kind, "direction": "down" if kind == "dropdown" else "right", "buttons": buttons, "showactive": True,
        "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom", "bgcolor": "#ffffff", "bordercolor": RULE,
        "font": {"size": 12}, "pad": {"t": 0, "b": 4},
    }  # fmt: skip
