"""One measurement, and how it is taken."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from eigenscope.errors import ConvergenceWarning, InputError
from eigenscope.methods.krylov import eigenpairs
from eigenscope.methods.probes import sphere
from eigenscope.methods.trace import hutchinson
from eigenscope.monitor.edges import ADAPTIVE, edge, unwrapped
from eigenscope.operators.base import LinearOperator
from eigenscope.operators.curvature import Hessian, hessian
from eigenscope.operators.preconditioned import preconditioned
from eigenscope.results import Value

TOLERANCE = 1e-2
"""Residual of the eigenvalues relative to the largest: their errors are of its square, or this at most."""
MOST_PRODUCTS = 60
"""For one eigenvalue: a cold start takes about 15, a warm one 5 to 12."""

FRESH = 3.0
"""Part of a random direction in a start, beside 1 of the last eigenvector. With less, an eigenvalue that overtakes the last
one between two measurements, by a quarter, is missed at the first of them in 13 of 40 trials (0.3), in 5 (1) or in 1 (3)."""


@dataclass(frozen=True)
class Reading:
    """What was measured after one step of training.

    Attributes:
        step: how many steps had been made.
        lambda_max: largest eigenvalue of the Hessian of the loss on the monitor's batches.
        lambda_max_bound: some eigenvalue lies within this of it; the residual, and rounding.
        preconditioned: largest eigenvalue of D^-½ H D^-½ (:func:`eigenscope.preconditioned`), where the optimiser adapts
            its rates, or they differ between groups; else None.
        preconditioned_bound: of that one.
        trace: of the Hessian, by Hutchinson's estimator; None where none was asked for.
        trace_stderr: its standard error.
        gradient_norm: on the same batches.
        learning_rate: of the optimiser's first group, after the schedulers that have run; None where it has none.
        edge: the eigenvalue that this learning rate bears (:func:`eigenscope.monitor.edge`); None where it is not known.
        stability: the eigenvalue it bounds, over ``edge``: 1 is the edge of stability.
        products: Hessian products that the measurement took.
        seconds: that it took.
    """

    step: int
    lambda_max: float
    lambda_max_bound: float
    preconditioned: float | None
    preconditioned_bound: float | None
    trace: float | None
    trace_stderr: float | None
    gradient_norm: float
    learning_rate: float | None
    edge: float | None
    stability: float | None
    products: int
    seconds: float

    def figures(self) -> dict[str, Value]:
        """Name → value, in the order of the attributes."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class Meter:
    """Measures, and starts each search where the last one ended.

    Args:
        model, loss, batches, options: as :func:`eigenscope.hessian` takes them.
        optimizer: the live one.
        samples: of the trace; 0 for none.
        seed: of the random vectors.
    """

    def __init__(
        self, model: nn.Module, loss: Any, batches: Iterable[Any], optimizer: Any, samples: int, seed: int, options: dict[str, Any]
    ) -> None:  # fmt: skip
        self.model, self.loss, self.optimizer = model, loss, unwrapped(optimizer)
        # A generator would be used up by the first measurement.
        self.batches = list(batches)
        self.samples, self.options = samples, options
        self.source = torch.Generator().manual_seed(seed)
        self._starts: dict[str, Tensor] = {}
        self._checked = self._told = False

    def measure(self, step: int) -> Reading:
        """Take a reading. The first one verifies the products, too.

        Raises:
            InputError: the loss, the batches or the model cannot be served, as :func:`eigenscope.hessian` says.
        """
        begun = time.perf_counter()
        operator = hessian(self.model, self.loss, self.batches, check=not self._checked, **self.options)
        self._checked = True
        top, top_bound = self._largest("plain", operator)
        sharpest, sharpest_bound = None, None
        found = edge(self.optimizer)
        if isinstance(self.optimizer, ADAPTIVE) or (found is not None and found.preconditioned):
            metric = self._metric(operator)
            sharpest, sharpest_bound = self._largest("preconditioned", metric) if metric else (None, None)
        spread = hutchinson(operator, self.samples, generator=self.source) if self.samples else None
        norm = float(torch.linalg.vector_norm(operator.objective.gradient()))
        limited = None if found is None else sharpest if found.preconditioned else top
        return Reading(
            step, top, top_bound, sharpest, sharpest_bound, spread.value if spread else None,
            spread.stderr if spread and self.samples > 1 else None, norm, _rate(self.optimizer),
            found.value if found else None, limited / found.value if found and limited is not None else None,
            operator.products, time.perf_counter() - begun,
        )  # fmt: skip

    def _metric(self, operator: Hessian) -> LinearOperator | None:
        """The preconditioned Hessian; None, and a warning once, where the optimiser lacks the state of a parameter."""
        try:
            return preconditioned(operator, self.optimizer)
        except InputError as error:
            if not self._told:
                warnings.warn(f"no preconditioned λ_max: {error}", stacklevel=5)
            self._told = True
            return None

    def _largest(self, name: str, operator: LinearOperator) -> tuple[float, float]:
        # From the old eigenvector alone the search would be content with it when another has become larger.
        fresh, old = sphere(operator, 1, self.source), self._starts.get(name)
        with warnings.catch_warnings():
            # What did not converge within the products is told by its bound.
            warnings.simplefilter("ignore", ConvergenceWarning)
            found = eigenpairs(
                operator,
                1,
                tol=TOLERANCE,
                max_products=MOST_PRODUCTS,
                start=fresh if old is None else old + FRESH * fresh,
                generator=self.source,
            )
        if found.right is not None:
            self._starts[name] = found.right
        return float(found.values[0]), float(found.bounds[0])


def _rate(optimizer: Any) -> float | None:
    groups = getattr(optimizer, "param_groups", None)
    return float(groups[0]["lr"]) if groups and "lr" in groups[0] else None
