"""Newton's method as it stands, to show where it goes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import Optimizer

from eigenscope.errors import InputError
from eigenscope.optim.objective import Closure, Objective

LARGEST = 4096
"""Parameters beyond which the dense Hessian is refused."""


class Newton(Optimizer):
    """p ← p − lr·H⁺g: the exhibit. It looks for a critical point of any kind, and saddles attract it.

    Use :class:`NewtonCG` or :class:`SaddleFreeNewton` to minimise. H is formed, by n products, and decomposed; its
    eigenvalues below n·eps of the largest are left out (Nocedal & Wright 2006, §3.3, on why the direction need not
    descend; Dauphin et al., NeurIPS 2014, §4, on saddles).

    Args:
        params: parameters or groups, 4096 numbers at most.
        lr: length of the step, 1 for Newton's own.
        weight_decay: adds ½·weight_decay·‖p‖² to f; may differ between groups, as lr may.

    Raises:
        InputError: an option out of range.
    """

    def __init__(self, params: Iterable[Any], *, lr: float = 1.0, weight_decay: float = 0.0) -> None:
        if not lr > 0.0:
            raise InputError(f"lr = {lr}", expected="a positive number")
        if not weight_decay >= 0.0:
            raise InputError(f"weight_decay = {weight_decay}", expected="a number ≥ 0")
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    def step(self, closure: Closure) -> Any:  # type: ignore[override]
        """One step, wherever it leads.

        Args:
            closure: as the package's docstring says.

        Returns:
            What the closure returned where the step began, without a graph.

        Raises:
            InputError: as :meth:`NewtonCG.step`, or too many parameters.
        """
        objective = Objective(closure, self.param_groups)
        size = sum(p.numel() for p in objective.parameters)
        if size > LARGEST:
            raise InputError(f"{size} parameters", expected=f"at most {LARGEST}", remedy="use NewtonCG")
        _, hessian = objective.expand()
        values, vectors = torch.linalg.eigh(hessian.to_dense())
        kept = values.abs() > size * torch.finfo(values.dtype).eps * values.abs().max()
        slopes = torch.where(kept, (vectors.T @ hessian.gradient) / torch.where(kept, values, 1.0), 0.0)
        rates = [
            torch.full((p.numel(),), float(g["lr"])) for g in self.param_groups for p in g["params"] if p.requires_grad
        ]
        objective.move(objective.here() - torch.cat(rates).to(slopes) * (vectors @ slopes))
        return objective.returned
