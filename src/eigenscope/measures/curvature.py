"""What the ends of a Hessian's spectrum say about the point: which kind of critical point, with what certainty."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from eigenscope.errors import InputError

Kind = Literal["not a critical point", "minimum", "maximum", "saddle", "degenerate", "undecided"]
GRADIENT_TOLERANCE = 1e-6
"""Default of :func:`gradient_test`."""
CHAIN = 100.0
"""Roundings that a product goes through one after the other, generously."""
CERTAINTY = 0.99
"""Of the statements about eigenvalues that an iteration did not see."""


@dataclass(frozen=True)
class GradientTest:
    """Whether the gradient is zero, as far as the arithmetic and the data can tell.

    Attributes:
        norm: ‖∇L‖, of the whole data.
        tolerance: below it the point counts as critical.
        move: ‖∇L‖/(max |λ|·‖θ‖): in a quadratic model with this curvature, the least relative change of the parameters
            that makes the gradient zero. None where max |λ| or ‖θ‖ is 0.
        noise: standard error of ‖∇L‖ over the batches: the root of the summed variances of the mean of their gradients;
            None with one batch.
        critical: norm ≤ tolerance.
        within_noise: the norm is no more than two standard errors: on other data of the same kind it may be zero.
    """

    norm: float
    tolerance: float
    move: float | None
    noise: float | None
    critical: bool
    within_noise: bool


def gradient_test(
    norm: float, largest: float, size: float, noise: float | None, eps: float, tol: float = GRADIENT_TOLERANCE
) -> GradientTest:
    """Judge a gradient by the curvature and the size of the parameters, so that no unit enters.

    ‖∇L‖ = ‖H d‖ ≤ max |λ|·‖d‖ for the step d to the critical point of a quadratic: a smaller norm than
    tol·max |λ|·‖θ‖ may be a relative change of less than ``tol``. The rounding of the parameters alone makes a gradient
    of eps·max |λ|·‖θ‖, so that the tolerance is no less than eight times that.

    Args:
        norm: ‖∇L‖.
        largest: max |λ| of the Hessian.
        size: ‖θ‖.
        noise: standard error of the gradient, or None.
        eps: rounding unit of the arithmetic.
        tol: relative change of the parameters that does not count.

    Raises:
        InputError: a negative or NaN tol.
    """
    if not tol >= 0.0:
        raise InputError(f"tol = {tol}", where="gradient test", expected="a relative change ≥ 0")
    unit = largest * size
    tolerance = max(tol, 8.0 * eps) * unit
    return GradientTest(
        norm, tolerance, norm / unit if unit > 0.0 else None, noise, norm <= tolerance,
        noise is not None and norm <= 2.0 * noise,
    )  # fmt: skip


def gradient_noise(squares: NDArray[np.float64], weights: NDArray[np.float64]) -> float | None:
    """Standard error of the weighted mean ḡ of per-batch gradients gᵢ: the root of the summed variances of its entries.

    √(Σ wᵢ²‖gᵢ − ḡ‖²/(1 − Σ wᵢ²)): exact in the mean where gᵢ has a variance proportional to 1/wᵢ, as a mean over wᵢ
    samples has, and batches are of one size.

    Args:
        squares: (b,) ‖gᵢ − ḡ‖².
        weights: (b,) summing to 1.

    Returns:
        None with fewer than two batches.
    """
    if len(weights) < 2:
        return None
    return math.sqrt(float((weights**2 * squares).sum()) / (1.0 - float((weights**2).sum())))


@dataclass(frozen=True)
class Signs:
    """How many eigenvalues are certainly of each sign.

    Attributes:
        negative, positive: at least so many.
        zero: of a complete spectrum, those that cannot be told from zero; 0 otherwise.
        floor: |λ| that the rounding of the products may have made.
        complete: whether these are all.
    """

    negative: int
    positive: int
    zero: int
    floor: float
    complete: bool


def rounding_floor(largest: float, size: int, eps: float) -> float:
    """(√n + 100)·eps·max |λ|: what rounding may add to a Rayleigh quotient.

    √n for its sum of n terms, by the probabilistic bound of Higham & Mary, SIAM J. Sci. Comput. 41(5), 2019, Theorem 3.1
    (the worst case, n, is never seen); 100 for the operations that a product itself goes through.
    """
    return (math.sqrt(size) + CHAIN) * eps * largest


def signs(values: NDArray[np.float64], floor: float, complete: bool) -> Signs:
    """Certain signs from Rayleigh-Ritz values of orthonormal vectors.

    Where k of them are negative, H is negative definite on a subspace of dimension k, so that it has at least k negative
    eigenvalues, converged or not (Courant & Fischer: Horn & Johnson, Matrix Analysis, 2nd ed., Theorem 4.2.6); the same
    for positive ones.

    Args:
        values: (k,) Ritz values, or all eigenvalues.
        floor: of the rounding.
        complete: whether they are all eigenvalues.
    """
    negative, positive = int((values < -floor).sum()), int((values > floor).sum())
    return Signs(negative, positive, len(values) - negative - positive if complete else 0, floor, complete)


@dataclass(frozen=True)
class Unseen:
    """How far an eigenvalue that Lanczos did not see may lie beyond the extreme Ritz values.

    Attributes:
        share: ε, of the spread λ_max − λ_min.
        low, high: no eigenvalue lies outside, with the probability stated.
        certainty: of both ends together.
        steps, starts: of the recurrences.
    """

    share: float
    low: float
    high: float
    certainty: float
    steps: int
    starts: int


def missed_probability(share: float, size: int, steps: int) -> float:
    """Bound on the chance that k Lanczos steps from a random vector leave (λ_max − θ_max) > ε(λ_max − λ_min).

    1.648 √n exp(−√ε (2k − 1)), for every symmetric matrix and a start uniform on the sphere: Kuczyński & Woźniakowski,
    SIAM J. Matrix Anal. Appl. 13(4), 1992, Theorem 4.2, on H − λ_min I, which has the same Krylov spaces.

    Args:
        share: ε in (0, 1).
        size: n.
        steps: k ≥ 1.
    """
    if steps >= size:
        return 0.0
    return min(1.0, 1.648 * math.sqrt(size) * math.exp(-math.sqrt(share) * (2 * steps - 1)))


def unseen(
    smallest: float, largest: float, size: int, steps: int, starts: int, certainty: float = CERTAINTY
) -> Unseen | None:
    """Where all eigenvalues lie with the probability ``certainty``, from the extreme Ritz values of independent starts.

    Each start misses with the chance of :func:`missed_probability`, all of them with its power; each end gets half of
    1 − certainty. With S = λ_max − λ_min ≤ (θ_max − θ_min)/(1 − 2ε).

    Args:
        smallest, largest: θ_min and θ_max over all starts.
        size: n.
        steps: Lanczos steps of each start, before any restart.
        starts: independent random starts.
        certainty: of the statement.

    Returns:
        None where the steps are too few for any statement.
    """
    if steps >= size:
        return Unseen(0.0, smallest, largest, 1.0, steps, starts)
    chance = ((1.0 - certainty) / 2.0) ** (1.0 / starts)
    root = math.log(1.648 * math.sqrt(size) / chance) / (2 * steps - 1)
    share = root**2
    if share >= 0.25:
        return None
    reach = share / (1.0 - 2.0 * share) * (largest - smallest)
    return Unseen(share, smallest - reach, largest + reach, certainty, steps, starts)


@dataclass(frozen=True)
class Verdict:
    """What kind of point this is.

    Attributes:
        kind: the verdict.
        sentence: the same in words, with the figures it rests on.
        index: negative eigenvalues, at least.
        exact_index: whether ``index`` is their number.
        certainty: probability that the verdict holds; 1 where it is a theorem up to rounding.
        gradient: the test of the gradient.
        signs: the signs that are certain.
        unseen: what the iteration may have missed, or None.
    """

    kind: Kind
    sentence: str
    index: int
    exact_index: bool
    certainty: float
    gradient: GradientTest
    signs: Signs
    unseen: Unseen | None


def judge(gradient: GradientTest, found: Signs, smallest: float, largest: float, reach: Unseen | None) -> Verdict:
    """The verdict: the gradient first, then the signs, then what was not seen.

    A minimum is claimed where every eigenvalue is above the rounding, a saddle where both signs are certain. Eigenvalues
    that cannot be told from zero make the point degenerate: the second derivatives do not decide. Where an iteration saw
    one sign only, and what it may have missed reaches across zero, it is undecided.

    Args:
        gradient: of :func:`gradient_test`.
        found: of :func:`signs`.
        smallest, largest: extreme Ritz values.
        reach: of :func:`unseen`; None for nothing known, or a complete spectrum.
    """
    certain = 1.0 if found.complete or reach is None else reach.certainty
    if not gradient.critical:
        kind: Kind = "not a critical point"
        return Verdict(
            kind, _not_critical(gradient, found), found.negative, found.complete, 1.0, gradient, found, reach
        )
    if found.negative and found.positive:
        kind, sentence, certain = "saddle", _saddle(found), 1.0
    elif found.complete:
        kind, sentence = _complete(found, smallest, largest)
    else:
        kind, sentence = _one_sign(found, smallest, largest, reach)
    if kind in ("undecided", "degenerate") and not found.complete:
        certain = 0.0 if reach is None else reach.certainty
    return Verdict(kind, sentence, found.negative, found.complete, certain, gradient, found, reach)


def _not_critical(gradient: GradientTest, found: Signs) -> str:
    text = f"Not a critical point: ‖∇L‖ = {gradient.norm:.3g}"
    text += f", where {gradient.tolerance:.2g} would be zero" if gradient.tolerance > 0.0 else ""
    if gradient.within_noise:
        text += f"; within the noise of the batches, ±{gradient.noise:.2g}: on more data it may be one"
    if found.negative:
        few = "" if found.complete else "at least "
        text += f". The loss curves down in {few}{_counted(found.negative)}"
    elif found.complete and not found.zero:
        text += ". The loss curves up in every direction"
    else:
        text += ". No direction in which it curves down was found"
    return text + "."


def _saddle(found: Signs) -> str:
    few = "" if found.complete else "at least "
    return f"Saddle: the loss falls along {few}{_counted(found.negative)} and rises along {few}{found.positive:,}."


def _complete(found: Signs, smallest: float, largest: float) -> tuple[Kind, str]:
    if not found.zero:
        if found.negative:
            return "maximum", f"Maximum: every eigenvalue is negative, the largest {largest:.4g}."
        return "minimum", f"Minimum: every eigenvalue is positive, the smallest {smallest:.4g}."
    if found.negative or found.positive:
        side, other = ("negative", "maximum") if found.negative else ("positive", "minimum")
        return "degenerate", (
            f"Degenerate: {_counted(found.zero, 'eigenvalue')} cannot be told from zero (|λ| ≤ {found.floor:.2g}), the other"
            f" {found.negative + found.positive:,} are {side}: the second derivatives do not decide whether it is a {other}."
        )
    return "degenerate", "Degenerate: no eigenvalue can be told from zero, so that higher derivatives decide."


def _one_sign(found: Signs, smallest: float, largest: float, reach: Unseen | None) -> tuple[Kind, str]:
    if reach is not None and reach.low > found.floor:
        return (
            "minimum",
            f"Minimum: no eigenvalue is below {reach.low:.3g}, with a chance of {100.0 * reach.certainty:g} %.",
        )
    if reach is not None and reach.high < -found.floor:
        return (
            "maximum",
            f"Maximum: no eigenvalue is above {reach.high:.3g}, with a chance of {100.0 * reach.certainty:g} %.",
        )
    seen = (
        "No negative eigenvalue" if found.positive else "No positive eigenvalue" if found.negative else "No eigenvalue"
    )
    beyond = "."
    if reach is not None:
        end = f"below {reach.low:.3g}" if found.positive or not found.negative else f"above {reach.high:.3g}"
        beyond = f"; none lies {end}, with a chance of {100.0 * reach.certainty:g} %."
    return "undecided", f"Undecided: {seen[0].lower()}{seen[1:]} was found{beyond}"


def _counted(count: int, noun: str = "direction") -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
