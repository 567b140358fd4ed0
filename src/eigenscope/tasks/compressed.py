"""``es.compress``: load, fit, choose the ranks, measure, and put the low-rank layers into a copy of the model."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from torch import nn

from eigenscope.engine.progress import Listener, silent
from eigenscope.errors import InputError
from eigenscope.models import lowrank
from eigenscope.models.language import LanguageModel, check_tokenizer, kind_of, load_language_model
from eigenscope.models.roles import layers_of, role_of
from eigenscope.models.text import Domain, Texts, read_domains
from eigenscope.tasks.calibration import Likelihood
from eigenscope.tasks.compress import Factored, Ranks, factorise
from eigenscope.tasks.compress_factors import Weighting
from eigenscope.tasks.compress_measure import TradeOff, bytes_of
from eigenscope.tasks.compress_options import CompressOptions
from eigenscope.tasks.compress_result import Compressed, LayerReport, shared_copy
from eigenscope.tasks.compress_rivals import rival_curves
from eigenscope.tasks.compress_second import try_second_pass
from eigenscope.tasks.compress_subject import Subject, of_language_model, of_network, text_batches


def compress(
    model: Any, tokenizer: Any = None, text: Any = None, *, keep: float | None = None, keep_bytes: float | None = None,
    loss_budget: float | None = None, objective: Weighting = "two-sided",
    ranks: Literal["global", "uniform"] | Mapping[str, int] = "global", evaluate: Texts = (),
    sweep: Sequence[float] = (), rivals: bool = False, second_pass: bool = False, tokens: int = 20480,
    length: int | None = None, held_out: float = 0.2, prior: float | None = None, multiple: int = 1, batch: int = 2, include: Sequence[str] = (), exclude: Sequence[str] = (),
    likelihood: Likelihood | None = None, seed: int = 0, folder: str | Path | None = None, workers: int | None = None, progress: Listener = silent,
) -> Compressed:  # fmt: skip
    """Hold a model's layers in low rank, where the loss minds least.

    Every layer is cut in the metric of its inputs and of the loss's gradient at its outputs, and one threshold on the loss
    that a stored number saves gives all ranks (see :mod:`eigenscope.methods.whitening`).

    Args:
        model: a folder, a hub id, "demo", a transformers model, or any ``nn.Module``. Never changed.
        tokenizer: of a transformers model; None for its own, where the model is named, and for any other network.
        text: of a language model, as :func:`read_domains` takes it; else a list of batches, of inputs or (inputs, labels).
        keep: share of the layers' parameters that is left.
        keep_bytes: share of the model's bytes that is left.
        loss_budget: predicted loss added.
        objective: "two-sided"; "one-sided" (inputs alone, as SVD-LLM), "scaled" (as ASVD), or "plain" (SVD).
        ranks: "global" threshold, "uniform" share, or layer → rank.
        evaluate: further texts on which the loss is measured.
        sweep: shares for which the trade-off of size and loss is measured.
        rivals: also cut the model as others do (:mod:`eigenscope.tasks.compress_rivals`), at the shares of the sweep, or as kept.
        second_pass: fit linear layers again to their inputs in the compressed model; kept where the held-out loss is less.
        tokens: of ``text`` used, the held-out part included.
        length: of a window in tokens; None for 512, of an encoder of sentences 64.
        held_out: share of the windows on which nothing is fitted.
        prior: share of random tokens in the inputs' metric; None lets the held-out text decide.
        multiple: ranks are multiples of it.
        batch: windows at a time.
        include, exclude: shell patterns over layers' names.
        likelihood: what the outputs of a network that is no language model are: "classes" or "embedding".
        seed: of everything random.
        folder: for what an interrupted run can go on from; None keeps nothing.
        workers: groups of layers fitted at a time.
        progress: called after each step.

    Returns:
        :class:`Compressed`.

    Raises:
        InputError: an option out of range; too little text; nothing to compress; a model that is factored already.
        SourceError: model or text cannot be read.
    """
    given = ranks if isinstance(ranks, Mapping) else None
    options = CompressOptions(
        keep=keep, keep_bytes=keep_bytes, loss_budget=loss_budget, ranks=given, objective=objective,
        allocation="uniform" if ranks == "uniform" else "global", tokens=tokens, length=length, held_out=held_out,
        prior=prior, multiple=multiple, batch=batch, include=tuple(include), exclude=tuple(exclude), seed=seed, second_pass=second_pass,
    )  # fmt: skip
    options.check()
    subject = make_subject(model, tokenizer, text, likelihood, options)
    with ExitStack() as stack:
        place = Path(folder) if folder is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        place.mkdir(parents=True, exist_ok=True)
        factored = factorise(subject, options, place, workers=workers, progress=progress)
        domains = read_domains(evaluate) if evaluate else ()
        return finish(factored, options, domains, sweep, rivals=rivals, progress=progress)


def make_subject(
    model: Any, tokenizer: Any, text: Any, likelihood: Likelihood | None, options: CompressOptions
) -> Subject:  # fmt: skip
    """What the user named, opened."""
    if isinstance(model, nn.Module) and tokenizer is None:
        if text is None or isinstance(text, str | Path):
            raise InputError("no batches", where="compress", expected="a list of batches, or a tokenizer and text")
        return of_network(model, text, likelihood or "classes", options)
    if isinstance(model, nn.Module):
        check_tokenizer(model, tokenizer, type(model).__name__)
        language = LanguageModel(model, tokenizer, kind_of(model), type(model).__name__)
    else:
        language = load_language_model(model)
    if text is None:
        raise InputError("no text", where="compress", expected="text to fit to and to measure the loss on")
    return of_language_model(language, read_domains(text), options)


def finish(
    factored: Factored, options: CompressOptions, evaluate: Sequence[Domain] = (), sweep: Sequence[float] = (), *,
    rivals: bool = False, progress: Listener = silent,
) -> Compressed:  # fmt: skip
    """Choose the ranks, measure, and put the low-rank layers into a copy of the model.

    Args:
        factored: the fitted model.
        options: what is asked for.
        evaluate: further texts.
        sweep, rivals: as for :func:`compress`.
        progress: called after each step.

    Raises:
        InputError: a sweep to a share that is none.
    """
    subject = factored.subject
    texts = text_batches(subject, evaluate, options) if evaluate else {}
    probes = [subject.probe(name, batches, options.seed) for name, batches in texts.items()]
    points = []
    for share in sweep:
        if not 0.0 < share < 1.0:
            raise InputError(f"a sweep to {share}", expected="shares between 0 and 1")
        at = _for_share(factored, options, share)
        points.append(TradeOff(share, at.predicted, factored.measure(at, probes)))
    ranks, notes = choose_ranks(factored, options)
    measured = factored.measure(ranks, probes)
    notes = [*_guessing(factored), *notes]
    layers, growths = factored.low_rank_layers(ranks)
    model = shared_copy(subject.model)
    lowrank.replace(model, layers)
    if options.second_pass:
        model, measured, seen = try_second_pass(factored, model, measured, probes, growths, progress=progress)
        notes = [*notes, seen]
    kept = ranks.parameters / factored.dense_parameters
    others = rival_curves(factored, sweep or (kept,), probes, progress=progress) if rivals else ()
    reports = _layer_reports(factored, ranks, growths)
    return Compressed(model, factored, ranks, reports, measured, points, others, [*factored.notes, *notes])


def _guessing(factored: Factored) -> list[str]:
    """Whether the dense model knows no more of the text than that there are so many tokens, in words."""
    subject = factored.subject
    guessed = math.log(subject.random_tokens) if subject.likelihood in ("causal", "masked") else math.inf
    loss = factored.dense_loss()
    if loss < guessed:
        return []
    return [
        f"the dense model's loss on held-out text, {loss:.4g}, is no better than a guess among all tokens, {guessed:.4g}: "
        "is the tokenizer the model's own?"
    ]


def _for_share(factored: Factored, options: CompressOptions, share: float) -> Ranks:
    if options.allocation == "uniform":
        return factored.uniform(share)
    return factored.within(share * factored.dense_parameters)


def choose_ranks(factored: Factored, options: CompressOptions) -> tuple[Ranks, list[str]]:
    """The ranks that the options ask for, and what was seen on the way."""
    if options.ranks is not None:
        return factored.given(options.ranks), []
    if options.loss_budget is not None:
        return factored.for_loss(options.loss_budget), []
    share = options.keep if options.keep is not None else _share_for_bytes(factored, options.keep_bytes or 0.0)
    ranks = _for_share(factored, options, share)
    if options.allocation == "uniform":
        return ranks, []
    ranks, seen = factored.better(ranks, share)
    return ranks, [seen]


def _share_for_bytes(factored: Factored, share: float) -> float:
    model = factored.subject.model
    size = bytes_of(model)
    first = model.get_submodule(factored.terms[0].name)
    width: int = lowrank.matrix_of(first).element_size()
    places = sum(4 * layer.rows for layer in factored.terms)  # the order of each layer's outputs
    others = size - width * factored.dense_parameters
    left = (share * size - others - places) / (width * factored.dense_parameters)
    if not left > 0.0:
        raise InputError(
            f"{share:.0%} of the model's bytes", expected=f"more than {others / size:.0%}",
            remedy="embeddings and norms, which are not compressed, take that much",
        )  # fmt: skip
    return min(left, 1.0)


def _layer_reports(factored: Factored, ranks: Ranks, growths: Mapping[str, float]) -> list[LayerReport]:
    places = layers_of(f"{layer.name}.weight" for layer in factored.terms)
    found = []
    for layer, curve in zip(factored.terms, factored.curves, strict=True):
        rank, full, weight = ranks.ranks[layer.name], layer.rows * layer.cols, f"{layer.name}.weight"
        dense = rank >= curve.dense
        numbers = full if dense else rank * (layer.rows + layer.cols - rank)
        number, stack = places[weight]
        found.append(LayerReport(
            layer.name, number, f"{stack} {role_of(weight)}".strip(), layer.rows, layer.cols, rank, numbers, numbers / full,
            0.0 if dense else float(layer.held_out[rank]), 0.0 if dense else float(layer.fitted[rank]),
            growths.get(layer.name, 0.0), layer.kept_dense,
        ))  # fmt: skip
    return found
