"""When the monitor measures, whom it warns, and where its readings go."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from eigenscope.engine.runfile import RunFile
from eigenscope.errors import EigenscopeError, InputError
from eigenscope.monitor.edges import EdgeOfStability
from eigenscope.monitor.reading import Meter, Reading
from eigenscope.results import Record

FIRST = 60.0
"""Steps that a first measurement is taken to last, before one was timed."""
NEAR, CLEAR = 0.95, 0.9
"""Part of the edge of stability at which a warning is given, and below which the next crossing is another one."""


class Monitor:
    """Measures the curvature every so many steps of training and leaves the training as it is, bit for bit.

    Args:
        model: the one that is trained.
        loss: loss(model, batch) → the mean over a batch, a scalar tensor; None for ``model(**batch).loss``.
        batches: what the curvature is measured on, always the same: a list of batches as large as you can afford. The
            edge of stability is a statement about the loss on all training data.
        optimizer: the live optimiser, whose learning rate and state are read.
        every: measure after every so many steps; None for as often as ``overhead`` allows, the first time when the
            training so far pays for it, which is after some 1200 steps: give a short training a number.
        overhead: with ``every=None``, the time that measurements may take over that of the training; caches that
            they displace add a little.
        samples: random vectors of the trace's estimate, one product each; 0 for no trace.
        writer: a TensorBoard ``SummaryWriter``, or a folder for one.
        run: a run file: each reading is written at once, and an interrupted run goes on in the same file. It is read by
            ``eigenscope export``.
        seed: of the random vectors; torch's own generators are not drawn from.
        options: passed on to :func:`eigenscope.hessian`: ``params``, ``count``, ``dtype``, ``memory``.

    Attributes:
        readings: all so far.

    Raises:
        InputError: an option out of range, or no batches.
        RunFileError: ``run`` belongs to something else.
    """

    def __init__(
        self, model: nn.Module, loss: Any, batches: Iterable[Any], optimizer: Any, *, every: int | None = None,
        overhead: float = 0.05, samples: int = 4, writer: Any = None, run: str | Path | None = None, seed: int = 0,
        **options: Any,
    ) -> None:  # fmt: skip
        begun = time.perf_counter()
        if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            raise InputError(f"every = {every!r}", expected="a number of steps ≥ 1, or None")
        if not 0.0 < overhead <= 1.0:
            raise InputError(f"overhead = {overhead}", expected="a share in (0, 1]")
        if samples < 0:
            raise InputError(f"samples = {samples}", expected="0 or more")
        self.every, self.overhead = every, overhead
        self.readings: list[Reading] = []
        self._meter = Meter(model, loss, batches, optimizer, samples, seed, {"distributed": False, **options})
        if not self._meter.batches:
            raise InputError("no batches", where="Monitor", expected="a list of at least one")
        self._devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
        self._writer, self._own_writer = _writer(writer)
        size = sum(p.numel() for p in model.parameters())
        identity = {"verb": "monitor", "model": type(model).__name__, "parameters": size}
        self._file = None if run is None else RunFile(run, identity)
        if self._file is not None:
            self._file.describe(type(model).__name__, ())
        self._steps, self._over = 0, False
        self._begun, self._spent = begun, time.perf_counter() - begun

    def step(self, step: int | None = None) -> Reading | None:
        """Count a step of training, made just before, and measure if it is time.

        Args:
            step: its number, where the loop's own is to be shown; else they are counted from 1.

        Returns:
            The reading, or None where none was taken.

        Warns:
            EdgeOfStability: the curvature has reached 95 % of what the learning rate bears; once for each crossing.
            UserWarning: no reading could be taken, as where the loss is not finite.
        """
        self._steps += 1
        if not self._due():
            return None
        begun = time.perf_counter()
        try:
            return self.measure(self._steps if step is None else step)
        except EigenscopeError as error:  # a training that diverges is not to be ended by who watches it
            self._spent += time.perf_counter() - begun
            warnings.warn(f"step {self._steps}: no reading: {error}", stacklevel=2)
            return None

    def measure(self, step: int | None = None) -> Reading:
        """Measure now, whatever the interval.

        Raises:
            InputError: the loss cannot be served, as :func:`eigenscope.hessian` says.
            RunFileError: the run file cannot be written.
        """
        for device in self._devices:  # what the training has queued is the training's time
            torch.cuda.synchronize(device)
        begun = time.perf_counter()
        reading = self._meter.measure(self._steps if step is None else step)
        self.readings.append(reading)
        self._write(reading)
        self._warn(reading)
        self._spent += time.perf_counter() - begun
        return reading

    def close(self) -> None:
        """Flush and close what was opened here; a given writer stays open."""
        if self._writer is not None:
            self._writer.flush()
            if self._own_writer:
                self._writer.close()
        if self._file is not None:
            self._file.finish({"steps": self._steps, "readings": len(self.readings), "seconds": self._spent})
            self._file.close()
        self._writer = self._file = None

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _due(self) -> bool:
        if self.every is not None:
            return self._steps % self.every == 0
        training = time.perf_counter() - self._begun - self._spent
        # The first measurement verifies the products and starts cold: the later ones cost less.
        cost = self.readings[-1].seconds if self.readings else FIRST * training / self._steps
        return self._spent + cost <= self.overhead * training

    def _write(self, reading: Reading) -> None:
        figures = reading.figures()
        if self._writer is not None:
            for name, value in figures.items():
                if isinstance(value, int | float) and name not in ("step", "products"):
                    self._writer.add_scalar(f"eigenscope/{name}", value, reading.step)
        if self._file is not None:
            self._file.append(Record(f"step {reading.step}", {"name": f"step {reading.step}", **figures}), reading.step)

    def _warn(self, reading: Reading) -> None:
        ratio = reading.stability
        if ratio is None or math.isnan(ratio):
            return
        if ratio >= NEAR and not self._over:
            self._over = True
            which = "λ_max" if reading.preconditioned is None else "preconditioned λ_max"
            warnings.warn(
                f"step {reading.step}: {which} is {ratio:.2f} of the {reading.edge:.4g} that the learning rate"
                f" {reading.learning_rate:.3g} bears: the edge of stability",
                EdgeOfStability, stacklevel=4,
            )  # fmt: skip
        elif ratio < CLEAR:
            self._over = False


def _writer(writer: Any) -> tuple[Any, bool]:
    """A SummaryWriter, and whether it was made here."""
    if writer is None or hasattr(writer, "add_scalar"):
        return writer, False
    if not isinstance(writer, str | Path):
        raise InputError(f"writer is a {type(writer).__name__}", expected="a SummaryWriter or a folder")
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            "TensorBoard is not installed", where=f"writer={str(writer)!r}", remedy="pip install tensorboard"
        ) from error
    return SummaryWriter(str(writer)), True
