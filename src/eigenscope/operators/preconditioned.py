"""A symmetric operator in the metric of an optimiser: D^-½ H D^-½, with D from the optimiser's state."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from eigenscope.errors import InputError
from eigenscope.operators.base import LinearOperator
from eigenscope.operators.loss_operator import LossOperator


@final
class Preconditioned(LinearOperator):
    """D^-½ H D^-½, symmetric, with the eigenvalues of D⁻¹H.

    Args:
        operand: H, symmetric, (p, p).
        diagonal: (p,) entries of D, positive.

    Attributes:
        diagonal: D.

    Raises:
        InputError: H is not symmetric, or D is not positive, finite, and of its length.
    """

    def __init__(self, operand: LinearOperator, diagonal: Tensor) -> None:
        if not operand.symmetric:
            raise InputError("the operator is not symmetric", where=repr(operand))
        if diagonal.shape != operand.shape[:1]:
            raise InputError(
                f"a preconditioner of shape {tuple(diagonal.shape)}",
                where=repr(operand),
                expected=f"({operand.shape[0]},)",
            )
        diagonal = diagonal.detach().to(device=operand.device, dtype=operand.dtype).clone()
        bad = ~(diagonal.isfinite() & (diagonal > 0.0))
        if bool(bad.any()):
            first = int(bad.nonzero()[0])
            raise InputError(
                f"{int(bad.sum())} entries of the preconditioner are not positive, the first, {first}, is"
                f" {float(diagonal[first]):g}", where=repr(operand), expected="positive, finite numbers",
                remedy="a second moment of 0 with eps=0 moves without limit: give the optimiser an eps",
            )  # fmt: skip
        super().__init__(operand.shape, operand.dtype, operand.device, symmetric=True)
        self.operand, self.diagonal = operand, diagonal
        self.verified = operand.verified
        self._scale = diagonal.rsqrt().unsqueeze(1)

    def _matmat(self, X: Tensor) -> Tensor:
        return self._scale * (self.operand @ (self._scale * X))

    def _adjoint(self) -> LinearOperator:
        return self


def preconditioned(H: LinearOperator, by: torch.optim.Optimizer | Tensor) -> Preconditioned:
    """H in the metric that an optimiser steps in: D^-½ H D^-½, where its step is −η D⁻¹ (its mean of gradients).

    Args:
        H: symmetric operator (p, p); one of a model's loss where ``by`` is an optimiser.
        by: a live optimiser that has stepped over these parameters, or the (p,) diagonal of D. With moments v, β₁, β₂, eps
            after t steps, D is

            - Adam, AdamW: (1 − β₁ᵗ)(√(v/(1 − β₂ᵗ)) + eps), so that full-batch
              Adam is unstable beyond λ_max = (2 + 2β₁)/((1 − β₁)η) (Cohen et al., "Adaptive gradient methods at the edge of
              stability", 2022, eqs. (3), (6)); with amsgrad the largest v;
            - RMSprop: √v + eps, centred √(v − g²) + eps; Adagrad: √Σg² + eps; SGD: 1.

            Where groups have different learning rates, D is divided by that of the group over the first group's.

    Raises:
        InputError: another optimiser, one that has not stepped, or parameters that it does not hold.
    """
    if isinstance(by, Tensor):
        return Preconditioned(H, by)
    if not isinstance(by, torch.optim.Optimizer):
        raise InputError(f"preconditioned by a {type(by).__name__}", expected="a torch optimiser, or a tensor")
    if not isinstance(H, LossOperator):
        raise InputError(
            "the operator knows no parameters", where=repr(H), expected="a Hessian, Gauss-Newton or Fisher operator",
            remedy="pass the diagonal as a tensor",
        )  # fmt: skip
    return Preconditioned(H, diagonal_of(by, H))


def diagonal_of(optimizer: torch.optim.Optimizer, H: LossOperator) -> Tensor:
    """(p,) diagonal of D: see :func:`preconditioned`.

    Raises:
        InputError: as there.
    """
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    first = float(optimizer.param_groups[0]["lr"])
    parts: list[Tensor | None] = []
    for name, parameter in zip(H.originals.names, H.originals.tensors):
        group = groups.get(id(parameter))
        if group is None:
            raise InputError(
                "it is not among the optimiser's parameters", where=name, remedy="choose others by params=, or blocks"
            )
        state = optimizer.state.get(parameter, {})
        part = _diagonal(optimizer, group, state, parameter, name).to(H.dtype)
        rate = float(group["lr"])
        parts.append(part if rate == first else part * (first / rate))
    return H.layout.flat(parts)


def _diagonal(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], state: dict[str, Any], parameter: Tensor, name: str
) -> Tensor:
    optim = torch.optim
    if isinstance(optimizer, optim.SGD):
        return torch.ones_like(parameter)
    if not isinstance(optimizer, optim.Adam | optim.AdamW | optim.RMSprop | optim.Adagrad):
        raise InputError(
            f"the metric of {type(optimizer).__name__} is not known", where="preconditioned",
            expected="Adam, AdamW, RMSprop, Adagrad or SGD", remedy="pass the diagonal as a tensor",
        )  # fmt: skip
    steps = float(state.get("step", 0.0))
    if steps < 1.0:
        raise InputError("it has no state: it has not been stepped", where=f"{type(optimizer).__name__}, {name}")
    eps = float(group["eps"])
    if isinstance(optimizer, optim.Adagrad):
        return _double(state["sum"]).sqrt() + eps
    if isinstance(optimizer, optim.RMSprop):
        second = _double(state["square_avg"])
        centre = _double(state["grad_avg"]).square() if group["centered"] else 0.0
        return (second - centre).clamp(min=0.0).sqrt() + eps
    beta1, beta2 = (float(beta) for beta in group["betas"])
    second = _double(state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"])
    found: Tensor = (1.0 - beta1**steps) * ((second / (1.0 - beta2**steps)).sqrt() + eps)
    return found


def _double(tensor: Tensor) -> Tensor:
    # A mean of squares may be denormal in float32, and its difference from a square negative.
    return tensor.detach().double()
