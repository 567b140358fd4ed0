"""Optimisers for PyTorch that use the Hessian: ``NewtonCG``, ``SaddleFreeNewton`` and, as an exhibit, ``Newton``.

Each step takes a closure, as ``torch.optim.LBFGS`` does::

    def closure():
        optimizer.zero_grad()
        loss = criterion(model(inputs), targets)
        loss.backward()
        return loss

    optimizer.step(closure)

or one that only computes and returns the loss. ``loss.backward()`` inside a closure would free the graph that Hessian
products need, so it is held back while the closure runs, and the optimiser differentiates in its place; what is minimised
is what ``backward()`` was called on, summed where it was called several times, and else what the closure returns. After
the step ``p.grad`` holds the gradient at the point where the step began.

A step evaluates the closure more than once and must find the same function each time: the same batch. Random numbers are
wound back between the evaluations, so that dropout masks agree. BatchNorm in training mode updates its running averages at
each evaluation, as it does under ``torch.optim.LBFGS``.
"""

from __future__ import annotations

from eigenscope.optim.newton import Newton
from eigenscope.optim.newton_cg import NewtonCG
from eigenscope.optim.saddle_free import SaddleFreeNewton
from eigenscope.optim.trust_region import Step

__all__ = ["Newton", "NewtonCG", "SaddleFreeNewton", "Step"]
