"""The positive part of a Hessian's spectrum: how narrow the valley is, what step sizes it bears, how fast one goes down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eigenscope.measures import rates
from eigenscope.measures.rates import Rates

QUICK = 100_000
"""Steps of a method that is run beside an analysis at most: a fraction of a second."""


@dataclass(frozen=True)
class Valley:
    """The condition of the positive eigenvalues.

    Attributes:
        rates: best steps and predicted rates between the smallest and the largest of them.
        exact: whether the smallest is known; otherwise it is no larger than the one used, and κ at least that.
        gradient_measured, momentum_measured: factor of ‖x‖ per step, of the methods run on the spectrum; None where that
            would take too many steps.
        spectrum: how many eigenvalues, or Ritz values, they were run on.
    """

    rates: Rates
    exact: bool
    gradient_measured: float | None
    momentum_measured: float | None
    spectrum: int


def smallest_positive(rules: Sequence[NDArray[np.float64]], floor: float) -> float | None:
    """A number that some positive eigenvalue does not exceed: the second smallest positive Ritz value of a Krylov space.

    Between two neighbouring Ritz values of a Krylov space lies an eigenvalue (Szegő, Orthogonal Polynomials, Theorem
    3.41.2: a distribution is not constant between two nodes of its Gauss rule); so one is above the smallest positive
    Ritz value and below the second.

    Args:
        rules: the Ritz values of each Krylov space, on its own.
        floor: what rounding may have made.

    Returns:
        None where no rule has two positive values.
    """
    found = [np.sort(rule[rule > floor])[1] for rule in rules if int((rule > floor).sum()) > 1]
    return float(min(found)) if found else None


def valley(values: NDArray[np.float64], smallest: float, exact: bool) -> Valley | None:
    """Rates of gradient descent and momentum between ``smallest`` and the largest value, predicted and measured.

    Args:
        values: (k,) eigenvalues, or Ritz values that stand for them; those below ``smallest`` are left out.
        smallest: μ > 0.
        exact: whether it is the smallest positive eigenvalue.

    Returns:
        None where no value is as large.
    """
    kept = np.unique(np.append(values[values >= smallest], smallest))
    if not len(kept):
        return None
    best = rates.best(float(kept[0]), float(kept[-1]))
    plain = rates.measured(kept, best, "gradient descent", QUICK)
    return Valley(best, exact, plain, rates.measured(kept, best, "momentum", QUICK), len(kept))
