"""``diff``: two checkpoints → the spectrum of what training changed, matrix by matrix."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import eigenscope
from eigenscope.engine.pool import available_cpus
from eigenscope.engine.progress import Listener, silent
from eigenscope.engine.runfile import RunFile
from eigenscope.errors import InputError
from eigenscope.measures import changes
from eigenscope.measures.rounding import is_quantised
from eigenscope.models.checkpoint import Checkpoint
from eigenscope.models.matrices import Matrix
from eigenscope.models.pairing import Pair, Pairing, pair_checkpoints
from eigenscope.models.sources import open_checkpoint
from eigenscope.results import Compared, Record, Run
from eigenscope.tasks.diff_readings import compare, compare_vectors
from eigenscope.tasks.rows import Work, is_wanted, make_rows, versions
from eigenscope.tasks.tables import TableResult

if TYPE_CHECKING:
    import pandas as pd

ARROW = " → "
"""Between the names of the base and the tuned checkpoint in a run's source."""


@dataclass(frozen=True)
class DiffOptions:
    """What a comparison measures; two with the same options and contents are the same run.

    Attributes: see :func:`eigenscope.diff`.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class DiffPlan:
    """What a comparison will read and what it will cost; made without reading a tensor.

    Attributes:
        base, tuned: the open sources.
        pairing: which tensor is which.
        pairs: the rows of the table, in the order of the tuned checkpoint.
        options: what is measured.
        workers: how many pairs are in memory at a time.
    """

    base: Checkpoint
    tuned: Checkpoint
    pairing: Pairing
    pairs: tuple[Pair, ...]
    options: DiffOptions
    workers: int

    @property
    def source(self) -> str:
        """Both names."""
        return f"{self.base.source}{ARROW}{self.tuned.source}"

    @property
    def notes(self) -> tuple[str, ...]:
        """How names were resolved, and what the sources say of themselves."""
        return (*self.pairing.notes, *_dequantised(self.pairs), *self.base.notes, *self.tuned.notes)

    @property
    def operations(self) -> float:
        """Floating-point operations: four Gram matrices, s²·l each (s short side, l long), and their eigenvalues."""
        return float(sum(4 * (s * s * long + 4 * s**3 / 3) for s, long in map(_sides, self.pairs)))

    @property
    def memory(self) -> int:
        """Bytes that one worker needs for the largest pair: both as stored, ΔW and one more in float64, a Gram matrix."""
        return max((24 * s * long + 8 * s * s for s, long in map(_sides, self.pairs)), default=0)

    def lines(self) -> dict[str, str]:
        """The plan in words, for ``--plan``."""
        covered = sum(p.tuned.rows * p.tuned.cols for p in self.pairs)
        read = sum(m.rows * m.cols * m.bytes_per_entry for p in self.pairs for m in (p.base, p.tuned))
        alone = [sum(e.outcome == f"only in {side}" for e in self.pairing.coverage) for side in ("base", "tuned")]
        return {
            "base": f"{self.base.source}, {_format(self.base)}",
            "tuned": f"{self.tuned.source}, {_format(self.tuned)}",
            "tensors": f"{len(self.pairing.coverage)}, of which {alone[0]} only in the base and {alone[1]} only in the tuned one",
            "matrices": f"{len(self.pairs)} pairs with {covered:,} entries; {len(self.pairing.vectors)} vectors",
            "to read": f"{read / 1e6:,.1f} MB",
            "arithmetic": f"{self.operations / 1e9:,.1f} Gflop in float64",
            "memory": f"{self.memory / 1e6:,.0f} MB a worker for the largest pair, {self.workers} workers",
            **{f"note {i + 1}": note for i, note in enumerate(self.notes)},
        }


class Diff(TableResult):
    """The result of :func:`diff`: what training changed."""

    @property
    def verdict(self) -> str:
        """The verdict on the whole model in a sentence, with the counts and figures it rests on."""
        return self.run.verdict

    @property
    def vectors(self) -> pd.DataFrame:
        """One row per tensor that is no matrix (biases, norms): its name, shape, and relative change."""
        table = self.coverage
        known = table[table["relative_change"].notna()] if "relative_change" in table else table.head(0)
        return known[["tensor", "base", "shape", "dtype", "relative_change", "reason"]].reset_index(drop=True)


def diff(
    base: Any,
    tuned: Any,
    *,
    output: str | Path | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    include: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
    progress: Listener = silent,
) -> Diff:
    """What training changed: the spectrum of W_tuned − W_base of every matrix, and a verdict on each and on the model.

    Args:
        base: the checkpoint before: a path, a hub id, ``"demo"``, an ``nn.Module``, or a mapping of names to tensors.
        tuned: the checkpoint after, likewise. Neither is changed.
        output: run file (SQLite); an unfinished one of the same comparison is resumed, a finished one is read.
        workers: pairs of matrices at a time; default: the processors available.
        executor: any ``concurrent.futures.Executor`` to run on instead of threads made here.
        include, exclude: shell patterns over names of the tuned matrices.
        progress: called after each row.

    Returns:
        :class:`Diff`.

    Raises:
        SourceError: a checkpoint cannot be opened. A tensor that cannot be read is a row that says so.
        InputError: different architectures, or an option out of range.
        RunFileError: the run file cannot be used.
    """
    plan = make_plan(base, tuned, DiffOptions(tuple(include), tuple(exclude)), workers)
    with open_run_file(plan, output) as runfile:
        for _ in run_plan(plan, runfile, executor=executor, progress=progress):
            pass
        return Diff(judged(runfile.load()))


def judged(run: Run) -> Run:
    """The run with its verdict and findings."""
    coverage = tuple(entry for entry in run.coverage if isinstance(entry, Compared))
    return replace(run, findings=changes.find(run.records, coverage), verdict=changes.verdict(run.records, coverage))


def make_plan(base: Any, tuned: Any, options: DiffOptions, workers: int | None = None) -> DiffPlan:
    """Open both sources and match their matrices."""
    if workers is not None and workers < 1:
        raise InputError(f"{workers} workers", expected="at least 1")
    first, second = open_checkpoint(base), open_checkpoint(tuned)
    pairing = pair_checkpoints(first, second)
    chosen = tuple(p for p in pairing.pairs if is_wanted(p.name, options.include, options.exclude))
    if not chosen:
        raise InputError(
            f"none of the {len(pairing.pairs)} matrices is chosen by include={options.include}, exclude={options.exclude}",
            where=second.source, expected=f"patterns over names such as {pairing.pairs[0].name!r}",
        )  # fmt: skip
    return DiffPlan(first, second, pairing, chosen, options, workers or available_cpus())


def open_run_file(plan: DiffPlan, output: str | Path | None) -> RunFile:
    """The run file of a plan; contents are hashed only where the file outlives the process."""
    if output is None:
        return RunFile(None, {"verb": "diff"})
    identity = {
        "verb": "diff", "eigenscope": eigenscope.__version__, "base": plan.base.fingerprint(),
        "tuned": plan.tuned.fingerprint(), **asdict(plan.options),
    }  # fmt: skip
    return RunFile(output, identity)


def run_plan(
    plan: DiffPlan, runfile: RunFile, *, executor: Executor | None = None, progress: Listener = silent
) -> Iterator[Record]:
    """Measure what the run file does not hold yet, largest first; each row is written before it is yielded."""
    work = Work(
        source=plan.source,
        items={pair.name: pair for pair in plan.pairs},
        cost=lambda pair: _sides(pair)[0] ** 2 * _sides(pair)[1],
        part=partial(_part, plan.base, plan.tuned),
        measure=_compare_part,
        coverage=plan.pairing.coverage,
        provenance={
            **versions(), "base": plan.base.source, "tuned": plan.tuned.source,
            "formats": f"{_format(plan.base)}, {_format(plan.tuned)}", "workers": plan.workers, **asdict(plan.options),
            "notes": "; ".join(plan.notes),
        },
        workers=plan.workers,
        closing=partial(_with_vectors, plan),
    )  # fmt: skip
    yield from make_rows(work, runfile, executor=executor, progress=progress)


def _part(base: Checkpoint, tuned: Checkpoint, pair: Pair) -> tuple[Checkpoint, Checkpoint, Pair]:
    """A pair with no more of the checkpoints than it needs: that is what a worker elsewhere is sent."""

    def of(checkpoint: Checkpoint, matrix: Matrix) -> Checkpoint:
        names = [name for name in (matrix.tensor, matrix.scale, matrix.gain) if name in checkpoint.tensors]
        return checkpoint.part(names)

    return of(base, pair.base), of(tuned, pair.tuned), pair


def _compare_part(item: tuple[Checkpoint, Checkpoint, Pair]) -> Record:
    return compare(*item)


def _with_vectors(plan: DiffPlan) -> tuple[Compared, ...]:
    """The coverage, completed by what became of biases and norms."""
    others = {name: other for other, name in plan.pairing.vectors}
    return tuple(
        compare_vectors(plan.base, plan.tuned, (others[entry.tensor], entry.tensor), entry)
        if entry.tensor in others and entry.outcome == "not a matrix" else entry
        for entry in plan.pairing.coverage
    )  # fmt: skip


def _dequantised(pairs: tuple[Pair, ...]) -> list[str]:
    """What dequantised formats mean for the change, in sentences."""
    said = []
    for side, formats in (
        ("base", {p.base.dtype for p in pairs}),
        ("tuned checkpoint", {p.tuned.dtype for p in pairs}),
    ):
        found = sorted(name for name in formats if is_quantised(name))
        if found:
            said.append(f"the {side} is dequantised from {', '.join(found)}: ΔW contains the quantisation error, unless the "
                        "tuned weights were trained from the dequantised ones")  # fmt: skip
    return said


def _sides(pair: Pair) -> tuple[int, int]:
    rows, cols = pair.tuned.rows, pair.tuned.cols
    return min(rows, cols), max(rows, cols)


def _format(checkpoint: Checkpoint) -> str:
    return type(checkpoint).__name__.removesuffix("Checkpoint")
