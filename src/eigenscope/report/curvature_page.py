"""An analysis of curvature → a page that needs nothing else: verdict and advice first, then the pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eigenscope.report import curvature_figures, shell
from eigenscope.report.cells import significant, visible
from eigenscope.report.curvature_text import facts

STYLE = (
    ".wide-figure { min-width: 640px; }\nsection { margin-top: 44px; }\n#warnings { margin-top: 20px; }\n"
    ".facts { grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); }\n.facts .n { margin-left: 2px; font-size: 13px; }\n"
    "#made ul { color: var(--muted); }\n"
)
HINTS = {
    "density": "Each bin of the axis, which is logarithmic on both sides of 0 and linear next to it. The band is two standard"
    " errors over the random vectors; between the nodes of the quadrature, around 0 above all, the line is their"
    " interpolation. Marks are eigenvalues found one by one.",
    "blocks": "Both ends of the diagonal block of each; bars are residuals.",
    "slices": "Where the two part, second derivatives say nothing any more.",
    "escape": "Steps along the eigenvector of the smallest eigenvalue, downhill.",
    "landscape": "Every optimiser starts at the same place and moves in this plane only. Newton goes to whatever critical"
    " point is near.",
    "valley": "Not this model: the quadratic ½(κx² + y²) with κ = 1000, 100 steps of each method at its best step. The axes"
    " have different scales.",
}  # fmt: skip


def write_page(content: Mapping[str, Any], path: str | Path) -> None:
    """Write the page.

    Args:
        content: of an analysis, as its JSON has it.
        path: the file; replaced in one step.

    Raises:
        OSError: the file cannot be written; an older one of that name is then untouched.
    """
    shell.write(render(content), path)


def render(content: Mapping[str, Any]) -> str:
    """The page as text."""
    drawn = curvature_figures.available(content)
    warnings = ["The analysis was interrupted: what is missing was not computed."] if content["interrupted"] else []
    rows = [
        (end, significant(p["value"], 6), significant(p["residual"], 2), significant(p["bound"], 2), "yes" if p["converged"] else "no")
        for end in ("top", "bottom") for p in content[end]
    ]  # fmt: skip
    if any(not p["converged"] for end in ("top", "bottom") for p in content[end]):
        warnings.append("Some eigenpairs have not converged: their values are bounded by what stands beside them.")
    return shell.fill(
        "curvature.html",
        verb="curvature",
        script=shell.part("figures.js"),
        data={"figures": {name: shell.plain(figure) for name, (_, figure) in drawn.items()}, "dark": curvature_figures.ON_DARK},
        style=STYLE,
        title=visible(content["source"]),
        headline=visible(content["verdict"]["sentence"]),
        warnings=warnings,
        advice=[visible(line) for line in content["advice"]],
        facts=facts(content),
        figures=[(name, title, HINTS[name]) for name, (title, _) in drawn.items()],
        pairs=rows,
        notes=[visible(line) for line in content["notes"]],
        made=[(visible(key), visible(value)) for key, value in _flat(content["provenance"]).items()],
    )  # fmt: skip


def _flat(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """One level: what is a mapping itself becomes lines of its own."""
    found: dict[str, Any] = {}
    for key, value in provenance.items():
        if isinstance(value, Mapping):
            found |= {f"{key}: {name}": part for name, part in value.items()}
        elif value not in (None, ""):
            found[key] = value
    return found
