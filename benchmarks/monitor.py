"""What the monitor adds to a training run at its default interval: the same training with and without it, interleaved.

Three trainings on scikit-learn's digits, one thread: small batches of a small network, where a measurement costs as much as
hundreds of steps; the whole data set at once; and a wider network under Adam, whose preconditioned eigenvalue is measured,
too. The monitor watches the whole data set and writes a run file. Usage: python benchmarks/monitor.py [--rounds 3]
"""

from __future__ import annotations

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from eigenscope.monitor import EdgeOfStability, Monitor


@dataclass(frozen=True)
class Training:
    """A network's width, a batch size, steps, and an optimiser."""

    name: str
    width: int
    batch: int
    steps: int
    make: Callable[..., torch.optim.Optimizer]


TRAININGS = (
    Training("SGD, batch 64, width 64", 64, 64, 12000, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)),
    Training("SGD, batch 1797, width 256", 256, 1797, 2500, lambda p: torch.optim.SGD(p, lr=0.3)),
    Training("Adam, batch 256, width 512", 512, 256, 3000, lambda p: torch.optim.Adam(p, lr=1e-3)),
)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy."""
    found: Tensor = nn.functional.cross_entropy(model(batch[0]), batch[1])
    return found


def train(training: Training, X: Tensor, y: Tensor, watched: bool) -> tuple[float, float, int, Tensor]:
    """Wall and CPU seconds, readings, and the weights at the end."""
    torch.manual_seed(0)
    width = training.width
    model = nn.Sequential(
        nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width // 2), nn.Tanh(), nn.Linear(width // 2, 10)
    )
    optimizer = training.make(model.parameters())
    source = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        begun, processor = time.perf_counter(), time.process_time()
        monitor = Monitor(model, loss, [(X, y)], optimizer, run=Path(folder) / "run") if watched else None
        for _ in range(training.steps):
            chosen = torch.randint(0, len(X), (training.batch,), generator=source)
            batch = (X, y) if training.batch == len(X) else (X[chosen], y[chosen])
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
            if monitor is not None:
                monitor.step()
        if monitor is not None:
            monitor.close()
        wall, cpu = time.perf_counter() - begun, time.process_time() - processor
    return (
        wall,
        cpu,
        len(monitor.readings) if monitor else 0,
        nn.utils.parameters_to_vector(model.parameters()).detach(),
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", EdgeOfStability)
    images, classes = load_digits(return_X_y=True)
    X, y = torch.tensor(images / 16.0, dtype=torch.float32), torch.tensor(classes)
    print(f"{'training':30} {'CPU s':>7} {'watched':>8} {'added':>7} {'wall':>7} {'readings':>9}  weights")
    train(Training("", 8, 8, 200, TRAININGS[0].make), X, y, watched=True)  # imports and first calls
    for training in TRAININGS:
        runs = [(train(training, X, y, watched=False), train(training, X, y, watched=True)) for _ in range(rounds)]
        plain, watched = (statistics.median(pair[which][1] for pair in runs) for which in (0, 1))
        wall = statistics.median(pair[1][0] / pair[0][0] - 1.0 for pair in runs)
        same = all(torch.equal(pair[0][3], pair[1][3]) for pair in runs)
        print(
            f"{training.name:30} {plain:7.2f} {watched:8.2f} {watched / plain - 1.0:+7.1%} {wall:+7.1%}"
            f" {runs[0][1][2]:9d}  {'identical' if same else 'DIFFERENT'}",
            flush=True,
        )


if __name__ == "__main__":
    main()
