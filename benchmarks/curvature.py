"""Top eigenvalues and density of a Hessian: CPU time and products to equal accuracy, against the libraries at hand.

Usage: python benchmarks/curvature.py [--rounds 5] [--batches 1 10] [--skip-density]

The model is 64-256-128-10 with tanh (50,826 parameters) on scikit-learn's digits, after 100 steps of Adam; the data in one
batch, then in ten of unequal size. A contender climbs its ladder of effort until its five values are within 1e-3 of the
truth (plain double backward and ARPACK in double precision); that rung is then timed in turns with the others, from the
model to the values. "unchecked" are ours and curvlinops without what they verify first; hessian-eigenthings runs a given
number of steps: the least after which it calls all pairs converged, and the least that is right, told from the truth.
The density is that of 64-28-10 (2,110 parameters): products, and the Wasserstein-1 distance to all eigenvalues, median of
five seeds, of ours, of plain quadrature (what PyHessian does: its own calls a function that torch no longer has) and of
hessian-eigenthings. PyHessian,
hessian-eigenthings and curvlinops-for-pytorch take part where they are installed.
"""

from __future__ import annotations

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import argparse
import contextlib
import copy
import io
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from itertools import pairwise

import numpy as np
import scipy.sparse.linalg as spla
import torch
from scipy.stats import wasserstein_distance
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import eigenscope as es

Batches = list[tuple[Tensor, Tensor]]
Answer = tuple[np.ndarray, int]
"""Values in any order, and products made."""
Solver = Callable[[nn.Module, Batches, float, int], Answer]
GOAL = 1e-3
SEEDS = range(3)


def digits(sizes: Sequence[int], parts: int) -> tuple[nn.Module, Batches]:
    """A trained net and its data in ``parts`` batches."""
    data = load_digits()
    x, y = torch.tensor(data.data / 16.0, dtype=torch.float32), torch.tensor(data.target)
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for into, out in pairwise(sizes):
        layers += [nn.Linear(into, out), nn.Tanh()]
    model = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(100):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    shares = np.random.default_rng(0).dirichlet(3.0 * np.ones(parts))
    cuts = torch.tensor((np.cumsum(shares)[:-1] * len(y)).astype(np.int64))
    return model, list(zip(torch.tensor_split(x, cuts), torch.tensor_split(y, cuts)))


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy."""
    return cross_entropy(model(batch[0]), batch[1])


def double(model: nn.Module, batches: Batches) -> spla.LinearOperator:
    """The Hessian in double precision by plain double backward, for the truth."""
    model = copy.deepcopy(model).double()
    parameters = list(model.parameters())
    value = cross_entropy(model(torch.cat([x for x, _ in batches]).double()), torch.cat([y for _, y in batches]))
    first = torch.cat([part.reshape(-1) for part in torch.autograd.grad(value, parameters, create_graph=True)])

    def product(v: np.ndarray) -> np.ndarray:
        found = torch.autograd.grad(first, parameters, torch.from_numpy(v.reshape(-1)), retain_graph=True)
        return torch.cat([part.reshape(-1) for part in found]).numpy()

    return spla.LinearOperator((len(first), len(first)), matvec=product, dtype=np.float64)


def _ours(check: bool) -> Solver:
    def solve(model: nn.Module, batches: Batches, tol: float, seed: int) -> Answer:
        H = es.hessian(model, loss, batches, check=check)
        H.verified = True
        found = es.eigh(H, 5, tol=tol, generator=torch.Generator().manual_seed(seed))
        return found.values.numpy(), found.products + (H.check.products if H.check else 0)

    return solve


def _pyhessian(model: nn.Module, batches: Batches, tol: float, seed: int) -> Answer:
    from pyhessian import hessian as package

    torch.manual_seed(seed)
    data = {"data": batches[0]} if len(batches) == 1 else {"dataloader": batches}
    with _counted_pyhessian() as count, contextlib.redirect_stdout(io.StringIO()):
        found = package(model, nn.CrossEntropyLoss(), cuda=False, **data).eigenvalues(maxIter=1000, tol=tol, top_n=5)[0]
    model.zero_grad(set_to_none=True)
    return np.array(found), count[0]


@contextlib.contextmanager
def _counted_pyhessian() -> Iterable[list[int]]:
    import sys

    import pyhessian  # noqa: F401

    module = sys.modules["pyhessian.hessian"]  # the class hides the module of its name

    count = [0]
    plain, loader = module.hessian_vector_product, module.hessian.dataloader_hv_product

    def counted(f: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*arguments: object) -> object:
            count[0] += 1
            return f(*arguments)

        return wrapped

    module.hessian_vector_product, module.hessian.dataloader_hv_product = counted(plain), counted(loader)
    try:
        yield count
    finally:
        module.hessian_vector_product, module.hessian.dataloader_hv_product = plain, loader


def _eigenthings(model: nn.Module, batches: Batches, steps: float, seed: int) -> Answer:
    import hessian_eigenthings as package

    operator = package.HessianOperator(model, batches, loss)
    found = package.lanczos(operator, k=5, max_iter=int(steps), tol=GOAL, which="LA", seed=seed)
    values = np.asarray(found.eigenvalues.detach())
    return values if bool(found.converged.all()) else np.full(5, np.nan), int(found.iterations)


def _eigenthings_told(model: nn.Module, batches: Batches, steps: float, seed: int) -> Answer:
    import hessian_eigenthings as package

    operator = package.HessianOperator(model, batches, loss)
    found = package.lanczos(operator, k=5, max_iter=int(steps), tol=GOAL, which="LA", seed=seed)
    return np.asarray(found.eigenvalues.detach()), int(found.iterations)


def _curvlinops(check: bool) -> Solver:
    def solve(model: nn.Module, batches: Batches, tol: float, seed: int) -> Answer:
        from curvlinops import HessianLinearOperator

        parameters = list(model.parameters())
        operator = HessianLinearOperator(
            model, nn.CrossEntropyLoss(), parameters, batches, check_deterministic=check
        ).to_scipy()
        count = [0]

        def product(v: np.ndarray) -> np.ndarray:
            count[0] += 1
            return operator @ v.astype(np.float32).reshape(-1)

        counted = spla.LinearOperator(operator.shape, matvec=product, dtype=np.float32)
        start = np.random.default_rng(seed).standard_normal(operator.shape[0]).astype(np.float32)
        return spla.eigsh(counted, 5, which="LA", tol=tol, v0=start, return_eigenvectors=False), count[0]

    return solve


CONTENDERS: dict[str, tuple[Solver, Sequence[float]]] = {
    "eigenscope": (_ours(True), (0.1, 0.03, 0.01, 1e-3, 1e-4)),
    "eigenscope at its tolerance": (_ours(True), (1e-3,)),
    "eigenscope unchecked": (_ours(False), (0.1, 0.03, 0.01, 1e-3, 1e-4)),
    "PyHessian": (_pyhessian, (1e-3, 1e-4, 1e-5)),
    "hessian-eigenthings": (_eigenthings, (10, 16, 18, 20, 25, 30, 40)),
    "hessian-eigenthings told when": (_eigenthings_told, (10, 12, 14, 16, 18, 20, 25, 30)),
    "curvlinops": (_curvlinops(True), (1e-1, 1e-2, 1e-3, 1e-4)),
    "curvlinops unchecked": (_curvlinops(False), (1e-1, 1e-2, 1e-3, 1e-4)),
}
PACKAGES = {"PyHessian": "pyhessian", "hessian-eigenthings": "hessian_eigenthings", "curvlinops": "curvlinops"}


def present(name: str) -> bool:
    """Whether a contender's package is there."""
    package = PACKAGES.get(name.removesuffix(" unchecked").removesuffix(" told when"))
    return package is None or find_spec(package) is not None


def error(values: np.ndarray, truth: np.ndarray) -> float:
    """The largest relative error of a value."""
    return float(np.max(np.abs(np.sort(values)[::-1] - truth) / truth))


def eigenvalues(parts: int, rounds: int) -> None:
    """Print the table for the data in ``parts`` batches."""
    model, batches = digits((64, 256, 128, 10), parts)
    truth = np.sort(spla.eigsh(double(model, batches), 5, which="LA", tol=1e-9, return_eigenvectors=False))[::-1]
    rungs: dict[str, tuple[float, float, int]] = {}
    for name, (solve, ladder) in CONTENDERS.items():
        if not present(name):
            continue
        for level in ladder:
            answers = [solve(model, batches, level, seed) for seed in SEEDS]
            worst = float(np.max([error(values, truth) for values, _ in answers]))
            if worst <= GOAL:
                rungs[name] = (level, worst, max(products for _, products in answers))
                break
        else:
            print(f"{name}: not within {GOAL:g} at any effort, {worst:.1e} at the last", flush=True)
    parameters = list(model.parameters())
    spent: dict[str, list[float]] = {name: [] for name in [*rungs, "gradient"]}
    for turn in range(rounds):
        for name, (level, _, _) in rungs.items():
            begun = time.process_time()
            CONTENDERS[name][0](model, batches, level, turn)
            spent[name].append(time.process_time() - begun)
        begun = time.process_time()
        for batch in batches:
            torch.autograd.grad(loss(model, batch), parameters)
        spent["gradient"].append(time.process_time() - begun)
    unit = statistics.median(spent.pop("gradient"))
    print(f"\n{parts} batches; a gradient takes {1e3 * unit:.1f} ms of CPU; values {truth.round(4).tolist()}")
    print("contender,effort,worst error,products,CPU ms,gradients")
    for name, (level, worst, products) in rungs.items():
        took = statistics.median(spent[name])
        print(f"{name},{level:g},{worst:.1e},{products},{1e3 * took:.0f},{took / unit:.1f}", flush=True)


def density() -> None:
    """Print products and Wasserstein-1 distances of the densities."""
    model, batches = digits((64, 28, 10), 1)
    H = es.hessian(model, loss, batches, dtype=torch.float64)
    every = torch.linalg.eigvalsh(H.to_dense()).numpy()

    def ours(seed: int, **options: int) -> tuple[float, int]:
        single = es.hessian(model, loss, batches)
        found = es.density(single, generator=torch.Generator().manual_seed(seed), **options)
        distance = wasserstein_distance(found.nodes.numpy(), every, found.weights.mean(0).clamp(min=0.0).numpy())
        return float(distance), found.products

    def eigenthings(seed: int, steps: int, probes: int) -> tuple[float, int]:
        import hessian_eigenthings as package

        operator = package.HessianOperator(model, batches, loss)
        found = package.spectral_density(operator, num_runs=probes, lanczos_steps=steps, seed=1000 * seed)
        nodes, weights = found.raw_eigenvalues.ravel(), found.raw_weights.ravel().clamp(min=0.0)
        held = ~nodes.isnan()
        return float(wasserstein_distance(nodes[held], every, weights[held])), steps * probes

    def median(f: Callable[..., tuple[float, int]], **options: int) -> tuple[float, int]:
        answers = [f(seed, **options) for seed in range(5)]
        return statistics.median(distance for distance, _ in answers), max(products for _, products in answers)

    print(f"\ndensity of {len(every)} eigenvalues\ncontender,steps × probes + set aside,Wasserstein-1,products")
    for steps, probes, deflate in ((40, 2, 30), (40, 4, 30), (60, 2, 40), (60, 4, 40), (60, 8, 20)):
        distance, made = median(ours, steps=steps, probes=probes, deflate=deflate)
        print(f"eigenscope,{steps} × {probes} + {deflate},{distance:.2e},{made}", flush=True)
    for steps, probes in ((100, 1), (20, 5), (40, 10), (100, 10), (40, 50), (100, 20), (100, 40)):
        distance, made = median(ours, steps=steps, probes=probes, deflate=0)
        print(f"plain quadrature,{steps} × {probes},{distance:.2e},{made}", flush=True)
        if present("hessian-eigenthings"):
            distance, made = median(eigenthings, steps=steps, probes=probes)
            print(f"hessian-eigenthings,{steps} × {probes},{distance:.2e},{made}", flush=True)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--skip-density", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for parts in arguments.batches:
        eigenvalues(parts, arguments.rounds)
    if not arguments.skip_density:
        density()


if __name__ == "__main__":
    main()
