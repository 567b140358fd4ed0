"""The Hessian of a mean loss, by products only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, final

import torch
from torch import Tensor, nn

from eigenscope.operators.base import LinearOperator
from eigenscope.operators.losses import Count, Loss
from eigenscope.operators.objective import Objective
from eigenscope.operators.parameters import Selection
from eigenscope.operators.undisturbed import undisturbed


@final
class Hessian(LinearOperator):
    """∇²L(θ), of shape (p, p): products by differentiating the gradient once more (Pearlmutter, Neural Computation 6(1), 1994).

    Args:
        objective: L and θ.

    Attributes:
        objective: its ``layout`` says where each parameter lies in a flat vector; ``value`` and ``gradient`` evaluate L.
    """

    def __init__(self, objective: Objective) -> None:
        size = objective.layout.size
        super().__init__((size, size), objective.dtype, objective.device, symmetric=True)
        self.objective = objective
        self._graphs: dict[int, tuple[Tensor | None, ...]] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about what the operator is, and is not."""
        return tuple(self.objective.notes)

    def _matmat(self, X: Tensor) -> Tensor:
        objective = self.objective
        objective.require_unchanged()
        columns = X.mT.contiguous()
        result = torch.zeros_like(columns)
        with undisturbed(objective.model):
            for index in range(len(objective.batches)):
                gradient = self._gradient(index)
                for place, column in enumerate(columns):
                    result[place] += objective.share(index) * self._second(gradient, column)
        return result.mT

    def _second(self, gradient: tuple[Tensor | None, ...], column: Tensor) -> Tensor:
        parts = [
            (first, part) for first, part in zip(gradient, self.objective.layout.split(column))
            if first is not None and first.requires_grad
        ]  # fmt: skip
        if not parts:
            return torch.zeros_like(column)
        outputs, vectors = zip(*parts)
        found = torch.autograd.grad(
            outputs, self.objective.layout.tensors, vectors, retain_graph=True, allow_unused=True
        )
        return self.objective.layout.flat(found)

    def _gradient(self, index: int) -> tuple[Tensor | None, ...]:
        if index not in self._graphs:
            self._graphs[index] = torch.autograd.grad(
                self.objective.loss(index), self.objective.layout.tensors, create_graph=True, allow_unused=True
            )
        return self._graphs[index]

    def _adjoint(self) -> LinearOperator:
        return self


def hessian(
    model: nn.Module, loss: Loss | None, batches: Iterable[Any], *, params: Selection = None, count: Count | None = None,
    dtype: torch.dtype | None = None,
) -> Hessian:  # fmt: skip
    """The Hessian of the mean loss at the model's parameters, as a symmetric operator of shape (p, p).

    Args:
        model: left as it is, bit for bit: parameters, buffers, mode, gradients, random state.
        loss: loss(model, batch) → scalar tensor, the mean over the batch; None for ``model(**batch).loss``.
        batches: a list of batches of any form, of equal size or not.
        params: None for all parameters that require a gradient; a regular expression, names of parameters or modules,
            or a predicate of (name, parameter): then it is that diagonal block.
        count: weight of a batch; None for its labels that are not −100, or its samples.
        dtype: float32 or float64 to compute in; None for that of the parameters.

    Raises:
        InputError: as in :class:`Objective`.
    """
    return Hessian(Objective(model, loss, batches, params, count, dtype))
