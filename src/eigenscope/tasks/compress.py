"""``compress``: a model and some text → the model with layers held in low rank, its loss predicted and measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

import eigenscope
from eigenscope.engine.pool import available_cpus
from eigenscope.engine.progress import Listener, Progress, silent
from eigenscope.errors import InputError
from eigenscope.measures.rank_curves import (
    RankCurve,
    factored_cost,
    interpolative_cost,
    rank_curve,
    spend,
    spend_for_loss,
    uniform_ranks,
)
from eigenscope.models import lowrank
from eigenscope.results import Estimate
from eigenscope.tasks.calibration import MomentFiles, calibrate, passes
from eigenscope.tasks.compress_factors import OUTPUT_DAMPING, Fitting, LayerTerms, Weighting, fit, low_rank_layer
from eigenscope.tasks.compress_measure import LossProbe, loss_added
from eigenscope.tasks.compress_options import CompressOptions
from eigenscope.tasks.compress_subject import Subject

PRIORS = (0.0, 0.1, 0.3, 0.6)
"""Shares of random tokens in the inputs' metric among which the held-out text decides."""
DAMPINGS = (OUTPUT_DAMPING, 0.03, 0.3)
"""Dampings of the outputs' metric among which it decides then: few passages give few directions of the gradient."""
TRIED_GROUPS = 6
"""Groups of layers, evenly over the depth, on which it does."""
MEMORY = 4e9
"""Bytes of moments held at a time; more layers than fit are measured in further passes over the text."""


@dataclass(frozen=True)
class Ranks:
    """Ranks of all layers, and what is known of them.

    Attributes:
        ranks: layer → rank; the small side for a layer that stays dense.
        parameters: numbers that hold the layers in question.
        predicted: loss added, by the second-order expansion in the moments of the held-out text.
        fitted: the same in the moments that the layers were fitted to: less, as it has been made least there.
        allocation: "global", "uniform" or "given".
    """

    ranks: Mapping[str, int]
    parameters: int
    predicted: float
    fitted: float
    allocation: str


class Factored:
    """A model whose layers have been fitted once, for every rank.

    Attributes:
        subject: model and text.
        terms: of every layer, in the model's order.
        fitting: how they were fitted.
        folder: where the terms are.
        notes: what the user should know.
        plain: a layer is held by two plain factors, instead of rows and combinations.
        curves: loss against cost of every layer.
    """

    def __init__(
        self, subject: Subject, options: CompressOptions, terms: Sequence[LayerTerms], fitting: Fitting, folder: Path,
        notes: Sequence[str] = (), *, plain: bool = False,
    ) -> None:  # fmt: skip
        self.subject, self.options, self.fitting, self.folder = subject, options, fitting, folder
        self.terms, self.notes, self.plain = tuple(terms), tuple(notes), plain
        self._held = subject.probe("held-out text", subject.held_out, options.seed)
        self._dense: dict[str, tuple[Tensor, tuple[Tensor, ...]]] = {}
        self.curves = [self._curve(layer) for layer in self.terms]

    def _curve(self, layer: LayerTerms) -> RankCurve:
        # The held-out losses: those fitted are least where the moments are poorest, and would draw the cuts there.
        multiple = min(layer.rows, layer.cols) if layer.kept_dense else self.options.multiple
        return rank_curve(layer.held_out, layer.rows, layer.cols, multiple=multiple, plain=self.plain)

    @property
    def prior(self) -> float:
        """Share of random tokens that was chosen."""
        return self.fitting.prior

    @property
    def dense_parameters(self) -> int:
        """Numbers that hold the layers in question before."""
        return sum(layer.rows * layer.cols for layer in self.terms)

    def uniform(self, share: float) -> Ranks:
        """The same share of every layer's parameters."""
        return self._ranks(uniform_ranks(self.curves, share), "uniform")

    def within(self, parameters: float) -> Ranks:
        """Ranks of least predicted loss among those that take at most so many numbers."""
        return self._ranks(spend(self.curves, parameters), "global")

    def for_loss(self, loss: float) -> Ranks:
        """The fewest numbers whose predicted loss is at most ``loss``."""
        return self._ranks(spend_for_loss(self.curves, loss), "global")

    def given(self, ranks: Mapping[str, int]) -> Ranks:
        """Ranks by layer; layers that are not named stay dense.

        Raises:
            InputError: a layer that is not in question, or a rank that its curve has not.
        """
        unknown = [name for name in ranks if name not in {layer.name for layer in self.terms}]
        if unknown:
            raise InputError(f"ranks for {unknown[0]!r}", expected=f"layers such as {self.terms[0].name!r}")
        chosen = []
        for layer, curve in zip(self.terms, self.curves, strict=True):
            rank = ranks.get(layer.name, curve.dense)
            if rank < 1 or rank > curve.dense:
                raise InputError(f"rank {rank}", where=layer.name, expected=f"1 to {curve.dense}")
            chosen.append(int(rank))
        return self._ranks(chosen, "given")

    def _ranks(self, ranks: Sequence[int], allocation: str) -> Ranks:
        cost, predicted, fitted = 0, 0.0, 0.0
        for layer, rank in zip(self.terms, ranks, strict=True):
            if rank >= min(layer.rows, layer.cols):
                cost += layer.rows * layer.cols
            else:
                cost += (factored_cost if self.plain else interpolative_cost)(rank, layer.rows, layer.cols)
                predicted += float(layer.held_out[rank])
                fitted += float(layer.fitted[rank])
        names = [layer.name for layer in self.terms]
        return Ranks(dict(zip(names, ranks, strict=True)), cost, predicted, fitted, allocation)

    @contextmanager
    def installed(self, ranks: Ranks) -> Iterator[dict[str, float]]:
        """The model with these ranks, for as long as the block lasts; gives the growth of each layer's combinations."""
        layers, growths = self.low_rank_layers(ranks)
        dense = {name: self.subject.model.get_submodule(name) for name in layers}
        lowrank.replace(self.subject.model, layers)
        try:
            yield growths
        finally:
            lowrank.replace(self.subject.model, dense)

    def low_rank_layers(self, ranks: Ranks) -> tuple[dict[str, nn.Module], dict[str, float]]:
        """The new layers by name, and the largest coefficient of each one's combinations."""
        layers: dict[str, nn.Module] = {}
        growths: dict[str, float] = {}
        for layer, curve in zip(self.terms, self.curves, strict=True):
            rank = ranks.ranks[layer.name]
            if rank < curve.dense:
                dense = self.subject.model.get_submodule(layer.name)
                layers[layer.name], growths[layer.name] = low_rank_layer(self.folder, layer.name, dense, rank)
        return layers, growths

    def measure(self, ranks: Ranks, probes: Sequence[LossProbe] = ()) -> dict[str, Estimate]:
        """Loss added on the held-out text, and on each probe."""
        self._measure_dense([self._held, *probes])
        with self.installed(ranks):
            return self.measure_model(self.subject.model, probes)

    def measure_model(self, model: nn.Module, probes: Sequence[LossProbe] = ()) -> dict[str, Estimate]:
        """The same of a compressed model as it is."""
        self._measure_dense([self._held, *probes])
        found = {}
        for probe in (self._held, *probes):
            before, reference = self._dense[probe.name]
            found[probe.name] = loss_added(before, probe.losses(model, reference))
        return found

    def _measure_dense(self, probes: Sequence[LossProbe]) -> None:
        for probe in probes:
            if probe.name not in self._dense:
                reference = probe.reference(self.subject.model)
                self._dense[probe.name] = (probe.losses(self.subject.model, reference), reference)

    def dense_loss(self, name: str = "held-out text") -> float:
        """Mean loss of the dense model on a text that has been measured."""
        return float(self._dense[name][0].mean())

    def better(self, ranks: Ranks, share: float) -> tuple[Ranks, str]:
        """These ranks, or uniform ones of the same share where they lose less on the held-out text; and what was seen."""
        other = self.uniform(share)
        ours, theirs = (self.measure(each)["held-out text"] for each in (ranks, other))
        seen = (
            f"on held-out text global ranks add {ours.value:.4f} ± {ours.stderr:.4f}, uniform ones {theirs.value:.4f}"
        )
        return (ranks, seen) if ours.value <= theirs.value else (other, f"{seen}: uniform ones are kept")


def factorise(
    subject: Subject, options: CompressOptions, folder: Path, *, workers: int | None = None, progress: Listener = silent
) -> Factored:
    """Measure the moments, choose the prior, fit every layer.

    Args:
        subject: model and text.
        options: what is asked for.
        folder: for moments and terms; what an interrupted run left there is used again.
        workers: groups of layers fitted at a time.
        progress: called after each batch and each group.

    Raises:
        InputError: as in :func:`calibrate`; or a folder of another run.
        OSError: no space.
    """
    _claim(folder, subject, options)
    workers = workers or available_cpus()
    steps = _Steps(progress)
    fitting = _measured(subject, options, folder, steps)
    groups = sharing(subject.layers, fitting.fitted)
    notes = [*subject.notes, *(f"{name} is used more than once in a pass" for name in fitting.fitted.repeated)]
    if options.prior is None and fitting.random is not None:
        tried = [replace(fitting, prior=prior) for prior in PRIORS]
        fitting, seen = _best(subject, options, tried, groups, folder, workers)
        notes.append(
            f"share of random tokens in the inputs' metric: {fitting.prior:g}; held-out loss of some layers {seen}"
        )
    if options.objective == "two-sided":
        tried = [replace(fitting, damping=damping) for damping in DAMPINGS]
        fitting, seen = _best(subject, options, tried, groups, folder, workers)
        notes.append(f"damping of the outputs' metric: {fitting.damping:g}; held-out loss of some layers {seen}")
    terms_folder = _terms_folder(folder, fitting)
    steps.total = steps.done + len(groups)
    terms = _fitted(subject, fitting, terms_folder, workers, steps.advance("layers"))
    return Factored(subject, options, terms, fitting, terms_folder, notes)


def refitted(factored: Factored, weighting: Weighting, *, progress: Listener = silent) -> Factored:
    """The same model fitted to the same text with another objective, its layers held by two plain factors.

    Args:
        factored: of the two-sided objective, or of any whose inputs have been measured.
        weighting: the objective; random tokens have no part in it.
        progress: called after each group of layers.
    """
    fitting = replace(factored.fitting, weighting=weighting, prior=0.0, random=None)
    folder = factored.folder.parent / f"terms-{weighting}"
    folder.mkdir(exist_ok=True)
    steps = _Steps(progress)
    steps.total = len(sharing(factored.subject.layers, fitting.fitted))
    terms = _fitted(factored.subject, fitting, folder, available_cpus(), steps.advance(f"layers, {weighting}"))
    found = Factored(factored.subject, factored.options, terms, fitting, folder, plain=True)
    found._dense = factored._dense
    return found


def _fitted(
    subject: Subject, fitting: Fitting, folder: Path, workers: int, progress: Callable[[], None]
) -> list[LayerTerms]:
    """The terms of all layers, in the model's order."""
    groups = sharing(subject.layers, fitting.fitted)
    found = {layer.name: layer for layer in fit(subject.model, groups, fitting, folder, workers, progress)}
    return [found[name] for name in subject.layers]


class _Steps:
    """Counts what has been done, for whoever listens."""

    def __init__(self, listener: Listener) -> None:
        self.listener, self.done, self.total = listener, 0, 0

    def advance(self, label: str) -> Callable[[], None]:
        """A function that counts one step of that label at each call."""

        def step() -> None:
            self.done += 1
            self.listener(Progress(self.done, max(self.total, self.done), label))

        return step


def _measured(subject: Subject, options: CompressOptions, folder: Path, steps: _Steps) -> Fitting:
    """The moments of the text fitted to, of that held out, and of random tokens where they are wanted."""
    model, likelihood, seed = subject.model, subject.likelihood, options.seed
    groups = passes(model, subject.layers, MEMORY)
    steps.total = len(groups) * (2 * len(subject.fitted) + len(subject.held_out))
    fitted = calibrate(
        model, groups, lambda: subject.fitted, "fitted", folder,
        likelihood=likelihood if options.objective == "two-sided" else None, seed=seed, progress=steps.advance("moments"),
    )  # fmt: skip
    held_out = calibrate(
        model, groups, lambda: subject.held_out, "held-out", folder,
        likelihood=likelihood, seed=seed + 1, progress=steps.advance("moments of the held-out text"),
    )  # fmt: skip
    random = None
    if subject.random_tokens and options.prior != 0.0 and options.objective in ("two-sided", "one-sided"):
        random = calibrate(
            model, groups, lambda: subject.random_batches(seed + 2), "random", folder,
            likelihood=None, seed=seed, progress=steps.advance("moments of random tokens"),
        )  # fmt: skip
    return Fitting(
        options.objective, options.prior or 0.0, OUTPUT_DAMPING, fitted, held_out, random, subject.samples
    )  # fmt: skip


def sharing(layers: Sequence[str], moments: MomentFiles) -> list[list[str]]:
    """The layers in groups that are given the same inputs, in the order of their first ones."""
    groups: dict[str, list[str]] = {}
    for name in layers:
        groups.setdefault(moments.leaders.get(name, name), []).append(name)
    return list(groups.values())


def _best(
    subject: Subject, options: CompressOptions, tried: Sequence[Fitting], groups: Sequence[Sequence[str]], folder: Path,
    workers: int,
) -> tuple[Fitting, str]:  # fmt: skip
    """The fitting with which a few layers, at the rank that the target gives them, lose least on held-out text; and what was seen."""
    step = max(1, len(groups) // TRIED_GROUPS)
    sample = groups[step // 2 :: step][:TRIED_GROUPS]
    keep = options.keep or options.keep_bytes or 0.8
    losses = []
    for fitting in tried:
        lost = 0.0
        for layer in fit(subject.model, sample, fitting, _terms_folder(folder, fitting), workers):
            if not layer.kept_dense:
                rank = uniform_ranks([rank_curve(layer.held_out, layer.rows, layer.cols)], keep)[0]
                lost += float(layer.held_out[rank])
        losses.append(lost)
    return tried[losses.index(min(losses))], ", ".join(f"{lost:.4g}" for lost in losses)


def _terms_folder(folder: Path, fitting: Fitting) -> Path:
    place = folder / f"terms-{fitting.prior:g}-{fitting.damping:g}"
    place.mkdir(exist_ok=True)
    return place


def _claim(folder: Path, subject: Subject, options: CompressOptions) -> None:
    """Write down what the folder's files are of, or find that they are of something else."""
    fitting = {
        key: value for key, value in asdict(options).items()
        if key not in ("keep", "keep_bytes", "loss_budget", "ranks", "allocation", "multiple", "second_pass")
    }  # fmt: skip
    digest = hashlib.sha256()
    for name, parameter in subject.model.named_parameters():
        values = parameter.detach().reshape(-1)
        digest.update(name.encode() + repr((tuple(parameter.shape), str(parameter.dtype))).encode())
        digest.update(values[:: max(1, len(values) // 4096)].to(torch.float64).cpu().numpy().tobytes())
    for batch in (*subject.fitted, *subject.held_out):
        items = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else [batch]
        for item in items:
            digest.update(item.detach().cpu().contiguous().numpy().tobytes())
    identity = {"eigenscope": eigenscope.__version__, "content": digest.hexdigest(), **fitting}
    text = json.dumps(identity, sort_keys=True, default=str)
    path = folder / "identity.json"
    if path.is_file() and path.read_text("utf-8") != text:
        raise InputError(
            "holds the unfinished work of another model, text or options", where=str(folder), expected="its own work",
            remedy="delete the folder, or name another output",
        )  # fmt: skip
    path.write_text(text, "utf-8")
