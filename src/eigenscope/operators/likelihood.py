"""Which likelihood a loss is, seen from its second derivative by the outputs, and labels drawn from it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from eigenscope.errors import InputError

AGREEMENT = 1e-3
"""Relative deviation up to which a second derivative is that of a likelihood."""


def rows(z: Tensor) -> Tensor:
    """(N, c): the last dimension holds the outputs of one prediction; of a vector, one each."""
    return z.reshape(-1, 1) if z.ndim <= 1 else z.reshape(-1, z.shape[-1])


def row_factor(z: Tensor, bend: Callable[[Tensor], Tensor], samples: int, seed: int) -> Tensor:
    """(samples, N, c) factors a with E[a aᵀ] = ∂²ℓ/∂z², the gradients of a log-likelihood at labels drawn from the model.

    With weights w of the rows, ∂²ℓ/∂z² is w(diag p − ppᵀ) for softmax cross-entropy, and a = √w (p − e_y), y ~ p; it is
    w p(1 − p) for logistic losses, and a = √w (p − y); w for squared errors, and a = √w times a standard normal number.

    Args:
        z: (N, c) outputs.
        bend: products of ∂²ℓ/∂z² with (N, c).
        samples: labels for each row.
        seed: of the labels.

    Raises:
        InputError: it is none of these.
    """
    source = torch.Generator().manual_seed(seed % 2**63)
    x = torch.randn(z.shape, generator=source, dtype=torch.float64).to(z)
    found = bend(x)
    noise = torch.randn((samples, *z.shape), generator=source, dtype=torch.float64).to(z)
    norm = torch.linalg.vector_norm
    fits: list[tuple[float, str, Tensor, Tensor]] = []
    for kind in ("gaussian", "softmax", "logistic"):
        p = torch.softmax(z, dim=1) if kind == "softmax" else torch.sigmoid(z)
        used = torch.ones_like(z[:1]) if kind == "softmax" else found.any(dim=0, keepdim=True).to(z.dtype)
        shape = used * _shape(kind, p, x)
        weights = _weights(found, shape)
        if float(norm(found - weights * shape)) <= AGREEMENT * float(norm(found)):
            counted = weights[weights > 0.0]
            spread = float(counted.std(correction=0) / counted.mean()) if len(counted) else 0.0
            fits.append((spread, kind, p, used * weights.clamp(min=0.0).sqrt()))
    if fits:
        # Of one output any of the three fits, with weights that differ from row to row unless it is the right one.
        _, kind, p, root = min(fits, key=lambda fit: fit[0])
        factor: Tensor = root / samples**0.5 * _residuals(kind, p, noise, samples, source)
        return factor
    raise InputError(
        "its second derivative by the outputs is that of no softmax cross-entropy, logistic loss or squared error",
        where="fisher", expected="a log-likelihood of rows of outputs",
        remedy="use kind='empirical' or gauss_newton; classes that do not lie in the last dimension: pass outputs=",
    )  # fmt: skip


def _shape(kind: str, p: Tensor, x: Tensor) -> Tensor:
    """The second derivative of one row of weight 1, times x."""
    if kind == "gaussian":
        return x
    if kind == "softmax":
        return p * (x - (p * x).sum(dim=1, keepdim=True))
    return p * (1.0 - p) * x


def _weights(found: Tensor, shape: Tensor) -> Tensor:
    """(N, 1) least-squares weights; the rows of a softmax that is certain have none of their own, and get 0."""
    size = shape.square().sum(dim=1, keepdim=True)
    return torch.where(
        size > 0.0, (found * shape).sum(dim=1, keepdim=True) / size.clamp(min=torch.finfo(size.dtype).tiny), 0.0
    )


def _residuals(kind: str, p: Tensor, noise: Tensor, samples: int, source: torch.Generator) -> Tensor:
    """p − y for labels y ~ p, or the standard normal noise."""
    if kind == "gaussian":
        return noise
    if kind == "logistic":
        draws = torch.rand(noise.shape, generator=source, dtype=torch.float64).to(p)
        return p - (draws < p).to(p.dtype)
    labels = torch.multinomial(p.cpu().double(), samples, replacement=True, generator=source).to(p.device)
    chosen: Tensor = torch.nn.functional.one_hot(labels.mT, p.shape[1]).to(p.dtype)
    return p - chosen
