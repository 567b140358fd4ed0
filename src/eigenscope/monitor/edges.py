"""Where an optimiser becomes unstable on a quadratic: the largest curvature that its learning rate bears."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import optim


class EdgeOfStability(UserWarning):
    """The curvature has reached what the learning rate bears."""


ADAPTIVE = (optim.Adam, optim.AdamW, optim.RMSprop, optim.Adagrad)
"""Optimisers with a preconditioner of their own."""


@dataclass(frozen=True)
class Edge:
    """The bound of an optimiser, on an eigenvalue of H or of the preconditioned D^-½ H D^-½.

    Attributes:
        value: above it the quadratic model diverges along the eigenvector.
        preconditioned: whose largest eigenvalue it bounds.
        learning_rate: of the first group, in whose terms the others' are part of D.
    """

    value: float
    preconditioned: bool
    learning_rate: float


def edge(optimizer: Any) -> Edge | None:
    """The bound for the options that an optimiser has now, or None for one whose bound is not known here.

    Gradient descent: 2/η; heavy ball: (2 + 2β)/η (Polyak 1964); with Nesterov's momentum: (2 + 2β)/((1 + 2β)η)
    (Cohen et al., ICLR 2021, §2 and appendix B). Adam and AdamW: (2 + 2β₁)/((1 − β₁)η), RMSprop: (2 + 2β)/η, Adagrad: 2/η,
    all on the preconditioned Hessian (Cohen et al., arXiv 2207.14484, 2022, §2). Weight decay is not counted. The bounds
    are those of full-batch training; with small batches training becomes noisy below them.

    Args:
        optimizer: a ``torch.optim`` optimiser, or a wrapper that holds one as ``optimizer``.
    """
    optimizer = unwrapped(optimizer)
    if not isinstance(optimizer, (optim.SGD, *ADAPTIVE)):
        return None
    groups = optimizer.param_groups
    rates = [float(group["lr"]) for group in groups]
    others = ("momentum", "dampening", "nesterov", "betas", "maximize", "lr_decay")
    alike = all(group.get(name) == groups[0].get(name) for group in groups for name in others)
    if not alike or min(rates) <= 0.0 or groups[0].get("maximize") or groups[0].get("lr_decay"):
        return None
    rate, first = rates[0], groups[0]
    if isinstance(optimizer, optim.Adam | optim.AdamW):
        beta = float(first["betas"][0])
        return Edge((2.0 + 2.0 * beta) / ((1.0 - beta) * rate), True, rate)
    beta = float(first.get("momentum", 0.0))
    value = (2.0 + 2.0 * beta) / (rate * (1.0 - float(first.get("dampening", 0.0))))
    if first.get("nesterov"):
        value /= 1.0 + 2.0 * beta
    return Edge(value, isinstance(optimizer, ADAPTIVE) or min(rates) < max(rates), rate)


def unwrapped(optimizer: Any) -> Any:
    """The ``torch.optim`` optimiser inside the wrappers of accelerate and Lightning."""
    while not isinstance(optimizer, optim.Optimizer) or "param_groups" not in vars(optimizer):
        inner = getattr(optimizer, "optimizer", None)
        if inner is None or inner is optimizer:
            return optimizer
        optimizer = inner
    return optimizer
