"""The narrow valley: what the condition number does to gradient descent, and what momentum, Adam and Newton make of it.

On ½ Σ λᵢxᵢ² with λ from 1 to κ, gradient descent at its best step loses a factor (κ − 1)/(κ + 1) of the distance per step,
the heavy ball at its best step and momentum (√κ − 1)/(√κ + 1) (Nesterov 2018, Theorem 2.1.15; Polyak 1964). Both are
predicted and measured here for several κ, and the paths of four methods through the valley of κ = 1000 are drawn.

    python examples/narrow_valley.py [--out narrow_valley.html]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from eigenscope.measures.rates import Method, best, measured
from eigenscope.optim import NewtonCG

CONDITIONS = (10.0, 1000.0, 1e5)
METHODS: tuple[Method, ...] = ("gradient descent", "momentum")
SHOWN = 1000.0
STEPS = 150
COLORS = {"gradient descent": "#5c6570", "heavy ball": "#b8500b", "Adam": "#22a884", "Newton-CG": "#0b5fb0"}


def agreement(condition: float, method: Method) -> tuple[float, float]:
    """Predicted and measured steps for one more digit, on twenty eigenvalues from 1 to κ."""
    values = np.geomspace(1.0, condition, 20)
    rates = best(1.0, condition)
    return rates.steps_per_digit(method), -np.log(10.0) / np.log(measured(values, rates, method))


def valley(x: Tensor) -> Tensor:
    """½(κx² + y²), κ = 1000."""
    return 0.5 * (SHOWN * x[0] ** 2 + x[1] ** 2)


def path(make: Callable[[list[Tensor]], torch.optim.Optimizer]) -> np.ndarray:
    """(STEPS + 1, 2) points, from the wall of the valley."""
    x = torch.tensor([0.05, 10.0], dtype=torch.float64, requires_grad=True)
    optimizer = make([x])

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = valley(x)
        value.backward()
        return value

    points = [x.detach().clone()]
    for _ in range(STEPS):
        optimizer.step(closure)
        points.append(x.detach().clone())
    return torch.stack(points).numpy()


def paths() -> dict[str, np.ndarray]:
    """The four methods, each at its best options."""
    rates = best(1.0, SHOWN)
    return {
        "gradient descent": path(lambda x: torch.optim.SGD(x, lr=rates.gradient_step)),
        "heavy ball": path(lambda x: torch.optim.SGD(x, lr=rates.momentum_step, momentum=rates.momentum)),
        "Adam": path(lambda x: torch.optim.Adam(x, lr=0.2)),
        "Newton-CG": path(lambda x: NewtonCG(x, radius=20.0)),
    }


def draw(found: dict[str, np.ndarray]) -> Any:
    """A panel with the path of each method, and the height over the steps below."""
    figure = make_subplots(
        rows=2, cols=len(found), specs=[[{}] * len(found), [{"colspan": len(found)}, *[None] * (len(found) - 1)]],
        vertical_spacing=0.14, horizontal_spacing=0.03, subplot_titles=list(found),
    )  # fmt: skip
    xs, ys = np.linspace(-0.7, 0.7, 120), np.linspace(-3.0, 11.0, 120)
    heights = 0.5 * (SHOWN * xs[None, :] ** 2 + ys[:, None] ** 2)
    for column, (name, points) in enumerate(found.items(), start=1):
        figure.add_contour(
            x=xs, y=ys, z=np.log10(heights + 0.1), ncontours=18, colorscale="Greys", reversescale=True, opacity=0.5,
            showscale=False, hoverinfo="skip", row=1, col=column,
        )  # fmt: skip
        line = {"color": COLORS[name], "width": 2}
        figure.add_scatter(
            x=points[:, 0], y=points[:, 1], mode="lines+markers", marker={"size": 4}, line=line, name=name,
            showlegend=False, row=1, col=column,
        )  # fmt: skip
        figure.update_xaxes(title_text="across the valley", range=[-0.7, 0.7], row=1, col=column)
        figure.update_yaxes(range=[-3.0, 11.0], showticklabels=column == 1, row=1, col=column)
        down = np.maximum(valley(torch.tensor(points.T)).numpy(), 1e-16)
        figure.add_scatter(x=list(range(len(down))), y=down, mode="lines", line=line, name=name, row=2, col=1)
    figure.update_yaxes(title_text="along it", row=1, col=1)
    figure.update_xaxes(title_text="step", row=2, col=1)
    figure.update_yaxes(title_text="height", type="log", exponentformat="power", dtick=4, row=2, col=1)
    figure.update_layout(template="plotly_white", showlegend=False, height=760, width=1150, font_family="sans-serif")
    return figure


def main(arguments: list[str] | None = None) -> dict[tuple[str, float], tuple[float, float]]:
    """Measure, print, draw; predicted and measured steps per digit, by method and κ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="narrow_valley.html", help="the picture")
    parser.add_argument("--conditions", type=float, nargs="*", default=CONDITIONS, help="the κ to measure")
    options = parser.parse_args(arguments)
    print(f"{'steps per digit':>18} {'κ':>8} {'predicted':>12} {'measured':>12}")
    rows = {}
    for method in METHODS:
        for condition in options.conditions:
            predicted, real = rows[method, condition] = agreement(condition, method)
            print(f"{method:>18} {condition:8.0f} {predicted:12.2f} {real:12.2f}  ({real / predicted - 1.0:+.1%})")
    found = paths()
    for name, points in found.items():
        print(f"{name}: height {float(valley(torch.tensor(points[-1]))):.2g} after {STEPS} steps")
    draw(found).write_html(options.out, include_plotlyjs=True)
    print(f"picture: {options.out}")
    return rows


if __name__ == "__main__":
    main()
