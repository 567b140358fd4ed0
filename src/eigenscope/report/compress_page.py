"""A compression → a page that needs nothing else: what was found, loss against size, where it is cut, what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eigenscope.report import compress_figures, shell
from eigenscope.report.cells import format_value, visible
from eigenscope.report.compress_text import COSTS, LAYERS, costs, curve_rows, headline, layer_rows, loss_rows, made

STYLE = (
    ".wide-figure { min-width: 640px; }\nsection { margin-top: 44px; }\n#made ul { color: var(--muted); }\n"
    ".box { margin-top: 10px; }\ntd.long { white-space: normal; min-width: 16em; }\n"
)
HINTS = {
    "curve-0": "On a logarithmic axis. Bars are two standard errors over the windows of the text; a triangle that points down stands"
    " for a loss that is not above 0, at the most that it may be. The prediction is of the held-out text on every picture.",
    "kept": "Share of each layer's numbers; where ranks are global, one threshold on the loss that a number saves gives all.",
    "lost": "By the second-order expansion, each layer cut alone. Grey layers stay dense.",
}


def write_page(content: Mapping[str, Any], path: str | Path) -> None:
    """Write the page.

    Args:
        content: of a compression, as its JSON has it.
        path: the file; replaced in one step.

    Raises:
        OSError: the file cannot be written; an older one of that name is then untouched.
    """
    shell.write(render(content), path)


def render(content: Mapping[str, Any]) -> str:
    """The page as text."""
    drawn = compress_figures.available(content)
    return shell.fill(
        "compress.html",
        verb="compress",
        script=shell.part("figures.js"),
        data={"figures": {name: shell.plain(figure) for name, (_, figure) in drawn.items()}, "dark": compress_figures.ON_DARK},
        style=STYLE,
        title=visible(content["source"]),
        headline=visible(headline(content)),
        findings=[visible(line) for line in content["findings"]],
        figures=[(name, visible(title), HINTS.get(name, "")) for name, (title, _) in drawn.items()],
        first=list(_first(content)),
        tables=[table for table in _tables(content) if table["rows"]],
        left=[(visible(name), visible(why)) for name, why in content["left dense"].items()],
        notes=[visible(line) for line in content["notes"]],
        made=[(visible(key), visible(value)) for key, value in made(content)],
    )  # fmt: skip


def _first(content: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    columns, rows = loss_rows(content)
    yield _table("losses", f"Loss, in {content['unit']}", columns, rows)
    yield _table("costs", "Size and speed", COSTS, costs(content))


def _tables(content: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    columns, rows = curve_rows(content)
    yield _table("sizes", "Loss added at each size", columns, rows)
    yield _table("layers", "All layers", LAYERS, layer_rows(content))


def _table(name: str, title: str, columns: Sequence[Any], rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    return {
        "name": name, "title": title, "columns": columns,
        "rows": [[format_value(column, value) for column, value in zip(columns, row, strict=True)] for row in rows],
    }  # fmt: skip
