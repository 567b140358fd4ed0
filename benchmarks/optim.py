"""What it costs to train a small network to a given loss: Newton-CG and saddle-free Newton against SGD.

A 64-256-128-10 tanh network on scikit-learn's 1797 digits, cross-entropy, float32, one thread. Cost is counted in gradients
of the whole data set: an epoch of SGD is one, whatever its batches; a Hessian product counts as two, a loss as a third. SGD
is tuned over batch size, learning rate and momentum by 150 epochs each; the run with the least loss then goes on for
thousands, and for each loss the best of all runs is shown. Run by hand: ``python benchmarks/optim.py`` takes a quarter of
an hour.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from eigenscope.optim import NewtonCG, SaddleFreeNewton

TARGETS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
EPOCHS = 150
LONGER = {16: 3000, 64: 3000, 1797: 10000}
"""Epochs that the best run of a batch size goes on for."""
RATES = {16: (0.01, 0.03, 0.1, 0.3), 64: (0.01, 0.03, 0.1, 0.3), 1797: (0.1, 0.3, 1.0)}
"""Learning rates tried with a batch size; the largest diverges with momentum."""
MOMENTA = (0.0, 0.9)
BUDGET = 1500
Costs = list[float]


def data() -> tuple[Tensor, Tensor]:
    """Images (1797, 64) in 0…1, and classes."""
    images, classes = load_digits(return_X_y=True)
    return torch.tensor(images / 16.0, dtype=torch.float32), torch.tensor(classes)


def network() -> nn.Sequential:
    """The same starting weights every time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 128), nn.Tanh(), nn.Linear(128, 10))


def newton(kind: Callable[..., NewtonCG | SaddleFreeNewton], X: Tensor, y: Tensor) -> tuple[Costs, float]:
    """Cost at which each target was reached, and CPU seconds."""
    net = network()
    optimizer = kind(net.parameters())
    first = next(net.parameters())
    costs, begun = [math.inf] * len(TARGETS), time.process_time()
    cost = 0.0
    while cost < BUDGET and not math.isfinite(costs[-1]):
        before = cost
        loss = float(optimizer.step(lambda: nn.functional.cross_entropy(net(X), y)))
        state = optimizer.state[first]
        cost = state["steps"] + 2.0 * state["products"] + (state["losses"] - state["steps"]) / 3.0
        # The loss is that of the point before the step, which cost the step's first gradient to see.
        costs = [min(old, before + 1.0) if loss <= target else old for old, target in zip(costs, TARGETS, strict=True)]
    return costs, time.process_time() - begun


def sgd(X: Tensor, y: Tensor, batch: int, rate: float, momentum: float, epochs: int) -> tuple[Costs, float]:
    """Epochs at which each target was reached, and the loss at the end."""
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=momentum)
    source = torch.Generator().manual_seed(0)
    costs, loss = [math.inf] * len(TARGETS), math.inf
    for epoch in range(1, epochs + 1):
        for chosen in torch.randperm(len(X), generator=source).split(batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(X[chosen]), y[chosen]).backward()
            optimizer.step()
        with torch.no_grad():
            loss = float(nn.functional.cross_entropy(net(X), y))
        costs = [min(old, epoch) if loss <= target else old for old, target in zip(costs, TARGETS, strict=True)]
        if not math.isfinite(loss) or (epoch > 20 and loss > 2.0):
            break
    return costs, loss


def shown(name: str, costs: Costs, rest: str = "") -> None:
    """One line of the table."""
    cells = [f"{cost:8.0f}" if math.isfinite(cost) else f"{'–':>8}" for cost in costs]
    print(f"{name:34}", *cells, rest, flush=True)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    X, y = data()
    print(f"{'gradients until the loss is':34}", *(f"{target:8.0e}" for target in TARGETS))
    found: dict[str, Costs] = {}
    for kind in (NewtonCG, SaddleFreeNewton):
        found[kind.__name__], seconds = newton(kind, X, y)
        shown(kind.__name__, found[kind.__name__], f"{seconds:.0f} CPU s")
    runs: dict[tuple[int, float, float], tuple[Costs, float]] = {}
    for batch, rates in RATES.items():
        for rate, momentum in itertools.product(rates, MOMENTA):
            runs[batch, rate, momentum] = sgd(X, y, batch, rate, momentum, EPOCHS)
    for name, batches in (("SGD, full batch", (len(X),)), ("SGD, any batch", tuple(RATES))):
        chosen = {options: run for options, run in runs.items() if options[0] in batches and math.isfinite(run[1])}
        last = min(chosen, key=lambda options: chosen[options][1])
        most = LONGER[last[0]]
        longer, loss = sgd(X, y, *last, most)
        best = [min(costs) for costs in zip(longer, *(costs for costs, _ in chosen.values()), strict=True)]
        shown(f"{name}, best", best, f"batch {last[0]}, lr {last[1]}, momentum {last[2]}: {loss:.1e} at {most}")
        for kind in (NewtonCG, SaddleFreeNewton):
            # Not reached is at least the length of the longest run.
            ratios = [
                (f"{'> ' if math.isinf(b) else ''}{min(b, most) / own:.1f}×" if math.isfinite(own) else "–")
                for b, own in zip(best, found[kind.__name__], strict=True)
            ]
            print(f"{'  over ' + kind.__name__:34}", *(f"{ratio:>8}" for ratio in ratios), flush=True)


if __name__ == "__main__":
    main()
