"""Rows of a table, made by workers and kept in a run file as they are finished: what every verb with a table does."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any, Generic, TypeVar

import numpy as np
import scipy
import torch

import eigenscope
from eigenscope.engine.pool import available_cpus, stream, threads
from eigenscope.engine.progress import Listener, Progress, silent
from eigenscope.engine.runfile import RunFile
from eigenscope.results import Coverage, Record

T = TypeVar("T")


@dataclass(frozen=True)
class Work(Generic[T]):
    """What makes the rows of a run.

    Attributes:
        source: what the user named.
        items: name of each row → what it is made from, in the order of the table.
        cost: a figure that grows with the time a row takes.
        part: what a worker is sent: no more of the source than the row needs.
        measure: makes the row; never raises for what is wrong with one item.
        coverage: the fate of every tensor, as known before the first row.
        provenance: how the run was made.
        workers: rows made at a time.
        closing: the coverage as known after the last row, or None where it does not change.
    """

    source: str
    items: Mapping[str, T]
    cost: Callable[[T], float]
    part: Callable[[T], Any]
    measure: Callable[[Any], Record]
    coverage: tuple[Coverage, ...]
    provenance: Mapping[str, Any]
    workers: int
    closing: Callable[[], tuple[Coverage, ...]] | None = None


def make_rows(
    work: Work[T], runfile: RunFile, *, executor: Executor | None = None, progress: Listener = silent
) -> Iterator[Record]:
    """Make what the run file does not hold yet, the most costly first; each row is written before it is yielded."""
    places = {name: place for place, name in enumerate(work.items)}
    finished = runfile.finished()
    todo = [name for name in work.items if name not in finished]
    if not todo and runfile.provenance():
        progress(Progress(len(places), len(places), ""))
        return
    runfile.describe(work.source, work.coverage)
    # The largest first, so that no worker is left alone with it at the end.
    todo.sort(key=lambda name: -work.cost(work.items[name]))
    begun, wall, processor = datetime.now(UTC), time.perf_counter(), time.process_time()
    with ExitStack() as stack:
        pool = executor or stack.enter_context(threads(work.workers))
        done = len(finished)
        progress(Progress(done, len(places), ""))
        parts = (work.part(work.items[name]) for name in todo)
        for record in stream(pool, work.measure, parts, in_flight=2 * work.workers):
            runfile.append(record, places[record.name])
            done += 1
            progress(Progress(done, len(places), record.name))
            yield record
    if work.closing is not None:
        runfile.describe(work.source, work.closing())
    runfile.finish({
        **work.provenance,
        "started": begun.isoformat(timespec="seconds"),
        "wall seconds": round(time.perf_counter() - wall, 3),
        "CPU seconds": round(time.process_time() - processor, 3),
        "rows measured": len(todo),
        "rows resumed": len(finished),
    })  # fmt: skip


def versions() -> dict[str, Any]:
    """The versions and the machine, for a run's provenance."""
    return {
        "eigenscope": eigenscope.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "machine": f"{platform.machine()}, {available_cpus()} processors",
    }


def is_wanted(name: str, include: tuple[str, ...], exclude: tuple[str, ...]) -> bool:
    """Whether a name matches one of the shell patterns to include, all where there are none, and none to exclude."""
    included = not include or any(fnmatchcase(name, pattern) for pattern in include)
    return included and not any(fnmatchcase(name, pattern) for pattern in exclude)
