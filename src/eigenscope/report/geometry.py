"""What a matrix does to the unit sphere, drawn: rotate, scale, rotate; of larger ones the values and leading vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from eigenscope.errors import InputError
from eigenscope.report import plots
from eigenscope.report.cells import plotly_text, significant
from eigenscope.report.plots import Figure

LARGEST = 3
"""Dimensions up to which the map itself is drawn."""
AXES = (plots.ACCENT, plots.OTHER, "#2b7a3d")
# A closed scale: a point keeps its colour from panel to panel, whichever way it went round (after Crameri's romaO).
CYCLIC = [[0, "#733957"], [0.17, "#a5682f"], [0.33, "#d0c36b"], [0.5, "#8fd5c4"], [0.67, "#4a98bd"], [0.83, "#5a5a9b"],
          [1, "#733957"]]  # fmt: skip
STEPS = ("unit {body}", "{turn} by V<sup>T</sup>", "scale by Σ", "{turn} by U")
PLACES = ([0.0, 0.22], [0.26, 0.48], [0.52, 0.74], [0.78, 1.0])
MOST_POINTS, MOST_LINES = 2000, 200
Array = NDArray[Any]


def sphere_figure(matrix: Array, name: str = "") -> go.Figure:
    """A = UΣVᵀ step by step: the unit sphere with v₁, v₂, …; turned by Vᵀ; scaled by Σ; turned by U into the ellipsoid
    whose axes are σᵢuᵢ (Trefethen & Bau, Numerical Linear Algebra, 1997, Lecture 4).

    Args:
        matrix: (m, n) real, m and n at most 3.
        name: the figure's title.

    Raises:
        InputError: a larger, empty or complex matrix.
    """
    if matrix.ndim != 2 or not 1 <= min(matrix.shape) <= max(matrix.shape) <= LARGEST or np.iscomplexobj(matrix):
        raise InputError(
            f"a {'complex ' if np.iscomplexobj(matrix) else ''}matrix of shape {matrix.shape}",
            expected="a real one of at most 3×3", remedy="use values_figure",
        )  # fmt: skip
    m, n = matrix.shape
    left, values, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=True)
    if np.linalg.det(right) < 0:
        # The signs of a pair of vectors are free: with these the first step is a rotation, never a reflection.
        right[-1] *= -1.0
        if len(values) == n:
            left[:, n - 1] *= -1.0
    scale = np.zeros((m, n))
    np.fill_diagonal(scale, values)
    largest = float(values[0]) or 1.0
    maps = (np.eye(n), right, scale @ right, left @ scale @ right)
    arrows = (right.T, np.eye(n), np.eye(m)[:, : len(values)] * values, left[:, : len(values)] * values)
    body = {1: "interval", 2: "circle", 3: "sphere"}[n]
    turns = ["", "rotate", "", "rotate" if np.linalg.det(left) > 0 else "reflect"]
    tips = ("v", "e", "σ{} e", "σ{} u")
    layout = plots.plain_layout(height=400)
    figure: Figure = {"data": [], "layout": layout}
    notes: list[Figure] = []
    for place, (moved, axes) in enumerate(zip(maps, arrows, strict=True)):
        dimension, reach = (n, 1.0) if place < 2 else (m, largest)
        labels = [tips[place].format(_sub(i)) + _sub(i) for i in range(axes.shape[1])]
        solid = dimension == 3
        figure["data"] += [
            *_body(
                moved @ _circle(right, n),
                np.einsum("ij,jab->iab", moved, _sphere()) if n == 3 and solid else None,
                place,
                solid,
            ),
            *(_arrow(axes[:, i], labels[i], AXES[i], place, solid) for i in range(axes.shape[1])),
        ]
        _panel(layout, place, (1.1 if solid else 1.4) * reach, solid)
        title = STEPS[place].format(body=body, turn=turns[place])
        notes.append(_heading(f"<b>{place + 1}</b>&nbsp; {title}", sum(PLACES[place]) / 2))
    layout["annotations"] = notes
    listed = ", ".join(f"σ{_sub(i)} = {significant(float(value))}" for i, value in enumerate(values))
    regular = values[-1] > LARGEST * np.finfo(np.float64).eps * values[0]
    condition = f"; κ = {significant(float(values[0] / values[-1]))}" if regular else "; singular"
    layout["title"] = _title(name, f"{m}×{n}: {listed}{condition if len(values) > 1 else ''}")
    return _shown(figure)


def values_figure(
    values: Array, name: str = "", *, frobenius: float | None = None, edge: float | None = None,
    left: Array | None = None, right: Array | None = None,
) -> go.Figure:  # fmt: skip
    """The singular values over their index, the energy that the leading ones keep, and the leading singular vectors.

    Args:
        values: (k,) descending, ≥ 0.
        name: the figure's title.
        frobenius: ‖A‖_F, where values are missing.
        edge: the noise edge, drawn among the values.
        left: (m, j) leading left vectors.
        right: (n, j) leading right vectors.

    Vectors of more than 200 entries are drawn as points: lines would fill the panel.

    Raises:
        InputError: no values.
    """
    if not len(values):
        raise InputError("no singular values to draw", where=name)
    index = np.arange(1, len(values) + 1)
    total = float(np.sum(np.square(values))) if frobenius is None else frobenius**2
    energy = np.cumsum(np.square(values)) / (total or 1.0)
    vectors = [(which, part) for which, part in (("right", right), ("left", left)) if part is not None]
    panels = 2 + len(vectors)
    width = (1.0 - 0.08 * (panels - 1)) / panels
    layout = plots.plain_layout(height=360)
    figure: Figure = {"data": [], "layout": layout}
    mode = "lines+markers" if len(values) <= 60 else "lines"
    shown = values > 0
    figure["data"].append({
        **_line(index[shown], values[shown], plots.ACCENT, 0, "σ<sub>%{x:,d}</sub> = %{y:.5g}"), "mode": mode,
        "marker": {"size": 5},
    })  # fmt: skip
    if edge is not None:
        figure["data"].append({
            **_line([1, len(values)], [edge, edge], plots.MUTED, 0, "noise edge %{y:.4g}"), "mode": "lines+text",
            "line": {"color": plots.MUTED, "width": 1.5, "dash": "dash"}, "text": ["", "noise edge"],
            "textposition": "top left", "textfont": {"size": 12, "color": plots.MUTED},
        })  # fmt: skip
    figure["data"].append(
        {**_line(index, energy, plots.ACCENT, 1, "%{x:,d} keep %{y:.2%} of ‖A‖F²"), "mode": mode, "marker": {"size": 5}}
    )
    titles = ["singular values", "energy kept"]
    for place, (which, part) in enumerate(vectors, 2):
        titles.append(f"leading {which} vectors")
        figure["data"] += _vectors(part, place, which)
    ends = [[i * (width + 0.08), i * (width + 0.08) + width] for i in range(panels)]
    for place, domain in enumerate(ends):
        label = ("index i", "rank k", "entry", "entry")[place]
        layout[f"xaxis{_number(place)}"] = plots.plain_axis(label, domain=domain, anchor=f"y{_number(place)}", nticks=5)
        layout[f"yaxis{_number(place)}"] = plots.plain_axis("", anchor=f"x{_number(place)}", nticks=5)
    layout["yaxis"] |= {"type": "log", "exponentformat": "power"} if shown.any() else {}
    layout["yaxis2"] |= {"tickformat": ".0%", "range": [0, 1.04]}
    layout["annotations"] = [_heading(title, sum(domain) / 2) for title, domain in zip(titles, ends, strict=True)]
    layout["title"] = _title(name, f"{len(values):,} singular values, σ{_sub(0)} = {significant(float(values[0]))}")
    return _shown(figure)


def _sub(index: int) -> str:
    return "₁₂₃"[index]


def _circle(right: Array, n: int) -> Array:
    """(n, N) points of the unit circle, of three dimensions that in the plane of v₁ and v₂."""
    angle = np.linspace(0.0, 2.0 * np.pi, 121)
    flat = np.stack([np.cos(angle), np.sin(angle)])
    if n == 1:
        return np.linspace(-1.0, 1.0, 121)[None]
    return flat if n == 2 else right.T[:, :2] @ flat


def _sphere() -> Array:
    """(3, a, b) points of the unit sphere."""
    polar, azimuth = np.meshgrid(np.linspace(0, np.pi, 25), np.linspace(0, 2 * np.pi, 49), indexing="ij")
    return np.stack([np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)])


def _body(curve: Array, surface: Array | None, place: int, solid: bool) -> list[Figure]:
    """The image of the circle, and of the sphere where it is one."""
    hue = np.linspace(0.0, 1.0, curve.shape[1])
    marker = {"color": hue.tolist(), "colorscale": CYCLIC, "size": 3 if solid else 5, "cmin": 0, "cmax": 1}
    common = {"mode": "markers", "marker": marker, "hoverinfo": "skip", "showlegend": False}
    x, y, z = (_padded(curve)[i].tolist() for i in range(3))
    if not solid:
        fill = {"fill": "toself", "fillcolor": "rgba(11, 95, 176, 0.07)", "mode": "lines+markers", "line": {"width": 0}}
        return [{"type": "scatter", **common, **fill, "x": x, "y": y, **_axes(place)}]
    traces: list[Figure] = []
    if surface is not None:
        colors = np.broadcast_to(np.linspace(0.0, 1.0, surface.shape[2]), surface.shape[1:])
        traces.append({
            "type": "surface", "x": surface[0].tolist(), "y": surface[1].tolist(), "z": surface[2].tolist(),
            "surfacecolor": colors.tolist(), "colorscale": CYCLIC, "opacity": 0.4, "showscale": False,
            "hoverinfo": "skip", "scene": f"scene{_number(place)}",
            "contours": {axis: {"highlight": False} for axis in "xyz"},
            "lighting": {"ambient": 0.75, "diffuse": 0.4, "specular": 0.05},
        })  # fmt: skip
        traces += [_ring(surface[:, i], place) for i in (6, 12, 18)] + [
            _ring(surface[:, :, j], place) for j in range(0, 48, 8)
        ]
    else:
        traces.append({"type": "scatter3d", **common, "x": x, "y": y, "z": z, "scene": f"scene{_number(place)}"})
    return traces


def _ring(points: Array, place: int) -> Figure:
    return {
        "type": "scatter3d", "mode": "lines", "x": points[0].tolist(), "y": points[1].tolist(), "z": points[2].tolist(),
        "line": {"color": "rgba(26, 29, 33, 0.25)", "width": 1}, "hoverinfo": "skip", "showlegend": False,
        "scene": f"scene{_number(place)}",
    }  # fmt: skip


def _arrow(tip: Array, label: str, color: str, place: int, solid: bool) -> Figure:
    """A line from the origin with a marker at its tip, and the label beyond it."""
    x, y, z = _padded(tip[:, None])[:, 0]
    length = float(np.linalg.norm(tip))
    common = {
        "mode": "lines+markers+text", "text": ["", label], "showlegend": False, "cliponaxis": False,
        "textfont": {"size": 14, "color": color}, "line": {"color": color, "width": 6 if solid else 3},
        "hovertemplate": f"{label}: length {significant(length)}<extra></extra>",
    }  # fmt: skip
    if solid:
        del common["cliponaxis"]
        return {
            "type": "scatter3d", **common, "x": [0.0, x], "y": [0.0, y], "z": [0.0, z], "textposition": "top center",
            "marker": {"size": [0, 5], "color": color, "line": {"width": 0}}, "scene": f"scene{_number(place)}",
        }  # fmt: skip
    side = "middle right" if abs(x) >= abs(y) and x >= 0 else "middle left" if abs(x) >= abs(y) else ""
    return {
        "type": "scatter", **common, "x": [0.0, x], "y": [0.0, y],
        "textposition": side or ("top center" if y >= 0 else "bottom center"),
        "marker": {"size": [0, 11], "symbol": "arrow", "angleref": "previous", "color": color, "opacity": 1}, **_axes(place),
    }  # fmt: skip


def _padded(points: Array) -> Array:
    """(3, N) points, coordinates that are missing being 0."""
    return np.concatenate([points, np.zeros((3 - len(points), points.shape[1]))])


def _panel(layout: Figure, place: int, reach: float, solid: bool) -> None:
    limits = [-reach, reach]
    if solid:
        axis = {"range": limits, "showbackground": False, "gridcolor": plots.RULE, "zeroline": False, "title": {"text": ""},
                "nticks": 5, "showticklabels": False}  # fmt: skip
        layout[f"scene{_number(place)}"] = {
            "domain": {"x": PLACES[place], "y": [0, 0.94]}, "xaxis": axis, "yaxis": axis, "zaxis": axis,
            "aspectmode": "cube", "camera": {"eye": {"x": 1.0, "y": 1.0, "z": 0.7}},
        }  # fmt: skip
        return
    number = _number(place)
    layout[f"xaxis{number}"] = plots.plain_axis(
        "", domain=PLACES[place], anchor=f"y{number}", range=limits, nticks=5, constrain="domain"
    )
    layout[f"yaxis{number}"] = plots.plain_axis(
        "", domain=[0, 0.94], anchor=f"x{number}", range=limits, nticks=5, scaleanchor=f"x{number}", constrain="domain"
    )


def _vectors(part: Array, place: int, which: str) -> list[Figure]:
    count = part.shape[0]
    kept = np.unique(np.linspace(0, count - 1, min(count, MOST_POINTS)).astype(int))
    letter = which[0].replace("r", "v").replace("l", "u")
    return [
        {**_line(kept + 1, part[kept, i].real, AXES[i], place, f"{letter}{_sub(i)}: %{{y:.4g}}"),
         "mode": "lines+markers" if count <= 60 else "lines" if count <= MOST_LINES else "markers",
         "marker": {"size": 4 if count <= MOST_LINES else 3, "color": AXES[i]},
         "opacity": 0.9 if count <= MOST_LINES else 0.5}
        for i in range(min(3, part.shape[1]))
    ]  # fmt: skip


def _line(x: Any, y: Any, color: str, place: int, hover: str) -> Figure:
    return {
        "type": "scatter", "mode": "lines", "x": np.asarray(x).tolist(), "y": np.asarray(y).tolist(),
        "line": {"color": color, "width": 2}, "hovertemplate": f"{hover}<extra></extra>", **_axes(place),
    }  # fmt: skip


def _axes(place: int) -> Figure:
    return {"xaxis": f"x{_number(place)}", "yaxis": f"y{_number(place)}"}


def _number(place: int) -> str:
    return str(place + 1) if place else ""


def _heading(text: str, x: float) -> Figure:
    return {"text": text, "x": x, "y": 1.0, "xref": "paper", "yref": "paper", "xanchor": "center", "yanchor": "bottom",
            "showarrow": False, "font": {"size": 13, "color": plots.INK}}  # fmt: skip


def _title(name: str, subtitle: str) -> Figure:
    return {"text": plotly_text(name), "subtitle": {"text": subtitle}}


def _shown(figure: Figure) -> go.Figure:
    figure["layout"]["margin"] |= {"t": 108}
    figure["layout"]["template"] = "none"
    return go.Figure(figure)
