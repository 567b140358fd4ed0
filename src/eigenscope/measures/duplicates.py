"""Matrices of a run that are the same, or nearly: found by sampled entries, confirmed by their spectra."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eigenscope.results import Finding, Record

Array = NDArray[np.float64]

PLACES = 256
NEAR = 0.1
"""Difference, relative to the norm, up to which two matrices are named as nearly identical."""
AT_ONCE = 1024
IDENTICAL_SEVERITY = 40.0
NEAR_SEVERITY = 15.0
ROUNDING = 1e-12


def sample_entries(W: Tensor, places: int = PLACES) -> Array:
    """Entries at places that depend on {m, n} alone: (p,) float64; a matrix and its transpose give the same.

    For a square matrix the transpose differs: its rows and columns cannot be told apart by the shape.

    Args:
        W: (m, n), not empty. Complex entries give their moduli.
        places: how many, drawn with replacement.
    """
    first, second = _places(max(W.shape), min(W.shape), places)
    rows, cols = (first, second) if W.shape[0] >= W.shape[1] else (second, first)
    chosen = W[rows.to(W.device), cols.to(W.device)]
    chosen = chosen.abs() if chosen.is_complex() else chosen
    sample: Array = chosen.double().cpu().numpy()
    return sample


@lru_cache(maxsize=64)
def _places(long: int, short: int, places: int) -> tuple[Tensor, Tensor]:
    generator = np.random.default_rng((long, short))
    first, second = generator.integers(long, size=places), generator.integers(short, size=places)
    return torch.from_numpy(first), torch.from_numpy(second)


def find_duplicates(records: Sequence[Record]) -> list[Finding]:
    """Groups of matrices that agree in all sampled entries, or differ by less than a tenth of their norm.

    The relative difference ‖A − B‖_F/‖A‖_F is estimated from the sample, and must not be smaller than the spectra allow:
    ‖σ(A) − σ(B)‖₂ ≤ ‖A − B‖_F (Mirsky, Quart. J. Math. 11, 1960, Theorem 5).
    """
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, record in enumerate(records):
        if record.sample is not None and record.values is not None and np.any(record.sample):
            sides = [side for side in (record.readings["rows"], record.readings["cols"]) if isinstance(side, int)]
            groups[max(sides), min(sides)].append(i)
    links = [link for members in groups.values() for link in _links(records, members)]
    return _merged(records, links)


def _links(records: Sequence[Record], members: list[int]) -> Iterator[tuple[int, int, float]]:
    """(i, j, relative difference) of the pairs of one shape that are near, i < j."""
    samples = np.array([records[i].sample for i in members])
    # Relative to the largest entry, so that no square overflows or vanishes whatever the scale of the weights.
    peaks = np.abs(samples).max(axis=1)
    unit = samples / peaks[:, None]
    unit /= np.linalg.norm(unit, axis=1)[:, None]
    for start in range(0, len(members), AT_ONCE):
        # |a − b|² = |a|² + |b|² − 2ab cancels for near pairs: it only picks the candidates.
        cosines = unit[start : start + AT_ONCE] @ unit.T
        for row, col in np.argwhere(cosines > 1.0 - NEAR**2):
            a, b = start + int(row), int(col)
            if a >= b:
                continue
            first, second = samples[a] / max(peaks[a], peaks[b]), samples[b] / max(peaks[a], peaks[b])
            difference = float(np.linalg.norm(first - second) / max(np.linalg.norm(first), np.linalg.norm(second)))
            spectral = _spectral_difference(records[members[a]], records[members[b]])
            if difference <= NEAR and spectral <= difference * (1.0 + 4.0 / math.sqrt(2 * samples.shape[1])) + ROUNDING:
                yield members[a], members[b], difference


def _spectral_difference(a: Record, b: Record) -> float:
    """‖σ(A) − σ(B)‖/‖σ(A)‖, less what the error bounds of the two allow."""
    if a.values is None or b.values is None or a.values[0] == 0.0:
        return math.inf
    scale = float(a.values[0])
    first, second = a.values / scale, b.values / scale
    bounds = [float(r.readings.get("error_bound") or 0.0) * float(v[0]) for r, v in ((a, first), (b, second))]
    slack = sum(bounds) * math.sqrt(len(first))
    return max(0.0, float(np.linalg.norm(first - second)) - slack) / float(np.linalg.norm(first))


def _merged(records: Sequence[Record], links: list[tuple[int, int, float]]) -> list[Finding]:
    """One finding per set of layers that share matrices, not one per pair."""
    parent = list(range(len(records)))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    worst: dict[int, float] = defaultdict(float)
    for i, j, _ in links:
        parent[root(j)] = root(i)
    for i, _, difference in links:
        worst[root(i)] = max(worst[root(i)], difference)
    groups: dict[int, list[int]] = defaultdict(list)
    for i in range(len(records)):
        if root(i) in worst:
            groups[root(i)].append(i)
    by_layers: dict[tuple[object, ...], list[tuple[list[int], float]]] = defaultdict(list)
    for top, members in groups.items():
        layers = [records[i].readings.get("layer") for i in members]
        apart = None not in layers and len(set(layers)) == len(layers)
        key = (worst[top] == 0.0, *layers) if apart else (worst[top] == 0.0, "names", top)
        by_layers[key].append((members, worst[top]))
    return [_finding(records, key[1:], sets) for key, sets in by_layers.items()]


def _finding(records: Sequence[Record], layers: tuple[object, ...], sets: list[tuple[list[int], float]]) -> Finding:
    difference = max(difference for _, difference in sets)
    names = tuple(records[i].name for members, _ in sets for i in members)
    error = difference / math.sqrt(2 * PLACES)
    how = (
        "identical"
        if difference == 0.0
        else f"nearly identical: they differ by {difference:.2%} ± {error:.2%} of their norm"
    )
    if layers[0] == "names" or len(sets) == 1:
        who = f"{len(names)} matrices are {how}: {', '.join(names[:4])}{', …' if len(names) > 4 else ''}"
    else:
        roles = ", ".join(str(records[members[0]].readings.get("role")) for members, _ in sets)
        numbers = ", ".join(map(str, layers[:-1])) + f" and {layers[-1]}"
        who = f"layers {numbers} share {len(sets)} matrices ({roles}) that are {how}"
    return Finding(names, who, IDENTICAL_SEVERITY if difference == 0.0 else NEAR_SEVERITY, "")
