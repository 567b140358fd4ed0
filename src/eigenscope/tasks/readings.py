"""One matrix of a checkpoint → one record: its singular values and every reading of them."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eigenscope.columns import COLUMNS
from eigenscope.errors import EigenscopeError, InputError
from eigenscope.measures import conditioning, noise, quantization, rank
from eigenscope.measures.duplicates import sample_entries
from eigenscope.methods import convolution, exact
from eigenscope.models.checkpoint import Checkpoint
from eigenscope.models.matrices import Matrix, read_matrix
from eigenscope.results import Record, Spectrum, Value
from eigenscope.tasks.tails import tail_readings

ENERGIES = (90, 95, 99)
FEW_BITS = frozenset({"float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"})
"""Formats of so few values that blocks of them repeat some without having been quantised further."""


@dataclass(frozen=True)
class ScanOptions:
    """What a scan measures, and how; two scans with the same options and content are the same run.

    Attributes: see :func:`eigenscope.scan`.

    Raises:
        InputError: a value out of range.
    """

    device: str = "cpu"
    dtype: str = "float64"
    target_condition: float = 1e4
    eigenvalues: bool = False
    conv_grid: int = 16
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    seed: int = 0
    tail_tests: int = 0
    tail_stability: int = 0
    fixed_aspect: float = 0.0

    def __post_init__(self) -> None:
        if self.dtype not in ("float64", "float32"):
            raise InputError(f"dtype {self.dtype!r}", expected="float64 or float32")
        if not self.target_condition > 1.0:
            raise InputError(f"target condition {self.target_condition}", expected="more than 1")
        if not 1 <= self.conv_grid <= 512:
            raise InputError(f"convolution grid {self.conv_grid}", expected="1 to 512")
        if self.tail_tests < 0 or self.tail_stability < 0:
            raise InputError(
                f"{min(self.tail_tests, self.tail_stability)} synthetic spectra or copies", expected="0 or more"
            )
        if not (self.fixed_aspect == 0.0 or 0.05 <= self.fixed_aspect <= 20.0):
            raise InputError(
                f"fixed aspect ratio {self.fixed_aspect}", expected="0 (off), or a ratio of sides, 0.05 to 20"
            )
        try:
            torch.empty(1, dtype=torch.float64 if self.dtype == "float64" else torch.float32, device=self.device)
        except (RuntimeError, AssertionError, TypeError) as error:
            reason = str(error).split("\n")[0]
            raise InputError(f"device {self.device!r} cannot be used for {self.dtype}: {reason}") from error


def measure(checkpoint: Checkpoint, options: ScanOptions, matrix: Matrix) -> Record:
    """The record of one matrix. A matrix that cannot be read or decomposed gives a record that says why."""
    facts: dict[str, Value] = {
        "name": matrix.name, "layer": matrix.layer, "role": matrix.role, "rows": matrix.rows, "cols": matrix.cols,
        "dtype": matrix.dtype,
    }  # fmt: skip
    try:
        measured = _read_and_measure(checkpoint, options, matrix)
    except (EigenscopeError, ArithmeticError, RuntimeError, ValueError, OSError, MemoryError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        measured = Measured({"status": f"not measured: {reason}"})
    found = {**facts, **measured.readings}
    readings = {column.name: found.get(column.name) for column in COLUMNS}
    return Record(matrix.name, readings, measured.values, measured.eigenvalues, measured.sample)


@dataclass(frozen=True)
class Measured:
    """What :func:`measure` finds out about one matrix; the fields are those of ``Record``."""

    readings: dict[str, Value]
    values: NDArray[np.float64] | None = None
    eigenvalues: NDArray[np.complex128] | None = None
    sample: NDArray[np.float64] | None = None


def _read_and_measure(checkpoint: Checkpoint, options: ScanOptions, matrix: Matrix) -> Measured:
    W = read_matrix(checkpoint, matrix)
    if not W.numel():
        return Measured({"status": f"empty: {matrix.rows}×{matrix.cols}"})
    entries = conditioning.inspect_entries(W)
    if entries.nan or entries.infinite:
        where = f"first at row {entries.first[0]}, column {entries.first[1]}" if entries.first else ""
        return Measured({"status": f"not measured: {entries.nan} NaN and {entries.infinite} infinite entries, {where}"})
    W = _computable(W).to(options.device)
    method = "auto" if options.dtype == "float64" else "lapack-float32"
    spectrum = exact.singular_values(W, method=method)
    readings, doubts = spectral_readings(spectrum, matrix, options)
    readings |= {
        "overflow_fp16": entries.overflow, "underflow_fp16": entries.underflow,
        "zero_rows": entries.zero_rows, "zero_cols": entries.zero_cols,
    }  # fmt: skip
    readings |= statistical_readings(W, spectrum, matrix, options)
    eigenvalues = None
    if len(matrix.kernel) == 2:
        readings["conv_norm"] = _convolution_norm(W, matrix, options)
    elif options.eigenvalues and matrix.rows == matrix.cols:
        eigenvalues = exact.eigenvalues(W).numpy()
        readings["spectral_radius"] = float(abs(eigenvalues[0]))
    readings["status"] = "; ".join(doubts) or "ok"
    return Measured(readings, spectrum.values.numpy(), eigenvalues, sample_entries(W))


def statistical_readings(W: Tensor, spectrum: Spectrum, matrix: Matrix, options: ScanOptions) -> dict[str, Value]:
    """The noise bulk, the power-law tail and the quantisation: what the values, taken as a sample, look like."""
    values, shape = spectrum.values.numpy(), (matrix.rows, matrix.cols)
    least = rank.rounding(values, shape, conditioning.storage_eps(matrix.dtype)) if values[0] else 0.0
    found = noise.fit_noise(values, shape, least)
    readings: dict[str, Value] = {"noise_verdict": found if isinstance(found, str) else found.verdict}
    if isinstance(found, noise.Noise):
        readings |= {
            "noise_level": found.level, "noise_edge": found.edge, "noise_rank": found.rank,
            "signal_energy": found.signal_energy, "bulk_distance": found.distance, "optimal_rank": found.optimal_rank,
        }  # fmt: skip
    if matrix.dtype not in FEW_BITS:
        levels = quantization.find_levels(W)
        readings["quantization_floor"] = levels.floor if levels else None
    return readings | tail_readings(
        W, values, floor=max(least**2, len(values) * 2.0**-52), tests=options.tail_tests,
        stability=options.tail_stability, fixed_aspect=options.fixed_aspect,
        generator=np.random.default_rng(_seed_of(matrix, options)),
    )  # fmt: skip


def spectral_readings(spectrum: Spectrum, matrix: Matrix, options: ScanOptions) -> tuple[dict[str, Value], list[str]]:
    """Every reading that the singular values alone determine, and what makes some of them doubtful."""
    values = spectrum.values.numpy()
    shape = (matrix.rows, matrix.cols)
    largest, smallest, bound = float(values[0]), float(values[-1]), float(spectrum.bounds[-1])
    eps = conditioning.storage_eps(matrix.dtype)
    doubts = ["the zero matrix"] if largest == 0.0 else []
    condition = conditioning.condition_number(values)
    if condition is not None and smallest <= bound:
        condition = math.inf
        least = largest / (smallest + bound) if smallest + bound > 0.0 else math.inf
        doubts.append(f"singular to working precision: σ min ≤ {smallest + bound:.1e}, κ ≥ {least:.1e}")
    square_or_tall = values if matrix.rows >= matrix.cols else np.append(values, 0.0)
    readings: dict[str, Value] = {
        "sigma_max": largest,
        "sigma_min": smallest,
        "frobenius": float(np.linalg.norm(values / largest) * largest) if largest else 0.0,
        "nuclear": float(values.sum()),
        "condition": condition,
        "digits_lost": None if condition is None else conditioning.digits_lost(condition),
        "digits_left": None if condition is None else conditioning.digits_left(condition, eps),
        "digits_left_fp16": None if condition is None else conditioning.digits_left(condition, conditioning.FP16_EPS),
        "numerical_rank": rank.numerical_rank(values, shape, eps),
        "stable_rank": rank.stable_rank(values),
        "effective_rank": rank.effective_rank(values),
        "participation": rank.participation_ratio(values),
        "ridge": conditioning.ridge_for_condition(square_or_tall, options.target_condition),
        "method": spectrum.method,
        "error_bound": float(spectrum.bounds.max()) / largest if largest else 0.0,
    }
    for percent in ENERGIES:
        k = rank.rank_for_energy(values, percent / 100)
        saved = None if k is None else rank.parameters_saved(shape, k)
        readings[f"rank_{percent}"] = k
        readings[f"params_saved_{percent}"] = saved
        readings[f"bytes_saved_{percent}"] = None if saved is None else round(saved * matrix.bytes_per_entry)
    return readings, doubts


def _computable(W: Tensor) -> Tensor:
    """W in a dtype that slicing and promotion support everywhere: FP8 has neither on every device."""
    return W.to(torch.float32) if W.element_size() == 1 else W


def _convolution_norm(W: Tensor, matrix: Matrix, options: ScanOptions) -> float | None:
    """Norm of the convolution whose unfolded weight is W; None where one input a kernel leaves its groups unknown."""
    # A transposed convolution has the norm of the convolution whose adjoint it is.
    unfolded = W.T if matrix.transposed else W
    kernel = unfolded.reshape(unfolded.shape[0], -1, *matrix.kernel).cpu()
    if matrix.groups is None and kernel.shape[1] == 1 and kernel.shape[0] > 1:
        return None
    generator = torch.Generator().manual_seed(_seed_of(matrix, options))
    return convolution.periodic_norm(kernel, options.conv_grid, generator, matrix.groups or 1)


def _seed_of(matrix: Matrix, options: ScanOptions) -> int:
    """A seed of its own for each row: the same number whatever the order in which workers take them."""
    digest = hashlib.sha256(f"{options.seed}:{matrix.name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
