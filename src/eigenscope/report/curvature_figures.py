"""The pictures of an analysis of curvature, from its plain content: for notebooks and for the page."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import plotly.graph_objects as go

from eigenscope.errors import InputError
from eigenscope.report.cells import plotly_text, significant
from eigenscope.report.plots import ACCENT, BAR, MUTED, OTHER, VIRIDIS, Figure, plain_axis, plain_colorbar, plain_layout

Content = Mapping[str, Any]
PATHS = {"gradient descent": "#0b5fb0", "momentum": "#1a7f5a", "Adam": "#b8500b", "Newton": "#b0305c"}
"""Colours of the optimisers, readable on both grounds of a contour plot."""
ON_DARK = {
    ACCENT: "#6cb2f5", OTHER: "#f0a35e", BAR: "#56606b", "#1a7f5a": "#5fd3a5", "#b0305c": "#f58fb0",
    "#ffffff": "#121518", "rgba(11,95,176,0.18)": "rgba(108,178,245,0.22)",
}  # fmt: skip
"""What the colours become on a dark ground."""
BAND = "rgba(11,95,176,0.18)"
LEVELS = 24


def figure(content: Content, what: str) -> go.Figure:
    """One picture for a notebook.

    Raises:
        InputError: an unknown name, or one whose numbers were not computed.
    """
    if what not in DRAWINGS:
        raise InputError(f"figure {what!r}", where="curvature", expected=", ".join(DRAWINGS))
    drawn = DRAWINGS[what][1](content)
    if drawn is None:
        raise InputError(f"no {what} was computed", where="curvature", expected=", ".join(available(content)))
    return go.Figure(drawn)


def available(content: Content) -> dict[str, tuple[str, Figure]]:
    """Name → title and drawing of every picture that the content has the numbers for."""
    found = {name: (title, draw(content)) for name, (title, draw) in DRAWINGS.items()}
    return {name: (title, drawn) for name, (title, drawn) in found.items() if drawn is not None}


def density_figure(content: Content) -> Figure | None:
    """How many eigenvalues lie where, on an axis that is logarithmic on both sides of 0; the pairs found as marks."""
    density = content["density"]
    if density is None:
        return None
    edges = density["edges"]
    middle = [(a + b) / 2.0 for a, b in itertools.pairwise(edges)]
    floor = 0.5
    shown = [(x, c, lo, hi) for x, c, lo, hi in
             zip(middle, density["count"], density["low"], density["high"], strict=True) if c > 0.0]  # fmt: skip
    data: list[Figure] = []
    if shown and not density["complete"]:
        x = [row[0] for row in shown]
        data += [
            {"type": "scatter", "mode": "lines", "x": x, "y": [max(row[3], floor) for row in shown],
             "line": {"width": 0, "shape": "hvh"}, "hoverinfo": "skip"},
            {"type": "scatter", "mode": "lines", "x": x, "y": [max(row[2], floor) for row in shown],
             "line": {"width": 0, "shape": "hvh"}, "fill": "tonexty", "fillcolor": BAND, "hoverinfo": "skip"},
        ]  # fmt: skip
    data.append({
        "type": "scatter", "mode": "lines" if not density["complete"] else "markers", "x": [row[0] for row in shown],
        "y": [max(row[1], floor) for row in shown], "line": {"color": ACCENT, "width": 2, "shape": "hvh"},
        "marker": {"color": ACCENT, "size": 6},
        "text": [_range(lo, hi, count) for (_, count, lo, hi) in shown], "hovertemplate": "%{text}<extra></extra>",
    })  # fmt: skip
    marks = [(at, value) for at, value in zip(density["alone_at"], density["alone"], strict=True)]
    if marks:
        data.append({
            "type": "scatter", "mode": "markers", "x": [at for at, _ in marks], "y": [1.0] * len(marks),
            "marker": {"color": OTHER, "size": 8, "symbol": "line-ns-open", "line": {"width": 2, "color": OTHER}},
            "text": [f"eigenvalue {significant(value, 5)}" for _, value in marks],
            "hovertemplate": "%{text}<extra></extra>",
        })  # fmt: skip
    layout = plain_layout(height=360)
    layout["xaxis"] = plain_axis(
        "eigenvalue λ", tickmode="array", tickvals=[at for at, _ in density["ticks"]],
        ticktext=[_power(value) for _, value in density["ticks"]], range=[edges[0], edges[-1]], showgrid=True,
    )  # fmt: skip
    layout["yaxis"] = plain_axis("eigenvalues per bin", type="log", nticks=6, exponentformat="power",
                                 range=[math.log10(floor), math.log10(max([2.0, *density["high"], *density["count"]])) + 0.1])  # fmt: skip
    layout["shapes"] = [_zero()]
    return {"data": data, "layout": layout}


def ends_figure(content: Content) -> Figure | None:
    """The eigenvalues by layer: the largest and the smallest of each block."""
    blocks = content["blocks"]
    if not blocks:
        return None
    names = [plotly_text(block["name"]) for block in blocks]
    data: list[Figure] = []
    for end, color, label in (("top", ACCENT, "largest"), ("bottom", OTHER, "smallest")):
        x, y, error, text = [], [], [], []
        for name, block in zip(names, blocks, strict=True):
            for pair in block[end]:
                x.append(name)
                y.append(pair["value"])
                error.append(pair["residual"])
                text.append(f"{name}<br>λ = {significant(pair['value'], 5)} ± {significant(pair['residual'], 2)}")
        data.append({
            "type": "scatter", "mode": "markers", "x": x, "y": y, "name": label,
            "error_y": {"type": "data", "array": error, "width": 0, "thickness": 1, "color": color},
            "marker": {"color": color, "size": 8, "symbol": "circle" if end == "top" else "diamond"},
            "text": text, "hovertemplate": "%{text}<extra></extra>",
        })  # fmt: skip
    layout = plain_layout(height=380)
    layout |= {"showlegend": True, "legend": _legend()}
    layout["xaxis"] = plain_axis("", type="category", showgrid=False, tickangle=-35 if len(names) > 6 else 0)
    layout["yaxis"] = plain_axis("eigenvalue λ of the block", nticks=6)
    layout["shapes"] = [{**_zero(), "xref": "paper", "yref": "y", "x0": 0, "x1": 1, "y0": 0, "y1": 0}]
    return {"data": data, "layout": layout}


def slices_figure(content: Content) -> Figure | None:
    """The loss along the top and the bottom eigenvector, and what the quadratic model says."""
    parts = content["slices"]
    if not parts:
        return None
    data: list[Figure] = []
    layout = plain_layout(height=330)
    layout |= {"showlegend": True, "legend": _legend()}
    for place, part in enumerate(parts):
        axis = "" if place == 0 else str(place + 1)
        on = {"xaxis": f"x{axis}", "yaxis": f"y{axis}", "x": list(part["distances"])}
        hover = "at %{x:.4g}: %{y:.6g}<extra></extra>"
        data += [
            {"type": "scatter", "mode": "lines", "y": _finite(part["model"]), "line": {"color": OTHER, "width": 2, "dash": "dash"},
             "name": "quadratic model", "showlegend": place == 0, "hovertemplate": f"model {hover}", **on},
            {"type": "scatter", "mode": "lines+markers", "y": _finite(part["losses"]), "line": {"color": ACCENT, "width": 2},
             "marker": {"size": 5, "color": ACCENT}, "name": "loss", "showlegend": place == 0,
             "hovertemplate": f"loss {hover}", **on},
        ]  # fmt: skip
        width = 1.0 / len(parts)
        domain = [
            place * width + (0.04 if place else 0.0),
            (place + 1) * width - (0.04 if place + 1 < len(parts) else 0.0),
        ]
        title = f"along the {part['name']} eigenvector, λ = {significant(part['eigenvalue'], 4)}"
        layout[f"xaxis{axis}"] = plain_axis(title, domain=domain, anchor=f"y{axis}", nticks=5)
        layout[f"yaxis{axis}"] = plain_axis("loss" if place == 0 else "", anchor=f"x{axis}", nticks=5)
    return {"data": data, "layout": layout}


def escape_figure(content: Content) -> Figure | None:
    """Promised and measured decrease along the most negative curvature."""
    way = content["escape"]
    if way is None:
        return None
    points = list(zip(way["distances"], way["promised"], way["measured"], strict=True))
    data: list[Figure] = []
    for label, color, dash, index in (("promised", OTHER, "dash", 1), ("measured", ACCENT, "solid", 2)):
        kept = [row for row in points if row[index] > 0.0]
        data.append({
            "type": "scatter", "mode": "lines+markers", "x": [row[0] for row in kept], "y": [row[index] for row in kept],
            "line": {"color": color, "width": 2, "dash": dash}, "marker": {"color": color, "size": 5}, "name": label,
            "hovertemplate": f"{label}: a step of %{{x:.3g}} takes %{{y:.3g}} off the loss<extra></extra>",
        })  # fmt: skip
    layout = plain_layout(height=320)
    layout |= {"showlegend": True, "legend": _legend()}
    layout["xaxis"] = plain_axis("step along the eigenvector", type="log", exponentformat="power", nticks=6)
    layout["yaxis"] = plain_axis("decrease of the loss", type="log", exponentformat="power", nticks=6)
    return {"data": data, "layout": layout}


def landscape_figure(content: Content) -> Figure | None:
    """Contours of the loss over a plane, with the paths of four optimisers from one start."""
    area = content["landscape"]
    if area is None:
        return None
    rows = [[value if math.isfinite(value) else None for value in row] for row in area["losses"]]
    known = sorted(value for row in rows for value in row if value is not None)
    low = known[0] if known else 0.0
    # The far corners would take all colours: the scale ends at the ninth decile, and is logarithmic above the lowest.
    height = (known[int(0.9 * (len(known) - 1))] - low) or 1.0
    unit = height / 100.0
    z = [[None if v is None else math.log10(1.0 + (v - low) / unit) for v in row] for row in rows]
    top = math.log10(1.0 + height / unit)
    ticks = [low, *(low + unit * (10.0**k - 1.0) for k in (0.5, 1.0, 1.5, 2.0))]
    data: list[Figure] = [{
        "type": "contour", "x": list(area["x"]), "y": list(area["y"]), "z": z, "zmin": 0.0, "zmax": top,
        "colorscale": [[i / (len(VIRIDIS) - 1), color] for i, color in enumerate(VIRIDIS)],
        "contours": {"coloring": "heatmap", "start": 0.0, "end": 2.0 * top, "size": top / LEVELS, "showlines": True},
        "line": {"width": 0.4, "color": "rgba(255,255,255,0.35)"},
        "colorbar": {**plain_colorbar(), "tickvals": [math.log10(1.0 + (v - low) / unit) for v in ticks],
                     "ticktext": [significant(v, 3) for v in ticks]},
        "customdata": rows, "hovertemplate": "(%{x:.3g}, %{y:.3g}): loss %{customdata:.5g}<extra></extra>",
    }]  # fmt: skip
    data += [_path(path) for path in area["paths"]]
    data.append(_point([0.0], [0.0], "the model", "x"))
    layout = plain_layout(height=520)
    layout |= {"showlegend": True, "legend": _legend()}
    for name, values, label in (("xaxis", area["x"], area["labels"][0]), ("yaxis", area["y"], area["labels"][1])):
        layout[name] = plain_axis(plotly_text(label), range=[values[0], values[-1]], nticks=6, showgrid=False)
    return {"data": data, "layout": layout}


def valley_figure(content: Content) -> Figure | None:
    """The narrow valley: gradient descent and momentum on ½(κx² + y²), κ = 1000, at their best steps."""
    plain, heavy = content["narrow"]
    condition = 1000.0
    width = 1.1 * max(abs(x) for path in (plain, heavy) for x in path["x"])
    xs = [width * (i / 40.0 - 1.0) for i in range(81)]
    ys = [1.15 * (i / 40.0 - 1.0) for i in range(81)]
    z = [[math.log10(0.5 * (condition * x * x + y * y) + 1e-6) for x in xs] for y in ys]
    data: list[Figure] = [{
        "type": "contour", "x": xs, "y": ys, "z": z, "showscale": False, "ncontours": 16,
        "colorscale": [[i / (len(VIRIDIS) - 1), color] for i, color in enumerate(VIRIDIS)],
        "contours": {"coloring": "heatmap"}, "line": {"width": 0.4, "color": "rgba(255,255,255,0.35)"}, "hoverinfo": "skip",
    }]  # fmt: skip
    data += [_path(path, thin=True) for path in (plain, heavy)]
    layout = plain_layout(height=420)
    layout |= {"showlegend": True, "legend": _legend()}
    layout["xaxis"] = plain_axis("steep direction", range=[xs[0], xs[-1]], nticks=5, showgrid=False)
    layout["yaxis"] = plain_axis("flat direction", range=[ys[0], ys[-1]], nticks=5, showgrid=False)
    return {"data": data, "layout": layout}


def _path(path: Mapping[str, Any], thin: bool = False) -> Figure:
    color = PATHS.get(str(path["name"]), MUTED)
    label = f"{path['name']}, {path['setting']}" if path["setting"] else str(path["name"])
    return {
        "type": "scatter", "mode": "lines+markers", "x": list(path["x"]), "y": list(path["y"]), "name": plotly_text(label),
        "line": {"color": color if thin else "#ffffff", "width": 0.7 if thin else 1.2},
        "marker": {"size": 4 if thin else 6, "color": color, "line": {"width": 0.4 if thin else 0.8, "color": "#ffffff"}, "symbol": SYMBOLS.get(path["name"], "circle")},
        "text": [f"step {i}" for i in range(len(path["x"]))], "hovertemplate": f"{plotly_text(path['name'])}, %{{text}}<extra></extra>",
    }  # fmt: skip


SYMBOLS = {"gradient descent": "circle", "momentum": "diamond", "Adam": "square", "Newton": "star"}


def _point(x: list[float], y: list[float], name: str, symbol: str) -> Figure:
    return {
        "type": "scatter", "mode": "markers", "x": x, "y": y, "name": name, "hovertemplate": f"{name}<extra></extra>",
        "marker": {"size": 12, "color": "#ffffff", "symbol": symbol, "line": {"width": 1, "color": "#1a1d21"}},
    }  # fmt: skip


def _finite(values: Any) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


def _range(low: float, high: float, count: float) -> str:
    text = f"about {significant(count, 3)} eigenvalues"
    return text if low == high else f"{text} ({significant(low, 3)} to {significant(high, 3)})"


def _zero() -> Figure:
    return {"type": "line", "xref": "x", "yref": "paper", "x0": 0, "x1": 0, "y0": 0, "y1": 1,
            "line": {"color": MUTED, "width": 1, "dash": "dot"}}  # fmt: skip


def _power(value: float) -> str:
    if value == 0.0:
        return "0"
    return f"{'−' if value < 0 else ''}10<sup>{round(math.log10(abs(value)))}</sup>"


def _legend() -> Figure:
    return {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 12}}


DRAWINGS: dict[str, tuple[str, Callable[[Content], Figure | None]]] = {
    "density": ("Where the eigenvalues lie", density_figure),
    "blocks": ("Eigenvalues by layer", ends_figure),
    "slices": ("The loss along the extreme eigenvectors", slices_figure),
    "escape": ("The way down", escape_figure),
    "landscape": ("The loss over a plane", landscape_figure),
    "valley": ("A narrow valley, κ = 1000", valley_figure),
}
"""Name → title, and what draws it."""
