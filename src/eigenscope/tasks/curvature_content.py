"""An analysis of curvature as plain values: what is printed as JSON, drawn, and put on the page."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from eigenscope.measures import paths
from eigenscope.measures.rates import steps_per_digit
from eigenscope.measures.valley import Valley
from eigenscope.results import Density, Estimate, Spectrum
from eigenscope.tasks.curvature_result import Curvature

BINS = 120
LINEAR = 1e-6
"""Share of max |λ| below which the axis of the density is linear."""


def content_of(found: Curvature) -> dict[str, Any]:
    """All of it, without tensors. What was not computed is None or empty."""
    verdict, place = found.verdict, found.point
    return {
        "verb": "curvature",
        "source": found.source,
        "interrupted": found.interrupted,
        "gauss_newton": found.gauss_newton,
        "verdict": {
            "kind": verdict.kind, "sentence": verdict.sentence, "index": verdict.index, "exact_index": verdict.exact_index,
            "certainty": verdict.certainty, "gradient": asdict(verdict.gradient), "signs": asdict(verdict.signs),
            "unseen": None if verdict.unseen is None else asdict(verdict.unseen),
        },
        "advice": list(found.advice),
        "point": asdict(place),
        "complete": found.complete,
        "top": _pairs(found.top),
        "bottom": _pairs(found.bottom),
        "trace": _estimate(found.trace),
        "frobenius": _estimate(found.frobenius),
        "negative": None if found.negative is None else asdict(found.negative),
        "density": _density(found),
        "valley": _valley(found.valley),
        "metric": None if found.metric is None else {**asdict(found.metric), "valley": _valley(found.metric.valley)},
        "sharpness": None if found.sharpness is None else asdict(found.sharpness),
        "slices": [asdict(part) for part in found.slices],
        "escape": None if found.escape is None else asdict(found.escape),
        "blocks": [
            {"name": b.name, "size": b.size, "top": _pairs(b.top), "bottom": _pairs(b.bottom), "trace": _estimate(b.trace)}
            for b in found.blocks
        ],
        "landscape": None if found.landscape is None else asdict(found.landscape),
        "narrow": [asdict(path) for path in paths.narrow_valley()],
        "notes": list(found.notes),
        "provenance": dict(found.provenance),
    }  # fmt: skip


def _pairs(part: Spectrum) -> list[dict[str, Any]]:
    residuals = part.residuals if part.residuals is not None else torch.full_like(part.values, math.nan)
    columns = zip(part.values.tolist(), residuals.tolist(), part.bounds.tolist(), part.converged.tolist(), strict=True)
    return [{"value": v, "residual": r, "bound": b, "converged": bool(c)} for v, r, b, c in columns]


def _estimate(found: Estimate | None) -> dict[str, Any] | None:
    return None if found is None else asdict(found)


def _valley(found: Valley | None) -> dict[str, Any] | None:
    if found is None:
        return None
    predicted = {
        "gradient_steps_per_digit": steps_per_digit(found.rates.gradient_rate),
        "momentum_steps_per_digit": steps_per_digit(found.rates.momentum_rate),
    }
    return {**asdict(found.rates), **predicted, **{k: v for k, v in asdict(found).items() if k != "rates"}}


def _density(found: Curvature) -> dict[str, Any] | None:
    density = found.density
    if density is None:
        return None
    scale = max(float(density.nodes.abs().max()), found.largest)
    if scale == 0.0:
        return None
    linear = LINEAR * scale
    low, high = (
        signed_log(np.array([end]), linear)[0] for end in (float(density.nodes.min()), float(density.nodes.max()))
    )
    margin = 0.04 * (high - low) or 0.5
    edges = np.linspace(low - margin, high + margin, BINS + 1)
    counts = _counts(density, edges, linear)
    mean = counts.mean(axis=0)
    error = counts.std(axis=0, ddof=1) / math.sqrt(len(counts)) if len(counts) > 1 else np.zeros_like(mean)
    own = (density.weights - 1.0 / density.size).abs().max(dim=0).values <= 1e-12
    pairs: torch.Tensor = torch.unique(torch.cat([density.nodes[own], found.top.values, found.bottom.values]))
    alone = pairs if density.deflated < density.size else density.nodes[:0]
    return {
        "linear": linear, "edges": edges.tolist(), "count": mean.tolist(),
        "low": np.maximum(mean - density.level * error, 0.0).tolist(), "high": (mean + density.level * error).tolist(),
        "alone": alone.tolist(), "alone_at": signed_log(alone.numpy(), linear).tolist(), "size": density.size,
        "ticks": _ticks(scale, linear, edges[0], edges[-1]), "complete": found.complete, "level": density.level,
        "probes": len(density.weights),
    }  # fmt: skip


def signed_log(values: Any, linear: float) -> Any:
    """sign(λ)·log₁₀(1 + |λ|/s): linear within s of 0, logarithmic beyond."""
    return np.sign(values) * np.log10(1.0 + np.abs(values) / linear)


def _counts(density: Density, edges: Any, linear: float) -> Any:
    """(p, b) eigenvalues in each bin, as each probe has them, without those that were set aside.

    A Gauss rule holds its mass in nodes; between them its distribution is taken as straight lines through the middle of
    each step, on the axis that is drawn.
    """
    nodes, weights = density.nodes.numpy(), density.weights.numpy()
    if density.deflated == density.size:
        found, _ = np.histogram(signed_log(nodes, linear), edges)
        return found[None, :].astype(float)
    rows = []
    for row in weights:
        chosen = (row > 0.0) & (np.abs(row - 1.0 / density.size) > 1e-12)
        places, mass = signed_log(nodes[chosen], linear), row[chosen]
        middle = np.cumsum(mass) - mass / 2.0
        places = (
            np.concatenate([[2 * places[0] - places[min(1, len(places) - 1)]], places, [2 * places[-1] - places[-2]]])
            if len(places) > 1
            else np.array([places[0] - 0.1, places[0], places[0] + 0.1])
        )
        share = np.concatenate([[0.0], middle, [mass.sum()]])
        rows.append(np.diff(np.interp(edges, places, share)) * density.size)
    return np.array(rows)


def _ticks(scale: float, linear: float, low: float, high: float) -> list[tuple[float, float]]:
    """Places on the axis and the eigenvalue at each: 0 and powers of ten."""
    powers = range(math.floor(math.log10(linear)) + 1, math.floor(math.log10(scale)) + 1)
    values = [-(10.0**k) for k in reversed(powers)] + [0.0] + [10.0**k for k in powers]
    places = signed_log(np.array(values), linear).tolist()
    return [(place, value) for place, value in zip(places, values, strict=True) if low <= place <= high]
