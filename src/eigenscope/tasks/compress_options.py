"""What ``compress`` is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from eigenscope.errors import InputError
from eigenscope.tasks.compress_factors import Weighting


@dataclass(frozen=True)
class CompressOptions:
    """What is asked for; exactly one of ``keep``, ``keep_bytes``, ``loss_budget`` and ``ranks``.

    Attributes:
        keep: share of the layers' parameters.
        keep_bytes: share of the whole model's bytes.
        loss_budget: predicted loss added, in the objective's unit (nats per token for a language model).
        ranks: layer → rank; layers not named stay dense.
        objective: "two-sided", "one-sided", "scaled" or "plain".
        allocation: "global": one threshold on the loss that a stored number saves, checked against "uniform": the same share
            of every layer.
        tokens: of text, the held-out part included.
        length: of a window, in tokens; None for 512, of an encoder of sentences 64.
        held_out: share of the windows on which nothing is fitted.
        prior: share of random tokens in the inputs' metric; None lets the held-out text decide.
        multiple: ranks are multiples of it.
        batch: windows at a time.
        include, exclude: shell patterns over layers' names.
        seed: of everything random.
        second_pass: fit the linear layers again to the inputs that they have in the compressed model, if that helps.
    """

    keep: float | None = None
    keep_bytes: float | None = None
    loss_budget: float | None = None
    ranks: Mapping[str, int] | None = None
    objective: Weighting = "two-sided"
    allocation: Literal["global", "uniform"] = "global"
    tokens: int = 20480
    length: int | None = None
    held_out: float = 0.2
    prior: float | None = None
    multiple: int = 1
    batch: int = 2
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    seed: int = 0
    second_pass: bool = False

    def check(self) -> None:
        """Raises InputError for what is out of range."""
        targets = [name for name in ("keep", "keep_bytes", "loss_budget", "ranks") if getattr(self, name) is not None]
        if len(targets) != 1:
            raise InputError(
                f"{' and '.join(targets) or 'no target'}", where="compress",
                expected="exactly one of keep, keep_bytes, loss_budget, ranks",
            )  # fmt: skip
        if self.allocation == "uniform" and self.keep is None and self.keep_bytes is None:
            raise InputError("uniform ranks without a share", where="compress", expected="keep or keep_bytes with them")
        for name in ("keep", "keep_bytes", "held_out"):
            share = getattr(self, name)
            if share is not None and not 0.0 < share < 1.0:
                raise InputError(f"{name} = {share}", expected="a share between 0 and 1, both excluded")
        if self.loss_budget is not None and not self.loss_budget >= 0.0:
            raise InputError(f"loss budget {self.loss_budget}", expected="0 or more")
        if self.prior is not None and not 0.0 <= self.prior < 1.0:
            raise InputError(f"prior = {self.prior}", expected="a share from 0 to below 1")
        for name in ("tokens", "length", "multiple", "batch"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise InputError(f"{name} = {number}", expected="at least 1")
