"""The Hessian of a loss that has just been computed, from the graph that computing it left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from eigenscope.errors import InputError
from eigenscope.operators.base import LinearOperator
from eigenscope.operators.parameters import Layout

REAL = (torch.float32, torch.float64)


@final
class LossHessian(LinearOperator):
    """∇²f of an evaluated scalar f, n×n over all entries of the parameters, in their order.

    The gradient is kept as a graph, and Hv = ∇(∇f · v) is one more backward pass through it (Pearlmutter, Neural
    Computation 6(1), 1994). The graph lives as long as the operator does. Nothing is evaluated again, so the product is
    that of the batch, the dropout mask and the buffers that f was computed with.

    Args:
        loss: f, one real number with a graph.
        parameters: leaves that f may depend on; those that it does not depend on have zero rows and columns.

    Attributes:
        gradient: (n,) ∇f, without a graph.
        unused: which parameters f does not depend on.

    Raises:
        InputError: no parameters, of several devices or not real single or double precision; the graph was freed, or
            holds an operation without a second derivative.
    """

    def __init__(self, loss: Tensor, parameters: Sequence[Tensor]) -> None:
        self.parameters = tuple(parameters)
        self._layout = Layout(("",) * len(self.parameters), self.parameters)
        dtype, device = _kind(self.parameters)
        super().__init__((self._layout.size, self._layout.size), dtype, device, symmetric=True)
        try:
            self._gradients = torch.autograd.grad(loss, self.parameters, create_graph=True, allow_unused=True)
        except RuntimeError as error:
            raise _explained(error) from error
        if all(part is None for part in self._gradients):
            raise InputError(
                "the loss does not depend on any parameter", where="loss",
                expected="a loss computed from the parameters with gradients enabled",
            )  # fmt: skip
        _check_graph(self._gradients)
        self.unused = tuple(part is None for part in self._gradients)
        self.gradient = self._layout.flat(self._gradients).detach()

    def _matmat(self, X: Tensor) -> Tensor:
        columns = [self._product(X[:, column]) for column in range(X.shape[1])]
        return torch.stack(columns, dim=1) if columns else X.clone()

    def _adjoint(self) -> LinearOperator:
        return self

    def _product(self, vector: Tensor) -> Tensor:
        chosen = [
            (gradient, part)
            for gradient, part in zip(self._gradients, split(vector, self.parameters), strict=True)
            if gradient is not None and gradient.requires_grad
        ]
        if not chosen:  # f is linear in every parameter
            return torch.zeros_like(vector)
        outputs, weights = zip(*chosen, strict=True)
        try:
            products = torch.autograd.grad(outputs, self.parameters, weights, retain_graph=True, allow_unused=True)
        except RuntimeError as error:
            raise _explained(error) from error
        return self._layout.flat(products).detach()


def split(vector: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """The parts of a flat vector (n,) that belong to each parameter, in its shape and dtype."""
    parts = Layout(("",) * len(parameters), tuple(parameters)).split(vector)
    return [part.to(p.dtype) for part, p in zip(parts, parameters, strict=True)]


def _kind(parameters: Sequence[Tensor]) -> tuple[torch.dtype, torch.device]:
    """The widest dtype of the parameters, and their device."""
    if not parameters:
        raise InputError("no parameter requires a gradient", expected="at least one with requires_grad=True")
    for p in parameters:
        if p.dtype not in REAL:
            raise InputError(
                f"a parameter is {p.dtype}", expected="float32 or float64",
                remedy="second derivatives need more digits than half precision has: use model.float()",
            )  # fmt: skip
        if p.device != parameters[0].device:
            raise InputError(f"parameters on {parameters[0].device} and on {p.device}", expected="one device")
    return max((p.dtype for p in parameters), key=lambda dtype: dtype.itemsize), parameters[0].device


def _check_graph(gradients: Sequence[Tensor | None]) -> None:
    """Refuse a graph that ends in a function marked as differentiable once.

    Such a node has no way on to the parameters, so that autograd takes what depends on them through it for constant.
    """
    pending = [part.grad_fn for part in gradients if part is not None and part.grad_fn is not None]
    seen = set(pending)
    while pending:
        node = pending.pop()
        if node.name().rpartition("::")[2] == "Error":
            raise InputError(
                "the loss contains a function that can be differentiated only once", where="loss",
                remedy="use one without once_differentiable",
            )  # fmt: skip
        following = {other for other, _ in node.next_functions if other is not None} - seen
        seen |= following
        pending.extend(following)


def _explained(error: RuntimeError) -> InputError:
    """The same failure, with what to do about it."""
    text = str(error).splitlines()[0]
    if "second time" in text:
        return InputError(
            "the graph of the loss was freed before its second derivatives were taken", where="loss",
            expected="a loss whose graph still exists",
            remedy="return the loss, with or without loss.backward(), but not torch.autograd.backward or .grad",
        )  # fmt: skip
    return InputError(
        f"the loss has no second derivative here: {text}", where="loss",
        remedy="use an operation with a double backward (for attention the math kernel), and no torch.compile",
    )  # fmt: skip
