"""What the Hessian, the Gauss-Newton matrix and the Fisher matrix share: batches, kept graphs, blocks, bookkeeping."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eigenscope.errors import InputError
from eigenscope.operators.base import LinearOperator
from eigenscope.operators.graphs import Graphs, explained, kinks, out_of_memory
from eigenscope.operators.objective import Objective
from eigenscope.operators.parameters import Layout
from eigenscope.operators.undisturbed import undisturbed

Parts = Sequence[Tensor | None]


@dataclass(frozen=True)
class Check:
    """What was verified on one batch when an operator was made.

    Attributes:
        symmetry: |uᵀHw − wᵀHu| / (‖u‖‖Hw‖ + ‖w‖‖Hu‖) for two vectors.
        difference: ‖Hw − D‖/‖D‖, where D is a central finite difference: of the gradient for a Hessian, of the outputs
            (and then of Jw) for what is made of the outputs' Jacobian. None where D itself did not settle.
        products: that it took.
    """

    symmetry: float
    difference: float | None
    products: int


@dataclass(frozen=True)
class Cost:
    """What a product takes.

    Attributes:
        seconds: of a product with one vector, over all batches; None before there was one.
        gradient_seconds: of a gradient, over all batches; None where nothing was checked.
        graph_bytes: of the graphs of all batches, were they all kept; forecast from those that were measured.
        kept: batches whose graph is kept.
        batches: all of them.
        budget: bytes that kept graphs may take.
    """

    seconds: float | None
    gradient_seconds: float | None
    graph_bytes: int
    kept: int
    batches: int
    budget: int


class LossOperator(LinearOperator):
    """A symmetric operator Σ wᵢ Aᵢ / Σ wᵢ, where Aᵢ is made from the graph of the loss of batch i.

    Args:
        objective: the loss, its data, and the parameters.
        memory: bytes that kept graphs may take; None for half of what is free, 0 to build them for every product.

    Attributes:
        layout: the parameters of the rows, with names and places in a flat vector.
        originals: the same of the model as it was given, where ``layout`` is that of a copy.
        check: what was verified, or None.
    """

    def __init__(self, objective: Objective, memory: int | None) -> None:
        size = objective.layout.size
        super().__init__((size, size), objective.dtype, objective.device, symmetric=True)
        self.objective = objective
        self.layout, self.originals = objective.layout, objective.originals
        self.check: Check | None = None
        self.gradient_seconds: float | None = None
        self._chosen = list(range(len(self.layout.names)))
        held = [*objective.model.parameters(), *objective.model.buffers()]
        self.graphs: Graphs[Any] = Graphs(self._build, self._roots, held, objective.device, memory)
        self._extra: list[str] = []
        self._unused: set[str] | None = None
        self._busy = 0.0
        self._rounds = 0

    @abstractmethod
    def _build(self, index: int) -> Any:
        """The graph of a batch."""

    @abstractmethod
    def _roots(self, graph: Any) -> Iterable[Tensor | None]:
        """The tensors whose history a graph is."""

    @abstractmethod
    def _product(self, graph: Any, column: Tensor) -> Parts:
        """Aᵢ v, a tensor for each parameter of the layout; None for zeros."""

    def remember_unused(self, parts: Parts) -> None:
        """Keep the names of the parameters that no batch so far depends on; ``parts`` has None for those.

        Raises:
            InputError: it depends on none of them.
        """
        if all(part is None for part in parts):
            raise InputError(
                f"it does not depend on any of the {len(parts)} parameters chosen", where="loss",
                expected="a function of the parameters of the model that it is given",
                remedy="compute it from its argument, which in another precision is a copy of the model",
            )  # fmt: skip
        names = {name for name, part in zip(self.objective.layout.names, parts) if part is None}
        self._unused = names if self._unused is None else self._unused & names

    def note(self, sentence: str) -> None:
        """Add to what is said about the operator."""
        self._extra.append(sentence)

    def embedded(self, v: Tensor) -> Tensor:
        """A vector of this block, (p,), as one of all parameters of the objective, zero outside."""
        parts: list[Tensor | None] = [None] * len(self.objective.layout.names)
        for place, part in zip(self._chosen, self.layout.split(v)):
            parts[place] = part
        return self.objective.layout.flat(parts)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about what the operator is, and is not."""
        found = kinks(self.graphs.operations)
        notes = [*self.objective.notes, *self._extra]
        if self._unused:
            names = sorted(self._unused & set(self.layout.names))
            notes.append(f"The loss does not depend on {', '.join(names)}: their rows are zero.")
        if found:
            notes.append(
                f"{', '.join(found)} is piecewise linear: the operator is that of the smooth piece around the parameters,"
                " and knows nothing of the kinks."
            )
        return tuple(dict.fromkeys(notes))

    @property
    def cost(self) -> Cost:
        """What a product takes, as far as it is known."""
        objective, graphs = self.objective, self.graphs
        share = sum(objective.weights[: graphs.kept]) or objective.weights[0]
        known = graphs.bytes if graphs.kept else graphs.measured
        return Cost(
            seconds=self._busy / self._rounds if self._rounds else None, gradient_seconds=self.gradient_seconds,
            graph_bytes=round(known * sum(objective.weights) / share), kept=graphs.kept, batches=len(objective.batches),
            budget=graphs.budget,
        )  # fmt: skip

    def block(self, names: Iterable[str]) -> LossOperator:
        """The diagonal block of some of the parameters, in this order of theirs; the graphs are shared with it.

        Args:
            names: of parameters in the layout.

        Raises:
            InputError: none, or one that is not in the layout.
        """
        wanted = set(names)
        unknown = sorted(wanted - set(self.layout.names))
        if unknown or not wanted:
            raise InputError(
                f"{', '.join(unknown) or 'no names'} in a block", where=repr(self), expected="names in its layout"
            )
        block = object.__new__(type(self))
        block.__dict__.update(self.__dict__)
        places = [place for place, name in enumerate(self.layout.names) if name in wanted]
        block.layout, block.originals = (
            Layout(tuple(whole.names[place] for place in places), tuple(whole.tensors[place] for place in places))
            for whole in (self.layout, self.originals)
        )
        block._chosen = [self._chosen[place] for place in places]
        block.shape = (block.layout.size, block.layout.size)
        block.products = block._rounds = 0
        block._busy = 0.0
        return block

    def blocks(self, by: str = "layer") -> dict[str, LossOperator]:
        """Diagonal blocks that together hold every parameter once: of each "layer", "module" or "parameter".

        A layer is a name up to its first number (``encoder.layer.3``), or else the module that holds the parameter.

        Raises:
            InputError: another ``by``.
        """
        if by not in ("layer", "module", "parameter"):
            raise InputError(f"by={by!r}", where="blocks", expected="layer, module or parameter")
        groups: dict[str, list[str]] = {}
        for name in self.layout.names:
            groups.setdefault(_group(name, by), []).append(name)
        return {key: self.block(names) for key, names in groups.items()}

    def batch_product(self, index: int, column: Tensor) -> Tensor:
        """Aᵢ v, (p,); inside :func:`undisturbed` only.

        Raises:
            InputError: an operation that cannot be differentiated twice, or a graph that does not fit into memory.
        """
        return self.layout.flat(self._parts(index, column))

    def _parts(self, index: int, column: Tensor) -> Parts:
        """Aᵢ v; where memory runs out the kept graphs are given up, and it is tried once more."""
        try:
            return self._product(self.graphs.get(index), column)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise explained(error, f"loss of batch {index}") or error from error
        self.graphs.drop()
        self.note("Memory ran out: the graphs are built anew for every product.")
        try:
            return self._product(self.graphs.get(index), column)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise InputError(
                "memory ran out with the graph of this batch alone",
                where=f"batch {index}",
                remedy="cut it into smaller ones",
            ) from error

    def _matmat(self, X: Tensor) -> Tensor:
        objective = self.objective
        objective.require_unchanged()
        objective.group.require_same(X)
        if X.shape[1] == 0:
            return X.clone()
        start = time.perf_counter()
        with undisturbed(objective.model):
            columns = X.mT.contiguous()
            result = torch.zeros_like(columns)
            for index in range(len(objective.batches)):
                for total, column in zip(result, columns):
                    self.layout.add(total, self._parts(index, column), objective.share(index))
            self.graphs.release()
        result = objective.group.sum(result)
        self._busy += time.perf_counter() - start
        self._rounds += X.shape[1]
        return result.mT

    def _adjoint(self) -> LinearOperator:
        return self


def _group(name: str, by: str) -> str:
    if by == "parameter":
        return name
    parts = name.split(".")
    number = next((place for place, part in enumerate(parts[:-1]) if part.isdigit()), None)
    if by == "layer" and number is not None:
        return ".".join(parts[: number + 1])
    return ".".join(parts[:-1]) or name
