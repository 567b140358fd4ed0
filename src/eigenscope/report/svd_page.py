"""One decomposition → a page that needs nothing else: its picture, its readings, its values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from eigenscope.report import geometry, shell
from eigenscope.report.cells import significant, visible
from eigenscope.results import Record

MOST_VALUES = 500
ON_DARK = ("#6cb2f5", "#f0a35e", "#5fd3a5")
"""What the colours of the axes become on a dark ground."""
STYLE = ".wide-figure { min-width: 900px; }\nsection { margin-top: 40px; }\n"


def write_picture(figure: go.Figure, path: str | Path, title: str = "") -> None:
    """Write a page with nothing but a figure.

    Args:
        figure: of :mod:`eigenscope.report.geometry`.
        path: the file; replaced in one step.
        title: what is drawn.

    Raises:
        OSError: the file cannot be written; an older one of that name is then untouched.
    """
    shell.write(_render(figure, title or "Picture", {}, [], {}), path)


def write_page(
    record: Record, figure: go.Figure, facts: Mapping[str, str], provenance: Mapping[str, Any], path: str | Path
) -> None:
    """Write the page of a decomposition.

    Args:
        record: name and singular values.
        figure: of :mod:`eigenscope.report.geometry`.
        facts: readings in words.
        provenance: how it was made.
        path: the file; replaced in one step.

    Raises:
        OSError: the file cannot be written; an older one of that name is then untouched.
    """
    values = [] if record.values is None else record.values.tolist()
    shell.write(_render(figure, record.name, facts, values, provenance), path)


def _render(
    figure: go.Figure, title: str, facts: Mapping[str, str], values: list[float], provenance: Mapping[str, Any]
) -> str:
    largest = values[0] if values and values[0] > 0 else 1.0
    drawn = figure.to_dict()
    # The page's own heading says it.
    drawn["layout"]["title"]["text"] = ""
    drawn["layout"]["margin"]["t"] = 76
    return shell.fill(
        "svd.html",
        verb="svd",
        headline="",
        script=shell.part("svd.js"),
        data={"figure": drawn, "dark": dict(zip(geometry.AXES, ON_DARK, strict=True))},
        style=STYLE,
        title=visible(title),
        heading="What the map does to the unit sphere" if _is_map(drawn) else "Singular values and leading vectors",
        facts=[(visible(key), visible(value)) for key, value in facts.items()],
        values=[(f"{i:,}", significant(value, 6), significant(value / largest, 4))
                for i, value in enumerate(values[:MOST_VALUES], 1)],
        more=f"The first {MOST_VALUES} of {len(values):,}." if len(values) > MOST_VALUES else "",
        made=[(visible(key), visible(value)) for key, value in provenance.items()],
    )  # fmt: skip


def _is_map(figure: Mapping[str, Any]) -> bool:
    return any("unit" in str(note.get("text")) for note in figure["layout"].get("annotations", ()))
