"""The Jacobian of a function at a point, by products with it and with its adjoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from eigenscope.errors import InputError
from eigenscope.operators.algebra import Gram
from eigenscope.operators.base import LinearOperator
from eigenscope.operators.graphs import explained
from eigenscope.operators.losses import moved
from eigenscope.operators.parameters import Layout, Selection, chosen
from eigenscope.operators.undisturbed import seed_all, undisturbed

REAL = (torch.float32, torch.float64)


@final
class Jacobian(LinearOperator):
    """∂y/∂x, (m, n): y and x are read in row-major order, several tensors end to end.

    J v is the derivative by u of Jᵀu, which is linear in u (Townsend 2017, "A new trick for calculating Jacobian vector
    products"); Jᵀu is one backward pass. Both graphs are kept.

    Args:
        evaluate: y from the tensors of ``inputs``, with its graph.
        inputs: x, leaves that require a gradient.
        guard: entered around everything that runs the function.

    Attributes:
        value: y, of its own shape.
        layout: names and places of the parts of x.

    Raises:
        InputError: y is not a real tensor that depends on x, or not of the dtype of x.
    """

    def __init__(
        self, evaluate: Callable[[], Any], inputs: Layout, guard: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self.layout, self._guard = inputs, guard
        with guard():
            y = evaluate()
            _check(y, inputs)
            self._output = y
            self._cotangent = torch.zeros_like(y, requires_grad=True)
            try:
                self._pulled = torch.autograd.grad(
                    y, inputs.tensors, self._cotangent, create_graph=True, allow_unused=True
                )
            except RuntimeError as error:
                raise explained(error, "function") or error from error
        super().__init__((y.numel(), inputs.size), y.dtype, y.device)
        self.value = y.detach()

    def _matmat(self, X: Tensor) -> Tensor:
        with self._guard():
            columns = [self._push(column) for column in X.mT.contiguous()]
        return torch.stack(columns, dim=1) if columns else X.new_zeros(self.shape[0], 0)

    def _push(self, column: Tensor) -> Tensor:
        pairs = [
            (part, v) for part, v in zip(self._pulled, self.layout.split(column))
            if part is not None and part.requires_grad
        ]  # fmt: skip
        if not pairs:
            return column.new_zeros(self.shape[0])
        parts, vectors = zip(*pairs)
        try:
            (found,) = torch.autograd.grad(parts, self._cotangent, vectors, retain_graph=True)
        except RuntimeError as error:
            raise explained(error, "function") or error from error
        image: Tensor = found.reshape(-1)
        return image

    def pull(self, u: Tensor) -> Tensor:
        """Jᵀu, (n,)."""
        with self._guard():
            found = torch.autograd.grad(
                self._output, self.layout.tensors, u.reshape(self._output.shape), retain_graph=True, allow_unused=True
            )
        return self.layout.flat(found)

    def _adjoint(self) -> LinearOperator:
        return JacobianAdjoint(self)


@final
class JacobianAdjoint(LinearOperator):
    """Jᵀ, (n, m): one backward pass a column.

    Args:
        jacobian: J.
    """

    def __init__(self, jacobian: Jacobian) -> None:
        super().__init__((jacobian.shape[1], jacobian.shape[0]), jacobian.dtype, jacobian.device)
        self.jacobian = jacobian

    def _matmat(self, X: Tensor) -> Tensor:
        columns = [self.jacobian.pull(column) for column in X.mT.contiguous()]
        return torch.stack(columns, dim=1) if columns else X.new_zeros(self.shape[0], 0)

    def _adjoint(self) -> LinearOperator:
        return self.jacobian


def jacobian(f: Callable[..., Any], x: Any, *, params: Selection | bool = False) -> Jacobian:
    """The Jacobian of f at x as an operator.

    Args:
        f: a function of a tensor, or a module. Of what a module returns the ``logits``, where there are any, are y.
        x: where. A tensor; with ``params`` anything that f takes, a mapping as keyword arguments.
        params: False for ∂f/∂x; otherwise f is a module, and its Jacobian by its parameters: True for all that require a
            gradient, or a selection as in :func:`eigenscope.hessian`.

    Returns:
        (m, n) operator, m = number of entries of f(x), in row-major order. A module, its buffers, mode and random state
        are left as they are.

    Raises:
        InputError: x is not a real tensor, f(x) is none or does not depend on x, or f has no derivative.
    """
    module = f if isinstance(f, nn.Module) else None

    @contextmanager
    def guard() -> Iterator[None]:
        with undisturbed(module if module is not None else nn.Module()):
            seed_all(0)
            yield

    if params is not False:
        if module is None:
            raise InputError(f"f is a {type(f).__name__}", where="jacobian by parameters", expected="an nn.Module")
        inputs, _ = chosen(module, None if params is True else params)
        given = moved(x, inputs.tensors[0].device, None)
    else:
        if not isinstance(x, Tensor) or x.dtype not in REAL:
            got = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"x is {got}", where="jacobian", expected="a float32 or float64 tensor")
        with torch.inference_mode(False):
            given = x.detach().clone().requires_grad_()
        inputs = Layout(("x",), (given,))

    def evaluate() -> Any:
        found = f(**given) if isinstance(given, Mapping) else f(given)
        return getattr(found, "logits", found)

    return Jacobian(evaluate, inputs, guard)


def tangent_kernel(model: nn.Module, x: Any, *, params: Selection = None) -> Gram:
    """The neural tangent kernel J Jᵀ of a model at its parameters, (m, m) over all entries of its outputs.

    Jacot, Gabriel & Hongler, "Neural tangent kernel", NeurIPS 2018, eq. (4); for c outputs of N samples, m = N·c.

    Args:
        model, x, params: as in :func:`jacobian`.

    Raises:
        InputError: as there.
    """
    return Gram(jacobian(model, x, params=True if params is None else params).T)


def _check(y: Any, inputs: Layout) -> None:
    if not isinstance(y, Tensor) or not y.is_floating_point():
        got = str(y.dtype) if isinstance(y, Tensor) else type(y).__name__
        raise InputError(f"it returns {got}", where="function", expected="one real tensor")
    if not y.requires_grad:
        raise InputError("its value does not depend on x", where="function", remedy="avoid detach, item and no_grad")
    dtypes = {tensor.dtype for tensor in inputs.tensors} | {y.dtype}
    if len(dtypes) > 1 or y.dtype not in REAL:
        raise InputError(
            f"dtypes {', '.join(sorted(map(str, dtypes)))}", where="function", expected="float32 or float64 throughout"
        )
    if not bool(y.isfinite().all()):
        raise InputError("its value is not finite", where="function")
