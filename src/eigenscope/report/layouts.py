"""What of a verb's table is shown first, and in which words: one layout a verb, for the terminal, the figures and the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from eigenscope.columns import Column
from eigenscope.results import Run

Groups = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Layout:
    """How a table is laid out.

    Attributes:
        reading: what a heat map shows when nothing else is asked for.
        symbol: of the matrix whose singular values the rows hold.
        priority: columns of the terminal; what is dropped first on a narrow one stands last.
        in_series: readings whose medians are shown over the checkpoints of a training.
        key: columns of the page's table before "all readings" is asked for.
        groups: headings of the list of readings; what is in none of them is listed under the last one.
        facts: what the page says of the chosen matrix, in a line each.
        remarks: texts about it, over the full width.
        calm: remarks that are no reason for doubt; those that begin with one of them are none either.
        done: what was done with the matrices: "decomposed".
        matrix, matrices: what a row is about, as a noun.
        cut: heading of the page's part about lower ranks, and what it says.
        per_rank: numbers that each rank of a factorisation costs beyond one row and one column.
    """

    reading: str
    symbol: str
    priority: tuple[str, ...]
    in_series: tuple[str, ...]
    key: frozenset[str]
    groups: Groups
    facts: tuple[str, ...]
    remarks: tuple[str, ...]
    calm: tuple[str, ...]
    done: str
    matrix: str
    matrices: str
    cut: tuple[str, str]
    per_rank: int


_NOISE = ("noise_rank", "noise_edge", "noise_level", "signal_energy", "bulk_distance", "optimal_rank")

SCAN = Layout(
    reading="condition",
    symbol="W",
    priority=(
        "name", "role", "shape", "sigma_max", "condition", "stable_rank", "rank_99", "layer", "effective_rank",
        "noise_rank", "sigma_min", "dtype", "digits_left", "numerical_rank", "rank_90", "error_bound", "rank_95",
        "frobenius", "participation", "ridge", "conv_norm", "spectral_radius", "overflow_fp16", "underflow_fp16",
        "signal_energy", "optimal_rank", "quantization_floor", "zero_rows", "zero_cols",
    ),
    in_series=(
        "sigma_max", "frobenius", "condition", "numerical_rank", "stable_rank", "effective_rank", "rank_99", "noise_rank",
        "signal_energy", "decay",
    ),
    key=frozenset((
        "name", "layer", "role", "dtype", "sigma_max", "sigma_min", "condition", "digits_left", "numerical_rank",
        "stable_rank", "effective_rank", "rank_90", "rank_99", "status",
    )),
    groups=(
        ("Conditioning", ("condition", "digits_lost", "digits_left", "digits_left_fp16", "ridge")),
        ("Rank", ("numerical_rank", "stable_rank", "effective_rank", "participation", "rank_90", "rank_95", "rank_99")),
        ("Size", ("sigma_max", "sigma_min", "frobenius", "nuclear", "conv_norm", "spectral_radius")),
        ("Factoring", ("params_saved_90", "params_saved_95", "params_saved_99",
                       "bytes_saved_90", "bytes_saved_95", "bytes_saved_99")),
        ("Noise", _NOISE),
        ("Power-law tail", (
            "alpha", "alpha_stderr", "alpha_cutoff", "alpha_ks", "alpha_p", "lr_lognormal", "lr_exponential",
            "lr_truncated", "alpha_stability", "alpha_fixed_aspect", "decay", "decay_r2",
        )),
        ("Entries", ("overflow_fp16", "underflow_fp16", "quantization_floor", "zero_rows", "zero_cols")),
        ("Other", ()),
    ),
    facts=(
        "shape", "layer", "role", "dtype", "sigma_max", "sigma_min", "condition", "numerical_rank", "stable_rank",
        "effective_rank", "rank_90", "rank_99", "noise_rank", "alpha", "error_bound",
    ),
    remarks=("status", "noise_verdict", "alpha_verdict"),
    calm=("power law", "noise bulk", "noise only"),
    done="decomposed",
    matrix="weight matrix",
    matrices="weight matrices",
    cut=(
        "Cut to a lower rank",
        "What the best approximation of rank k keeps, loses and costs, held as U, σ and V in the storage format: k(m+n+1) "
        "numbers instead of mn.",
    ),
    per_rank=1,
)  # fmt: skip

_ENERGIES = tuple(f"energy_{k}" for k in (4, 8, 16, 32, 64))

DIFF = Layout(
    reading="relative_change",
    symbol="ΔW",
    priority=(
        "name", "verdict", "relative_change", "energy_16", "rank_90", "role", "shape", "rank_99", "layer", "overlap_16",
        "chance_16", "stable_rank", "intruders", "noise_rank", "direction_change", "energy_64", "effective_rank",
        "magnitude_change", "energy_4", "energy_8", "energy_32", "adapter_90", "signal_energy", "spectral_change", "dtype",
        "sigma_max", "frobenius", "rank_95", "participation", "numerical_rank", "least_cosine", "error_bound",
    ),
    in_series=(
        "relative_change", "spectral_change", "frobenius", "energy_4", "energy_16", "energy_64", "rank_90", "rank_99",
        "stable_rank", "effective_rank", "noise_rank", "overlap_16", "intruders", "magnitude_change", "direction_change",
    ),
    key=frozenset((
        "name", "layer", "role", "verdict", "relative_change", "energy_16", "energy_64", "rank_90", "rank_99",
        "stable_rank", "noise_rank", "overlap_16", "chance_16", "intruders", "direction_change", "status",
    )),
    groups=(
        ("Change", ("relative_change", "spectral_change", "frobenius", "sigma_max")),
        ("Energy", _ENERGIES),
        ("Rank", ("rank_90", "rank_95", "rank_99", "adapter_90", "stable_rank", "effective_rank", "participation",
                  "numerical_rank")),
        ("Noise", _NOISE),
        ("Subspaces", ("overlap_16", "overlap_16_left", "overlap_16_right", "intruders", "least_cosine")),
        ("Magnitude and direction", ("magnitude_change", "direction_change")),
        ("Other", ()),
    ),
    facts=(
        "shape", "layer", "role", "dtype", "base_dtype", "verdict", "relative_change", "sigma_max", "energy_16",
        "rank_90", "rank_99", "stable_rank", "effective_rank", "noise_rank", "overlap_16", "chance_16", "intruders",
        "least_cosine", "magnitude_change", "direction_change", "error_bound",
    ),
    remarks=("evidence", "status", "noise_verdict"),
    calm=("noise", "bulk is not noise", "no noise bulk", "90 % in", "changed", "every entry is the same", "not distinguishable"),
    done="compared",
    matrix="pair of weight matrices",
    matrices="pairs of weight matrices",
    cut=(
        "As an adapter of lower rank",
        "What a LoRA of rank k keeps of the change, what it loses and costs, in the storage format: k(m+n) numbers instead "
        "of mn.",
    ),
    per_rank=0,
)  # fmt: skip

ADAPTER = replace(
    DIFF,
    reading="stable_rank",
    priority=(
        "name", "role", "shape", "rank", "used_rank", "stable_rank", "rank_99", "frobenius", "relative_change", "first_share",
        "wasted_rank", "layer", "scale", "magnitude", "alpha", "effective_rank", "rank_90", "balance", "sigma_max", "dtype",
        "parameters", "error_bound",
    ),
    in_series=("frobenius", "stable_rank", "rank_99", "used_rank"),
    key=frozenset((
        "name", "layer", "role", "rank", "used_rank", "stable_rank", "rank_99", "frobenius", "relative_change", "first_share",
        "wasted_rank", "balance", "magnitude", "status",
    )),
    groups=(
        ("Size", ("frobenius", "relative_change", "sigma_max", "balance", "magnitude")),
        ("Rank", ("used_rank", "stable_rank", "effective_rank", "rank_90", "rank_99", "wasted_rank", "first_share")),
        ("Other", ()),
    ),
    facts=(
        "shape", "layer", "role", "dtype", "rank", "alpha", "scale", "frobenius", "relative_change", "sigma_max", "used_rank",
        "stable_rank", "effective_rank", "rank_90", "rank_99", "error_bound",
    ),
    remarks=("status",),
    calm=(),
    done="read from its factors",
    matrix="layer",
    matrices="layers",
)  # fmt: skip

CUT = replace(
    ADAPTER,
    reading="error",
    priority=(
        "name", "role", "shape", "rank_before", "rank", "error", "optimal_error", "frobenius", "energy", "parameters", "layer",
        "method", "dtype", "bytes",
    ),
    in_series=("error", "frobenius"),
    key=frozenset(("name", "layer", "role", "rank_before", "rank", "error", "optimal_error", "frobenius", "status")),
    groups=(("Error", ("error", "optimal_error", "energy")), ("Other", ())),
    facts=("shape", "layer", "role", "dtype", "rank_before", "rank", "frobenius", "error", "optimal_error", "parameters"),
    done="cut",
)  # fmt: skip

INIT = replace(
    CUT,
    reading="energy",
    priority=("name", "role", "shape", "rank", "energy", "start_error", "residual", "parameters", "layer", "dtype", "bytes"),
    in_series=("energy",),
    key=frozenset(("name", "layer", "role", "rank", "energy", "start_error", "residual", "status")),
    groups=(("Start", ("energy", "start_error", "residual")), ("Other", ())),
    facts=("shape", "layer", "role", "dtype", "rank", "energy", "start_error", "residual", "parameters"),
    done="decomposed",
)  # fmt: skip

LAYOUTS = {
    "scan": SCAN, "diff": DIFF, "adapter show": ADAPTER, "adapter resize": CUT, "adapter merge": CUT, "adapter init": INIT,
}  # fmt: skip


def layout_of(run: Run) -> Layout:
    """The layout of a run's verb; that of ``scan`` for one without its own."""
    return LAYOUTS.get(run.verb, SCAN)


def grouped(layout: Layout, columns: Sequence[Column]) -> list[tuple[str, list[Column]]]:
    """The readings among the columns under their headings."""
    readings = [column for column in columns if column.reading]
    named = {name for _, names in layout.groups for name in names}
    groups = [
        (heading, [c for c in readings if c.name in names or (not names and c.name not in named)])
        for heading, names in layout.groups
    ]
    return [(heading, members) for heading, members in groups if members]
