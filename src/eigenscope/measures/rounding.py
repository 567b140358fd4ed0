"""How much of the difference of two stored matrices may be nothing but the rounding of their formats."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_EXPONENT = 0x7FF0_0000_0000_0000
ENTRIES_AT_ONCE = 1 << 21


@dataclass(frozen=True)
class Rounding:
    """What rounding alone could have done to a difference.

    Attributes:
        floor: about the largest singular value of a difference of nothing but rounding; of a vector, its norm.
        norm: root of the expected sum of squares of its entries.
        units: the largest entry of the difference, in units in the last place of the coarser format.
    """

    floor: float
    norm: float
    units: float


def rounding_of_difference(D: Tensor, W: Tensor, V: Tensor, formats: tuple[str, str]) -> Rounding:
    """What the rounding of two storage formats leaves of equal matrices.

    An entry w that was rounded to a format of machine epsilon ε is off by at most half a unit in the last place,
    q = ε·2^⌊log₂|w|⌋, and taken as uniform over one unit its variance is q²/12 (Bennett, Bell Syst. Tech. J. 27, 1948);
    the two matrices' errors are taken as independent. A matrix of independent entries of variances b² has a norm of about
    the largest norm of a row of b plus the largest of a column (Bandeira & van Handel, Ann. Probab. 44(4), 2016, Theorem
    1.1, without its logarithmic term).

    Args:
        D: (m, n) or (n,) float64, V − W.
        W, V: of the same shape, any floating dtype.
        formats: storage formats of W and V; one that is no floating dtype counts as float32.
    """
    if not D.numel():
        return Rounding(0.0, 0.0, 0.0)
    infos = [_format(name) for name in formats]
    coarse = max(infos, key=lambda info: info.eps)
    least = float(coarse.smallest_normal) * float(coarse.eps)
    variance = sum(float(info.eps) ** 2 for info in infos) / 12.0
    rows = D.shape[0] if D.ndim > 1 else 1
    D, W, V = (entries.reshape(rows, -1) for entries in (D, W, V))
    across = torch.zeros(D.shape[1], dtype=torch.float64, device=D.device)
    widest = units = 0.0
    height = max(1, ENTRIES_AT_ONCE // max(D.shape[1], 1))
    for start in range(0, rows, height):
        part = slice(start, start + height)
        power = _power_of_two(torch.maximum(W[part].to(torch.float64).abs(), V[part].to(torch.float64).abs()))
        share = D[part].abs() / (power * coarse.eps).clamp(min=least)
        units = max(units, float(share.max()))
        square = power.clamp(min=least / coarse.eps).square() * (power > 0.0)
        across += square.sum(dim=0)
        widest = max(widest, float(square.sum(dim=1).max()))
    tallest = float(across.max()) if rows > 1 else 0.0
    deviation = math.sqrt(variance)
    return Rounding(
        floor=deviation * (math.sqrt(widest) + math.sqrt(tallest)),
        norm=deviation * math.sqrt(float(across.sum())),
        units=units,
    )


def is_quantised(name: str) -> bool:
    """Whether a storage format is read by dequantising: whole numbers, FP8, or a block format such as Q4_1."""
    return not isinstance(getattr(torch, name, None), torch.dtype) or name.startswith(("int", "uint", "float8"))


def _format(name: str) -> torch.finfo:
    known = getattr(torch, name, None)
    return torch.finfo(known if isinstance(known, torch.dtype) and known.is_floating_point else torch.float32)


def _power_of_two(size: Tensor) -> Tensor:
    """2^⌊log₂ x⌋ of float64 numbers ≥ 0, 0 of 0: the exponent bits without the significand."""
    return (size.view(torch.int64) & _EXPONENT).view(torch.float64)
