"""The page of a compression: what it says, and how it looks in a browser. The latter skipped where no Chromium is installed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eigenscope.report import compress_figures, compress_page
from eigenscope.report.compress_text import print_compressed
from test_page import CHROMIUM, PHONE, Opened, browser, open_file, through_the_page

__all__ = ["browser", "open_file"]
DARK = "window.getComputedStyle(document.body).backgroundColor"


def estimate(value: float, stderr: float) -> dict[str, Any]:
    return {"value": value, "stderr": stderr, "samples": 8, "products": 0}


def point(keep: float, predicted: float, held: float, unseen: float) -> dict[str, Any]:
    measured = {"held-out text": estimate(held, 0.01), "<b>unseen</b> $x$": estimate(unseen, 0.02)}
    return {"keep": keep, "predicted": predicted, "measured": measured}


def layer(place: int, role: str, rank: int, predicted: float) -> dict[str, Any]:
    share = min(1.0, rank * (64 - rank) / 1024)
    return {
        "name": f"layers.{place}.{role}<i>", "layer": place, "role": role, "rows": 32, "cols": 32, "rank": rank,
        "parameters": int(1024 * share), "share": share, "predicted": predicted, "fitted": 0.9 * predicted,
        "growth": 1.25, "note": "" if rank < 32 else "no calibration token reached it",
    }  # fmt: skip


CONTENT: dict[str, Any] = {
    "source": "models/<b>small</b>", "unit": "nats per token", "parameters": 4321, "dense parameters": 6144,
    "keep": 0.7033, "allocation": "global", "predicted": 0.1, "predicted on the fitted text": 0.09,
    "dense loss": {"held-out text": 3.0, "<b>unseen</b> $x$": 3.5},
    "measured": {"held-out text": estimate(0.12, 0.01), "<b>unseen</b> $x$": estimate(0.25, 0.02)},
    "bytes": [100e6, 75e6], "speed": {"prompt": [900.0, 1100.0], "generation": [20.0, 26.0], "peak memory": [120e6, 90e6]},
    "recovery": {}, "findings": ["It breaks down at <script>alert(1)</script> 0.5."],
    "trade-off": [point(0.9, 0.01, 0.012, -0.005), point(0.5, 0.5, 1.4, 2.0)],
    "rivals": [{"name": name, "points": [point(0.9, 1.0, 2.0 + i, 3.0), point(0.5, 3.0, 6.0 + i, 7.0)]}
               for i, name in enumerate(("plain SVD", "ASVD scaling", "one-sided whitening"))],
    "left dense": {"lm_head": "its weight is tied to another layer's"}, "notes": ["a <em>note</em>"],
    "made by": {"eigenscope": "0.1.0", "keep": 0.7, "include": [], "second_pass": False},
    "layers": [layer(i, role, rank, lost) for i, (role, rank, lost) in enumerate(
        (("q", 10, 0.02), ("q", 12, 0.03), ("q", 32, 0.0), ("up", 8, 0.001), ("up", 9, 0.05), ("up", 32, 0.0)))],
}  # fmt: skip


def alone() -> dict[str, Any]:
    """With nothing but what every compression has."""
    content = copy.deepcopy(CONTENT)
    content |= {"trade-off": [], "rivals": [], "speed": {}, "findings": [], "notes": [], "left dense": {}}
    content["measured"] = {"held-out text": estimate(-0.001, float("inf"))}
    return content


# ---------------------------------------------------------------- what it says


def test_figures_hold_every_point_with_its_error_and_the_prediction() -> None:
    figure = compress_figures.curve_figure(CONTENT, "held-out text")
    assert figure is not None
    by_name = {trace["name"]: trace for trace in figure["data"]}
    assert list(by_name) == [
        "this model", "measured", "predicted, on held-out text", "plain SVD, uniform", "ASVD scaling, uniform",
        "one-sided whitening, uniform",
    ]  # fmt: skip
    assert (by_name["this model"]["x"], by_name["this model"]["y"]) == ([0.7033], [0.12])
    assert (by_name["measured"]["x"], by_name["measured"]["y"]) == ([0.5, 0.9], [1.4, 0.012])
    assert by_name["measured"]["error_y"]["array"] == [0.02, 0.02]
    assert by_name["measured"]["error_y"]["arrayminus"] == [0.02, pytest.approx(0.0108)], "no bar reaches 0"
    predicted = by_name["predicted, on held-out text"]
    assert (predicted["x"], predicted["y"]) == ([0.5, 0.7033, 0.9], [0.5, 0.1, 0.01])
    assert by_name["plain SVD, uniform"]["y"] == [6.0, 2.0]
    assert figure["layout"]["yaxis"]["type"] == "log"
    assert len({(t["marker"]["color"], t["marker"]["symbol"]) for t in figure["data"]}) == len(figure["data"])


def test_a_loss_that_is_not_above_zero_is_shown_by_what_it_is_below() -> None:
    figure = compress_figures.curve_figure(CONTENT, "<b>unseen</b> $x$")
    assert figure is not None
    (below,) = (trace for trace in figure["data"] if trace["marker"]["symbol"] == "triangle-down-open")
    assert (below["x"], below["y"]) == ([0.9], [pytest.approx(0.035)])
    assert all(y > 0.0 for trace in figure["data"] for y in trace["y"])


def test_maps_of_layers_hold_shares_and_losses_and_grey_what_stays_dense() -> None:
    kept = compress_figures.layer_figure(CONTENT, compress_figures.KEPT)["data"]
    assert kept[1]["y"] == ["q", "up"]
    assert kept[1]["z"][0][:3] == pytest.approx([10 * 54 / 1024, 12 * 52 / 1024, 1.0])
    lost = compress_figures.layer_figure(CONTENT, compress_figures.LOST)["data"]
    assert lost[0]["z"][0][2] == 0, "grey"
    assert lost[1]["z"][0][2] is None
    assert 10 ** lost[1]["z"][1][4] == pytest.approx(0.05)
    assert "at rank 9" in lost[1]["customdata"][1][4]
    assert "no calibration token reached it" in lost[1]["hovertext"][0][2]


def test_page_holds_everything_and_escapes_all_of_it() -> None:
    page = compress_page.render(CONTENT)
    assert page.count("<script") == 3  # data, Plotly, ours
    assert "<em>note" not in page
    assert "models/&lt;b&gt;small" in page
    for shown in (
        "70.3 %",
        "0.1200 ± 0.010",
        "nats per token",
        "90.0 MB",
        "0.750 ×",
        "26.0 tokens/s",
        "1.284",
        "lm_head",
    ):
        assert shown in page, shown
    for name in ("held-out text", "plain SVD", "ASVD scaling", "one-sided whitening"):
        assert name in page
    assert "Infinity" not in page.partition('id="data">')[2].partition("</script>")[0]


def test_page_of_a_single_figure_has_no_curve_and_its_error_is_unknown() -> None:
    page = compress_page.render(alone())
    assert "Loss against size" not in page
    assert "−0.001000 ± ∞" in page
    assert "Findings" not in page
    json.loads(page.partition('id="data">')[2].partition("</script>")[0])


def test_terminal_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    print_compressed(CONTENT, width=200)
    printed = capsys.readouterr().out
    assert "ASVD scaling" in printed
    assert "1. It breaks down" in printed
    assert "26.0 tokens/s, dense 20.0 tokens/s: 1.30 ×" in printed
    assert "90.0 MB, dense 120.0 MB: 0.750 ×" in printed
    print_compressed(alone(), width=200)
    assert "method" not in capsys.readouterr().out


# ---------------------------------------------------------------- in a browser


@pytest.fixture
def show(open_file: Callable[..., Opened], tmp_path: Path) -> Callable[..., Opened]:
    """Writes the page of a compression and opens it."""

    def show_page(content: dict[str, Any] = CONTENT, **seen: Any) -> Opened:
        compress_page.write_page(content, tmp_path / "page.html")
        return open_file(tmp_path / "page.html", **seen)

    return show_page


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no browser: install chromium to test the page in one")


@needs_browser
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, 1280])
def test_page_fits_and_draws_all_its_figures(show: Callable[..., Opened], width: int, theme: str) -> None:
    opened = show(width=width, theme=theme)
    through_the_page(opened)
    assert opened.tab.evaluate("document.documentElement.scrollWidth") == width
    names = list(compress_figures.available(CONTENT))
    assert names == ["curve-0", "curve-1", "kept", "lost"]
    for name, (_, figure) in compress_figures.available(CONTENT).items():
        drawn = opened.traces(f"figure-{name}")
        assert len(drawn) == len(figure["data"])
        assert drawn[1]["x"] == figure["data"][1]["x"]
    assert opened.tab.evaluate("document.querySelectorAll('b, em, i').length") == 1  # ours alone
    assert opened.tab.locator("#layers tbody tr").count() == 6
    assert opened.tab.locator("#sizes tbody tr").count() == 8
    line = opened.traces("figure-curve-0")[1]["line"]["color"]
    assert line == ("#0b5fb0" if theme == "light" else compress_figures.ON_DARK["#0b5fb0"])


@needs_browser
def test_figures_follow_the_theme_while_the_page_is_open(show: Callable[..., Opened]) -> None:
    opened = show()
    before = opened.traces("figure-kept")[0]["colorscale"]
    opened.tab.emulate_media(color_scheme="dark")
    opened.until(f"{DARK} === 'rgb(18, 21, 24)'")
    assert opened.traces("figure-kept")[0]["colorscale"] != before
    assert opened.traces("figure-curve-0")[0]["marker"]["color"] == "#e6e9ec"


@needs_browser
def test_page_without_a_curve_works(show: Callable[..., Opened]) -> None:
    opened = show(alone(), width=PHONE)
    through_the_page(opened)
    assert opened.tab.locator(".wide-figure").count() == 2
    assert opened.tab.evaluate("document.documentElement.scrollWidth") == PHONE
