"""``adapter merge``: several adapters of one base made one."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from eigenscope.errors import InputError
from eigenscope.methods.factored import Approximation, Factors, frobenius, stacked
from eigenscope.methods.merging import RULES, Rule, aligned, merged_entries
from eigenscope.models.peft import AdapterFile, AdapterLayer
from eigenscope.report.cells import unknown
from eigenscope.results import Run
from eigenscope.tasks.adapter import Adapter
from eigenscope.tasks.adapter_cut import Cut, Formed, Product, Whole, cut_layers, facts_of
from eigenscope.tasks.rows import versions


@dataclass(frozen=True)
class MergeOptions:
    """How adapters are merged.

    Attributes:
        rule: "sum", "ties", "dare" or "dare-ties".
        align: whether the rule acts in coordinates that all adapters share (KnOTS), not on the entries of ΔW.
        density: share of the entries that TIES and DARE keep.
        seed: of what DARE drops.

    Raises:
        InputError: an unknown rule, a density out of range, or a rule that an option does not go with.
    """

    rule: Rule = "sum"
    align: bool = False
    density: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise unknown("rule", self.rule, RULES)
        if not 0.0 < self.density <= 1.0:
            raise InputError(f"density {self.density}", expected="a share of the entries, above 0 and at most 1")
        if self.align and self.rule == "sum":
            raise InputError(
                "alignment of a sum",
                expected="ties, dare or dare-ties",
                remedy="leave it out: a sum is the same in any basis",
            )


def merge_adapters(
    adapters: Sequence[Adapter],
    weights: Sequence[float] | None = None,
    *,
    rule: Rule = "sum",
    align: bool = False,
    density: float = 0.5,
    rank: int | None = None,
    energy: float | None = None,
    error: float | None = None,
    budget: str | float | None = None,
    dtype: str = "",
    seed: int = 0,
) -> Adapter:
    """One adapter that does what the weighted adapters do together.

    What is merged is ΔW = scale · B A of every layer, whatever its rank, alpha, kind of scale or format; an adapter without
    that layer counts as zero there. A *sum* without a size is exact: factors are stacked, ranks add (never beyond min(m, n)).
    With ``rank``, ``energy``, ``error`` or ``budget`` it is the best approximation of the sum. With ``align`` TIES and DARE
    act on the adapters' coordinates in a common basis (:func:`eigenscope.methods.merging.aligned`) and the product
    is exact without a size as well. Without it they act on the entries of ΔW, which is then formed, one layer at
    a time, and cut: to the largest rank among the adapters where no size is given.

    Args:
        adapters: at least one; never changed.
        weights: one for each; default: 1.
        rule: "sum", "ties", "dare", "dare-ties".
        align: KnOTS: a common basis first.
        density: share of the entries that TIES and DARE keep.
        rank, energy, error, budget, dtype: size of the result, as for :func:`eigenscope.tasks.adapter_resize.resize_adapter`.
        seed: of what DARE drops, and of sketches.

    Raises:
        InputError: adapters that do not go together (the first layer that differs is named), DoRA, whose parts do not add,
            an option out of range, or rank 0 is left of every layer.
    """
    options = MergeOptions(rule, align, density, seed)
    cut = Cut(rank, energy, error, budget, dtype)
    files = [adapter.file for adapter in adapters]
    weights = [1.0] * len(files) if weights is None else list(weights)
    _check(files, weights)
    begun, cpu = time.perf_counter(), time.process_time()
    names = list(dict.fromkeys(module for file in files for module in file.layers))
    wholes = [_whole(name, files, weights, options, cut) for name in names]
    source = " + ".join(f"{weight:g}·{file.source}" for weight, file in zip(weights, files, strict=True))
    layers, records = cut_layers(wholes, cut, facts_of(*files), source)
    made = AdapterFile(layers, _config(files), _saved(files), source)
    provenance = {
        **versions(), **asdict(options), **asdict(cut), "weights": list(weights), "notes": "; ".join(_notes(files)),
        "wall seconds": round(time.perf_counter() - begun, 3), "CPU seconds": round(time.process_time() - cpu, 3),
    }  # fmt: skip
    modules = tuple(dict.fromkeys(module for adapter in adapters for module in adapter.modules))
    return Adapter(made, Run("adapter merge", source, records, (), provenance), modules)


def _check(files: Sequence[AdapterFile], weights: Sequence[float]) -> None:
    if not files:
        raise InputError("no adapters", where="merge", expected="at least one")
    if len(weights) != len(files):
        raise InputError(f"{len(weights)} weights for {len(files)} adapters", where="merge", expected="one for each")
    for weight in weights:
        if not abs(weight) < float("inf"):
            raise InputError(f"weight {weight}", where="merge", expected="a finite number")
    first: dict[str, tuple[AdapterLayer, str]] = {}
    for file in files:
        for module, layer in file.layers.items():
            if layer.magnitude is not None:
                raise InputError(
                    f"{module} is DoRA: it scales the base's rows, and such adapters do not add", where=file.source,
                    expected="LoRA", remedy="apply it to the base and extract a LoRA from the two models",
                )  # fmt: skip
            other, source = first.setdefault(module, (layer, file.source))
            if (other.shape, other.kind) != (layer.shape, layer.kind):
                raise InputError(
                    f"{module} is {layer.kind} of shape {layer.shape} here and {other.kind} of shape {other.shape} in {source}",
                    where=file.source, expected="adapters of one base model",
                )  # fmt: skip


def _whole(
    module: str, files: Sequence[AdapterFile], weights: Sequence[float], options: MergeOptions, cut: Cut
) -> Whole:
    having = [
        (file.layers[module], weight) for file, weight in zip(files, weights, strict=True) if module in file.layers
    ]
    first = having[0][0]
    # The format of storage is the widest of all, and the scale that of a fresh start: alpha = r.
    B, A = (
        torch.empty(shape, dtype=_widest([t.dtype for layer, _ in having for t in (layer.B, layer.A)]), device="meta")
        for shape in ((len(first.B), 0), (0, first.A.shape[1]))
    )
    like = replace(first, B=B, A=A, scale=1.0)
    before = max(layer.rank for layer, _ in having)
    parts = [Factors(layer.B, layer.A, layer.scale) for layer, _ in having]
    shares = [weight for _, weight in having]
    if options.rule == "sum":
        terms = stacked([replace(p, scale=p.scale * share) for p, share in zip(parts, shares, strict=True)])
        exact = cut.rank is None and not cut.needs_spectra and terms.rank <= min(terms.shape)
        return Stacked(like, terms, before) if exact else Product(like, terms, before)
    make = partial(_merged, module, shares, options)
    if options.align:
        basis, coordinates = aligned(parts)
        return Product(like, Factors(basis, make(coordinates).T.double()), before)
    if cut.rank is None and not cut.needs_spectra:
        return Defaulted(like, partial(make, parts), before, options.seed)
    return Formed(like, partial(make, parts), before, options.seed)


def _merged(module: str, shares: Sequence[float], options: MergeOptions, parts: Sequence[Factors]) -> Tensor:
    # A seed of its own for each layer: what DARE drops does not depend on which other layers there are.
    digest = hashlib.sha256(f"{options.seed}:{module}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return merged_entries(parts, shares, options.rule, options.density, generator)


class Stacked(Product):
    """A sum whose factors are kept as they are, beside one another."""

    method = "stacked"

    def cut(self, rank: int, scale: float, dtype: torch.dtype) -> tuple[Approximation, float]:
        """The factors rounded to the format, and what that changed."""
        stored = Factors(self.factors.B.to(dtype), self.factors.A.to(dtype), scale)
        if not bool(torch.isfinite(stored.B).all() and torch.isfinite(stored.A).all()):
            raise InputError(
                f"factors beyond the range of {dtype}", where=self.like.module, remedy="use --dtype float32"
            )
        norm = float(self.core.values.norm())
        if not len(self.values()):
            stored = Factors(stored.B[:, :0], stored.A[:0], scale)
        return Approximation(stored, frobenius(stacked([self.factors, -stored])), 0.0), norm


class Defaulted(Formed):
    """A map of full rank that gets the largest rank of its parts, for want of another wish."""

    def cut(self, rank: int, scale: float, dtype: torch.dtype) -> tuple[Approximation, float]:
        """The approximation of the rank of the largest part."""
        return super().cut(self.before, scale, dtype)


def _widest(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    found = dtypes[0]
    for dtype in dtypes[1:]:
        found = torch.promote_types(found, dtype)
    return found


def _config(files: Sequence[AdapterFile]) -> dict[str, Any]:
    """What the first adapter says of its base and task; scales are resolved, so that no other rule of theirs applies."""
    kept = ("task_type", "base_model_name_or_path", "revision", "auto_mapping")
    first: dict[str, Any] = next((dict(file.config) for file in files if file.config), {})
    return {key: first[key] for key in kept if key in first}


def _saved(files: Sequence[AdapterFile]) -> dict[str, Tensor]:
    saved: dict[str, Tensor] = {}
    for file in files:
        for name, value in file.saved.items():
            if not torch.equal(saved.setdefault(name, value), value):
                raise InputError(
                    f"{name} is saved whole, and differs between the adapters", where=file.source, expected="one value",
                    remedy="remove it from all but one of them: without the base there is no change to add",
                )  # fmt: skip
    return saved


def _notes(files: Sequence[AdapterFile]) -> list[str]:
    bases = list(dict.fromkeys(str(file.config.get("base_model_name_or_path")) for file in files if file.config))
    notes = [f"the adapters name different bases: {', '.join(bases)}"] if len(bases) > 1 else []
    alone = [file.source for file in files if len(file.layers) < len({m for f in files for m in f.layers})]
    return [*notes, *([f"not all layers are in {', '.join(alone)}: zero there"] if alone else [])]
