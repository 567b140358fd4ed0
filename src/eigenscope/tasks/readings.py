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
from eigenscope.measures import conditioning, rank
from eigenscope.methods import convolution, exact
from eigenscope.models.checkpoint import Checkpoint
from eigenscope.models.matrices import Matrix, read_matrix
from eigenscope.results import Record, Spectrum, Value

ENERGIES = (90, 95, 99)


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
            raise InputError(f"{min(self.tail_tests, self.tail_stability)} synthetic spectra or copies", expected="0 or more")
        if not (self.fixed_aspect == 0.0 or 0.05 <= self.fixed_aspect <= 20.0):
            raise InputError(f"fixed aspect ratio {self.fixed_aspect}", expected="0 (off), or rows per column, 0.05 to 20")
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
        readings, values, eigenvalues = _read_and_measure(checkpoint, options, matrix)
    except (EigenscopeError, ArithmeticError, RuntimeError, ValueError, OSError, MemoryError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        readings, values, eigenvalues = {"status": f"not measured: {reason}"}, None, None
    return Record(matrix.name, {c.name: {**facts, **readings}.get(c.name) for c in COLUMNS}, values, eigenvalues)


def _read_and_measure(
    checkpoint: Checkpoint, options: ScanOptions, matrix: Matrix
) -> tuple[dict[str, Value], NDArray[np.float64] | None, NDArray[np.complex128] | None]:
    W = read_matrix(checkpoint, matrix)
    if not W.numel():
        return {"status": f"empty: {matrix.rows}×{matrix.cols}"}, None, None
    entries = conditioning.inspect_entries(W)
    if entries.nan or entries.infinite:
        where = f"first at row {entries.first[0]}, column {entries.first[1]}" if entries.first else ""
        return (
            {"status": f"not measured: {entries.nan} NaN and {entries.infinite} infinite entries, {where}"},
            None,
            None,
        )
    W = W.to(options.device)
    method = "auto" if options.dtype == "float64" else "lapack-float32"
    spectrum = exact.singular_values(_computable(W), method=method)
    values = spectrum.values.numpy()
    readings, doubts = spectral_readings(spectrum, matrix, options)
    readings |= {"overflow_fp16": entries.overflow, "underflow_fp16": entries.underflow}
    eigenvalues = None
    if len(matrix.kernel) == 2:
        readings["conv_norm"] = _convolution_norm(W, matrix, options)
    elif options.eigenvalues and matrix.rows == matrix.cols:
        eigenvalues = exact.eigenvalues(_computable(W)).numpy()
        readings["spectral_radius"] = float(abs(eigenvalues[0]))
    readings["status"] = "; ".join(doubts) or "ok"
    return readings, values, eigenvalues


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
        doubts.append(
            f"singular to working precision: σ min ≤ {smallest + bound:.1e}, κ ≥ {largest / (smallest + bound):.1e}"
        )
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
    unfolded = _computable(W).T if matrix.transposed else _computable(W)
    kernel = unfolded.reshape(unfolded.shape[0], -1, *matrix.kernel).cpu()
    if matrix.groups is None and kernel.shape[1] == 1 and kernel.shape[0] > 1:
        return None
    # A seed of its own for each row: the same number whatever the order in which workers take them.
    digest = hashlib.sha256(f"{options.seed}:{matrix.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return convolution.periodic_norm(kernel, options.conv_grid, generator, matrix.groups or 1)
