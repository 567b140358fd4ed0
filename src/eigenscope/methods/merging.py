"""Several low-rank changes of one weight made one: entry by entry (TIES, DARE), or in the coordinates that they share (KnOTS)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from eigenscope.errors import InputError
from eigenscope.methods.factored import Factors, core_svd

Rule = Literal["sum", "ties", "dare", "dare-ties"]
RULES: tuple[Rule, ...] = ("sum", "ties", "dare", "dare-ties")
BLOCK = 2**22
"""Entries of one part formed at a time."""


def merged_entries(
    parts: Sequence[Factors], weights: Sequence[float], rule: Rule, density: float, generator: torch.Generator
) -> Tensor:
    """Merge maps entry by entry. The result is dense, and of full rank as a rule; what it is made of is formed by blocks of rows.

    *ties* (Yadav et al., TIES-Merging, NeurIPS 2023, §4): of each part the ``density`` share of entries of largest
    magnitude is kept; the sign of an entry is that of the sum of what is kept; the mean is taken over the parts that agree
    with it. *dare* (Yu et al., Language Models are Super Mario, ICML 2024, §3.2): each entry is kept with probability
    ``density`` and divided by it, then the parts are added. *dare-ties*: that dropping, then the election. As in PEFT,
    entries are trimmed within each weight (the paper of TIES: over the whole model), weights scale the parts after the
    election, and a sum of 0 counts as positive.

    Args:
        parts: maps of one shape (m, n).
        weights: one for each.
        rule: "sum", "ties", "dare" or "dare-ties".
        density: share of entries kept, in (0, 1].
        generator: of the entries that DARE drops.

    Returns:
        (m, n) float32.

    Raises:
        InputError: a density out of range.
    """
    if not 0.0 < density <= 1.0:
        raise InputError(f"density {density}", expected="a share of the entries, above 0 and at most 1")
    rows, cols = parts[0].shape
    least = [_threshold(part, density) if rule == "ties" else 0.0 for part in parts]
    result = torch.empty(rows, cols)
    scales = torch.tensor(weights, dtype=torch.float32).reshape(-1, 1, 1)
    step = max(1, BLOCK // max(cols, 1))
    for start in range(0, rows, step):
        block = torch.stack([_rows(part, slice(start, start + step)) for part in parts])
        if rule == "ties":
            block = torch.where(block.abs() >= torch.tensor(least).reshape(-1, 1, 1), block, 0.0)
        elif rule.startswith("dare"):
            kept = torch.rand(block.shape, generator=generator) < density
            block = torch.where(kept, block / density, 0.0)
        result[start : start + step] = _elected(block, scales) if rule.endswith("ties") else (block * scales).sum(dim=0)
    return result


def _rows(part: Factors, rows: slice) -> Tensor:
    return part.scale * (part.B[rows].float() @ part.A.float())


def _threshold(part: Factors, density: float) -> float:
    """Magnitude of the smallest of the entries to keep."""
    sizes = _rows(part, slice(None)).abs().reshape(-1)
    kept = int(density * len(sizes))
    return float(sizes.kthvalue(len(sizes) - kept + 1).values) if kept else float("inf")


def _elected(block: Tensor, scales: Tensor) -> Tensor:
    """Mean of the parts whose sign is that of their sum."""
    sign = torch.where(block.sum(dim=0) >= 0.0, 1.0, -1.0)
    agree = block.sign() == sign
    return (block * scales * agree).sum(dim=0) / agree.sum(dim=0).clamp(min=1)


def aligned(parts: Sequence[Factors]) -> tuple[Tensor, list[Factors]]:
    """One left basis for several maps, and each map's coordinates in it: Mᵢ = (UΣ) Vᵢᵀ.

    Stoica et al., Model merging with SVD to tie the knots (KnOTS), ICLR 2025, §4: the SVD of [M₁ … M_p] is UΣ[V₁; …; V_p]ᵀ;
    rules that work entry by entry are applied to the Vᵢ, which refer to the same directions. With orthonormal bases
    Q of [B₁ … B_p] and Qᵢ of Aᵢᵀ it is the SVD of a matrix of the size of the ranks: nothing of the size of Mᵢ is formed.
    Directions of singular values within rounding of 0, whose coordinates would be arbitrary, are left out.

    Args:
        parts: maps of one shape (m, n), of ranks rᵢ.

    Returns:
        UΣ (m, k) float64, and for each part the map Vᵢ (n, k) as factors; k ≤ Σ rᵢ.
    """
    left, upper = torch.linalg.qr(torch.cat([part.B.double() for part in parts], dim=1))
    bases = [torch.linalg.qr(part.A.double().T) for part in parts]
    columns = torch.split(upper, [part.rank for part in parts], dim=1)
    blocks = [part.scale * (C @ base.R.T) for part, C, base in zip(parts, columns, bases, strict=True)]
    middle = torch.cat(blocks, dim=1)
    U, values, Vh = torch.linalg.svd(middle, full_matrices=False)
    # The bound of each part alone: the stacked matrix is formed from the same factors.
    bound = sum(core_svd(part).bound for part in parts)
    k = int((values > bound).sum())
    split = torch.split(Vh[:k].T, [block.shape[1] for block in blocks], dim=0)
    coordinates = [Factors(base.Q, V.contiguous()) for base, V in zip(bases, split, strict=True)]
    return left @ (U[:, :k] * values[:k]), coordinates
