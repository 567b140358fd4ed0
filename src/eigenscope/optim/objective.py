"""What a closure computes, as a function of one flat vector: value, gradient, Hessian, and values at other points."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from eigenscope.errors import InputError
from eigenscope.operators.evaluated import LossHessian, split

Closure = Callable[[], Any]


class Objective:
    """f(θ) = what the closure minimises + ½ Σ weight_decay ‖p‖² over the parameters that require a gradient.

    Args:
        closure: as the package's docstring says.
        groups: the optimiser's parameter groups.

    Raises:
        InputError: no closure.
    """

    def __init__(self, closure: Closure | None, groups: Sequence[Mapping[str, Any]]) -> None:
        if closure is None:
            raise InputError(
                "step() without a closure", expected="step(closure), as torch.optim.LBFGS has it",
                remedy="pass a function that computes and returns the loss",
            )  # fmt: skip
        self.closure = closure
        self.decays = [(p, float(g["weight_decay"])) for g in groups for p in g["params"] if p.requires_grad]
        self.parameters = [p for p, _ in self.decays]
        self.evaluations = 0
        self._noise = _noise_state(self.parameters)
        self.returned: Any = None

    def expand(self) -> tuple[float, LossHessian]:
        """f and its Hessian here, the gradient with it, which is put into ``p.grad``.

        Raises:
            InputError: the loss is not one finite real number, has no graph, or no second derivative.
        """
        loss, self.returned = self._evaluate()
        hessian = LossHessian(loss, self.parameters)
        value = float(loss.detach())
        if not (loss.isfinite() and hessian.gradient.isfinite().all()):
            raise InputError(
                f"the loss is {value:g}, or its gradient is not finite", where="closure", expected="finite numbers",
                remedy="look at the data and at the starting values",
            )  # fmt: skip
        parts = split(hessian.gradient, self.parameters)
        for p, part, unused in zip(self.parameters, parts, hessian.unused, strict=True):
            p.grad = None if unused else part.clone()
        return value, hessian

    def at(self, point: Tensor) -> float:
        """Move to the point (n,), and f there, by the random numbers of the first evaluation. May be NaN or infinite."""
        self.move(point)
        with torch.random.fork_rng(list(self._noise[1])):
            torch.set_rng_state(self._noise[0])
            for device, state in self._noise[1].items():
                torch.cuda.set_rng_state(state, device)
            gradients = [p.grad for p in self.parameters]
            for p in self.parameters:  # which zero_grad(set_to_none=False) would write to
                p.grad = None
            loss, _ = self._evaluate()
            for p, gradient in zip(self.parameters, gradients, strict=True):
                p.grad = gradient
            return float(loss.detach())

    def here(self) -> Tensor:
        """(n,) a copy of the parameters, in the widest of their dtypes."""
        dtype = max((p.dtype for p in self.parameters), key=lambda dtype: dtype.itemsize)
        return torch.cat([p.detach().reshape(-1).to(dtype) for p in self.parameters])

    def move(self, point: Tensor) -> None:
        """Set the parameters to the point (n,)."""
        with torch.no_grad():
            for p, part in zip(self.parameters, split(point, self.parameters), strict=True):
                p.copy_(part)

    def _evaluate(self) -> tuple[Tensor, Any]:
        """The loss with its graph, and what the closure returned, without one."""
        self.evaluations += 1
        # Fused attention kernels have no double backward.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), _HeldBack() as held:
            returned = self.closure()
        parts = held.losses or [returned]
        for part in parts:
            _check(part)
        with torch.enable_grad():
            loss = torch.stack([part.reshape(()) for part in parts]).sum()
            for p, decay in self.decays:
                if decay:
                    loss = loss + 0.5 * decay * p.square().sum().to(loss.device, loss.dtype)
        if returned is None:
            returned = loss
        return loss, returned.detach() if isinstance(returned, Tensor) else returned


class _HeldBack(TorchFunctionMode):
    """Keeps ``loss.backward()`` from running, and remembers what it was called on."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.Tensor.backward:
            return func(*args, **kwargs)
        if len(args) > 1 or kwargs.get("gradient") is not None or kwargs.get("inputs") is not None:
            raise InputError(
                "backward() with gradient or inputs", where="closure", expected="backward() of a scalar loss",
                remedy="return the loss and leave the differentiation to the optimiser",
            )  # fmt: skip
        self.losses.append(args[0])
        return None


def _check(loss: Any) -> None:
    if not isinstance(loss, Tensor):
        raise InputError(
            f"the closure returned {type(loss).__name__} and called no backward()", where="closure",
            expected="the loss, a tensor of one number",
        )  # fmt: skip
    if loss.numel() != 1 or not loss.is_floating_point():
        raise InputError(
            f"a loss of shape {tuple(loss.shape)} and {loss.dtype}", where="closure", expected="one real number",
            remedy="take its mean or sum",
        )  # fmt: skip
    if not loss.requires_grad:
        raise InputError(
            "the loss has no graph", where="closure", expected="a loss computed from the parameters",
            remedy="do not call detach(), item() or torch.no_grad() on the way",
        )  # fmt: skip


def _noise_state(parameters: Sequence[Tensor]) -> tuple[Tensor, dict[int, Tensor]]:
    """States of the generators that dropout draws from, on the CPU and on the CUDA devices of the parameters."""
    devices = {p.device.index for p in parameters if p.device.type == "cuda"}
    return torch.get_rng_state(), {index: torch.cuda.get_rng_state(index) for index in sorted(devices)}
