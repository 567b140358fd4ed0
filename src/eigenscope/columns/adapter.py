"""The columns of the table of an adapter's layers. Errors are of the factors as written, after rounding to their format."""

from __future__ import annotations

from dataclasses import replace

from eigenscope.columns import scan
from eigenscope.columns.column import Column, fact

_SCAN = {column.name: column for column in scan.COLUMNS}
_ECKART = "Eckart & Young, Psychometrika 1, 1936"

COLUMNS: tuple[Column, ...] = (
    replace(_SCAN["name"], meaning="The module's path in the base model."),
    *(_SCAN[name] for name in ("layer", "role")),
    fact("kind", "kind", "text", "How the base stores the weight: linear, conv1d_transposed, conv, embedding."),
    *(_SCAN[name] for name in ("rows", "cols")),
    fact("dtype", "dtype", "text", "The format of the factors."),
    Column("rank", "rank", "count", "r of B (m, r) and A (r, n); 0 where the layer is left out."),
    Column(
        "relative_change", "‖ΔW‖/‖W‖", "share", "‖ΔW‖F/‖W‖F: the size of what training changed.",
        "Golub & Van Loan, Matrix Computations, 4th ed., §2.3.1", "log",
    ),
    Column(
        "error", "error", "share",
        "‖ΔW − BA‖F/‖ΔW‖F, measured by subtracting; of DoRA, the distance from the tuned weight in place of ‖ΔW − BA‖F.",
        _ECKART,
    ),
    Column(
        "optimal_error", "least error", "share",
        "No BA of this rank has a smaller error than this, in the norm that was minimised: the outputs' with --text.", _ECKART,
    ),
    Column("output_error", "output error", "share", "Root of E‖(ΔW − BA)x‖²/E‖ΔW x‖² over the inputs x of the text.", _ECKART),
    Column("lora_error", "error of LoRA", "share", "Of DoRA: the error of a plain LoRA of the same rank.", _ECKART),
    Column("energy", "energy", "share", "Share of ‖ΔW‖F² that BA keeps: 1 less the square of the error.", _ECKART),
    fact("parameters", "parameters", "count", "Numbers stored: r(m + n), and m magnitudes of DoRA."),
    fact("bytes", "bytes", "count", "Bytes of those."),
    fact("method", "method", "text", "sketch, gram32 or gram64: the route that met the certificate."),
    fact("status", "status", "text", "ok, or why the layer is left out or what is doubtful about it."),
)  # fmt: skip
