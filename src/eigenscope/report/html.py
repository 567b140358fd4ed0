"""A run → one page that needs nothing else: no server, no network, no second file."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from eigenscope.files import replacing
from eigenscope.report import compare
from eigenscope.report.cells import doubt, shown_columns, visible
from eigenscope.report.findings import NOTHING, on_page
from eigenscope.report.page_data import page_data
from eigenscope.report.page_text import comparison, grouped, outcomes, provenance, sentences
from eigenscope.report.summary import counted, summarize
from eigenscope.results import Run

# The page's script, in the order in which its parts build on one another.
SCRIPTS = (
    "base.js", "map.js", "matrix.js", "rank.js", "spectra.js", "table.js", "compare.js", "start.js",
)  # fmt: skip
FINDINGS_AT_FIRST = 5


def write_page(run: Run, path: str | Path, others: Sequence[Run] = ()) -> None:
    """Write the page of a run; it opens from disk, in any browser, without a network.

    Args:
        run: the run. Without singular values the page has no spectra.
        path: the file; replaced in one step, never half written.
        others: runs to compare it with, in order.

    Raises:
        OSError: the file cannot be written; an older one of that name is then untouched.
    """
    page = render(run, others)
    with replacing(path) as beside:
        beside.write_bytes(page.encode("utf-8"))


def render(run: Run, others: Sequence[Run] = ()) -> str:
    """The page as text; arguments as for :func:`write_page`."""
    parts = "\n".join(_part(name) for name in SCRIPTS)
    scripts = [_script(get_plotlyjs()), _script(f'"use strict";\n(() => {{\n{parts}\n}})();\n')]
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
        data=Markup(_json(page_data(run, others))),
        verb=visible(run.verb),
        source=visible(run.source),
        title=compare.title(run),
        lines=sentences(run),
        findings=on_page(run),
        measured=summarize(run).measured,
        nothing=NOTHING,
        at_first=FINDINGS_AT_FIRST,
        doubtful=[(i, visible(r.name), why) for i, r in enumerate(run.records)
                  if (why := doubt(r.readings.get("status")))],
        readings=grouped(columns),
        columns=columns,
        comparison=comparison(run, others),
        outcomes=outcomes(run),
        provenance=provenance(run),
        counted=counted,
    )  # fmt: skip


def _part(name: str) -> str:
    return resources.files("eigenscope.report").joinpath("page", name).read_text("utf-8")


def _script(text: str) -> str:
    """A script as the browser will hash it: with line ends as HTML reads them."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode('utf-8')).digest()).decode('ascii')}'"


def _json(data: Any) -> str:
    """JSON that cannot end the element it stands in, nor open a comment there."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
