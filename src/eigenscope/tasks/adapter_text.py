"""How much each input of each linear layer matters: second moments of the base model's activations over a text."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from torch import nn

from eigenscope.errors import InputError
from eigenscope.methods.whitening import Metric, metric
from eigenscope.models.activations import input_moments
from eigenscope.models.language import LanguageModel, kind_of, load_language_model
from eigenscope.models.text import read_domains, windows
from eigenscope.tasks.adapter_targets import Target

DAMPING = 1e-4
"""Of the mean eigenvalue: directions that the text never reached still count a little."""
LENGTH, BATCH = 128, 8


def input_metrics(
    base: Any, tokenizer: Any, text: Any, targets: Sequence[Target], tokens: int, seed: int
) -> dict[str, Metric]:
    """Module → the metric E[x xᵀ] of its inputs, for linear layers that the text reaches.

    Args:
        base: what names the base model for transformers, or the live module.
        tokenizer: of a live module.
        text: as :func:`eigenscope.models.text.read_domains` takes it.
        targets: the layers.
        tokens: about how many.
        seed: of the place in the text.

    Raises:
        InputError: a base that transformers cannot run, or no layer that the text reaches.
        SourceError: text or model cannot be read.
    """
    language = _language(base, tokenizer)
    taken = windows(
        language.tokenizer, read_domains(text), tokens, LENGTH, seed=seed, passages=language.kind != "causal"
    )
    wanted = {target.module for target in targets if target.kind in ("linear", "conv1d_transposed")}
    names = _by_end(language.model, wanted)
    try:
        moments = input_moments(language.model, lambda: taken.batches(BATCH), list(names))
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"the base does not run on text: {reason}",
            where=language.source,
            expected="an encoder or a causal language model",
        ) from error
    shared: dict[int, Metric] = {}
    found = {}
    for name, moment in moments.items():
        key = id(moment)
        if key not in shared:
            shared[key] = metric(moment.matrix, DAMPING)
        found[names[name]] = shared[key]
    if not found:
        raise InputError(
            "the text reaches none of the layers", where=language.source, expected="a model of these module names"
        )
    return found


def _language(base: Any, tokenizer: Any) -> LanguageModel:
    if isinstance(base, nn.Module):
        if tokenizer is None:
            raise InputError("a live model without its tokenizer", where="text", remedy="pass tokenizer=")
        return LanguageModel(base, tokenizer, kind_of(base), type(base).__name__)
    if not isinstance(base, str | os.PathLike):
        raise InputError(
            f"a {type(base).__name__}", where="text", expected="a folder or hub id that transformers loads, or a module"
        )
    return load_language_model(os.fspath(base))


def _by_end(model: nn.Module, wanted: set[str]) -> dict[str, str]:
    """Name in the model → module of the adapter: the same, or one the end of the other's path."""
    ends: dict[str, str] = {}
    for module in wanted:
        parts = module.split(".")
        for start in range(len(parts) - 1):
            ends.setdefault(".".join(parts[start:]), module)
    found: dict[str, str] = {}
    for name, _ in model.named_modules():
        parts = name.split(".")
        candidates = [name, *(".".join(parts[start:]) for start in range(1, len(parts) - 1))]
        module = next((c for c in candidates if c in wanted), ends.get(name, "") if len(parts) > 2 else "")
        if module and module not in found.values():
            found[name] = module
    return found
