"""Saddles: where Newton's method goes, and how Newton-CG and saddle-free Newton leave.

Paths of five optimisers from the same start, near a saddle of Himmelblau's function and near the monkey saddle. Newton's
method looks for a critical point of any kind and finds the saddle; the methods of ``eigenscope.optim`` follow negative
curvature down to a minimum; gradient descent and Adam leave, too, in their own time.

    python examples/saddle.py [--out saddle.html]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from eigenscope.optim import Newton, NewtonCG, SaddleFreeNewton

Function = Callable[[Tensor], Tensor]


def himmelblau(x: Tensor) -> Tensor:
    """(x² + y − 11)² + (x + y² − 7)²: four minima, four saddles, a maximum."""
    return (x[0] ** 2 + x[1] - 11.0) ** 2 + (x[0] + x[1] ** 2 - 7.0) ** 2


def monkey(x: Tensor) -> Tensor:
    """x³ − 3xy² + (x² + y²)²: a monkey saddle, with three minima of −27/256 around it."""
    return x[0] ** 3 - 3.0 * x[0] * x[1] ** 2 + x.square().sum() ** 2


@dataclass(frozen=True)
class Scene:
    """A function, a start near its saddle, steps for the methods of first order, and the part of the plane shown."""

    name: str
    function: Function
    start: tuple[float, float]
    rates: tuple[float, float]
    steps: int
    window: tuple[float, float, float, float]


SCENES = (
    Scene("Himmelblau's function", himmelblau, (0.3, 2.6), (0.003, 0.1), 400, (-0.6, 3.9, 1.1, 3.5)),
    Scene("monkey saddle", monkey, (0.35, 0.02), (0.05, 0.02), 400, (-0.25, 0.65, -0.15, 0.85)),
)
COLORS = {
    "SGD": "#5c6570", "Adam": "#b8500b", "Newton": "#b2182b", "saddle-free Newton": "#22a884", "Newton-CG": "#0b5fb0",
}  # fmt: skip


def optimizers(scene: Scene) -> dict[str, Callable[[Iterable[Tensor]], torch.optim.Optimizer]]:
    """The five, by name."""
    return {
        "Newton": Newton,
        "Newton-CG": lambda x: NewtonCG(x, radius=0.3),
        "saddle-free Newton": lambda x: SaddleFreeNewton(x, radius=0.3),
        "SGD": lambda x: torch.optim.SGD(x, lr=scene.rates[0]),
        "Adam": lambda x: torch.optim.Adam(x, lr=scene.rates[1]),
    }


def path(scene: Scene, make: Callable[..., torch.optim.Optimizer], steps: int) -> np.ndarray:
    """(steps + 1, 2) points, the start first."""
    x = torch.tensor(scene.start, dtype=torch.float64, requires_grad=True)
    optimizer = make([x])

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = scene.function(x)
        value.backward()
        return value

    points = [x.detach().clone()]
    for _ in range(steps):
        optimizer.step(closure)
        points.append(x.detach().clone())
    return torch.stack(points).numpy()


def kind_of(function: Function, point: np.ndarray) -> str:
    """What the gradient and the eigenvalues of the 2×2 Hessian say of a point."""
    where = torch.tensor(point, requires_grad=True)
    gradient = torch.autograd.grad(function(where), where)[0]
    values = torch.linalg.eigvalsh(torch.autograd.functional.hessian(function, where.detach()))
    if float(torch.linalg.vector_norm(gradient)) > 1e-3:
        return "on its way"
    if float(values.abs().max()) < 1e-3:
        return "degenerate saddle"
    return "minimum" if float(values[0]) > 0.0 else "maximum" if float(values[1]) < 0.0 else "saddle"


def draw(found: dict[str, dict[str, np.ndarray]]) -> Any:
    """A contour map for each scene, with the paths over it."""
    figure = make_subplots(cols=len(SCENES), horizontal_spacing=0.08, subplot_titles=[scene.name for scene in SCENES])
    for column, scene in enumerate(SCENES, start=1):
        left, right, low, high = scene.window
        xs, ys = np.linspace(left, right, 160), np.linspace(low, high, 160)
        grid = torch.tensor(np.stack(np.meshgrid(xs, ys)))
        heights = torch.func.vmap(torch.func.vmap(scene.function))(grid.permute(1, 2, 0)).numpy()
        # By the logarithm, so that the minima are seen beside the walls.
        shown = np.log10(heights - heights.min() + 1e-3 * np.ptp(heights))
        figure.add_contour(
            x=xs, y=ys, z=shown, ncontours=25, colorscale="Greys", reversescale=True, opacity=0.55, showscale=False,
            hoverinfo="skip", row=1, col=column,
        )  # fmt: skip
        for name, color in COLORS.items():
            points = found[scene.name][name]
            few = name not in ("SGD", "Adam")
            figure.add_scatter(
                x=points[:, 0], y=points[:, 1], mode="lines+markers" if few else "lines", name=name, legendgroup=name, row=1, col=column,
                line={"color": color, "width": 3 if few else 2}, marker={"size": 8}, showlegend=column == 1,
            )  # fmt: skip
            figure.add_scatter(
                x=points[-1:, 0], y=points[-1:, 1], mode="markers", legendgroup=name, showlegend=False, hoverinfo="skip",
                marker={"size": 13, "symbol": "circle-open", "color": color, "line": {"width": 3}}, row=1, col=column,
            )  # fmt: skip
        figure.update_xaxes(range=[left, right], row=1, col=column)
        figure.update_yaxes(range=[low, high], row=1, col=column)
    figure.update_layout(template="plotly_white", height=600, width=1150, font_family="sans-serif")
    return figure


def main(arguments: list[str] | None = None) -> dict[tuple[str, str], str]:
    """Run, print, draw; what each method ended at, by scene and method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="saddle.html", help="the picture")
    options = parser.parse_args(arguments)
    found: dict[str, dict[str, np.ndarray]] = {}
    ends: dict[tuple[str, str], str] = {}
    for scene in SCENES:
        print(f"{scene.name}, from {scene.start}")
        found[scene.name] = {}
        for name, make in optimizers(scene).items():
            steps = scene.steps if name in ("SGD", "Adam") else 30
            points = path(scene, make, steps)
            value = float(scene.function(torch.tensor(points[-1])))
            ends[scene.name, name] = kind_of(scene.function, points[-1])
            found[scene.name][name] = points
            x, y = points[-1]
            print(f"  {name:20} {ends[scene.name, name]:18} f = {value:10.4f} at ({x:7.4f}, {y:7.4f}), {steps} steps")
    draw(found).write_html(options.out, include_plotlyjs=True)
    print(f"picture: {options.out}")
    return ends


if __name__ == "__main__":
    main()
