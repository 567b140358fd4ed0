"""Two matrices → one record: the spectrum of their difference, and what it says of the change."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from eigenscope.columns.diff import COLUMNS
from eigenscope.errors import EigenscopeError
from eigenscope.measures import changes, conditioning, noise, quantization, rank
from eigenscope.measures.rounding import Rounding, rounding_of_difference
from eigenscope.methods import exact
from eigenscope.methods.subspaces import overlap
from eigenscope.models.checkpoint import Checkpoint
from eigenscope.models.matrices import Matrix, read_matrix
from eigenscope.models.pairing import Pair
from eigenscope.results import Compared, Record, Spectrum, Value

ENERGIES = (4, 8, 16, 32, 64)
LEADING = 16
"""Directions whose overlap is measured."""
EXAMINED = 10
"""Leading vectors of the tuned matrix that are examined for intruders: k of the paper."""
INTRUDER = 0.5
"""Cosine with every vector of the base below which one is an intruder: ε of the paper."""
ABSOLUTE = ("frobenius", "sigma_max", "noise_level", "noise_edge", "rounding_floor", "quantization_floor")
"""Readings that scale with the matrices; the others do not change with it."""
SHARED = "less than the quantisation error of the entries: both come from the same quantised weights"
KNOWN = 33
"""Leading vectors of the base computed at first; all of them only where these leave a cosine open."""


def compare(base: Checkpoint, tuned: Checkpoint, pair: Pair) -> Record:
    """The record of one pair. A pair that cannot be read or decomposed gives a record that says why."""
    matrix = pair.tuned
    facts: dict[str, Value] = {
        "name": pair.name, "layer": matrix.layer, "role": matrix.role, "rows": matrix.rows, "cols": matrix.cols,
        "dtype": matrix.dtype, "base_dtype": pair.base.dtype,
    }  # fmt: skip
    values = None
    try:
        if pair.problem:
            raise EigenscopeError(pair.problem)
        measured, values = _read_and_compare(base, tuned, pair)
    except (EigenscopeError, ArithmeticError, RuntimeError, ValueError, OSError, MemoryError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        measured = {"status": f"not measured: {reason}"}
    readings = facts | measured
    return Record(pair.name, {column.name: readings.get(column.name) for column in COLUMNS}, values)


def _read_and_compare(base: Checkpoint, tuned: Checkpoint, pair: Pair) -> tuple[dict[str, Value], np.ndarray | None]:
    W, V = _read(base, pair.base), _read(tuned, pair.tuned)
    if not W.numel():
        return {"status": f"empty: {pair.tuned.rows}×{pair.tuned.cols}"}, None
    exponent = _exponent(W, V)
    if not exponent:
        return _compare(W, V, pair)
    readings, values = _compare(_moved(W, -exponent), _moved(V, -exponent), pair)
    for name in ABSOLUTE:
        value = readings.get(name)
        readings[name] = value if value is None else float(np.ldexp(float(value), exponent))
    return readings, values if values is None else np.ldexp(values, exponent)


def _exponent(W: Tensor, V: Tensor) -> int:
    """e such that the largest entry of both times 2^−e is near 1; 0 unless its square would leave float64's range."""
    if torch.float64 not in (W.dtype, V.dtype):
        return 0
    largest = max(float(W.abs().max()), float(V.abs().max()))
    outside = math.isfinite(largest) and largest > 0.0 and not 1e-120 < largest < 1e120
    return math.frexp(largest)[1] if outside else 0


def _moved(W: Tensor, exponent: int) -> Tensor:
    # Two factors: one alone leaves the range for the smallest and largest numbers.
    return W.to(torch.float64) * 2.0 ** (exponent // 2) * 2.0 ** (exponent - exponent // 2)


def _compare(W: Tensor, V: Tensor, pair: Pair) -> tuple[dict[str, Value], np.ndarray | None]:
    D = V.to(torch.float64, copy=True).sub_(
        W
    )  # the subtraction promotes W entry by entry, without a float64 copy of it
    if not bool(torch.isfinite(D).all()):
        return {"status": f"not measured: {_not_finite(W, V)}"}, None
    formats = (pair.base.dtype, pair.tuned.dtype)
    spectrum = _values(D)
    norm = float(torch.linalg.vector_norm(W, dtype=torch.float64))
    rounding = rounding_of_difference(D, W, V, formats)
    readings = _spectral(spectrum, float(torch.linalg.vector_norm(D)), norm, rounding)
    values = spectrum.values.numpy()
    readings |= _noise(values, (pair.tuned.rows, pair.tuned.cols), rounding) if values[0] > 0.0 else {}
    floor, error = _quantisation(W, V)
    shared = float(readings["frobenius"] or 0.0) < changes.SMALLER * error
    readings["quantization_floor"] = floor if floor and not shared else None
    parts = changes.magnitude_and_direction(D, W)
    readings |= {"magnitude_change": parts.magnitude, "direction_change": parts.direction}
    sides: dict[str, Value] = {"rows": pair.tuned.rows, "cols": pair.tuned.cols}
    rest = float(np.linalg.norm(values[int(readings["numerical_rank"] or 0) :]))
    readings["verdict"], readings["evidence"] = changes.judge(
        {**readings, **sides}, formats, rounding, rest, 0.0 if shared else error
    )
    if values[0] > 0.0 and norm > 0.0:
        readings |= _subspaces(D, W, V, LEADING)
        readings["spectral_change"] = float(values[0]) / readings.pop("base_sigma_max")  # type: ignore[operator]
    if shared:
        readings["evidence"] = f"{readings['evidence']}; {SHARED}"
    readings["status"] = "ok" if norm > 0.0 else "the base is the zero matrix"
    return readings, values


def _read(checkpoint: Checkpoint, matrix: Matrix) -> Tensor:
    W = read_matrix(checkpoint, matrix)
    if W.is_complex():
        raise EigenscopeError("complex entries", expected="real ones")
    # FP8 has neither slicing nor promotion everywhere.
    return W.to(torch.float32) if W.element_size() == 1 else W


def _values(D: Tensor) -> Spectrum:
    """All singular values of the change; those of a zero matrix without a decomposition."""
    if not bool(D.any()):
        zeros = torch.zeros(min(D.shape), dtype=torch.float64)
        return Spectrum(
            values=zeros, left=None, right=None, residuals=None, bounds=zeros, converged=zeros == 0.0, kind="singular",
            shape=(D.shape[0], D.shape[1]), complete=True, frobenius=0.0, method="none", reason="every entry is 0",
        )  # fmt: skip
    return exact.singular_values(D, tol=exact.DEFAULT_TOLERANCE)


def _spectral(spectrum: Spectrum, size: float, norm: float, rounding: Rounding) -> dict[str, Value]:
    """What the singular values of the change determine, its Frobenius norm ``size`` and that of the base."""
    values = spectrum.values.numpy()
    largest = float(values[0])
    rows, cols = spectrum.shape
    readings: dict[str, Value] = {
        "relative_change": size / norm if norm > 0.0 else (float("inf") if size else 0.0),
        "spectral_change": 0.0 if not largest else None,
        "frobenius": size,
        "sigma_max": largest,
        "stable_rank": rank.stable_rank(values),
        "effective_rank": rank.effective_rank(values),
        "participation": rank.participation_ratio(values),
        "numerical_rank": int(np.count_nonzero(values > max(rounding.floor, float(spectrum.bounds.max())))),
        "rounding_floor": rounding.floor,
        "method": spectrum.method,
        "error_bound": float(spectrum.bounds.max()) / largest if largest else 0.0,
    }
    for percent in (90, 95, 99):
        readings[f"rank_{percent}"] = rank.rank_for_energy(values, percent / 100)
    if largest:
        energy = np.cumsum((values / largest) ** 2)
        for k in ENERGIES:
            readings[f"energy_{k}"] = float(energy[min(k, len(energy)) - 1] / energy[-1])
        needed = readings["rank_90"]
        readings["adapter_90"] = int(needed or 0) * (rows + cols) / (rows * cols)
    return readings


def _noise(values: np.ndarray, shape: tuple[int, int], rounding: Rounding) -> dict[str, Value]:
    least = min(1.0, max(rounding.floor / float(values[0]), max(shape) * 2.0**-52))
    found = noise.fit_noise(values, shape, least)
    if isinstance(found, str):
        return {"noise_verdict": found}
    return {
        "noise_verdict": found.verdict, "noise_level": found.level, "noise_edge": found.edge, "noise_rank": found.rank,
        "signal_energy": found.signal_energy, "bulk_distance": found.distance, "optimal_rank": found.optimal_rank,
    }  # fmt: skip


def _subspaces(D: Tensor, W: Tensor, V: Tensor, k: int) -> dict[str, Value]:
    """How the change's leading directions lie to those of the base, and which of the tuned matrix are new."""
    rows, cols = D.shape
    short = min(rows, cols)
    base = exact.singular_triplets(W, min(KNOWN, short))
    readings: dict[str, Value] = {"base_sigma_max": float(base.values[0])}
    if short > k:
        change = exact.singular_triplets(D, k + 1)
        left, right = (overlap(change, base, k, side) for side in ("left", "right"))
        readings |= {
            "overlap_16": (left.value + right.value) / 2.0, "overlap_16_left": left.value, "overlap_16_right": right.value,
            "chance_16": (left.chance + right.chance) / 2.0, "chance_16_left": left.chance, "chance_16_right": right.chance,
            "overlap_16_error": max(left.error, right.error),
        }  # fmt: skip
    if short > EXAMINED:
        cosines = largest_cosines(exact.singular_triplets(V, EXAMINED), base, W)
        readings |= {"intruders": int((cosines < INTRUDER).sum()), "least_cosine": float(cosines.min())}
    return readings


def largest_cosines(tuned: Spectrum, base: Spectrum, W: Tensor) -> Tensor:
    """(k,) for each left vector of ``tuned`` its largest |cosine| with any left singular vector of W.

    Shuttleworth et al., LoRA vs Full Fine-tuning: An Illusion of Equivalence, NeurIPS 2025, Algorithm 1. The leading
    vectors of W decide most of them: what they leave of the vector, 1 − Σcos², bounds cos² with every other one (Bessel).
    Where that bound exceeds the largest so far, all vectors of W are computed.

    Args:
        tuned: with left vectors.
        base: leading triplets of W.
        W: (m, n) the base.
    """
    if tuned.left is None or base.left is None:
        raise ValueError("spectra without left vectors")
    inner = tuned.left.T @ base.left
    largest = inner.abs().amax(dim=1)
    if not base.complete:
        rest = 1.0 - inner.square().sum(dim=1)
        if bool((rest > largest.square() + 1e-12).any()):
            every = exact.singular_triplets(W, min(W.shape), method="lapack").left
            largest = (tuned.left.T @ every).abs().amax(dim=1) if every is not None else largest
    return largest.clamp(max=1.0)


def compare_vectors(base: Checkpoint, tuned: Checkpoint, names: tuple[str, str], entry: Compared) -> Compared:
    """The coverage of a tensor that is no matrix, completed by whether it changed and by how much."""
    try:
        W, V = base.read(names[0]), tuned.read(names[1])
        W, V = (x.to(torch.float32) if x.element_size() == 1 else x for x in (W, V))
        D = V.to(torch.float64, copy=True).sub_(W).reshape(-1)
    except (EigenscopeError, RuntimeError, OSError) as error:
        return replace(entry, outcome="not readable", reason=" ".join(str(error).split()))
    if not bool(torch.isfinite(D).all()):
        return replace(entry, outcome="not readable", reason="NaN or infinite entries")
    size, norm = float(torch.linalg.vector_norm(D)), float(torch.linalg.vector_norm(W, dtype=torch.float64))
    formats = (base.tensors[names[0]].dtype, tuned.tensors[names[1]].dtype)
    found = rounding_of_difference(D, W.reshape(-1), V.reshape(-1), formats)
    if changes.is_rounded(formats, found.units) or (found.units <= 1.0 and size <= found.floor):
        what, change = ("changed within rounding" if size else "unchanged"), 0.0
    else:
        what, change = "changed", size / norm if norm else float("inf")
    return replace(entry, outcome="compared", reason=f"{entry.reason}, {what}", relative_change=change)


def _not_finite(W: Tensor, V: Tensor) -> str:
    for side, matrix in (("base", W), ("tuned", V)):
        entries = conditioning.inspect_entries(matrix)
        if entries.nan or entries.infinite:
            where = f", first at row {entries.first[0]}, column {entries.first[1]}" if entries.first else ""
            return f"{entries.nan} NaN and {entries.infinite} infinite entries in the {side} matrix{where}"
    return "the difference leaves the range of float64"


def _quantisation(W: Tensor, V: Tensor) -> tuple[float, float]:
    """About the largest singular value of the quantisation errors of two matrices, and their Frobenius norm; 0 for none."""
    found = [levels for levels in (quantization.find_levels(W), quantization.find_levels(V)) if levels]
    entries = float(W.numel()) ** 0.5
    return float(np.linalg.norm([x.floor for x in found])), float(np.linalg.norm([x.error * entries for x in found]))
