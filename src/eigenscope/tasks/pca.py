"""Principal components from the decomposition of a centred matrix, and how many of them to keep."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eigenscope.measures import noise, rank
from eigenscope.results import Spectrum
from eigenscope.tasks.routes import Found

SHARES = (90, 95, 99)
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Components:
    """The principal components of m observations (rows) of n variables (columns).

    Attributes:
        mean: (n,) of the variables.
        explained_variance: σ²/(m − 1) (Jolliffe, Principal Component Analysis, 2nd ed., §3.5), of all components where
            they are known, else of the leading ones.
        explained_variance_ratio: the same over the total variance.
        total_variance: ‖A − 1μᵀ‖_F²/(m − 1).
        loadings: (n, k) orthonormal, the largest entry of each positive; None where no vectors were asked for.
        scores: (m, k) = (A − 1μᵀ)·loadings, likewise.
        needed: percentage → components that explain so much of the variance; empty where not all values are known.
        noise_edge: about the largest singular value of noise alone (``measures.noise.fit_noise``), or None.
        suggested: components to keep, or None where the spectrum does not tell.
        method: how that number was found, or why there is none.
    """

    mean: Tensor
    explained_variance: Array
    explained_variance_ratio: Array
    total_variance: float
    loadings: Tensor | None
    scores: Tensor | None
    needed: dict[int, int]
    noise_edge: float | None
    suggested: int | None
    method: str


def principal_components(found: Found) -> Components:
    """The components of a matrix that was centred before it was decomposed."""
    spectrum, mean = found.spectrum, found.mean
    if mean is None:
        raise ValueError("the matrix was not centred")
    rows = spectrum.shape[0]
    values = (spectrum if found.complete is None else found.complete).values.numpy()
    variance = values**2 / (rows - 1)
    total = float(variance.sum()) if found.complete is not None else (spectrum.frobenius or 0.0) ** 2 / (rows - 1)
    loadings, scores = _signed(spectrum)
    needed: dict[int, int] = {}
    edge: float | None = None
    suggested: int | None = None
    method = "not all values are known"
    if found.complete is not None:
        for share in SHARES:
            count = rank.rank_for_energy(values, share / 100)
            needed |= {} if count is None else {share: count}
        edge, suggested, method = _suggestion(values, spectrum.shape)
    return Components(
        mean, variance, variance / total if total else np.zeros_like(variance), total, loadings, scores, needed, edge,
        suggested, method,
    )  # fmt: skip


def _suggestion(values: Array, shape: tuple[int, int]) -> tuple[float | None, int | None, str]:
    """How many components stand above noise. Centring takes one observation away: the noise has m − 1 rows."""
    inner = (shape[0] - 1, shape[1])
    kept = values[: min(inner)]
    floor = max(shape) * float(np.finfo(np.float64).eps)
    law = noise.fit_noise(kept, inner, floor)
    if isinstance(law, str):
        return None, None, law
    if law.edge is None or law.rank is None:
        return None, None, law.verdict
    if law.verdict.startswith("bulk is not noise"):
        return law.edge, None, f"{law.verdict}: the number above its edge, {law.rank}, is no suggestion"
    return (
        law.edge, law.rank,
        f"values above the noise edge (Johnstone 2001); the hard threshold of Gavish & Donoho (2014) keeps {law.optimal_rank}",
    )  # fmt: skip


def _signed(spectrum: Spectrum) -> tuple[Tensor | None, Tensor | None]:
    """Loadings and scores with the sign (phase) that makes the largest entry of each loading positive."""
    right, left = spectrum.right, spectrum.left
    if right is None:
        return None, None
    largest = right.gather(0, right.abs().argmax(dim=0, keepdim=True))
    phase = torch.where(largest == 0, torch.ones_like(largest), largest / largest.abs()).conj()
    return right * phase, None if left is None else left * phase * spectrum.values
