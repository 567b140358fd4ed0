"""The pictures of a compression, from its plain content: loss against size on each text, and the layers by depth and role."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from eigenscope.columns import Column
from eigenscope.report.cells import plotly_text
from eigenscope.report.compress_text import with_error
from eigenscope.report.grid import lay_out, shade
from eigenscope.report.plots import ACCENT, BLANK, INK, OTHER, Figure, fill_heat, heat_figure, plain_axis, plain_layout
from eigenscope.results import Record, Run

Content = Mapping[str, Any]
RIVALS = (("#1a7f5a", "square"), ("#8b4fb3", "diamond"), ("#b0305c", "triangle-up"))
"""Colour and mark of each of the other ways."""
ON_DARK = {
    ACCENT: "#6cb2f5", OTHER: "#f0a35e", BLANK: "#252a30", INK: "#e6e9ec", "#1a7f5a": "#5fd3a5", "#8b4fb3": "#c99bea",
    "#b0305c": "#f58fb0",
}  # fmt: skip
"""What the colours become on a dark ground."""
ERRORS = 2.0
"""Standard errors in a bar."""
KEPT = Column("share", "kept", "share", "Share of the dense layer's numbers that is left.")
LOST = Column("predicted", "predicted loss", "number", "Loss added by this layer alone, on held-out text.", scale="log")
TITLES = {
    "kept": ("Where it is cut: numbers kept, by layer and role", KEPT),
    "lost": ("Predicted loss, by layer and role", LOST),
}


def available(content: Content) -> dict[str, tuple[str, Figure]]:
    """Name → title and drawing of every picture that the content has the numbers for."""
    found = {}
    for place, text in enumerate(content["measured"]):
        figure = curve_figure(content, text)
        if figure is not None:
            found[f"curve-{place}"] = (f"Loss against size: {text}", figure)
    return found | {name: (title, layer_figure(content, column)) for name, (title, column) in TITLES.items()}


def curve_figure(content: Content, text: str) -> Figure | None:
    """Loss added on a text against the share of the layers' parameters; None where there is a single point of it."""
    ours = sorted((point["keep"], point["measured"][text]) for point in content["trade-off"])
    chosen = (content["keep"], content["measured"][text])
    if not ours and not content["rivals"]:
        return None
    data = [
        *_points("this model", [chosen], INK, "star", size=13, line=False),
        *(_points("measured", ours, ACCENT, "circle") if ours else ()),
        *_predicted(content),
    ]
    for rival, (color, symbol) in zip(content["rivals"], RIVALS, strict=False):
        points = sorted((point["keep"], point["measured"][text]) for point in rival["points"])
        data += _points(f"{rival['name']}, uniform", points, color, symbol)
    layout = plain_layout(height=420)
    layout |= {
        "showlegend": True,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 12}},
    }
    layout["xaxis"] = plain_axis("share of the layers' parameters", tickformat=".0%", nticks=8)
    layout["yaxis"] = plain_axis(f"loss added, {content['unit']}", type="log", exponentformat="power", nticks=6)
    return {"data": data, "layout": layout}


def _predicted(content: Content) -> Iterator[Figure]:
    curve = {round(point["keep"], 6): point["predicted"] for point in content["trade-off"]}
    if not content["recovery"]:
        curve |= {round(content["keep"], 6): content["predicted"]}
    x = [keep for keep in sorted(curve) if curve[keep] > 0.0]
    if x:
        yield {
            "type": "scatter", "mode": "lines+markers", "x": x, "y": [curve[keep] for keep in x],
            "name": "predicted, on held-out text", "line": {"color": OTHER, "width": 2, "dash": "dash"},
            "marker": {"color": OTHER, "size": 6, "symbol": "x"},
            "hovertemplate": "predicted at %{x:.1%}: %{y:.3g}<extra></extra>",
        }  # fmt: skip


def _points(
    name: str, points: Sequence[tuple[float, Mapping[str, float]]], color: str, symbol: str, *, size: int = 8,
    line: bool = True,
) -> Iterator[Figure]:  # fmt: skip
    """Points with their errors; those that are not above 0, which a logarithmic axis has no place for, by what they are below."""
    label = plotly_text(name)
    above = [(keep, found) for keep, found in points if found["value"] > 0.0]
    bars = [ERRORS * found["stderr"] for _, found in above]
    yield {
        "type": "scatter", "mode": "lines+markers" if line else "markers", "name": label,
        "x": [keep for keep, _ in above], "y": [found["value"] for _, found in above],
        "line": {"color": color, "width": 2}, "marker": {"color": color, "size": size, "symbol": symbol},
        # A bar that reaches 0 would have no end on this axis.
        "error_y": {"type": "data", "symmetric": False, "color": color, "thickness": 1, "width": 3, "array": bars,
                    "arrayminus": [min(bar, 0.9 * found["value"]) for bar, (_, found) in zip(bars, above, strict=True)]},
        "text": [with_error(found) for _, found in above],
        "hovertemplate": f"{label} at %{{x:.1%}}: %{{text}}<extra></extra>",
    }  # fmt: skip
    below = [(keep, found["value"] + ERRORS * found["stderr"]) for keep, found in points if found["value"] <= 0.0]
    below = [(keep, most) for keep, most in below if 0.0 < most < math.inf]
    if below:
        yield {
            "type": "scatter", "mode": "markers", "name": label, "showlegend": not above,
            "x": [keep for keep, _ in below], "y": [most for _, most in below],
            "marker": {"color": color, "size": 10, "symbol": "triangle-down-open"},
            "hovertemplate": f"{label} at %{{x:.1%}}: not above 0, at most %{{y:.2g}}<extra></extra>",
        }  # fmt: skip


def layer_figure(content: Content, column: Column) -> Figure:
    """A reading of the layers over depth and role; grey where a layer stays dense and so loses nothing."""
    records = []
    for layer in content["layers"]:
        dense = layer["share"] >= 1.0
        held = "dense" if dense else f"at rank {layer['rank']:,}"
        readings = {**layer, "dtype": held, "predicted": None if dense else layer["predicted"], "status": layer["note"]}
        records.append(Record(layer["name"], readings))
    run = Run("compress", str(content["source"]), tuple(records), ())
    grid = lay_out(run)
    figure = heat_figure(grid)
    fill_heat(figure, shade(run, grid, column))
    return figure
