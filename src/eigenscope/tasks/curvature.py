"""The shape of a loss around the weights: plan, stages, and what each leaves behind when the work is interrupted."""

from __future__ import annotations

import hashlib
import resource
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import eigenscope
from eigenscope.engine.progress import Listener, Progress, silent
from eigenscope.engine.runfile import RunFile
from eigenscope.measures import curvature as judging
from eigenscope.methods import choose
from eigenscope.methods.ends import Ends
from eigenscope.operators.curvature import hessian
from eigenscope.operators.gauss_newton import gauss_newton as gauss_newton_of
from eigenscope.operators.loss_operator import LossOperator
from eigenscope.operators.losses import Count, Loss
from eigenscope.operators.parameters import Selection
from eigenscope.operators.preconditioned import Preconditioned, diagonal_of
from eigenscope.results import Record
from eigenscope.tasks import curvature_stages as stages
from eigenscope.tasks.curvature_options import CurvatureOptions, CurvaturePlan, make_plan
from eigenscope.tasks.curvature_result import BLOCK, Curvature
from eigenscope.tasks.curvature_state import pack, unpack
from eigenscope.tasks.landscape import landscape
from eigenscope.tasks.rows import versions

VERB = "curvature"
ADAM_EPS = 1e-8
CONVEX = "Of a loss that is convex in the outputs the Gauss-Newton matrix has no negative eigenvalues: it cannot show a saddle."
BLOCK_PAIRS = (3, 1)


def curvature(
    model: nn.Module, loss: Loss | None, batches: Iterable[Any], *, params: Selection = None, count: Count | None = None,
    optimizer: torch.optim.Optimizer | None = None, gauss_newton: bool = False, dtype: torch.dtype | None = None,
    output: str | Path | None = None, progress: Listener = silent, **options: Any,
) -> Curvature:  # fmt: skip
    """The Hessian of a mean loss at the model's parameters: both ends, density, trace, verdict, advice.

    Args:
        model, loss, batches, params, count, dtype: as for :func:`eigenscope.hessian`; the model is left as it is.
        optimizer: a live Adam, AdamW, RMSprop or Adagrad in whose metric the Hessian is looked at, too; its learning rate
            is used for the advice. Without one, Adam's second moment is taken from the gradients of the batches.
        gauss_newton: of the Gauss-Newton matrix instead.
        output: a run file: finished stages are kept there, and taken from there.
        progress: told of products done.
        options: of :class:`eigenscope.tasks.curvature_options.CurvatureOptions`: top, bottom, tol, density, trace, blocks,
            landscape, budget, memory, learning_rate, seed, …

    Returns:
        :class:`Curvature`, also when interrupted (KeyboardInterrupt) after its first stages: ``interrupted`` says so.

    Raises:
        InputError: what :func:`eigenscope.hessian` refuses, or an option out of range.
        RunFileError: the run file is of another analysis.
    """
    wanted = CurvatureOptions(**options)
    if optimizer is not None and wanted.learning_rate is None:
        group = optimizer.param_groups[0]
        wanted = replace(wanted, learning_rate=float(group["lr"]), beta1=float(group.get("betas", (0.9,))[0]))
    made = operator(model, loss, batches, params, count, gauss_newton, dtype, wanted.memory)
    name = type(model).__name__
    return run_plan(made, make_plan(made, wanted), name, output=output, progress=progress, optimizer=optimizer)


def operator(
    model: nn.Module, loss: Loss | None, batches: Iterable[Any], params: Selection, count: Count | None,
    gauss_newton: bool, dtype: torch.dtype | None, memory: int | None,
) -> LossOperator:  # fmt: skip
    """The operator that is analysed; of the memory given, half may be kept graphs."""
    build: Callable[..., LossOperator] = gauss_newton_of if gauss_newton else hessian
    share = None if memory is None else memory // 2
    return build(model, loss, batches, params=params, count=count, dtype=dtype, memory=share)


def run_plan(
    H: LossOperator, plan: CurvaturePlan, source: str, *, output: str | Path | None = None, progress: Listener = silent,
    optimizer: torch.optim.Optimizer | None = None,
) -> Curvature:  # fmt: skip
    """Do what the plan says; finished stages go to the run file, and what it holds already is taken from there."""
    begun, processor = time.perf_counter(), time.process_time()
    options = {key: value for key, value in asdict(plan.options).items() if key not in ("budget", "memory")}
    identity: dict[str, Any] = {"verb": VERB}
    if output is not None:
        identity |= {"eigenscope": eigenscope.__version__, "content": fingerprint(H), **options}
        identity |= {"operator": type(H).__name__, "parameters": H.shape[0]}
    with RunFile(output, identity) as runfile:
        runfile.describe(source, ())
        work = _Work(H, plan, runfile, progress, optimizer)
        try:
            work.run()
            interrupted = False
        except KeyboardInterrupt:
            if "ends" not in work.done:
                raise
            interrupted = True
        provenance = {
            **versions(), "operator": type(H).__name__, "dtype": str(H.dtype).removeprefix("torch."),
            "device": str(H.device), "products": H.products, "seconds": round(time.perf_counter() - begun, 3),
            "CPU seconds": round(time.process_time() - processor, 3),
            "forecast": dict(plan.lines()), "peak memory": f"{_peak() / 2**30:.2f} GiB of the whole process",
            **_checked(H), **asdict(plan.options),
        }  # fmt: skip
        convex = (CONVEX,) if type(H).__name__ == "GaussNewton" else ()
        notes = (*H.notes, *convex, *(f"Left out, {note}." for note in plan.notes))
        about = {
            "eps": torch.finfo(H.dtype).eps, "options": asdict(plan.options), "notes": list(notes),
            "gauss_newton": type(H).__name__ == "GaussNewton",
        }  # fmt: skip
        if not interrupted:
            runfile.append(Record("about", {"content": about}), 10_000)  # type: ignore[dict-item]
            runfile.finish(provenance)
    return Curvature(
        source, work.done, asdict(plan.options), torch.finfo(H.dtype).eps, provenance, notes, interrupted,
        bool(about["gauss_newton"]),
    )  # fmt: skip


def load_curvature(path: str | Path) -> Curvature:
    """The result that a finished run file holds.

    Raises:
        RunFileError: not such a file, or one of an analysis that is not finished.
    """
    from eigenscope.errors import RunFileError

    with RunFile(path) as file:
        run = file.load()
    rows: dict[str, Any] = {record.name: record.readings.get("content") for record in run.records}
    about = rows.pop("about", None)
    if run.verb != VERB or about is None:
        raise RunFileError(
            "holds no finished analysis of curvature", where=str(path), remedy="run the same command again"
        )
    done = {name: unpack(content) for name, content in rows.items()}
    return Curvature(
        run.source, done, about["options"], float(about["eps"]), run.provenance, tuple(about["notes"]), False,
        bool(about["gauss_newton"]),
    )  # fmt: skip


def verb_of(path: str | Path) -> str:
    """The verb that wrote a run file.

    Raises:
        RunFileError: not a run file.
    """
    with RunFile(path) as file:
        return file.load().verb


class _Work:
    """The stages, one after the other; those that are done are not done again."""

    def __init__(
        self, H: LossOperator, plan: CurvaturePlan, runfile: RunFile, progress: Listener,
        optimizer: torch.optim.Optimizer | None,
    ) -> None:  # fmt: skip
        self.H, self.plan, self.options, self.runfile = H, plan, plan.options, runfile
        self.progress, self.optimizer = progress, optimizer
        self.done: dict[str, Any] = {}
        kept = {record.name: record.readings["content"] for record in runfile.load().records}
        self.kept = {name: unpack(content) for name, content in kept.items() if name != "about"}
        self.before = H.products
        self.gradient: Tensor | None = None
        self.second: Tensor | None = None
        self.pairs: Ends | None = None

    def run(self) -> None:
        plan, options, H = self.plan, self.options, self.H
        self.stage("point", self._point)
        ends: Ends = self.stage("ends", self._ends)
        if not self._whole("ends", ends):  # what an interrupt left of it
            raise KeyboardInterrupt
        self.stage(
            "slices", lambda: tuple(stages.drawn_slices(H, self._vectors(), self._gradient(), self.done["point"]))
        )
        self.stage("escape", lambda: stages.escape(H, self._vectors(), self._gradient(), self.done["point"]))
        self.stage("sharpness", self._sharpness)
        if plan.metric >= 10 or plan.complete:
            self.stage("metric", lambda: self._metric(ends))
        if plan.density is not None:
            steps, probes, deflate = plan.density
            source = torch.Generator().manual_seed(options.seed + 1)
            self.stage(
                "density",
                lambda: choose.density(H, steps=steps, probes=probes, deflate=deflate, kind="eigen", generator=source),
            )
        if plan.trace_products:
            by = options.blocks or "layer"
            self.stage(
                "trace",
                lambda: stages.traces(
                    H, by, options.trace_tol, plan.trace_products, options.seed + 2, self._count("trace")
                ),
            )
        if plan.blocks[0]:
            for name, block in H.blocks(options.blocks).items():
                self.stage(BLOCK + name, partial(self._block, block))
        if options.landscape:
            self.stage("landscape", self._landscape)

    def stage(self, name: str, make: Callable[[], Any]) -> Any:
        """The result of a stage: from the run file, or made and written there."""
        if name in self.kept and self._whole(name, self.kept[name]):
            self.done[name] = self.kept[name]
            return self.done[name]
        self._tell(name)
        self.done[name] = make()
        if self._whole(name, self.done[name]):
            self.runfile.append(Record(name, {"content": pack(self.done[name])}), len(self.done))
        self._tell(name)
        return self.done[name]

    def _whole(self, name: str, result: Any) -> bool:
        """Whether nothing would be gained by doing it again with the products of this plan."""
        return name != "ends" or result.finished or result.top.products >= self.plan.pair_products

    def _tell(self, label: str) -> None:
        done = self.H.products - self.before
        self.progress(Progress(done, max(self.plan.products, done), label))

    def _count(self, label: str) -> Callable[..., None]:
        return lambda *_: self._tell(label)

    def _point(self) -> stages.Point:
        place, self.gradient, self.second = stages.point_at(self.H)
        return place

    def _gradient(self) -> Tensor:
        if self.gradient is None:
            _, self.gradient, self.second = stages.point_at(self.H)
        return self.gradient

    def _ends(self) -> Ends:
        options, plan = self.options, self.plan
        watcher = self._count("eigenpairs")
        if plan.complete:
            self.pairs = stages.all_pairs(self.H, options.top, options.bottom, watcher)
        else:
            self.pairs = stages.some_pairs(
                self.H, options.top, options.bottom, options.tol, plan.basis, plan.pair_products, options.seed, watcher
            )
        return self.pairs

    def _vectors(self) -> Ends:
        """The eigenpairs with their vectors, which a run file does not keep."""
        return self.pairs if self.pairs is not None else self._ends()

    def _sharpness(self) -> stages.Sharpness:
        H, options, plan = self.H, self.options, self.plan
        found = stages.sharpness(H, self._gradient(), self._vectors(), options.radius, self.done["point"].loss)
        if plan.metric < 10:
            return found
        value, residual = stages.invariant(H, options.tol, plan.basis, plan.metric, options.seed)
        return replace(found, invariant=value, invariant_residual=residual)

    def _metric(self, ends: Ends) -> Any:
        """The ends in the metric of the optimiser, or of Adam by the gradients of these batches."""
        H, place, options = self.H, self.done["point"], self.options
        if self.optimizer is not None:
            diagonal = diagonal_of(self.optimizer, H)
            source = f"{type(self.optimizer).__name__} as it stands"
        else:
            largest = float(ends.ritz.abs().max())
            test = judging.gradient_test(place.gradient, largest, place.size, None, torch.finfo(H.dtype).eps)
            if test.critical or place.batches < 2:
                return None
            self._gradient()
            second = self.second if self.second is not None else torch.ones(H.shape[0])
            diagonal = second.sqrt() + ADAM_EPS
            source = "Adam after long training on these batches"
        metric = Preconditioned(H, diagonal)
        top, bottom = 1, min(1, options.bottom)
        if self.plan.complete:
            found = stages.all_pairs(metric, top, bottom)
        else:
            found = stages.some_pairs(
                metric, top, bottom, options.tol, self.plan.basis, self.plan.metric, options.seed
            )  # fmt: skip
        return {"source": source, "ends": found}

    def _block(self, block: LossOperator) -> dict[str, Any]:
        top, bottom = BLOCK_PAIRS
        if block.shape[0] <= self.plan.blocks[1]:
            found = stages.all_pairs(block, top, bottom)
        else:
            found = stages.some_pairs(
                block, top, bottom, self.options.tol, self.plan.basis, self.plan.blocks[1], self.options.seed
            )
        return {"size": block.shape[0], "ends": found}

    def _landscape(self) -> Any:
        place, options = self.done["point"], self.options
        plane: Any = options.landscape
        return landscape(
            self.H, self._vectors(), place.loss, place.size, plane=plane, grid=options.grid, seed=options.seed,
            watcher=self._count("landscape"),
        )  # fmt: skip


def fingerprint(H: LossOperator) -> str:
    """A hash of the parameters and of the tensors of the data."""
    digest = hashlib.sha256()
    for name, tensor in zip(H.layout.names, H.layout.tensors, strict=True):
        digest.update(name.encode())
        digest.update(_bytes(tensor))
    for batch in H.objective.batches:
        _digest(batch, digest.update)
    return digest.hexdigest()


def _digest(value: Any, update: Callable[[bytes], None]) -> None:
    if isinstance(value, Tensor):
        update(_bytes(value))
    elif isinstance(value, Mapping):
        for key in value:
            update(str(key).encode())
            _digest(value[key], update)
    elif isinstance(value, tuple | list):
        for item in value:
            _digest(item, update)


def _bytes(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _checked(H: LossOperator) -> dict[str, Any]:
    if H.check is None:
        return {}
    found: dict[str, Any] = {"asymmetry of products": f"{H.check.symmetry:.1e}"}
    if H.check.difference is not None:
        found["deviation from a finite difference"] = f"{H.check.difference:.1e}"
    return found


def _peak() -> int:
    """Most resident bytes of the process so far; Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
