"""Each layer's terms in the metric of its inputs and of the loss, kept in files: one set serves every rank."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from eigenscope.engine.pool import stream, threads
from eigenscope.errors import EigenscopeError
from eigenscope.files import replacing
from eigenscope.measures.rank_curves import cut_losses
from eigenscope.methods.whitening import (
    Metric,
    WeightedSVD,
    held_out_losses,
    interpolate,
    metric,
    scaling,
    weighted_svd,
)
from eigenscope.models.lowrank import Interpolative, LowRankConv, LowRankLinear, low_rank_twin, matrix_of
from eigenscope.tasks.calibration import MomentFiles

Weighting = Literal["two-sided", "one-sided", "scaled", "plain"]
"""Metric of inputs and loss; of inputs (SVD-LLM); root mean square of inputs, to the power ½ (ASVD); none (SVD)."""

INPUT_DAMPING, OUTPUT_DAMPING = 1e-4, 1e-3
"""Of the mean eigenvalue."""
ASVD_POWER = 0.5
NEGLIGIBLE = 1e-13
"""Share of a layer's weighted energy that is rounding: the layer is of that rank."""


@dataclass(frozen=True)
class LayerTerms:
    """What was found of one layer.

    Attributes:
        name: of the layer.
        rows, cols: m and n of its matrix.
        fitted: (s + 1,) loss at each rank in the moments the terms were fitted to, in the unit of the objective.
        held_out: (s + 1,) the same in the moments held out.
        kept_dense: why it stays dense; "" where it need not.
    """

    name: str
    rows: int
    cols: int
    fitted: NDArray[np.float64]
    held_out: NDArray[np.float64]
    kept_dense: str = ""


@dataclass(frozen=True)
class Fitting:
    """How layers are fitted.

    Attributes:
        weighting: which metrics.
        prior: share of the random tokens' moments in the inputs' metric.
        damping: of the mean eigenvalue, added to all of the outputs' metric.
        fitted, held_out, random: the moments.
        samples: whose mean loss is in question, in the text fitted to and in that held out.
    """

    weighting: Weighting
    prior: float
    damping: float
    fitted: MomentFiles
    held_out: MomentFiles
    random: MomentFiles | None
    samples: tuple[int, int]

    def input_metric(self, layer: str) -> Metric | None:
        """Of the layer's inputs; None where the objective does not look at them."""
        if self.weighting == "plain":
            return None
        moment = self.fitted.inputs(layer)
        if moment is None:
            return None
        if self.weighting == "scaled":
            return scaling(moment, ASVD_POWER)
        other = self.random.inputs(layer) if self.random is not None and self.prior > 0.0 else None
        moment = moment.to(torch.float64)
        mixed = moment if other is None else (1.0 - self.prior) * moment + self.prior * other.to(torch.float64)
        return metric(mixed, INPUT_DAMPING)

    def output_metric(self, layer: str) -> Metric | None:
        """Of the loss at the layer's outputs; None where the objective does not look at it."""
        if self.weighting != "two-sided":
            return None
        moment = self.fitted.outputs(layer)
        return None if moment is None else metric(moment, self.damping)


def fit(
    model: nn.Module, groups: Sequence[Sequence[str]], fitting: Fitting, folder: Path, workers: int,
    progress: Callable[[], None] = lambda: None,
) -> Iterator[LayerTerms]:  # fmt: skip
    """The terms of every layer, written to the folder; those that are there already are read.

    Args:
        model: its weights are read.
        groups: layers that share their inputs, whose metric is then made once.
        fitting: how.
        folder: for the files.
        workers: groups at a time.
        progress: called after each group.

    Raises:
        OSError: no space.
    """

    def work(names: Sequence[str]) -> list[LayerTerms]:
        return list(_fit_group(model, names, fitting, folder))

    with threads(workers) as pool:
        for found in stream(pool, work, groups, in_flight=workers):
            progress()
            yield from found


def _fit_group(model: nn.Module, names: Sequence[str], fitting: Fitting, folder: Path) -> Iterator[LayerTerms]:
    shared: list[Metric | None] = []
    for name in names:
        rows, cols = matrix_of(model.get_submodule(name)).shape
        known = _read_terms(folder, name)
        if known is not None:
            yield known
            continue
        if not fitting.fitted.positions.get(name, 0):
            yield _dense(name, rows, cols, "no calibration token reached it")
            continue
        if fitting.weighting == "two-sided" and fitting.fitted.outputs(name) is None:
            yield _dense(name, rows, cols, "the loss does not depend on it")
            continue
        try:
            if not shared:
                shared.append(fitting.input_metric(name))
            W = matrix_of(model.get_submodule(name)).detach().to("cpu", torch.float64)
            if not bool(torch.isfinite(W).all()):
                yield _dense(name, rows, cols, "weights that are not finite")
                continue
            found = weighted_svd(W, fitting.output_metric(name), shared[0])
            terms = _judged(name, rows, cols, found, fitting)
        except (EigenscopeError, ArithmeticError, RuntimeError) as error:
            yield _dense(name, rows, cols, " ".join(str(error).split()))
            continue
        _write_terms(folder, terms, found)
        yield terms


def _judged(name: str, rows: int, cols: int, found: WeightedSVD, fitting: Fitting) -> LayerTerms:
    # The moments are means over positions; the loss is one over samples.
    fitted = fitting.fitted.positions[name] / fitting.samples[0] * cut_losses(found.values.numpy())
    fitted[fitted <= NEGLIGIBLE * fitted[0]] = 0.0
    share = fitting.held_out.positions.get(name, 0) / fitting.samples[1]
    outputs, inputs = fitting.held_out.outputs(name), fitting.held_out.inputs(name)
    seen = outputs is not None and inputs is not None
    # A layer that the held-out text does not reach: nothing better is known than what it loses on the other text.
    held_out = share * held_out_losses(found, outputs, inputs).numpy() if seen else fitted.copy()
    held_out[fitted == 0.0] = 0.0
    return LayerTerms(name, rows, cols, fitted, held_out)


def _dense(name: str, rows: int, cols: int, why: str) -> LayerTerms:
    nothing = np.zeros(min(rows, cols) + 1)
    return LayerTerms(name, rows, cols, nothing, nothing, why)


def _path(folder: Path, name: str) -> Path:
    return folder / f"terms-{name.replace('/', '_')}.safetensors"


def _write_terms(folder: Path, terms: LayerTerms, found: WeightedSVD) -> None:
    tensors = {
        "left": (found.left * found.values).to(torch.float32).contiguous(), "right": found.right.to(torch.float32).contiguous(),
        "fitted": torch.from_numpy(terms.fitted), "held_out": torch.from_numpy(terms.held_out),
    }  # fmt: skip
    with replacing(_path(folder, terms.name)) as beside:
        save_file(tensors, beside, metadata={"shape": json.dumps([terms.rows, terms.cols])})


def _read_terms(folder: Path, name: str) -> LayerTerms | None:
    path = _path(folder, name)
    if not path.is_file():
        return None
    with suppress(SafetensorError, KeyError, ValueError), safe_open(path, framework="pt") as file:
        rows, cols = json.loads(file.metadata()["shape"])
        return LayerTerms(
            name, rows, cols, file.get_tensor("fitted").numpy(), file.get_tensor("held_out").numpy()
        )  # fmt: skip
    return None


def cut(folder: Path, name: str, rank: int) -> tuple[Tensor, Tensor]:
    """The leading ``rank`` terms of a layer: (m, r) and (r, n), float64.

    Raises:
        OSError, SafetensorError: the file that :func:`fit` wrote is gone or damaged.
    """
    with safe_open(_path(folder, name), framework="pt") as file:
        left: Tensor = file.get_slice("left")[:, :rank]
        right: Tensor = file.get_slice("right")[:rank]
    return left.to(torch.float64), right.to(torch.float64)


def low_rank_layer(folder: Path, name: str, dense: nn.Module, rank: int) -> tuple[LowRankLinear | LowRankConv, float]:
    """The layer of that rank that takes the dense one's place, and the largest of its combinations' coefficients."""
    down, up, order, growth = interpolate(*cut(folder, name, rank))
    layer = low_rank_twin(dense, rank)
    bias = dense.bias if isinstance(dense.bias, Tensor) else None
    layer.load(Interpolative(down, up, order), bias)
    return layer, growth
