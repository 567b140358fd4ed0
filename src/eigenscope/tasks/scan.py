"""``scan``: every weight matrix of a checkpoint → its singular values and readings."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy
import torch

import eigenscope
from eigenscope.columns import COLUMNS, Column
from eigenscope.engine.export import arrow_table
from eigenscope.engine.pool import available_cpus, stream, threads
from eigenscope.engine.progress import Listener, Progress, silent
from eigenscope.engine.runfile import RunFile
from eigenscope.errors import InputError
from eigenscope.measures import outliers
from eigenscope.models.checkpoint import Checkpoint
from eigenscope.models.matrices import Matrix, list_matrices
from eigenscope.models.sources import open_checkpoint
from eigenscope.results import Coverage, Record, Run
from eigenscope.tasks.readings import ScanOptions, measure

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


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


class Scan:
    """The result of :func:`scan`.

    Attributes:
        run: records, coverage and provenance as plain data.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    @property
    def table(self) -> pd.DataFrame:
        """One row per matrix, columns as in ``eigenscope.columns.COLUMNS``."""
        return _frame(self.run)

    @property
    def weightwatcher(self) -> pd.DataFrame:
        """The same matrices in the columns of WeightWatcher's table; ``docs/weightwatcher.md`` lists the differences."""
        from eigenscope.tasks import weightwatcher

        return _frame(weightwatcher.as_run(self.run), weightwatcher.COLUMNS)

    @property
    def coverage(self) -> pd.DataFrame:
        """One row per tensor of the checkpoint: read, not a matrix, or not readable, and why."""
        import pandas as pd

        return pd.DataFrame([asdict(entry) for entry in self.run.coverage], columns=[f.name for f in fields(Coverage)])

    @property
    def outliers(self) -> pd.DataFrame:
        """What stands out, most severe first: the matrices, a sentence, a severity, the reading that shows it."""
        import pandas as pd

        from eigenscope.results import Finding

        return pd.DataFrame([vars(found) for found in self.run.findings], columns=[f.name for f in fields(Finding)])

    def figure(self, reading: str | None = None, matrix: str | None = None) -> go.Figure:
        """A Plotly figure: a reading over layer × role, or the spectrum of one matrix; by default κ.

        Raises:
            InputError: no such reading or matrix; near names are offered.
        """
        from eigenscope.report import figures

        if matrix is not None:
            if reading is not None:
                raise InputError("both a reading and a matrix", expected="one of them")
            return figures.spectrum(self.run, matrix)
        return figures.heat_map(self.run, reading or "condition")

    def report(self, path: str | Path) -> Path:
        """Write the self-contained HTML page and return its path."""
        from eigenscope.report.html import write_page

        write_page(self.run, path)
        return Path(path)

    def __repr__(self) -> str:
        return f"Scan({self.run.source!r}, {len(self.run.records)} matrices)"


def _frame(run: Run, columns: Sequence[Column] = COLUMNS) -> pd.DataFrame:
    import pandas as pd
    import pyarrow as pa

    types = {pa.int64(): pd.Int64Dtype()}
    frame: pd.DataFrame = arrow_table(run, columns=columns).to_pandas(types_mapper=types.get)
    return frame


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


def load_run(path: str | Path) -> Run:
    """The run of a run file, finished or not, with its findings.

    Raises:
        RunFileError: not a run file, or damaged.
    """
    with RunFile(path) as file:
        return judged(file.load())


def make_plan(source: Any, options: ScanOptions, workers: int | None = None) -> ScanPlan:
    """Open the source and list its matrices."""
    if workers is not None and workers < 1:
        raise InputError(f"{workers} workers", expected="at least 1")
    checkpoint = open_checkpoint(source)
    matrices, coverage = list_matrices(checkpoint)
    chosen = tuple(m for m in matrices if _wanted(m.name, options))
    if matrices and not chosen:
        raise InputError(
            f"none of the {len(matrices)} matrices is chosen by include={options.include}, exclude={options.exclude}",
            where=checkpoint.source, expected=f"patterns over names such as {matrices[0].name!r}",
        )  # fmt: skip
    return ScanPlan(checkpoint, chosen, coverage, options, workers or available_cpus())


def _wanted(name: str, options: ScanOptions) -> bool:
    included = not options.include or any(fnmatchcase(name, pattern) for pattern in options.include)
    return included and not any(fnmatchcase(name, pattern) for pattern in options.exclude)


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
    places = {matrix.name: place for place, matrix in enumerate(plan.matrices)}
    finished = runfile.finished()
    todo = [matrix for matrix in plan.matrices if matrix.name not in finished]
    if not todo and runfile.provenance():
        progress(Progress(len(places), len(places), ""))
        return
    runfile.describe(plan.checkpoint.source, plan.coverage)
    # The largest first, so that no worker is left alone with it at the end.
    todo.sort(key=lambda m: -(min(m.rows, m.cols) ** 2) * max(m.rows, m.cols))
    begun, wall, processor = datetime.now(UTC), time.perf_counter(), time.process_time()
    with ExitStack() as stack:
        pool = executor or stack.enter_context(threads(plan.workers))
        done = len(finished)
        progress(Progress(done, len(places), ""))
        work = partial(_measure_part, plan.options)
        for record in stream(pool, work, _parts(plan.checkpoint, todo), in_flight=2 * plan.workers):
            runfile.append(record, places[record.name])
            done += 1
            progress(Progress(done, len(places), record.name))
            yield record
    runfile.finish(
        _provenance(plan)
        | {
            "started": begun.isoformat(timespec="seconds"),
            "wall seconds": round(time.perf_counter() - wall, 3),
            "CPU seconds": round(time.process_time() - processor, 3),
            "rows measured": len(todo),
            "rows resumed": len(finished),
        }
    )


def _parts(checkpoint: Checkpoint, matrices: list[Matrix]) -> Iterator[tuple[Checkpoint, Matrix]]:
    """Each matrix with no more of the checkpoint than it needs: that is what a worker elsewhere is sent."""
    for matrix in matrices:
        yield checkpoint.part([name for name in (matrix.tensor, matrix.scale, matrix.gain) if name]), matrix


def _measure_part(options: ScanOptions, item: tuple[Checkpoint, Matrix]) -> Record:
    return measure(item[0], options, item[1])


def _provenance(plan: ScanPlan) -> dict[str, Any]:
    return {
        "eigenscope": eigenscope.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "machine": f"{platform.machine()}, {available_cpus()} processors",
        "format": plan.lines()["format"],
        "workers": plan.workers,
        **asdict(plan.options),
        "notes": "; ".join(plan.checkpoint.notes),
    }
