"""What is tried on an operator before it is used: the same loss twice, symmetry, and a finite difference."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from eigenscope.errors import InputError
from eigenscope.operators.graphs import explained, kinks
from eigenscope.operators.loss_operator import Check, LossOperator
from eigenscope.operators.objective import Objective
from eigenscope.operators.undisturbed import seed_all, undisturbed

ROUNDINGS = 1e3
"""By how many roundings two evaluations of the same number may differ."""
DEVIATION = 0.02
"""Relative deviation from a finite difference that counts as agreement: silently wrong products are 1–30 % off."""
SETTLED = 0.005
"""A finite difference that changes by less from one step to the next is trusted."""
STEPS = (1.0, 0.1, 10.0)
"""Tried in turn, in units of the step at which the function changes by a cube root of eps of itself: there the rounding
and the third derivative do about the same harm to a central difference."""


def verify(
    operator: LossOperator, evaluate: Callable[[], Tensor], derivative: Callable[[Tensor], Tensor] | None = None
) -> None:
    """Verify an operator on its first batch, and keep the figures in ``operator.check``.

    The direction of the finite difference is half gradient, half random: curvature is large along the gradient, so that
    the difference stands out of the rounding.

    Args:
        operator: A, not used so far.
        evaluate: on the first batch, the function whose derivative along w is known.
        derivative: that derivative, from w; None where it is A w.

    Raises:
        InputError: in every process, where the loss differs from one evaluation to the next, or A is not symmetric, not
            finite, or contradicts the finite difference.
    """
    objective, failure = operator.objective, None
    try:
        with undisturbed(objective.model):
            start = time.perf_counter()
            value, gradient = objective.batch_slope(0)
            operator.gradient_seconds = (time.perf_counter() - start) * sum(objective.weights) / objective.weights[0]
            _require_same_again(operator, value)
            source = torch.Generator().manual_seed(0)
            u, w = (_random(operator.shape[0], source, gradient) for _ in range(2))
            length = torch.linalg.vector_norm(gradient)
            w = w + gradient / length if float(length) > 0.0 else w
            images = [operator.batch_product(0, vector) for vector in (u, w)]
            symmetry = _asymmetry(operator, u, w, images)
            expected = images[1] if derivative is None else derivative(w)
            size = float(torch.linalg.vector_norm(gradient if derivative is None else evaluate()))
            difference = _difference(operator, w, expected, size, evaluate)
        operator.check = Check(symmetry, difference, 2)
    except RuntimeError as error:
        failure = explained(error, "loss of batch 0")
        if failure is None:
            raise
        failure.__cause__ = error
    except InputError as error:
        failure = error
    objective.group.require_all(failure, objective.device)
    operator.verified = True


def _require_same_again(operator: LossOperator, first: float) -> None:
    """The same loss once more from the same random state, and a note where it draws from it."""
    objective = operator.objective
    second = float(objective.loss(0).detach())
    after = _random_state(objective)
    seed_all(0)
    if after != _random_state(objective):
        operator.note(
            "The loss draws random numbers: they are the same in every product, and the operator is that of one draw"
            " (model.eval() switches dropout off that is no module)."
        )
    if abs(first - second) > ROUNDINGS * torch.finfo(objective.dtype).eps * abs(first):
        raise InputError(
            f"it is {first:.9g} and, evaluated again, {second:.9g}", where="loss of batch 0",
            expected="the same number from the same parameters and data",
            remedy="look for state that it changes, data that are shuffled or augmented, or a kernel that is not"
            " deterministic (torch.use_deterministic_algorithms)",
        )  # fmt: skip


def _random_state(objective: Objective) -> tuple[object, ...]:
    states = [torch.get_rng_state()]
    if objective.device.type == "cuda":
        states.append(torch.cuda.get_rng_state(objective.device))
    numpy = np.random.get_state()
    return *(state.numpy().tobytes() for state in states), numpy[1].tobytes(), numpy[2], random.getstate()  # type: ignore[index]


def _random(size: int, source: torch.Generator, like: Tensor) -> Tensor:
    vector = torch.randn(size, generator=source, dtype=like.dtype)
    unit: Tensor = vector / torch.linalg.vector_norm(vector)
    return unit.to(like.device)


def _asymmetry(operator: LossOperator, u: Tensor, w: Tensor, images: list[Tensor]) -> float:
    u, w, Hu, Hw = (vector.cpu().double() for vector in (u, w, *images))
    if not bool(Hu.isfinite().all() and Hw.isfinite().all()):
        raise InputError(
            "a product is not finite", where=repr(operator),
            remedy="an operation has an infinite second derivative here (a square root or norm of 0, a logarithm of 0)",
        )  # fmt: skip
    norm = torch.linalg.vector_norm
    size = float(norm(u) * norm(Hw) + norm(w) * norm(Hu))
    found = abs(float(u @ Hw - w @ Hu)) / size if size else 0.0
    single = ROUNDINGS * torch.finfo(torch.float32).eps
    if operator.dtype == torch.float64 and ROUNDINGS * torch.finfo(torch.float64).eps < found <= single:
        operator.note(
            f"Products are symmetric to {found:.0e} only: the model computes in part in single precision (normalisations and"
            " softmax of transformers do)."
        )
    elif found > ROUNDINGS * torch.finfo(operator.dtype).eps:
        raise InputError(
            f"its products are not symmetric: uᵀHw and wᵀHu differ by {found:.1e} of ‖u‖‖Hw‖", where=repr(operator),
            expected=f"at most {ROUNDINGS * torch.finfo(operator.dtype).eps:.0e}",
            remedy="the backward of a custom operation is wrong, or not deterministic; dtype=torch.float64 tells rounding",
        )  # fmt: skip
    return found


def _difference(
    operator: LossOperator, w: Tensor, expected: Tensor, size: float, evaluate: Callable[[], Tensor]
) -> float | None:
    """‖expected − D‖/‖D‖ for the first central difference D along w that agrees or settles."""
    objective = operator.objective
    root = torch.finfo(objective.dtype).eps ** (1 / 3)
    whole = float(torch.stack(objective.norms()).norm()) or 1.0
    rate, largest = float(torch.linalg.vector_norm(expected)), root * whole
    # At a critical point the function has no size: a step that the parameters do not resolve would tell nothing.
    least = root**1.5 * whole
    unit = max(min(root * size / rate, largest), least) if rate and size else largest
    shift = operator.embedded(w)
    first, deviation, change = None, math.inf, math.inf
    for factor in STEPS:
        step = factor * unit
        with objective.shifted(step * shift):
            found = evaluate()
        with objective.shifted(-step * shift):
            found = (found - evaluate()) / (2.0 * step)
        away = _relative(expected, found)
        if away <= DEVIATION:
            return away
        if first is None:
            first, deviation = found, away
        elif _relative(found, first) < change:
            deviation, change = away, _relative(found, first)
    if change > SETTLED or kinks(operator.graphs.operations):
        operator.note(
            f"A finite difference did not confirm the products: it is {deviation:.0%} away, and"
            + (" changes with its step." if change > SETTLED else " kinks change it.")
        )
        return None
    raise InputError(
        f"a product is {deviation:.1%} away from the finite difference, which changes by {change:.1%} with its step",
        where=repr(operator), expected=f"{DEVIATION:.0%} at most",
        remedy="an operation of the model or the loss has a wrong second derivative (a custom autograd function, or one"
        " marked once_differentiable): replace it",
    )  # fmt: skip


def _relative(one: Tensor, other: Tensor) -> float:
    size = float(torch.linalg.vector_norm(other))
    away = float(torch.linalg.vector_norm(one - other))
    return away / size if size else (0.0 if away == 0.0 else math.inf)
