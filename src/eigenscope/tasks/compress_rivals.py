"""What other ways of cutting a model would lose in the same run: plain SVD, ASVD's scaling, one-sided whitening."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eigenscope.engine.progress import Listener, silent
from eigenscope.tasks.compress import Factored, refitted
from eigenscope.tasks.compress_factors import Weighting
from eigenscope.tasks.compress_measure import LossProbe, TradeOff

RIVALS: dict[str, Weighting] = {"plain SVD": "plain", "ASVD scaling": "scaled", "one-sided whitening": "one-sided"}
"""Name → objective: Eckart & Young, 1936; Yuan et al., ASVD, 2023, §3.2; Wang et al., SVD-LLM, ICLR 2025, §3.2."""


@dataclass(frozen=True)
class Rival:
    """Another way of cutting the same model, with the same share of every layer in two plain factors, r(m + n) numbers.

    Attributes:
        name: of the way.
        points: its curve of loss against size.
    """

    name: str
    points: tuple[TradeOff, ...]


def rival_curves(
    factored: Factored, shares: Sequence[float], probes: Sequence[LossProbe], *, progress: Listener = silent
) -> tuple[Rival, ...]:
    """Fit and measure the rivals, on the moments and the texts of the run.

    Args:
        factored: the model of the run.
        shares: of the layers' parameters.
        probes: texts besides the held-out one.
        progress: called after each group of layers of each.
    """
    found = []
    for name, weighting in RIVALS.items():
        rival = refitted(factored, weighting, progress=progress)
        points = []
        for share in shares:
            ranks = rival.uniform(share)
            kept = ranks.parameters / rival.dense_parameters
            points.append(TradeOff(kept, ranks.predicted, rival.measure(ranks, probes)))
        found.append(Rival(name, tuple(points)))
    return tuple(found)
