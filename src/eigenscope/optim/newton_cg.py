"""Newton's method by truncated conjugate gradients inside a trust region."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from eigenscope.methods.lanczos import MEMORY
from eigenscope.operators.evaluated import LossHessian
from eigenscope.optim.trust_region import TrustRegion


class NewtonCG(TrustRegion):
    """Trust-region Newton-CG: negative curvature is followed downhill to the boundary, saddles are left.

    Each step minimises the quadratic model by conjugate gradients (Steihaug, SIAM J. Numer. Anal. 20(3), 1983; Toint
    1981; Nocedal & Wright 2006, Algorithm 7.2) to a residual of min(½, ‖g‖/‖g‖max)·‖g‖, which makes the convergence
    quadratic (ibid., Theorem 7.2), and stops at the boundary of the region or along the first direction of negative
    curvature. One step costs one gradient, one loss or a few, and as many Hessian products as it has iterations. Memory:
    one vector of the size of the parameters for each iteration, 2 GiB at most, and the graph of the gradient.

    Args:
        params: parameters or groups. A group may have its own ``weight_decay``, which adds ½·weight_decay·‖p‖² to f.
        radius: first radius of the trust region, in the units of the parameters' norm; it adapts.
        max_radius: its largest value.
        max_products: Hessian products in the conjugate gradients of one step.
        tolerance: below this fraction of the largest gradient seen, negative curvature is looked for.
        weight_decay: L2 penalty.
        seed: of the random vectors by which it is looked for; the same seed takes the same steps, bit for bit.

    Attributes:
        last: :class:`Step`, what the last step did.

    Raises:
        InputError: an option out of range.
    """

    def __init__(
        self, params: Iterable[Any], *, radius: float = 1.0, max_radius: float = 1e3, max_products: int = 100,
        tolerance: float = 1e-5, weight_decay: float = 0.0, seed: int = 0,
    ) -> None:  # fmt: skip
        defaults = {
            "radius": radius, "max_radius": max_radius, "max_products": max_products, "tolerance": tolerance,
            "weight_decay": weight_decay, "seed": seed,
        }  # fmt: skip
        super().__init__(params, defaults)

    def _path(self, hessian: LossHessian, radius: float, largest: float) -> Steihaug:
        norm = float(torch.linalg.vector_norm(hessian.gradient))
        goal = min(0.5, norm / largest) * norm
        held = MEMORY // (hessian.shape[0] * hessian.dtype.itemsize)
        return Steihaug(hessian, radius, goal, max(1, min(self.param_groups[0]["max_products"], held)))


class Steihaug:
    """The path of the conjugate gradients from 0 towards −H⁻¹g, along which ‖p‖ grows and the model falls.

    A smaller radius later cuts the same path earlier (Nocedal & Wright 2006, Theorem 7.3), without further products.

    Args:
        hessian: H, and g with it.
        radius: how far the path is followed.
        goal: norm of the residual at which it ends.
        most: products at which it ends.
    """

    def __init__(self, hessian: LossHessian, radius: float, goal: float, most: int) -> None:
        self.kind = "newton"
        self.curvature: float | None = None
        self._size = hessian.gradient
        self._segments: list[tuple[Tensor, float, float, float]] = []
        point, residual = torch.zeros_like(hessian.gradient), hessian.gradient
        direction, square = -residual, float(residual @ residual)
        for _ in range(most):
            image = hessian @ direction
            curvature = float(direction @ image)
            length = square / curvature if curvature > 0.0 else math.inf
            self._segments.append((direction, length, square, curvature))
            if not math.isfinite(length):
                self.kind = "negative curvature"
                self.curvature = curvature / float(direction @ direction)
                return
            point = point + length * direction
            residual = residual + length * image
            before, square = square, float(residual @ residual)
            if float(torch.linalg.vector_norm(point)) >= radius:
                return
            if math.sqrt(square) <= goal:
                return
            direction = (square / before) * direction - residual

    def within(self, radius: float) -> tuple[Tensor, float, bool]:
        """The point of the path at the distance ``radius``, or its end."""
        point, decrease = torch.zeros_like(self._size), 0.0
        for direction, length, square, curvature in self._segments:
            far = _crossing(point, direction, radius)
            part = min(length, far)
            point = point + part * direction
            # Along a direction of the conjugate gradients the slope of the model is −‖r‖².
            decrease += part * square - 0.5 * part**2 * curvature
            if far <= length:
                return point, decrease, True
        return point, decrease, False


def _crossing(point: Tensor, direction: Tensor, radius: float) -> float:
    """The τ ≥ 0 at which ‖point + τ·direction‖ = radius, by the root formula that does not cancel."""
    a, b = float(direction @ direction), float(point @ direction)
    c = radius**2 - float(point @ point)
    if c <= 0.0 or a == 0.0:
        return 0.0
    root = math.sqrt(b * b + a * c)
    return c / (b + root) if b > 0.0 else (root - b) / a
