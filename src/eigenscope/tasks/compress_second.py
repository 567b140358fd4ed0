"""A second pass: every layer fitted again to the inputs that it has in the compressed model, its target the dense layer's outputs.

With x the inputs of a layer in the dense model and z those in the model as compressed so far, E‖G^½(W x − Ŵ z)‖² is least over
rank r for the best rank-r approximation of W E[x zᵀ] E[z zᵀ]⁻¹ in the metrics G and E[z zᵀ]: a regression, then a cut (reduced-rank
regression: Izenman, J. Multivariate Anal. 5, 1975, §2; for compression Wang et al., SVD-LLM, ICLR 2025, §3.3).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eigenscope.engine.progress import Listener, Progress, silent
from eigenscope.errors import EigenscopeError
from eigenscope.methods.whitening import interpolate, metric, weighted_svd
from eigenscope.models import lowrank
from eigenscope.models.statistics import call
from eigenscope.results import Estimate
from eigenscope.tasks.compress import MEMORY, Factored, sharing
from eigenscope.tasks.compress_factors import INPUT_DAMPING, Fitting
from eigenscope.tasks.compress_measure import HELD_OUT, LossProbe

SHARES = (0.1, 0.2)
"""Shares of the shifted inputs in the objective that are tried; the rest is the inputs of the dense model, which hold the
regression back: with the shifted ones alone it follows the calibration text, and all other text loses."""


@dataclass
class Shift:
    """Moments of a layer's inputs x in the dense model and z in the compressed one, means over positions.

    Attributes:
        inputs: (n, n) float64 E[z zᵀ].
        cross: (n, n) float64 E[x zᵀ].
        positions: how many.
    """

    inputs: Tensor
    cross: Tensor
    positions: int = 0


class _Enough(Exception):
    """All layers of the stage have been reached: what follows in the model need not run."""


def try_second_pass(
    factored: Factored, model: nn.Module, measured: dict[str, Estimate], probes: Sequence[LossProbe],
    growths: dict[str, float], *, progress: Listener = silent,
) -> tuple[nn.Module, dict[str, Estimate], str]:  # fmt: skip
    """Fit the low-rank linear layers again at each of :data:`SHARES`, and take the best model if it loses less on held-out text.

    All layers are fitted on the inputs that they have in ``model``; one after the other, on those that the layers before have been
    fitted to, the regressions' errors add up, and more is lost.

    Args:
        factored: the fitted model.
        model: compressed; not changed.
        measured: loss added by it, by text.
        probes: texts besides the held-out one.
        growths: largest coefficients of the layers' combinations, updated where the second pass is kept.
        progress: called after each batch.

    Returns:
        The better model, the loss it adds, and what was seen.
    """
    subject = factored.subject
    again = {share: _copied(model) for share in SHARES}
    found = fit_again(subject.model, model, again, factored.fitting, sharing(subject.layers, factored.fitting.fitted),
                      subject.fitted, progress=progress)  # fmt: skip
    best, seen = (model, measured), []
    for share, candidate in again.items():
        losses = factored.measure_model(candidate, probes)
        seen.append(f"{losses[HELD_OUT].value:.4g} with a share {share:g} of the inputs shifted")
        if losses[HELD_OUT].value < best[1][HELD_OUT].value:
            best = candidate, losses
            growths |= found[share]
    held = "the second pass is kept" if best[0] is not model else "the first pass is kept"
    first = measured[HELD_OUT]
    before = f"{first.value:.4g} ± {first.stderr:.2g}"
    return *best, f"loss added on held-out text by the first pass {before}, by a second {', '.join(seen)}: {held}"


def _copied(model: nn.Module) -> nn.Module:
    """A copy with low-rank layers of its own; all else is shared."""
    layers = (each for each in model.modules() if isinstance(each, lowrank.LowRankLinear))
    own = {id(tensor) for layer in layers for tensor in (*layer.parameters(), *layer.buffers())}
    held = [tensor for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in own]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in held})


def shifts(
    dense: nn.Module, compressed: nn.Module, layers: Sequence[str], batches: Iterable[Any], progress: Callable[[], None]
) -> dict[str, Shift]:
    """Run both models over the batches, up to the last of the layers.

    Args:
        dense, compressed: with linear layers of the same names.
        layers: whose inputs are wanted; those that nothing reaches are not in the result.
        batches: as the models take them; an ``attention_mask`` (w, l) says which positions count.
        progress: called after each batch.
    """
    found: dict[str, Shift] = {}
    for batch in batches:
        mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
        before, after = (_inputs(model, layers, batch, mask) for model in (dense, compressed))
        for name, x in before.items():
            if name not in after or after[name].shape != x.shape:
                continue  # a router that sends other tokens to it now: nothing to compare
            z = after[name]
            sums = found.setdefault(
                name, Shift(x.new_zeros(x.shape[1], x.shape[1]), x.new_zeros(x.shape[1], x.shape[1]))
            )
            sums.inputs.addmm_(z.T, z)
            sums.cross.addmm_(x.T, z)
            sums.positions += len(x)
        progress()
    for sums in found.values():
        sums.inputs = sums.inputs.to("cpu", torch.float64) / sums.positions
        sums.cross = sums.cross.to("cpu", torch.float64) / sums.positions
    return found


@torch.no_grad()
def _inputs(model: nn.Module, layers: Sequence[str], batch: Any, mask: Tensor | None) -> dict[str, Tensor]:
    """(p, n) float32 inputs of each layer."""
    found: dict[str, Tensor] = {}

    def seen(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given: Tensor = args[0] if args else next(iter(kwargs.values()))
            counted = mask is not None and given.shape[:-1] == mask.shape
            rows = given[mask.bool()] if counted and mask is not None else given.reshape(-1, given.shape[-1])
            found[name] = rows.to(torch.float32)
            if len(found) == len(layers):
                raise _Enough

        return hook

    handles = [model.get_submodule(name).register_forward_pre_hook(seen(name), with_kwargs=True) for name in layers]
    try:
        call(model, batch)
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found


def fit_again(
    model: nn.Module, compressed: nn.Module, again: Mapping[float, nn.Module], fitting: Fitting,
    groups: Sequence[Sequence[str]], batches: Sequence[Any], *, memory: float = MEMORY, progress: Listener = silent,
) -> dict[float, dict[str, float]]:  # fmt: skip
    """Fit low-rank linear layers again, at the ranks that they have.

    Args:
        model: the dense model.
        compressed: with low-rank layers, whose inputs are measured.
        again: share of the shifted inputs in the objective, from 0 (none: the first pass) to 1 → copy of ``compressed`` whose
            layers are fitted, in place.
        fitting: how they were fitted: metrics of inputs and outputs.
        groups: names of the layers, those together that share their inputs; in the model's order.
        batches: that both models run over.
        memory: bytes of moments held at a time; both models run again for the layers that do not fit.
        progress: called after each batch.

    Returns:
        By share, the largest coefficient of the combinations of each layer that was fitted again.
    """
    wanted = [[name for name in names if _fitted_again(compressed, name, fitting)] for names in groups]
    wanted = [names for names in wanted if names]
    stages: list[list[list[str]]] = []
    taken = math.inf
    for names in wanted:
        need = 2 * 8.0 * lowrank.matrix_of(model.get_submodule(names[0])).shape[1] ** 2
        if taken + need > memory:
            stages.append([])
            taken = 0.0
        stages[-1].append(names)
        taken += need
    growths: dict[float, dict[str, float]] = {share: {} for share in again}
    total, done = len(stages) * len(batches), 0

    def step() -> None:
        nonlocal done
        done += 1
        progress(Progress(done, total, "second pass"))

    for stage in stages:
        found = shifts(model, compressed, [names[0] for names in stage], batches, step)
        for names in stage:
            for share, candidate in again.items() if names[0] in found else ():
                growths[share] |= _fit_group(model, candidate, names, fitting, found[names[0]], share)
    return growths


def _fitted_again(compressed: nn.Module, name: str, fitting: Fitting) -> bool:
    linear = isinstance(compressed.get_submodule(name), lowrank.LowRankLinear)
    return linear and name not in fitting.fitted.repeated


def _fit_group(
    model: nn.Module, compressed: nn.Module, names: Sequence[str], fitting: Fitting, shift: Shift, share: float
) -> dict[str, float]:
    moment = fitting.fitted.inputs(names[0])
    if moment is None:
        return {}
    random = fitting.random.inputs(names[0]) if fitting.random is not None and fitting.prior > 0.0 else None
    unshifted = moment.to(torch.float64)
    inputs = (1.0 - share) * unshifted + share * shift.inputs
    cross = (1.0 - share) * unshifted + share * shift.cross
    if random is not None:
        # Where the text says little, the random tokens, whose inputs are taken as unshifted, hold the map where it was.
        other = random.to(torch.float64)
        inputs = (1.0 - fitting.prior) * inputs + fitting.prior * other
        cross = (1.0 - fitting.prior) * cross + fitting.prior * other
    try:
        metric_in = metric(inputs, INPUT_DAMPING)
    except EigenscopeError:
        return {}
    # The same damping on both sides, so that without a shift the target is W itself.
    cross.diagonal().add_(INPUT_DAMPING * float(inputs.diagonal().mean()))
    growths = {}
    for name in names:
        dense: Any = model.get_submodule(name)
        W = lowrank.matrix_of(dense).detach().to("cpu", torch.float64)
        target = metric_in.solve(cross.T @ W.T).T
        found = weighted_svd(target, fitting.output_metric(name), metric_in)
        layer: Any = compressed.get_submodule(name)
        left, right = found.left[:, : layer.rank] * found.values[: layer.rank], found.right[: layer.rank]
        down, up, order, growths[name] = interpolate(left, right)
        layer.load(lowrank.Interpolative(down, up, order), dense.bias)
    return growths
