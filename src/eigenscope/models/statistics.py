"""Second moments of what enters each layer and of the loss's gradient at what leaves it, over a text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from eigenscope.errors import InputError
from eigenscope.models.lowrank import CONVOLUTIONS, matrix_of

BLOCK = 192
"""Columns of a moment that are summed at a time, of which only the rows from the diagonal on: half the products of all."""

Batch = Mapping[str, Tensor]
Objective = Callable[[nn.Module, Any], Sequence[Tensor]]
"""model, batch → scalars with the gradients of a loss summed over samples, its labels drawn from the model itself."""


@dataclass
class Moments:
    """What is known of a set of layers.

    Attributes:
        leaders: layer → the layer whose inputs stand for its own: those that are given the same tensor share them.
        inputs: leader → (n, n) float32 mean of x xᵀ over positions.
        outputs: layer → (m, m) float32 mean of g gᵀ over positions and draws of labels; empty without gradients, and none of a
            layer that the loss does not depend on.
        positions: layer → how many positions reached it; 0 where none did, and then it has no moments.
        repeated: layers that were called more than once in a pass, whose moments are over all calls.
    """

    leaders: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    repeated: tuple[str, ...] = ()


def call(model: nn.Module, batch: Any) -> Any:
    """The model's outputs: a mapping is given by keyword, of a tuple or list the first item, anything else as it is."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch[0] if isinstance(batch, tuple | list) else batch)


def collect_moments(
    model: nn.Module, names: Sequence[str], batches: Iterable[Any], objective: Objective | None, *,
    leaders: Mapping[str, str] | None = None, progress: Callable[[], None] = lambda: None,
) -> Moments:  # fmt: skip
    """Run the batches through the model, and the loss back, and sum the moments of the named layers.

    The model is in evaluation mode for the time, so that dropout is off, and is left as it was found.

    Args:
        model: of which nothing is changed.
        names: linear and convolution layers.
        batches: as :func:`call` takes them; an ``attention_mask`` (w, l) in a mapping says which positions count.
        objective: None for inputs alone, without a backward pass.
        leaders: of an earlier call; None finds them by the first batch.
        progress: called after each batch.

    Raises:
        InputError: no batches, or a moment that is not finite, with the layer's name.
    """
    moments = Moments()
    counts, gradients = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    backbone = _backbone(model, names)
    with _prepared(model):
        iterator = iter(batches)
        first = next(iterator, None)
        if first is None:
            raise InputError("no batches", where="calibration", expected="at least one")
        if leaders is None:
            leaders, moments.repeated = _find_leaders(model, names, _first_sample(first))
        moments.leaders = dict(leaders)
        handles = [
            model.get_submodule(name).register_forward_hook(
                _Collector(name, leaders[name] == name, moments, counts, None if objective is None else gradients), with_kwargs=True
            )
            for name in names if name in leaders
        ]  # fmt: skip
        try:
            for batch in _chained(first, iterator):
                mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
                _Collector.mask = None if mask is None or bool(mask.all()) else mask.bool()
                if objective is None:
                    with torch.no_grad():
                        call(backbone, batch)
                else:
                    with torch.enable_grad():
                        losses = objective(model, batch)
                        for place, loss in enumerate(losses, 1):
                            torch.autograd.backward(loss, retain_graph=place < len(losses))
                progress()
        finally:
            _Collector.mask = None
            for handle in handles:
                handle.remove()
    return _finished(moments, names, counts, gradients)


def _finished(moments: Moments, names: Sequence[str], counts: dict[str, int], gradients: dict[str, int]) -> Moments:
    moments.positions = {name: counts.get(moments.leaders.get(name, name), 0) for name in names}
    for sums, rows, kind in ((moments.inputs, counts, "inputs"), (moments.outputs, gradients, "output gradients")):
        for name, total in sums.items():
            total /= max(rows[name], 1)
            total.copy_(total.tril() + total.tril(-1).T)
            if not bool(torch.isfinite(total).all()):
                raise InputError(
                    f"{kind} that are not finite", where=name, expected="finite activations",
                    remedy="run the model in float32, and check its weights with eigenscope scan",
                )  # fmt: skip
    return moments


class _Collector:
    """Forward hook of one layer."""

    mask: Tensor | None = None

    def __init__(
        self, name: str, leads: bool, moments: Moments, counts: dict[str, int], gradients: dict[str, int] | None
    ) -> None:  # fmt: skip
        self.name, self.leads, self.moments, self.counts, self.gradients = name, leads, moments, counts, gradients

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        given = args[0] if args else next(iter(kwargs.values()))
        if self.leads:
            rows = _positions(_patches(module, given.detach()), self.mask)
            _add(self.moments.inputs, self.name, rows)
            self.counts[self.name] += len(rows)
        gradients = self.gradients
        if gradients is None:
            return None
        # The first layer's output depends on nothing that requires a gradient: from here on it does.
        watched = output if output.requires_grad else output.detach().requires_grad_().clone()
        mask, convolution = self.mask, isinstance(module, CONVOLUTIONS)

        def keep(gradient: Tensor) -> None:
            rows = _positions(gradient.movedim(1, -1) if convolution else gradient, mask)
            _add(self.moments.outputs, self.name, rows)
            gradients[self.name] += len(rows)

        register: Any = watched.register_hook
        register(keep)
        return watched


def _patches(module: Any, given: Tensor) -> Tensor:
    """(…, n): what each position's outputs are linear in."""
    if not isinstance(module, CONVOLUTIONS):
        return given
    size = matrix_of(module).shape[1]
    eye = torch.eye(size, dtype=given.dtype, device=given.device).reshape(size, *module.weight.shape[1:])
    patches: Tensor = module._conv_forward(given, eye, None)
    return patches.movedim(1, -1)


def _positions(values: Tensor, mask: Tensor | None) -> Tensor:
    """(p, n) rows of the positions that count."""
    if mask is not None and values.shape[:-1] == mask.shape:
        return values[mask]
    return values.reshape(-1, values.shape[-1])


def _add(sums: dict[str, Tensor], name: str, rows: Tensor) -> None:
    rows = rows.detach().to(torch.float32)
    if name not in sums:
        sums[name] = torch.zeros(rows.shape[1], rows.shape[1], device=rows.device)
    for start in range(0, rows.shape[1], BLOCK):
        columns = slice(start, start + BLOCK)
        sums[name][start:, columns].addmm_(rows[:, start:].T, rows[:, columns])


def _backbone(model: Any, names: Sequence[str]) -> nn.Module:
    """What a transformers model has below its head, where that holds all the layers: what the head says is not wanted."""
    if not hasattr(model, "base_model_prefix"):
        return model  # type: ignore[no-any-return]
    backbone: nn.Module = model.base_model
    inside = {id(module) for module in backbone.modules()}
    return backbone if all(id(model.get_submodule(name)) in inside for name in names) else model


def _chained(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


@contextmanager
def _prepared(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for module, training in modes.items():
            module.training = training


def _first_sample(batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return {key: value[:1] if isinstance(value, Tensor) and value.dim() else value for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return [batch[0][:1]]
    return batch[:1]


@torch.no_grad()
def _find_leaders(model: nn.Module, names: Sequence[str], batch: Any) -> tuple[dict[str, str], tuple[str, ...]]:
    """Layers by the tensor they are given, in the order in which they are called."""
    calls: list[tuple[str, Tensor]] = []

    def seen(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], __: Any) -> None:
            calls.append((name, args[0] if args else next(iter(kwargs.values()))))

        return hook

    handles = [model.get_submodule(name).register_forward_hook(seen(name), with_kwargs=True) for name in names]
    try:
        call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    order = [name for name, _ in calls]
    repeated = tuple(sorted({name for name in order if order.count(name) > 1}))
    leaders: dict[str, str] = {name: name for name in names}
    first: dict[tuple[int, bool], str] = {}
    for name, given in calls:
        convolution = isinstance(model.get_submodule(name), CONVOLUTIONS)
        if name not in repeated and not convolution:
            leaders[name] = first.setdefault((id(given), convolution), name)
    return leaders, repeated
