"""The Gauss-Newton and Fisher matrices of a mean loss, by products only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeVar, final

import torch
from torch import Tensor, nn

from eigenscope.errors import InputError
from eigenscope.operators.graphs import explained
from eigenscope.operators.likelihood import row_factor, rows
from eigenscope.operators.losses import Count, Loss
from eigenscope.operators.objective import Objective
from eigenscope.operators.outputs import OutputGraph, OutputOperator, Outputs, Parts
from eigenscope.operators.parameters import Selection
from eigenscope.operators.verification import verify

Kind = TypeVar("Kind", bound=OutputOperator)


@final
class GaussNewton(OutputOperator):
    """Jᵀ H_ℓ J, (p, p): the Hessian without the curvature of the outputs (Schraudolph, Neural Computation 14(7), 2002, §2).

    H_ℓ is the second derivative of the loss by the outputs. Positive semidefinite where the loss is convex in them.
    """

    def _middle(self, graph: OutputGraph, images: Parts) -> Parts:
        pairs = [(s, x) for s, x in zip(graph.slope, images) if s.requires_grad]
        if not pairs:  # the loss is linear in the outputs
            return [torch.zeros_like(x) for x in images]
        slopes, vectors = zip(*pairs)
        found = torch.autograd.grad(slopes, graph.outputs, vectors, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(x) if part is None else part for part, x in zip(found, images)]


@final
class Fisher(OutputOperator):
    """Jᵀ (Σ aₙ aₙᵀ) J, (p, p), with aₙ from the gradient of the loss of row n by its outputs.

    "empirical": at the labels of the data, aₙ = √N ∂ℓ/∂zₙ, so that it is the mean of gₙgₙᵀ. "sampled": at labels drawn
    from the model, whose expectation is the Gauss-Newton matrix of a likelihood (Kunstner, Balles & Hennig, NeurIPS 2019,
    eqs. (2), (3), (11); Martens, JMLR 21(146), 2020, §9.2). Where the model holds an operation whose backward has no
    derivative, J v cannot be had from products: the gradients of all rows are then computed one by one, and kept.

    Args:
        kind: "sampled" or "empirical".
        seed: of the labels.
        samples: labels drawn for each row.
    """

    def __init__(
        self, objective: Objective, memory: int | None, outputs: Outputs | None,
        kind: Literal["sampled", "empirical"], seed: int, samples: int,
    ) -> None:  # fmt: skip
        super().__init__(objective, memory, outputs)
        self.kind, self.seed, self.samples = kind, seed, samples
        self.bends = kind == "sampled"
        self.by_rows: bool | None = None
        """Whether the gradients of the rows are kept; None before the first graph."""
        self.note(
            f"Fisher matrix of labels drawn from the model, {samples} a row."
            if kind == "sampled"
            else "Empirical Fisher matrix: of the labels of the data, not of the model; near a fit it is not the Hessian."
        )

    def _data(self, index: int, outputs: Parts, slope: Parts) -> Tensor:
        """(s, N, c): the factors aₙ of s draws."""
        if len(outputs) != 1:
            raise InputError(
                f"the loss calls the model {len(outputs)} times", where=f"loss of batch {index}",
                expected="one call: its rows are the samples", remedy="use gauss_newton, or pass outputs=",
            )  # fmt: skip
        z, s = rows(outputs[0].detach()), rows(slope[0].detach())
        if self.kind == "empirical":
            return s.unsqueeze(0) * math.sqrt(self.objective.weights[index])

        def bend(x: Tensor) -> Tensor:
            (found,) = torch.autograd.grad(slope, outputs, [x.reshape(outputs[0].shape)], retain_graph=True)
            return rows(torch.as_tensor(found))

        if not slope[0].requires_grad:
            raise InputError("it is linear in the outputs", where=f"loss of batch {index}", expected="a log-likelihood")
        return row_factor(z, bend, self.samples, self.seed + index)

    def _build(self, index: int) -> OutputGraph:
        graph = super()._build(index)
        if self.by_rows is None:
            try:
                self._push(graph, torch.zeros(self.layout.size, dtype=self.dtype, device=self.device))
                self.by_rows = False
            except RuntimeError as error:
                reason = explained(error, "model")
                if reason is None:
                    raise
                self.by_rows = True
                self.note(f"{reason.what}: the gradient of each row was computed on its own and kept.")
        if not self.by_rows:
            return graph
        gradients = self._row_gradients(graph, index)
        return OutputGraph([], [s.detach() for s in graph.slope], [], [], (graph.data, gradients))

    def _row_gradients(self, graph: OutputGraph, index: int) -> Tensor:
        """(s·N, p): Jᵀaₙ of every row, over all parameters of the objective."""
        layout, factor, z = self.objective.layout, graph.data.flatten(0, 1), graph.outputs[0]
        needed = len(factor) * layout.size * factor.element_size()
        if needed > self.graphs.budget:
            raise InputError(
                f"the gradients of its {len(factor)} rows need {needed / 2**30:.1f} GiB", where=f"batch {index}",
                expected=f"at most {self.graphs.budget / 2**30:.1f} GiB", remedy="use fewer rows, or fewer parameters",
            )  # fmt: skip
        found = torch.empty(len(factor), layout.size, dtype=self.dtype, device=self.device)
        count = rows(z).shape[0]
        for place, a in enumerate(factor):
            x = torch.zeros_like(rows(z))
            x[place % count] = a
            parts = torch.autograd.grad(z, layout.tensors, x.reshape(z.shape), retain_graph=True, allow_unused=True)
            found[place] = layout.flat(parts)
        return found

    def _product(self, graph: OutputGraph, column: Tensor) -> Sequence[Tensor | None]:
        if not self.by_rows:
            return super()._product(graph, column)
        own = torch.cat([graph.data[1][:, place] for place in self._places()], dim=1)
        return self.layout.split((own @ column) @ own)

    def _places(self) -> list[slice]:
        whole = [place for _, place in self.objective.layout.places()]
        return [whole[place] for place in self._chosen]

    def outputs_now(self) -> Tensor:
        """As in the base; aₙᵀzₙ of each row, with the aₙ that are kept, where the gradients of the rows are."""
        if not self.by_rows:
            return super().outputs_now()
        inner: Tensor = self.graphs.get(0).data[0] * rows(self._evaluated(0)[0][0].detach())
        return inner.sum(dim=2).reshape(-1)

    def pushed(self, v: Tensor) -> Tensor:
        """The derivative of :meth:`outputs_now` along v."""
        if not self.by_rows:
            return super().pushed(v)
        image: Tensor = self.graphs.get(0).data[1] @ v
        return image

    def _middle(self, graph: OutputGraph, images: Parts) -> Parts:
        factor, x = graph.data, rows(images[0])
        inner = (factor * x).sum(dim=2, keepdim=True)
        return [(factor * inner).sum(dim=0).reshape(images[0].shape)]


def gauss_newton(
    model: nn.Module, loss: Loss | None, batches: Iterable[Any], *, params: Selection = None, count: Count | None = None,
    outputs: Outputs | None = None, dtype: torch.dtype | None = None, memory: int | None = None, check: bool = True,
    distributed: bool | None = None,
) -> GaussNewton:  # fmt: skip
    """The generalised Gauss-Newton matrix Jᵀ H_ℓ J of the mean loss, a symmetric operator of shape (p, p).

    Args:
        model, loss, batches, params, count, dtype, memory, distributed: as in :func:`eigenscope.hessian`.
        outputs: outputs(model, batch) → the tensor or tensors z that the loss is a function of; loss(z, batch) is then
            called with them. None to take what the model returns while loss(model, batch) runs: its ``logits``, or its
            last tensor that the loss depends on, of each of its calls.
        check: verify symmetry, and J by a finite difference of the outputs, on the first batch.

    Raises:
        InputError: as in :func:`eigenscope.hessian`, or the loss does not depend on the outputs.
    """
    objective = Objective(model, loss, batches, params, count, dtype, distributed, outputs)
    return _verified(GaussNewton(objective, memory, outputs), check)


def fisher(
    model: nn.Module, loss: Loss | None, batches: Iterable[Any], *, kind: Literal["sampled", "empirical"] = "sampled",
    params: Selection = None, count: Count | None = None, outputs: Outputs | None = None, samples: int = 1,
    generator: torch.Generator | None = None, dtype: torch.dtype | None = None, memory: int | None = None,
    check: bool = True, distributed: bool | None = None,
) -> Fisher:  # fmt: skip
    """The Fisher matrix of the mean loss, a symmetric positive semidefinite operator of shape (p, p).

    A row is one prediction: all dimensions of the outputs but the last count rows, and the loss is a mean over them
    (tokens of a language model; samples of a classifier). For "sampled" the likelihood is recognised by the second
    derivative of the loss by the outputs: softmax cross-entropy, logistic, or squared error (Gaussian).

    Args:
        kind: "sampled": labels drawn from the model; "empirical": those of the data, first derivatives of the loss only.
        samples: labels drawn for each row, ≥ 1.
        generator: seeds the labels; None for a fresh seed, which ``seed`` of the operator tells.
        model, loss, batches, params, count, outputs, dtype, memory, check, distributed: as in
            :func:`eigenscope.gauss_newton`.

    Raises:
        InputError: as there; another kind; several calls of the model; for "sampled" a loss that is no such likelihood.
    """
    if kind not in ("sampled", "empirical"):
        raise InputError(f"kind={kind!r}", where="fisher", expected="sampled or empirical")
    if samples < 1:
        raise InputError(f"samples={samples}", where="fisher", expected="at least 1")
    source = torch.Generator() if generator is None else generator
    if generator is None:
        source.seed()
    seed = int(torch.randint(2**62, (1,), generator=source, device=source.device))
    objective = Objective(model, loss, batches, params, count, dtype, distributed, outputs)
    return _verified(Fisher(objective, memory, outputs, kind, seed, samples), check)


def _verified(operator: Kind, check: bool) -> Kind:
    if check:
        verify(operator, operator.outputs_now, operator.pushed)
    return operator
