"""From what was found about a loss to sentences a person can act on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from eigenscope.measures import rates
from eigenscope.measures.rates import steps_per_digit
from eigenscope.measures.slices import Escape
from eigenscope.measures.valley import Valley
from eigenscope.results import Share


@dataclass(frozen=True)
class Metric:
    """The Hessian in the metric of Adam.

    Attributes:
        source: whose second moments these are.
        largest: λ_max of D^-½ H D^-½.
        residual: of that pair.
        smallest: its smallest eigenvalue found.
        valley: of its positive part, or None.
        beta1: of Adam.
        edge: (2 + 2β₁)/((1 − β₁)η) for the learning rate given, or None.
        learning_rate: at which λ_max meets the edge.
    """

    source: str
    largest: float
    residual: float
    smallest: float
    valley: Valley | None
    beta1: float
    edge: float | None
    learning_rate: float


def on_steps(largest: float, bound: float, learning_rate: float | None) -> list[str]:
    """What gradient descent bears: 2/λ_max (Cauchy 1847; Cohen et al., ICLR 2021, for networks)."""
    if largest <= 0.0:
        return ["No positive curvature was found: no learning rate is too large for the quadratic model here."]
    text = f"Gradient descent is stable below a learning rate of 2/λ max = {2.0 / largest:.3g} (λ max = {_with(largest, bound)})"
    if learning_rate is None:
        return [text + "."]
    ratio = learning_rate * largest / 2.0
    side = "at the edge of stability" if 0.9 <= ratio <= 1.1 else "above it" if ratio > 1.0 else "below it"
    return [f"{text}; yours, {learning_rate:.3g}, is {ratio:.2g} of that: {side}."]


def on_momentum(found: Valley | None, seen: int) -> list[str]:
    """Best heavy ball, and how many steps a digit costs with and without.

    Args:
        found: the positive part, or None.
        seen: how many positive Ritz values there are.
    """
    if found is None:
        return (
            [f"Too little of the positive part was seen ({seen:,} Ritz values) to bound its condition."] if seen else []
        )
    best = found.rates
    few = "" if found.exact else "at least "
    lines = [
        f"The positive part has a condition number κ of {few}{best.condition:.3g}: eigenvalues from"
        f" {best.smallest:.3g} to {best.largest:.3g}."
    ]
    plain = _per_digit(best.gradient_rate, found.gradient_measured)
    heavy = _per_digit(best.momentum_rate, found.momentum_measured)
    lines.append(
        f"On the quadratic, a digit costs gradient descent {plain} at its best step {best.gradient_step:.3g}, and heavy"
        f" ball {heavy} at step {best.momentum_step:.3g} and momentum {best.momentum:.4g}"
        + ("." if found.exact else "; flatter directions take longer than this.")
    )
    return lines


def _per_digit(rate: float, measured: float | None) -> str:
    if rate == 0.0:
        return "one step"
    text = f"{_steps(steps_per_digit(rate))} steps"
    return text if measured is None else f"{text} (run: {_steps(steps_per_digit(measured))})"


def on_metric(metric: Metric | None, before: Valley | None, learning_rate: float | None) -> list[str]:
    """How far Adam's preconditioner spheres the valley, and what learning rate it bears."""
    if metric is None:
        return []
    lines = []
    if metric.valley is not None and before is not None:
        after = metric.valley.rates.condition
        few = "" if before.exact and metric.valley.exact else "at least "
        factor = before.rates.condition / after
        way = f"{factor:.3g} times rounder" if factor >= 1.0 else f"{1.0 / factor:.3g} times narrower"
        lines.append(
            f"In the metric of {metric.source} κ is {few}{after:.3g} where it was {few}{before.rates.condition:.3g}: the"
            f" valley is {way}."
        )
    text = f"Full-batch Adam (β₁ = {metric.beta1:g}) is stable below a learning rate of {metric.learning_rate:.3g}"
    text += f", where λ max = {metric.largest:.4g} of the preconditioned Hessian meets (2 + 2β₁)/((1 − β₁)η)"
    if learning_rate is not None and metric.edge is not None:
        text += f"; at yours, {learning_rate:.3g}, that is {metric.largest / metric.edge:.2g} of the bound"
    if metric.largest > 0.0:
        lines.append(text + ".")
    return lines


def on_escape(way: Escape | None, loss: float) -> list[str]:
    """The way down, checked."""
    if way is None:
        return []
    if way.reach == 0.0:
        return [
            f"Along the most negative curvature (λ = {_signed(way.eigenvalue)}) the loss did not fall as its second derivative"
            " promises: it is of the size of rounding, or changes within the first step."
        ]
    share = f", {100.0 * abs(way.decrease / loss):.2g} % of it" if loss else ""
    best = f" The lowest point on that line is {way.best:.3g} down." if way.best > way.decrease else ""
    return [
        f"Down along the most negative curvature (λ = {_signed(way.eigenvalue)}): a step of {way.reach:.3g} promises"
        f" {way.promised_at_reach:.3g} and takes {way.decrease:.3g} off the loss{share}.{best}"
    ]


def on_negative(share: Share | None, size: int, at_least: int) -> list[str]:
    """How many eigenvalues are negative, as a density sees it."""
    if share is None:
        return []
    low, high = max(math.floor(share.low * size), at_least), math.ceil(share.high * size)
    if share.low == share.high:
        return [f"{low:,} of {size:,} eigenvalues are negative."]
    return [
        f"About {100.0 * share.value:.3g} % of the eigenvalues are negative (between {100.0 * share.low:.3g} and"
        f" {100.0 * share.high:.3g} %): an index from {low:,} to {high:,}."
    ]


def on_sharpness(radius: float, first: float, second: float, seen: float, invariant: float | None) -> list[str]:
    """What the loss can rise by in a ball: arguments as the attributes of the figures."""
    text = f"Within a distance of {radius:g} the loss can rise by {second:.3g} by its model (first order: {first:.3g}); {seen:.3g} was measured"
    if invariant is not None:
        text += f". With weights moved in proportion to their own size, λ max is {invariant:.3g}"
    return [text + "."]


def adam_metric(
    source: str, largest: float, residual: float, smallest: float, valley: Valley | None, learning_rate: float | None,
    beta1: float,
) -> Metric:  # fmt: skip
    """The figures of :class:`Metric`, with Adam's bound on the learning rate (Cohen et al. 2022)."""
    edge = rates.adam_bound(learning_rate, beta1) if learning_rate is not None else None
    return Metric(source, largest, residual, smallest, valley, beta1, edge, rates.adam_learning_rate(largest, beta1))


def _with(value: float, bound: float) -> str:
    return f"{value:.6g} ± {bound:.1g}"


def _signed(value: float) -> str:
    return f"{value:.3g}".replace("-", "−", 1)


def _steps(number: float) -> str:
    if not math.isfinite(number):
        return "∞"
    return f"{number:.2f}" if number < 10.0 else f"{number:,.0f}" if number < 1e6 else f"{number:.2e}"
