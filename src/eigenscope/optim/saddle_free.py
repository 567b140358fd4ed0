"""Saddle-free Newton: |H|⁻¹ in a Krylov subspace."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from eigenscope.errors import InputError
from eigenscope.methods.lanczos import MEMORY, recurrence
from eigenscope.operators.evaluated import LossHessian
from eigenscope.optim.trust_region import TrustRegion


class SaddleFreeNewton(TrustRegion):
    """Newton steps with |H| in place of H, which a saddle repels.

    Dauphin et al., NeurIPS 2014, Algorithm 1: H is reduced to a Krylov subspace by Lanczos, and the step is
    −V(|T| + λ)⁻¹Vᵀg, every direction of negative curvature followed downhill. Here the subspace starts at the gradient,
    which it therefore contains: no part of the gradient is left for a separate step. λ is the least that keeps the step
    in a trust region measured by ‖p‖ (Nocedal & Wright 2006, Algorithm 4.3), and the quadratic model with H itself
    decides how the region grows and whether the step is kept. One step costs one gradient, one loss or a few, and
    ``max_products`` Hessian products. Memory: as many vectors of the size of the parameters,
    2 GiB at most.

    Args:
        params: parameters or groups. A group may have its own ``weight_decay``, which adds ½·weight_decay·‖p‖² to f.
        radius: first radius of the trust region, in the units of the parameters' norm; it adapts.
        max_radius: its largest value.
        max_products: dimension of the Krylov subspace.
        damping: least λ, relative to the largest |λᵢ| seen in the step.
        tolerance: below this fraction of the largest gradient seen, negative curvature is looked for outside the
            subspace, too.
        weight_decay: L2 penalty.
        seed: of the random vectors by which it is looked for; the same seed takes the same steps, bit for bit.

    Attributes:
        last: :class:`Step`, what the last step did.

    Raises:
        InputError: an option out of range.
    """

    def __init__(
        self, params: Iterable[Any], *, radius: float = 1.0, max_radius: float = 1e3, max_products: int = 10,
        damping: float = 0.0, tolerance: float = 1e-5, weight_decay: float = 0.0, seed: int = 0,
    ) -> None:  # fmt: skip
        if not damping >= 0.0:
            raise InputError(f"damping = {damping}", expected="a number ≥ 0, relative to the largest curvature")
        defaults = {
            "radius": radius, "max_radius": max_radius, "max_products": max_products, "damping": damping,
            "tolerance": tolerance, "weight_decay": weight_decay, "seed": seed,
        }  # fmt: skip
        super().__init__(params, defaults)

    def _path(self, hessian: LossHessian, radius: float, largest: float) -> Absolute:
        group = self.param_groups[0]
        return Absolute(hessian, group["max_products"], group["damping"])


class Absolute:
    """Steps −V(|Θ| + λ)⁻¹Vᵀg, V the Ritz vectors of the Krylov subspace of g, Θ their Ritz values.

    Args:
        hessian: H, and g ≠ 0 with it.
        most: dimension of the subspace.
        damping: least λ, relative to max |Θ|.
    """

    def __init__(self, hessian: LossHessian, most: int, damping: float) -> None:
        size, gradient = hessian.shape[0], hessian.gradient
        steps = max(1, min(most, size, MEMORY // (size * hessian.dtype.itemsize)))
        start = gradient / torch.linalg.vector_norm(gradient)
        self._values, (self._vectors,), _ = recurrence((hessian,), start.unsqueeze(1), steps).pairs()
        self._slopes = (self._vectors.T @ gradient).cpu().double()
        largest = float(self._values.abs().max())
        self._least = max(damping, torch.finfo(hessian.dtype).eps) * largest
        lowest = float(self._values.min())
        self.curvature = lowest if lowest < -self._least else None
        self.kind = "newton" if self.curvature is None else "negative curvature"

    def within(self, radius: float) -> tuple[torch.Tensor, float, bool]:
        """The step of the least λ that is no longer than ``radius``."""
        lam = self._least
        part = self._part(lam)
        cut = float(torch.linalg.vector_norm(part)) > radius
        if cut:
            lam = self._damping(lam, radius)
            part = self._part(lam)
            part = part * min(1.0, radius / float(torch.linalg.vector_norm(part)))
        decrease = -float(self._slopes @ part + 0.5 * (self._values * part) @ part)
        return self._vectors @ part.to(self._vectors), decrease, cut

    def _part(self, lam: float) -> torch.Tensor:
        weights = self._values.abs() + lam
        return torch.where(self._slopes == 0.0, 0.0, -self._slopes / weights)

    def _damping(self, lam: float, radius: float) -> float:
        """λ with ‖p(λ)‖ = radius: Newton's iteration on 1/‖p‖, which is concave in λ, so that it never overshoots."""
        for _ in range(100):
            if lam == 0.0:  # no curvature at all
                return float(torch.linalg.vector_norm(self._slopes)) / radius
            part = self._part(lam)
            norm = float(torch.linalg.vector_norm(part))
            if not math.isfinite(norm) or norm <= radius * (1.0 + 1e-9):
                break
            fall = float((part.square() / (self._values.abs() + lam)).sum())
            lam += norm**2 / fall * (norm - radius) / radius
        return lam
