"""The model that is to be compressed, the text it is fitted to and that held out, and which of its layers are in question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from eigenscope.errors import InputError
from eigenscope.models import lowrank
from eigenscope.models.language import LanguageModel
from eigenscope.models.text import Domain, Windows, split_windows, windows
from eigenscope.tasks.calibration import Likelihood
from eigenscope.tasks.compress_measure import LossProbe
from eigenscope.tasks.compress_options import CompressOptions

FEW_TOKENS = 8
"""Tokens for each input of the widest layer below which the moments are said to be poor."""


LENGTHS = {"causal": 512, "masked": 128, "embedding": 64}
"""Tokens of a window, where nothing is asked for."""


@dataclass(frozen=True)
class Subject:
    """What is compressed, and on what.

    Attributes:
        model: the dense model.
        tokenizer: of a language model; None for any other network.
        likelihood: what its outputs are.
        fitted, held_out: batches, in memory.
        samples: whose mean loss is in question, in each of the two.
        layers: names, in the model's order.
        left_out: layer → why it is not in question.
        notes: what else the user should know.
        source: what the user named.
    """

    model: nn.Module
    tokenizer: Any
    likelihood: Likelihood
    fitted: tuple[Any, ...]
    held_out: tuple[Any, ...]
    samples: tuple[int, int]
    layers: tuple[str, ...]
    left_out: Mapping[str, str]
    notes: tuple[str, ...]
    source: str

    @property
    def parameters(self) -> int:
        """Numbers in the weights of the layers in question."""
        return sum(lowrank.matrix_of(self.model.get_submodule(name)).numel() for name in self.layers)

    @property
    def random_tokens(self) -> int:
        """Size of the vocabulary that random tokens are drawn from; 0 where the inputs are no tokens."""
        return 0 if self.tokenizer is None else len(self.tokenizer)

    def probe(self, name: str, batches: Sequence[Any], seed: int) -> LossProbe:
        """What the loss on these batches is measured with."""
        return LossProbe(
            name, self.likelihood, tuple(batches), getattr(self.tokenizer, "mask_token_id", None) or 0, seed
        )  # fmt: skip

    def random_batches(self, seed: int) -> Iterator[dict[str, Tensor]]:
        """As many batches as are fitted to, of tokens drawn evenly from the vocabulary."""
        generator = torch.Generator().manual_seed(seed)
        for batch in self.fitted:
            ids: Tensor = batch["input_ids"]
            random = torch.randint(self.random_tokens, ids.shape, generator=generator).to(ids.device)
            yield {**batch, "input_ids": random}


def of_language_model(
    language: LanguageModel, domains: Sequence[Domain], options: CompressOptions
) -> Subject:  # fmt: skip
    """A transformers model and texts.

    Raises:
        InputError: too little text, a model that is factored already, nothing to compress.
    """
    model: Any = language.model
    _check_kind(model, language)
    wanted = options.length or LENGTHS[language.kind]
    length = min(wanted, getattr(getattr(model, "config", None), "max_position_embeddings", None) or wanted)
    encoder = language.kind != "causal"
    text = windows(
        language.tokenizer, domains, options.tokens, length, seed=options.seed, passages=encoder
    )  # fmt: skip
    if int(text.ids.max()) >= _vocabulary(model):
        raise InputError(
            f"the tokenizer gives id {int(text.ids.max())}, the model has {_vocabulary(model):,} embeddings",
            where=language.source, expected="the model's own tokenizer",
        )  # fmt: skip
    fitted, held_out = split_windows(text, options.held_out)
    layers, left_out = choose_layers(model, options)
    notes = (*_text_notes(model, layers, fitted, domains, options), *_copies(model, layers))
    if length < wanted:
        notes += (f"windows of {length} tokens: the model takes no more",)
    whole = (getattr(model.config, "architectures", None) or [""])[0]
    if language.kind == "embedding" and "For" in whole:
        notes += (f"a {whole} is taken as the encoder of its passages: its head is left out",)
    device = next(model.parameters()).device
    per_window = language.kind == "embedding"
    return Subject(
        model, language.tokenizer, language.kind, _batches(fitted, options.batch, device),
        _batches(held_out, options.batch, device),
        (len(fitted), len(held_out)) if per_window else (fitted.tokens, held_out.tokens), layers, left_out, notes,
        language.source,
    )  # fmt: skip


def _check_kind(model: Any, language: LanguageModel) -> None:
    """Refuse what can be neither fitted to a loss of its own nor taken as an encoder."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise InputError(
            f"a {type(model).__name__}, which reads one text and writes another", where=language.source,
            expected="a causal or masked language model, or an encoder",
        )  # fmt: skip
    if language.kind == "embedding" and "For" in type(model).__name__:
        raise InputError(
            f"a {type(model).__name__}, which has neither a causal head nor one for hidden tokens", where=language.source,
            expected="a language model, or an encoder", remedy="pass its base_model, or batches without a tokenizer",
        )  # fmt: skip


def of_network(model: nn.Module, batches: Sequence[Any], likelihood: Likelihood, options: CompressOptions) -> Subject:
    """Any network and its batches: tensors, or tuples of inputs and labels.

    Raises:
        InputError: fewer than two batches, or nothing to compress.
    """
    given = list(batches)
    held = max(1, round(options.held_out * len(given)))
    if len(given) < 2:
        raise InputError(f"{len(given)} batches", where="compress", expected="at least two: one is held out")
    fitted, held_out = tuple(given[:-held]), tuple(given[-held:])
    layers, left_out = choose_layers(model, options)
    return Subject(
        model, None, likelihood, fitted, held_out, (_samples(fitted), _samples(held_out)), layers, left_out, _copies(model, layers),
        type(model).__name__,
    )  # fmt: skip


def text_batches(subject: Subject, domains: Sequence[Domain], options: CompressOptions) -> dict[str, tuple[Any, ...]]:
    """Each text in batches of its own, for measuring the loss on it."""
    device = next(subject.model.parameters()).device
    shape = subject.fitted[0]["input_ids"].shape
    found = {}
    for domain in domains:
        text = windows(
            subject.tokenizer, [domain], shape[1] * 8, shape[1], seed=options.seed, passages=subject.likelihood != "causal"
        )  # fmt: skip
        found[domain.name] = _batches(text, options.batch, device)
    return found


def choose_layers(model: Any, options: CompressOptions) -> tuple[tuple[str, ...], dict[str, str]]:
    """The layers in question, and of each other linear or convolution layer why it is none.

    Raises:
        InputError: a model that is factored already, or no layer is left.
    """
    if any(isinstance(module, lowrank.LowRankLinear | lowrank.LowRankConv) for module in model.modules()):
        raise InputError(
            "is held in low rank already", where="the model", remedy="compress the dense model it was made from"
        )
    holders: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    chosen, left_out = [], {}
    for name, module in lowrank.dense_layers(model):
        weight: Any = module.weight
        if holders[id(weight)] > 1:
            left_out[name] = "its weight is tied to another layer's"
        elif module is head and not any(fnmatchcase(name, pattern) for pattern in options.include):
            left_out[name] = "the output layer"
        elif min(lowrank.matrix_of(module).shape) < 2:
            left_out[name] = "a single row or column"
        elif not _wanted(name, options):
            left_out[name] = "not asked for"
        else:
            chosen.append(name)
    if not chosen:
        raise InputError(
            f"no layer to compress in {type(model).__name__}", expected="linear layers or ungrouped convolutions",
            remedy="check --include and --exclude",
        )  # fmt: skip
    return tuple(chosen), left_out | _others(model, {*chosen, *left_out})


def _others(model: nn.Module, layers: Set[str]) -> dict[str, str]:
    """Matrices that no linear layer holds, as those of experts in one tensor, and what does; embeddings apart."""
    seen = {id(parameter) for name in layers for parameter in model.get_submodule(name).parameters(recurse=False)}
    seen |= {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return {
        f"{name}.{key}".lstrip("."): f"a {type(module).__name__} holds it, which is no linear layer and no ungrouped convolution"
        for name, module in model.named_modules() for key, parameter in module.named_parameters(recurse=False)
        if parameter.dim() > 1 and id(parameter) not in seen
    }  # fmt: skip


@torch.no_grad()
def _copies(model: nn.Module, layers: Sequence[str]) -> tuple[str, ...]:
    """Layers that hold the same weights as another, in words."""
    seen: dict[tuple[Any, ...], list[str]] = {}
    notes = []
    for name in layers:
        weight: Any = model.get_submodule(name).weight
        alike = seen.setdefault((weight.shape, weight.dtype, float(weight.sum())), [])
        first = next((other for other in alike if torch.equal(model.get_submodule(other).weight, weight)), None)  # type: ignore[arg-type]
        if first is None:
            alike.append(name)
        else:
            notes.append(f"{name} holds the same weights as {first}: tied in the model, they would be stored once")
    return tuple(notes)


def _wanted(name: str, options: CompressOptions) -> bool:
    included = not options.include or any(fnmatchcase(name, pattern) for pattern in options.include)
    return included and not any(fnmatchcase(name, pattern) for pattern in options.exclude)


def _vocabulary(model: Any) -> int:
    return len(model.get_input_embeddings().weight)


def _text_notes(
    model: nn.Module, layers: Sequence[str], fitted: Windows, domains: Sequence[Domain], options: CompressOptions
) -> tuple[str, ...]:
    widest = max(lowrank.matrix_of(model.get_submodule(name)).shape[1] for name in layers)
    notes = []
    if fitted.tokens < FEW_TOKENS * widest:
        notes.append(
            f"{fitted.tokens:,} tokens to fit layers of {widest:,} inputs: few, the loss on other text will be larger than the "
            f"predicted one; {FEW_TOKENS * widest:,} or more are better"
        )
    if len(domains) == 1:
        notes.append("a single text: on text of other kinds the loss will be larger; give several")
    if fitted.tokens < 0.7 * (1.0 - options.held_out) * options.tokens:
        notes.append(f"{fitted.tokens:,} tokens to fit to: the texts have no more")
    return tuple(notes)


def _batches(text: Windows, size: int, device: torch.device) -> tuple[dict[str, Tensor], ...]:
    return tuple({key: value.to(device) for key, value in batch.items()} for batch in text.batches(size))


def _samples(batches: Sequence[Any]) -> int:
    return sum(len(batch[0] if isinstance(batch, tuple | list) else batch) for batch in batches)
