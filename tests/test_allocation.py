"""Ranks out of one budget: against uniform ranks, all combinations, and properties that hold for any input."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from eigenscope.errors import InputError
from eigenscope.measures.allocation import allocate


def drawn(seed: int, most: int = 12) -> tuple[list[np.ndarray], list[float], list[float]]:
    rng = np.random.default_rng(seed)
    spectra, costs, dense = [], [], []
    for _ in range(rng.integers(1, 7)):
        count = int(rng.integers(0, most))
        spectra.append(np.sort(rng.pareto(1.0, count) * 10.0 ** rng.uniform(-1, 1))[::-1])
        costs.append(float(rng.integers(1, 40)))
        dense.append(float(rng.uniform(0.3, 1.2)) * costs[-1] * max(count, 1))
    return spectra, costs, dense


def left_out(spectra, ranks) -> float:
    return sum(float((values[rank:] ** 2).sum()) for values, rank in zip(spectra, ranks, strict=True))


def price(ranks, costs, dense=None) -> float:
    whole = dense or [np.inf] * len(costs)
    return sum(min(rank * cost, limit) for rank, cost, limit in zip(ranks, costs, whole, strict=True))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("multiple_of", [1, 3])
def test_never_worse_than_uniform_ranks_never_above_the_budget_and_monotone_in_it(multiple_of, whole):
    for seed in range(60):
        spectra, costs, dense = drawn(seed)
        limits = dense if whole else None
        before = np.inf
        for budget in np.linspace(0.0, 1.1 * price([len(s) for s in spectra], costs), 25):
            ranks = allocate(spectra, costs, float(budget), multiple_of=multiple_of, dense=limits)
            assert price(ranks, costs, limits) <= budget * (1 + 1e-9)
            for rank, values, cost, limit in zip(ranks, spectra, costs, dense, strict=True):
                assert rank == len(values) or rank % multiple_of == 0
                assert not whole or rank == len(values) or rank * cost < limit
            error = left_out(spectra, ranks)
            assert error <= before * (1 + 1e-12), (seed, budget)
            before = error
            for uniform in range(0, 13, multiple_of):
                same = [min(uniform, len(values)) for values in spectra]
                if whole:
                    same = [len(v) if r * c >= d else r for r, v, c, d in zip(same, spectra, costs, dense, strict=True)]
                if price(same, costs, limits) <= budget:
                    assert error <= left_out(spectra, same) * (1 + 1e-12), (seed, budget, uniform)
        assert error <= 1e-12 * sum(float((v**2).sum()) for v in spectra), "a budget for everything buys everything"


def test_greedy_alone_would_lose_to_uniform_ranks():
    """σ²/c of 5, 4.5 and 4: buying in that order leaves one unit, and the second matrix out."""
    spectra = [np.sqrt([10.0, 9.0]), np.sqrt([12.0])]
    assert allocate(spectra, [2.0, 3.0], 5.0) == [1, 1]


def test_with_one_price_it_is_the_best_of_all_combinations():
    for seed in range(30):
        spectra, _, _ = drawn(seed, most=5)
        for budget in range(0, 12):
            ranks = allocate(spectra, [1.0] * len(spectra), float(budget))
            choices = itertools.product(*(range(len(values) + 1) for values in spectra))
            best = min(left_out(spectra, choice) for choice in choices if sum(choice) <= budget)
            assert left_out(spectra, ranks) == pytest.approx(best, rel=1e-12, abs=1e-300)


def test_with_many_prices_it_loses_less_than_one_step_to_the_best_of_all_combinations():
    worse = 0
    for seed in range(60):
        spectra, costs, _ = drawn(seed, most=4)
        budget = 0.5 * price([len(s) for s in spectra], costs)
        error = left_out(spectra, allocate(spectra, costs, budget))
        choices = itertools.product(*(range(len(values) + 1) for values in spectra))
        best = min(left_out(spectra, choice) for choice in choices if price(choice, costs) <= budget)
        assert error - best <= max((float(values[0]) ** 2 for values in spectra if len(values)), default=0.0)
        worse += error > best * (1 + 1e-9)
    assert worse < 20


def test_long_matrices_pay_for_their_length():
    flat = np.ones(8)
    assert allocate([flat, flat], [1.0, 10.0], 8.0) == [8, 0]


def test_past_the_break_even_a_matrix_is_bought_whole_or_the_budget_goes_elsewhere():
    flat, steep = np.ones(10), 10.0 ** -np.arange(10.0)
    # Flat: rank 5 costs what the whole costs, so nothing between is worth buying once it fits.
    assert allocate([flat, steep], [2.0, 2.0], 14.0, dense=[10.0, 10.0]) == [10, 2]
    assert allocate([flat, steep], [2.0, 2.1], 14.5) == [7, 0]
    # It does not fit whole: single steps are better than nothing.
    assert allocate([flat], [2.0], 9.0, dense=[10.0]) == [4]


def test_scale_and_nothing_and_zeros():
    spectra, costs, _ = drawn(3)
    expected = allocate(spectra, costs, 60.0)
    for scale in (1e-170, 1e170):
        assert allocate([values * scale for values in spectra], costs, 60.0) == expected
    assert allocate([], [], 5.0) == []
    assert allocate([np.zeros(4), np.array([2.0, 0.0, 0.0]), np.zeros(0)], [1.0, 1.0, 1.0], 50.0) == [0, 1, 0]
    assert allocate(spectra, costs, 0.0) == [0] * len(spectra)


def test_many_values_take_no_time_to_speak_of():
    """A step is looked at once: a quadratic search over these 400 000 would not come back."""
    rng = np.random.default_rng(0)
    spectra = [np.sort(rng.random(4000))[::-1] for _ in range(100)]
    ranks = allocate(spectra, [float(c) for c in rng.integers(100, 200, 100)], 3e7, multiple_of=8)
    assert sum(ranks) > 100_000


@pytest.mark.parametrize(
    "arguments",
    [
        ([np.ones(2)], [1.0, 2.0], 1.0), ([np.array([1.0, 2.0])], [1.0], 1.0), ([np.array([1.0, -2.0])], [1.0], 1.0),
        ([np.array([np.nan])], [1.0], 1.0), ([np.ones(2)], [0.0], 1.0), ([np.ones(2)], [1.0], -1.0),
        ([np.ones(2)], [1.0], float("nan")), ([np.ones(2)], [np.inf], 1.0),
    ],
)  # fmt: skip
def test_input_that_makes_no_sense_is_refused(arguments):
    with pytest.raises(InputError, match="allocate"):
        allocate(*arguments)
    with pytest.raises(InputError, match="multiple_of"):
        allocate([np.ones(2)], [1.0], 1.0, multiple_of=0)
