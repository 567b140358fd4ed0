"""A mean loss over all the data, as a function of the chosen parameters of a model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from eigenscope.errors import InputError
from eigenscope.operators import losses
from eigenscope.operators.distributed import Group
from eigenscope.operators.parameters import Layout, Selection, chosen
from eigenscope.operators.undisturbed import seed_all, state_notes, undisturbed

WIDE = (torch.float32, torch.float64)


class Objective:
    """L(θ) = Σ wᵢ ℓᵢ(θ) / Σ wᵢ over batches i, where ℓᵢ is the mean loss of batch i and wᵢ what it is a mean over.

    Args:
        model: whose parameters are θ; it is left as it was, bit for bit.
        loss: loss(model, batch), a scalar tensor, the mean over the batch; None for ``model(**batch).loss``.
        batches: of any form that the loss understands.
        params: which parameters θ is made of.
        count: the weight of a batch; None for :func:`eigenscope.operators.losses.counted`.
        dtype: to compute in, float32 or float64; None for that of the parameters, float32 where they are in half
            precision. Where it differs from theirs, a copy of the model is used.
        outputs: outputs(model, batch), where the loss is loss(outputs, batch).
        distributed: None for a sum over the processes of torch.distributed where that is initialised.

    Raises:
        InputError: no data, a weight that is not positive, nothing selected, or a dtype without products.
    """

    def __init__(
        self, model: nn.Module, loss: losses.Loss | None, batches: Iterable[Any], params: Selection = None,
        count: losses.Count | None = None, dtype: torch.dtype | None = None, distributed: bool | None = None,
        outputs: Callable[..., Any] | None = None,
    ) -> None:  # fmt: skip
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        self.batches = losses.listed(batches)
        self.originals, notes = chosen(model, params)
        self.dtype = _dtype(self.originals, dtype)
        self.cast = any(tensor.dtype != self.dtype for tensor in self.originals.tensors)
        self.layout = self.originals
        if self.cast:
            model = _copy(model, self.dtype)
            own = dict(model.named_parameters())
            self.layout = Layout(self.originals.names, tuple(own[name] for name in self.originals.names))
            notes.append(f"computed in {_name(self.dtype)} on a copy of the model, which does not follow it.")
        devices = {tensor.device for tensor in self.layout.tensors}
        if len(devices) > 1:
            raise InputError(
                f"parameters on {len(devices)} devices", expected="one", remedy="select those of one device"
            )
        self.device = devices.pop()
        self.model, self._outputs = model, outputs
        self._loss = loss if loss is not None else _own_loss
        self.weights, unit = _weights(model, self.batches, count)
        self.group = Group(distributed)
        self.total = self.group.total(sum(self.weights), self.device)
        if self.group.size > 1:
            notes.append(f"the sum over {self.group.size} processes, weighted by their {unit}: {self.total:,g} in all.")
        elif len(self.batches) > 1:
            notes.append(f"{len(self.batches)} batches, weighted by their {unit}: {self.total:,g} in all.")
        self.notes = notes + state_notes(model)
        self._mark = torch.stack(self.norms())

    def batch(self, index: int) -> Any:
        """A batch on the device, in the dtype of a copied model; and the generators are seeded."""
        seed_all(index)
        return losses.moved(self.batches[index], self.device, self.dtype if self.cast else None)

    def loss(self, index: int, outputs: Any = None) -> Tensor:
        """The mean loss of a batch, with its graph; inside :func:`undisturbed` only.

        Args:
            index: of the batch.
            outputs: of the model, where the loss is a function of them and they are known.

        Raises:
            InputError: not a finite real scalar, or not a function of the parameters.
        """
        batch = self.batch(index)
        if self._outputs is not None and outputs is None:
            outputs = self._outputs(self.model, batch)
        seed_all(index)
        value = self._loss(self.model if self._outputs is None else outputs, batch)
        where = f"loss of batch {index}"
        if not isinstance(value, Tensor):
            remedy = "return its .loss" if hasattr(value, "loss") else ""
            raise InputError(f"a {type(value).__name__}", where=where, expected="a scalar tensor", remedy=remedy)
        if value.numel() != 1 or value.is_complex():
            raise InputError(
                f"a {value.dtype} tensor of shape {tuple(value.shape)}", where=where, expected="a real scalar",
                remedy="take its mean",
            )  # fmt: skip
        if not bool(value.isfinite()):
            raise InputError(f"it is {value.item()}", where=where, expected="a finite number")
        if not value.requires_grad:
            raise InputError(
                "it has no gradient", where=where, expected="a function of the model's parameters",
                remedy="compute it from the model it is given, without detach, item or no_grad",
            )  # fmt: skip
        return value.reshape(())

    def share(self, index: int) -> float:
        """wᵢ / Σ wᵢ."""
        return self.weights[index] / self.total

    def value(self, shift: Tensor | None = None) -> float:
        """L(θ + shift), a double precision sum over the batches."""
        with undisturbed(self.model), self.shifted(shift):
            part = math.fsum(self.share(i) * float(self.loss(i).detach()) for i in range(len(self.batches)))
        return self.group.total(part, self.device)

    def gradient(self, shift: Tensor | None = None) -> Tensor:
        """∇L(θ + shift), (p,)."""
        with undisturbed(self.model), self.shifted(shift):
            total = torch.zeros(self.layout.size, dtype=self.dtype, device=self.device)
            for index in range(len(self.batches)):
                total.add_(self.batch_gradient(index), alpha=self.share(index))
        return self.group.sum(total)

    def batch_gradient(self, index: int) -> Tensor:
        """∇ℓᵢ(θ), (p,), without a graph; inside :func:`undisturbed` only."""
        return self.batch_slope(index)[1]

    def batch_slope(self, index: int) -> tuple[float, Tensor]:
        """ℓᵢ(θ) and its gradient, as in :meth:`batch_gradient`."""
        loss = self.loss(index)
        parts = torch.autograd.grad(loss, self.layout.tensors, allow_unused=True)
        return float(loss.detach()), self.layout.flat(parts)

    def require_unchanged(self) -> None:
        """Refuse to go on where the parameters are no longer those that the operator was made at.

        Raises:
            InputError: they have changed.
        """
        if not torch.equal(torch.stack(self.norms()), self._mark):
            raise InputError(
                "the parameters have changed since the operator was made", remedy="make a new operator after each step"
            )

    def norms(self) -> list[Tensor]:
        """The norm of each parameter."""
        # Not their versions: what is written through .data does not raise those.
        return [torch.linalg.vector_norm(tensor.detach()) for tensor in self.layout.tensors]

    @contextmanager
    def shifted(self, shift: Tensor | None) -> Iterator[None]:
        """Inside, the parameters are θ + shift; afterwards they are the very tensors that they were."""
        if shift is None:
            yield
            return
        held = [tensor.data for tensor in self.layout.tensors]
        try:
            for tensor, old, step in zip(self.layout.tensors, held, self.layout.split(shift.to(self.dtype))):
                tensor.data = old + step
            yield
        finally:
            for tensor, old in zip(self.layout.tensors, held):
                tensor.data = old


def _own_loss(model: Callable[..., Any], batch: Any) -> Tensor:
    if not isinstance(batch, Mapping):
        raise InputError(
            f"a batch is a {type(batch).__name__}", where="loss=None", expected="a mapping of the model's arguments",
            remedy="pass loss(model, batch)",
        )  # fmt: skip
    output = model(**batch)
    found = getattr(output, "loss", None)
    if not isinstance(found, Tensor):
        raise InputError(
            "the model's output has no loss",
            where="loss=None",
            remedy="put labels into the batch, or pass loss(model, batch)",
        )
    return found


def _weights(model: nn.Module, batches: list[Any], count: losses.Count | None) -> tuple[list[float], str]:
    if count is not None:
        weights, unit = [float(count(batch)) for batch in batches], "count"
    else:
        found = [losses.counted(model, batch) for batch in batches]
        weights, unit = [weight for weight, _ in found], found[0][1]
    for index, weight in enumerate(weights):
        if not (math.isfinite(weight) and weight > 0.0):
            raise InputError(
                f"its weight is {weight:g}", where=f"batch {index}", expected="a positive number",
                remedy="leave out batches in which nothing counts",
            )  # fmt: skip
    return weights, unit


def _dtype(layout: Layout, dtype: torch.dtype | None) -> torch.dtype:
    if dtype is None:
        dtype = layout.tensors[0].dtype
        for tensor in layout.tensors:
            dtype = torch.promote_types(dtype, tensor.dtype)
        if dtype in (torch.float16, torch.bfloat16):
            return torch.float32
    if dtype not in WIDE:
        raise InputError(
            f"products in {_name(dtype)}", expected="float32 or float64", remedy="pass dtype=torch.float64"
        )
    return dtype


def _copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    try:
        return copy.deepcopy(model).to(dtype)
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"the model cannot be copied: {error}", where=type(model).__name__,
            remedy=f"pass model.to({dtype}) yourself, without dtype",
        ) from error  # fmt: skip


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
