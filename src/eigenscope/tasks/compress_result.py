"""The compressed model: what it is predicted and measured to lose, its report, and its files."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import nn

import eigenscope
from eigenscope.errors import InputError
from eigenscope.models import lowrank
from eigenscope.models.language import without_bars
from eigenscope.models.write import LARGEST_SHARD, replacing_folder
from eigenscope.results import Estimate
from eigenscope.tasks.calibration import Likelihood
from eigenscope.tasks.compress import Factored, Ranks
from eigenscope.tasks.compress_findings import findings, overfit
from eigenscope.tasks.compress_measure import HELD_OUT, TradeOff, bytes_of, loss_added, peak_memory, speeds
from eigenscope.tasks.compress_rivals import Rival
from eigenscope.tasks.compress_subject import Subject

if TYPE_CHECKING:
    import pandas as pd

REPORT = "eigenscope.json"
PROMPT = 256
"""Tokens of the prompt on which speed and memory are measured."""
UNITS: dict[Likelihood, str] = {
    "causal": "nats per token", "masked": "nats per hidden token", "classes": "nats per sample",
    "embedding": "½‖Δz‖² per passage",
}  # fmt: skip


@dataclass(frozen=True)
class LayerReport:
    """One layer of the compressed model.

    Attributes:
        name, rows, cols: of the dense layer.
        layer, role: number and role by its name; None and its last part where the name does not tell.
        rank: that it is held at; the small side where it stays dense.
        parameters: numbers that hold it.
        share: of the dense layer's.
        predicted: loss added by this layer alone, on held-out text.
        fitted: the same on the text that it was fitted to.
        growth: largest coefficient by which a held row enters another.
        note: why it stays dense.
    """

    name: str
    layer: int | None
    role: str
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
    """The result of :func:`eigenscope.compress`.

    Attributes:
        model: with low-rank layers; what has not been replaced is shared with the dense model.
        tokenizer: of a language model.
        ranks: of all layers.
        layers: a report on each.
        dense_loss: mean loss of the dense model, by text.
        measured: loss added, by text, "held-out text" first.
        trade_off: the curve, where it was asked for.
        rivals: other ways of cutting the model, where they were asked for.
        left_out: layers that were not in question, and why.
        notes: what the user should know.
        unit: of the losses.
        bytes: of the dense model and of this one.
        speed: reading → figure of the dense model and of this one: tokens per second of "prompt" and "generation", bytes of
            "peak memory"; empty until :meth:`measure_speed`.
        recovery: what training did; empty where there was none.
        made_by: versions and options.
    """

    def __init__(
        self, model: nn.Module, factored: Factored, ranks: Ranks, layers: Sequence[LayerReport],
        measured: Mapping[str, Estimate], trade_off: Sequence[TradeOff], rivals: Sequence[Rival], notes: Sequence[str],
    ) -> None:  # fmt: skip
        self.model, self.ranks, self.layers = model, ranks, tuple(layers)
        self.tokenizer = factored.subject.tokenizer
        self.source = factored.subject.source
        self.left_out = dict(factored.subject.left_out)
        self.measured, self.trade_off, self.rivals = dict(measured), tuple(trade_off), tuple(rivals)
        self.notes = tuple(notes)
        self.dense_loss = {name: factored.dense_loss(name) for name in measured}
        self.dense_parameters = factored.dense_parameters
        self.unit = UNITS[factored.subject.likelihood]
        self.bytes = (bytes_of(factored.subject.model), bytes_of(model))
        self.speed: dict[str, tuple[float, float]] = {}
        self.recovery: dict[str, Any] = {}
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
    def findings(self) -> list[str]:
        """What it amounts to, in sentences: whether the prediction holds, where the model loses more, what the rivals lose."""
        chosen = TradeOff(self.keep, self.predicted, self.measured)
        if self.recovery:  # nothing was predicted of the trained factors
            chosen = TradeOff(self.keep, 0.0, self.measured)
        return [*findings(self.trade_off, chosen, self.rivals), *overfit(self.predicted, self.ranks.fitted)]

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
            "bytes": self.bytes, "speed": self.speed, "recovery": self.recovery, "findings": self.findings,
            "trade-off": [asdict(point) for point in self.trade_off], "rivals": [asdict(rival) for rival in self.rivals],
            "left dense": self.left_out, "notes": list(self.notes), "made by": self.made_by, "layers": [asdict(layer) for layer in self.layers],
        }  # fmt: skip

    def report(self, path: str | Path) -> Path:
        """Write a page that needs nothing else: findings, the loss against the size, the layers, the losses.

        Raises:
            OSError: it cannot be written; an older file of that name is then untouched.
        """
        from eigenscope.report import compress_page

        compress_page.write_page(self.summary(), path)
        return Path(path)

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
                with without_bars():
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
        for name, batches in {HELD_OUT: subject.held_out, **texts}.items():
            probe = subject.probe(name, batches, seed)
            reference = probe.reference(subject.model)
            before = probe.losses(subject.model, reference)
            self.measured[name] = loss_added(before, probe.losses(self.model, reference))

    def measure_speed(self, subject: Subject) -> None:
        """Tokens per second and peak memory, dense and compressed, on the same prompt of the held-out text.

        Raises:
            InputError: a model that does not write.
        """
        if subject.likelihood != "causal":
            raise InputError("--speed of a model that does not write", expected="a causal language model")
        ids = subject.held_out[0]["input_ids"][:1, :PROMPT]
        dense, now = speeds([subject.model, self.model], ids)
        self.speed = {
            "prompt": (dense.prompt, now.prompt), "generation": (dense.generation, now.generation),
            "peak memory": (peak_memory(subject.model, ids), peak_memory(self.model, ids)),
        }  # fmt: skip

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
