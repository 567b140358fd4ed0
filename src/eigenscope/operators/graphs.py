"""Graphs that are kept between products: how large they are, how many fit, and what their errors mean."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from eigenscope.errors import InputError

Graph = TypeVar("Graph")

SHARE = 0.5
"""Part of the free memory that kept graphs may take."""
UNKNOWN_MEMORY = 2**31
"""What they may take where the free memory cannot be found out."""
KINKED = ("Relu", "LeakyRelu", "Rrelu", "Threshold", "Hardtanh", "PreluKernel", "MaxPool1D", "MaxPool2D", "MaxPool3D")


class Graphs(Generic[Graph]):
    """The graph of each batch: kept while the memory allows it, built anew otherwise.

    Args:
        build: makes the graph of a batch from its index.
        tensors: of a graph, those whose history is to be kept.
        outside: tensors that exist anyway, and do not count.
        memory: bytes that kept graphs may take, 0 to keep none; None for half of what is free.
    """

    def __init__(
        self, build: Callable[[int], Graph], tensors: Callable[[Graph], Iterable[Tensor | None]], outside: Iterable[Tensor],
        device: torch.device, memory: int | None,
    ) -> None:  # fmt: skip
        self._build, self._tensors = build, tensors
        self._outside = {tensor.untyped_storage().data_ptr() for tensor in outside}
        self._kept: dict[int, Graph] = {}
        self._last: tuple[int, Graph] | None = None
        self.budget = free_bytes(device) if memory is None else memory
        self.bytes = 0
        """Of the graphs that are kept now."""
        self.operations: frozenset[str] = frozenset()
        """Names of the autograd nodes of the graph that was measured last."""
        self.measured = 0
        """Bytes of that graph."""

    @property
    def kept(self) -> int:
        """How many graphs are kept."""
        return len(self._kept)

    def get(self, index: int) -> Graph:
        """The graph of a batch; it is kept if it still fits, and otherwise until another batch is asked for."""
        if index in self._kept:
            return self._kept[index]
        if self._last is not None and self._last[0] == index:
            return self._last[1]
        self._last = None  # freed before the next one is built
        graph = self._build(index)
        if self.bytes < self.budget or not self.measured:
            self.operations, self.measured = measured(self._tensors(graph), self._outside)
        if self.bytes + self.measured <= self.budget:
            self._kept[index] = graph
            self.bytes += self.measured
        else:
            self._last = (index, graph)
        return graph

    def release(self) -> None:
        """Free the graph that is not kept."""
        self._last = None

    def drop(self) -> None:
        """Free all graphs and keep none from now on."""
        self._kept.clear()
        self._last = None
        self.bytes = self.budget = 0


def measured(tensors: Iterable[Tensor | None], outside: set[int]) -> tuple[frozenset[str], int]:
    """The names of the operations behind ``tensors``, and the bytes of all different storages that they saved."""
    stack = [tensor.grad_fn for tensor in tensors if tensor is not None and tensor.grad_fn is not None]
    seen, names, total = set(stack), set(), 0
    storages = set(outside)
    fields: dict[type, list[str]] = {}
    while stack:
        node: Any = stack.pop()
        kind = type(node)
        names.add(node.name())
        if kind not in fields:
            fields[kind] = [name for name in dir(node) if name.startswith("_saved_") or name == "saved_tensors"]
        for name in fields[kind]:
            for tensor in _saved(node, name):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in storages:
                    storages.add(storage.data_ptr())
                    total += storage.nbytes()
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)
    return frozenset(names), total


def kinks(operations: Iterable[str]) -> list[str]:
    """Those of the operations that are piecewise linear, by their plain names."""
    plain = {re.sub(r"(With\w*)?Backward\d*$", "", name) for name in operations}
    return sorted(name for name in plain if name in KINKED)


def free_bytes(device: torch.device) -> int:
    """Half of the memory that is free on a device, or what is assumed where that is unknown."""
    if device.type == "cuda":
        return int(SHARE * torch.cuda.mem_get_info(device)[0])
    found = [_field("/proc/meminfo", r"MemAvailable:\s+(\d+) kB", 1024)]
    limit, used = (_field(f"/sys/fs/cgroup/memory.{name}", r"^(\d+)$", 1) for name in ("max", "current"))
    if limit is not None and used is not None:
        found.append(max(0, limit - used))
    known = [number for number in found if number is not None]
    return int(SHARE * min(known)) if known else UNKNOWN_MEMORY


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory has run out, on an accelerator or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def explained(error: RuntimeError, where: str) -> InputError | None:
    """What an error of differentiating twice means, and what to do; None for any other error."""
    text = str(error).splitlines()[0] if str(error) else ""
    missing = re.search(r"derivative for '?(?:aten::)?_?(\w+?)'? is not implemented", text)
    if missing:
        name = missing[1].removesuffix("_backward")
        return InputError(
            f"{name} has no second derivative", where=where, expected="operations that can be differentiated twice",
            remedy="replace it (attention: attn_implementation='eager'), or use es.fisher, which does with first derivatives",
        )  # fmt: skip
    if "once_differentiable" in text:
        return InputError(
            "a custom autograd function is marked once_differentiable", where=where,
            remedy="write its backward with differentiable operations, or use es.fisher",
        )  # fmt: skip
    if "modified by an inplace operation" in text:
        return InputError(
            f"a tensor that the gradient needs is overwritten in place ({_after(text, ': ')})", where=where,
            remedy="replace the in-place operation in the model or the loss: x = x + y instead of x += y",
        )  # fmt: skip
    if "second time" in text:
        return InputError(
            "its graph is freed by a backward inside", where=where,
            remedy="return the loss without calling backward; for a derivative inside use"
            " torch.autograd.grad(…, create_graph=True)",
        )  # fmt: skip
    if "use_reentrant=True" in text:
        return InputError(
            "reentrant checkpointing cannot be differentiated twice", where=where, remedy="pass use_reentrant=False"
        )
    return None


def _after(text: str, mark: str) -> str:
    return text.partition(mark)[2].partition(";")[0]


def _saved(node: Any, name: str) -> list[Tensor]:
    try:
        value = getattr(node, name)
    except RuntimeError:  # overwritten in place: the product will say so
        return []
    values = value if isinstance(value, tuple | list) else [value]
    return [item for item in values if isinstance(item, Tensor) and item.layout == torch.strided]


def _field(path: str, pattern: str, unit: int) -> int | None:
    try:
        found = re.search(pattern, Path(path).read_text("ascii"), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * unit if found else None
