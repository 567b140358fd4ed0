"""A run → one page that needs nothing else: no server, no network, no second file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eigenscope.report import compare, shell
from eigenscope.report.cells import doubt, shown_columns, visible
from eigenscope.report.findings import NOTHING, on_page
from eigenscope.report.layouts import grouped, layout_of
from eigenscope.report.page_data import page_data
from eigenscope.report.page_text import comparison, outcomes, provenance, sentences
from eigenscope.report.summary import counted, summarize
from eigenscope.results import Run

# The page's script, in the order in which its parts build on one another.
SCRIPTS = (
    "base.js", "map.js", "matrix.js", "rank.js", "spectra.js", "table.js", "compare.js", "start.js",
)  # fmt: skip
FINDINGS_AT_FIRST = 5


def write_page(run: Run, path: str | Path, others: Sequence[Run] = (), steps: Sequence[Run] = ()) -> None:
    """Write the page of a run; it opens from disk, in any browser, without a network.

    Args:
        run: the run. Without singular values the page has no spectra.
        path: the file; replaced in one step, never half written.
        others: runs to compare it with, in order.
        steps: of a series of comparisons, each checkpoint against the one before it.

    Raises:
        OSError: the file cannot be written; an older one of that name is then untouched.
    """
    shell.write(render(run, others, steps), path)


def render(run: Run, others: Sequence[Run] = (), steps: Sequence[Run] = ()) -> str:
    """The page as text; arguments as for :func:`write_page`."""
    parts = "\n".join(shell.part(name) for name in SCRIPTS)
    columns, layout = shown_columns(run), layout_of(run)
    return shell.fill(
        "page.html",
        script=f'"use strict";\n(() => {{\n{parts}\n}})();\n',
        data=page_data(run, others),
        verb=visible(run.verb),
        source=visible(run.source),
        title=compare.title(run),
        lines=sentences(run),
        verdict=visible(run.verdict),
        notes=visible(run.provenance.get("notes") or "") if run.verdict else "",
        cut=layout.cut,
        findings=on_page(run),
        measured=summarize(run).measured,
        nothing=NOTHING,
        at_first=FINDINGS_AT_FIRST,
        doubtful=[(i, visible(r.name), why) for i, r in enumerate(run.records)
                  if (why := doubt(r.readings.get("status")))],
        readings=grouped(layout, columns),
        columns=columns,
        comparison=comparison(run, others, steps),
        outcomes=outcomes(run),
        provenance=provenance(run),
        counted=counted,
    )  # fmt: skip
