"""How many directions a matrix uses: pure functions of its singular values."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def numerical_rank(values: Array, shape: tuple[int, int], eps: float) -> int:
    """Singular values that the storage format can tell from 0.

    Formats of 24 bits of significand and more: the count above σ₁·max(m, n)·eps (Golub & Van Loan, Matrix
    Computations, 4th ed., §5.4.1; the convention of MATLAB and numpy). In fp16, bf16 and FP8 that threshold exceeds
    σ₁ itself for ordinary shapes; there one rounding of every entry is what separates the file from the trained
    weight: ‖E‖₂ ≤ ‖E‖_F ≤ (eps/2)·‖W‖_F, and by Weyl's inequality only values above that are certain not to be 0.

    Args:
        values: (k,) descending, complete.
        shape: (m, n).
        eps: machine epsilon of the *storage* format.
    """
    if not len(values) or values[0] == 0.0:
        return 0
    return int(np.count_nonzero(values / values[0] > rounding(values, shape, eps)))


def rounding(values: Array, shape: tuple[int, int], eps: float) -> float:
    """The singular value, relative to σ₁, that the storage format cannot tell from 0: see :func:`numerical_rank`.

    Args:
        values: (k,) descending, complete, not all 0.
        shape: (m, n).
        eps: machine epsilon of the *storage* format.
    """
    narrow = eps > 2.0**-22
    return 0.5 * eps * float(np.linalg.norm(values / values[0])) if narrow else max(shape) * eps


def stable_rank(values: Array) -> float | None:
    """‖W‖_F² / σ₁², between 1 and the rank; None for the zero matrix.

    Rudelson & Vershynin, Sampling from large matrices, J. ACM 54(4), 2007, §1.1 ("numerical rank" there).
    """
    if not len(values) or values[0] == 0.0:
        return None
    return float(np.sum((values / values[0]) ** 2))


def effective_rank(values: Array) -> float | None:
    """exp(−Σ pᵢ log pᵢ) with pᵢ = σᵢ/Σσ, between 1 and the rank; None for the zero matrix.

    Roy & Vetterli, The effective rank, EUSIPCO 2007, Definition 1.
    """
    if not len(values) or values[0] == 0.0:
        return None
    share = values / values[0]
    share = share[share > 0.0] / np.sum(share)
    return float(np.exp(-np.sum(share * np.log(share))))


def participation_ratio(values: Array) -> float | None:
    """(Σσ²)² / Σσ⁴, between 1 and the rank; None for the zero matrix.

    Bell & Dean, Atomic vibrations in vitreous silica, Discuss. Faraday Soc. 50, 1970, applied to the energies σ².
    """
    if not len(values) or values[0] == 0.0:
        return None
    energy = (values / values[0]) ** 2
    return float(np.sum(energy) ** 2 / np.sum(energy**2))


def rank_for_energy(values: Array, share: float) -> int | None:
    """Smallest k whose best rank-k approximation keeps ``share`` of ‖W‖_F²; None for the zero matrix.

    Eckart & Young, The approximation of one matrix by another of lower rank, Psychometrika 1, 1936: what the best
    approximation leaves out is Σ_{i>k} σᵢ². Sums run from the smallest value up, so that the tail keeps its digits.

    Args:
        values: (k,) descending, complete.
        share: in (0, 1].
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(f"share = {share}; expected a number in (0, 1]")
    if not len(values) or values[0] == 0.0:
        return None
    tail = np.append(np.cumsum(((values / values[0]) ** 2)[::-1])[::-1], 0.0)
    # A share met exactly must not cost one more rank for the rounding of 1 − share.
    return int(np.argmax(tail <= (1.0 - share + 1e-12) * tail[0]))


def parameters_saved(shape: tuple[int, int], rank: int) -> int:
    """mn − k(m + n + 1): entries that the factors U (m, k), σ (k) and V (n, k) save; negative where they cost more."""
    rows, cols = shape
    return rows * cols - rank * (rows + cols + 1)
