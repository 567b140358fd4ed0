"""DoRA's form of a change: a low-rank map decides the direction of each row, a magnitude its norm.

W' ≈ diag(m) (W + B A) / ‖W + B A‖, norms by rows (Liu et al., DoRA, ICML 2024, eq. 5, with PEFT's convention that the norm is
that of a row of an (outputs, inputs) weight).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eigenscope.errors import InputError
from eigenscope.methods.truncated import Truncated, truncated

ROUNDS = 10


@dataclass(frozen=True)
class Direction:
    """B A and m of one weight.

    Attributes:
        left: (m, r), right: (n, r): B A = left @ rightᵀ, float32.
        magnitude: (m,) float64.
        error: ‖W' − diag(m) (W + B A)/‖W + B A‖‖_F, measured.
    """

    left: Tensor
    right: Tensor
    magnitude: Tensor
    error: float


def fit_direction(W: Tensor, tuned: Tensor, plain: Truncated, k: int, *, generator: torch.Generator) -> Direction:
    """Directions of rank k for W' = ``tuned``, never worse than plain LoRA's B A of that rank.

    With the best magnitudes mᵢ = ⟨w'ᵢ, uᵢ⟩, uᵢ the direction of row i of W + B A, the error of a row is its distance from the
    line along uᵢ, whatever the length of wᵢ + (B A)ᵢ. So B A need only match dᵢ w'ᵢ − wᵢ for any row scales dᵢ; they and B A
    are fitted in turn, each exactly: dᵢ = ⟨wᵢ + (B A)ᵢ, w'ᵢ⟩/‖w'ᵢ‖² by least squares, B A by truncating diag(d) W' − W. The
    first B A is LoRA's (d = 1), whose best magnitudes already leave no more than LoRA does; the best round is kept.

    Args:
        W, tuned: (m, n) float32.
        plain: the truncation of tuned − W.
        k: the rank.
        generator: of the sketches.

    Raises:
        InputError: a row of W + B A is zero and has no direction.
    """
    best = _with_magnitudes(W, tuned, plain.left, plain.right)
    left, right = plain.left, plain.right
    norms = torch.linalg.vector_norm(tuned, dim=1, dtype=torch.float64).square()
    for _ in range(ROUNDS):
        adapted = torch.addmm(W, left, right.T)
        d = (adapted.double() * tuned.double()).sum(dim=1) / norms.clamp(min=1e-300)
        found = truncated(d.float().unsqueeze(1) * tuned - W, k, generator=generator)
        left, right = found.left, found.right
        fitted = _with_magnitudes(W, tuned, left, right)
        if not fitted.error < (1.0 - 1e-3) * best.error:
            best = fitted if fitted.error < best.error else best
            break
        best = fitted
    return best


def _with_magnitudes(W: Tensor, tuned: Tensor, left: Tensor, right: Tensor) -> Direction:
    magnitude = magnitudes(W, tuned, left, right)
    return Direction(left, right, magnitude, error_of(W, tuned, left, right, magnitude))


def magnitudes(W: Tensor, tuned: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """(m,) float64 mᵢ = ⟨w'ᵢ, uᵢ⟩: those that bring diag(m) u closest to W', u the unit rows of W + left rightᵀ.

    Raises:
        InputError: a row of W + left rightᵀ is zero.
    """
    adapted = _adapted(W, left, right)
    norms = torch.linalg.vector_norm(adapted, dim=1)
    if not bool((norms > 0.0).all()):
        raise InputError(
            f"row {int(norms.argmin())} of the adapted weight is zero and has no direction", where="dora",
            expected="rows that are not zero", remedy="leave the layer out, or write a plain LoRA",
        )  # fmt: skip
    best: Tensor = (adapted * tuned.double()).sum(dim=1) / norms
    return best


def error_of(W: Tensor, tuned: Tensor, left: Tensor, right: Tensor, magnitude: Tensor) -> float:
    """‖W' − diag(m) (W + left rightᵀ)/‖·‖‖_F in float64."""
    adapted = _adapted(W, left, right)
    scale = magnitude.double() / torch.linalg.vector_norm(adapted, dim=1)
    return float(torch.linalg.vector_norm(tuned.double() - scale.unsqueeze(1) * adapted))


def _adapted(W: Tensor, left: Tensor, right: Tensor) -> Tensor:
    adapted: Tensor = torch.addmm(W.double(), left.double(), right.double().T)
    return adapted
