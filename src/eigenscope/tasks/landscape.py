"""The loss over a plane through the parameters, with the paths of optimisers that are kept in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from eigenscope.errors import InputError
from eigenscope.measures import paths
from eigenscope.measures.paths import Path, Vector
from eigenscope.measures.slices import narrowed, reach_of
from eigenscope.methods.ends import Ends
from eigenscope.operators.loss_operator import LossOperator

Plane = Literal["eigenvectors", "random"]
GRID = 21
"""Places along each axis."""
START = (-0.55, 0.8)
"""Where the paths begin, in units of the reach of each axis."""


@dataclass(frozen=True)
class Landscape:
    """The loss over a plane.

    Attributes:
        plane: "eigenvectors" or "random".
        labels: what the axes are.
        x, y: (g,) distances along each, in units of the parameters.
        losses: (g, g) L at each place, rows by y; not finite where the loss is not.
        paths: of optimisers that move in the plane only, in the same units.
    """

    plane: Plane
    labels: tuple[str, str]
    x: tuple[float, ...]
    y: tuple[float, ...]
    losses: tuple[tuple[float, ...], ...]
    paths: tuple[Path, ...]


def cost(batches: int, grid: int = GRID) -> tuple[int, int]:
    """Evaluations of the loss, and gradients, that a landscape takes at most, each over all batches."""
    del batches
    return grid**2, 3 * paths.STEPS + 5 * paths.NEWTON_STEPS


def landscape(
    H: LossOperator, found: Ends, loss: float, size: float, *, plane: Plane = "eigenvectors", grid: int = GRID,
    seed: int = 0, watcher: Callable[[int], None] | None = None,
) -> Landscape:  # fmt: skip
    """Measure the loss over a plane and follow gradient descent, momentum, Adam and Newton in it from one start.

    Args:
        H: the operator, whose objective is evaluated.
        found: eigenpairs; the plane "eigenvectors" is spanned by the first and the last of them.
        loss, size: L(θ) and ‖θ‖.
        plane: or "random": two random directions of which every filter has the norm of the weights' own (Li et al.,
            Visualizing the Loss Landscape of Neural Nets, NeurIPS 2018, §4); biases and norms do not move.
        grid: places along each axis, at least 3.
        seed: of the random plane.
        watcher: told the evaluations so far.

    Raises:
        InputError: fewer than two parameters, another plane, a grid that is too small.
    """
    if plane not in ("eigenvectors", "random"):
        raise InputError(f"plane={plane!r}", where="landscape", expected="eigenvectors or random")
    if grid < 3 or H.shape[0] < 2:
        raise InputError(
            f"a grid of {grid} over {H.shape[0]} parameters", where="landscape", expected="3 and 2 at least"
        )
    if plane == "random":
        directions = filter_normalised(H, seed)
        labels, reach = ("random direction 1", "random direction 2"), (1.0, 1.0)
    else:
        directions, labels, reach = _eigenplane(found, loss, size)
        reach = (_narrowed(H, directions[0], reach[0]), _narrowed(H, directions[1], reach[1]))
    scaled = [H.embedded(direction) * r for direction, r in zip(directions, reach)]

    def at(x: float, y: float) -> Tensor:
        return x * scaled[0] + y * scaled[1]

    places = np.linspace(-1.0, 1.0, grid)
    losses: list[tuple[float, ...]] = []
    for y in places:
        losses.append(tuple(_value(H, at(float(x), float(y))) for x in places))
        if watcher is not None:
            watcher(len(losses) * grid)
    walked = [_rescaled(path, reach) for path in _paths(H, at, scaled)]
    axes = [tuple(float(r * place) for place in places) for r in reach]
    return Landscape(plane, labels, axes[0], axes[1], tuple(losses), tuple(walked))


def filter_normalised(H: LossOperator, seed: int) -> list[Tensor]:
    """Two random directions (p,), every filter of them as long as that of the weights; 0 for vectors and scalars."""
    source = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(2):
        parts: list[Tensor | None] = []
        for tensor in H.layout.tensors:
            if tensor.ndim < 2:
                parts.append(None)
                continue
            drawn = torch.randn(tensor.shape, generator=source, dtype=torch.float64).to(tensor)
            rows, own = (part.detach().reshape(len(tensor), -1) for part in (drawn, tensor))
            norms = [torch.linalg.vector_norm(part, dim=1, keepdim=True) for part in (rows, own)]
            parts.append(rows * (norms[1] / norms[0].clamp(min=1e-30)))
        found.append(H.layout.flat(parts))
    if not bool(found[0].any()):
        raise InputError(
            "no parameter is a matrix or a filter", where="landscape", remedy="use the plane of eigenvectors"
        )
    return found


def _eigenplane(found: Ends, loss: float, size: float) -> tuple[list[Tensor], tuple[str, str], tuple[float, float]]:
    top, bottom = found.top, found.bottom
    if top.right is None or not len(top):
        raise InputError("no eigenvector", where="landscape", expected="at least one at the top")
    if bottom.right is not None and len(bottom):
        second, value, name = bottom.right[:, -1], float(bottom.values[-1]), "bottom eigenvector"
    elif len(top) > 1:
        second, value, name = top.right[:, -1], float(top.values[-1]), f"eigenvector {len(top)}"
    else:
        raise InputError("a single eigenvector", where="landscape", expected="two", remedy="ask for more")
    largest = float(top.values[0])
    reach = (reach_of(loss, largest, size), reach_of(loss, value, size))
    return [top.right[:, 0], second], (f"top eigenvector, λ = {largest:.3g}", f"{name}, λ = {value:.3g}"), reach


def _narrowed(H: LossOperator, direction: Tensor, reach: float) -> float:
    whole = H.embedded(direction)
    return narrowed(lambda t: _value(H, t * whole), 0.0, 0.0, reach)


def _value(H: LossOperator, shift: Tensor) -> float:
    try:
        return H.objective.value(shift)
    except InputError:  # not finite that far out
        return float("inf")


def _paths(H: LossOperator, at: Callable[[float, float], Tensor], scaled: list[Tensor]) -> list[Path]:
    """The paths, in units of the reach of each axis: in these the plane's curvatures are comparable."""

    def slope(x: Vector) -> Vector:
        try:
            gradient = H.objective.gradient(at(float(x[0]), float(x[1])))
        except InputError:
            return np.full(2, np.inf)
        return np.array([float(torch.dot(gradient.double(), part.double())) for part in scaled])

    start = np.array(START)
    width = 1e-2
    curvature = max(_curvature(slope, place, width) for place in (np.zeros(2), start))
    step = 0.5 / curvature if 0.0 < curvature < np.inf else 1.0
    count, limit = paths.STEPS, 2.0
    return [
        paths.descent(slope, start, step, 0.0, count, limit, "gradient descent"),
        paths.descent(slope, start, step, 0.8, count, limit, "momentum"),
        paths.adam(slope, start, 0.05, count, limit),
        paths.newton(slope, start, width, limit),
    ]


def _curvature(slope: Callable[[Vector], Vector], place: Vector, width: float) -> float:
    """Largest |λ| of the plane's Hessian at a place, from differences of the gradient; 0 where it is not finite."""
    columns = [(slope(place + width * unit) - slope(place - width * unit)) / (2.0 * width) for unit in np.eye(2)]
    matrix = (np.array(columns) + np.array(columns).T) / 2.0
    return float(np.abs(np.linalg.eigvalsh(matrix)).max()) if np.isfinite(matrix).all() else 0.0


def _rescaled(path: Path, reach: tuple[float, float]) -> Path:
    return Path(path.name, path.setting, tuple(reach[0] * x for x in path.x), tuple(reach[1] * y for y in path.y))
