"""How fast gradient descent and momentum go down a quadratic valley: best steps, predicted rates, and measured ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from eigenscope.errors import InputError

Method = Literal["gradient descent", "momentum"]
MOST_STEPS = 1_000_000
"""Iterations of a measurement at most: two seconds."""
FADED = {"gradient descent": 10.0, "momentum": 120.0}
"""By how many powers of e a measured error falls. The double root of momentum's extreme modes makes its error
t·ρᵗ, whose slope over the second half is off by 2 ln 2 of these powers; of gradient descent only faster modes must die."""


@dataclass(frozen=True)
class Rates:
    """The best fixed step of both methods on ½ Σ λᵢ xᵢ², μ ≤ λ ≤ L, and what each step then does to the error.

    Attributes:
        smallest, largest: μ and L, both positive.
        condition: κ = L/μ.
        gradient_step: 2/(L + μ).
        gradient_rate: (κ − 1)/(κ + 1), the factor of ‖x‖ per step.
        momentum_step: α = 4/(√L + √μ)².
        momentum: β = ((√κ − 1)/(√κ + 1))².
        momentum_rate: √β, the factor of ‖x‖ per step in the limit.
        step_bound: 2/L, beyond which gradient descent diverges.
    """

    smallest: float
    largest: float
    condition: float
    gradient_step: float
    gradient_rate: float
    momentum_step: float
    momentum: float
    momentum_rate: float
    step_bound: float

    def steps_per_digit(self, method: Method) -> float:
        """Steps that make the error ten times smaller."""
        return steps_per_digit(self.gradient_rate if method == "gradient descent" else self.momentum_rate)


def best(smallest: float, largest: float) -> Rates:
    """Best steps and rates for eigenvalues in [μ, L].

    Gradient descent: Nesterov, Lectures on Convex Optimization, 2nd ed., 2018, Theorem 2.1.15. Heavy ball: Polyak, USSR
    Computational Mathematics and Mathematical Physics 4(5), 1964, §2.

    Args:
        smallest: μ > 0, in units of the loss over those of the parameters squared.
        largest: L ≥ μ.

    Raises:
        InputError: not 0 < μ ≤ L < ∞.
    """
    if not 0.0 < smallest <= largest < math.inf:
        raise InputError(f"eigenvalues from {smallest:g} to {largest:g}", where="rates", expected="0 < μ ≤ L < ∞")
    low, high = math.sqrt(smallest), math.sqrt(largest)
    # (√κ − 1)/(√κ + 1) without the quotient of two large numbers.
    root = (high - low) / (high + low)
    return Rates(
        smallest, largest, largest / smallest, 2.0 / (largest + smallest),
        (largest - smallest) / (largest + smallest), 4.0 / (low + high) ** 2, root**2, root, 2.0 / largest,
    )  # fmt: skip


def steps_per_digit(rate: float) -> float:
    """ln 10 / −ln ρ: 0 where one step is enough, infinite where the error does not fall."""
    if rate <= 0.0:
        return 0.0
    return math.inf if rate >= 1.0 else -math.log(10.0) / math.log(rate)


def measured(eigenvalues: NDArray[np.float64], rates: Rates, method: Method, most: int = MOST_STEPS) -> float | None:
    """The factor of ‖x‖ per step that the method really has on ½ Σ λᵢ xᵢ² with these eigenvalues: it is run.

    From x = (1, …, 1) and at rest, for as many steps as make the error e⁻¹⁰ (momentum: e⁻¹²⁰) of what it was; the rate
    is the mean over the second half. None where that would take more than ``most`` steps.

    Args:
        eigenvalues: (n,) positive.
        rates: of :func:`best`: their steps and momentum are used.
        method: "gradient descent" or "momentum".
        most: steps at most.

    Raises:
        InputError: no eigenvalues, or one that is not positive.
    """
    values = np.asarray(eigenvalues, dtype=np.float64)
    if values.size == 0 or not bool((values > 0.0).all()):
        raise InputError("eigenvalues that are not all positive", where="measured rate", expected="a convex quadratic")
    plain = method == "gradient descent"
    rate = rates.gradient_rate if plain else rates.momentum_rate
    if rate == 0.0:
        return 0.0
    steps = int(max(FADED[method] / -math.log(rate), 40.0)) if rate < 1.0 else most + 1
    if steps > most:
        return None
    scaled = (rates.gradient_step if plain else rates.momentum_step) * values
    return _run(scaled, 0.0 if plain else rates.momentum, steps)


def _run(scaled: NDArray[np.float64], momentum: float, steps: int) -> float:
    """The mean factor of ‖x‖ over the second half of x ← x − αλx + β(x − x₋)."""
    factor = 1.0 + momentum - scaled
    before, now = np.ones_like(scaled), np.ones_like(scaled)
    logarithm, half = 0.0, 0.0
    for step in range(1, steps + 1):
        before, now = now, factor * now - momentum * before
        if step % 64 == 0 or step in (steps // 2, steps):
            size = float(np.sqrt((now * now).sum() + (before * before).sum()))
            if size == 0.0:
                return 0.0
            logarithm += math.log(size)
            now, before = now / size, before / size
            if step == steps // 2:
                half = logarithm
    return math.exp((logarithm - half) / (steps - steps // 2))


def adam_bound(learning_rate: float, beta1: float = 0.9) -> float:
    """(2 + 2β₁)/((1 − β₁)η): above it the preconditioned quadratic is unstable under full-batch Adam.

    Cohen et al., Adaptive Gradient Methods at the Edge of Stability, 2022, §2, on D^-½ H D^-½ with D = √v + eps.

    Raises:
        InputError: η ≤ 0, or β₁ outside [0, 1).
    """
    if not learning_rate > 0.0 or not 0.0 <= beta1 < 1.0:
        raise InputError(f"η = {learning_rate:g}, β₁ = {beta1:g}", where="Adam's bound", expected="η > 0, 0 ≤ β₁ < 1")
    return (2.0 + 2.0 * beta1) / ((1.0 - beta1) * learning_rate)


def adam_learning_rate(largest: float, beta1: float = 0.9) -> float:
    """The learning rate at which λ_max of the preconditioned Hessian meets :func:`adam_bound`; infinite if λ ≤ 0."""
    return math.inf if largest <= 0.0 else adam_bound(largest, beta1)
