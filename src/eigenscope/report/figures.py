"""Records → Plotly figures for a notebook."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from eigenscope.columns import Column, columns_of
from eigenscope.errors import InputError
from eigenscope.report import compare, laws, plots
from eigenscope.report.cells import doubt, plotly_text, shown_columns, significant, unknown, visible
from eigenscope.report.curves import Curve, curve_of
from eigenscope.report.grid import lay_out, shade, visible_role
from eigenscope.report.layouts import layout_of
from eigenscope.report.plots import Figure
from eigenscope.results import Record, Run

MAX_LINES = 200


def heat_map(run: Run, reading: str | None = None) -> go.Figure:
    """A reading over layers (across) and roles (down); colours in log₁₀ where the reading spans decades.

    A cell with several matrices (experts) shows their median. A grey cell has matrices, but none with this reading.

    Args:
        run: the run.
        reading: name of a reading of the run's columns; default: the first that its verb shows.

    Raises:
        InputError: no such reading, or no matrix of the run has it.
    """
    column = _reading(run, reading or layout_of(run).reading)
    grid = lay_out(run)
    figure = plots.heat_figure(grid)
    plots.fill_heat(figure, shade(run, grid, column))
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
    figure = plots.spectra_figure(depth_range(run))
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
        figure["layout"]["updatemenus"] = [plots.menu([
            {"label": plotly_text(each), "method": "update", "args": [
                {"visible": [True, *(owner == each for owner in owners)]}, {"title.text": titles[each]},
            ]}
            for each in chosen
        ], "dropdown")]  # fmt: skip
    return _shown(figure)


def spectrum(run: Run, name: str) -> go.Figure:
    """The singular values of one matrix: over their index, as a histogram, and the energy that the leading ones hold.

    Drawn with them: the noise edge and the Marchenko-Pastur density of the bulk, and the fitted power law, dashed where
    the verdict is not "power law".

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
    symbol = layout_of(run).symbol
    figure, energy = plots.spectrum_figure(), plots.energy_figure("3", symbol)
    _fill_values(figure, record, curve)
    _fill_histogram(figure, record)
    _fill_energy(energy, curve)
    figure["data"] += energy["data"]
    layout = figure["layout"]
    layout |= {key: value for key, value in energy["layout"].items() if key.endswith("axis3")}
    for axis, ends in (("xaxis", [0, 0.26]), ("xaxis2", [0.37, 0.63]), ("xaxis3", [0.74, 1])):
        layout[axis]["domain"] = ends
    shape = f"{record.readings.get('rows')}×{record.readings.get('cols')}, {record.readings.get('role')}"
    verdicts = (record.readings.get(name) for name in layout_of(run).remarks if name != "status")
    about = "; ".join(each for each in verdicts if isinstance(each, str))
    notes = [note for note in (about, laws.noise_note(record, symbol), laws.tail_note(record)) if note]
    layout["title"] = {"text": plotly_text(name), "subtitle": {"text": plotly_text(shape)}}
    layout["margin"]["t"] = 104
    _write_below(layout, notes)
    scales = (("log–log", "log", "log"), ("log", "linear", "log"), ("linear", "linear", "linear"))
    layout["updatemenus"] = [plots.menu([
        {"label": label, "method": "relayout", "args": [{"xaxis.type": x, "yaxis.type": y}]} for label, x, y in scales
    ], "buttons")]  # fmt: skip
    return _shown(figure)


def _write_below(layout: Figure, notes: Sequence[str]) -> None:
    room = 18 * len(notes) + 12
    layout["height"] += room
    layout["margin"]["b"] += room
    layout["annotations"] = [{
        "text": "<br>".join(map(plotly_text, notes)), "xref": "paper", "yref": "paper", "x": 0, "y": 0, "yshift": -56,
        "xanchor": "left", "yanchor": "top", "align": "left", "showarrow": False, "font": {"size": 12, "color": plots.MUTED},
    }] if notes else []  # fmt: skip


def _fill_values(figure: Figure, record: Record, curve: Curve) -> None:
    values, floor, edge, tail, *_ = figure["data"]
    last = int(curve.index[-1])
    values |= {"x": curve.index.tolist(), "y": curve.sigma.tolist()}
    if curve.floor is not None and curve.sigma[-1] < 100 * curve.floor:
        floor |= {"x": [1, last], "y": [curve.floor, curve.floor]}
    level = laws.number(record, "noise_edge")
    if level is not None:
        edge |= {"x": [1, last], "y": [level, level], "text": ["", "noise edge"]}
    line = laws.tail_line(record)
    if line is not None:
        label = f"α {significant(laws.number(record, 'alpha') or 0.0, 3)}"
        tail |= {"x": line[0].tolist(), "y": line[1].tolist(), "text": [""] * (len(line[0]) - 1) + [label]}
        if not laws.is_power_law(record):
            tail |= {"opacity": 0.45, "line": {**tail["line"], "dash": "dash"}}


def _fill_histogram(figure: Figure, record: Record) -> None:
    *_, bars, density, mark = figure["data"]
    shown = laws.histogram(record)
    if shown is None or record.values is None:
        return
    bars |= {"x": shown.middles, "y": list(shown.counts), "width": shown.width}
    bulk, level = laws.bulk_density(record), laws.number(record, "noise_edge")
    signal = [level is not None and middle > level for middle in shown.middles]
    bars["marker"]["color"] = [plots.ACCENT if above else plots.BAR for above in signal]
    if bulk is not None:
        scale = len(record.values) * shown.width
        density |= {"x": bulk[0].tolist(), "y": (bulk[1] * scale).tolist()}
    if level is not None:
        mark |= {
            "x": [level, level],
            "y": [0, max(shown.counts)],
            "text": ["", f"{laws.number(record, 'noise_rank') or 0:,.0f} above"],
            # Towards the side with room, away from the bars of the bulk where these are narrow.
            "textposition": "top left" if 2 * level > shown.low + shown.middles[-1] else "top right",
        }
    if max(shown.counts) <= 5:
        figure["layout"]["yaxis2"]["dtick"] = 1
    figure["layout"]["xaxis2"]["range"] = [shown.low, shown.low + len(shown.counts) * shown.width]


def _fill_energy(figure: Figure, curve: Curve) -> None:
    energy, error, marks = figure["data"]
    energy |= {"x": curve.index.tolist(), "y": curve.energy.tolist()}
    error |= {"x": curve.index.tolist(), "y": curve.error.tolist()}
    marks |= {
        "x": [rank for rank, _ in curve.ranks], "y": [percent / 100 for _, percent in curve.ranks],
        "text": [f"{percent} %" for _, percent in curve.ranks],
    }  # fmt: skip


def change(run: Run, other: Run, reading: str) -> go.Figure:
    """How a reading changed from one run to another, over layers and roles; matrices are matched by name.

    Colours are centred at no change: log₁₀ of the ratio for a reading that spans decades, else the difference. A cell with
    several matrices shows the median of their changes. A grey cell has none with this reading in both runs.

    Args:
        run: the run before.
        other: the run after.
        reading: name of a reading of the run's columns.

    Raises:
        InputError: no such reading, or no matrix has it in both runs.
    """
    column = _reading(run, reading)
    pairing = compare.pair(run, other)
    known = compare.common_readings(run, other, pairing)
    if column not in known:
        raise InputError(
            f"no matrix has {reading!r} in both runs", where=f"{run.source}, {other.source}",
            expected=", ".join(c.name for c in known) or "two runs with matrices of the same names",
        )  # fmt: skip
    grid = lay_out(run)
    figure = plots.heat_figure(grid, plots.DIVERGING_ON_LIGHT)
    plots.fill_heat(figure, compare.shade_change(run, other, pairing, grid, column), diverging=True)
    subtitle = f"{pairing.matched} matrices in both, {len(pairing.only_first)} only in the first, {len(pairing.only_second)} only in the second"
    figure["layout"]["title"] = {"text": f"Change of {column.label} by layer and role", "subtitle": {"text": subtitle}}
    figure["layout"]["margin"]["t"] = 84
    return _shown(figure)


def over_runs(runs: Sequence[Run], reading: str, role: str | None = None) -> go.Figure:
    """A reading over several runs, one line for each matrix of a role, coloured by layer; matched by name.

    Args:
        runs: in order, as from the checkpoints of a training.
        reading: name of a reading of the run's columns.
        role: default: the one with the most matrices.

    Raises:
        InputError: no run, no such reading or role.
    """
    if not runs:
        raise InputError("no runs", expected="at least one")
    first = runs[0]
    column = _reading(first, reading)
    places: dict[str, list[Record]] = {}
    for record in first.records:
        places.setdefault(visible_role(record), []).append(record)
    if role is not None and visible(role) not in places:
        raise unknown("role", role, places)
    chosen = visible(role) if role is not None else max(places, key=lambda key: len(places[key]))
    figure = plots.runs_figure(column.label, column.scale == "log")
    names = compare.letters(len(runs))
    labels = [f"{name}: {plotly_text(compare.title(run))}" for name, run in zip(names, runs, strict=True)]
    found = [{record.name: record.readings.get(column.name) for record in run.records} for run in runs]
    for record in places[chosen]:
        figure["data"].append({
            "type": "scatter", "mode": "lines+markers", "showlegend": False,
            "x": labels, "y": [values.get(record.name) for values in found],
            "line": {"color": _depth_color(first, record), "width": 1.5}, "marker": {"size": 6},
            "hovertemplate": f"<b>{plotly_text(record.name)}</b><br>%{{x}}: %{{y:.4g}}<extra></extra>",
        })  # fmt: skip
    figure["layout"]["title"] = {"text": f"{column.label} over {len(runs)} runs: {plotly_text(chosen)}"}
    figure["layout"]["margin"]["t"] = 64
    return _shown(figure)


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


def _depth_color(run: Run, record: Record) -> str:
    layer, depth = record.readings.get("layer"), depth_range(run)
    if depth is None or not isinstance(layer, int):
        return plots.ACCENT if depth is None else plots.MUTED
    share = (layer - depth[0]) / (depth[1] - depth[0])
    return str(sample_colorscale(list(plots.DEPTH_ON_LIGHT), share)[0])


def _line(run: Run, record: Record, curve: Curve) -> Figure:
    return {
        "type": "scatter", "mode": "lines", "showlegend": False,
        "line": {"color": _depth_color(run, record), "width": 1.5},
        "x": (curve.index / curve.size).tolist(), "y": (curve.sigma / curve.sigma[0]).tolist(),
        "hovertemplate": f"<b>{plotly_text(record.name)}</b><br>%{{x:.3f}}: %{{y:.4g}}<extra></extra>",
    }  # fmt: skip


def _reading(run: Run, name: str) -> Column:
    readings = {column.name: column for column in columns_of(run.verb) if column.reading}
    column = readings.get(name)
    if column is None:
        raise unknown("reading", name, readings)
    if column not in shown_columns(run):
        known = ", ".join(c.name for c in shown_columns(run) if c.reading)
        raise InputError(f"no matrix of the run has {name!r}", where=run.source, expected=known or "another run")
    return column


def _shown(figure: Figure) -> go.Figure:
    figure["layout"]["template"] = "none"
    return go.Figure(figure)
