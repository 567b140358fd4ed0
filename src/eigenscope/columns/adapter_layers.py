"""The columns of the tables of ``adapter resize``, ``merge`` and ``show``: what the factors alone tell of each layer."""

from __future__ import annotations

from dataclasses import replace

from eigenscope.columns import adapter, scan
from eigenscope.columns.column import Column, fact

_SCAN = {column.name: column for column in scan.COLUMNS}
_ADAPTER = {column.name: column for column in adapter.COLUMNS}
_ECKART = "Eckart & Young, Psychometrika 1, 1936"
_FACTS = tuple(_ADAPTER[name] for name in ("name", "layer", "role", "kind", "rows", "cols", "dtype"))
_NORM = replace(
    _SCAN["frobenius"], label="‖ΔW‖F", meaning="‖ΔW‖F of ΔW = scale·B A; of DoRA before its rows are rescaled."
)

CUT: tuple[Column, ...] = (
    *_FACTS,
    fact("rank_before", "rank before", "count", "r before the cut; of a merge, the largest of its parts'."),
    _ADAPTER["rank"],
    _NORM,
    Column(
        "error", "error", "share",
        "‖ΔW − BA‖F/‖ΔW‖F of the factors as written, measured. Of DoRA it is that of the direction's ΔW: magnitudes are kept.",
        _ECKART,
    ),
    replace(_ADAPTER["optimal_error"], meaning="No BA of this rank has a smaller error than this."),
    _ADAPTER["energy"],
    _ADAPTER["parameters"],
    _ADAPTER["bytes"],
    fact("method", "method", "text", "factored, stacked, or dense where ΔW had to be formed, with the route then taken."),
    _ADAPTER["status"],
)  # fmt: skip

SHOW: tuple[Column, ...] = (
    *_FACTS,
    replace(_ADAPTER["rank"], meaning="r of B (m, r) and A (r, n)."),
    fact("alpha", "α", "number", "Numerator of the scale: α/r, or α/√r of rank-stabilised LoRA."),
    fact("scale", "scale", "number", "What B A is multiplied by."),
    _NORM,
    Column(
        "relative_change", "‖ΔW‖/‖W‖", "share", "‖ΔW‖F/‖W‖F, where the base is given.",
        "Golub & Van Loan, Matrix Computations, 4th ed., §2.3.1", "log",
    ),
    replace(_SCAN["sigma_max"], meaning="Largest singular value of ΔW: the most that a unit input is changed by."),
    Column(
        "used_rank", "used rank", "count",
        "Singular values above what rounding B and A to their format may have made: σᵢ > (eps/2)·(‖B‖F‖A‖₂ + ‖B‖₂‖A‖F)·scale.",
        "Weyl's inequality; Golub & Van Loan, Matrix Computations, 4th ed., §5.4.1",
    ),
    *(_SCAN[name] for name in ("stable_rank", "effective_rank", "rank_90", "rank_99")),
    Column(
        "wasted_rank", "wasted rank", "count", "r less the rank that keeps 99 % of ‖ΔW‖F²: what a resize to that energy saves.",
        _ECKART,
    ),
    Column("first_share", "σ₁ share", "share", "Share of ‖ΔW‖F² in the first direction: 1 over the stable rank.", _ECKART),
    Column(
        "balance", "‖B‖/‖A‖", "number", "‖B‖F/‖A‖F. B starts at 0: a small ratio is a layer that was hardly trained.",
        "Hu et al., LoRA, ICLR 2022, §4.1", "log",
    ),
    Column("magnitude", "magnitude", "number", "Of DoRA: mean of the stored magnitudes.", "Liu et al., DoRA, ICML 2024, eq. 5"),
    _ADAPTER["parameters"],
    _ADAPTER["bytes"],
    fact("error_bound", "error bound", "number", "Bound on the absolute error of every singular value."),
    _ADAPTER["status"],
)  # fmt: skip

INIT: tuple[Column, ...] = (
    *_FACTS,
    replace(_ADAPTER["rank"], meaning="r of B (m, r) and A (r, n); 0 where the layer is left out."),
    Column("energy", "energy", "share", "‖scale·B A‖F²/‖W‖F²: how much of the weight is in the adapter.", _ECKART),
    Column(
        "residual", "residual", "number",
        "Largest residual of the singular triplets relative to ‖W‖F, measured from products; of QR ‖W − QR‖F/‖W‖F.",
        "Parlett, The Symmetric Eigenvalue Problem, Theorem 4.5.1", "log",
    ),
    Column(
        "start_error", "error at the start", "number",
        "‖R + scale·B A − W‖F/‖W‖F, measured: what rounding of the rest R to the base's format leaves.", "", "log",
    ),
    _ADAPTER["parameters"],
    _ADAPTER["bytes"],
    _ADAPTER["status"],
)  # fmt: skip
