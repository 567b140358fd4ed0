"""What is drawn beside a spectrum: the noise law, the tail and the histogram, against samples and other formulas."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from eigenscope.measures.noise import marchenko_pastur
from eigenscope.report import figures, laws
from eigenscope.report.curves import curve_of
from eigenscope.report.page_data import bytes_per_entry
from eigenscope.results import Record, Run, Value
from runs import ODD_RUNS, PLANTED, measured, record

TALL, WIDE, SQUARE = (300, 100), (80, 320), (200, 200)


def noise_record(shape: tuple[int, int], level: float, seed: int = 3, spikes: int = 0) -> Record:
    generator = np.random.default_rng(seed)
    matrix = level * generator.standard_normal(shape)
    for _ in range(spikes):
        left, right = generator.standard_normal(shape[0]), generator.standard_normal(shape[1])
        matrix += 6.0 * level * np.outer(left, right) / math.sqrt(min(shape))
    return measured("w", 0, "q", np.linalg.svd(matrix, compute_uv=False), shape)


@pytest.mark.parametrize("shape", [TALL, WIDE, SQUARE])
@pytest.mark.parametrize("level", [1e-4, 1.0])
def test_the_density_is_that_of_the_values_of_noise(shape: tuple[int, int], level: float) -> None:
    each = noise_record(shape, level)
    drawn, shown = laws.bulk_density(each), laws.histogram(each)
    assert drawn is not None
    assert shown is not None
    assert each.values is not None
    sigma, density = drawn
    assert float(np.trapezoid(density, sigma)) == pytest.approx(1.0, abs=5e-3)
    expected = np.interp(shown.middles, sigma, density, left=0.0, right=0.0) * shown.width * len(each.values)
    # The eigenvalues of noise repel each other: an interval's count is off by about 1, not by its square root.
    assert np.abs(expected - np.array(shown.counts)).max() < 4.0
    # The distribution function that the reading's distance is measured from is its integral.
    points, cumulative = marchenko_pastur(min(shape), max(shape))
    scale = float(str(each.readings["noise_level"])) * math.sqrt(max(shape))
    middle = float(np.interp(0.5, cumulative, points))
    inside = sigma <= scale * math.sqrt(middle)
    cut = np.append(sigma[inside], scale * math.sqrt(middle))
    heights = np.append(density[inside], np.interp(cut[-1], sigma, density))
    assert float(np.trapezoid(heights, cut)) == pytest.approx(0.5, abs=0.01)


def test_spikes_leave_their_share_out_of_the_density() -> None:
    each = noise_record(TALL, 1.0, spikes=5)
    drawn, shown = laws.bulk_density(each), laws.histogram(each)
    assert each.readings["noise_rank"] == 5
    assert drawn is not None
    assert shown is not None
    assert float(np.trapezoid(drawn[1], drawn[0])) == pytest.approx(95 / 100, abs=5e-3)
    edge = float(str(each.readings["noise_edge"]))
    above = (
        sum(count for middle, count in zip(shown.middles, shown.counts, strict=True) if middle > edge) + shown.beyond
    )
    assert above == 5
    assert laws.noise_note(each).startswith("5 of 100 values lie above the noise edge ")


def test_the_law_ends_just_below_the_edge_whether_the_bulk_is_noise_or_not() -> None:
    generator = np.random.default_rng(8)
    heavy = np.linalg.svd(generator.standard_t(3.0, (384, 384)) * generator.gamma(1.0, 1.0, 384), compute_uv=False)
    others = [
        measured("w", 0, "q", heavy, (384, 384)),
        noise_record(SQUARE, 1.0, spikes=60),
        noise_record(TALL, 2.0, spikes=9),
    ]
    verdicts = set()
    for each in [*others, *(r for r in PLANTED.records if r.readings["noise_edge"] is not None)]:
        drawn = laws.bulk_density(each)
        assert drawn is not None
        edge, rank = float(str(each.readings["noise_edge"])), int(str(each.readings["noise_rank"]))
        assert 0.9 * edge < drawn[0][-1] <= edge
        share = 1.0 - rank / len(np.asarray(each.values))
        assert float(np.trapezoid(drawn[1], drawn[0])) == pytest.approx(share, abs=5e-3)
        verdicts.add(str(each.readings["noise_verdict"]).split(":")[0])
    assert {"bulk is not noise", "noise bulk"} <= verdicts


@pytest.mark.parametrize("record_of", [*PLANTED.records, *(run.records[0] for run in ODD_RUNS.values() if run.records)])
def test_the_histogram_counts_every_value_once(record_of: Record) -> None:
    shown = laws.histogram(record_of)
    if shown is None:
        assert record_of.values is None or not record_of.values.any()
        return
    values = np.asarray(record_of.values)
    top = shown.low + len(shown.counts) * shown.width
    assert sum(shown.counts) + shown.beyond == len(values)
    assert shown.beyond == np.count_nonzero(values > top * (1 + 1e-9))
    edge = laws.number(record_of, "noise_edge")
    if edge is not None and shown.low < edge < top:
        steps = (edge - shown.low) / shown.width
        assert steps == pytest.approx(round(steps), abs=1e-9)


def test_the_tail_line_is_that_of_the_exponent() -> None:
    alpha, size = 3.5, 20_000
    # λ = σ² at the quantiles of a Pareto law of that exponent above λ = 4.
    eigenvalues = 4.0 * (1.0 - (np.arange(size) + 0.5) / size) ** (-1.0 / (alpha - 1.0))
    each = record("w", 0, "q", np.sqrt(eigenvalues)[::-1].copy(), alpha=alpha, alpha_cutoff=2.0, alpha_tail=size)
    line = laws.tail_line(each)
    assert line is not None
    assert each.values is not None
    places = np.round(line[0]).astype(int)
    inside = (places > 20) & (places < size)
    np.testing.assert_allclose(line[1][inside], each.values[places[inside] - 1], rtol=0.02)


@pytest.mark.parametrize(
    "changes", [{"alpha": None}, {"alpha": 1.0}, {"alpha": math.inf}, {"alpha": 1.0 + 1e-9}, {"alpha_tail": None}, {"alpha_tail": 1}]
)  # fmt: skip
def test_a_tail_that_was_not_fitted_is_not_drawn(changes: dict[str, Value]) -> None:
    known: dict[str, Value] = {"alpha": 3.0, "alpha_cutoff": 1.0, "alpha_tail": 10}
    each = record("w", 0, "q", np.linspace(3.0, 1.0, 32), **{**known, **changes})
    assert laws.tail_line(each) is None


def test_where_no_law_is_drawn_the_verdict_says_why() -> None:
    few = ODD_RUNS["three values"].records[0]
    assert laws.bulk_density(few) is None
    assert laws.noise_note(few) == f"No law of noise is drawn: {few.readings['noise_verdict']}."
    figure = figures.spectrum(ODD_RUNS["three values"], "w")
    assert figure.data[5].x is None
    assert str(few.readings["noise_verdict"]) in figure.layout.annotations[0].text


def test_the_error_of_a_rank_does_not_vanish_in_rounding() -> None:
    values = np.array([1.0, 1e-3, 1e-9, 1e-12])
    curve = curve_of(Record("w", {"rows": 4, "cols": 4}, values))
    assert curve is not None
    expected = [math.sqrt(math.fsum(values[k:] ** 2)) for k in range(1, 5)]
    np.testing.assert_allclose(curve.error, np.array(expected) / np.linalg.norm(values), rtol=1e-12)
    np.testing.assert_allclose(curve.spectral_error, [1e-3, 1e-9, 1e-12, 0.0], rtol=1e-15)


def test_a_partial_spectrum_does_not_claim_the_error_it_cannot_know() -> None:
    curve = curve_of(record("w", 0, "q", np.array([2.0, 1.0]), frobenius=math.sqrt(10.0)))
    assert curve is not None
    np.testing.assert_allclose(curve.error, np.sqrt([0.6, 0.5]))
    assert curve.spectral_error[0] == 0.5
    assert math.isnan(curve.spectral_error[1])


@pytest.mark.parametrize(
    ("readings", "expected"),
    [
        ({"params_saved_90": 5000, "bytes_saved_90": 10_000}, 2.0),
        ({"params_saved_90": -4000, "bytes_saved_90": -2500}, 0.625),
        ({"params_saved_90": 0, "bytes_saved_90": 0, "params_saved_95": 800, "bytes_saved_95": 3200}, 4.0),
        ({"params_saved_90": 3, "bytes_saved_90": 1, "dtype": "Q4_1"}, None),
        ({"dtype": "bfloat16"}, 2.0),
        ({}, None),
    ],
)  # fmt: skip
def test_the_bytes_of_an_entry_follow_from_what_a_rank_saves(
    readings: dict[str, Value], expected: float | None
) -> None:
    assert bytes_per_entry(Record("w", readings)) == expected


def test_an_exponent_without_evidence_is_in_brackets_on_the_map_and_the_reason_hovers_over_it() -> None:
    verdicts = {r.name: str(r.readings["alpha_verdict"]) for r in PLANTED.records}
    figure = figures.heat_map(PLANTED, "alpha")
    _, colored, texts = figure.data
    shown = dict(zip(zip(texts.y, texts.x, strict=True), texts.text, strict=True))
    seen = set()
    for each in PLANTED.records:
        role, layer = str(each.readings["role"]), str(each.readings["layer"])
        hover = colored.hovertext[list(colored.y).index(role)][list(colored.x).index(layer)]
        held = verdicts[each.name] == "power law"
        seen.add(held)
        assert shown[role, layer].startswith("(") != held
        assert (verdicts[each.name][:20] in hover) != held
    assert seen == {True, False}
    assert not any("(" in text for text in figures.heat_map(PLANTED, "noise_rank").data[2].text)


def test_the_notebook_dashes_a_tail_that_the_evidence_does_not_carry() -> None:
    law = next(r for r in PLANTED.records if r.readings["alpha_verdict"] == "power law")
    doubted = replace(law, readings={**law.readings, "alpha_verdict": "not a power law: a test"})
    lines = [figures.spectrum(Run("scan", "s", (each,), ()), law.name).data[3] for each in (law, doubted)]
    assert [(line.line.dash, line.opacity) for line in lines] == [("solid", None), ("dash", 0.45)]
