"""Sharpness: how much the loss can rise in a small ball around the weights, by its first two derivatives."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from eigenscope.errors import InputError

RADIUS = 0.05
"""Default radius ρ of the ball, as in Foret et al. 2021, §3."""
CAVEAT = (
    "λ max, the trace and the worst case in a ball change when a network is written differently without computing"
    " anything else (Dinh et al. 2017): compare them between runs of one architecture only; the scale-invariant one is not"
    " changed by rescaling weights."
)


def worst_in_ball(
    gradient: NDArray[np.float64], hessian: NDArray[np.float64], radius: float
) -> tuple[float, NDArray[np.float64]]:
    """The largest value of gᵀd + ½ dᵀHd over ‖d‖ ≤ ρ, and a d where it is reached.

    The trust-region subproblem (Nocedal & Wright, Numerical Optimization, 2nd ed., 2006, Theorem 4.1) with the sign turned:
    (νI − H) d = g with ν ≥ max(λ_max, 0), and ‖d‖ = ρ or ν = 0.

    Args:
        gradient: (k,) g, in an orthonormal basis.
        hessian: (k, k) H, in the same.
        radius: ρ > 0.

    Raises:
        InputError: the radius is not positive, or something is not finite.
    """
    if not (radius > 0.0 and np.isfinite(gradient).all() and np.isfinite(hessian).all()):
        raise InputError(
            f"a ball of radius {radius}", where="worst case in a ball", expected="a positive radius, finite H"
        )
    values, vectors = np.linalg.eigh(hessian)
    slopes = vectors.T @ gradient
    top = float(values[-1])
    scale = max(float(np.abs(values).max()), float(np.linalg.norm(slopes)) / radius)
    if scale == 0.0:
        return 0.0, np.zeros_like(gradient)
    inside = _inside(values, slopes, radius)
    d = inside if inside is not None else _on_sphere(values, slopes, radius, max(top, 0.0), scale)
    step = vectors @ d
    return float(slopes @ d + 0.5 * (values * d**2).sum()), step


def _inside(values: NDArray[np.float64], slopes: NDArray[np.float64], radius: float) -> NDArray[np.float64] | None:
    """The maximum of a concave model, where it lies in the ball."""
    if float(values[-1]) >= 0.0:
        return None
    d = slopes / -values
    return d if float(np.linalg.norm(d)) <= radius else None


def _on_sphere(
    values: NDArray[np.float64], slopes: NDArray[np.float64], radius: float, lowest: float, scale: float
) -> NDArray[np.float64]:
    """‖(ν − Λ)⁻¹ slopes‖ = ρ by bisection in ν; where even ν = λ_max is too long a way down, along its vector."""

    def at(shift: float) -> NDArray[np.float64]:
        gaps = lowest + shift - values
        found: NDArray[np.float64] = np.divide(slopes, gaps, out=np.zeros_like(slopes), where=gaps > 0.0)
        return found

    low, high = scale * 1e-15, scale + float(np.linalg.norm(slopes)) / radius
    if float(np.linalg.norm(at(low))) < radius:
        d = at(low)
        d[-1] = 0.0
        d[-1] = math.copysign(math.sqrt(max(radius**2 - float(d @ d), 0.0)), float(slopes[-1]) or 1.0)
        return d
    for _ in range(200):
        middle = math.sqrt(low * high)
        if float(np.linalg.norm(at(middle))) > radius:
            low = middle
        else:
            high = middle
    return at(high)
