"""Runs side by side: matching by name, changes of readings, and what is said about how the runs were made."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eigenscope.columns import BY_NAME
from eigenscope.errors import InputError
from eigenscope.report import compare, figures, html
from eigenscope.report.page_data import page_data
from eigenscope.results import Run, Value
from runs import EMPTY, PLANTED, RUN, changed, record

LOG, LINEAR, COUNT, SHARE = (BY_NAME[name] for name in ("condition", "stable_rank", "rank_90", "signal_energy"))
TUNED = changed(PLANTED, 2.0)


def test_matrices_are_matched_by_name_whatever_their_order() -> None:
    shuffled = replace(TUNED, records=TUNED.records[::-1])
    pairing = compare.pair(PLANTED, shuffled)
    assert pairing.matched == len(PLANTED.records) - 1
    for each, partner in zip(PLANTED.records[1:], pairing.partners[1:], strict=True):
        assert partner is not None
        assert shuffled.records[partner].name == each.name
    assert pairing.only_first == (PLANTED.records[0].name,)
    assert pairing.only_second == ("lm_head.<b>weight</b>",)
    assert pairing.reshaped == ()
    grown = replace(PLANTED, records=tuple(replace(r, readings={**r.readings, "rows": 7}) for r in PLANTED.records[:2]))
    assert compare.pair(PLANTED, grown).reshaped == tuple(r.name for r in PLANTED.records[:2])


@pytest.mark.parametrize(
    ("column", "before", "after", "expected", "shown"),
    [
        (LOG, 10.0, 1000.0, 2.0, "×100.0"), (LOG, 8.0, 4.0, -math.log10(2.0), "×0.5000"), (LOG, 3.0, 3.0, 0.0, "×1.000"),
        (LOG, math.inf, math.inf, 0.0, "×1.000"), (LOG, 10.0, math.inf, math.inf, "×∞"), (LOG, math.inf, 10.0, -math.inf, "×0"),
        (LOG, 0.0, 2.0, math.inf, "×∞"), (LOG, 2.0, 0.0, -math.inf, "×0"), (LOG, 1.0, None, None, "–"), (LOG, None, 1.0, None, "–"),
        (LOG, math.nan, 1.0, None, "–"), (LOG, 1e-300, 1e300, 600.0, "×∞"), (LINEAR, 3.0, 4.5, 1.5, "+1.500"),
        (LINEAR, 4.5, 3.0, -1.5, "−1.500"), (LINEAR, 0.0, 0.0, 0.0, "±0"), (COUNT, 12, 10, -2.0, "−2"),
        (COUNT, 10, 1234, 1224.0, "+1,224"), (SHARE, 0.25, 0.5, 0.25, "+25.0 %"), (LINEAR, "text", 1.0, None, "–"),
    ],
)  # fmt: skip
def test_a_change(column: Any, before: Value, after: Value, expected: float | None, shown: str) -> None:
    amount = compare.change(column, before, after)
    assert amount == (None if expected is None else pytest.approx(expected, rel=1e-12))
    assert compare.format_change(column, amount) == shown


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_a_change_there_and_back_is_none(first: float, second: float) -> None:
    for column in (LOG, LINEAR):
        there, back = compare.change(column, first, second), compare.change(column, second, first)
        assert there is not None
        assert back is not None
        assert there == -back


def test_versions_and_options_that_differ_are_named_and_circumstances_are_not() -> None:
    base = replace(
        PLANTED, provenance={"eigenscope": "0.2.0", "seed": 0, "dtype": "float64", "wall seconds": 1, "machine": "a"}
    )
    same = replace(
        base, provenance={**base.provenance, "wall seconds": 99, "machine": "b", "started": "today", "torch": "3"}
    )
    assert compare.differences([base, same]) == []
    older = replace(base, provenance={**base.provenance, "eigenscope": "0.1.0", "dtype": "float32"})
    assert compare.differences([older, base, same]) == [
        "A was made by 0.1.0, B by 0.2.0, C by 0.2.0: readings may differ for that reason.",
        "The option “dtype” differs: A float32, B float64, C float64.",
    ]
    # An option that one version does not have is no difference of options.
    assert compare.differences([base, replace(base, provenance={**base.provenance, "tail_tests": 0})]) == []
    assert "an unknown version" in compare.differences([base, EMPTY])[0]


def test_runs_have_letters() -> None:
    names = compare.letters(60)
    assert names[:3] == ["A", "B", "C"]
    assert len(set(names)) == 60


def test_the_heat_map_of_a_change_is_centred_at_none() -> None:
    figure = figures.change(PLANTED, TUNED, "sigma_max")
    blank, colored, texts = figure.data
    assert colored.zmin == -colored.zmax
    assert [row for row in colored.z for row in row].count(None) == 1
    np.testing.assert_allclose([z for row in colored.z for z in row if z is not None], math.log10(2.0))
    assert set(texts.text) == {"×2"}
    q, first = list(colored.y).index("q"), list(colored.x).index("0")
    assert colored.z[q][first] is None
    assert blank.z[q][first] == 0
    assert "not in both" in blank.hovertext[q][first]
    assert "11 matrices in both, 1 only in the first, 1 only in the second" in figure.layout.title.subtitle.text


def test_one_large_change_does_not_take_the_colours_of_all_others() -> None:
    before = [record(f"w{i}", i, "q", None, condition=100.0) for i in range(20)]
    after = [record(f"w{i}", i, "q", None, condition=1e12 if i == 19 else 100.0 + i) for i in range(20)]
    colored = figures.change(Run("scan", "a", tuple(before), ()), Run("scan", "b", tuple(after), ()), "condition").data[
        1
    ]
    assert colored.zmax < 1.0
    assert colored.z[0][19] == colored.zmax
    labels = list(colored.colorbar.ticktext)
    assert labels[-1].startswith("≥ ×")
    assert [label for label in labels if label[0] in "≤≥"] == labels[-1:]  # nothing lies beyond the other end
    assert "×1" in labels


@pytest.mark.parametrize("factor", [1.0, 1.0 + 1e-12, 1e300, 1e-300])
@pytest.mark.parametrize("name", ["condition", "stable_rank"])
def test_the_colours_of_a_change_have_a_range_whatever_it_is(factor: float, name: str) -> None:
    before = Run("scan", "a", (record("w", 0, "q", None, **{name: 3.0}),), ())
    after = Run("scan", "b", (record("w", 0, "q", None, **{name: 3.0 * factor}),), ())
    colored = figures.change(before, after, name).data[1]
    assert colored.zmin < 0.0 < colored.zmax
    assert colored.zmin <= colored.z[0][0] <= colored.zmax
    assert all(colored.zmin <= tick <= colored.zmax for tick in colored.colorbar.tickvals)
    assert 0.0 in colored.colorbar.tickvals


def test_a_reading_over_runs_has_one_line_for_each_matrix() -> None:
    runs = [PLANTED, TUNED, changed(PLANTED, 4.0, source="models/later")]
    figure = figures.over_runs(runs, "sigma_max", "q")
    mine = [r for r in PLANTED.records if r.readings["role"] == "q"]
    assert len(figure.data) == len(mine)
    for line, each in zip(figure.data, mine, strict=True):
        first = float(str(each.readings["sigma_max"]))
        gone = each.name == PLANTED.records[0].name
        assert list(line.y) == ([first, None, None] if gone else [first, 2.0 * first, 4.0 * first])
    assert len({line.line.color for line in figure.data}) == len(mine)
    assert list(figure.data[0].x) == ["A: planted", "B: changed", "C: later"]
    assert figure.layout.yaxis.type == "log"


@pytest.mark.parametrize(
    ("call", "near"),
    [
        (lambda: figures.change(PLANTED, TUNED, "sigma_mx"), "sigma_max"),
        (lambda: figures.change(PLANTED, EMPTY, "sigma_max"), "in both runs"),
        (lambda: figures.change(RUN, PLANTED, "condition"), "in both runs"),
        (lambda: figures.over_runs([], "sigma_max"), "no runs"),
        (lambda: figures.over_runs([PLANTED], "sigma_max", "ups"), "up"),
        (lambda: figures.over_runs([EMPTY], "sigma_max"), "no matrix of the run has"),
    ],
)
def test_what_cannot_be_compared_is_refused(call: Any, near: str) -> None:
    with pytest.raises(InputError, match=near):
        call()


def test_the_page_lists_what_only_one_run_has() -> None:
    page = html.render(PLANTED, [TUNED])
    assert "<li>lm_head.&lt;b&gt;weight&lt;/b&gt;</li>" in page
    assert f"<li>{PLANTED.records[0].name}</li>" in page
    assert "11 matrices in both A and B" in page
    assert 'id="compare"' not in html.render(PLANTED)


def test_the_data_of_the_other_run_are_in_the_order_of_the_first() -> None:
    (other,) = page_data(PLANTED, [TUNED])["others"]
    reading = other["readings"]["sigma_max"]
    assert reading["values"][0] is None
    assert reading["said"] == ["–", *["×2.000"] * 11]
    for each, value, curve in zip(PLANTED.records[1:], reading["values"][1:], other["curves"]["rows"][1:], strict=True):
        assert value == pytest.approx(2.0 * float(str(each.readings["sigma_max"])), rel=1e-4)
        assert each.values is not None
        assert curve["largest"] == pytest.approx(2.0 * float(np.max(each.values)), rel=1e-6)
