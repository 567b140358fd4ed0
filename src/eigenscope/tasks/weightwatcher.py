"""A run in the columns of WeightWatcher 0.7: for scripts that read its table.

Names and definitions are those of its ``details`` table (Martin, Peng & Mahoney, Nature Communications 12, 4122, 2021);
where one of them is unsound, the column holds what its name promises. ``docs/weightwatcher.md`` lists every difference.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from eigenscope.columns import Column
from eigenscope.results import Coverage, Record, Run, Value

WEAK = 1e-6
"""Eigenvalues below this share of the largest count as weak."""
OVER_TRAINED, UNDER_TRAINED = 2.0, 6.0
"""WeightWatcher's bounds on α."""
_SOURCE = "WeightWatcher 0.7"


def _column(name: str, kind: str, meaning: str, scale: str = "linear") -> Column:
    return Column(name, name, kind, meaning, _SOURCE, scale, reading=kind != "text")  # type: ignore[arg-type]


COLUMNS: tuple[Column, ...] = (
    _column("name", "text", "Last part of the longname."),
    _column(
        "longname", "text", "Name of the module: the tensor's without .weight; a part of a fused tensor adds :q, …"
    ),
    _column("layer_type", "text", "dense, embedding, conv1d, conv2d or conv3d."),
    _column("N", "count", "Longer side of the matrix."),
    _column("M", "count", "Shorter side of the matrix."),
    _column("Q", "number", "N/M."),
    _column("rf", "count", "Positions of a convolution's kernel, 1 for other layers."),
    _column("num_evals", "count", "Eigenvalues λ = σ² of the matrix: M."),
    _column("alpha", "number", "Exponent of the power law p(λ) ∝ λ^−α of the largest eigenvalues."),
    _column("alpha_weighted", "number", "α·log₁₀ λ_max."),
    _column("D", "number", "Kolmogorov-Smirnov distance of the tail from that law."),
    _column("sigma", "number", "Standard error of α, the choice of the cut-off included."),
    _column("xmin", "number", "Least eigenvalue of the tail.", "log"),
    _column("xmax", "number", "Largest eigenvalue.", "log"),
    _column("num_pl_spikes", "count", "Eigenvalues in the tail."),
    _column("status", "text", "success where there is an exponent, else failed."),
    _column(
        "warning", "text", "over-trained or under-trained where α is that surely; else why α is not to be trusted."
    ),
    _column("norm", "number", "Square of the Frobenius norm.", "log"),
    _column("log_norm", "number", "log₁₀ of the norm."),
    _column("spectral_norm", "number", "λ_max: the square of the spectral norm.", "log"),
    _column("log_spectral_norm", "number", "log₁₀ λ_max."),
    _column("log_alpha_norm", "number", "log₁₀ Σ λ^α over all eigenvalues."),
    _column("stable_rank", "number", "norm / spectral_norm."),
    _column("matrix_rank", "count", "Singular values above the rounding of the storage format."),
    _column("rank_loss", "count", "num_evals − matrix_rank."),
    _column("weak_rank_loss", "count", "Eigenvalues below 1e-6·λ_max."),
    _column("entropy", "number", "Entropy of λ/Σλ over that of matrix_rank equal ones."),
    _column("lambda_max", "number", "Largest eigenvalue.", "log"),
    _column("sv_max", "number", "Largest singular value.", "log"),
    _column("sv_min", "number", "Smallest singular value.", "log"),
)


def as_run(run: Run) -> Run:
    """The same run with the readings named by :data:`COLUMNS`; rows, values, coverage and provenance stay.

    Matrices that WeightWatcher would leave out are here too: it skips those of fewer than 8 or more than 15,000
    eigenvalues or of more than 50,000 rows, and layers that it does not know. What needs the singular values themselves
    (entropy, log_alpha_norm, weak_rank_loss) is None in a run without them.
    """
    tensors = {entry.tensor: entry for entry in run.coverage}
    records = tuple(dataclasses.replace(record, readings=_row(record, tensors)) for record in run.records)
    return dataclasses.replace(run, records=records)


def _row(record: Record, tensors: Mapping[str, Coverage]) -> dict[str, Value]:
    seen = record.readings
    rows, cols = int(seen.get("rows") or 0), int(seen.get("cols") or 0)
    longname = _longname(record.name)
    layer_type, positions = _layer_type(record, tensors)
    row: dict[str, Value] = dict.fromkeys((column.name for column in COLUMNS), None)
    row |= {
        "name": longname.rpartition(".")[2],
        "longname": longname,
        "layer_type": layer_type,
        "N": max(rows, cols),
        "M": min(rows, cols),
        "Q": max(rows, cols) / min(rows, cols) if min(rows, cols) else None,
        "rf": positions,
        "status": "failed" if seen.get("alpha") is None else "success",
        "warning": _warning(seen),
    }
    largest = _number(seen, "sigma_max")
    if largest is None:
        return row
    rank, smallest = seen.get("numerical_rank"), _number(seen, "sigma_min")
    frobenius = _number(seen, "frobenius") or 0.0
    row |= {
        "num_evals": min(rows, cols),
        "sv_max": largest,
        "sv_min": smallest,
        "lambda_max": largest * largest,
        "spectral_norm": largest * largest,
        "log_spectral_norm": 2.0 * math.log10(largest) if largest else None,
        "norm": frobenius * frobenius,
        "log_norm": 2.0 * math.log10(frobenius) if frobenius else None,
        "stable_rank": seen.get("stable_rank"),
        "matrix_rank": rank,
        "rank_loss": min(rows, cols) - int(rank) if rank is not None else None,
    }
    relative = None if record.values is None or not largest else np.square(record.values / largest)
    if relative is not None:
        row["weak_rank_loss"] = int(np.count_nonzero(relative < WEAK))
        row["entropy"] = _entropy(relative, int(rank or 0))
    return row | _tail(seen, largest, relative)


def _tail(seen: Mapping[str, Value], largest: float, relative: NDArray[np.float64] | None) -> dict[str, Value]:
    alpha, cutoff = _number(seen, "alpha"), _number(seen, "alpha_cutoff")
    if alpha is None or cutoff is None or not largest:
        return {}
    weighted = alpha * 2.0 * math.log10(largest)
    return {
        "alpha": alpha,
        "alpha_weighted": weighted,
        "sigma": seen.get("alpha_stderr"),
        "D": seen.get("alpha_ks"),
        "xmin": cutoff * cutoff,
        "xmax": largest * largest,
        "num_pl_spikes": seen.get("alpha_tail"),
        # Relative to the largest: λ^α itself leaves float64's range.
        "log_alpha_norm": None if relative is None else weighted + math.log10(float(np.sum(relative**alpha))),
    }


def _entropy(relative: NDArray[np.float64], rank: int) -> float | None:
    """−Σ p ln p / ln rank with p = λ/Σλ; None for rank 1 or 0, where it is 0/0."""
    if rank < 2:
        return None
    p = relative[relative > 0.0] / float(np.sum(relative))
    return float(-np.sum(p * np.log(p))) / math.log(rank)


def _warning(seen: Mapping[str, Value]) -> str:
    """WeightWatcher's words only where two standard errors carry them, and there is a power law at all."""
    verdict, alpha, stderr = seen.get("alpha_verdict"), _number(seen, "alpha"), _number(seen, "alpha_stderr")
    if verdict != "power law" or alpha is None or stderr is None:
        return str(verdict or seen.get("status") or "")
    if alpha + 2.0 * stderr < OVER_TRAINED:
        return "over-trained"
    return "under-trained" if alpha - 2.0 * stderr > UNDER_TRAINED else ""


def _number(seen: Mapping[str, Value], name: str) -> float | None:
    value = seen.get(name)
    return float(value) if isinstance(value, int | float) else None


def _longname(name: str) -> str:
    tensor, colon, part = name.partition(":")
    return tensor.removesuffix(".weight") + colon + part


def _layer_type(record: Record, tensors: Mapping[str, Coverage]) -> tuple[str, int]:
    entry = tensors.get(record.name)
    if entry is not None and entry.matrices == 1 and len(entry.shape) in (3, 4, 5):
        return f"conv{len(entry.shape) - 2}d", math.prod(entry.shape[2:])
    return "embedding" if str(record.readings.get("role") or "").endswith("embedding") else "dense", 1
