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
        "noise_level",
        "noise σ",
        "number",
        "Standard deviation of the entries of the noise whose singular values would have the median of this matrix's bulk.",
        "Gavish & Donoho, IEEE Trans. Inf. Theory 60(8), 2014, §III-E, on the values below the edge",
        "log",
    ),
    Column(
        "noise_edge",
        "noise edge",
        "number",
        "About the largest singular value of such noise: its 99.9 % quantile if the level were known, exceeded by 0.4 to 2 % of small matrices. Empty where there is no noise bulk.",
        "Marchenko & Pastur, Math. USSR Sb. 1, 1967; Johnstone, Ann. Statist. 29(2), 2001, Theorem 1.1",
        "log",
    ),
    Column(
        "noise_rank",
        "noise rank",
        "count",
        "Singular values above the noise edge: directions that noise alone does not explain.",
        "Johnstone, Ann. Statist. 29(2), 2001",
    ),
    Column(
        "signal_energy",
        "signal energy",
        "share",
        "Share of ‖W‖F² that the values above the noise edge hold.",
        "Eckart & Young, Psychometrika 1, 1936",
    ),
    Column(
        "bulk_distance",
        "bulk distance",
        "share",
        "Kolmogorov-Smirnov distance of the values below the edge from the Marchenko-Pastur law: at most (1 + ln n)/n for n values of pure noise.",
        "Marchenko & Pastur, Math. USSR Sb. 1, 1967",
        "log",
    ),
    _fact(
        "noise_verdict", "noise verdict", "text", "Whether the bulk of the values is noise, and how far it is from it."
    ),
    Column(
        "optimal_rank",
        "optimal rank",
        "count",
        "Singular values above the hard threshold that loses least in recovering a low-rank matrix from noise of this level.",
        "Gavish & Donoho, IEEE Trans. Inf. Theory 60(8), 2014, eq. (11)",
    ),
    Column(
        "alpha",
        "α",
        "number",
        "Exponent of a power law p(λ) ∝ λ^−α fitted to the largest eigenvalues λ = σ². Read it only where the verdict is "
        "«power law».",
        "Clauset, Shalizi & Newman, SIAM Review 51(4), 2009, eqs. 3.1 and 3.9",
    ),
    Column(
        "alpha_stderr",
        "α ±",
        "number",
        "Standard error of α, the choice of the cut-off included.",
        "Clauset et al. 2009, eq. 3.2, corrected for small tails and the search (measures/tail.py)",
    ),
    _fact("alpha_tail", "α tail", "count", "Eigenvalues in the tail that α was fitted to."),
    Column(
        "alpha_cutoff",
        "α cut-off",
        "number",
        "The singular value at which that tail begins.",
        "Clauset et al. 2009, eq. 3.9",
        "log",
    ),
    Column(
        "alpha_ks",
        "α distance",
        "share",
        "Kolmogorov-Smirnov distance of the tail from the fitted power law.",
        "Clauset et al. 2009, eq. 3.9",
    ),
    _fact("alpha_verdict", "α verdict", "text", "«power law», «not a power law: why» or «not identifiable: why»."),
    Column(
        "alpha_p",
        "α p-value",
        "number",
        "On request: how often a true power law fits worse than this tail does; at p ≤ 0.1 a power law is ruled out.",
        "Clauset et al. 2009, §4.1",
    ),
    _fact("alpha_p_stderr", "α p ±", "number", "Standard error of the p-value, from the number of synthetic spectra."),
    Column(
        "lr_lognormal",
        "R log-normal",
        "number",
        "On request: normalised log-likelihood ratio of the power law against a log-normal; positive favours the power law.",
        "Vuong, Econometrica 57(2), 1989; Clauset et al. 2009, §5.1",
    ),
    _fact("lr_lognormal_p", "p log-normal", "number", "Probability of a ratio as far from 0 by chance."),
    Column(
        "lr_exponential",
        "R exponential",
        "number",
        "On request: normalised log-likelihood ratio against an exponential; positive favours the power law.",
        "Vuong, Econometrica 57(2), 1989; Clauset et al. 2009, §5.1",
    ),
    _fact("lr_exponential_p", "p exponential", "number", "Probability of a ratio as far from 0 by chance."),
    Column(
        "lr_truncated",
        "R truncated",
        "number",
        "On request: normalised log-likelihood ratio against a power law with an exponential cut-off, which contains it: never "
        "positive.",
        "Clauset et al. 2009, §5.1; Self & Liang, JASA 82, 1987",
    ),
    _fact("lr_truncated_p", "p truncated", "number", "Probability of a ratio as far below 0 by chance."),
    Column(
        "alpha_stability",
        "α stability",
        "number",
        "On request: standard deviation of α over copies that each lack a tenth of the longer side.",
        "Delete-a-group jackknife: Kott, J. Official Statistics 17(4), 2001",
    ),
    Column(
        "alpha_fixed_aspect",
        "α fixed aspect",
        "number",
        "On request: mean α over submatrices of one aspect ratio, so that layers of different shapes can be compared.",
        "Hu et al., FARMS, ICML 2025",
    ),
    _fact("alpha_fixed_aspect_spread", "α fixed aspect ±", "number", "Standard deviation of α over these submatrices."),
    Column(
        "decay",
        "decay β",
        "number",
        "σᵢ ∝ i^−β, least squares of log σ on log i over the whole spectrum: how fast the values fall.",
        "Zipf's rank-size rule; no error is given, as the values of one matrix are not independent",
    ),
    Column(
        "decay_r2",
        "decay R²",
        "share",
        "Share of the variance of log σ that this law explains.",
        "Coefficient of determination",
    ),
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
        "quantization_floor",
        "quantisation floor",
        "number",
        "Largest singular value that the rounding to the few levels found in the entries has by itself: values below it are "
        "not the trained weights'. Empty where the entries are not quantised.",
        "Bennett, Bell Syst. Tech. J. 27, 1948 (step/√12); Davidson & Szarek, 2001, Theorem II.13",
        "log",
    ),
    Column(
        "zero_rows",
        "zero rows",
        "count",
        "Outputs that are always 0: rows without an entry that differs from 0.",
        "definition",
    ),
    Column(
        "zero_cols", "zero columns", "count", "Inputs that are never used: columns without such an entry.", "definition"
    ),
    Column(
        "conv_norm",
        "conv norm",
        "number",
        "Operator norm of the 2-D convolution itself on the stated grid, for Conv2d only: circular padding, stride and dilation 1.",
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
