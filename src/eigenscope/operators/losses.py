"""Batches of any form: brought to a device, weighted by what their loss is a mean over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from eigenscope.errors import InputError

IGNORED = -100
"""The label that torch and Hugging Face losses leave out of their mean."""
Loss = Callable[[Any, Any], Any]
"""loss(model, batch) → the mean over the batch, a scalar tensor."""
Count = Callable[[Any], float]


def listed(batches: Iterable[Any]) -> list[Any]:
    """The batches as a list, since every product goes over all of them.

    Raises:
        InputError: one batch instead of several, none at all, or a generator that is used up.
    """
    if isinstance(batches, Tensor | Mapping) or not isinstance(batches, Iterable):
        raise InputError(
            f"batches is a {type(batches).__name__}", where="batches", expected="a list of batches",
            remedy="pass [batch] for a single one",
        )  # fmt: skip
    found = list(batches)
    if not found:
        used = isinstance(batches, Iterator)
        raise InputError(
            "the generator is used up" if used else "no data", where="batches", expected="at least one batch",
            remedy="make it anew, or pass a list" if used else "",
        )  # fmt: skip
    return found


def moved(value: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """Every tensor in ``value`` on ``device``; where ``dtype`` is given, the real floating ones in it.

    Dictionaries, lists, tuples and named tuples are looked through and keep their type; what else has a ``to`` method is
    asked by it.
    """
    if isinstance(value, Tensor):
        return value.to(device, dtype) if dtype is not None and value.is_floating_point() else value.to(device)
    if isinstance(value, dict):
        return type(value)((key, moved(item, device, dtype)) for key, item in value.items())
    if isinstance(value, Mapping):
        return {key: moved(item, device, dtype) for key, item in value.items()}
    if isinstance(value, tuple | list):
        items = [moved(item, device, dtype) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value.to(device) if hasattr(value, "to") else value


def counted(model: nn.Module, batch: Any) -> tuple[float, str]:
    """What a mean loss over this batch is a mean over, and what that is: "labels" or "samples".

    Integer labels (the entry ``labels`` of a mapping, else the last integer tensor of a pair) count where they are not
    −100; a causal language model of Hugging Face shifts them by one place, so that the first of each row is never
    predicted. Otherwise the rows of the first tensor are the samples.

    Raises:
        InputError: no tensor in it.
    """
    labels = _labels(batch)
    if labels is not None:
        if _is_causal(model) and labels.ndim >= 2:
            labels = labels[..., 1:]
        return float((labels != IGNORED).sum()), "labels"
    first = next(_tensors(batch), None)
    if first is None:
        raise InputError(
            f"a {type(batch).__name__} without tensors", where="batches", remedy="pass count=, the weight of a batch"
        )
    return float(first.shape[0]) if first.ndim else 1.0, "samples"


def _labels(batch: Any) -> Tensor | None:
    if isinstance(batch, Mapping):
        candidates = [batch[name] for name in ("labels", "label", "targets", "target") if name in batch]
    else:
        candidates = [batch[-1]] if isinstance(batch, tuple | list) and len(batch) > 1 else []
    for found in candidates:
        if isinstance(found, Tensor) and found.ndim and not (found.is_floating_point() or found.is_complex()):
            return found
    return None


def _is_causal(model: nn.Module) -> bool:
    name = type(model).__name__
    return getattr(model, "loss_type", "") == "ForCausalLM" or name.endswith(("ForCausalLM", "LMHeadModel"))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
