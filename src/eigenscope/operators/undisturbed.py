"""Calling a model again and again as if it had never been called: same numbers each time, nothing left behind."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Inside, second derivatives exist and draws are repeatable; afterwards model and generators are as before, bit for bit.

    Modules see copies of their buffers (a kept graph refers to those, so that the originals are neither written nor
    restored by writing); dropout modules are in evaluation; gradients are recorded whatever the caller's mode;
    autocast is off. Kernels without a second derivative are avoided: fused attention, the fast path of
    ``nn.MultiheadAttention``, fused recurrent layers.
    """
    modules = list(model.modules())
    dropouts = [module for module in modules if isinstance(module, _DropoutNd) and module.training]
    buffers = [(module, dict(module._buffers)) for module in modules if module._buffers]
    copies: dict[int, Tensor | None] = {}
    with ExitStack() as stack:
        stack.enter_context(_generators_kept())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        devices = {parameter.device.type for parameter in model.parameters()}
        for device in devices & {"cpu", "cuda"}:
            stack.enter_context(torch.autocast(device, enabled=False))
        if "cuda" in devices and any(isinstance(module, nn.RNNBase) for module in modules):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        fast = torch.backends.mha.get_fastpath_enabled()
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            for dropout in dropouts:
                dropout.training = False
            for module, held in buffers:
                for name, buffer in held.items():
                    if buffer is not None and id(buffer) not in copies:
                        copies[id(buffer)] = buffer.detach().clone()
                    module._buffers[name] = None if buffer is None else copies[id(buffer)]
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for dropout in dropouts:
                dropout.training = True
            for module, held in buffers:
                module._buffers.clear()
                module._buffers.update(held)


def seed_all(seed: int) -> None:
    """Seed every generator that a loss may draw from: torch's, NumPy's and Python's."""
    # Not torch.manual_seed, which formats the call stack for accelerators that are not in use: a millisecond each time.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def state_notes(model: nn.Module) -> list[str]:
    """What is said about the modules that do not act on each sample alone, or draw at random."""
    notes = []
    dropout = sum(isinstance(module, _DropoutNd) and module.training and module.p > 0 for module in model.modules())
    if dropout:
        notes.append(f"{dropout} dropout modules are switched off for the products.")
    norms = sum(isinstance(module, _BatchNorm) and module.training for module in model.modules())
    if norms:
        notes.append(
            f"{norms} BatchNorm modules use the statistics of each batch, as in training: the operator depends on how the"
            " data are cut into batches; their running statistics are left as they were."
        )
    return notes


@contextmanager
def _generators_kept() -> Iterator[None]:
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
