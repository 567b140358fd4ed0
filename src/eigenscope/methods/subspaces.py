"""Angles between subspaces: how far apart two are, how far two spectra agree, and how far a computed one can be off."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from eigenscope.errors import InputError
from eigenscope.methods.recurrence import wide
from eigenscope.operators.arrays import Dense, as_operator
from eigenscope.results import Spectrum


def principal_angles(X: Tensor, Y: Tensor) -> Tensor:
    """Principal angles between the column spaces of two matrices.

    Cosines are the singular values of QxᴴQy (Björck & Golub, Math. Comp. 27, 1973), but an angle near 0 has no digits
    in its
    cosine: those below 45° come from the sines, the singular values of Qy − QxQxᴴQy (Knyazev & Argentati, SIAM J. Sci.
    Comput. 23(6), 2002, Algorithm 3.1). Every angle is then good to a few eps·κ of the bases.

    Args:
        X: (n, p) of full column rank, p ≥ 1.
        Y: (n, q) of full column rank, q ≥ 1.

    Returns:
        (min(p, q),) angles in radians, 0…π/2, ascending, float64.

    Raises:
        InputError: not matrices of equal height, entries not finite, or columns that depend on one another.
    """
    Qx, Qy = _basis(X, "X"), _basis(Y, "Y")
    if Qx.shape[0] != Qy.shape[0]:
        raise InputError(f"{Qx.shape[0]} and {Qy.shape[0]} rows", where="principal_angles", expected="the same number")
    if Qx.dtype != Qy.dtype or Qx.device != Qy.device:
        raise InputError("the matrices differ in kind", where="principal_angles", expected="both real or both complex")
    if Qx.shape[1] < Qy.shape[1]:
        Qx, Qy = Qy, Qx
    inner = Qx.mH @ Qy
    cosines = torch.linalg.svdvals(inner)
    rest = Qy - Qx @ inner
    rest = rest - Qx @ (Qx.mH @ rest)
    sines = torch.linalg.svdvals(rest).flip(0)
    small = sines.clamp(max=1.0).asin()
    large = cosines.clamp(max=1.0).acos()
    angles: Tensor = torch.where(sines.square() <= 0.5, small, large)
    return angles.sort().values


@dataclass(frozen=True)
class Overlap:
    """How far two k-dimensional spaces of singular vectors agree.

    Attributes:
        value: mean cos² of the principal angles, ‖UₐᴴU_b‖_F²/k: 1 for the same space, 0 for orthogonal ones.
        error: bound on how far the spaces of the exact vectors could be from that value; 1 where nothing bounds it.
        chance: what a random space of dimension k would have, k/n.
        angles: (k,) radians, ascending.
    """

    value: float
    error: float
    chance: float
    angles: Tensor


def overlap(a: Spectrum, b: Spectrum, k: int, side: Literal["left", "right"] = "left") -> Overlap:
    """Agreement of the spaces of the k leading vectors of two spectra.

    The mean of cos² (Hu et al., LoRA, ICLR 2022, §7.3, φ(A, B, k, k)) is tr(PₐP_b)/k of the projectors. A projector
    that is off by an angle θ moves it by sin θ at most, and :func:`angle_bound` says what θ can be.

    Args:
        a, b: with vectors on that side, of equal length.
        k: 1 ≤ k ≤ the values of either.
        side: "left" or "right"; eigenvectors are right ones.

    Raises:
        InputError: no such vectors, lengths that differ, or k out of range.
    """
    if side not in ("left", "right"):
        raise InputError(f"unknown side {side!r}", expected="left or right")
    spaces = []
    for spectrum in (a, b):
        vectors = spectrum.left if side == "left" else spectrum.right
        if vectors is None:
            raise InputError(f"a spectrum without {side} vectors", where="overlap", remedy="use svd, which keeps them")
        if not 1 <= k <= vectors.shape[1]:
            raise InputError(f"k = {k}", where="overlap", expected=f"1 ≤ k ≤ {vectors.shape[1]}")
        spaces.append(vectors[:, :k])
    angles = principal_angles(spaces[0], spaces[1])
    error = min(1.0, math.sin(angle_bound(a, k)) + math.sin(angle_bound(b, k)))
    return Overlap(float(angles.cos().square().mean()), error, k / spaces[0].shape[0], angles)


def angle_bound(spectrum: Spectrum, k: int) -> float:
    """Bound, in radians, on the largest angle between the space of the k leading vectors computed and the exact one.

    Singular vectors: Wedin, BIT 12, 1972, ‖sin Θ‖_F ≤ √(‖R‖_F² + ‖S‖_F²)/δ for the residuals R and S of the two
    sides, each taken as large as the larger one; δ is the distance of σ₁ … σₖ from the other singular values, and
    from 0 where the map is not square. Eigenvectors: the sin Θ theorem of Davis & Kahan, SIAM J. Numer. Anal. 7,
    1970, ‖sin Θ‖_F ≤ ‖R‖_F/δ. The value beyond the gap is taken at the upper end of its own bound. A computed
    spectrum that missed a value altogether has a gap that this cannot see.

    Args:
        spectrum: leading values with residuals, or with bounds alone where these bound the residuals too.
        k: 1 ≤ k ≤ its length.

    Returns:
        0 … π/2; π/2 where the value k + 1 is not known, or is not separated.

    Raises:
        InputError: k out of range.
    """
    values = spectrum.values
    if not 1 <= k <= len(values):
        raise InputError(f"k = {k}", where="angle_bound", expected=f"1 ≤ k ≤ {len(values)}")
    wanted = float(values[k - 1])
    if len(values) > k:
        gap = wanted - float(values[k]) - float(spectrum.bounds[k])
    elif spectrum.complete:
        gap = math.inf if spectrum.kind == "eigen" or spectrum.shape[0] == spectrum.shape[1] else wanted
    else:
        return math.pi / 2
    errors = spectrum.bounds if spectrum.residuals is None else torch.maximum(spectrum.bounds, spectrum.residuals)
    size = float(torch.linalg.vector_norm(errors[:k])) * (math.sqrt(2.0) if spectrum.kind == "singular" else 1.0)
    return math.asin(min(1.0, size / gap)) if gap > 0.0 else math.pi / 2


def _basis(X: Tensor, name: str) -> Tensor:
    operator = as_operator(X)
    entries = operator.matrix if isinstance(operator, Dense) else operator.to_dense()
    entries = entries.to(wide(entries.dtype))
    rows, cols = entries.shape
    if not 1 <= cols <= rows:
        raise InputError(f"{name} is {rows}×{cols}", where="principal_angles", expected="1 ≤ columns ≤ rows")
    lengths = entries.abs().amax(dim=0)
    Q, R = torch.linalg.qr(entries / lengths.clamp(min=torch.finfo(torch.float64).tiny))
    sizes = torch.linalg.svdvals(R)
    if not float(sizes[-1]) > rows * torch.finfo(torch.float64).eps * float(sizes[0]):
        raise InputError(
            f"the columns of {name} depend on one another", where="principal_angles", expected="full column rank",
            remedy="pass the leading left vectors of svd(X)",
        )  # fmt: skip
    basis: Tensor = Q
    return basis
