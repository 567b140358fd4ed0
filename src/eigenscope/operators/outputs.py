"""The outputs of a model inside its loss: found, differentiated, and products with their Jacobian."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eigenscope.errors import InputError
from eigenscope.operators.loss_operator import LossOperator
from eigenscope.operators.objective import Objective

Outputs = Callable[[nn.Module, Any], Tensor | Sequence[Tensor]]
"""outputs(model, batch) → z; the loss is then called as loss(z, batch)."""
Parts = list[Tensor]

OTHERWISE = 1e-3
"""Part of the gradient that may come to the parameters by another way than the outputs before it is mentioned."""


@dataclass(frozen=True)
class OutputGraph:
    """The graph of one batch.

    Attributes:
        outputs: z, one tensor for each call of the model.
        slope: ∂ℓ/∂z, with a graph where second derivatives are wanted.
        cotangents: u, for the product with J by differentiating Jᵀu by u.
        pulled: Jᵀu, one for each parameter of the objective; None where no output depends on it.
        data: what the subclass needs besides.
    """

    outputs: Parts
    slope: Parts
    cotangents: Parts
    pulled: Sequence[Tensor | None]
    data: Any = None


class OutputOperator(LossOperator):
    """Σ Jᵀ M J over the batches: J is the Jacobian of the outputs by the parameters, M acts on the outputs of one batch.

    J v is the derivative by u of the linear Jᵀu, so that everything is a backward pass (Townsend 2017, "A new trick for
    calculating Jacobian vector products").
    """

    bends = True
    """Whether M needs the second derivative of the loss by the outputs."""

    def __init__(self, objective: Objective, memory: int | None, outputs: Outputs | None) -> None:
        super().__init__(objective, memory)
        self._outputs = outputs

    @abstractmethod
    def _middle(self, graph: OutputGraph, images: Parts) -> Parts:
        """M x for x = J v."""

    def _data(self, index: int, outputs: Parts, slope: Parts) -> Any:
        """What M needs of a batch besides; nothing here."""

    def _build(self, index: int) -> OutputGraph:
        outputs, loss = self._evaluated(index)
        slope = torch.autograd.grad(loss, outputs, create_graph=self.bends, retain_graph=True, allow_unused=True)
        used = [(z, s) for z, s in zip(outputs, slope) if s is not None]
        outputs, slope_used = [z for z, _ in used], [s for _, s in used]
        data = self._data(index, outputs, slope_used)
        cotangents = [torch.zeros_like(z, requires_grad=True) for z in outputs]
        pulled = torch.autograd.grad(
            outputs, self.objective.layout.tensors, cotangents, create_graph=True, allow_unused=True
        )
        self.remember_unused(pulled)
        return OutputGraph(outputs, slope_used, cotangents, pulled, data)

    def _evaluated(self, index: int) -> tuple[Parts, Tensor]:
        """The outputs that the loss of a batch was computed from, and that loss."""
        objective = self.objective
        if self._outputs is not None:
            found = self._outputs(objective.model, objective.batch(index))
            outputs = [found] if isinstance(found, Tensor) else list(found)
            loss = objective.loss(index, found)
        else:
            calls: list[Parts] = []
            with _watched(objective.model, calls):
                loss = objective.loss(index)
            candidates = [z for call in calls for z in call]
            reached = torch.autograd.grad(loss, candidates, retain_graph=True, allow_unused=True) if candidates else ()
            depends = {id(z) for z, part in zip(candidates, reached) if part is not None}
            # The last of a call's outputs on which the loss depends: earlier ones may reach it through the later.
            outputs = [used[-1] for call in calls if (used := [z for z in call if id(z) in depends])]
        if not outputs:
            raise InputError(
                "the loss does not depend on what the model returns", where=f"loss of batch {index}",
                expected="a loss of the model's outputs", remedy="pass outputs=, a function of (model, batch)",
            )  # fmt: skip
        return outputs, loss

    def _roots(self, graph: OutputGraph) -> list[Tensor | None]:
        return [*graph.slope, *graph.pulled]

    def _product(self, graph: OutputGraph, column: Tensor) -> Sequence[Tensor | None]:
        return self._pull(graph, self._middle(graph, self._push(graph, column)))

    def _push(self, graph: OutputGraph, column: Tensor) -> Parts:
        """J v."""
        own = [graph.pulled[place] for place in self._chosen]
        pairs = [
            (part, v) for part, v in zip(own, self.layout.split(column)) if part is not None and part.requires_grad
        ]
        if not pairs:
            return [torch.zeros_like(u) for u in graph.cotangents]
        parts, vectors = zip(*pairs)
        found = torch.autograd.grad(parts, graph.cotangents, vectors, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(u) if part is None else part for part, u in zip(found, graph.cotangents)]

    def _pull(self, graph: OutputGraph, x: Parts) -> Sequence[Tensor | None]:
        """Jᵀ x, a tensor for each parameter."""
        return torch.autograd.grad(graph.outputs, self.layout.tensors, x, retain_graph=True, allow_unused=True)

    def outputs_now(self) -> Tensor:
        """The outputs of the first batch, flat; inside :func:`undisturbed` only."""
        return torch.cat([z.detach().reshape(-1) for z in self._evaluated(0)[0]])

    def pushed(self, v: Tensor) -> Tensor:
        """J v for the first batch, flat; and a note where the loss depends on the parameters otherwise, too."""
        graph = self.graphs.get(0)
        whole = self.objective.batch_gradient(0)
        through = self.layout.flat(self._pull(graph, [s.detach() for s in graph.slope]))
        size = float(torch.linalg.vector_norm(whole))
        missing = float(torch.linalg.vector_norm(whole - through))
        if missing > OTHERWISE * size:
            self.note(
                f"{missing / size:.2g} of the gradient reaches the parameters by another way than the model's outputs"
                " (a penalty, a second use of them): that part of the loss is not in the operator."
            )
        return torch.cat([part.reshape(-1) for part in self._push(graph, v)])


@contextmanager
def _watched(model: nn.Module, calls: list[Parts]) -> Iterator[None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        found = _tensors(output)
        if found:
            calls.append(found)

    handle = model.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _tensors(output: Any) -> Parts:
    """The outputs that a loss may be computed from: the logits where they are named, else all but scalars."""
    if isinstance(output, Tensor):
        found: list[Any] = [output]
    elif hasattr(output, "logits"):
        found = [output.logits]
    elif isinstance(output, Mapping):
        found = [output["logits"]] if "logits" in output else list(output.values())
    else:
        found = list(output) if isinstance(output, tuple | list) else []
    return [z for z in found if isinstance(z, Tensor) and z.requires_grad and (z.ndim or len(found) == 1)]
