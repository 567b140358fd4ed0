"""Training the factors of a compressed model to say what the dense one says."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eigenscope.engine.progress import Listener, Progress, silent
from eigenscope.errors import InputError
from eigenscope.files import replacing
from eigenscope.models.lowrank import LowRankConv, LowRankLinear
from eigenscope.models.statistics import call
from eigenscope.models.text import Windows
from eigenscope.tasks.calibration import Likelihood, embed

WARM_UP = 0.1
"""Share of the steps in which the learning rate rises; in the others it falls to nothing, along a cosine."""
CLIP = 1.0
"""Largest norm of the gradient."""
SAVED_EVERY = 10
ALIKE = 16
"""Tokens in a row that two windows share where they are taken to be of the same text."""


@dataclass(frozen=True)
class Recovery:
    """What training did.

    Attributes:
        steps: how many were taken in all.
        losses: of every step of this process: Kullback-Leibler divergence from the dense model, nats per token, or ½‖Δz‖².
        parameters: numbers trained.
    """

    steps: int
    losses: tuple[float, ...]
    parameters: int


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The factors of all low-rank layers, and their biases."""
    layers = [module for module in model.modules() if isinstance(module, LowRankLinear | LowRankConv)]
    return [parameter for layer in layers for parameter in layer.parameters()]


def divergence(student: nn.Module, teacher: nn.Module, batch: Any, likelihood: Likelihood) -> Tensor:
    """Mean over samples of KL(teacher ‖ student), or of ½‖Δz‖² between embeddings (Hinton, Vinyals & Dean, 2015, at temperature 1)."""
    if likelihood == "embedding":
        with torch.no_grad():
            target = embed(teacher, batch)
        return 0.5 * (embed(student, batch) - target).square().sum(dim=-1).mean()
    with torch.no_grad():
        wanted = _rows(call(teacher, batch), batch).log_softmax(dim=-1)
    said = _rows(call(student, batch), batch).log_softmax(dim=-1)
    return nn.functional.kl_div(said, wanted, reduction="batchmean", log_target=True)


def apart(given: Windows, others: Sequence[Mapping[str, Tensor]]) -> Windows:
    """The windows that share no sixteen tokens in a row with the others: text to train on that is not what is measured on.

    Args:
        given: to choose from.
        others: batches of ``input_ids`` and ``attention_mask``.
    """
    seen = {
        part for batch in others for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        for part in _parts(ids, mask.bool())
    }  # fmt: skip
    kept = [place for place in range(len(given)) if seen.isdisjoint(_parts(given.ids[place], given.mask[place]))]
    return given[torch.tensor(kept, dtype=torch.int64)]


def _parts(ids: Tensor, mask: Tensor) -> Iterator[tuple[int, ...]]:
    tokens = ids[mask].tolist()
    for start in range(max(1, len(tokens) - ALIKE + 1)):
        yield tuple(tokens[start : start + ALIKE])


def _rows(output: Any, batch: Any) -> Tensor:
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if mask is not None and logits.dim() == 3:
        return logits[mask.bool()]
    return logits.reshape(-1, logits.shape[-1])


def recover(
    student: nn.Module, teacher: nn.Module, batches: Sequence[Any], likelihood: Likelihood, *, steps: int,
    learning_rate: float, state: Path | None = None, progress: Listener = silent,
) -> Recovery:  # fmt: skip
    """Train the low-rank layers of ``student``, in place, by AdamW; what else it has stays as it is.

    Args:
        student: the compressed model.
        teacher: the dense model; not changed.
        batches: of which step i takes the i-th, from the beginning again after the last.
        likelihood: what the outputs are.
        steps: of training, in all.
        learning_rate: the largest, as a share of each factor's root mean square: the factors of one layer differ in size by
            orders of magnitude, and Adam's steps do not (Shazeer & Stern, Adafactor, ICML 2018, §8).
        state: file from which training goes on and to which it is kept, every ten steps and at the end.
        progress: called after each step.

    Raises:
        InputError: nothing to train, no batches, a loss that is not finite, or a state of other layers.
        OSError: the state cannot be written.
    """
    parameters = trainable(student)
    if not parameters or not batches or steps < 1:
        raise InputError(
            "nothing to train", where="recovery", expected="low-rank layers, batches and at least one step"
        )
    needed = {id(parameter): parameter.requires_grad for parameter in student.parameters()}
    student.eval()
    teacher.eval()
    for parameter in student.parameters():
        parameter.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        [{"params": [parameter], "scale": _scale(parameter)} for parameter in parameters],
        lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0,
    )  # fmt: skip
    begun = _resume(state, parameters, optimizer, steps)
    losses = []
    try:
        for step in range(begun, steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * group["scale"] * schedule(step, steps)
            loss = divergence(student, teacher, batches[step % len(batches)], likelihood)
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise InputError(
                    f"loss {losses[-1]} at step {step}", where="recovery", expected="a finite loss",
                    remedy="use a smaller learning rate",
                )  # fmt: skip
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()
            optimizer.zero_grad()
            progress(Progress(step + 1, steps, f"recovery, divergence {losses[-1]:.3f}"))
            if state is not None and ((step + 1) % SAVED_EVERY == 0 or step + 1 == steps):
                _keep(state, parameters, optimizer, step + 1, steps)
    finally:
        for parameter in student.parameters():
            parameter.requires_grad_(needed[id(parameter)])
    return Recovery(max(steps, begun), tuple(losses), sum(parameter.numel() for parameter in parameters))


def _scale(parameter: Tensor) -> float:
    """Root mean square, of a bias of zeros 1."""
    return float(parameter.detach().square().mean().sqrt()) or 1.0 if parameter.numel() else 1.0


def schedule(step: int, steps: int) -> float:
    """Share of the learning rate at a step: a linear rise, then half a cosine (Loshchilov & Hutter, SGDR, ICLR 2017, eq. 5)."""
    rise = max(1, round(WARM_UP * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1.0 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def _keep(
    path: Path, parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer, step: int, steps: int
) -> None:
    content = {
        "step": step, "steps": steps, "parameters": [parameter.detach() for parameter in parameters],
        "optimizer": optimizer.state_dict(),
    }  # fmt: skip
    with replacing(path) as beside:
        torch.save(content, beside)


def _resume(
    path: Path | None, parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer, steps: int
) -> int:  # fmt: skip
    if path is None or not path.is_file():
        return 0
    content = torch.load(path, weights_only=True)
    shapes = [tuple(kept.shape) for kept in content["parameters"]]
    if content["steps"] != steps or shapes != [tuple(parameter.shape) for parameter in parameters]:
        raise InputError(
            "is the state of another training", where=str(path), expected=f"{steps} steps of these layers",
            remedy="delete it to begin anew",
        )  # fmt: skip
    with torch.no_grad():
        for parameter, kept in zip(parameters, content["parameters"], strict=True):
            parameter.copy_(kept)
    optimizer.load_state_dict(content["optimizer"])
    return int(content["step"])
