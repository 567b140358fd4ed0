"""What ranks cost and lose, and how a budget is spent: properties, and brute force where it can be had."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eigenscope.errors import InputError
from eigenscope.measures.rank_curves import (
    cut_losses,
    factored_cost,
    interpolative_cost,
    rank_curve,
    spend,
    spend_for_loss,
    total,
    uniform_ranks,
)


@st.composite
def layers(draw):
    """A few layers with arbitrary decreasing values."""
    found = []
    for _ in range(draw(st.integers(1, 4))):
        rows, cols = draw(st.integers(2, 9)), draw(st.integers(2, 9))
        raw = draw(st.lists(st.floats(0.0, 10.0), min_size=min(rows, cols), max_size=min(rows, cols)))
        found.append((np.sort(np.array(raw))[::-1], rows, cols))
    return found


def curves_of(found, **options):
    return [rank_curve(cut_losses(values), rows, cols, **options) for values, rows, cols in found]


@settings(deadline=None, max_examples=60)
@given(layers(), st.floats(0.0, 1.0))
def test_budget_is_never_exceeded_and_never_worse_than_uniform(found, share):
    curves = curves_of(found)
    dense = sum(curve.costs[-1] for curve in curves)
    budget = max(share * dense, sum(curve.costs[0] for curve in curves))
    cost, loss = total(curves, spend(curves, budget))
    assert cost <= budget
    ours, theirs = loss, total(curves, uniform_ranks(curves, share))
    if theirs[0] <= budget:
        # What the last step of one layer may leave: nothing is promised beyond it.
        slack = max(float(curve.losses[a] - curve.losses[b]) for curve in curves for a, b in itertools.pairwise(curve.corners)) if any(len(c.corners) > 1 for c in curves) else 0.0  # fmt: skip
        assert ours <= theirs[1] + slack + 1e-9


@settings(deadline=None, max_examples=60)
@given(layers(), st.lists(st.floats(0.0, 1.0), min_size=2, max_size=6))
def test_more_budget_never_loses_more(found, shares):
    curves = curves_of(found)
    least, most = sum(curve.costs[0] for curve in curves), sum(curve.costs[-1] for curve in curves)
    losses = [total(curves, spend(curves, least + share * (most - least)))[1] for share in sorted(shares)]
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(losses))


@settings(deadline=None, max_examples=60)
@given(layers(), st.floats(0.0, 50.0))
def test_promised_loss_is_kept_and_none_is_free(found, loss):
    curves = curves_of(found)
    ranks = spend_for_loss(curves, loss)
    assert total(curves, ranks)[1] <= loss + 1e-9


@pytest.mark.parametrize("seed", range(6))
def test_threshold_is_optimal_where_the_hull_meets_the_budget(seed):
    rng = np.random.default_rng(seed)
    found = [(np.sort(rng.exponential(size=min(m, n)))[::-1], m, n) for m, n in ((4, 6), (5, 5), (7, 3))]
    curves = curves_of(found)
    every = [list(curve.ranks) for curve in curves]
    for ranks in itertools.product(*every):
        cost, loss = total(curves, ranks)
        spent = spend(curves, max(cost, sum(curve.costs[0] for curve in curves)))
        spent_cost, spent_loss = total(curves, spent)
        on_hull = all(int(np.searchsorted(c.ranks, r)) in c.corners for c, r in zip(curves, spent, strict=True))
        if on_hull and spent_cost == cost:
            assert spent_loss <= loss + 1e-12


def test_costs_by_hand():
    assert interpolative_cost(3, 5, 7) == 27
    assert factored_cost(3, 5, 7) == 36
    assert interpolative_cost(5, 5, 7) == 35
    curve = rank_curve(cut_losses(np.array([3.0, 2.0, 1.0])), 3, 4)
    assert curve.costs.tolist() == [6.0, 10.0, 12.0]
    assert curve.losses.tolist() == [2.5, 0.5, 0.0]
    plain = rank_curve(cut_losses(np.array([3.0, 2.0, 1.0])), 3, 4, plain=True)
    assert plain.costs.tolist() == [7.0, 12.0]


def test_exact_low_rank_is_found_and_nothing_spent_beyond_it():
    values = np.array([2.0, 1.0, 0.0, 0.0, 0.0])
    curves = [rank_curve(cut_losses(values), 5, 8)]
    assert spend_for_loss(curves, 0.0) == [2]
    assert spend(curves, 40.0) == [2]


def test_ranks_in_multiples():
    curve = rank_curve(cut_losses(np.linspace(2, 1, 20)), 20, 30, multiple=8)
    assert curve.ranks.tolist() == [8, 16, 20]


def test_bad_curves_and_budgets_are_refused():
    with pytest.raises(InputError, match="3 losses"):
        rank_curve(np.zeros(3), 5, 5)
    with pytest.raises(InputError, match="finite"):
        rank_curve(np.array([np.nan, 1.0, 0.0]), 2, 2)
    curve = rank_curve(cut_losses(np.array([3.0, 2.0])), 2, 2)
    with pytest.raises(InputError, match="smallest ranks"):
        spend([curve], 1.0)
    with pytest.raises(InputError, match="0 or more"):
        spend_for_loss([curve], -1.0)
    with pytest.raises(InputError, match="rank 7"):
        total([curve], [7])
