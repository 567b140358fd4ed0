"""Where work runs: any ``concurrent.futures.Executor``; by default threads, each with one BLAS thread."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

from eigenscope.errors import InputError

T = TypeVar("T")
R = TypeVar("R")


def available_cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def threads(workers: int) -> Iterator[Executor]:
    """A pool of ``workers`` threads, each of them with a single BLAS thread; the limits end with the context.

    BLAS threads inside concurrent workers fight for the processors and can be forty times slower than one each.

    Raises:
        InputError: fewer than one worker.
    """
    if workers < 1:
        raise InputError(f"{workers} workers", expected="at least 1")
    with (
        threadpool_limits(1, user_api="blas"),
        ThreadPoolExecutor(workers, "eigenscope", initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        yield pool


def stream(executor: Executor, function: Callable[[T], R], items: Iterable[T], in_flight: int) -> Iterator[R]:
    """Results in the order in which they finish, with at most ``in_flight`` items given out at a time.

    Abandoning the iteration (an error or an interrupt) cancels what has not begun.
    """
    waiting: set[Future[R]] = set()
    remaining = iter(items)
    try:
        while True:
            while len(waiting) < in_flight:
                try:
                    item = next(remaining)
                except StopIteration:
                    break
                waiting.add(executor.submit(function, item))
            if not waiting:
                return
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    finally:
        for future in waiting:
            future.cancel()
