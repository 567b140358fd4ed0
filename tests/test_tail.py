"""The power-law tail: planted laws, noise, ties and degenerate spectra, against brute force and another program."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eigenscope.errors import InputError
from eigenscope.measures import tail, tail_tests
from eigenscope.tasks.tails import tail_readings


def of_eigenvalues(eigenvalues):
    return np.sqrt(np.sort(np.asarray(eigenvalues, dtype=float))[::-1])


def of_matrix(matrix):
    return np.linalg.svd(matrix, compute_uv=False)


def pareto(alpha, size, seed):
    return of_eigenvalues(np.random.default_rng(seed).pareto(alpha - 1.0, size) + 1.0)


def noise(shape, seed):
    return of_matrix(np.random.default_rng(seed).standard_normal(shape))


def spiked(seed, size=384):
    matrix = np.random.default_rng(seed).standard_normal((size, size)) / math.sqrt(size)
    matrix[range(5), range(5)] += (8.0, 7.0, 6.0, 5.0, 4.0)
    return of_matrix(matrix)


def by_brute_force(eigenvalues):
    """Size and distance of the best tail, by the definitions alone, on both sides of every step."""
    best = None
    for cutoff in sorted(set(eigenvalues)):
        kept = sorted(x for x in eigenvalues if x >= cutoff)
        if sum(x > cutoff for x in kept) < 2:
            continue
        n = len(kept)
        exponent = n / sum(math.log(x / cutoff) for x in kept)
        distance = 0.0
        for x in kept:
            law = 1.0 - (x / cutoff) ** -exponent
            upto, below = sum(y <= x for y in kept) / n, sum(y < x for y in kept) / n
            distance = max(distance, abs(law - upto), abs(law - below))
        if best is None or distance < best[1] - 1e-12:
            best = (n, distance, 1.0 + exponent)
    return best


@pytest.mark.parametrize("law", ["Pareto", "log-normal", "uniform", "ties", "noise"])
@pytest.mark.parametrize("seed", range(6))
def test_the_cutoff_is_the_one_of_smallest_distance(law, seed):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(5, 90))
    eigenvalues = {
        "Pareto": lambda: rng.pareto(1.5, size) + 1.0,
        "log-normal": lambda: np.exp(rng.normal(size=size)),
        "uniform": lambda: rng.random(size) + 0.01,
        "ties": lambda: rng.integers(1, 9, size).astype(float),
        "noise": lambda: np.linalg.eigvalsh(np.cov(rng.normal(size=(size, 2 * size)))),
    }[law]()
    values = of_eigenvalues(eigenvalues)
    found = tail.fit_tail(values)
    size, distance, alpha = by_brute_force(list(values**2))
    assert found is not None
    assert found.ks == pytest.approx(distance, rel=1e-9)
    assert found.size == size
    assert found.alpha == pytest.approx(alpha, rel=1e-9)
    assert found.cutoff == values[size - 1]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=3, max_size=25))
def test_few_levels_and_many_ties_agree_with_brute_force(levels):
    found, expected = tail.fit_tail(of_eigenvalues(levels)), by_brute_force([float(x) for x in levels])
    assert (found is None) == (expected is None)
    if found is not None:
        assert found.ks == pytest.approx(expected[1], rel=1e-9)


def test_thinned_points_change_nothing(monkeypatch):
    spectra = [pareto(2.5, 3000, 0), noise((400, 300), 0), of_eigenvalues(np.exp(np.linspace(0.0, 9.0, 500)))]
    found = [tail.fit_tail(values) for values in spectra]
    monkeypatch.setattr(tail, "THINNED", 1)
    assert [tail.fit_tail(values) for values in spectra] == found


def test_exponent_and_ratios_equal_those_of_powerlaw():
    # powerlaw 2.0.0 on (λ/x_min) of the tail: parameter_ranges={"alpha": [1, 100]} for the exponents, its defaults else.
    for alpha, exponent in ((2.5, 2.375139181852875), (4.0, 3.750278363705751), (8.0, 7.417316181980084)):
        found = tail.fit_tail(pareto(alpha, 400, 0))
        assert found is not None
        assert found.size == 293
        assert found.alpha == pytest.approx(exponent, abs=1e-6)
    values = pareto(2.5, 400, 0)
    results = tail_tests.compare(values, tail.fit_tail(values))
    exponential, log_normal = results["exponential"], results["log-normal"]
    assert (exponential.ratio, exponential.normalized, exponential.p) == pytest.approx(
        (147.699077, 2.30991, 0.0208931), rel=1e-3
    )
    assert (log_normal.ratio, log_normal.normalized, log_normal.p) == pytest.approx(
        (-0.0592797, -0.1521125, 0.8790982), rel=1e-4
    )
    truncated = results["truncated power law"]
    assert truncated.ratio == pytest.approx(-0.00176390, rel=1e-3)
    # powerlaw gives Wilks' p, as if the edge of the parameter's range were inside it: twice ours.
    assert 2.0 * truncated.p == pytest.approx(0.95264, rel=1e-3)


@pytest.mark.parametrize("power", [-150, -12, 12, 150])
@pytest.mark.parametrize("values", [pareto(2.5, 300, 1), noise((200, 150), 1)], ids=["Pareto", "noise"])
def test_scaling_a_matrix_changes_nothing_but_the_cutoff(values, power):
    here, there = tail.fit_tail(values), tail.fit_tail(values * 10.0**power)
    for name in ("alpha", "stderr", "ks", "span", "cv"):
        assert getattr(there, name) == pytest.approx(getattr(here, name), rel=1e-9), name
    assert (there.size, there.total, there.dropped) == (here.size, here.total, here.dropped)
    assert there.verdict == here.verdict
    assert there.cutoff == pytest.approx(here.cutoff * 10.0**power, rel=1e-9)
    assert tail.decay(values * 10.0**power) == pytest.approx(tail.decay(values), rel=1e-9)


@pytest.mark.parametrize(
    "values",
    [[], [3.0], [3.0, 2.0], [0.0, 0.0, 0.0], [2.0] * 50, [2.0, 1.0, 1.0, 1.0], [1.0, 1e-150, 1e-151, 0.0]],
    ids=["empty", "one", "two", "zeros", "constant", "two levels", "one above rounding"],
)
def test_fewer_than_three_levels_have_no_tail(values):
    values = np.array(values)
    assert tail.fit_tail(values) is None
    assert tail_tests.p_value(values, 5, np.random.default_rng(0)) is None
    readings = tail_readings(
        torch.zeros(len(values), len(values)), values,
        floor=0.0, tests=5, stability=0, fixed_aspect=0.0, generator=np.random.default_rng(0),
    )  # fmt: skip
    assert readings["alpha_verdict"] == tail.NO_TAIL
    assert readings["alpha"] is None


def test_three_values_have_an_exponent_whose_error_is_unknown():
    found = tail.fit_tail(np.array([3.0, 2.0, 1.0]))
    assert found.size == 3
    assert found.alpha == pytest.approx(1.0 + 3.0 / (2.0 * math.log(6.0)))
    assert found.stderr == math.inf
    assert found.verdict == "not identifiable: tail of 3 values"


@pytest.mark.parametrize(
    "values",
    [
        [1.0, 2.0, 3.0],
        [3.0, 1.0, 2.0],
        [2.0, 1.0, math.nan],
        [math.nan, 1.0],
        [3.0, math.nan, 1.0],
        [math.inf, 1.0],
        [1.0, -1.0],
    ],
)
def test_values_that_are_no_spectrum_are_refused(values):
    for function in (tail.fit_tail, tail.decay):
        with pytest.raises(InputError, match="out of order"):
            function(np.array(values))
    with pytest.raises(InputError, match="shape"):
        tail.fit_tail(np.ones((2, 2)))


def test_a_low_rank_matrix_is_not_a_power_law_of_its_rounding():
    rng = np.random.default_rng(3)
    matrix = rng.standard_normal((200, 4)) @ rng.standard_normal((4, 150))
    found = tail.fit_tail(of_matrix(matrix))
    assert (found.total, found.dropped) == (4, 146)
    assert found.verdict.startswith("not identifiable: tail of")
    stored = of_matrix(matrix.astype(np.float32).astype(float))
    assert tail.fit_tail(stored, floor=(150 * 2.0**-23) ** 2).total == 4
    # Without the floor that this storage needs, rounding is taken for part of the spectrum.
    assert tail.fit_tail(stored, floor=0.0).total == 150


@pytest.mark.parametrize("floor", [-0.1, 1.0, math.nan])
def test_a_floor_outside_its_range_is_refused(floor):
    with pytest.raises(InputError, match="floor"):
        tail.fit_tail(np.array([3.0, 2.0, 1.0]), floor)


@pytest.mark.parametrize(("alpha", "size"), [(2.5, 96), (2.5, 384), (4.0, 384), (2.5, 1024)])
def test_two_standard_errors_hold_the_exponent_of_a_power_law(alpha, size):
    # Seeds 0…199. At a true coverage of 0.95, fewer than 0.90 happen with probability 0.002, all 200 with 4e-5.
    tails = [tail.fit_tail(pareto(alpha, size, seed)) for seed in range(200)]
    held = np.mean([abs(found.alpha - alpha) <= 2.0 * found.stderr for found in tails])
    assert 0.90 <= held < 1.0
    # The error without the search for the cut-off falls short where the search went far.
    short = [found for found in tails if found.size < 0.6 * size]
    naive = np.mean([abs(found.alpha - alpha) <= 2.0 * (found.alpha - 1.0) / math.sqrt(found.size) for found in short])
    assert naive < 0.90 <= np.mean([abs(found.alpha - alpha) <= 2.0 * found.stderr for found in short])


def test_the_standard_error_is_the_published_one_where_all_is_tail_and_large():
    assert tail.standard_error(1.5, 10_000, 10_000) == pytest.approx(1.5 / 100.0, rel=1e-3)
    assert tail.standard_error(1.5, 403, 403) == pytest.approx(1.5 / 20.0)
    assert tail.standard_error(1.5, 103, round(103 * math.e)) == pytest.approx(1.5 * math.sqrt(2.0) / 10.0, rel=1e-3)


@pytest.mark.parametrize(
    ("shape", "seeds"), [((128, 128), 100), ((512, 128), 100), ((256, 256), 40), ((1000, 250), 40)]
)
@pytest.mark.parametrize("kind", ["Gaussian", "uniform"])
def test_noise_is_not_called_a_power_law(shape, seeds, kind):
    draw = {"Gaussian": lambda rng: rng.standard_normal(shape), "uniform": lambda rng: rng.uniform(-1.0, 1.0, shape)}[
        kind
    ]
    tails = [tail.fit_tail(of_matrix(draw(np.random.default_rng(seed)))) for seed in range(seeds)]
    assert np.mean([found.verdict == "power law" for found in tails]) <= 0.05


def test_power_laws_are_called_so_and_spikes_are_not():
    verdicts = [tail.fit_tail(pareto(alpha, 384, seed)).verdict for alpha in (1.5, 2.5, 4.0) for seed in range(40)]
    assert np.mean([verdict == "power law" for verdict in verdicts]) >= 0.85  # 0.944 of 1000 seeds
    assert all(tail.fit_tail(spiked(seed)).verdict.startswith("not a power law") for seed in range(5))


def quantiles(law, size):
    """Evenly spread quantiles of a law, descending to 0: a sample without chance."""
    return np.append(law.ppf((np.arange(size - 1, 0, -1) - 0.5) / (size - 1)), 0.0)


@pytest.mark.parametrize(
    ("excess", "verdict"),
    [
        (quantiles(scipy.stats.expon(), 200), "power law"),
        (quantiles(scipy.stats.expon(), 49), "not identifiable: tail of 49 values"),
        (0.1 * quantiles(scipy.stats.expon(), 200), "not identifiable: the tail spans a factor of 1.8 only"),
        (quantiles(scipy.stats.halfnorm(), 200), "not a power law: the largest values are too small"),
        (quantiles(scipy.stats.gamma(0.5), 200), "not a power law: outliers beyond it"),
        (quantiles(scipy.stats.uniform(0.0, 3.0), 400), "not a power law: the largest values are too small"),
        (np.log1p(0.35 * quantiles(scipy.stats.expon(), 60)), "not identifiable: an exponential"),
    ],
)  # fmt: skip
def test_verdicts_of_samples_without_chance(excess, verdict):
    cv = float(np.std(excess[:-1]) / np.mean(excess[:-1]))
    exponent = len(excess) / np.sum(excess)
    middles = (np.arange(len(excess)) + 0.5) / len(excess)
    distance = np.max(np.abs(np.exp(-exponent * excess) - middles)) + 0.5 / len(excess)
    assert tail.judge(excess, float(distance), cv).startswith(verdict)


def test_a_large_distance_alone_is_enough_to_reject():
    excess = quantiles(scipy.stats.expon(), 200)
    assert tail.judge(excess, 0.85 / math.sqrt(200), 1.0) == "power law"
    assert tail.judge(excess, 0.87 / math.sqrt(200), 1.0).startswith("not a power law: distance")


def test_the_exponential_is_preferred_where_it_is_likelier():
    for seed in range(10):
        excess = np.log1p(np.sort(np.random.default_rng(seed).exponential(size=50))[::-1])
        slope, rate = 1.0 / np.mean(excess), 1.0 / np.mean(np.expm1(excess))
        power = np.sum(scipy.stats.pareto.logpdf(np.exp(excess), slope))
        exponential = np.sum(scipy.stats.expon.logpdf(np.expm1(excess), scale=1.0 / rate))
        assert tail.exponential_is_likelier(excess) == (exponential >= power)


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_decay_of_an_exact_power_of_the_rank(beta):
    values = 7.0 * np.arange(1.0, 301.0) ** -beta
    assert tail.decay(values) == pytest.approx((beta, 1.0), rel=1e-9)
    x, y = np.log(np.arange(1.0, 301.0)), np.log(noise((300, 300), 0))
    fit = scipy.stats.linregress(x, y)
    assert tail.decay(np.exp(y)) == pytest.approx((-fit.slope, fit.rvalue**2), rel=1e-9)


def test_decay_is_not_defined_for_a_point_or_a_flat_spectrum():
    for values in ([], [1.0], [2.0, 1.0], [3.0] * 9, [0.0, 0.0, 0.0]):
        assert tail.decay(np.array(values)) is None


def test_tails_are_summed_up():
    tails = [tail.fit_tail(pareto(2.5, 200, seed)) for seed in range(4)]
    spread = tail.aggregate([*tails, None])
    alphas = [found.alpha for found in tails]
    assert (spread.mean, spread.spread) == pytest.approx((np.mean(alphas), np.std(alphas, ddof=1)))
    assert (spread.tails, spread.missing) == (4, 1)
    assert tail.aggregate([None]) is None
    assert tail.aggregate(tails[:1]).spread is None
