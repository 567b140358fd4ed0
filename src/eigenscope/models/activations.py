"""What reaches the linear layers of a model: second moments of their inputs over a text, summed as it runs forward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eigenscope.errors import InputError

Batch = Mapping[str, Tensor]
MEMORY = 2 * 10**9
"""Bytes of accumulators held at a time."""


@dataclass(frozen=True)
class Moment:
    """The mean of x xᵀ over the inputs x of one layer.

    Attributes:
        matrix: (n, n) float64, symmetric.
        tokens: how many inputs it is the mean of.
    """

    matrix: Tensor
    tokens: int


def input_moments(
    model: nn.Module, batches: Callable[[], Iterable[Batch]], modules: Sequence[str], *, memory: int = MEMORY
) -> dict[str, Moment]:
    """E[x xᵀ] of the inputs of linear layers, padding left out.

    The model runs forward in evaluation mode without gradients; its mode is put back. Modules that are given one and the same
    tensor (q, k and v) share one accumulator. Where the accumulators of all modules need more than ``memory``, the batches
    are run again for the rest.

    Args:
        model: called with each batch as keywords.
        batches: gives them anew each time it is called; ``attention_mask`` (w, l), where there is one, says which places hold
            a token.
        modules: names of modules whose input is (…, n).
        memory: bytes.

    Returns:
        Name → :class:`Moment`; modules that no batch reached are not in it. Those with a common input share the tensor.

    Raises:
        InputError: no such module, or inputs that are not finite.
    """
    known = dict(model.named_modules())
    for name in modules:
        if name not in known:
            raise InputError(f"no module named {name!r}", where=type(model).__name__, expected="names of its modules")
    training = model.training
    model.eval()
    found: dict[str, Moment] = {}
    try:
        todo = list(modules)
        while todo:
            collector = _Collector(memory)
            with collector.attached({name: known[name] for name in todo}), torch.no_grad():
                for batch in batches():
                    collector.begin(batch.get("attention_mask"))
                    model(**batch)
            found |= collector.moments()
            todo = collector.postponed
    finally:
        model.train(training)
    return found


class _Collector:
    """Sums x xᵀ for the modules that it is attached to, as many as the memory allows."""

    def __init__(self, memory: int) -> None:
        self.left = memory
        self.leaders: dict[str, str] = {}
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.postponed: list[str] = []
        self.mask: Tensor | None = None
        self.last: tuple[str, Tensor] | None = None

    def begin(self, mask: Tensor | None) -> None:
        """A new batch, with the mask of its tokens."""
        self.mask = None if mask is None else mask.bool()
        self.last = None

    @contextmanager
    def attached(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        """Hooks on these modules, for the length of the context."""
        handles = [module.register_forward_pre_hook(self._hook(name)) for name, module in modules.items()]
        try:
            yield
        finally:
            self.last = None
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def see(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs and isinstance(inputs[0], Tensor) and name not in self.postponed:
                self._see(name, inputs[0])

        return see

    def _see(self, name: str, x: Tensor) -> None:
        if name not in self.leaders:
            if self.last is not None and self.last[1] is x:
                self.leaders[name] = self.last[0]
            elif not self._room(name, x.shape[-1]):
                return
        leader = self.leaders[name]
        if leader != name:
            return
        self.last = (name, x)
        masked = self.mask is not None and x.dim() == 3 and x.shape[:2] == self.mask.shape
        rows = (x[self.mask] if masked else x.reshape(-1, x.shape[-1])).float()
        self.sums[name] += (rows.T @ rows).to("cpu", torch.float64)
        self.counts[name] += len(rows)

    def _room(self, name: str, size: int) -> bool:
        needed = 8 * size * size
        # One accumulator at least, or there would be no end.
        if needed > self.left and self.sums:
            self.postponed.append(name)
            return False
        self.left -= needed
        self.leaders[name], self.counts[name] = name, 0
        self.sums[name] = torch.zeros(size, size, dtype=torch.float64)
        return True

    def moments(self) -> dict[str, Moment]:
        """The means."""
        means: dict[str, Moment] = {}
        for name, total in self.sums.items():
            if not bool(torch.isfinite(total).all()):
                raise InputError("inputs that are not finite", where=name, expected="a model that runs on this text")
            if self.counts[name]:
                means[name] = Moment(total / self.counts[name], self.counts[name])
        return {name: means[leader] for name, leader in self.leaders.items() if leader in means}
