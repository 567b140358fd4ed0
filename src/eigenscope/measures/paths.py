"""Paths of optimisers over a function of two variables, to be drawn: gradient descent, momentum, Adam, Newton."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eigenscope.measures import rates

Vector = NDArray[np.float64]
Slope = Callable[[Vector], Vector]
"""(2,) → (2,): the gradient."""
STEPS, NEWTON_STEPS = 60, 12
ADAM = (0.9, 0.999, 1e-12)


@dataclass(frozen=True)
class Path:
    """Points that an optimiser goes through.

    Attributes:
        name: of the optimiser.
        setting: its step and momentum, in words.
        x, y: coordinates, the start first.
    """

    name: str
    setting: str
    x: tuple[float, ...]
    y: tuple[float, ...]


def descent(slope: Slope, start: Vector, step: float, momentum: float, steps: int, limit: float, name: str) -> Path:
    """x ← x − αg + β(x − x₋): gradient descent, or heavy ball (Polyak 1964) where β > 0.

    Args:
        slope: the gradient.
        start: (2,).
        step, momentum: α and β.
        steps: at most.
        limit: distance from the origin at which the path has left the picture.
        name: of the path.
    """
    points = [start, start]
    for _ in range(steps):
        points.append(points[-1] - step * slope(points[-1]) + momentum * (points[-1] - points[-2]))
        if not float(np.abs(points[-1]).max()) <= limit:
            break
    text = f"step {step:.3g}" + (f", momentum {momentum:.3g}" if momentum else "")
    return _path(name, text, points[1:])


def adam(slope: Slope, start: Vector, step: float, steps: int, limit: float) -> Path:
    """Adam (Kingma & Ba, ICLR 2015, Algorithm 1) with β₁ = 0.9, β₂ = 0.999."""
    beta1, beta2, eps = ADAM
    mean, square = np.zeros(2), np.zeros(2)
    points = [start]
    for t in range(1, steps + 1):
        gradient = slope(points[-1])
        mean = beta1 * mean + (1.0 - beta1) * gradient
        square = beta2 * square + (1.0 - beta2) * gradient**2
        points.append(points[-1] - step * (mean / (1.0 - beta1**t)) / (np.sqrt(square / (1.0 - beta2**t)) + eps))
        if not float(np.abs(points[-1]).max()) <= limit:
            break
    return _path("Adam", f"step {step:.3g}", points)


def newton(slope: Slope, start: Vector, width: float, limit: float, steps: int = NEWTON_STEPS) -> Path:
    """Plain Newton, x ← x − H⁻¹g, drawn to whatever critical point is near, saddles included.

    H is the central difference of the gradient at ``width``; where it is singular the path ends.
    """
    points = [start]
    for _ in range(steps):
        here = points[-1]
        columns = [(slope(here + width * unit) - slope(here - width * unit)) / (2.0 * width) for unit in np.eye(2)]
        hessian = (np.array(columns) + np.array(columns).T) / 2.0
        if not np.isfinite(hessian).all() or abs(np.linalg.det(hessian)) <= 1e-14 * float(np.abs(hessian).max()) ** 2:
            break
        points.append(here - np.linalg.solve(hessian, slope(here)))
        if not float(np.abs(points[-1]).max()) <= limit or float(np.abs(points[-1] - here).max()) < 1e-9 * limit:
            break
    return _path("Newton", "", points)


def narrow_valley(condition: float = 1000.0, steps: int = 100) -> tuple[Path, Path]:
    """Gradient descent and heavy ball at their best steps, on ½(κx² + y²) from (0.15/√κ, 1): the narrow valley.

    At the double root, momentum first overshoots in the steep direction: by 12 times for κ = 1000.

    Args:
        condition: κ ≥ 1.
        steps: of each.
    """
    best = rates.best(1.0, condition)
    curve = np.array([condition, 1.0])
    start = np.array([0.15 / math.sqrt(condition), 1.0])
    plain = descent(lambda x: curve * x, start, best.gradient_step, 0.0, steps, 1e3, "gradient descent")
    heavy = descent(lambda x: curve * x, start, best.momentum_step, best.momentum, steps, 1e3, "momentum")
    return plain, heavy


def _path(name: str, setting: str, points: list[Vector]) -> Path:
    return Path(name, setting, tuple(float(p[0]) for p in points), tuple(float(p[1]) for p in points))
