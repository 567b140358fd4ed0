"""A transformers model and its tokenizer, and what its outputs mean."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from eigenscope.errors import InputError, SourceError
from eigenscope.models.demo import demo_folder

Kind = Literal["causal", "masked", "embedding"]
LOADERS: dict[Kind, str] = {
    "causal": "AutoModelForCausalLM",
    "masked": "AutoModelForMaskedLM",
    "embedding": "AutoModel",
}


@dataclass(frozen=True)
class LanguageModel:
    """A model of text.

    Attributes:
        model: in evaluation mode.
        tokenizer: its own.
        kind: "causal" and "masked" give logits over the vocabulary; "embedding" gives hidden states, whose mean over the
            passage, normalised, is the sentence's embedding.
        source: what the user named.
    """

    model: nn.Module
    tokenizer: Any
    kind: Kind
    source: str


def kind_of(model: nn.Module) -> Kind:
    """What the outputs of a transformers model are, by the name of its class."""
    name = type(model).__name__
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return "causal"
    return "masked" if name.endswith("ForMaskedLM") else "embedding"


def load_language_model(source: str | Path, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """Load model and tokenizer of a folder, a hub id or ``demo``; no code that comes with the checkpoint is run.

    Raises:
        InputError: transformers is not installed.
        SourceError: transformers cannot load it, with its reason.
    """
    if importlib.util.find_spec("transformers") is None:
        raise InputError("transformers is not installed", remedy="pip install 'eigenscope[text]'")
    import transformers

    folder = demo_folder() if str(source) == "demo" and not Path(source).exists() else source
    try:
        with without_bars():
            model, tokenizer, kind = _load(transformers, folder, dtype)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise SourceError(
            f"transformers cannot load it: {reason[:300]}", where=str(source),
            expected="a folder with config.json, weights and tokenizer, or a hub id",
        ) from error  # fmt: skip
    check_tokenizer(model, tokenizer, str(source))
    return LanguageModel(model, tokenizer, kind, str(source))


def _load(transformers: Any, folder: str | Path, dtype: torch.dtype) -> tuple[Any, Any, Kind]:
    config = transformers.AutoConfig.from_pretrained(folder)
    name = (config.architectures or ["AutoModel"])[0]
    causal = name.endswith(("ForCausalLM", "LMHeadModel"))
    kind: Kind = "causal" if causal else "masked" if name.endswith("ForMaskedLM") else "embedding"
    model = getattr(transformers, LOADERS[kind]).from_pretrained(folder, dtype=dtype).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder), kind


@contextmanager
def without_bars() -> Iterator[None]:
    """transformers without its progress bars, which would be drawn into pipes, too."""
    import transformers

    logging: Any = transformers.utils.logging
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()


def check_tokenizer(model: Any, tokenizer: Any, source: str) -> None:
    """A tokenizer with more tokens than the model has embeddings is not the model's.

    Raises:
        InputError: it has.
    """
    embeddings: Any = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    if embeddings is not None and len(tokenizer) > len(embeddings.weight):
        raise InputError(
            f"the tokenizer has {len(tokenizer):,} tokens, the model {len(embeddings.weight):,} embeddings", where=source,
            expected="the model's own tokenizer",
        )  # fmt: skip


def mean_embedding(states: Tensor, mask: Tensor) -> Tensor:
    """Normalised mean (w, d) of hidden states (w, l, d) over the places that hold a token (w, l): the sentence's embedding."""
    weight = mask.to(states.dtype).unsqueeze(-1)
    pooled = (states * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1.0)
    return nn.functional.normalize(pooled, dim=-1)
