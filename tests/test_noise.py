"""The noise bulk: planted signal, pure noise, and spectra that are neither."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from eigenscope.errors import InputError
from eigenscope.measures import noise

SHAPES = [(512, 512), (1000, 500), (2000, 500)]
LAWS = {
    "gaussian": lambda rng, shape: rng.standard_normal(shape),
    "uniform": lambda rng, shape: rng.uniform(-1.0, 1.0, shape),
    "student5": lambda rng, shape: rng.standard_t(5.0, shape),
}


def values_of(matrix):
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    return np.sqrt(np.linalg.eigvalsh(tall.T @ tall)[::-1].clip(0.0))


def planted(rng, shape, strengths):
    """Gaussian noise of unit variance and orthogonal directions of given singular values."""
    left = np.linalg.qr(rng.standard_normal((shape[0], len(strengths))))[0]
    right = np.linalg.qr(rng.standard_normal((shape[1], len(strengths))))[0]
    return rng.standard_normal(shape) + (left * strengths) @ right.T


@pytest.mark.parametrize("shape", [(384, 384), (384, 1536), (500, 2000), (384, 30522), (7, 7000)])
def test_the_law_is_the_integral_of_its_density(shape):
    points, cumulative = noise.marchenko_pastur(min(shape), max(shape))
    beta = min(shape) / max(shape)
    low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2
    assert (points[0], cumulative[0], cumulative[-1]) == pytest.approx((low, 0.0, 1.0), abs=1e-12)
    assert points[-1] == pytest.approx(high, rel=1e-12)
    for share in (0.0101, 0.05, 0.1237, 0.3, 0.5, 0.77, 0.95):
        end = low + (high - low) * share
        mass, _ = integrate.quad(
            lambda x: math.sqrt((x - low) * (high - x)) / (2 * math.pi * beta * x), low, end, epsabs=1e-12, limit=500
        )
        assert np.interp(end, points, cumulative) == pytest.approx(mass, abs=1e-5)


def test_the_edge_is_the_tracy_widom_quantile_of_simulation():
    # 2000 largest values of 60×40 noise: 1 in 1000 above the edge, up to the binomial spread of the count.
    rng = np.random.default_rng(5)
    edge = noise.noise_edge((60, 40))
    above = sum(np.linalg.norm(rng.standard_normal((60, 40)), 2) > edge for _ in range(2000))
    assert above <= stats.binom.ppf(0.999, 2000, 0.0015)
    lower = 0.97 * edge
    assert sum(np.linalg.norm(rng.standard_normal((60, 40)), 2) > lower for _ in range(200)) > 2


def test_the_optimal_threshold_is_the_published_one():
    # Gavish & Donoho 2014: 4/√3 for square matrices.
    assert noise.optimal_threshold((100, 100)) == pytest.approx(4 / math.sqrt(3) * 10)
    assert noise.optimal_threshold((50, 100)) == noise.optimal_threshold((100, 50))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pure_noise_has_no_signal(shape, law):
    found = [noise.fit_noise(values_of(LAWS[law](np.random.default_rng(seed), shape)), shape) for seed in range(20)]
    assert sum(each.rank <= 1 for each in found) >= 19
    if law != "student5":
        assert sum(each.verdict == "noise only" for each in found) >= 19
    deviation = LAWS[law](np.random.default_rng(99), (1000, 1000)).std()
    assert np.mean([each.level for each in found]) == pytest.approx(deviation, rel=0.02)


@pytest.mark.parametrize("shape", [*SHAPES, (384, 1536)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_planted_spikes_are_all_found(shape, seed):
    edge = noise.noise_edge(shape)
    found = noise.fit_noise(
        values_of(planted(np.random.default_rng(seed), shape, np.geomspace(1.3, 8, 5) * edge)), shape
    )
    assert (found.rank, found.verdict) == (5, "noise bulk")
    assert found.level == pytest.approx(1.0, rel=0.03)
    assert found.edge == pytest.approx(edge, rel=0.03)
    assert found.optimal_rank == 5


def test_a_signal_below_the_edge_is_not_claimed():
    shape = (600, 400)
    # Below the critical strength (mn)^¼ no method that sees the spectrum alone can tell (Baik, Ben Arous & Péché 2005).
    weak = 0.5 * (shape[0] * shape[1]) ** 0.25
    found = noise.fit_noise(values_of(planted(np.random.default_rng(1), shape, np.full(5, weak))), shape)
    assert found.rank == 0


def test_many_strong_directions_do_not_hide_the_level():
    shape = (512, 512)
    strengths = np.geomspace(1.3, 20, 100) * noise.noise_edge(shape)
    values = values_of(planted(np.random.default_rng(2), shape, strengths))
    found = noise.fit_noise(values, shape)
    assert found.rank == 100
    assert found.level == pytest.approx(1.0, rel=0.02)
    assert found.signal_energy == pytest.approx(np.sum(values[:100] ** 2) / np.sum(values**2), rel=1e-12)
    # The standard deviation of all entries, which others use as the level, is several times too large.
    assert math.sqrt(np.sum(values**2) / (512 * 512)) > 3 * found.level


@pytest.mark.parametrize("scale", [1e-150, 1e-12, 1e12, 1e150])
def test_scaling_changes_no_verdict(scale):
    values = values_of(planted(np.random.default_rng(4), (200, 100), np.array([60.0, 50.0])))
    one, other = noise.fit_noise(values, (200, 100)), noise.fit_noise(values * scale, (200, 100))
    assert (one.rank, one.optimal_rank, one.verdict) == (other.rank, other.optimal_rank, other.verdict)
    assert other.level == pytest.approx(one.level * scale, rel=1e-9)
    assert other.edge == pytest.approx(one.edge * scale, rel=1e-9)


def test_a_matrix_and_its_transpose_agree():
    values = values_of(np.random.default_rng(6).standard_normal((90, 40)))
    assert noise.fit_noise(values, (90, 40)) == noise.fit_noise(values, (40, 90))


@pytest.mark.parametrize(
    "values",
    [
        np.ones(300),
        np.exp(-np.arange(300) / 40),
        np.arange(1, 301.0) ** -0.5,
        np.append(np.ones(160), np.full(140, 1e-9)),
    ],
    ids=["orthogonal", "exponential", "power", "step"],
)
def test_what_is_no_bulk_is_said_to_be_none(values):
    found = noise.fit_noise(values, (300, 300))
    assert found.verdict.startswith("no noise bulk")
    assert (found.edge, found.rank, found.signal_energy, found.optimal_rank) == (None, None, None, None)
    assert found.distance > noise.FARTHEST


def test_a_bulk_that_is_almost_noise_says_how_far_it_is():
    rng = np.random.default_rng(7)
    rows = np.exp(0.5 * rng.standard_normal((600, 1)))  # rows of unequal variance: another law than the one fitted
    found = noise.fit_noise(values_of(rows * rng.standard_normal((600, 300))), (600, 300))
    assert found.verdict.startswith("bulk is not noise: ")
    assert found.distance > noise.allowed_distance(300)


def test_rounding_is_not_taken_for_the_noise_of_the_matrix():
    rng = np.random.default_rng(8)
    exact = rng.standard_normal((200, 4)) @ rng.standard_normal((4, 120))
    values = np.linalg.svd(exact.astype(np.float32).astype(float), compute_uv=False)
    assert noise.fit_noise(values, (200, 120), 200 * 2.0**-23) == noise.NO_MEDIAN
    assert noise.fit_noise(values, (200, 120)) != noise.NO_MEDIAN


@pytest.mark.parametrize(
    ("values", "verdict"),
    [(np.ones(3), noise.TOO_FEW), (np.array([]), noise.TOO_FEW), (np.zeros(40), noise.NO_MEDIAN),
     (np.append(np.arange(20.0, 0, -1), np.zeros(20)), noise.NO_MEDIAN)],
)  # fmt: skip
def test_too_little_for_a_bulk(values, verdict):
    assert noise.fit_noise(values, (len(values), 50)) == verdict


@pytest.mark.parametrize("values", [np.arange(40.0), -np.ones(40), np.full(40, np.nan), np.append(np.inf, np.ones(39))])
def test_values_out_of_order_are_refused(values):
    with pytest.raises(InputError, match="out of order"):
        noise.fit_noise(values, (40, 40))


def test_a_partial_spectrum_is_refused():
    with pytest.raises(InputError, match="all 100"):
        noise.fit_noise(np.ones(40), (100, 200))


@given(st.lists(st.floats(0.0, 1e6), min_size=16, max_size=60), st.integers(0, 200))
def test_any_spectrum_has_a_verdict_and_its_figures_are_consistent(values, extra):
    ordered = np.sort(np.array(values))[::-1]
    shape = (len(ordered), len(ordered) + extra)
    found = noise.fit_noise(ordered, shape)
    if isinstance(found, str):
        return
    assert 0.0 <= found.distance <= 1.0
    assert (found.rank is None) == found.verdict.startswith("no noise bulk")
    if found.rank is not None:
        assert found.rank == np.count_nonzero(ordered > found.edge)
        assert 0.0 <= found.signal_energy <= 1.0 + 1e-12
