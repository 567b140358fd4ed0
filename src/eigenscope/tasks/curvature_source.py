"""What a command line names → a model, a loss and batches: language models on text, a Python function, the demo."""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eigenscope.errors import InputError, SourceError
from eigenscope.models.language import LanguageModel, load_language_model, mean_embedding
from eigenscope.models.text import read_domains, windows
from eigenscope.operators.losses import IGNORED, Count, Loss

MASKED = 0.15
"""Share of the tokens that a masked model predicts, as in its training (Devlin et al., BERT, NAACL 2019, §3.1)."""
SCALE = 20.0
"""Inverse temperature of the contrastive loss: the default of sentence-transformers."""
DEMO_SEED, DEMO_STEPS = 0, 400
ENTRY = re.compile(r"^(?P<module>[\w./\\-]+):(?P<function>[A-Za-z_]\w*)$")


@dataclass(frozen=True)
class Problem:
    """A loss over data.

    Attributes:
        source: what the user named.
        model, loss, batches, count: as :func:`eigenscope.hessian` takes them.
        optimizer: a live one, or None.
        notes: how the loss was made.
    """

    source: str
    model: nn.Module
    loss: Loss | None
    batches: list[Any]
    count: Count | None = None
    optimizer: torch.optim.Optimizer | None = None
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class TextOptions:
    """How text becomes batches.

    Attributes:
        files: text sources.
        tokens: in all, about.
        length: of a window.
        batch: windows in a batch.
        seed: of the place in the text, and of the masking.
    """

    files: tuple[str, ...]
    tokens: int = 2048
    length: int = 128
    batch: int = 4
    seed: int = 0


def open_problem(source: str, text: TextOptions) -> Problem:
    """The problem behind a name: ``demo``, ``module:function``, or a language model with text.

    Raises:
        InputError: a model without text, a function that returns something else.
        SourceError: the model or the function cannot be loaded.
    """
    if source == "demo" and not text.files:
        return demo_problem()
    entry = ENTRY.match(source)
    if entry and not Path(source).exists():
        return _from_function(source, entry["module"], entry["function"])
    if not text.files:
        raise InputError(
            "no data", where=source, expected="--text FILE for a language model",
            remedy="for another model, write a function that returns (model, loss, batches), and name it module:function",
        )  # fmt: skip
    return text_problem(load_language_model(source), text)


def text_problem(language: LanguageModel, options: TextOptions) -> Problem:
    """A language model's own loss on text.

    Causal: the next token. Masked: 15 % of the tokens behind the mask, drawn once from the seed. A model of embeddings has
    no head: consecutive passages are told from those of others in the batch (multiple negatives ranking: Henderson et
    al., Efficient Natural Language Response Suggestion, 2017, §4.4), the loss that sentence encoders are trained with.

    Raises:
        InputError: too little text, or a size that is not positive.
    """
    for name, number in (("tokens", options.tokens), ("length", options.length), ("batch", options.batch)):
        if number < (2 if name == "batch" and language.kind == "embedding" else 1):
            raise InputError(f"{name} = {number}", where="text", expected="a positive number; pairs for embeddings")
    causal = language.kind == "causal"
    read = windows(
        language.tokenizer,
        read_domains(options.files),
        options.tokens,
        options.length,
        seed=options.seed,
        passages=not causal,
    )
    batches = list(read.batches(options.batch))
    said = f"{read.tokens:,} tokens in {len(read)} windows of {options.length}, {options.batch} a batch."
    if causal:
        made = [
            {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)}
            for batch in batches
        ]
        return Problem(language.source, language.model, None, made, notes=(f"Next-token loss on {said}",))
    if language.kind == "masked":
        source = torch.Generator().manual_seed(options.seed)
        made = [_masked(batch, language.tokenizer, source) for batch in batches]
        note = f"Masked-token loss, {MASKED:.0%} of the tokens masked once, on {said}"
        return Problem(language.source, language.model, None, made, notes=(note,))
    pairs = [batch for batch in batches if len(batch["input_ids"]) >= 4 and len(batch["input_ids"]) % 2 == 0]
    if not pairs:
        raise InputError(
            f"{len(read)} windows, {options.batch} a batch", where="text", expected="batches of at least four, two pairs",
            remedy="raise --tokens or --batch",
        )  # fmt: skip
    note = f"The model has no language head: contrastive loss of consecutive passages (scale {SCALE:g}) on {said}"
    return Problem(
        language.source, language.model, contrastive, pairs, lambda batch: len(batch["input_ids"]) // 2, notes=(note,)
    )


def contrastive(model: Any, batch: Any) -> Tensor:
    """Cross-entropy of telling the passage after each passage from the others of the batch, by cosines times 20."""
    found = mean_embedding(model(**batch).last_hidden_state, batch["attention_mask"])
    scores = SCALE * found[0::2] @ found[1::2].mT
    return nn.functional.cross_entropy(scores, torch.arange(len(scores), device=scores.device))


def _masked(batch: dict[str, Tensor], tokenizer: Any, source: torch.Generator) -> dict[str, Tensor]:
    if getattr(tokenizer, "mask_token_id", None) is None:
        raise SourceError("the tokenizer has no mask token", where=type(tokenizer).__name__)
    ids = batch["input_ids"]
    special = torch.isin(ids, torch.tensor(sorted(tokenizer.all_special_ids)))
    chosen = (torch.rand(ids.shape, generator=source) < MASKED) & ~special & (batch["attention_mask"] == 1)
    if not bool(chosen.any()):
        chosen.view(-1)[int((~special).view(-1).nonzero()[0])] = True
    return {
        **batch, "input_ids": ids.masked_fill(chosen, tokenizer.mask_token_id), "labels": ids.masked_fill(~chosen, IGNORED)
    }  # fmt: skip


def _from_function(source: str, module: str, function: str) -> Problem:
    try:
        found = getattr(_imported(module), function, None)
    except Exception as error:
        raise SourceError(f"importing {module} failed: {type(error).__name__}: {error}", where=source) from error
    if not callable(found):
        raise SourceError(f"{module} has no function {function}", where=source, expected="module:function")
    returned = found()
    if not isinstance(returned, tuple) or len(returned) not in (3, 4) or not isinstance(returned[0], nn.Module):
        raise InputError(
            f"it returned {type(returned).__name__}",
            where=source,
            expected="(model, loss, batches), or with an optimizer",
        )
    model, loss, batches, *rest = returned
    return Problem(source, model, loss, list(batches), optimizer=rest[0] if rest else None)


def _imported(module: str) -> Any:
    if module.endswith(".py"):
        spec = importlib.util.spec_from_file_location(Path(module).stem, module)
        if spec is None or spec.loader is None:
            raise ImportError(f"no module in {module}")
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return loaded
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    return importlib.import_module(module)


def demo_problem() -> Problem:
    """Two spirals told apart by a small network of tanh units that a few hundred steps of Adam have trained."""
    source = torch.Generator().manual_seed(DEMO_SEED)
    turns = torch.linspace(0.25, 1.0, 200, dtype=torch.float64).repeat(2)
    labels = torch.arange(2).repeat_interleave(200)
    angles = 3.0 * math.pi * turns + math.pi * labels
    points = torch.stack([turns * angles.cos(), turns * angles.sin()], dim=1)
    points = points + 0.02 * torch.randn(points.shape, generator=source, dtype=torch.float64)
    order = torch.randperm(len(points), generator=source)
    batches = [(points[part], labels[part]) for part in torch.split(order, 150)]
    layers = [nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2)]
    model = nn.Sequential(*layers).double()
    with torch.no_grad():
        for parameter in model.parameters():
            bound = parameter.shape[-1] ** -0.5
            parameter.copy_((2.0 * torch.rand(parameter.shape, generator=source, dtype=torch.float64) - 1.0) * bound)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(DEMO_STEPS):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(points), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    optimizer.zero_grad()
    note = f"Two spirals, 400 points; a 2-16-16-2 tanh network after {DEMO_STEPS} steps of Adam."
    return Problem("demo", model, _cross_entropy, batches, optimizer=optimizer, notes=(note,))


def _cross_entropy(model: Any, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])
