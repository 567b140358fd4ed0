"""``es.compress`` and its result: the compressed model, what it is predicted and measured to lose, and its files."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import save_file
from torch import nn

import eigenscope
from eigenscope.engine.progress import Listener, silent
from eigenscope.errors import InputError
from eigenscope.models import lowrank
from eigenscope.models.language import LanguageModel, check_tokenizer, kind_of, load_language_model
from eigenscope.models.text import Domain, Texts, read_domains
from eigenscope.models.write import LARGEST_SHARD, replacing_folder
from eigenscope.results import Estimate
from eigenscope.tasks.calibration import Likelihood
from eigenscope.tasks.compress import Factored, Ranks, factorise
from eigenscope.tasks.compress_factors import Weighting
from eigenscope.tasks.compress_measure import loss_added
from eigenscope.tasks.compress_options import CompressOptions
from eigenscope.tasks.compress_subject import Subject, of_language_model, of_network, text_batches

if TYPE_CHECKING:
    import pandas as pd

REPORT = "eigenscope.json"
UNITS: dict[Likelihood, str] = {
    "causal": "nats per token", "masked": "nats per hidden token", "classes": "nats per sample",
    "embedding": "½‖Δz‖² per passage",
}  # fmt: skip


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
class LayerReport:
    """One layer of the compressed model.

    Attributes:
        name, rows, cols: of the dense layer.
        rank: that it is held at; the small side where it stays dense.
        parameters: numbers that hold it.
        share: of the dense layer's.
        predicted: loss added by this layer alone, on held-out text.
        fitted: the same on the text that it was fitted to.
        growth: largest coefficient by which a held row enters another.
        note: why it stays dense.
    """

    name: str
    rows: int
    cols: int
    rank: int
    parameters: int
    share: float
    predicted: float
    fitted: float
    growth: float
    note: str


class Compressed:
    """The result of :func:`compress`.

    Attributes:
        model: with low-rank layers; what has not been replaced is shared with the dense model.
        tokenizer: of a language model.
        ranks: of all layers.
        layers: a report on each.
        dense_loss: mean loss of the dense model, by text.
        measured: loss added, by text, "held-out text" first.
        trade_off: the curve, where it was asked for.
        left_out: layers that were not in question, and why.
        notes: what the user should know.
        unit: of the losses.
        made_by: versions and options.
    """

    def __init__(
        self, model: nn.Module, factored: Factored, ranks: Ranks, layers: Sequence[LayerReport],
        measured: Mapping[str, Estimate], trade_off: Sequence[TradeOff], notes: Sequence[str],
    ) -> None:  # fmt: skip
        self.model, self.ranks, self.layers = model, ranks, tuple(layers)
        self.tokenizer = factored.subject.tokenizer
        self.source = factored.subject.source
        self.left_out = dict(factored.subject.left_out)
        self.measured, self.trade_off, self.notes = dict(measured), tuple(trade_off), tuple(notes)
        self.dense_loss = {name: factored.dense_loss(name) for name in measured}
        self.dense_parameters = factored.dense_parameters
        self.unit = UNITS[factored.subject.likelihood]
        options = {
            key: value for key, value in asdict(factored.options).items() if value is not None and key != "ranks"
        }
        self.made_by = {
            "eigenscope": eigenscope.__version__,
            "torch": torch.__version__,
            **options,
            "prior": factored.prior,
        }

    @property
    def predicted(self) -> float:
        """Loss added on held-out text, by the second-order expansion of the loss."""
        return self.ranks.predicted

    @property
    def keep(self) -> float:
        """Share of the layers' parameters that is left."""
        return self.ranks.parameters / self.dense_parameters

    @property
    def table(self) -> pd.DataFrame:
        """One row per layer: rank, parameters, predicted loss."""
        import pandas as pd

        return pd.DataFrame([asdict(layer) for layer in self.layers], columns=[f.name for f in fields(LayerReport)])

    def summary(self) -> dict[str, Any]:
        """Everything but the weights, as plain values."""
        return {
            "source": self.source, "unit": self.unit, "parameters": self.ranks.parameters,
            "dense parameters": self.dense_parameters, "keep": self.keep, "allocation": self.ranks.allocation,
            "predicted": self.predicted, "predicted on the fitted text": self.ranks.fitted,
            "dense loss": self.dense_loss, "measured": {name: asdict(value) for name, value in self.measured.items()},
            "trade-off": [
                {"keep": point.keep, "predicted": point.predicted,
                 "measured": {name: asdict(value) for name, value in point.measured.items()}}
                for point in self.trade_off
            ],
            "left dense": self.left_out, "notes": list(self.notes), "made by": self.made_by, "layers": [asdict(layer) for layer in self.layers],
        }  # fmt: skip

    def save(
        self, folder: str | Path, *, dense: bool = False, force: bool = False, shard: int = LARGEST_SHARD
    ) -> Path:  # fmt: skip
        """Write config, tokenizer and weights, and ``eigenscope.json`` with what is known of them.

        Args:
            folder: appears when it is whole.
            dense: multiply the factors out, for programs that know none: the size of the dense model, the compressed
                one's loss.
            force: write into a folder that is not empty.
            shard: bytes of the largest file.

        Raises:
            InputError: the folder exists, without ``force``.
            OSError: it cannot be written; nothing of it is then left.
        """
        stale = r"model.*\.(safetensors|bin|json)|pytorch_model.*"
        with replacing_folder(folder, force=force, stale=stale) as place:
            model: Any = shared_copy(self.model)
            if dense:
                lowrank.multiply_out(model)
            if hasattr(model, "save_pretrained"):
                self._mark(model, dense)
                model.save_pretrained(place, max_shard_size=shard)
            else:
                state = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
                save_file(state, place / "model.safetensors", metadata={"ranks": json.dumps(self._low_ranks(dense))})
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(place)
            text = json.dumps(self.summary(), indent=1, default=str, ensure_ascii=False)
            (place / REPORT).write_text(text + "\n", "utf-8")
        return Path(folder)

    def remeasure(self, subject: Subject, texts: Mapping[str, Sequence[Any]]) -> None:
        """Measure the losses again, after the factors have been trained."""
        seed = int(self.made_by["seed"])
        for name, batches in {"held-out text": subject.held_out, **texts}.items():
            probe = subject.probe(name, batches, seed)
            reference = probe.reference(subject.model)
            before = probe.losses(subject.model, reference)
            self.measured[name] = loss_added(before, probe.losses(self.model, reference))

    def _low_ranks(self, dense: bool) -> dict[str, int]:
        return {} if dense else {
            name: module.rank for name, module in self.model.named_modules()
            if isinstance(module, lowrank.LowRankLinear | lowrank.LowRankConv)
        }  # fmt: skip

    def _mark(self, model: Any, dense: bool) -> None:
        from eigenscope.models import transformers_lowrank as plugin

        model.config = copy.deepcopy(model.config)
        if dense:
            plugin.detach(model)
        else:
            plugin.attach(model, plugin.LowRankConfig(ranks=self._low_ranks(dense), made_by=self.made_by))

    def __repr__(self) -> str:
        return f"Compressed({self.source!r}, keeps {self.keep:.0%}, predicted to add {self.predicted:.3g} {self.unit})"


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy of the modules that shares the parameters and buffers: replacing a layer in it leaves the original alone."""
    held = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in held})


def compress(
    model: Any, tokenizer: Any = None, text: Any = None, *, keep: float | None = None, keep_bytes: float | None = None,
    loss_budget: float | None = None, objective: Weighting = "two-sided",
    ranks: Literal["global", "uniform"] | Mapping[str, int] = "global", evaluate: Texts = (),
    sweep: Sequence[float] = (), tokens: int = 20480, length: int | None = None, held_out: float = 0.2,
    prior: float | None = None, multiple: int = 1, batch: int = 2, include: Sequence[str] = (), exclude: Sequence[str] = (),
    likelihood: Likelihood | None = None, seed: int = 0, folder: str | Path | None = None, workers: int | None = None,
    progress: Listener = silent,
) -> Compressed:  # fmt: skip
    """Hold a model's layers in low rank, where the loss minds least.

    Every layer is cut in the metric of its inputs and of the loss's gradient at its outputs, and one threshold on the loss
    that a stored number saves gives all ranks (see :mod:`eigenscope.methods.whitening`).

    Args:
        model: a folder, a hub id, "demo", a transformers model, or any ``nn.Module``. Never changed.
        tokenizer: of a transformers model; None for its own, where the model is named, and for any other network.
        text: for a language model, as :func:`read_domains` takes it; for another network a list of batches: inputs, or
            (inputs, labels).
        keep: share of the layers' parameters that is left.
        keep_bytes: share of the model's bytes that is left.
        loss_budget: predicted loss added.
        objective: "two-sided"; "one-sided" (inputs alone, as SVD-LLM), "scaled" (as ASVD), or "plain" (SVD).
        ranks: "global" threshold, "uniform" share, or layer → rank.
        evaluate: further texts on which the loss is measured.
        sweep: shares for which the trade-off of size and loss is measured.
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
        prior=prior, multiple=multiple, batch=batch, include=tuple(include), exclude=tuple(exclude), seed=seed,
    )  # fmt: skip
    options.check()
    subject = make_subject(model, tokenizer, text, likelihood, options)
    with ExitStack() as stack:
        place = Path(folder) if folder is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        place.mkdir(parents=True, exist_ok=True)
        factored = factorise(subject, options, place, workers=workers, progress=progress)
        domains = read_domains(evaluate) if evaluate else ()
        return finish(factored, options, domains, sweep)


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
    factored: Factored, options: CompressOptions, evaluate: Sequence[Domain] = (), sweep: Iterable[float] = ()
) -> Compressed:
    """Choose the ranks, measure, and put the low-rank layers into a copy of the model."""
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
    layers, growths = factored.low_rank_layers(ranks)
    model = shared_copy(subject.model)
    lowrank.replace(model, layers)
    reports = [_layer_report(factored, ranks, place, growths) for place in range(len(factored.terms))]
    notes = [*factored.notes, *notes, *judge(ranks, measured["held-out text"])]
    return Compressed(model, factored, ranks, reports, measured, points, notes)


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
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
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


def _layer_report(factored: Factored, ranks: Ranks, place: int, growths: Mapping[str, float]) -> LayerReport:
    layer, curve = factored.terms[place], factored.curves[place]
    rank, full = ranks.ranks[layer.name], layer.rows * layer.cols
    dense = rank >= curve.dense
    numbers = full if dense else rank * (layer.rows + layer.cols - rank)
    return LayerReport(
        layer.name, layer.rows, layer.cols, rank, numbers, numbers / full, 0.0 if dense else float(layer.held_out[rank]),
        0.0 if dense else float(layer.fitted[rank]), growths.get(layer.name, 0.0), layer.kept_dense,
    )  # fmt: skip


def judge(ranks: Ranks, measured: Estimate) -> list[str]:
    """Whether the prediction held, in words."""
    notes = []
    if ranks.predicted > 0.0 and measured.value > 2.0 * ranks.predicted + 2.0 * measured.stderr:
        notes.append(
            f"the second-order prediction ({ranks.predicted:.3g}) is less than half of what was measured "
            f"({measured.value:.3g} ± {measured.stderr:.2g}): so much is cut that the layers' errors no longer add up"
        )
    if ranks.fitted > 0.0 and ranks.predicted > 1.5 * ranks.fitted:
        notes.append(
            f"on held-out text the layers lose {ranks.predicted / ranks.fitted:.1f} × what they do on the text they were "
            "fitted to: more text would help"
        )
    return notes
