"""Densities, sums and traces against dense eigenvalues, and the simulations behind their errors.

python oracles/quadrature.py            the Hessian of a trained MLP: plain and deflated quadrature; exit 1 on a miss
python oracles/quadrature.py bands      how often bands and counts hold the truth
python oracles/quadrature.py sums       the same of log-determinant, nuclear norm and effective rank
python oracles/quadrature.py traces     true over stated error of every trace and diagonal estimator
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any, final

import torch
from scipy.stats import wasserstein_distance
from torch import Tensor

from eigenscope.measures.rank import effective_rank as dense_effective_rank
from eigenscope.methods import quadrature, trace
from eigenscope.operators.arrays import Dense
from eigenscope.operators.base import LinearOperator
from eigenscope.results import Density, Estimate


def seeded(seed: int) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    """Standard normal entries, float64."""
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def symmetric(values: Tensor, seed: int, dtype: torch.dtype = torch.float64) -> Dense:
    """A symmetric (Hermitian) matrix of the given eigenvalues and random eigenvectors."""
    size = len(values)
    basis = torch.linalg.qr(torch.randn(size, size, generator=seeded(seed), dtype=dtype))[0]
    matrix = (basis * values) @ basis.mH
    return Dense((matrix + matrix.mH) / 2, symmetric=True)


def spectra(size: int) -> dict[str, Tensor]:
    """Eigenvalues of several kinds, ascending."""
    steps = torch.arange(size, dtype=torch.float64)
    goe = normal(size, size, seed=3)
    found = {
        "flat": 1.0 + 0.1 * normal(size, seed=3),
        "uniform": torch.linspace(-1.0, 1.0, size, dtype=torch.float64),
        "semicircle": torch.linalg.eigvalsh((goe + goe.T) / 2),
        "Marchenko-Pastur": torch.linalg.svdvals(normal(size, 2 * size, seed=5)) ** 2,
        "atoms": (steps // (size // 3)).clamp(max=2.0),
        "half zero": torch.where(steps < size // 2, 0.0, steps / size),
        "like a Hessian": torch.where(steps < 10, 20.0 + 30.0 * steps, 0.05 * normal(size, seed=4)),
        "polynomial": 1.0 / (1.0 + steps),
        "geometric .97": 0.97**steps,
        "geometric .9": 0.9**steps,
    }
    return {name: values.sort().values for name, values in found.items()}


@final
class Hessian(LinearOperator):
    """Hessian of a scalar function of one flat vector at a point, by double backward."""

    def __init__(self, loss: Callable[[Tensor], Tensor], point: Tensor) -> None:
        super().__init__((len(point), len(point)), point.dtype, point.device, symmetric=True)
        self.point = point.clone().requires_grad_()
        (self.gradient,) = torch.autograd.grad(loss(self.point), self.point, create_graph=True)

    def _matmat(self, X: Tensor) -> Tensor:
        columns = [torch.autograd.grad(self.gradient, self.point, column, retain_graph=True)[0] for column in X.T]
        return torch.stack(columns, dim=1) if columns else torch.zeros_like(X)

    def _adjoint(self) -> LinearOperator:
        return self


def mlp_hessian(widths: tuple[int, ...] = (64, 24, 15, 10), rounds: int = 200) -> Hessian:
    """Hessian of the mean cross-entropy of a tanh MLP on scikit-learn's digits, after some steps of Adam."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SystemExit("scikit-learn is not installed") from error
    pixels, labels = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(pixels / 16.0), torch.tensor(labels)
    shapes = [(out, into + 1) for into, out in pairwise(widths)]
    sizes = [out * into for out, into in shapes]

    def loss(flat: Tensor) -> Tensor:
        hidden = inputs
        for number, (part, shape) in enumerate(zip(flat.split(sizes), shapes, strict=True)):
            layer = part.reshape(shape)
            hidden = (torch.tanh(hidden) if number else hidden) @ layer[:, :-1].T + layer[:, -1]
        return torch.nn.functional.cross_entropy(hidden, targets)

    point = torch.cat([
        normal(size, seed=number) / math.sqrt(shape[1])
        for number, (size, shape) in enumerate(zip(sizes, shapes, strict=True))
    ]).requires_grad_()  # fmt: skip
    optimizer = torch.optim.Adam([point], lr=1e-2)
    for _ in range(rounds):
        optimizer.zero_grad()
        loss(point).backward()
        optimizer.step()
    return Hessian(loss, point.detach())


def distance(density: Density, truth: Tensor) -> float:
    """Wasserstein-1 distance to the true eigenvalues."""
    weights = density.weights.mean(dim=0).clamp(min=0.0)
    return float(wasserstein_distance(density.nodes.numpy(), truth.numpy(), weights.numpy()))


def hessian() -> int:
    """Plain and deflated quadrature of an MLP's Hessian; the number of misses."""
    operator = mlp_hessian()
    truth = torch.linalg.eigvalsh(operator.to_dense())
    negative = float((truth < 0.0).double().mean())
    print(f"{len(truth)} parameters, λ from {truth[0]:.3g} to {truth[-1]:.3g}, "
          f"trace {truth.sum():.4g}, negative {negative:.3f}")  # fmt: skip
    print("quadrature                          products  Wasserstein-1  trace error  negative share: mean, low, high")
    means: dict[str, tuple[float, float]] = {}
    cases: dict[str, dict[str, Any]] = {
        "plain, 60 steps × 4 probes": {"steps": 60, "probes": 4, "deflate": 0},
        "plain, 100 steps × 10 probes": {"steps": 100, "probes": 10, "deflate": 0},
        "deflated, 35 steps × 4 probes": {"steps": 35, "probes": 4},
        "deflated, 20 steps × 8 probes": {"steps": 20, "probes": 8},
        "deflated, 60 steps × 8 probes": {"steps": 60, "probes": 8},
    }
    for name, options in cases.items():
        found = [quadrature.density(operator, generator=seeded(seed), **options) for seed in range(5)]
        far = sum(distance(one, truth) for one in found) / len(found)
        traces = [float((one.weights @ one.nodes).mean()) * len(truth) for one in found]
        error = math.sqrt(sum((value / float(truth.sum()) - 1.0) ** 2 for value in traces) / len(found))
        share = found[0].below(0.0)
        means[name] = (found[0].products, far)
        print(f"{name:35} {found[0].products:8} {far:14.2e} {error:12.2%}  "
              f"{share.value:.3f} {share.low:.3f} {share.high:.3f}  ({found[0].deflated} deflated)")  # fmt: skip
    plain, deflated = means["plain, 100 steps × 10 probes"], means["deflated, 35 steps × 4 probes"]
    missed = int(not (deflated[0] <= plain[0] / 4 and deflated[1] <= 1.1 * plain[1]))
    for tol in (0.05, 0.02, 0.01):
        for method in ("xtrace", "hutchinson"):
            got = trace.estimate(operator, tol=tol, method=method, generator=seeded(0))
            off = got.value / float(truth.sum()) - 1.0
            print(f"trace to {tol}: {method:10} {got.products:5} products, error {off:+.2%}, "
                  f"stated {got.stderr / abs(got.value):.2%}")  # fmt: skip
            missed += abs(got.value - float(truth.sum())) > 4.0 * got.stderr + 1e-9 * abs(got.value)
    return missed


def bands() -> int:
    """How often bands and counts hold the truth, 50 seeds and 10 points each; the number of spectra where they miss it.

    The band of the share itself has to hold at least 90 % of the time, that of the blurred share between 90 and 98 %.
    """
    missed = 0
    for name, values in spectra(600).items():
        operator = symmetric(values, 7)
        points = torch.stack([torch.quantile(values, share) + 1e-3 for share in torch.arange(0.05, 1.0, 0.1).double()])
        for steps in (8, 20, 60):
            held, blurred, counted, scores = 0, 0, 0, []
            for seed in range(50):
                found = quadrature.density(operator, steps=steps, generator=seeded(seed))
                for x in points.tolist():
                    truth, share = float((values < x).double().mean()), found.below(x)
                    held += share.low - 1e-9 <= truth <= share.high + 1e-9
                truths = replace(found, nodes=values, weights=torch.full((1, 600), 1.0 / 600.0, dtype=torch.float64))
                width = found._width(None, "bands")
                _, low, high = found.cumulative(points, width)
                truth_blurred = truths.cumulative(points, width)[0]
                blurred += int(((low - 1e-9 <= truth_blurred) & (truth_blurred <= high + 1e-9)).sum())
                for a, b in zip(points[:-2].tolist(), points[2:].tolist(), strict=True):
                    got, known = found.count(a, b), int(((values > a) & (values <= b)).sum())
                    counted += abs(got.value - known) <= 2 * got.stderr + 1e-6
                    scores.append((got.value - known) / max(got.stderr, 1e-6))
            total = 50 * len(points)
            wrong = held < 0.9 * total or not 0.9 <= blurred / total <= 0.98
            missed += wrong
            print(f"{name:17} {steps:3} steps: band {held / total:.3f}, of the blurred share {blurred / total:.3f}, "
                  f"count {counted / len(scores):.3f} (rms score {float(torch.tensor(scores).square().mean().sqrt()):.2f})"
                  f"{' WRONG' if wrong else ''}", flush=True)  # fmt: skip
    return missed


def sums() -> int:
    """Coverage of ± 2 standard errors, and root mean square error over the standard error, of sums over a spectrum."""
    size = 400
    matrices: dict[str, LinearOperator] = {
        "square Gaussian": Dense(normal(size, size, seed=1)),
        "tall Gaussian": Dense(normal(2 * size, size, seed=1)),
        "positive definite, κ 1e4": symmetric(10.0 ** torch.linspace(0, -4, size, dtype=torch.float64), 2),
        "polynomial": symmetric(1.0 / (1.0 + torch.arange(size, dtype=torch.float64)), 3),
    }
    for name, operator in matrices.items():
        values = torch.linalg.svdvals(operator.to_dense())
        truths: dict[Callable[..., Estimate], float] = {
            quadrature.nuclear_norm: float(values.sum()),
            quadrature.effective_rank: dense_effective_rank(values.numpy()) or 0.0,
        }
        if operator.shape[0] == operator.shape[1]:
            truths[quadrature.log_determinant] = float(values.log().sum())
        for function, truth in truths.items():
            for steps in (8, 20, 60):
                got = [function(operator, steps=steps, generator=seeded(seed)) for seed in range(50)]
                describe(f"{name}, {function.__name__}, {steps} steps", got, truth)
    return 0


def traces() -> int:
    """True error over stated error of the estimators of trace and diagonal, 200 (60) seeds."""
    for name, values in spectra(300).items():
        for dtype in (torch.float64, torch.complex128):
            operator = symmetric(values, 3, dtype)
            for function in (trace.hutchinson, trace.hutchpp, trace.xtrace):
                for products in (24, 60):
                    got = [function(operator, products, generator=seeded(seed)) for seed in range(200)]
                    kind = "complex " if dtype.is_complex else ""
                    describe(f"{kind}{name}, {function.__name__}, {products} products", got, float(values.sum()))
            known = operator.matrix.diagonal().real
            for method, samples in (("xdiag", 30), ("plain", 60)):
                many = [
                    trace.diagonal(operator, samples=samples, method=method, generator=seeded(s)) for s in range(60)
                ]
                errors = torch.stack([one.values - known for one in many])
                stated = torch.stack([one.stderr for one in many])
                print(f"  diagonal, {method}: relative error {float(errors.norm() / known.norm()) / 60**0.5:.1e}, "
                      f"true over stated {float(errors.norm() / stated.norm()):.2f}, ±2 holds "
                      f"{float((errors.abs() <= 2 * stated).double().mean()):.3f}", flush=True)  # fmt: skip
    return 0


def describe(name: str, estimates: list[Estimate], truth: float) -> None:
    """One line: relative error, true over stated, coverage, bias in its standard errors."""
    errors = torch.tensor([one.value - truth for one in estimates], dtype=torch.float64)
    stated = torch.tensor([one.stderr for one in estimates], dtype=torch.float64)
    held = (errors.abs() <= 2.0 * stated + 1e-12 * abs(truth)).double().mean()
    print(f"{name}: relative error {float(errors.square().mean().sqrt()) / abs(truth):.1e}, true over stated "
          f"{float((errors.square().mean() / stated.square().mean()).sqrt()):.2f}, ±2 holds {float(held):.3f}, "
          f"bias {float(errors.mean() / errors.std()) * len(errors) ** 0.5:+.1f}, {estimates[0].products} products",
          flush=True)  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", RuntimeWarning)
    parts = {"hessian": hessian, "bands": bands, "sums": sums, "traces": traces}
    chosen = sys.argv[1] if len(sys.argv) > 1 else "hessian"
    if chosen not in parts:
        raise SystemExit(__doc__)
    sys.exit(min(parts[chosen](), 1))
