"""The power-law tail against the powerlaw package, and the simulations behind its errors and verdicts.

python oracles/tail.py            exponents and likelihood ratios against powerlaw: exit 1 on a disagreement
python oracles/tail.py coverage   how often ±2 standard errors hold a true exponent
python oracles/tail.py levels     quantiles of the verdict's statistics for a true power law
python oracles/tail.py verdicts   shares of verdicts on noise, power laws and other laws
python oracles/tail.py pvalues    how uniform p-values are where a power law is true, and how small where it is not
python oracles/tail.py times      process time of a fit against that of the singular values, one thread
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np
import scipy.special
import scipy.stats
from numpy.typing import NDArray

from eigenscope.measures.tail import NO_TAIL, Tail, fit_tail
from eigenscope.measures.tail_tests import compare, p_value

Array = NDArray[np.float64]
Sample = Callable[[np.random.Generator], Array]
LAWS = {"exponential": "exponential", "log-normal": "lognormal", "truncated power law": "truncated_power_law"}


def of_eigenvalues(eigenvalues: Array) -> Array:
    """Singular values, descending."""
    return np.sqrt(np.sort(eigenvalues)[::-1])


def of_matrix(matrix: Array) -> Array:
    """Singular values, descending, by the Gram matrix."""
    small = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    return np.sqrt(np.maximum(np.linalg.eigvalsh(small.T @ small)[::-1], 0.0))


def pareto(alpha: float, size: int, share: float = 1.0) -> Sample:
    """Eigenvalues of which a share follows a Pareto law from 1 up, the others are uniform in (0, 1)."""

    def draw(rng: np.random.Generator) -> Array:
        top = round(share * size)
        return of_eigenvalues(np.concatenate([rng.pareto(alpha - 1.0, top) + 1.0, rng.random(size - top)]))

    return draw


def spikes(size: int, *strengths: float, aspect: int = 1) -> Sample:
    """Gaussian noise of unit σ per column, and a few planted singular values."""

    def draw(rng: np.random.Generator) -> Array:
        matrix = rng.normal(size=(aspect * size, size)) / np.sqrt(aspect * size)
        matrix[range(len(strengths)), range(len(strengths))] += strengths
        return of_matrix(matrix)

    return draw


def fitted(draw: Sample, seed: int) -> Tail | None:
    return fit_tail(draw(np.random.default_rng(seed)))


def likelihood_at_their_parameters(fit: Any, law: str, y: Array) -> float:
    """Log-likelihood of a law that powerlaw fitted."""
    other = getattr(fit, LAWS[law])
    if law != "log-normal":
        return float(np.sum(other.loglikelihoods(fit.data)))
    # Far out, at μ/σ near −38, powerlaw divides two subnormal numbers and is off by 0.7.
    mass = np.log(other.sigma * np.sqrt(2.0 * np.pi)) + scipy.special.log_ndtr(other.mu / other.sigma)
    return float(np.sum(-((y - other.mu) ** 2) / (2.0 * other.sigma**2) - y - mass))


def against_powerlaw() -> int:
    """Every exponent to 1e-6, every ratio to 1e-3 or better than powerlaw's optimum; the number of disagreements."""
    import powerlaw

    laws: dict[str, Sample] = {
        "pareto 2.5": pareto(2.5, 400),
        "pareto 1.7": pareto(1.7, 400),
        "pareto 4": pareto(4.0, 400),
        "pareto 9": pareto(9.0, 400),
        "pareto 2.9 with a body": pareto(2.9, 600, 0.4),
        "log-normal": lambda rng: of_eigenvalues(np.exp(1.2 * rng.normal(size=500))),
        "exponential": lambda rng: of_eigenvalues(rng.exponential(size=500)),
        "cut off": lambda rng: of_eigenvalues(rng.gamma(0.3, size=800) + 0.01),
    }
    wrong, compared, better, gap = 0, 0, Counter[str](), 0.0
    for name, draw in laws.items():
        for seed in range(5):
            values = draw(np.random.default_rng(seed))
            tail = fit_tail(values)
            assert tail is not None
            fit = powerlaw.Fit((values[: tail.size] / tail.cutoff) ** 2, xmin=1.0, verbose=False)
            # From 2.0 on, powerlaw searches no exponent above 3 unless told to.
            wide = powerlaw.Fit(fit.data, xmin=1.0, verbose=False, parameter_ranges={"alpha": [1.0, 1000.0]})
            gap = max(gap, abs(wide.power_law.alpha - tail.alpha))
            if abs(wide.power_law.alpha - tail.alpha) > 1e-6:
                print(f"{name}, seed {seed}: alpha {tail.alpha}, powerlaw {wide.power_law.alpha}")
                wrong += 1
            y = np.log(fit.data)
            power = np.sum(np.log(tail.alpha - 1.0) - tail.alpha * y)
            for law, result in compare(values, tail).items():
                theirs = power - likelihood_at_their_parameters(fit, law, y)
                compared += 1
                if result.ratio < theirs - 1e-3:  # a likelier member of the same family than powerlaw found
                    better[law] += 1
                elif result.ratio > theirs + 1e-3:
                    print(f"{name}, seed {seed}, {law}: ratio {result.ratio}, powerlaw {theirs}, {result.parameters}")
                    wrong += 1
    print(f"powerlaw {powerlaw.__version__}: {5 * len(laws)} exponents, largest difference {gap:.1e};")
    print(f"{compared} ratios, {sum(better.values())} of them with a likelier optimum")
    print(f"than powerlaw's ({dict(better)}), {wrong} disagreements")
    return wrong


def coverage() -> None:
    """The table in the docstring of ``standard_error``; α = 2.5, as (α − 1)·ln λ has one law for every α."""
    print("     N  seeds  (α−1)/√n  ours   n < 0.6 N: (α−1)/√n  ours   |  first 200 seeds: ours")
    for size, seeds in ((96, 2000), (192, 2000), (384, 2000), (1024, 2000), (4096, 1000)):
        tails = [tail for seed in range(seeds) if (tail := fitted(pareto(2.5, size), seed))]
        error = np.array([abs(tail.alpha - 2.5) for tail in tails])
        plain = error < np.array([2.0 * (tail.alpha - 1.0) / np.sqrt(tail.size) for tail in tails])
        ours = error < np.array([2.0 * tail.stderr for tail in tails])
        short = np.array([tail.size < 0.6 * size for tail in tails])
        print(
            f"{size:6d} {seeds:6d}   {plain.mean():.3f}    {ours.mean():.3f}             {plain[short].mean():.3f}    "
            f"{ours[short].mean():.3f}  |  {ours[:200].mean():.3f}"
        )
    for alpha in (2.5, 4.0):
        for size in (384, 1024, 4096):
            tails = [tail for seed in range(200) if (tail := fitted(pareto(alpha, size), seed))]
            held = np.mean([abs(tail.alpha - alpha) < 2.0 * tail.stderr for tail in tails])
            print(f"alpha {alpha}, N = {size}, seeds 0…199: {held:.3f}")


def levels() -> None:
    """2.5 % quantiles behind the critical values of ``judge``."""
    for size, seeds, share in (
        (128, 6000, 1.0),
        (384, 6000, 1.0),
        (1024, 6000, 1.0),
        (4096, 1500, 1.0),
        (1024, 4000, 0.3),
    ):
        found = [tail for seed in range(seeds) if (tail := fitted(pareto(2.5, size, share), seed)) and tail.size >= 50]
        z = [np.sqrt(tail.size - 1) * np.log(tail.cv) for tail in found]
        d = [np.sqrt(tail.size) * tail.ks for tail in found]
        low, high = np.quantile(z, [0.025, 0.975])
        print(
            f"N = {size}, {share:.0%} Pareto, {seeds} seeds: √(n−1)·ln CV {low:.2f} … {high:.2f}, "
            f"√n·KS {np.quantile(d, 0.975):.3f}"
        )


def verdicts() -> None:
    """Shares of the three verdicts."""
    cases: dict[str, tuple[Sample, int]] = {}
    for size in (128, 384, 1024):
        for aspect in (1, 2, 4):
            shape = (aspect * size, size)
            seeds = {128: 400, 384: 200, 1024: 40}[size]
            cases[f"Gaussian noise {shape}"] = (lambda rng, shape=shape: of_matrix(rng.normal(size=shape)), seeds)
            cases[f"uniform noise {shape}"] = (lambda rng, shape=shape: of_matrix(rng.uniform(-1, 1, shape)), seeds)
    for alpha in (1.5, 2.5, 4.0, 6.0):
        for size in (384, 1024, 4096):
            cases[f"Pareto α = {alpha}, N = {size}"] = (pareto(alpha, size), 1000 if size < 4096 else 300)
    cases |= {
        "Pareto α = 2.5, N = 128": (pareto(2.5, 128), 1000),
        "Pareto α = 10, N = 384": (pareto(10.0, 384), 500),
        "Pareto α = 2.5 in 30 % of 384": (pareto(2.5, 384, 0.3), 500),
        "Pareto α = 4 in 10 % of 1024": (pareto(4.0, 1024, 0.1), 500),
        "log-normal, N = 384": (lambda rng: of_eigenvalues(np.exp(rng.normal(size=384))), 500),
        "log-normal, N = 2048": (lambda rng: of_eigenvalues(np.exp(rng.normal(size=2048))), 200),
        "exponential, N = 384": (lambda rng: of_eigenvalues(rng.exponential(size=384)), 500),
        "exponential, N = 2048": (lambda rng: of_eigenvalues(rng.exponential(size=2048)), 200),
        "1 spike in noise, 384": (spikes(384, 8.0), 100),
        "5 spikes in noise, 384": (spikes(384, 8.0, 7.0, 6.0, 5.0, 4.0), 100),
        "5 spikes in noise, 1536×384": (spikes(384, 8.0, 7.0, 6.0, 5.0, 4.0, aspect=4), 100),
        "20 spikes in noise, 384": (spikes(384, *np.linspace(2.5, 6.0, 20)), 100),
        "Student t, 1.5 degrees, 384": (lambda rng: of_matrix(rng.standard_t(1.5, size=(384, 384))), 100),
        "Student t, 3 degrees, 384": (lambda rng: of_matrix(rng.standard_t(3.0, size=(384, 384))), 100),
    }
    for name, (draw, seeds) in cases.items():
        found = Counter(
            (tail.verdict if (tail := fitted(draw, seed)) else NO_TAIL).split(":")[0] for seed in range(seeds)
        )
        shares = ", ".join(f"{verdict} {count / seeds:.3f}" for verdict, count in found.most_common())
        print(f"{name:32s} {seeds:5d} seeds: {shares}", flush=True)


def pvalues() -> None:
    """Uniformity under the null, and power: the figures in the docstring of ``p_value``, and more."""
    null: dict[str, tuple[Sample, int]] = {
        "Pareto α = 2.5, N = 96": (pareto(2.5, 96), 400),
        "Pareto α = 4, N = 384": (pareto(4.0, 384), 300),
        "Pareto α = 2.5, N = 1024": (pareto(2.5, 1024), 100),
        "Pareto in 30 % of 384, sharp break": (pareto(2.5, 384, 0.3), 300),
    }
    wrong: dict[str, tuple[Sample, int]] = {
        "5 spikes in noise, 384": (spikes(384, 8.0, 7.0, 6.0, 5.0, 4.0), 40),
        "Gaussian noise, 384": (lambda rng: of_matrix(rng.normal(size=(384, 384))), 100),
        "uniform eigenvalues, 384": (lambda rng: of_eigenvalues(rng.random(384)), 100),
        "log-normal, N = 384": (lambda rng: of_eigenvalues(np.exp(rng.normal(size=384))), 100),
        "exponential, N = 384": (lambda rng: of_eigenvalues(rng.exponential(size=384)), 100),
    }
    for name, (draw, seeds) in (null | wrong).items():
        found = [
            p_value(draw(np.random.default_rng(seed)), 99, np.random.default_rng(10_000 + seed))
            for seed in range(seeds)
        ]
        p = np.array([estimate.value for estimate in found if estimate])
        test = scipy.stats.kstest(p, "uniform")
        print(
            f"{name:36s} {seeds:4d} seeds: p ≤ 0.1 in {np.mean(p <= 0.1):.3f}, median {np.median(p):.2f}, "
            f"KS distance from uniform {test.statistic:.3f} (p = {test.pvalue:.2g})",
            flush=True,
        )


def times() -> None:
    """Fit against values-only, interleaved, medians of process time."""
    import torch

    from eigenscope.methods.exact import singular_values

    torch.set_num_threads(1)
    for shape, rounds in (
        ((384, 384), 25),
        ((1536, 384), 25),
        ((576, 576), 25),
        ((30522, 384), 9),
        ((49152, 576), 5),
        ((4096, 4096), 1),
    ):
        generator = torch.Generator().manual_seed(0)
        matrices = {
            "noise": torch.randn(shape, generator=generator),
            # Entries with heavy tails: a spectrum that has one too.
            "heavy": torch.randn(shape, generator=generator)
            / (1.0 - torch.rand(shape, generator=generator)).pow(1.0 / 1.5),
        }
        for name, matrix in matrices.items():
            values = singular_values(matrix).values.numpy()
            spent: dict[str, list[float]] = {"values": [], "fit": []}
            for _ in range(rounds):
                for what, call in (
                    ("values", lambda m=matrix: singular_values(m)),
                    ("fit", lambda v=values: fit_tail(v)),
                ):
                    begun = time.process_time()
                    call()
                    spent[what].append(time.process_time() - begun)
            both, fit = np.median(spent["values"]), np.median(spent["fit"])
            print(f"{shape} {name}: values {1e3 * both:.2f} ms, fit {1e3 * fit:.2f} ms, {fit / both:.1%}", flush=True)


def main() -> None:
    what = sys.argv[1] if len(sys.argv) > 1 else "powerlaw"
    simulations = {"coverage": coverage, "levels": levels, "verdicts": verdicts, "pvalues": pvalues, "times": times}
    if what in simulations:
        simulations[what]()
        return
    warnings.simplefilter("ignore")  # powerlaw's own, on parameters at the edge of its ranges
    sys.exit(against_powerlaw() > 0)


if __name__ == "__main__":
    main()
