"""The stages of an analysis of curvature, each a function of the operator that returns plain results."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eigenscope.measures import curvature as judging
from eigenscope.measures import sharpness as sharp
from eigenscope.measures import slices
from eigenscope.methods.ends import Ends, Watcher, ends
from eigenscope.methods.probes import signs
from eigenscope.operators.base import LinearOperator
from eigenscope.operators.loss_operator import LossOperator
from eigenscope.operators.preconditioned import Preconditioned
from eigenscope.operators.undisturbed import undisturbed
from eigenscope.results import Density, Estimate, Spectrum

BLOCK = 4
"""Probes of the trace at a time."""
TINY = 1e-12
"""Least modulus of a weight in the scale-invariant metric: a weight of 0 does not move there."""


@dataclass(frozen=True)
class Point:
    """The loss and its gradient.

    Attributes:
        loss: L(θ).
        gradient: ‖∇L‖.
        noise: its standard error over the batches, or None with one.
        size: ‖θ‖ of the chosen parameters.
        parameters: how many there are.
        batches: how many, and ``samples`` by what they are weighted in all.
    """

    loss: float
    gradient: float
    noise: float | None
    size: float
    parameters: int
    batches: int
    samples: float


def point_at(H: LossOperator) -> tuple[Point, Tensor, Tensor]:
    """The point, its gradient (p,), and the weighted mean of the squared gradients of the batches (p,)."""
    objective = H.objective
    total = objective.gradient()
    count = len(objective.batches)
    squares, second = np.zeros(count), torch.zeros_like(total)
    if count == 1 or objective.group.size > 1:
        second = total.square()
    else:
        with undisturbed(objective.model):
            for index in range(count):
                gradient = objective.batch_gradient(index)
                squares[index] = float((gradient - total).square().sum(dtype=torch.float64))
                second.add_(gradient.square(), alpha=objective.share(index))
    weights = np.array([objective.share(index) for index in range(count)])
    noise = judging.gradient_noise(squares, weights) if objective.group.size == 1 else None
    size = math.hypot(*(float(norm) for norm in objective.norms()))
    place = Point(
        objective.value(), float(torch.linalg.vector_norm(total, dtype=torch.float64)), noise, size, H.shape[0], count,
        objective.total,
    )  # fmt: skip
    return place, total, second


def all_pairs(H: LinearOperator, top: int, bottom: int, watcher: Watcher | None = None) -> Ends:
    """Every eigenvalue, from the whole matrix: as many products as it has columns."""
    size = H.shape[0]
    columns = torch.empty(size, size, dtype=torch.float64)
    unit = torch.eye(size, dtype=H.dtype, device=H.device)
    for start in range(0, size, 32):
        columns[:, start : start + 32] = (H @ unit[:, start : start + 32]).double().cpu()
        if watcher is not None:
            watcher(min(start + 32, size), 0)
    values, vectors = torch.linalg.eigh((columns + columns.mT) / 2)
    norm = float(values.abs().max())
    eps = torch.finfo(H.dtype).eps
    bound = float(size**0.5 * eps * norm)
    most, least = min(top, size), min(bottom, size)
    order = (torch.arange(size - 1, size - 1 - most, -1), torch.arange(least - 1, -1, -1))

    def part(places: Tensor) -> Spectrum:
        chosen = vectors[:, places]
        residuals = torch.linalg.vector_norm(columns @ chosen - chosen * values[places], dim=0)
        return Spectrum(
            values=values[places], left=None, right=chosen.to(H.dtype).to(H.device), residuals=residuals,
            bounds=residuals + bound, converged=torch.ones(len(places), dtype=torch.bool), kind="eigen", shape=H.shape,
            complete=len(places) == size, frobenius=float(torch.linalg.vector_norm(values)), method="lapack",
            reason=f"{size} products give the whole matrix", products=size, seed=None,
        )  # fmt: skip

    return Ends(part(order[0]), part(order[1]), values, size, True)


def some_pairs(
    A: LinearOperator, top: int, bottom: int, tol: float, basis: int, budget: int | None, seed: int,
    watcher: Watcher | None = None,
) -> Ends:  # fmt: skip
    """The pairs at both ends, by products; arguments as for :func:`eigenscope.methods.ends.ends`, cut to what there is."""
    size = A.shape[0]
    top = min(top, size)
    bottom = min(bottom, size - top)
    source = torch.Generator().manual_seed(seed)
    return ends(
        A, top, bottom, tol=tol, basis=max(min(basis, size), min(size, top + bottom + 3)), max_products=budget,
        generator=source, watcher=watcher,
    )  # fmt: skip


@dataclass(frozen=True)
class Traces:
    """Trace of the operator and of its blocks, from the same products.

    Attributes:
        total: tr H.
        blocks: name and trace of each block.
        diagonal: (negative, positive, largest): share of the diagonal's entries that lie two standard errors below 0,
            above it, and the largest entry.
    """

    total: Estimate
    blocks: tuple[tuple[str, Estimate], ...]
    diagonal: tuple[float, float, float]


def traces(
    H: LossOperator, by: str, tol: float, budget: int, seed: int, watcher: Callable[[int], None] | None = None
) -> Traces:
    """Hutchinson's estimate with vectors of signs; z ∘ Hz estimates the diagonal, and its sums over blocks their traces.

    The blocks share every product: E[z_b·(Hz)_b] = tr H_bb, as the signs of other blocks cancel in the mean (Bekas,
    Kokiopoulou & Saad, Appl. Numer. Math. 57, 2007). The noise of the other blocks does not: see the standard errors.

    Args:
        H: the operator.
        by: "layer", "module" or "parameter".
        tol: standard error of the total to reach, relative to it.
        budget: products at most, at least 8.
        seed: of the signs.
    """
    source = torch.Generator().manual_seed(seed)
    names = list(H.layout.places())
    groups = {key: set(block.layout.names) for key, block in H.blocks(by).items()}
    parts = {key: [place for name, place in names if name in members] for key, members in groups.items()}
    sums: dict[str, list[float]] = {key: [] for key in parts}
    mean, squares, count = torch.zeros(H.shape[0], device=H.device), torch.zeros(H.shape[0], device=H.device), 0
    total = Estimate(math.nan, math.inf, 0)
    while count < budget:
        vectors = signs(H, min(BLOCK, budget - count), source)
        for column in (vectors * (H @ vectors)).T:
            count += 1
            step = column.float() - mean
            mean = mean + step / count
            squares = squares + step * (column.float() - mean)
            for key, places in parts.items():
                sums[key].append(sum(float(column[place].sum(dtype=torch.float64)) for place in places))
        total = _mean([sum(values) for values in zip(*sums.values(), strict=True)])
        if watcher is not None:
            watcher(count)
        if count >= 8 and total.stderr <= tol * abs(total.value):
            break
    error = (squares / max(count - 1, 1) / count).sqrt()
    share = (float((mean < -2.0 * error).float().mean()), float((mean > 2.0 * error).float().mean()))
    return Traces(total, tuple((key, _mean(values)) for key, values in sums.items()), (*share, float(mean.abs().max())))


def _mean(values: Sequence[float]) -> Estimate:
    found = np.asarray(values)
    error = float(found.std(ddof=1)) / math.sqrt(len(found)) if len(found) > 1 else math.inf
    return Estimate(float(found.mean()), error, len(found), len(found))


def moments(density: Density) -> tuple[Estimate, Estimate]:
    """Trace and squared Frobenius norm, Σ λ and Σ λ², from the rules of a density, with standard errors over the probes."""
    found = []
    for power in (1, 2):
        per_probe = (density.weights @ density.nodes**power) * density.size
        error = float(per_probe.std()) / math.sqrt(len(per_probe)) if len(per_probe) > 1 else math.inf
        if density.deflated == density.size:
            error = 0.0
        found.append(Estimate(float(per_probe.mean()), error, len(per_probe), density.products))
    return found[0], found[1]


@dataclass(frozen=True)
class Sharpness:
    """How much the loss can rise nearby.

    Attributes:
        radius: ρ of the ball ‖d‖ ≤ ρ.
        first_order: ρ‖∇L‖.
        second_order: largest rise of the quadratic model in the span of the gradient and the eigenvectors found.
        measured: largest rise of the loss among the steps tried: that maximum, and ρ along ±the gradient and ±the top one.
        invariant: λ_max of |θ| H |θ|, entries scaled by the weights themselves; None where it was not asked for.
        invariant_residual: of that pair.
    """

    radius: float
    first_order: float
    second_order: float
    measured: float
    invariant: float | None = None
    invariant_residual: float | None = None


def sharpness(H: LossOperator, gradient: Tensor, found: Ends, radius: float, loss: float) -> Sharpness:
    """Worst case in a ball: Foret et al., SAM, ICLR 2021, eq. (1), by its first-order step (eq. (2)), and by curvature.

    One product, with the gradient; the others are known from the eigenpairs.
    """
    basis, values = _span(found, H.shape[0])
    norm = torch.linalg.vector_norm(gradient)
    rest = gradient - basis @ (basis.mH @ gradient)
    rest = rest - basis @ (basis.mH @ rest)
    length = torch.linalg.vector_norm(rest)
    matrix = np.diag(values.numpy())
    slopes = (basis.mH @ gradient).double().cpu().numpy()
    if float(length) > 1e-6 * float(norm) and float(norm) > 0.0:
        unit = rest / length
        image = H @ unit
        across = (basis.mH @ image).double().cpu().numpy()
        corner = float(torch.dot(unit.double(), image.double()))
        matrix = np.block([[matrix, across[:, None]], [across[None, :], np.array([[corner]])]])
        slopes = np.append(slopes, float(length))
        basis = torch.cat([basis, unit.unsqueeze(1)], dim=1)
    second, step = sharp.worst_in_ball(slopes, matrix, radius)
    tried = [basis @ torch.from_numpy(step).to(basis)]
    if len(found.top):
        tried += [sign * radius * _column(found.top, 0) for sign in (1.0, -1.0)]
    if float(norm) > 0.0:
        tried.append(radius * gradient / norm)
    rises = [H.objective.value(H.embedded(step)) - loss for step in tried]
    return Sharpness(radius, radius * float(norm), second, max(0.0, *rises))


def _span(found: Ends, size: int) -> tuple[Tensor, Tensor]:
    """The eigenvectors found (p, k) and their values, each once: of a small Hessian both ends may hold the same."""
    own = min(len(found.bottom), size - len(found.top))
    first = len(found.bottom) - own
    vectors, values = [found.top.right, found.bottom.right], [found.top.values, found.bottom.values[first:]]
    parts = [part for part in vectors if part is not None]
    return torch.cat([parts[0], *(part[:, first:] for part in parts[1:])], dim=1), torch.cat(values)


def invariant(H: LossOperator, tol: float, basis: int, budget: int | None, seed: int) -> tuple[float, float]:
    """λ_max of |θ| H |θ| and its residual: twice the worst case over ‖d/|θ|‖ ≤ 1 of a quadratic at a critical point.

    Kwon et al., ASAM, ICML 2021, eq. (3), with T = |θ| entry by entry: rescaling weights without changing the function does
    not change it.
    """
    weights = H.layout.flat(list(H.layout.tensors)).detach().abs().to(H.dtype).clamp(min=TINY)
    found = some_pairs(Preconditioned(H, weights.pow(-2)), 1, 0, tol, basis, budget, seed)
    residual = found.top.residuals
    return float(found.top.values[0]), math.nan if residual is None else float(residual[0])


def line_of(H: LossOperator, direction: Tensor) -> Callable[[float], float]:
    """The loss at a distance along a direction (p,) from the parameters."""
    whole = H.embedded(direction)
    return lambda t: H.objective.value(t * whole)


def drawn_slices(H: LossOperator, found: Ends, gradient: Tensor, place: Point) -> list[slices.Slice]:
    """The loss along the first of the top and the last of the bottom eigenvectors."""
    drawn = []
    for name, part, index in (("top", found.top, 0), ("bottom", found.bottom, len(found.bottom) - 1)):
        if not len(part):
            continue
        vector, value = _column(part, index), float(part.values[index])
        slope = float(torch.dot(vector.double(), gradient.double()))
        line = line_of(H, vector)
        reach = slices.narrowed(line, value, slope, slices.reach_of(place.loss, value, place.size))
        drawn.append(slices.slice_along(name, line, value, slope, reach))
    return drawn


def escape(H: LossOperator, found: Ends, gradient: Tensor, place: Point) -> slices.Escape | None:
    """The way down along the smallest eigenvalue, if that is negative."""
    part = found.bottom if len(found.bottom) else found.top
    if not len(part) or float(part.values[-1]) >= 0.0:
        return None
    vector, value = _column(part, len(part) - 1), float(part.values[-1])
    slope = float(torch.dot(vector.double(), gradient.double()))
    if slope > 0.0:
        vector, slope = -vector, -slope
    return slices.escape_along(line_of(H, vector), value, slope, place.size)


def as_array(values: Tensor) -> NDArray[np.float64]:
    """Float64 values on the CPU."""
    return values.detach().cpu().double().numpy()


def _column(part: Spectrum, index: int) -> Tensor:
    if part.right is None:
        raise TypeError("a spectrum without vectors")
    return part.right[:, index]
