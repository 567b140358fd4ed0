"""The drawings as plain mappings, ``{"data": […], "layout": {…}}``, without the values of a run.

A notebook's figures and the page's script take the same ones and fill them in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eigenscope.report.cells import plotly_text
from eigenscope.report.grid import Grid, Shading

Figure = dict[str, Any]

# Viridis (van der Walt & Smith, 2015): even in lightness, and readable with every kind of colour blindness. Lines
# leave out the end that vanishes against the background.
VIRIDIS = (
    "#440154", "#482475", "#414487", "#355f8d", "#2a788e", "#21918c", "#22a884", "#44bf70", "#7ad151", "#bddf26",
    "#fde725",
)  # fmt: skip
# Blue to red through a pale or dark yellow (after ColorBrewer's RdYlBu, Harrower & Brewer, 2003): readable with every kind
# of colour blindness, and no change is not mistaken for the grey of what is not in both.
DIVERGING_ON_LIGHT = ("#2166ac", "#67a9cf", "#c6dfee", "#fdf5cf", "#fdd3b8", "#ef8a62", "#b2182b")
DIVERGING_ON_DARK = ("#7db8f0", "#3f7fbf", "#2b4a66", "#403c1f", "#70402a", "#c0623e", "#f7a27a")
# On darker colours than this white is read more easily than black (WCAG 2.2, contrast ratio).
WHITE_BELOW = 0.42
DEPTH_ON_LIGHT, DEPTH_ON_DARK = VIRIDIS[:9], VIRIDIS[3:]
INK, MUTED, RULE, BLANK, BAR = "#1a1d21", "#5c6570", "#e2e5e9", "#eceef1", "#9aa5b1"
ACCENT, OTHER = "#0b5fb0", "#b8500b"
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
MANY_LAYERS = 24


def heat_figure(grid: Grid, colors: Sequence[str] = VIRIDIS) -> Figure:
    """The heat map of a grid without a reading: grey for what is not defined, the colours, and the texts on them."""
    common = {
        "type": "heatmap", "x": list(grid.layers), "y": [plotly_text(role) for role in grid.roles],
        "xgap": 2 if len(grid.layers) <= MANY_LAYERS else 1, "ygap": 2,
        "hoverongaps": False, "customdata": [list(row) for row in grid.heads],
        "hovertemplate": "%{customdata}<br>%{hovertext}<extra></extra>",
    }  # fmt: skip
    blank = {**common, "colorscale": [[0, BLANK], [1, BLANK]], "showscale": False}
    colored = {
        **common, "colorscale": [[i / (len(colors) - 1), color] for i, color in enumerate(colors)],
        "colorbar": plain_colorbar(),
    }  # fmt: skip
    texts = {"type": "scatter", "mode": "text", "hoverinfo": "skip", "showlegend": False}
    layout = plain_layout(height=max(200, 110 + 34 * len(grid.roles)))
    layout["xaxis"] = plain_axis("layer", type="category", showgrid=False, ticks="")
    layout["yaxis"] = plain_axis("", type="category", showgrid=False, ticks="", autorange="reversed")
    return {"data": [blank, colored, texts], "layout": layout}


def fill_heat(figure: Figure, shading: Shading, *, diverging: bool = False) -> None:
    """Put a reading, or its change, into a heat map."""
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
        "textfont": {"size": 11, "color": ["#ffffff" if _is_dark(t, diverging) else "#000000" for *_, t in cells]},
    }  # fmt: skip


def _is_dark(t: float, diverging: bool) -> bool:
    return abs(t - 0.5) > 0.4 if diverging else t < WHITE_BELOW


def spectra_figure(depth: tuple[int, int] | None) -> Figure:
    """The figure of spectra by layer without its lines; its first trace is the scale of depth."""
    scale: Figure = {
        "type": "scatter", "x": [None], "y": [None], "mode": "markers", "hoverinfo": "skip", "showlegend": False,
        "marker": {"color": [0], "showscale": depth is not None},
    }  # fmt: skip
    if depth is not None:
        bar = {
            **plain_colorbar(),
            "title": {"text": "layer", "side": "right", "font": {"size": 12}},
            "tickformat": "d",
            "nticks": 8,
        }
        colors = [[i / (len(DEPTH_ON_LIGHT) - 1), color] for i, color in enumerate(DEPTH_ON_LIGHT)]
        scale["marker"] |= {"cmin": depth[0], "cmax": depth[1], "colorscale": colors, "colorbar": bar}
    layout = plain_layout(height=440)
    layout["xaxis"] = plain_axis("i / min(m, n)", range=[0, 1])
    layout["yaxis"] = plain_axis("σᵢ / σ₁", type="log", exponentformat="power", nticks=4)
    return {"data": [scale], "layout": layout}


def spectrum_figure() -> Figure:
    """The figure of one matrix without its values.

    Left, on ``xaxis``: the values, their error bound, the noise edge, the fitted tail. Right, on ``xaxis2``: how many
    values lie where, the noise that explains the bulk, the edge again.
    """
    values = {
        "type": "scatter", "mode": "lines", "line": {"color": ACCENT, "width": 2},
        "hovertemplate": "σ<sub>%{x:,d}</sub> = %{y:.4g}<extra></extra>",
    }  # fmt: skip
    floor = _line(MUTED, 1, "dot", "error bound %{y:.2g}")
    edge = {**_line(MUTED, 1.5, "dash", "noise edge %{y:.4g}"), **_label("top left")}
    tail = {**_line(OTHER, 2, "solid", "power law: σ<sub>%{x:,.0f}</sub> = %{y:.4g}"), **_label("bottom left")}
    bars = {
        "type": "bar", "xaxis": "x2", "yaxis": "y2", "marker": {"color": ACCENT, "line": {"width": 0}},
        "hovertemplate": "%{y:,d} values about σ = %{x:.4g}<extra></extra>",
    }  # fmt: skip
    density = {**_line(OTHER, 2, "solid", "noise: %{y:.3g} values about σ = %{x:.4g}"), "xaxis": "x2", "yaxis": "y2"}
    mark = {**_line(MUTED, 1.5, "dash", "noise edge %{x:.4g}"), **_label("top left"), "xaxis": "x2", "yaxis": "y2",
            "cliponaxis": False}  # fmt: skip
    layout = plain_layout(height=380)
    layout["bargap"] = 0.06
    layout["xaxis"] = plain_axis("index i", type="log", domain=[0, 0.45], nticks=4)
    layout["yaxis"] = plain_axis("singular value σᵢ", type="log", exponentformat="power", nticks=4)
    layout["xaxis2"] = plain_axis("singular value σ", anchor="y2", domain=[0.56, 1], nticks=6, exponentformat="power")
    layout["yaxis2"] = plain_axis("number of values", anchor="x2", rangemode="tozero", nticks=6)
    return {"data": [values, floor, edge, tail, bars, density, mark], "layout": layout}


def energy_figure(axis: str = "", symbol: str = "W") -> Figure:
    """The figure of what the leading k values keep and lose, without its values: energy, error, and the usual marks.

    Args:
        axis: number of its axes, where it is to stand beside others.
        symbol: of the matrix.
    """
    place = {"xaxis": f"x{axis}", "yaxis": f"y{axis}"}
    energy = {
        **_line(ACCENT, 2, "solid", f"rank %{{x:,d}} keeps %{{y:.2%}} of ‖{symbol}‖F²"),
        **place,
        "name": f"energy kept, of ‖{symbol}‖F²",
    }
    error = {
        **_line(MUTED, 1.5, "dot", f"rank %{{x:,d}} is off by %{{y:.2%}} of ‖{symbol}‖F"),
        **place,
        "name": f"error left, of ‖{symbol}‖F",
    }
    marks = {
        "type": "scatter", "mode": "markers+text", **place, "textposition": "bottom right",
        "marker": {"color": ACCENT, "size": 7}, "textfont": {"size": 12}, "cliponaxis": False, "hoverinfo": "skip",
        "showlegend": False,
    }  # fmt: skip
    layout = plain_layout(height=300)
    layout[f"xaxis{axis}"] = plain_axis("rank k", anchor=f"y{axis}", rangemode="tozero")
    layout[f"yaxis{axis}"] = plain_axis(
        "energy kept · error left", anchor=f"x{axis}", tickformat=".0%", range=[0, 1.04]
    )
    return {"data": [energy, error, marks], "layout": layout}


def runs_figure(label: str, log: bool) -> Figure:
    """The figure of a reading over several runs, without its lines; its first trace is empty."""
    layout = plain_layout(height=380)
    layout["xaxis"] = plain_axis("run", type="category", showgrid=False)
    layout["yaxis"] = plain_axis(label, type="log" if log else "linear", exponentformat="power", nticks=5)
    return {"data": [], "layout": layout}


def _line(color: str, width: float, dash: str, hover: str) -> Figure:
    return {
        "type": "scatter", "mode": "lines", "line": {"color": color, "width": width, "dash": dash},
        "hovertemplate": f"{hover}<extra></extra>",
    }  # fmt: skip


def _label(position: str) -> Figure:
    return {"mode": "lines+text", "textposition": position, "textfont": {"size": 12, "color": MUTED}}


def plain_layout(height: int) -> Figure:
    """A layout of that height in pixels, in light colours, without axes."""
    return {
        "height": height, "margin": {"l": 64, "r": 24, "t": 28, "b": 52, "pad": 4}, "showlegend": False,
        "paper_bgcolor": "#ffffff", "plot_bgcolor": "#ffffff", "font": {"family": FONT, "size": 13, "color": INK},
        "hoverlabel": {"bgcolor": "#ffffff", "bordercolor": RULE, "font": {"family": FONT, "size": 13, "color": INK},
                       "align": "left", "namelength": -1},
        "hovermode": "closest", "dragmode": "zoom",
        # "Share chart" would send the weights' spectra to a server.
        "modebar": {"remove": ["sendChartToCloud", "select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "pan2d"]},
    }  # fmt: skip


def plain_axis(title: str, **options: Any) -> Figure:
    """An axis with quiet ticks and grid; other options as Plotly names them."""
    return {
        "title": {"text": title, "font": {"size": 12, "color": MUTED}, "standoff": 10}, "automargin": True,
        "tickfont": {"size": 12, "color": MUTED}, "gridcolor": RULE, "linecolor": RULE, "zeroline": False,
        **options,
    }  # fmt: skip


def plain_colorbar() -> Figure:
    """A thin colour bar."""
    return {"thickness": 10, "outlinewidth": 0, "ticks": "", "tickfont": {"size": 12, "color": MUTED}, "xpad": 12}


def menu(buttons: list[Figure], kind: str) -> Figure:
    """A menu above the figure, at the right: "dropdown" or "buttons"."""
    return {
        "type": kind, "direction": "down" if kind == "dropdown" else "right", "buttons": buttons, "showactive": True,
        "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom", "bgcolor": "#ffffff", "bordercolor": RULE,
        "font": {"size": 12}, "pad": {"t": 0, "b": 4},
    }  # fmt: skip
