"""The edge of stability: full-batch training sharpens the loss until the learning rate can bear no more, and stays there.

Gradient descent holds λ_max of the Hessian near 2/η (Cohen et al., ICLR 2021); Adam holds λ_max of its preconditioned
Hessian near (2 + 2β₁)/((1 − β₁)η), 38/η with β₁ = 0.9 (Cohen et al., 2022). Both are watched here by
``eigenscope.monitor`` on scikit-learn's digits, a 64-64-64-10 tanh network and the squared error.

    python examples/edge_of_stability.py [--out edge_of_stability.html]

takes about half a minute, prints the figures and draws the picture.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from plotly.subplots import make_subplots
from sklearn.datasets import load_digits
from torch import Tensor, nn

from eigenscope.monitor import EdgeOfStability, Monitor, Reading

STEPS, EVERY = 1500, 15
Batch = tuple[Tensor, Tensor]
OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]] = {
    "gradient descent, η = 0.4": lambda parameters: torch.optim.SGD(parameters, lr=0.4),
    "Adam, η = 0.003": lambda parameters: torch.optim.Adam(parameters, lr=0.003),
}


def digits() -> Batch:
    """Centred images (1797, 64), and the classes as unit vectors (1797, 10)."""
    images, classes = load_digits(return_X_y=True)
    X = torch.tensor(images / 16.0, dtype=torch.float32)
    return X - X.mean(dim=0), nn.functional.one_hot(torch.tensor(classes), 10).float()


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """½‖f(x) − y‖², the mean over the batch."""
    error: Tensor = model(batch[0]) - batch[1]
    return 0.5 * error.square().sum(dim=1).mean()


def train(make: Callable[..., torch.optim.Optimizer], data: Batch, steps: int) -> tuple[list[float], list[Reading]]:
    """The loss before every step, and the monitor's readings."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    optimizer = make(model.parameters())
    losses = []
    with Monitor(model, loss, [data], optimizer, every=EVERY, samples=0) as monitor:
        for _ in range(steps):
            optimizer.zero_grad()
            value = loss(model, data)
            value.backward()
            optimizer.step()
            losses.append(float(value.detach()))
            monitor.step()
    return losses, monitor.readings


def draw(runs: dict[str, tuple[list[float], list[Reading]]]) -> Any:
    """Loss above, eigenvalue over its bound below, a column for each optimiser."""
    figure = make_subplots(
        rows=2, cols=len(runs), shared_xaxes=True, vertical_spacing=0.06, horizontal_spacing=0.09,
        column_titles=list(runs),
    )  # fmt: skip
    for column, (losses, readings) in enumerate(runs.values(), start=1):
        steps = [reading.step for reading in readings]
        figure.add_scatter(x=list(range(1, len(losses) + 1)), y=losses, line_color="#5c6570", row=1, col=column)
        ratios = [reading.stability for reading in readings]
        figure.add_scatter(x=steps, y=ratios, line_color="#0b5fb0", row=2, col=column)
        figure.add_hline(y=1.0, line_dash="dash", line_color="#b8500b", row=2, col=column)
    figure.update_yaxes(title_text="loss", type="log", exponentformat="power", row=1, col=1)
    figure.update_yaxes(type="log", exponentformat="power", row=1)
    figure.update_yaxes(title_text="eigenvalue / what η bears", row=2, col=1)
    figure.update_yaxes(rangemode="tozero", row=2)
    figure.update_xaxes(title_text="step", row=2)
    figure.update_layout(template="plotly_white", showlegend=False, height=640, width=1100, font_family="sans-serif")
    return figure


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train, print, draw; the mean of the last third of each run, by name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS, help="of each training")
    parser.add_argument("--out", default="edge_of_stability.html", help="the picture")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", EdgeOfStability)  # it is what this example is about
    data = digits()
    runs = {name: train(make, data, options.steps) for name, make in OPTIMIZERS.items()}
    means = {}
    for name, (losses, readings) in runs.items():
        ratios = [reading.stability for reading in readings if reading.stability is not None]
        late = ratios[-max(1, len(ratios) // 3) :]
        means[name] = statistics.fmean(late)
        last = readings[-1]
        which = "λ_max" if last.preconditioned is None else "preconditioned λ_max"
        print(
            f"{name}: loss {losses[-1]:.4f}; {which} over the bound {last.edge:.4g}, last third of {options.steps} steps:"
            f" mean {means[name]:.3f}, from {min(late):.3f} to {max(late):.3f}"
        )
    draw(runs).write_html(options.out, include_plotlyjs=True)
    print(f"picture: {options.out}")
    return means


if __name__ == "__main__":
    main()
