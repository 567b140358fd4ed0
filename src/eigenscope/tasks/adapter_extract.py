"""``adapter extract``: two checkpoints → the adapter of least error, at a rank, an energy, an error or a budget."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from eigenscope.engine.pool import available_cpus, stream, threads
from eigenscope.engine.progress import Listener, Progress, silent
from eigenscope.errors import InputError
from eigenscope.measures.allocation import allocate
from eigenscope.methods.whitening import Metric
from eigenscope.models.checkpoint import Checkpoint
from eigenscope.models.peft import AdapterFile
from eigenscope.models.sources import open_checkpoint
from eigenscope.results import Coverage, Run
from eigenscope.tasks.adapter import Adapter
from eigenscope.tasks.adapter_layer import (
    WRITTEN,
    Extracted,
    Wish,
    extract_layer,
    spectrum_of_change,
    written_dtype,
)
from eigenscope.tasks.adapter_saved import find_saved, tying
from eigenscope.tasks.adapter_targets import Target, Targets, find_targets
from eigenscope.tasks.adapter_text import input_metrics
from eigenscope.tasks.rows import versions

T = TypeVar("T")
UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "k": 10**3, "m": 10**6, "b": 10**9, "": 1}
HEADER = 200
"""Bytes that the name, shape and place of one tensor take in a file, and more."""
TASKS = (
    (("ForCausalLM", "LMHeadModel"), "CAUSAL_LM"),
    (("ForConditionalGeneration",), "SEQ_2_SEQ_LM"),
    (("Model",), "FEATURE_EXTRACTION"),
)
"""Ends of the names of classes → PEFT's task types; the others make PEFT expect a trained head."""


@dataclass(frozen=True)
class ExtractOptions:
    """How large an adapter, and of what; see :func:`extract_adapter`.

    Raises:
        InputError: not exactly one of rank, energy, error and budget, or a value out of range.
    """

    rank: int | None = None
    energy: float | None = None
    error: float | None = None
    budget: str | float | None = None
    dora: bool = False
    save_modules: bool = False
    dtype: str = ""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    seed: int = 0
    tokens: int = 16384

    def __post_init__(self) -> None:
        given = [name for name in ("rank", "energy", "error", "budget") if getattr(self, name) is not None]
        if len(given) != 1:
            raise InputError(
                f"{' and '.join(given) or 'none of them'} given",
                where="extract",
                expected="one of rank, energy, error, budget",
            )
        if self.rank is not None and self.rank < 1:
            raise InputError(f"rank {self.rank}", expected="at least 1")
        for name, value in (("energy", self.energy), ("error", self.error)):
            if value is not None and not 0.0 < value < 1.0:
                raise InputError(f"{name} {value}", expected="a share between 0 and 1")
        if self.dtype and self.dtype not in WRITTEN:
            raise InputError(f"dtype {self.dtype!r}", expected=", ".join(WRITTEN))
        if self.budget is not None:
            parse_budget(self.budget)


@dataclass(frozen=True)
class ExtractPlan:
    """What an extraction will read, and how.

    Attributes:
        base, tuned: the open sources.
        targets: what is adapted and what is not.
        options: how large an adapter.
        text: where the text is, or None.
        workers: how many weights are in memory at a time.
    """

    base: Checkpoint
    tuned: Checkpoint
    targets: Targets
    options: ExtractOptions
    text: Any
    workers: int

    def lines(self) -> dict[str, str]:
        """The plan in words, for ``--plan``."""
        sides = [target.sides for target in self.targets.targets]
        entries = sum(m * n for m, n in sides)
        sweeps = 2 if self.options.budget is not None else 1
        rank = self.options.rank
        sizes = [min(rank, *pair) * sum(pair) for pair in sides] if rank else []
        wish = [f"{name} {getattr(self.options, name)}" for name in ("rank", "energy", "error", "budget")
                if getattr(self.options, name) is not None]  # fmt: skip
        return {
            "base": self.base.source,
            "tuned": self.tuned.source,
            "weights": f"{len(sides)} with {entries:,} entries; {len(self.targets.refused)} that no adapter carries",
            "adapter": f"{wish[0]}{f', at most {sum(sizes):,} parameters' if sizes else ''}{', DoRA' if self.options.dora else ''}",
            "to read": f"{sweeps}× {len(sides)} pairs of tensors, the vectors once",
            "memory": f"{max((20 * m * n for m, n in sides), default=0) / 1e6:,.0f} MB a worker for the largest pair, "
                      f"{self.workers} workers, and the adapter",
            **({"text": str(self.text)} if self.text is not None else {}),
            **{f"note {i + 1}": note for i, note in enumerate(self.targets.notes)},
        }  # fmt: skip


def extract_adapter(
    base: Any,
    tuned: Any,
    *,
    rank: int | None = None,
    energy: float | None = None,
    error: float | None = None,
    budget: str | float | None = None,
    dora: bool = False,
    text: Any = None,
    tokenizer: Any = None,
    tokens: int = 16384,
    save_modules: bool = False,
    dtype: str = "",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    seed: int = 0,
    workers: int | None = None,
    progress: Listener = silent,
) -> Adapter:
    """The low-rank adapter that carries what training changed with the least error.

    Of each weight's ΔW the best approximation of a rank (Eckart & Young 1936), its error measured and set beside a bound on
    the least possible one. Exactly one of ``rank``, ``energy``, ``error`` and ``budget`` says how large.

    Args:
        base, tuned: a path, a hub id, ``"demo"``, an ``nn.Module``, or a mapping of names to tensors. Neither is changed.
        rank: r of every layer.
        energy: share of every ‖ΔW‖_F² to keep.
        error: largest ‖ΔW − BA‖_F/‖ΔW‖_F of every layer.
        budget: for all layers together: ``"20MB"``, or a number of parameters (``"1.5M"``). It goes where it buys most:
            to the largest σ²/(m + n) of all layers.
        dora: PEFT's DoRA: a magnitude for each output, and directions fitted with it.
        text: text files, or a mapping of names to texts: ΔW is weighted by the second moments of each linear layer's inputs
            when the base model reads them, so that E‖(ΔW − BA)x‖² is least.
        tokenizer: for ``text``, where ``base`` is a live module.
        tokens: of the text, about.
        save_modules: also write norms and biases that training changed, whole.
        dtype: of the factors: "float32", "float16" or "bfloat16"; default: as the tuned checkpoint stores each weight.
        include, exclude: shell patterns over module paths.
        seed: of the sketches and the place in the text.
        workers: weights at a time; default: the processors available.
        progress: called after each layer.

    Returns:
        :class:`Adapter`: ``.save(dir)``, ``.table``.

    Raises:
        SourceError: a checkpoint cannot be opened.
        InputError: different architectures, nothing changed, rank 0 everywhere, an option out of range.
    """
    options = ExtractOptions(
        rank=rank, energy=energy, error=error, budget=budget, dora=dora, save_modules=save_modules, dtype=dtype,
        include=tuple(include), exclude=tuple(exclude), seed=seed, tokens=tokens,
    )  # fmt: skip
    plan = make_plan(base, tuned, options, text=text, workers=workers)
    return run_plan(plan, model=base, tokenizer=tokenizer, progress=progress)


def make_plan(
    base: Any, tuned: Any, options: ExtractOptions, *, text: Any = None, workers: int | None = None
) -> ExtractPlan:
    """Open both sources and match their weights; no tensor is read."""
    if workers is not None and workers < 1:
        raise InputError(f"{workers} workers", expected="at least 1")
    if text is not None and options.dora:
        raise InputError(
            "dora with text", expected="one of them", remedy="DoRA's directions are fitted to weights alone"
        )
    first, second = open_checkpoint(base), open_checkpoint(tuned)
    targets = find_targets(first, second, model=base, include=options.include, exclude=options.exclude)
    return ExtractPlan(first, second, targets, options, text, workers or available_cpus())


def run_plan(plan: ExtractPlan, *, model: Any = None, tokenizer: Any = None, progress: Listener = silent) -> Adapter:
    """Extract what the plan says."""
    begun, cpu = time.perf_counter(), time.process_time()
    metrics: Mapping[str, Metric] = {}
    if plan.text is not None:
        metrics = input_metrics(
            model, tokenizer, plan.text, plan.targets.targets, plan.options.tokens, plan.options.seed
        )
    with threads(plan.workers) as pool:
        sweep = _Sweep(plan, metrics, pool, progress)
        done = sweep.extracted(sweep.wishes())
    return _assembled(plan, done, time.perf_counter() - begun, time.process_time() - cpu)


@dataclass(frozen=True)
class _Sweep:
    plan: ExtractPlan
    metrics: Mapping[str, Metric]
    pool: Executor
    progress: Listener

    def wishes(self) -> dict[str, Wish]:
        """What is asked of each layer; a budget is spread after all spectra are known."""
        options, targets = self.plan.options, self.plan.targets.targets
        common = Wish(options.rank, options.energy, options.error, options.dora, options.dtype, options.seed)
        if options.budget is None:
            return {target.module: common for target in targets}
        spectra = dict(self._each(self._spectrum, 0, 2 * len(targets)))
        # An embedding reads one of n tokens: with each as likely, E‖ΔW x‖² is ‖ΔW‖²/n, beside the moments of the others.
        scales = {t.module: t.sides[1] ** -0.5 if self.metrics and t.kind == "embedding" else 1.0 for t in targets}
        ordered = [spectra[target.module] * scales[target.module] for target in targets]
        size, costs, fixed = self._prices([len(values) > 0 for values in ordered])
        if size <= fixed:
            raise InputError(
                f"budget {options.budget}", expected=f"more than {fixed:,.0f}, which no rank is written with"
            )
        ranks = allocate(ordered, costs, size - fixed)
        return {target.module: replace(common, rank=rank) for target, rank in zip(targets, ranks, strict=True)}

    def _prices(self, changed: Sequence[bool]) -> tuple[float, list[float], float]:
        """The budget, what one rank of each layer costs, and what all layers cost at rank 0, in one unit."""
        options, targets = self.plan.options, self.plan.targets.targets
        size, in_bytes = parse_budget(options.budget or 0)
        widths = [WRITTEN[written_dtype(t, options.dtype)].itemsize if in_bytes else 1 for t in targets]
        costs = [float(sum(t.sides) * width) for t, width in zip(targets, widths, strict=True)]
        tensors = 3 if options.dora else 2
        fixed = sum(
            (t.sides[0] * width if options.dora else 0) + (tensors * HEADER if in_bytes else 0)
            for t, width, needed in zip(targets, widths, changed, strict=True) if needed
        )  # fmt: skip
        return size, costs, float(fixed)

    def extracted(self, wishes: Mapping[str, Wish]) -> dict[str, Extracted]:
        """Every layer."""
        count = len(self.plan.targets.targets)
        sweeps = 2 if self.plan.options.budget is not None else 1
        return dict(
            self._each(lambda target: self._layer(target, wishes[target.module]), (sweeps - 1) * count, sweeps * count)
        )

    def _spectrum(self, target: Target) -> Any:
        return spectrum_of_change(*self._parts(target), target, self.metrics.get(target.module))

    def _layer(self, target: Target, wish: Wish) -> Extracted:
        # A seed of its own for each layer: the result does not depend on which is made first.
        place = [t.module for t in self.plan.targets.targets].index(target.module)
        wish = replace(wish, seed=wish.seed * 1_000_003 + place)
        return extract_layer(*self._parts(target), target, wish, self.metrics.get(target.module))

    def _parts(self, target: Target) -> tuple[Checkpoint, Checkpoint]:
        return self.plan.base.part([target.base]), self.plan.tuned.part([target.tuned])

    def _each(self, work: Callable[[Target], T], before: int, total: int) -> Iterator[tuple[str, T]]:
        targets = sorted(self.plan.targets.targets, key=lambda t: -(min(t.sides) ** 2) * max(t.sides))
        self.progress(Progress(before, total, ""))

        def named(target: Target) -> tuple[str, T]:
            return target.module, work(target)

        for done, (name, result) in enumerate(stream(self.pool, named, targets, 2 * self.plan.workers), 1):
            self.progress(Progress(before + done, total, name))
            yield name, result


def parse_budget(budget: str | float) -> tuple[float, bool]:
    """A budget as a number, and whether it is of bytes: ``"20MB"`` is, ``"1.5M"`` and 1500000 are parameters.

    Raises:
        InputError: it is neither.
    """
    match = re.fullmatch(r"\s*([0-9.eE+]+)\s*([A-Za-z]*)\s*", str(budget))
    try:
        number, unit = (float(match[1]), match[2].lower()) if match else (0.0, "?")
    except ValueError:
        number, unit = 0.0, "?"
    if unit not in UNITS or not 0.0 < number < float("inf"):
        raise InputError(
            f"budget {str(budget)!r}", expected="a size such as 20MB, or a number of parameters such as 1.5M"
        )
    return number * UNITS[unit], unit.endswith("b") and len(unit) == 2


def _assembled(plan: ExtractPlan, done: Mapping[str, Extracted], wall: float, cpu: float) -> Adapter:
    ordered = [done[target.module] for target in plan.targets.targets]
    layers = {found.layer.module: found.layer for found in ordered if found.layer is not None}
    _check_some(plan, ordered, layers)
    saved, remarks = find_saved(plan.base, plan.tuned, plan.targets, layers, write=plan.options.save_modules)
    tables = [t.module for t in plan.targets.targets if t.module in layers and t.role.rpartition(".")[2] == "embedding"]
    tied, said = tying(plan.base, tables)
    config: dict[str, Any] = {"task_type": task_of(plan.base), "base_model_name_or_path": named_base(plan.base), **tied}
    file = AdapterFile(layers, config, saved, plan.tuned.source)
    refused = tuple(
        Coverage(name, plan.tuned.tensors[name].shape, plan.tuned.tensors[name].dtype, "not readable", reason, 0)
        for name, reason in plan.targets.refused.items()
    )
    provenance = {
        **versions(), **asdict(plan.options), "base": plan.base.source, "tuned": plan.tuned.source,
        "notes": "; ".join((*plan.targets.notes, *remarks, *said)), "workers": plan.workers, "wall seconds": round(wall, 3),
        "CPU seconds": round(cpu, 3),
    }  # fmt: skip
    records = tuple(found.record for found in ordered)
    run = Run("adapter", f"{plan.base.source} → {plan.tuned.source}", records, refused, provenance)
    return Adapter(file, run, plan.targets.modules)


def _check_some(plan: ExtractPlan, ordered: Sequence[Extracted], layers: Mapping[str, Any]) -> None:
    if layers:
        return
    statuses = [str(found.record.readings.get("status")) for found in ordered]
    where = f"{plan.base.source}, {plan.tuned.source}"
    if all(status == "unchanged" for status in statuses):
        raise InputError(
            "nothing changed: every weight is equal in both", where=where, expected="a model trained from the base"
        )
    why = next(status for status in statuses if status != "unchanged")
    raise InputError(
        f"no layer is left to write: {why}", where=where, expected="at least one layer of a rank above 0",
        remedy="ask for more energy, a smaller error or a larger budget" if "rank 0" in why else "",
    )  # fmt: skip


def task_of(base: Checkpoint) -> str | None:
    """PEFT's type of the task that the base's class is for, where its configuration tells."""
    names = base.config.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else ""
    return next((task for endings, task in TASKS if name.endswith(endings)), None)


def named_base(base: Checkpoint) -> str | None:
    """What PEFT loads the base by: as the user named it, or the folder that stands for ``demo``."""
    if not base.files:
        return None
    return str(base.files[0].parent) if base.source == "demo" or Path(base.source).is_file() else base.source
