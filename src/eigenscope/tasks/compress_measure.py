"""What a model loses on text, measured; and how fast it is."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from eigenscope.models.statistics import call
from eigenscope.results import Estimate
from eigenscope.tasks.calibration import Likelihood, embed

HELD_OUT = "held-out text"
"""Name of the text, or the batches, on which nothing was fitted."""
MASKED_SHARE = 0.15
"""Share of tokens hidden from a masked language model (Devlin et al., BERT, 2019, §3.1)."""


@dataclass(frozen=True)
class LossProbe:
    """A text, or batches, on which the dense and the compressed model are compared.

    Attributes:
        name: of the text.
        likelihood: what the outputs are.
        batches: in memory.
        mask_token: of a masked model.
        seed: of what is masked.
    """

    name: str
    likelihood: Likelihood
    batches: tuple[Any, ...]
    mask_token: int = 0
    seed: int = 0

    @torch.no_grad()
    def reference(self, model: nn.Module) -> tuple[Tensor, ...]:
        """What the dense model says, where the loss is a distance from it: its embeddings."""
        if self.likelihood != "embedding":
            return ()
        model.eval()
        return tuple(embed(model, batch) for batch in self.batches)

    @torch.no_grad()
    def losses(self, model: nn.Module, reference: Sequence[Tensor] = ()) -> Tensor:
        """(w,) float64 mean loss of every window or sample: nats per token, nats, or ½‖Δz‖² of an embedding.

        Windows in which a masked model has nothing hidden are left out.

        Args:
            model: put into evaluation mode.
            reference: of the dense model.
        """
        model.eval()
        generator = torch.Generator().manual_seed(self.seed)
        found = []
        for place, batch in enumerate(self.batches):
            if self.likelihood == "embedding":
                lost: Tensor = 0.5 * (embed(model, batch) - reference[place]).square().sum(dim=-1)
            elif self.likelihood == "classes":
                lost = nn.functional.cross_entropy(call(model, batch), batch[1], reduction="none")
            else:
                lost = self._per_window(model, batch, generator)
            found.append(lost.to("cpu", torch.float64))
        return torch.cat(found)

    def _per_window(self, model: nn.Module, batch: Any, generator: torch.Generator) -> Tensor:
        ids: Tensor = batch["input_ids"]
        mask = batch["attention_mask"].bool()
        if self.likelihood == "causal":
            logits, wanted, counted = call(model, batch).logits[:, :-1], ids[:, 1:], mask[:, 1:]
        else:
            counted = mask & (torch.rand(ids.shape, generator=generator).to(ids.device) < MASKED_SHARE)
            hidden = {**batch, "input_ids": ids.masked_fill(counted, self.mask_token)}
            logits, wanted = call(model, hidden).logits, ids
        lost = nn.functional.cross_entropy(logits.transpose(1, 2), wanted, reduction="none")
        told = counted.sum(dim=1)
        means: Tensor = (lost * counted).sum(dim=1) / told
        return means[told > 0]


def loss_added(before: Tensor, after: Tensor) -> Estimate:
    """Mean of the windows' differences, and its standard error over them."""
    added = after - before
    stderr = float(added.std()) / math.sqrt(len(added)) if len(added) > 1 else math.inf
    return Estimate(float(added.mean()), stderr, len(added))


@dataclass(frozen=True)
class TradeOff:
    """One point of the curve of loss against size.

    Attributes:
        keep: share of the layers' parameters.
        predicted: loss added on held-out text, by the second-order expansion.
        measured: text → loss added.
    """

    keep: float
    predicted: float
    measured: Mapping[str, Estimate]


@dataclass(frozen=True)
class Speed:
    """Tokens per second of one request at a time, medians.

    Attributes:
        prompt: while reading a prompt.
        generation: while writing.
    """

    prompt: float
    generation: float


@torch.no_grad()
def speeds(models: Sequence[nn.Module], ids: Tensor, *, new_tokens: int = 24, rounds: int = 3) -> list[Speed]:
    """Speed of causal models on the same prompt, measured in turns.

    Args:
        models: transformers models with a cache of keys and values.
        ids: (1, l) prompt.
        new_tokens: written after it.
        rounds: of which the median is taken.
    """
    prompts: list[list[float]] = [[] for _ in models]
    writings: list[list[float]] = [[] for _ in models]
    for _ in range(rounds):
        for place, model in enumerate(models):
            model.eval()
            begun = time.perf_counter()
            output: Any = model(input_ids=ids, use_cache=True)
            prompts[place].append(time.perf_counter() - begun)
            begun = time.perf_counter()
            for _ in range(new_tokens):
                token = output.logits[:, -1:].argmax(dim=-1)
                output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
            writings[place].append(time.perf_counter() - begun)
    return [
        Speed(ids.shape[1] / _median(reading), new_tokens / _median(writing))
        for reading, writing in zip(prompts, writings, strict=True)
    ]  # fmt: skip


def bytes_of(model: nn.Module) -> int:
    """Bytes of its parameters and buffers, those that are shared counted once."""
    sizes: dict[int, int] = {}
    for held in map(_storage, (*model.parameters(), *model.buffers())):
        sizes[id(held)] = int(held.nbytes())
    return sum(sizes.values())


@torch.no_grad()
def peak_memory(model: nn.Module, ids: Tensor) -> int:
    """Most bytes held at once while a causal model reads a prompt: its own, and those of the tensors that operations make.

    What an operation takes for itself while it runs, and the program around it, are not in it.

    Args:
        model: transformers' model.
        ids: (1, l) prompt.
    """
    model.eval()
    live = _LiveBytes()
    with live:
        call(model, {"input_ids": ids, "use_cache": True})
    return bytes_of(model) + live.most


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the storages that operations have made and that are still held, and the most that there were."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._held: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        given = {id(_storage(leaf)) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            # A view shares the storage of what the operation was given.
            if isinstance(leaf, Tensor) and id(_storage(leaf)) not in given | self._held:
                self._add(_storage(leaf))
        self.most = max(self.most, self.now)
        return found

    def _add(self, storage: torch.UntypedStorage) -> None:
        self._held.add(id(storage))
        self.now += storage.nbytes()
        weakref.finalize(storage, self._drop, id(storage), storage.nbytes())

    def _drop(self, key: int, size: int) -> None:
        self._held.discard(key)
        self.now -= size


def _median(values: Iterable[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]
