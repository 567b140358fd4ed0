"""The trust-region method around both optimisers: how far a step may go, whether it is kept, and how saddles are left."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from eigenscope.errors import InputError
from eigenscope.methods.lanczos import MEMORY, recurrence
from eigenscope.methods.probes import sphere
from eigenscope.operators.evaluated import LossHessian
from eigenscope.optim.objective import Closure, Objective

ACCEPT = 1e-4
"""Least ratio of the actual to the predicted decrease of a step that is kept."""
REJECTIONS = 30
"""Trial points of one step: the last is 4⁻³⁰ of the radius away."""
ESCAPE_STEPS = 40
"""Lanczos steps that look for negative curvature at a critical point."""
PROBES = 8
"""Lengths at which a point without gradient and curvature is probed, each a quarter of the one before."""


class Path(Protocol):
    """Steps from a point, by how far one may go."""

    @property
    def kind(self) -> str:
        """As in :class:`Step`."""

    @property
    def curvature(self) -> float | None:
        """The most negative Rayleigh quotient of H seen on the way, None where none was negative."""

    def within(self, radius: float) -> tuple[Tensor, float, bool]:
        """The step (n,) of norm ≤ radius, the decrease of the model there, and whether the radius cut it short."""


@dataclass(frozen=True)
class Step:
    """What the last step did.

    Attributes:
        kind: "newton", "boundary" (cut short by the radius), "negative curvature", "escape" (from a critical point along
            the most negative curvature), "probe" (from one without curvature), or "none" where nothing was better.
        loss: f where the step began, weight decay included.
        gradient_norm: there.
        predicted: decrease of f by its quadratic model.
        actual: decrease of f.
        norm: length of the step, 0 where it was not taken.
        radius: of the trust region after it.
        curvature: the most negative Ritz value that was seen, or None where none was.
    """

    kind: str
    loss: float
    gradient_norm: float
    predicted: float
    actual: float
    norm: float
    radius: float
    curvature: float | None


class TrustRegion(Optimizer):
    """Nocedal & Wright, Numerical Optimization, 2nd ed., 2006, Algorithm 4.1, and a step out of saddles.

    Where the gradient is small, the leftmost Ritz pair of H is looked for, by Lanczos from a random vector; where
    stepping along it promises more than the usual step, that is done (as in Royer, O'Neill & Wright, Math. Program. 180,
    2020, Algorithm 3). A negative Ritz value is a Rayleigh quotient of H: negative curvature is never invented.
    Decreases are compared with a slack of ten roundings of f, so that steps near a minimum are not refused for noise
    (Conn, Gould & Toint, Trust-Region Methods, 2000, §17.4.2).

    Everything is relative to f and to the largest gradient seen: multiplying the loss by a number changes no step.
    """

    last: Step | None = None

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        for name in ("radius", "max_radius"):
            if not defaults[name] > 0.0:
                raise InputError(f"{name} = {defaults[name]}", expected="a positive length")
        if not 0.0 <= defaults["tolerance"] < 1.0:
            raise InputError(f"tolerance = {defaults['tolerance']}", expected="0 ≤ tolerance < 1")
        if not defaults["max_products"] >= 1:
            raise InputError(f"max_products = {defaults['max_products']}", expected="at least 1")
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; ``weight_decay`` may differ between groups, everything else is the optimiser's.

        Raises:
            InputError: another option differs, or a negative weight decay.
        """
        super().add_param_group(param_group)
        first, added = self.param_groups[0], self.param_groups[-1]
        for name in self.defaults:
            if name != "weight_decay" and added[name] != first[name]:
                raise InputError(
                    f"{name} is {first[name]!r} in one group and {added[name]!r} in another",
                    expected="one value: a step is one vector over all groups",
                )  # fmt: skip
        if not added["weight_decay"] >= 0.0:
            raise InputError(f"weight_decay = {added['weight_decay']}", expected="a number ≥ 0")

    @abstractmethod
    def _path(self, hessian: LossHessian, radius: float, largest: float) -> Path:
        """The method's steps, for a gradient that is not 0; ``largest`` is the norm of the largest one seen."""

    def step(self, closure: Closure) -> Any:  # type: ignore[override]
        """One step, downhill or none.

        Args:
            closure: computes the loss of one and the same batch, see the package's docstring.

        Returns:
            What the closure returned where the step began, without a graph.

        Raises:
            InputError: no closure, a loss that is not one finite real number, or without a second derivative.
        """
        objective = Objective(closure, self.param_groups)
        value, hessian = objective.expand()
        state = self._state()
        norm = float(torch.linalg.vector_norm(hessian.gradient))
        state["largest"] = max(state["largest"], norm)
        with torch.no_grad():
            path = self._chosen(hessian, value, norm, state)
            self.last = self._search(objective, path, value, state) if path else _nothing(state["radius"])
        self.last = replace(self.last, loss=value, gradient_norm=norm)
        if self.last.kind in ("escape", "probe"):
            state["checked"] = math.inf
        state["steps"] += 1
        state["losses"] += objective.evaluations
        state["products"] += hessian.products
        return objective.returned

    def _state(self) -> dict[str, Any]:
        """What is carried from step to step: plain numbers, kept where ``torch.optim.LBFGS`` keeps its own."""
        first = self.param_groups[0]
        state: dict[str, Any] = self.state[first["params"][0]]
        if not state:
            state.update(radius=float(first["radius"]), largest=0.0, checked=math.inf, steps=0, losses=0, products=0)
        return state

    def _source(self, state: dict[str, Any]) -> torch.Generator:
        return torch.Generator().manual_seed(self.param_groups[0]["seed"] + state["steps"])

    def _chosen(self, hessian: LossHessian, value: float, norm: float, state: dict[str, Any]) -> Path | None:
        """The usual steps, or those out of a saddle, by the decrease that they promise within the radius."""
        radius, largest = state["radius"], state["largest"]
        if norm > self.param_groups[0]["tolerance"] * largest:
            state["checked"] = math.inf
            return self._path(hessian, radius, largest)
        usual = self._path(hessian, radius, largest) if norm > 0.0 else None
        if norm > 0.1 * state["checked"]:
            return usual
        state["checked"] = norm
        lowest, highest, direction = _leftmost(hessian, self._source(state))
        if usual is None and lowest == highest == 0.0:
            return _Probe(sphere(hessian, 1, self._source(state))[:, 0])
        if lowest >= -100.0 * torch.finfo(hessian.dtype).eps * max(highest, -lowest):
            return usual
        slope = float(direction @ hessian.gradient)
        escape = _Escape(-direction if slope > 0.0 else direction, -abs(slope), lowest)
        promised = usual.within(radius)[1] if usual else 0.0
        return escape if escape.within(radius)[1] > max(promised, _slack(value, hessian.dtype)) else usual

    def _search(self, objective: Objective, path: Path, value: float, state: dict[str, Any]) -> Step:
        """Shrink the radius until a step is worth keeping; where none is, the parameters stay and so does the radius."""
        origin, radius = objective.here(), state["radius"]
        try:
            kept = self._tried(objective, path, value, origin, radius)
        except BaseException:
            objective.move(origin)
            raise
        if kept is None:
            objective.move(origin)
            return replace(_nothing(radius), curvature=path.curvature)
        state["radius"] = kept.radius
        return kept

    def _tried(self, objective: Objective, path: Path, value: float, origin: Tensor, radius: float) -> Step | None:
        smallest = torch.finfo(origin.dtype).eps * float(torch.linalg.vector_norm(origin))
        slack, probing = _slack(value, origin.dtype), path.kind == "probe"
        for _ in range(PROBES if probing else REJECTIONS):
            step, predicted, cut = path.within(radius)
            length = float(torch.linalg.vector_norm(step))
            # A step below the rounding of the parameters changes nothing that a trial could tell.
            if not smallest < length < math.inf:
                return None
            for sign in (1.0, -1.0) if probing else (1.0,):
                actual = value - objective.at(origin + sign * step)
                ratio = float(actual > slack) if probing else (actual + slack) / (predicted + slack)
                if ratio >= ACCEPT:
                    grown = min(2.0 * radius, self.param_groups[0]["max_radius"]) if cut else radius
                    after = grown if ratio > 0.75 else 0.25 * length if ratio < 0.25 else radius
                    kind = "boundary" if cut and path.kind == "newton" else path.kind
                    return Step(kind, value, 0.0, predicted, actual, length, after, path.curvature)
            radius = 0.25 * length
        return None


def _leftmost(hessian: LossHessian, generator: torch.Generator) -> tuple[float, float, Tensor]:
    """The smallest and the largest Ritz value, and the unit vector (n,) of the smallest, from a random start."""
    size = hessian.shape[0]
    steps = max(1, min(ESCAPE_STEPS, size, MEMORY // (size * hessian.dtype.itemsize)))
    values, (vectors,), _ = recurrence((hessian,), sphere(hessian, 1, generator), steps).pairs()
    return float(values.min()), float(values.max()), vectors[:, int(values.argmin())]


def _slack(value: float, dtype: torch.dtype) -> float:
    return 10.0 * torch.finfo(dtype).eps * abs(value)


def _nothing(radius: float) -> Step:
    return Step("none", 0.0, 0.0, 0.0, 0.0, 0.0, radius, None)


@dataclass(frozen=True)
class _Escape:
    """Steps ±r·v along a direction of negative curvature, downhill: slope gᵀv ≤ 0, curvature vᵀHv < 0."""

    direction: Tensor
    slope: float
    curvature: float
    kind: str = "escape"

    def within(self, radius: float) -> tuple[Tensor, float, bool]:
        return radius * self.direction, -radius * (self.slope + 0.5 * radius * self.curvature), True


@dataclass(frozen=True)
class _Probe:
    """Steps of which the model says nothing: gradient and Hessian are 0, higher derivatives decide."""

    direction: Tensor
    curvature: float | None = None
    kind: str = "probe"

    def within(self, radius: float) -> tuple[Tensor, float, bool]:
        return radius * self.direction, 0.0, False
