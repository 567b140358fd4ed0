"""What the singular values of a matrix say, from what a route found."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from eigenscope.measures import noise, rank
from eigenscope.measures.conditioning import storage_eps
from eigenscope.models.matrices import Matrix
from eigenscope.results import Spectrum, Value
from eigenscope.tasks.readings import ScanOptions, spectral_readings
from eigenscope.tasks.routes import Found


def matrix_readings(found: Found, stored: str, target_condition: float) -> dict[str, Value]:
    """Plain values, named as in ``eigenscope.columns`` where they are there.

    Args:
        found: what a route found.
        stored: the storage format.
        target_condition: κ that ``ridge`` aims at.
    """
    spectrum = found.spectrum
    rows, cols = spectrum.shape
    dtype = real_format(stored)
    facts: dict[str, Value] = {
        "rows": rows, "cols": cols, "dtype": stored, "density": found.density, "method": spectrum.method,
        "reason": spectrum.reason,
    }  # fmt: skip
    if found.complete is None:
        largest = float(spectrum.values[0])
        facts |= {"sigma_max": largest, "frobenius": spectrum.frobenius, "k": len(spectrum)}
        if spectrum.frobenius is not None and largest > 0.0:
            facts["stable_rank"] = (spectrum.frobenius / largest) ** 2
        return facts | {"relative_error": found.error, "status": "only the leading values: no rank and no condition"}
    matrix = Matrix("", "", None, "", rows, cols, dtype)
    complete = replace(found.complete, method=spectrum.method)
    options = ScanOptions(target_condition=target_condition)
    readings, doubts = _spectral_readings(complete, matrix, options)
    values, shape, eps = complete.values.cpu().numpy(), (rows, cols), storage_eps(dtype)
    threshold = rank.rounding(values, shape, eps) if values[0] else 0.0
    # What the method cannot tell from 0 is no more proven than what the format cannot.
    proven = np.maximum(complete.bounds.cpu().numpy(), threshold * float(values[0]))
    readings["numerical_rank"] = int(np.count_nonzero(values > proven))
    readings["rank_threshold"] = float(proven[-1])
    law = noise.fit_noise(values, shape, threshold)
    readings["noise_verdict"] = law if isinstance(law, str) else law.verdict
    if isinstance(law, noise.Noise):
        readings |= {"noise_edge": law.edge, "noise_rank": law.rank, "optimal_rank": law.optimal_rank}
    if found.error is not None:
        readings |= {"k": len(spectrum), "relative_error": found.error}
    return {**facts, **readings, "status": "; ".join(doubts) or "ok"}


def _spectral_readings(spectrum: Spectrum, matrix: Matrix, options: ScanOptions) -> tuple[dict[str, Value], list[str]]:
    """The readings, from values scaled by a power of 2 where their squares would leave float64's range."""
    largest = float(spectrum.values[0])
    if largest == 0.0 or 1e-100 < largest < 1e100:
        return spectral_readings(spectrum, matrix, options)
    exponent = math.frexp(largest)[1]

    def moved(value: float, power: int) -> float:
        """value·2^power; infinite where that exceeds the range."""
        try:
            return math.ldexp(value, power)
        except OverflowError:
            return math.inf

    # Below the range of normal numbers a value is a multiple of 2⁻¹⁰⁷⁴, however exact the method.
    bounds = [moved(float(bound) + 2.0**-1074, -exponent) for bound in spectrum.bounds]
    values = [moved(float(value), -exponent) for value in spectrum.values]
    scaled = replace(
        spectrum, values=torch.tensor(values, dtype=torch.float64), bounds=torch.tensor(bounds, dtype=torch.float64)
    )
    readings, doubts = spectral_readings(scaled, matrix, options)
    for name, power in (("sigma_max", 1), ("sigma_min", 1), ("frobenius", 1), ("nuclear", 1), ("ridge", 2)):
        value = readings[name]
        readings[name] = moved(value, power * exponent) if isinstance(value, float) else value
    return readings, doubts


def real_format(dtype: str) -> str:
    """The real format by whose rounding a matrix is judged; whole numbers are those of the float64 they became."""
    return {"complex64": "float32", "complex128": "float64"}.get(
        dtype, "float64" if "int" in dtype or dtype == "bool" else dtype
    )
