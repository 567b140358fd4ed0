"""The columns of ``diff``'s table. Readings of the spectrum are those of ΔW = W_tuned − W_base, in float64."""

from __future__ import annotations

from dataclasses import replace

from eigenscope.columns import scan
from eigenscope.columns.column import Column, fact

_SCAN = {column.name: column for column in scan.COLUMNS}
_ECKART = "Eckart & Young, Psychometrika 1, 1936"
_LORA = "Hu et al., LoRA, ICLR 2022, §7.3: φ(·, ·, 16, 16)"


def _of_change(name: str) -> Column:
    """A reading of ``scan``, of ΔW."""
    column = _SCAN[name]
    label, meaning = (text.replace("‖W‖", "‖ΔW‖") for text in (column.label, column.meaning))
    return replace(column, label=label, meaning=meaning)


def _energy(k: int) -> Column:
    meaning = f"Share of ‖ΔW‖F² that the best approximation of rank {k} keeps: what a LoRA of that rank can hold."
    return Column(f"energy_{k}", f"energy {k}", "share", meaning, _ECKART)


COLUMNS: tuple[Column, ...] = (
    replace(
        _SCAN["name"], meaning="The tensor's name in the tuned checkpoint; a part of a fused tensor adds :q, :k, …"
    ),
    *(_SCAN[name] for name in ("layer", "role", "rows", "cols")),
    fact("dtype", "dtype", "text", "The format in which the tuned checkpoint stores it."),
    fact("base_dtype", "base dtype", "text", "The format in which the base stores it."),
    fact(
        "verdict",
        "verdict",
        "text",
        "«unchanged», «within rounding», «low-rank», «full-rank», «retrained», «too small».",
    ),
    fact("evidence", "evidence", "text", "What the verdict rests on."),
    Column(
        "relative_change",
        "‖ΔW‖/‖W‖",
        "share",
        "‖ΔW‖F/‖W‖F: the size of the change; more than 100 % is a matrix trained from scratch.",
        "Golub & Van Loan, Matrix Computations, 4th ed., §2.3.1",
        "log",
    ),
    Column(
        "spectral_change",
        "σ ΔW/σ W",
        "share",
        "‖ΔW‖₂/‖W‖₂: the strongest direction of the change beside the strongest of the base; it bounds how far any singular "
        "value moved.",
        "Weyl's inequality: Golub & Van Loan, Matrix Computations, 4th ed., Corollary 8.6.2",
        "log",
    ),
    *(_of_change(name) for name in ("frobenius", "sigma_max")),
    *(_energy(k) for k in (4, 8, 16, 32, 64)),
    *(_of_change(name) for name in ("rank_90", "rank_95", "rank_99")),
    Column(
        "adapter_90",
        "LoRA 90 %",
        "share",
        "r(m + n)/mn at the rank r that keeps 90 %: numbers of a LoRA beside those of the matrix; above 100 % it costs more.",
        "Hu et al., LoRA, ICLR 2022, §4.1",
    ),
    *(_of_change(name) for name in ("stable_rank", "effective_rank", "participation")),
    Column(
        "numerical_rank",
        "numerical rank",
        "count",
        "Singular values of ΔW above the rounding floor: directions that the storage formats can carry.",
        "Weyl's inequality on the rounding floor",
    ),
    *(
        _of_change(name)
        for name in ("noise_level", "noise_edge", "noise_rank", "signal_energy", "bulk_distance", "optimal_rank")
    ),
    fact("noise_verdict", "noise verdict", "text", _SCAN["noise_verdict"].meaning),
    Column(
        "overlap_16",
        "overlap 16",
        "share",
        "Mean cos² of the principal angles between ΔW's leading 16 directions and W's own, left and right averaged: 100 % if "
        "training moved W's top directions only, «chance 16» if its directions have nothing to do with them.",
        _LORA,
    ),
    Column("overlap_16_left", "overlap 16 left", "share", "The same of the left (output) directions alone.", _LORA),
    Column("overlap_16_right", "overlap 16 right", "share", "The same of the right (input) directions alone.", _LORA),
    fact("chance_16", "chance 16", "share", "Overlap of random subspaces: (16/m + 16/n)/2."),
    fact("chance_16_left", "chance 16 left", "share", "Overlap of random subspaces of the outputs: 16/m."),
    fact("chance_16_right", "chance 16 right", "share", "Overlap of random subspaces of the inputs: 16/n."),
    fact(
        "overlap_16_error",
        "overlap 16 ±",
        "share",
        "Bound on the error of the overlaps, by the gap behind the sixteenth value; 100 % where the sixteenth and "
        "seventeenth are too close to tell the subspace.",
    ),
    Column(
        "intruders",
        "intruders",
        "count",
        "Intruder dimensions: of the tuned matrix's 10 leading left singular vectors, those whose cosine with every one "
        "of the base's is below 0.5.",
        "Shuttleworth et al., LoRA vs Full Fine-tuning, NeurIPS 2025, Algorithm 1",
    ),
    Column(
        "least_cosine",
        "least cosine",
        "number",
        "The smallest, over these 10 vectors, of the largest cosine with a vector of the base; 1 where all stayed.",
        "Shuttleworth et al., NeurIPS 2025, Algorithm 1",
    ),
    Column(
        "magnitude_change",
        "Δ magnitude",
        "share",
        "Mean |‖w′ⱼ‖ − ‖wⱼ‖| over the columns j, relative to the mean ‖wⱼ‖: how far their lengths moved.",
        "Liu et al., DoRA, ICML 2024, §3.2, eq. (3), relative",
        "log",
    ),
    Column(
        "direction_change",
        "Δ direction",
        "share",
        "Mean 1 − cos of the angle between the columns before and after: how far their directions moved.",
        "Liu et al., DoRA, ICML 2024, §3.2, eq. (4)",
        "log",
    ),
    Column(
        "rounding_floor",
        "rounding floor",
        "number",
        "About the largest singular value of a difference that the rounding of the two storage formats alone leaves; what is "
        "below it is no change.",
        "Bennett, Bell Syst. Tech. J. 27, 1948 (ulp/√12); Bandeira & van Handel, Ann. Probab. 44(4), 2016, Theorem 1.1",
        "log",
        reading=False,
    ),
    replace(
        _SCAN["quantization_floor"],
        meaning="The same of matrices whose entries take a few levels only: about the largest singular value of the "
        "quantisation error that ΔW contains. Empty where neither is quantised.",
        reading=False,
    ),
    *(_SCAN[name] for name in ("method", "error_bound", "status")),
)
