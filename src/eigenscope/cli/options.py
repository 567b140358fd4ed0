"""Options that every verb shares, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="RUN", help="Run file; the same command resumes an unfinished one."),
]
Page = Annotated[Path | None, typer.Option("--report", metavar="PAGE", help="Write a self-contained HTML page.")]
Json = Annotated[bool, typer.Option("--json", help="Print the run as JSON instead of a table.")]
Plan = Annotated[bool, typer.Option("--plan", help="Print what would be read and what it costs, then stop.")]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="Torch device of the arithmetic.")]
Dtype = Annotated[str, typer.Option(metavar="DTYPE", help="float64, or float32: faster on some devices, coarser.")]
Workers = Annotated[
    int | None, typer.Option(metavar="N", help="Matrices at a time; default: the processors available.")
]
WithCoverage = Annotated[bool, typer.Option("--coverage", help="Also list what became of every tensor.")]
Include = Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Only matrices of these names.")]
Exclude = Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="No matrices of these names.")]
Seed = Annotated[int, typer.Option(metavar="N", help="Seed of everything random; the run records it.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]
Folder = Annotated[
    Path, typer.Option("-o", "--output", metavar="DIR", help="Folder to write; it appears when it is whole.")
]
Force = Annotated[bool, typer.Option("--force", help="Write into a folder that exists and is not empty.")]
Alpha = Annotated[
    float | None, typer.Option(metavar="α", help="Scale numerator of an adapter that has no configuration.")
]
Rank = Annotated[int | None, typer.Option(metavar="R", help="Rank of every layer.")]
Energy = Annotated[float | None, typer.Option(metavar="SHARE", help="Keep this share of every ‖ΔW‖F².")]
ErrorLimit = Annotated[float | None, typer.Option("--error", metavar="E", help="Largest ‖ΔW − BA‖F/‖ΔW‖F of a layer.")]
Budget = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Of the whole adapter: 20MB, or parameters such as 1.5M.")
]
