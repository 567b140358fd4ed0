"""The sentences of a compression: each verdict only where the figures carry it."""

from __future__ import annotations

import math

import pytest

from eigenscope.results import Estimate
from eigenscope.tasks.compress_findings import findings, judge, overfit
from eigenscope.tasks.compress_measure import HELD_OUT, TradeOff
from eigenscope.tasks.compress_rivals import Rival


def point(keep, predicted, value, stderr=0.001, **others):
    texts = {HELD_OUT: Estimate(value, stderr, 8)} | {name: Estimate(*pair, 8) for name, pair in others.items()}
    return TradeOff(keep, predicted, texts)


@pytest.mark.parametrize(
    ("predicted", "value", "stderr", "verdict"),
    [
        (1.0, 1.0, 0.1, "holds"), (1.0, 1.9, 0.01, "holds"), (1.0, 0.55, 0.01, "holds"),
        (1.0, 2.2, 0.01, "too low"), (1.0, 2.2, 0.2, "open"), (1.0, 0.4, 0.01, "too high"), (1.0, 0.4, 0.1, "open"),
        (1.0, -0.5, 0.1, "too high"), (1.0, 1.0, math.inf, "open"), (1e-9, 1e-9, 1e-11, "holds"), (0.01, 0.3, 0.01, "too low"),
    ],
)  # fmt: skip
def test_a_prediction_is_judged_where_the_error_of_the_measurement_allows(predicted, value, stderr, verdict):
    assert judge(predicted, Estimate(value, stderr, 8)) == verdict
    assert judge(1e6 * predicted, Estimate(1e6 * value, 1e6 * stderr, 8)) == verdict


def test_where_the_prediction_breaks_down_is_said_with_both_figures():
    curve = [point(0.5, 0.3, 1.2, 0.02), point(0.9, 0.02, 0.021), point(0.8, 0.1, 0.11), point(0.7, 0.15, 0.4)]
    said = findings(curve, point(0.85, 0.05, 0.06), [])
    assert said == [
        "Within a factor 2 of the measurement on held-out text the second-order prediction holds at "
        "0.9 (0.02 predicted, 0.021 ± 0.001 measured), 0.85 (0.05 predicted, 0.06 ± 0.001 measured), "
        "0.8 (0.1 predicted, 0.11 ± 0.001 measured).",
        "The second-order prediction breaks down, at less than half of what was measured, at "
        "0.7 (0.15 predicted, 0.4 ± 0.001 measured), 0.5 (0.3 predicted, 1.2 ± 0.02 measured).",
    ]
    assert findings([], point(0.9, 0.0, -0.1), []) == [], "nothing was predicted"
    (coarse,) = findings([], point(0.9, 0.02, -0.01, math.inf), [])
    assert coarse.startswith("The measurement is too coarse")
    assert "−0.01 ± ∞" in coarse
    (high,) = findings([], point(0.9, 0.2, 0.01), [])
    assert high.startswith("The second-order prediction is more than twice what was measured at 0.9")


def test_a_text_on_which_the_model_loses_more_is_named():
    (_, said) = findings([], point(0.8, 0.1, 0.1, unseen=(0.3, 0.01)), [])
    assert said.startswith("On unseen the loss added, 0.3 ± 0.01, is 3 × that on held-out text, 0.1 ± 0.001")
    assert len(findings([], point(0.8, 0.1, 0.1, unseen=(0.3, 0.2)), [])) == 1, "not told apart"
    assert len(findings([], point(0.8, 0.1, 0.1, unseen=(0.15, 0.001)), [])) == 1


def test_rivals_are_compared_at_the_same_share_on_the_last_text():
    ours = [point(0.8, 0.1, 0.1, unseen=(0.1, 0.01)), point(0.6, 0.5, 0.5, unseen=(0.5, 0.1))]
    theirs = [
        Rival("plain SVD", (point(0.799, 9.0, 9.0, unseen=(8.0, 0.5)), point(0.6, 9.0, 9.0, unseen=(7.0, 0.1)))),
        Rival("one-sided", (point(0.799, 0.4, 0.4, unseen=(0.4, 0.02)), point(0.6, 0.9, 0.9, unseen=(0.6, 0.1)))),
    ]
    *_, first, second = findings(ours, point(0.7, 0.2, 0.2, unseen=(0.2, 0.01)), theirs)
    assert first == (
        "At 0.8, on unseen, 0.1 ± 0.01 is added: 0.25 × what the best rival, one-sided with uniform ranks, adds, 0.4 ± 0.02."
    )
    assert "not told apart from what the best rival, one-sided" in second
    worse = [Rival("one-sided", (point(0.7, 0.0, 0.01, unseen=(0.01, 0.001)),))]
    assert "more than what the best rival" in findings([], point(0.7, 0.2, 0.2, unseen=(0.2, 0.01)), worse)[-1]


def test_overfitting_is_said():
    assert [*overfit(0.1, 0.09)] == []
    assert [*overfit(0.1, 0.0)] == []
    assert next(overfit(0.3, 0.1)).startswith("On held-out text the layers are predicted to lose 3.0 ×")
