"""The columns of ``scan``'s table: what each reading means, in what unit, and whose formula it is.

One list, from which the terminal, the page, the README's table and the tests are derived.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "count", "number", "share"]


@dataclass(frozen=True)
class Column:
    """One column of the table.

    Attributes:
        name: the key of ``Record.readings`` and of the DataFrame.
        label: short heading.
        kind: "text", "count" (integer), "number" (real), "share" (0…1, shown in per cent).
        meaning: what it says, in at most two sentences.
        source: whose definition it is; empty for plain facts.
        scale: how a colour or an axis shows it.
        reading: whether it is a figure of the matrix (and so can be mapped over layer × role).
    """

    name: str
    label: str
    kind: Kind
    meaning: str
    source: str = ""
    scale: Literal["linear", "log"] = "linear"
    reading: bool = True


def _fact(name: str, label: str, kind: Kind, meaning: str) -> Column:
    return Column(name, label, kind, meaning, reading=False)


_GVL = "Golub & Van Loan, Matrix Computations, 4th ed."

COLUMNS: tuple[Column, ...] = (
    _fact("name", "name", "text", "The tensor's name in the checkpoint; a part of a fused tensor adds :q, :k, …"),
    _fact("layer", "layer", "count", "Depth of the block that the matrix belongs to, counted from 0."),
    _fact("role", "role", "text", "What the matrix does: q, k, v, o, gate, up, down, embedding, …"),
    _fact("rows", "rows", "count", "Outputs m of the linear map."),
    _fact("cols", "cols", "count", "Inputs n of the linear map."),
    _fact("dtype", "dtype", "text", "The format in which the file stores it."),
    Column(
        "sigma_max",
        "σ max",
        "number",
        "Largest singular value: the most the map stretches a unit vector.",
        f"{_GVL}, §2.4.2",
        "log",
    ),
    Column(
        "sigma_min",
        "σ min",
        "number",
        "Smallest of the min(m, n) singular values: the least it stretches one.",
        f"{_GVL}, §2.4.2",
        "log",
    ),
    Column(
        "frobenius",
        "‖W‖F",
        "number",
        "Frobenius norm: root of the sum of squared singular values.",
        f"{_GVL}, §2.3.1",
        "log",
    ),
    Column(
        "nuclear",
        "‖W‖*",
        "number",
        "Nuclear norm: sum of the singular values.",
        "Horn & Johnson, Matrix Analysis, 2nd ed., §7.4.7",
        "log",
    ),
    Column(
        "condition",
        "κ",
        "number",
        "σ max / σ min: how far the map squeezes the unit sphere. Infinite if singular.",
        f"{_GVL}, §2.6.2",
        "log",
    ),
    Column(
        "digits_lost",
        "digits lost",
        "number",
        "log₁₀ κ: decimal digits that solving with this matrix can cost, in any precision.",
        "Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., §1.6",
    ),
    Column(
        "digits_left",
        "digits left",
        "number",
        "Decimal digits of the storage format that remain after the loss; 0 means none.",
        "Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., §1.6",
    ),
    Column(
        "digits_left_fp16",
        "digits left fp16",
        "number",
        "The same if the matrix were held in fp16.",
        "Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., §1.6",
    ),
    Column(
        "numerical_rank",
        "numerical rank",
        "count",
        "Singular values above the rounding of the storage format. For formats narrower than fp32, above the "
        "norm that one rounding of every entry can add.",
        f"{_GVL}, §5.4.1; Weyl's inequality for the narrow formats",
    ),
    Column(
        "stable_rank",
        "stable rank",
        "number",
        "‖W‖F² / σ max²: how many directions share the energy, judged by the strongest one.",
        "Rudelson & Vershynin, J. ACM 54(4), 2007, §1.1",
    ),
    Column(
        "effective_rank",
        "effective rank",
        "number",
        "exp of the entropy of σᵢ / Σσ: how many directions are used, weak ones included.",
        "Roy & Vetterli, EUSIPCO 2007, Definition 1",
    ),
    Column(
        "participation",
        "participation",
        "number",
        "(Σσ²)² / Σσ⁴: how many directions share the energy evenly.",
        "Bell & Dean, Discuss. Faraday Soc. 50, 1970; on the eigenvalues σ²",
    ),
    Column(
        "rank_90",
        "rank 90 %",
        "count",
        "Smallest k whose best rank-k approximation keeps 90 % of ‖W‖F².",
        "Eckart & Young, Psychometrika 1, 1936",
    ),
    Column(
        "rank_95",
        "rank 95 %",
        "count",
        "Smallest k whose best rank-k approximation keeps 95 % of ‖W‖F².",
        "Eckart & Young, Psychometrika 1, 1936",
    ),
    Column(
        "rank_99",
        "rank 99 %",
        "count",
        "Smallest k whose best rank-k approximation keeps 99 % of ‖W‖F².",
        "Eckart & Young, Psychometrika 1, 1936",
    ),
    Column(
        "params_saved_90",
        "params saved 90 %",
        "count",
        "mn − k(m+n+1) at that rank: entries that U, σ and V save. Negative: they cost more.",
    ),
    Column("params_saved_95", "params saved 95 %", "count", "The same at the rank that keeps 95 %."),
    Column("params_saved_99", "params saved 99 %", "count", "The same at the rank that keeps 99 %."),
    Column(
        "bytes_saved_90",
        "bytes saved 90 %",
        "count",
        "The same in bytes, the factors held in the storage format.",
    ),
    Column("bytes_saved_95", "bytes saved 95 %", "count", "The same at the rank that keeps 95 %."),
    Column("bytes_saved_99", "bytes saved 99 %", "count", "The same at the rank that keeps 99 %."),
    Column(
        "ridge",
        "ridge λ",
        "number",
        "The λ of ‖Wx − b‖² + λ‖x‖² that brings the condition number of [W; √λ I] to the target. "
        "0 where it is already there.",
        f"{_GVL}, §6.1.4 (singular values of the stacked matrix are √(σ² + λ))",
        "log",
    ),
    Column(
        "overflow_fp16",
        "overflow fp16",
        "share",
        "Share of entries that exceed fp16's 65504 and would become ∞.",
        "IEEE 754-2019, §7.4",
    ),
    Column(
        "underflow_fp16",
        "underflow fp16",
        "share",
        "Share of entries, not 0, that would become 0 in fp16.",
        "IEEE 754-2019, §7.5",
    ),
    Column(
        "conv_norm",
        "conv norm",
        "number",
        "Operator norm of the 2-D convolution itself with circular padding on the stated grid, for Conv2d only.",
        "Sedghi, Gupta & Long, ICLR 2019, Theorem 6",
        "log",
    ),
    Column(
        "spectral_radius",
        "spectral radius",
        "number",
        "Largest |λ| of a square map, on request: what its repetition grows by.",
        "Horn & Johnson, Matrix Analysis, 2nd ed., Definition 1.2.9",
        "log",
    ),
    _fact("method", "method", "text", "How the singular values were computed."),
    Column(
        "error_bound",
        "error bound",
        "number",
        "Bound on the absolute error of every singular value of the row, relative to σ max.",
        "Weyl's inequality on the method's backward error",
        "log",
        reading=False,
    ),
    _fact("status", "status", "text", "ok, or what makes a reading of the row doubtful or impossible."),
)

BY_NAME: dict[str, Column] = {column.name: column for column in COLUMNS}
READINGS: tuple[Column, ...] = tuple(column for column in COLUMNS if column.reading)
