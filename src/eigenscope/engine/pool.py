"""Where work runs: any ``concurrent.futures.Executor``; by default threads, each with one BLAS thread."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
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
    Left by an error or an interrupt, the context does not wait for what the workers are in the middle of.

    Raises:
        InputError: fewer than one worker.
    """
    if workers < 1:
        raise InputError(f"{workers} workers", expected="at least 1")
    # PyTorch hands the number that a thread sets for itself on to threads that begin later.
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, "eigenscope", initializer=torch.set_num_threads, initargs=(1,))
    finished = False
    try:
        with threadpool_limits(1, user_api="blas"):
            yield pool
            finished = True
    finally:
        pool.shutdown(wait=finished, cancel_futures=True)
        torch.set_num_threads(before)


def stream(executor: Executor, function: Callable[[T], R], items: Iterable[T], in_flight: int) -> Iterator[R]:
    """Results in the order in which they finish, with at most ``in_flight`` items given out at a time.

    Abandoning the iteration (an error or an interrupt) cancels what has not begun.

    Raises:
        InputError: ``in_flight`` below 1.
        Exception: what ``function`` raised, after the results that were finished by then.
    """
    if in_flight < 1:
        raise InputError(f"{in_flight} items in flight", expected="at least 1")
    waiting: set[Future[R]] = set()
    remaining = iter(items)
    try:
        while True:
            for item in islice(remaining, in_flight - len(waiting)):
                waiting.add(executor.submit(function, item))
            if not waiting:
                return
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            # Those that failed come last, so that no finished result is lost with them.
            for future in sorted(done, key=lambda f: f.exception() is not None):
                yield future.result()
    finally:
        for future in waiting:
            future.cancel()
