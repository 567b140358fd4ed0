"""``adapter show``: the spectra of an adapter's layers, from its factors alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from eigenscope.errors import InputError
from eigenscope.measures import rank as ranks
from eigenscope.measures.outliers import deviations, in_words, title
from eigenscope.methods.factored import Core, Factors, core_svd
from eigenscope.models.checkpoint import Checkpoint
from eigenscope.models.peft import AdapterFile, AdapterLayer, read_adapter
from eigenscope.models.sources import open_checkpoint
from eigenscope.results import Coverage, Finding, Record, Run, Value
from eigenscope.tasks.adapter_cut import facts_of
from eigenscope.tasks.rows import versions
from eigenscope.tasks.tables import TableResult

VERB = "adapter show"
DOMINATED = 0.9
"""Share of ‖ΔW‖_F² in one direction from which a layer is said to be dominated by it."""
COMPARED = ("frobenius", "stable_rank", "rank_99", "balance")
"""Readings compared with the same role in other layers."""


class AdapterSpectra(TableResult):
    """The result of :func:`show_adapter`: ``.table``, ``.outliers``, ``.run.verdict``, ``.figure(…)``, ``.report(path)``."""


def show_adapter(source: str | Path, *, base: Any = None, alpha: float | None = None) -> AdapterSpectra:
    """What each layer of an adapter does, without the model that it belongs to.

    Args:
        source: the adapter's folder, or the file of its weights.
        base: the base model (a path, a hub id, a module, a mapping), for the size of ΔW relative to W.
        alpha: scale numerator, where there is no configuration.

    Raises:
        SourceError: no adapter there, or one that is not understood or not sound.
        InputError: a base that has none of the adapter's modules.
    """
    return AdapterSpectra(measured(read_adapter(source, alpha=alpha), base=base))


def measured(file: AdapterFile, *, base: Any = None) -> Run:
    """The rows, findings and verdict of an adapter.

    Raises:
        InputError: as :func:`show_adapter`.
    """
    norms = _norms(open_checkpoint(base), file) if base is not None else None
    facts = facts_of(file)
    stabilised = bool(file.config.get("use_rslora"))
    records = tuple(_record(layer, facts[name], stabilised, norms) for name, layer in file.layers.items())
    coverage = tuple(
        Coverage(name, tuple(value.shape), str(value.dtype).removeprefix("torch."), "not a matrix", "saved whole", 0)
        for name, value in file.saved.items()
    )
    told = ("base_model_name_or_path", "task_type", "peft_version", "lora_dropout", "use_rslora", "use_dora", "bias")
    provenance = {**versions(), **{key: file.config[key] for key in told if file.config.get(key) is not None}}
    return Run(VERB, file.source, records, coverage, provenance, _findings(records), _verdict(records))


def _record(
    layer: AdapterLayer, facts: dict[str, Value], stabilised: bool, norms: dict[str, float | None] | None
) -> Record:
    found = core_svd(Factors(layer.B, layer.A, layer.scale))
    values = found.values.numpy()
    norm = float(np.linalg.norm(values))
    B, A = float(found.upper.norm()), float(found.lower.norm())
    needed = ranks.rank_for_energy(values, 0.99)
    stable = ranks.stable_rank(values)
    readings: dict[str, Value] = {
        "alpha": layer.scale * (layer.rank**0.5 if stabilised else layer.rank), "scale": layer.scale, "frobenius": norm,
        "sigma_max": float(values[0]), "used_rank": int((values > _rounding(layer, found)).sum()), "stable_rank": stable,
        "effective_rank": ranks.effective_rank(values), "rank_90": ranks.rank_for_energy(values, 0.9), "rank_99": needed,
        "wasted_rank": layer.rank - (needed or 0), "first_share": None if stable is None else 1.0 / stable,
        "balance": B / A if A else None, "error_bound": found.bound, "status": "ok",
    }  # fmt: skip
    if layer.magnitude is not None:
        readings["magnitude"] = float(layer.magnitude.double().mean())
    if norm == 0.0:
        readings["status"] = "never trained: B = 0" if B == 0.0 else "does nothing: scale·B A = 0"
    if norms is not None:
        size = norms[layer.module]
        readings["relative_change"] = None if size is None else norm / size if size else float("inf")
        if size is None and readings["status"] == "ok":
            readings["status"] = "the base has no weight of this module and shape"
    return Record(layer.module, {**facts, **readings}, values)


def _rounding(layer: AdapterLayer, found: Core) -> float:
    """What one rounding of every entry of B and A can do to a singular value of scale·B A (Weyl's inequality)."""
    B, A = (torch.linalg.svdvals(part) for part in (found.upper, found.lower))
    parts = [
        0.5 * torch.finfo(factor.dtype).eps * float(own.norm() * other[0])
        for factor, own, other in ((layer.B, B, A), (layer.A, A, B))
    ]
    return max(abs(layer.scale) * sum(parts), found.bound)


def _norms(base: Checkpoint, file: AdapterFile) -> dict[str, float | None]:
    """‖W‖_F of each module in the base, None where it has none of that shape."""
    ends: dict[str, list[str]] = defaultdict(list)
    for tensor in base.tensors:
        module = tensor.removesuffix(".weight")
        if module != tensor:
            parts = module.split(".")
            for start in range(len(parts)):
                ends[".".join(parts[start:])].append(tensor)
    found: dict[str, float | None] = {}
    for module, layer in file.layers.items():
        parts = module.split(".")
        # The base may lack the outer module's name, or have one more.
        names = [".".join(parts[start:]) for start in range(max(1, len(parts) - 1))]
        fits = next((ends[name] for name in names if name in ends), [])
        fits = [name for name in fits if base.tensors[name].shape == layer.shape]
        found[module] = float(base.read(fits[0]).double().norm()) if len(fits) == 1 else None
    if all(size is None for size in found.values()):
        first = next(iter(file.layers.values()))
        raise InputError(
            f"no layer of the adapter fits; the first is {first.module} of shape {first.shape}", where=base.source,
            expected="the base that it was trained on", remedy=f"it has tensors such as {next(iter(base.tensors), 'none')}",
        )  # fmt: skip
    return found


def _findings(records: Sequence[Record]) -> tuple[Finding, ...]:
    found = [*_of_all(records)]
    for record, deviation in deviations([r for r in records if r.readings["frobenius"]], COMPARED, VERB):
        sentence = f"{title(record)}: {in_words(deviation, VERB)}"
        found.append(Finding((record.name,), sentence, abs(deviation.z) / deviation.threshold, deviation.reading))
    return tuple(sorted(found, key=lambda finding: -finding.severity))


def _of_all(records: Sequence[Record]) -> Iterable[Finding]:
    """What groups of layers have in common."""
    nothing = [r for r in records if not r.readings["frobenius"]]
    if nothing:
        yield Finding(
            _names(nothing), f"{_counted(nothing)} ΔW = 0 and were never trained, or switched off", 20.0, "frobenius"
        )
    alive = [r for r in records if r.readings["frobenius"]]
    flat = [r for r in alive if _number(r, "used_rank") < _number(r, "rank")]
    if flat:
        least = min(flat, key=lambda r: _number(r, "used_rank") / _number(r, "rank"))
        sentence = (
            f"{_counted(flat)} fewer directions above rounding than their rank: {least.name} uses "
            f"{least.readings['used_rank']} of {least.readings['rank']}"
        )  # fmt: skip
        yield Finding(_names(flat), sentence, 4.0, "used_rank")
    single = [r for r in alive if _number(r, "first_share") > DOMINATED and _number(r, "rank") > 1]
    if single:
        most = max(single, key=lambda r: _number(r, "first_share"))
        sentence = (
            f"{_counted(single)} over {DOMINATED:.0%} of ‖ΔW‖² in one direction, {most.name} most of all: "
            f"{100.0 * _number(most, 'first_share'):.3g} %"
        )  # fmt: skip
        yield Finding(_names(single), sentence.replace("%", " %", 1), 3.0, "first_share")


def _counted(records: Sequence[Record]) -> str:
    return "1 layer has" if len(records) == 1 else f"{len(records):,} layers have"


def _names(records: Sequence[Record]) -> tuple[str, ...]:
    return tuple(record.name for record in records)


def _number(record: Record, name: str) -> float:
    value = record.readings[name]
    return float(value) if isinstance(value, int | float) else 0.0


def _verdict(records: Sequence[Record]) -> str:
    alive = [r for r in records if r.readings["frobenius"]]
    if not alive:
        return "No layer of this adapter does anything: ΔW = 0 everywhere." if records else "No layers."
    used, given = ([int(_number(r, name)) for r in alive] for name in ("used_rank", "rank"))
    stable = sorted(_number(r, "stable_rank") for r in alive)
    total = sum(_number(r, "parameters") for r in records)
    kept = sum(_number(r, "rank_99") * (_number(r, "rows") + _number(r, "cols")) for r in alive)
    return (
        f"Used rank {_span(used)} of {_span(given)}; stable rank {stable[0]:.3g} to {stable[-1]:.3g}, median "
        f"{median(stable):.3g}. 99 % of ‖ΔW‖² in every layer takes {100.0 * kept / total:.3g} % of the "
        f"{int(total):,} parameters."
    )  # fmt: skip


def _span(values: Sequence[int]) -> str:
    return str(min(values)) if min(values) == max(values) else f"{min(values)} to {max(values)}"
