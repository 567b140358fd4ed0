"""The Hessian of a mean loss, by products only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, final

import torch
from torch import Tensor, nn

from eigenscope.operators.loss_operator import LossOperator
from eigenscope.operators.losses import Count, Loss
from eigenscope.operators.objective import Objective
from eigenscope.operators.parameters import Selection
from eigenscope.operators.verification import verify

Gradient = tuple[Tensor | None, ...]


@final
class Hessian(LossOperator):
    """∇²L(θ), (p, p): products by differentiating the gradient once more (Pearlmutter, Neural Computation 6(1), 1994).

    The graph of the gradient is kept between products, which then cost less than two gradients each. Forward-mode and
    vmapped second derivatives are avoided: through LayerNorm and BatchNorm in training they give other numbers.
    """

    def _build(self, index: int) -> Gradient:
        loss = self.objective.loss(index)
        gradient = torch.autograd.grad(loss, self.objective.layout.tensors, create_graph=True, allow_unused=True)
        self.remember_unused(gradient)
        return gradient

    def _roots(self, graph: Gradient) -> Gradient:
        return graph

    def _product(self, graph: Gradient, column: Tensor) -> Gradient:
        own = [graph[place] for place in self._chosen]
        pairs = [
            (part, v) for part, v in zip(own, self.layout.split(column)) if part is not None and part.requires_grad
        ]
        if not pairs:  # the loss is linear in all of them
            return (None,) * len(own)
        outputs, vectors = zip(*pairs)
        return torch.autograd.grad(outputs, self.layout.tensors, vectors, retain_graph=True, allow_unused=True)


def hessian(
    model: nn.Module, loss: Loss | None, batches: Iterable[Any], *, params: Selection = None, count: Count | None = None,
    dtype: torch.dtype | None = None, memory: int | None = None, check: bool = True, distributed: bool | None = None,
) -> Hessian:  # fmt: skip
    """The Hessian of the mean loss at the model's parameters, as a symmetric operator of shape (p, p).

    Args:
        model: left as it is, bit for bit: parameters, buffers, mode, gradients, random state.
        loss: loss(model, batch) → scalar tensor, the mean over the batch; None for ``model(**batch).loss``.
        batches: a list of batches of any form, of equal size or not.
        params: None for all parameters that require a gradient; a regular expression, names of parameters or modules,
            or a predicate of (name, parameter): then it is that diagonal block.
        count: weight of a batch; None for its labels that are not −100, or its samples.
        dtype: float32 or float64 to compute in; None for that of the parameters, float32 for half precision.
        memory: bytes that kept graphs may take; None for half of what is free, 0 for none.
        check: verify symmetry and a finite difference of the gradient on the first batch: 2 products, 2 to 6 gradients.
        distributed: None to sum over the processes of torch.distributed where it is initialised.

    Raises:
        InputError: as in :class:`Objective`; an operation without a second derivative, a loss that is not the same when
            it is evaluated again, or a check that fails.
    """
    operator = Hessian(Objective(model, loss, batches, params, count, dtype, distributed), memory)
    if check:
        verify(operator, lambda: operator.objective.batch_gradient(0))
    return operator
