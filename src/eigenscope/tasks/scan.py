"""``scan``: every weight matrix of a checkpoint → its singular values and readings."""

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
from eigenscope.measures import outliers
from eigenscope.models.checkpoint import Checkpoint
from eigenscope.models.matrices import Matrix, list_matrices
from eigenscope.models.sources import open_checkpoint
from eigenscope.results import Coverage, Record, Run
from eigenscope.tasks.readings import ScanOptions, measure
from eigenscope.tasks.rows import Work, is_wanted, make_rows, versions
from eigenscope.tasks.tables import TableResult, frame

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ScanPlan:
    """What a scan will read and what it will cost; made without reading a tensor.

    Attributes:
        checkpoint: the open source.
        matrices: the rows of the table, in the order of the file.
        coverage: the fate of every tensor.
        options: what is measured and how.
        workers: how many matrices are in memory at a time.
    """

    checkpoint: Checkpoint
    matrices: tuple[Matrix, ...]
    coverage: tuple[Coverage, ...]
    options: ScanOptions
    workers: int

    @property
    def operations(self) -> float:
        """Floating-point operations: s²·l for the Gram matrix (s short side, l long), 4/3·s³ for its eigenvalues."""
        sides = [(min(m.rows, m.cols), max(m.rows, m.cols)) for m in self.matrices]
        return float(sum(s * s * long + 4 * s**3 / 3 for s, long in sides))

    @property
    def memory(self) -> int:
        """Bytes that one worker needs for the largest matrix: the matrix, its float64 Gram matrix, one block."""
        needs = [
            4 * m.rows * m.cols + 8 * min(m.rows, m.cols) ** 2 + 8 * 1024 * min(m.rows, m.cols) for m in self.matrices
        ]
        return max(needs, default=0)

    def lines(self) -> dict[str, str]:
        """The plan in words, for ``--plan``."""
        covered = sum(m.rows * m.cols for m in self.matrices)
        read = sum(m.rows * m.cols * m.bytes_per_entry for m in self.matrices)
        left_out = sum(entry.outcome != "read" for entry in self.coverage)
        return {
            "source": self.checkpoint.source,
            "format": type(self.checkpoint).__name__.removesuffix("Checkpoint"),
            "tensors": f"{len(self.coverage)}, of which {left_out} are no matrices or not readable",
            "matrices": f"{len(self.matrices)} with {covered:,} entries",
            "to read": f"{read / 1e6:,.1f} MB",
            "arithmetic": f"{self.operations / 1e9:,.1f} Gflop in {self.options.dtype}",
            "memory": f"{self.memory / 1e6:,.0f} MB a worker for the largest matrix, {self.workers} workers",
            **{f"note {i + 1}": note for i, note in enumerate(self.checkpoint.notes)},
        }


class Scan(TableResult):
    """The result of :func:`scan`."""

    @property
    def weightwatcher(self) -> pd.DataFrame:
        """The same matrices in the columns of WeightWatcher's table; ``docs/weightwatcher.md`` lists the differences."""
        from eigenscope.tasks import weightwatcher

        return frame(weightwatcher.as_run(self.run), weightwatcher.COLUMNS)


def scan(
    source: Any,
    *,
    output: str | Path | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    device: str = "cpu",
    dtype: str = "float64",
    target_condition: float = 1e4,
    eigenvalues: bool = False,
    conv_grid: int = 16,
    include: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
    seed: int = 0,
    tail_tests: int = 0,
    tail_stability: int = 0,
    fixed_aspect: float = 0.0,
    progress: Listener = silent,
) -> Scan:
    """Singular values and readings of every weight matrix of a checkpoint.

    Args:
        source: a path, a hub id, ``"demo"``, an ``nn.Module``, or a mapping of names to tensors. Never changed.
        output: run file (SQLite); an unfinished one of the same scan is resumed, a finished one is read.
        workers: matrices decomposed at a time; default: the processors available.
        executor: any ``concurrent.futures.Executor`` to run on instead of threads made here.
        device: torch device of the arithmetic.
        dtype: "float64", or "float32" for a faster, coarser decomposition where float64 is slow.
        target_condition: κ that the ``ridge`` column aims at.
        eigenvalues: also the eigenvalues of square maps.
        conv_grid: image size for the operator norm of 2-D convolutions.
        include, exclude: shell patterns over matrix names.
        seed: of everything random: ``conv_norm``'s starts, and what the next three draw.
        tail_tests: synthetic spectra for ``alpha_p``, and the likelihood ratios; 0 for none. 2500 give two decimals.
        tail_stability: copies, each without another tenth of the longer side, for ``alpha_stability``; 0 for none.
        fixed_aspect: ratio of the sides of the submatrices of ``alpha_fixed_aspect``, Q the same as 1/Q; 0 for none.
        progress: called after each row.

    Returns:
        :class:`Scan`.

    Raises:
        SourceError: the checkpoint cannot be opened. A tensor that cannot be read is a row that says so.
        RunFileError: the run file cannot be used.
        InputError: an option out of range.
    """
    options = ScanOptions(
        device=device, dtype=dtype, target_condition=target_condition, eigenvalues=eigenvalues, conv_grid=conv_grid,
        include=tuple(include), exclude=tuple(exclude), seed=seed, tail_tests=tail_tests, tail_stability=tail_stability,
        fixed_aspect=fixed_aspect,
    )  # fmt: skip
    plan = make_plan(source, options, workers)
    with open_run_file(plan, output) as runfile:
        for _ in run_plan(plan, runfile, executor=executor, progress=progress):
            pass
        return Scan(judged(runfile.load()))


def judged(run: Run) -> Run:
    """The run with its findings; it must hold singular values and samples for those that compare matrices."""
    return replace(run, findings=outliers.find(run.records))


def make_plan(source: Any, options: ScanOptions, workers: int | None = None) -> ScanPlan:
    """Open the source and list its matrices."""
    if workers is not None and workers < 1:
        raise InputError(f"{workers} workers", expected="at least 1")
    checkpoint = open_checkpoint(source)
    matrices, coverage = list_matrices(checkpoint)
    chosen = tuple(m for m in matrices if is_wanted(m.name, options.include, options.exclude))
    if matrices and not chosen:
        raise InputError(
            f"none of the {len(matrices)} matrices is chosen by include={options.include}, exclude={options.exclude}",
            where=checkpoint.source, expected=f"patterns over names such as {matrices[0].name!r}",
        )  # fmt: skip
    return ScanPlan(checkpoint, chosen, coverage, options, workers or available_cpus())


def open_run_file(plan: ScanPlan, output: str | Path | None) -> RunFile:
    """The run file of a plan; the content of the checkpoint is hashed only where the file outlives the process."""
    if output is None:
        return RunFile(None, {"verb": "scan"})
    identity = {
        "verb": "scan", "eigenscope": eigenscope.__version__, "content": plan.checkpoint.fingerprint(), **asdict(plan.options)
    }  # fmt: skip
    return RunFile(output, identity)


def run_plan(
    plan: ScanPlan, runfile: RunFile, *, executor: Executor | None = None, progress: Listener = silent
) -> Iterator[Record]:
    """Measure what the run file does not hold yet, largest first; each row is written before it is yielded."""
    work = Work(
        source=plan.checkpoint.source,
        items={matrix.name: matrix for matrix in plan.matrices},
        cost=lambda m: min(m.rows, m.cols) ** 2 * max(m.rows, m.cols),
        part=partial(_part, plan.checkpoint),
        measure=partial(_measure_part, plan.options),
        coverage=plan.coverage,
        provenance={
            **versions(),
            "format": plan.lines()["format"],
            "workers": plan.workers,
            **asdict(plan.options),
            "notes": "; ".join(plan.checkpoint.notes),
        },
        workers=plan.workers,
    )
    yield from make_rows(work, runfile, executor=executor, progress=progress)


def _part(checkpoint: Checkpoint, matrix: Matrix) -> tuple[Checkpoint, Matrix]:
    """A matrix with no more of the checkpoint than it needs: that is what a worker elsewhere is sent."""
    return checkpoint.part([name for name in (matrix.tensor, matrix.scale, matrix.gain) if name]), matrix


def _measure_part(options: ScanOptions, item: tuple[Checkpoint, Matrix]) -> Record:
    return measure(item[0], options, item[1])
