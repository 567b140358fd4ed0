"""Layers of an adapter brought to a lower rank: which rank each gets, the new factors, and the rows of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eigenscope.errors import InputError
from eigenscope.measures.allocation import allocate
from eigenscope.methods import exact
from eigenscope.methods.factored import Approximation, Factors, core_svd, recompressed
from eigenscope.methods.truncated import residual, truncated
from eigenscope.models.peft import AdapterFile, AdapterLayer
from eigenscope.results import Record, Value
from eigenscope.tasks.adapter import Adapter
from eigenscope.tasks.adapter_extract import HEADER, parse_budget

MORE = 8
"""Ranks added, at most, where rounding to the format of storage makes a layer miss its target."""
FORMATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Cut:
    """How large the layers may be; at most one is given, and none leaves all of the rank.

    Attributes:
        rank: of every layer, at most.
        energy: share of every ‖ΔW‖_F² to keep.
        error: largest ‖ΔW − BA‖_F/‖ΔW‖_F of every layer.
        budget: for all layers, ``"20MB"`` or a number of parameters, spread by :func:`allocate`.
        dtype: of the factors; "" keeps each layer's.

    Raises:
        InputError: more than one, or a value out of range.
    """

    rank: int | None = None
    energy: float | None = None
    error: float | None = None
    budget: str | float | None = None
    dtype: str = ""

    def __post_init__(self) -> None:
        given = [name for name in ("rank", "energy", "error", "budget") if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} given", expected="one of rank, energy, error, budget")
        if self.rank is not None and self.rank < 1:
            raise InputError(f"rank {self.rank}", expected="at least 1")
        for name, value in (("energy", self.energy), ("error", self.error)):
            if value is not None and not 0.0 < value < 1.0:
                raise InputError(f"{name} {value}", expected="a share between 0 and 1")
        if self.dtype and self.dtype not in FORMATS:
            raise InputError(f"dtype {self.dtype!r}", expected=", ".join(FORMATS))
        if self.budget is not None:
            parse_budget(self.budget)

    @property
    def allowed(self) -> float | None:
        """Largest relative error of a layer, where one is asked for."""
        if self.error is not None:
            return self.error
        return None if self.energy is None else (1.0 - self.energy) ** 0.5

    @property
    def needs_spectra(self) -> bool:
        """Whether the ranks depend on the singular values."""
        return self.allowed is not None or self.budget is not None


class Whole(Protocol):
    """The map of one layer before the cut.

    Attributes:
        like: the layer whose place it takes: module, kind, shape, magnitude, scale, format.
        before: rank that it had, or of the largest of its parts.
        method: how it is decomposed.
    """

    like: AdapterLayer
    before: int
    method: str

    def values(self) -> NDArray[np.float64]:
        """Singular values above rounding, descending."""
        ...

    def cut(self, rank: int, scale: float, dtype: torch.dtype) -> tuple[Approximation, float]:
        """The approximation of that rank, and ‖ΔW‖_F."""
        ...


class Product:
    """A map given by its factors."""

    method = "factored"

    def __init__(self, like: AdapterLayer, factors: Factors, before: int) -> None:
        self.like, self.before = like, before
        self.factors = Factors(factors.B.double(), factors.A.double(), factors.scale)
        self.core = core_svd(self.factors)

    def values(self) -> NDArray[np.float64]:
        """Singular values above rounding, descending."""
        values: NDArray[np.float64] = self.core.values[self.core.values > self.core.bound].numpy()
        return values

    def cut(self, rank: int, scale: float, dtype: torch.dtype) -> tuple[Approximation, float]:
        """The approximation of that rank, and ‖ΔW‖_F."""
        found = recompressed(self.factors, min(rank, len(self.values())), scale=scale, dtype=dtype, core=self.core)
        return found, float(self.core.values.norm())


class Formed:
    """A map that has to be formed, (m, n); anew each time, so that only one layer is in memory."""

    def __init__(self, like: AdapterLayer, make: Callable[[], Tensor], before: int, seed: int) -> None:
        self.like, self.before, self.make, self.seed = like, before, make, seed
        self.method = "dense"

    def values(self) -> NDArray[np.float64]:
        """Singular values above rounding, descending."""
        found = exact.singular_values(self.make(), tol=exact.DEFAULT_TOLERANCE)
        values: NDArray[np.float64] = found.values[found.values > found.bounds].numpy()
        return values

    def cut(self, rank: int, scale: float, dtype: torch.dtype) -> tuple[Approximation, float]:
        """The approximation of that rank, and ‖ΔW‖_F."""
        M = self.make()
        k = min(rank, *M.shape)
        if k == 0:
            norm = float(M.double().norm())
            return Approximation(Factors(M[:, :0].to(dtype), M[:0].to(dtype), scale), norm, norm), norm
        found = truncated(M, k, generator=torch.Generator().manual_seed(self.seed))
        root = abs(scale) ** 0.5
        B, A = (found.left / root * (1.0 if scale > 0.0 else -1.0)).to(dtype), (found.right / root).T.to(dtype)
        self.method = f"dense, {found.method}"
        error = residual(M, B, A.T.float() * scale)
        return Approximation(Factors(B, A.contiguous(), scale), error, found.least), found.frobenius


def cut_layers(
    wholes: Sequence[Whole], cut: Cut, facts: Mapping[str, Mapping[str, Value]], source: str
) -> tuple[dict[str, AdapterLayer], tuple[Record, ...]]:
    """Every layer at the rank that the cut gives it, and its row.

    Layers of rank 0 are left out, but for DoRA's, whose magnitude acts without factors: they keep rank 1.

    Args:
        wholes: the layers' maps.
        cut: how large they may be.
        facts: module → what the table says of it beside its ranks and errors.
        source: what the user named.

    Raises:
        InputError: rank 0 is left of every layer; a budget that pays for none; a format that overflows.
    """
    spectra = [whole.values() for whole in wholes] if cut.needs_spectra else [np.zeros(0)] * len(wholes)
    ranks = _ranks(wholes, cut, spectra)
    layers, records = {}, []
    for whole, rank in zip(wholes, ranks, strict=True):
        layer, readings, values = _written(whole, rank, cut)
        if layer is not None:
            layers[layer.module] = layer
        records.append(Record(whole.like.module, {**facts[whole.like.module], **readings}, values))
    if not layers:
        raise InputError(
            "rank 0 is left of every layer", where=source, expected="at least one layer of a rank above 0",
            remedy="ask for more energy, a smaller error or a larger budget; an adapter that was never trained has rank 0",
        )  # fmt: skip
    return layers, tuple(records)


def _ranks(wholes: Sequence[Whole], cut: Cut, spectra: Sequence[NDArray[np.float64]]) -> list[int]:
    if cut.allowed is not None:
        return [_least_rank(values, cut.allowed) for values in spectra]
    if cut.budget is None:
        return [
            min(cut.rank or min(w.like.B.shape[0], w.like.A.shape[1]), w.like.B.shape[0], w.like.A.shape[1])
            for w in wholes
        ]
    size, in_bytes = parse_budget(cut.budget)
    costs, fixed, least = [], 0.0, []
    for whole in wholes:
        m, n = whole.like.B.shape[0], whole.like.A.shape[1]
        width = _format(whole.like, cut).itemsize if in_bytes else 1
        dora = whole.like.magnitude is not None
        costs.append(float((m + n) * width))
        fixed += (3 if dora else 2) * HEADER * in_bytes + (m + m + n) * width * dora
        least.append(int(dora))
    if size <= fixed:
        raise InputError(f"budget {cut.budget}", expected=f"more than {fixed:,.0f}, which the least ranks take")
    rest = allocate([values[low:] for values, low in zip(spectra, least, strict=True)], costs, size - fixed)
    return [low + more for low, more in zip(least, rest, strict=True)]


def _least_rank(values: NDArray[np.float64], allowed: float) -> int:
    """The least k with Σ_{i>k} σᵢ² ≤ (allowed·‖ΔW‖_F)²."""
    if not len(values):
        return 0
    tails = np.append(np.cumsum(((values / values[0]) ** 2)[::-1])[::-1], 0.0)
    return int(np.argmax(tails <= allowed**2 * tails[0] * (1.0 + 1e-12)))


def _format(layer: AdapterLayer, cut: Cut) -> torch.dtype:
    return FORMATS[cut.dtype] if cut.dtype else torch.promote_types(layer.B.dtype, layer.A.dtype)


def _written(
    whole: Whole, rank: int, cut: Cut
) -> tuple[AdapterLayer | None, dict[str, Value], NDArray[np.float64] | None]:
    like, dtype = whole.like, _format(whole.like, cut)
    scale = like.scale or 1.0
    limit = min(like.B.shape[0], like.A.shape[1])
    found, norm = whole.cut(rank, scale, dtype)
    for _ in range(MORE):
        if cut.allowed is None or found.error <= cut.allowed * norm or found.factors.rank < rank or rank >= limit:
            break
        rank += 1
        found, norm = whole.cut(rank, scale, dtype)
    B, A = found.factors.B, found.factors.A
    readings: dict[str, Value] = {"rank_before": whole.before, "frobenius": norm, "method": whole.method}
    if found.factors.rank == 0 and like.magnitude is None:
        why = "left out: nothing above rounding" if norm == 0.0 or rank > 0 else "left out: rank 0 after the cut"
        error = 1.0 if norm else None
        return None, readings | {"rank": 0, "error": error, "parameters": 0, "bytes": 0, "status": why}, None
    if found.factors.rank == 0:
        B, A = torch.zeros(len(like.B), 1, dtype=dtype), like.A[:1].to(dtype)
    layer = AdapterLayer(like.module, like.kind, B.contiguous(), A.contiguous(), scale, like.magnitude, like.shape)
    error = found.error / norm if norm else 0.0
    missed = cut.allowed is not None and error > cut.allowed
    readings |= {
        "rank": layer.rank, "error": error, "optimal_error": found.least / norm if norm else 0.0,
        "energy": max(0.0, 1.0 - error**2), "parameters": layer.parameters, "bytes": layer.nbytes,
        "dtype": str(dtype).removeprefix("torch."),
        "status": f"the target is not met: {dtype} is too coarse; use --dtype float32".replace("torch.", "") if missed else "ok",
    }  # fmt: skip
    return layer, readings, None


def facts_of(*files: AdapterFile) -> dict[str, dict[str, Value]]:
    """Module → the columns that say what a layer is, of all files together."""
    return {record.name: dict(record.readings) for file in files for record in Adapter(file).run.records}
