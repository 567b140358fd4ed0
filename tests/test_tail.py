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

from eigenscope.columns import BY_NAME
from eigenscope.errors import InputError
from eigenscope.measures import tail, tail_tests
from eigenscope.tasks.tails import tail_readings, thinned_copies


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


def test_samples_below_one_are_refused():
    with pytest.raises(InputError, match="samples"):
        tail_tests.p_value(np.array([3.0, 2.0, 1.0]), 0, np.random.default_rng(0))


@pytest.mark.parametrize(("alpha", "size"), [(2.5, 96), (2.5, 384), (4.0, 384), (2.5, 1024)])
def test_two_standard_errors_hold_the_exponent_of_a_power_law(alpha, size):
    # Seeds 0…199. At a true coverage of 0.95, fewer than 0.90 happen with probability 0.002, all 200 with 4e-5.
    tails = [tail.fit_tail(pareto(alpha, size, seed)) for seed in range(200)]
    held = np.mean([abs(found.alpha - alpha) <= 2.0 * found.stderr for found in tails])
    assert 0.90 <= held < 1.0
    # The error without the search for the cut-off falls short where the search went far.
    short = [found for found in tails if found.size < 0.6 * size]
    naive = np.mean([abs(found.alpha - alpha) <= 2.0 * (found.alpha - 1.0) / math.sqrt(found.size) for found in short])
    assert naive < 0.90


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


def log_likelihood_of_truncated(y, alpha, rate):
    def density(u):
        return math.exp(-(alpha - 1.0) * u - rate * math.expm1(u))

    mass = scipy.integrate.quad(density, 0.0, math.log1p(60.0 / rate), epsabs=0.0, epsrel=1e-10, limit=200)[0]
    return float(np.sum(-(alpha - 1.0) * y - rate * np.expm1(y)) - len(y) * math.log(mass))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("law", ["gamma", "exponential", "Pareto"])
def test_the_truncated_power_law_is_at_its_maximum_likelihood(law, seed):
    rng = np.random.default_rng(seed)
    y = np.sort(
        np.log(
            {
                "gamma": rng.gamma(0.5, size=300),
                "exponential": rng.exponential(size=200),
                "Pareto": rng.pareto(2.0, 250),
            }[law]
            + 1.0
        )
    )
    alpha, rate = tail_tests.fit_truncated(y)
    assert alpha >= 0.0
    assert rate >= 0.0

    def loss(p):
        return -log_likelihood_of_truncated(y, abs(p[0]), math.exp(p[1]))

    begin = (max(alpha, 0.1), math.log(max(rate, 1e-6)))
    best = scipy.optimize.minimize(loss, begin, method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-9}).fun
    assert log_likelihood_of_truncated(y, alpha, max(rate, 1e-12)) == pytest.approx(-best, abs=1e-5)


def test_the_log_normal_is_at_its_maximum_likelihood():
    for seed in range(5):
        values = of_eigenvalues(np.exp(np.random.default_rng(seed).normal(size=400) * 0.7))
        found = tail.fit_tail(values)
        result = tail_tests.compare(values, found)["log-normal"]
        y = 2.0 * np.log(values[: found.size] / found.cutoff)
        power = np.sum(math.log(found.alpha - 1.0) - (found.alpha - 1.0) * y)

        def loss(p, y=y):
            return -np.sum(
                scipy.stats.norm.logpdf(y, p[0], np.exp(p[1])) - scipy.stats.norm.logsf(0.0, p[0], np.exp(p[1]))
            )

        best = scipy.optimize.minimize(
            loss,
            (0.0, math.log(np.mean(y))),
            method="Nelder-Mead",
            options={"maxiter": 4000, "xatol": 1e-8, "fatol": 1e-10},
        ).fun
        assert result.ratio <= power + best + 1e-6
        assert result.ratio == pytest.approx(power + best, abs=1e-3)


def test_ratios_have_the_sign_of_the_truth():
    signs = {"power": [], "log-normal": [], "exponential": []}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        heavy = pareto(2.0, 400, seed)
        signs["power"].append(tail_tests.compare(heavy, tail.fit_tail(heavy))["exponential"].ratio > 0.0)
        # The whole of a log-normal sample above its mode, and of an exponential one, as tails: no search for a cut-off.
        for name, y in (
            ("log-normal", np.abs(rng.normal(size=400))),
            ("exponential", np.log1p(rng.exponential(size=400))),
        ):
            values = np.exp(0.5 * np.sort(np.append(y, 0.0))[::-1])
            exponent = len(values) / np.sum(2.0 * np.log(values))
            whole = tail.Tail(1.0 + exponent, 0.1, 1.0, len(values), len(values), 0, 0.1, values[0] ** 2, 1.0, "")
            result = tail_tests.compare(values, whole)[name]
            signs[name].append(result.ratio < 0.0 and result.p < 0.1)
    assert all(signs["power"])
    assert np.mean(signs["log-normal"]) > 0.9
    assert np.mean(signs["exponential"]) > 0.9


def test_a_comparison_with_other_values_is_refused():
    values = pareto(2.5, 100, 0)
    found = tail.fit_tail(values)
    for other in (values * 2.0, values[:2]):
        with pytest.raises(InputError, match="other values"):
            tail_tests.compare(other, found)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-6, 60.0), st.integers(3, 60))
def test_comparisons_are_finite_and_nested_laws_never_lose(seed, width, size):
    values = np.sort(np.exp(np.random.default_rng(seed).random(size) * width))[::-1]
    found = tail.fit_tail(values, 0.0)
    if found is None:
        return
    for name, result in tail_tests.compare(values, found).items():
        assert math.isfinite(result.ratio)
        assert math.isfinite(result.normalized)
        assert 0.0 <= result.p <= 1.0
        if name == "truncated power law":
            assert result.ratio <= 0.0
            assert result.normalized <= 0.0


def test_a_p_value_is_the_seeds():
    values = pareto(2.5, 96, 0)
    first, again, other = (tail_tests.p_value(values, 40, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == again
    assert first.value != other.value
    assert first.stderr == pytest.approx(math.sqrt(first.value * (1.0 - first.value) / 40))


def test_p_values_of_power_laws_are_uniform():
    # 100 samples of 96 values, seeds 0…99; level 1 %: of uniform p-values one in a hundred seeds would fail.
    p = [tail_tests.p_value(pareto(2.5, 96, seed), 59, np.random.default_rng(seed)).value for seed in range(100)]
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01
    assert 0.02 <= np.mean(np.array(p) <= 0.1) <= 0.2


def test_the_p_value_of_another_law_is_small():
    for seed in range(3):
        assert tail_tests.p_value(spiked(seed), 50, np.random.default_rng(seed)).value <= 0.1


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


@pytest.mark.parametrize("shape", [(30, 10), (10, 30), (20, 20), (7, 100), (100, 7), (1, 5), (3, 3)])
@pytest.mark.parametrize("aspect", [1.0, 2.0, 7.5])
@pytest.mark.parametrize("windows", [1, 2, 5, 50])
def test_blocks_have_the_aspect_asked_for_and_stay_inside(shape, aspect, windows):
    blocks = tail.fixed_aspect_blocks(shape, aspect, windows)
    assert 1 <= len(blocks) <= windows
    assert len({(rows.start, cols.start) for rows, cols in blocks}) == len(blocks)
    matrix = np.arange(shape[0] * shape[1]).reshape(shape)
    parts = [matrix[block] for block in blocks]
    assert len({part.shape for part in parts}) == 1
    long, short = max(parts[0].shape), min(parts[0].shape)
    # As near as whole rows and columns allow.
    assert abs(long - aspect * short) <= max(1.0, aspect) / 2.0 or short == 1
    assert long == max(shape) or short == min(shape)
    if windows > 1 and len(blocks) > 1:
        assert parts[0].flat[0] == 0
        assert parts[-1].flat[-1] == matrix.size - 1


@pytest.mark.parametrize(("shape", "aspect", "windows"), [((0, 3), 1.0, 1), ((3, 3), 0.5, 1), ((3, 3), 1.0, 0), ((3, 3), math.nan, 1), ((3, 3), math.inf, 1)])  # fmt: skip
def test_blocks_out_of_range_are_refused(shape, aspect, windows):
    with pytest.raises(InputError, match="aspect"):
        tail.fixed_aspect_blocks(shape, aspect, windows)


def readings_of(matrix, seed=0, **options):
    W = torch.as_tensor(matrix)
    values = of_matrix(W.double().numpy())
    asked = {"tests": 0, "stability": 0, "fixed_aspect": 0.0} | options
    return tail_readings(W, values, floor=len(values) * 2.0**-52, generator=np.random.default_rng(seed), **asked)


ALWAYS = {"alpha", "alpha_stderr", "alpha_tail", "alpha_cutoff", "alpha_ks", "alpha_verdict", "decay", "decay_r2"}
ON_REQUEST = {
    "tests": {f"lr_{law}{end}" for law in ("lognormal", "exponential", "truncated") for end in ("", "_p")}
    | {"alpha_p", "alpha_p_stderr"},
    "stability": {"alpha_stability"},
    "fixed_aspect": {"alpha_fixed_aspect", "alpha_fixed_aspect_spread"},
}


def test_readings_are_those_asked_for_and_are_columns():
    matrix = np.random.default_rng(0).standard_t(1.5, size=(120, 60))
    assert set(readings_of(matrix)) == ALWAYS
    for option, names in ON_REQUEST.items():
        readings = readings_of(matrix, **{option: 10})
        assert set(readings) == ALWAYS | names
        assert all(readings[name] is not None for name in names - {"alpha_fixed_aspect_spread"})
    assert ALWAYS.union(*ON_REQUEST.values()) <= set(BY_NAME)
    assert readings_of(matrix, stability=1).keys() == ALWAYS


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_readings_take_every_format_and_are_the_seeds(dtype):
    matrix = torch.as_tensor(np.random.default_rng(1).standard_t(2.0, size=(60, 90))).to(dtype)
    before = matrix.clone()
    asked = {"tests": 5, "stability": 4, "fixed_aspect": 1.5}
    first = readings_of(matrix, **asked)
    assert readings_of(matrix, **asked) == first
    assert torch.equal(matrix, before)
    assert readings_of(matrix, seed=1, **asked)["alpha_stability"] != first["alpha_stability"]


@pytest.mark.parametrize(("shape", "side"), [((40, 30), 0), ((30, 40), 1), ((40, 40), 1), ((6, 4), 0)])
def test_ten_copies_leave_every_vector_of_the_longer_side_out_once(shape, side):
    long = max(shape)
    labels = torch.arange(long).reshape(-1, 1) if side == 0 else torch.arange(long)
    W = labels.expand(shape).clone()
    copies = list(thinned_copies(W, min(10, long), np.random.default_rng(0)))
    left_out = [set(range(long)) - set(copy.flatten().tolist()) for copy in copies]
    assert sorted(label for group in left_out for label in group) == list(range(long))
    assert all(copy.shape[1 - side] == shape[1 - side] for copy in copies)
    again = list(thinned_copies(W, 13, np.random.default_rng(0)))
    assert len(again) == 13
    assert all(torch.equal(a, b) for a, b in zip(copies, again, strict=False))


def test_stability_is_the_spread_over_copies_and_grows_where_one_vector_carries_the_tail():
    rng = np.random.default_rng(5)
    matrix = rng.standard_t(1.5, size=(80, 120))
    alphas = [
        tail.fit_tail(of_matrix(copy.numpy())).alpha
        for copy in thinned_copies(torch.as_tensor(matrix), 10, np.random.default_rng(0))
    ]
    assert readings_of(matrix, stability=10)["alpha_stability"] == pytest.approx(np.std(alphas, ddof=1), rel=1e-6)
    assert (
        readings_of(matrix, stability=10)["alpha_stability"]
        == readings_of(matrix.T.copy(), stability=10)["alpha_stability"]
    )


def test_fixed_aspect_makes_noise_of_any_shape_alike():
    def alpha(shape, name, **options):
        return np.mean(
            [readings_of(np.random.default_rng(seed).standard_normal(shape), **options)[name] for seed in range(12)]
        )

    plain = alpha((96, 96), "alpha"), alpha((960, 96), "alpha")
    square = (
        alpha((96, 96), "alpha_fixed_aspect", fixed_aspect=1.0),
        alpha((960, 96), "alpha_fixed_aspect", fixed_aspect=1.0),
    )
    assert abs(plain[1] - plain[0]) > 5.0 * abs(square[1] - square[0])
    matrix = np.random.default_rng(0).standard_normal((90, 30))
    assert readings_of(matrix, fixed_aspect=3.0) | readings_of(matrix) == readings_of(
        matrix, fixed_aspect=1.0 / 3.0
    ) | readings_of(matrix)
    whole = readings_of(matrix, fixed_aspect=3.0)
    assert whole["alpha_fixed_aspect"] == pytest.approx(whole["alpha"], rel=1e-9)
    assert whole["alpha_fixed_aspect_spread"] is None
    blocks = [tail.fit_tail(of_matrix(matrix[start : start + 30])).alpha for start in (0, 30, 60)]
    thirds = readings_of(matrix, fixed_aspect=1.0)
    assert thirds["alpha_fixed_aspect"] == pytest.approx(np.mean(blocks), rel=1e-9)
    assert thirds["alpha_fixed_aspect_spread"] == pytest.approx(np.std(blocks, ddof=1), rel=1e-9)
