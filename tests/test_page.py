"""The page in a browser: what a person clicks, types and sees. Skipped where no Chromium is installed."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eigenscope.report import figures
from eigenscope.report.cells import visible
from eigenscope.report.html import write_page
from eigenscope.results import Run
from runs import ODD_RUNS, PLANTED, changed, measured

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no browser: install chromium to test the page in one")


TUNED, LATER = changed(PLANTED, 2.0, version="0.1.0"), changed(PLANTED, 4.0, source="models/later")
PHONE, DESK = 390, 1280


class Opened:
    """A page in the browser, and everything that it did wrong."""

    def __init__(self, tab: Any) -> None:
        self.tab = tab
        self.wrongs: list[str] = []
        tab.on("console", lambda message: self.wrongs.append(f"console: {message.text}"))
        tab.on("pageerror", lambda error: self.wrongs.append(f"error: {error}"))
        tab.on("request", lambda request: self._seen(request.url))
        tab.add_init_script(
            "window.violations = [];"
            "document.addEventListener('securitypolicyviolation', (e) => window.violations.push(e.violatedDirective));"
        )

    def _seen(self, url: str) -> None:
        if not url.startswith(("file:", "data:", "blob:")):
            self.wrongs.append(f"request: {url}")

    def until(self, condition: str) -> None:
        """Wait for a condition; the page's policy forbids Playwright's own way of doing that."""
        for _ in range(200):
            if self.tab.evaluate(condition):
                return
            self.tab.wait_for_timeout(25)
        raise AssertionError(f"never came true: {condition}")

    def text(self, selector: str) -> str:
        return str(self.tab.locator(selector).inner_text())

    def number(self, selector: str) -> float:
        """The first number of a text; a per cent as a share."""
        shown = self.text(selector)
        found = re.search(r"[\d,.]+(e[-−]?\d+)?", shown)
        assert found, shown
        value = float(found[0].replace(",", "").replace("−", "-"))
        return value / 100.0 if "%" in shown.split("\n")[0] else value

    def traces(self, figure: str) -> list[dict[str, Any]]:
        """The traces of a figure as Plotly holds them, scrolled to where they are drawn."""
        self.tab.locator(f"#{figure}").scroll_into_view_if_needed()
        self.until(f"document.getElementById('{figure}').data !== undefined")
        return list(self.tab.evaluate(f"JSON.parse(JSON.stringify(document.getElementById('{figure}').data))"))

    def click_cell(self, figure: str, role: str, layer: str) -> None:
        """Click into the middle of a cell of a heat map."""
        self.traces(figure)
        place = self.tab.evaluate(
            """([id, role, layer]) => {
                const map = document.getElementById(id);
                const { xaxis: x, yaxis: y } = map._fullLayout;
                const [i, j] = [map.data[1].x.indexOf(layer), map.data[1].y.indexOf(role)];
                const box = map.querySelector(".nsewdrag").getBoundingClientRect();
                return [box.x + x.c2p(i), box.y + y.c2p(j)];
            }""",
            [figure, role, layer],
        )
        self.tab.mouse.move(*place)
        self.tab.mouse.click(*place)

    def chosen(self) -> str:
        return str(self.tab.locator("#name option:checked").inner_text())


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM)
        yield opened
        opened.close()


@pytest.fixture
def open_file(browser: Any) -> Iterator[Callable[..., Opened]]:
    """Opens a page from disk; whatever the test does, the page may do nothing wrong."""
    shown: list[Opened] = []

    def open_page(path: Path, *, width: int = DESK, theme: str = "light") -> Opened:
        opened = Opened(browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme))
        opened.tab.goto(path.as_uri())
        shown.append(opened)
        return opened

    yield open_page
    for opened in shown:
        assert opened.wrongs == []
        assert opened.tab.evaluate("window.violations") == []
        opened.tab.close()


@pytest.fixture
def show(open_file: Callable[..., Opened], tmp_path: Path) -> Callable[..., Opened]:
    """Writes a run's page and opens it."""

    def show_page(run: Run = PLANTED, others: Sequence[Run] = (), **seen: Any) -> Opened:
        write_page(run, tmp_path / "page.html", others)
        return open_file(tmp_path / "page.html", **seen)

    return show_page


def through_the_page(opened: Opened) -> None:
    """Scroll past everything, so that all of it is drawn."""
    height = opened.tab.evaluate("document.documentElement.scrollHeight")
    for top in range(0, height, 700):
        opened.tab.evaluate(f"window.scrollTo({{top: {top}, behavior: 'instant'}})")
        opened.tab.wait_for_timeout(10)


# ---------------------------------------------------------------- any run


@pytest.mark.parametrize("name", ODD_RUNS)
def test_odd_runs_have_a_page_that_works(show: Callable[..., Opened], name: str) -> None:
    run = ODD_RUNS[name]
    opened = show(run, [PLANTED, run], width=PHONE)
    through_the_page(opened)
    opened.tab.locator("#theme").click()
    assert opened.tab.locator("#rows tbody tr").count() == len(run.records)
    assert opened.tab.evaluate("document.documentElement.scrollWidth") == PHONE
    assert opened.tab.evaluate("document.body.scrollWidth") <= PHONE
    for record in run.records[:2]:
        opened.tab.locator("#rows tbody button").filter(has_text=visible(record.name)).first.click()
    assert opened.tab.evaluate("document.querySelectorAll('b, script').length") == 4  # ours alone


def test_names_with_markup_are_text_wherever_they_are_shown(show: Callable[..., Opened]) -> None:
    opened = show(PLANTED, [TUNED])
    through_the_page(opened)
    opened.tab.locator("#compare summary", has_text="Only in B").click()
    assert opened.text("#compare details[open] li") == "lm_head.<b>weight</b>"


# ---------------------------------------------------------------- findings


def test_a_finding_jumps_to_its_matrix_and_reading(show: Callable[..., Opened]) -> None:
    opened = show()
    lines = opened.tab.locator("#findings li")
    assert lines.count() == len(PLANTED.findings)
    assert [line.is_visible() for line in lines.all()] == [True] * 5 + [False] * (len(PLANTED.findings) - 5)
    opened.tab.locator("#findings-more").click()
    assert all(line.is_visible() for line in lines.all())
    assert not opened.tab.locator("#findings-more").is_visible()
    assert opened.chosen() == "blocks.2.q.weight"  # the worst, before anything is clicked
    lines.filter(has_text="blocks.1.k.weight").get_by_role("button").click()
    assert opened.chosen() == "blocks.1.k.weight"
    assert opened.tab.locator("#reading").input_value() == "noise_rank"
    opened.until("document.getElementById('matrix').getBoundingClientRect().top < 200")
    assert opened.tab.evaluate("document.activeElement.id") == "matrix-title"


# ---------------------------------------------------------------- map


def test_a_click_on_a_cell_shows_its_spectrum(show: Callable[..., Opened]) -> None:
    opened = show()
    record = next(r for r in PLANTED.records if r.name == "blocks.3.up.weight")
    assert record.values is not None
    opened.click_cell("map-figure", "up", "3")
    assert opened.chosen() == record.name
    np.testing.assert_allclose(opened.traces("matrix-figure")[0]["y"], record.values, rtol=1e-6)


def test_the_map_is_used_by_keyboard_alone(show: Callable[..., Opened]) -> None:
    opened = show()
    tab = opened.tab
    tab.locator("#reading").focus()
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.id") == "map-figure"
    before = opened.chosen()
    for key in ("ArrowDown", "ArrowRight"):  # from q in layer 2
        tab.keyboard.press(key)
    assert opened.text("#map-note").startswith("k, layer 3: κ ")
    assert opened.chosen() == before
    tab.keyboard.press("Enter")
    assert opened.chosen() == "blocks.3.k.weight"
    for _ in range(9):
        tab.keyboard.press("ArrowLeft")
    assert opened.text("#map-note").startswith("k, layer 0: ")  # not beyond the border


def test_the_keyboard_passes_over_cells_without_a_matrix(show: Callable[..., Opened]) -> None:
    opened = show(ODD_RUNS["everything that goes wrong"])
    tab = opened.tab
    tab.locator("#name").select_option(label="pooler.dense.weight")
    tab.locator("#reading").focus()
    tab.keyboard.press("Tab")
    tab.keyboard.press("ArrowUp")
    assert opened.text("#map-note").startswith("embedding, layer –: ")
    tab.keyboard.press("ArrowRight")  # there is no other embedding: to the nearest cell on the right
    assert opened.text("#map-note").startswith("q, layer 0: ")
    for key in ("ArrowLeft", "ArrowLeft"):
        tab.keyboard.press(key)
    assert opened.text("#map-note").startswith("embedding, layer –: ")


def test_every_cell_of_the_map_can_be_reached_by_keyboard(show: Callable[..., Opened]) -> None:
    layerless = [replace(PLANTED.records[0], name=role, readings={**PLANTED.records[0].readings, "layer": None, "role": role})
                 for role in ("embedding", "pooler")]  # fmt: skip
    run = replace(PLANTED, records=(layerless[0], *PLANTED.records[:6], layerless[1]))
    opened = show(run)
    cells = {(str(r.readings["role"]), str(r.readings["layer"]).replace("None", "–")) for r in run.records}
    seen: set[tuple[str, str]] = set()
    paths: list[list[str]] = [[]]
    for path in paths:  # the shortest first, as they are found
        opened.tab.locator("#reading").focus()
        for key in ("Tab", *path):
            opened.tab.keyboard.press(key)
        role, layer = opened.text("#map-note").split(":")[0].split(", layer ")
        if (role, layer) not in seen:
            seen.add((role, layer))
            paths += [[*path, key] for key in ("ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight")]
    assert seen == cells


def test_the_map_shows_any_reading(show: Callable[..., Opened]) -> None:
    opened = show()
    for reading in ("noise_rank", "alpha", "condition"):
        opened.tab.locator("#reading").select_option(reading)
        expected = figures.heat_map(PLANTED, reading).data[1]
        shown = opened.traces("map-figure")[1]
        assert shown["y"] == list(expected.y)
        for row, wanted in zip(shown["z"], expected.z, strict=True):
            np.testing.assert_allclose(np.array(row, float), np.array(wanted, float), rtol=1e-4)
        assert [list(line) for line in shown["hovertext"]] == [list(line) for line in expected.hovertext]
        assert opened.tab.locator(".meaning:visible").count() == 1


# ---------------------------------------------------------------- spectrum, noise, tail


def test_the_page_draws_what_the_notebook_draws(show: Callable[..., Opened]) -> None:
    opened = show()
    for name in ("blocks.0.q.weight", "blocks.0.k.weight", "blocks.0.up.weight", "blocks.2.q.weight"):
        opened.tab.locator("#name").select_option(label=name)
        shown = opened.traces("matrix-figure") + opened.traces("cut-figure")
        for trace, wanted in zip(shown, figures.spectrum(PLANTED, name).data, strict=True):
            for axis in ("x", "y"):
                expected = getattr(wanted, axis)
                assert (trace.get(axis) is None) == (expected is None)
                if expected is not None:
                    np.testing.assert_allclose(trace[axis], expected, rtol=2e-3, atol=1e-6)
            assert trace.get("line", {}).get("dash") == wanted.to_plotly_json().get("line", {}).get("dash")


def test_a_tail_without_evidence_is_faint_and_dashed_and_the_verdict_is_told(show: Callable[..., Opened]) -> None:
    opened = show()
    seen = set()
    for record in PLANTED.records:
        opened.tab.locator("#name").select_option(label=record.name)
        tail, verdict = opened.traces("matrix-figure")[3], str(record.readings["alpha_verdict"])
        held = verdict == "power law"
        seen.add(held)
        assert (tail["line"]["dash"], tail["opacity"]) == (("solid", 1) if held else ("dash", 0.45))
        assert verdict in opened.text("#facts")
        assert str(record.readings["noise_verdict"]) in opened.text("#facts")
    assert seen == {True, False}


def test_axes_are_logarithmic_or_linear(show: Callable[..., Opened]) -> None:
    opened = show()
    opened.traces("matrix-figure")
    kinds = "[document.getElementById('matrix-figure').layout].map((l) => l.xaxis.type + l.yaxis.type)[0]"
    for label, expected in (("linear", "linearlinear"), ("log", "linearlog"), ("log–log", "loglog")):
        opened.tab.get_by_label(label, exact=True).check()
        assert opened.tab.evaluate(kinds) == expected


# ---------------------------------------------------------------- rank


def expected_costs(run: Run, name: str, k: int) -> dict[str, float]:
    """What the slider must show, from the values themselves, by the definitions."""
    record = next(r for r in run.records if r.name == name)
    same = [r for r in run.records if r.readings["role"] == record.readings["role"] and r.values is not None]

    def lost(values: np.ndarray) -> float:
        return math.fsum(values[k:] ** 2)

    def held(r: Any) -> tuple[int, int]:
        rows, cols = int(r.readings["rows"]), int(r.readings["cols"])
        return min(k, len(r.values)) * (rows + cols + 1), rows * cols

    assert record.values is not None
    total = math.fsum(record.values**2)
    size = {"float32": 4, "bfloat16": 2}[str(record.readings["dtype"])]
    all_total = math.fsum(math.fsum(r.values**2) for r in same if r.values is not None)
    all_lost = math.fsum(lost(r.values) for r in same if r.values is not None)
    return {
        "one-frobenius": math.sqrt(lost(record.values) / total), "one-energy": 1 - lost(record.values) / total,
        "one-spectral": float(record.values[k] / record.values[0]) if k < len(record.values) else 0.0,
        "one-parameters": held(record)[0], "one-bytes": held(record)[0] * size,
        "all-frobenius": math.sqrt(all_lost / all_total), "all-energy": 1 - all_lost / all_total,
        "all-spectral": max(float(r.values[k] / r.values[0]) if k < len(r.values) else 0.0 for r in same if r.values is not None),
        "all-parameters": sum(held(r)[0] for r in same), "all-bytes": sum(held(r)[0] for r in same) * size,
    }  # fmt: skip


def assert_costs(opened: Opened, run: Run, k: int) -> None:
    for key, expected in expected_costs(run, opened.chosen(), k).items():
        shown = opened.number(f"#{key}")
        if key.endswith("bytes"):
            shown *= {"B": 1.0, "kB": 1e3, "MB": 1e6}[opened.text(f"#{key}").split("\n")[0].split()[-1]]
        assert shown == pytest.approx(expected, rel=5.1e-4, abs=1e-12), key


def test_the_numbers_of_the_slider_are_those_of_the_values(show: Callable[..., Opened]) -> None:
    opened = show()
    for name in ("blocks.0.q.weight", "blocks.1.k.weight", "blocks.2.up.weight"):
        opened.tab.locator("#name").select_option(label=name)
        size = int(opened.tab.locator("#rank").get_attribute("max") or 0)
        for k in (1, 2, size // 3, size - 1, size):
            opened.tab.locator("#rank").fill(str(k))
            opened.tab.locator("#rank").press("Enter")
            assert opened.tab.locator("#rank").input_value() == str(k)
            assert_costs(opened, PLANTED, k)


def test_the_slider_is_moved_by_mouse_and_keyboard(show: Callable[..., Opened]) -> None:
    opened = show()
    tab, slider = opened.tab, opened.tab.locator("#rank-range")
    opened.traces("matrix-figure")
    opened.traces("cut-figure")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    assert box is not None
    tab.mouse.click(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    k = int(tab.locator("#rank").input_value())
    assert 0.2 < k / 64 < 0.3
    assert_costs(opened, PLANTED, k)
    for key, expected in (("ArrowRight", k + 1), ("ArrowLeft", k), ("End", 64), ("ArrowLeft", 63), ("Home", 1)):
        slider.press(key)
        assert tab.locator("#rank").input_value() == str(expected)
        assert slider.get_attribute("aria-valuetext") == f"rank {expected}"
        assert_costs(opened, PLANTED, expected)
        for figure in ("matrix-figure", "cut-figure"):
            marks = tab.evaluate(f"document.getElementById('{figure}').layout.shapes.map((s) => [s.x0, s.x1])")
            assert marks == [[expected, expected]]


def test_where_a_spectrum_is_thinned_the_slider_stops_at_exact_ranks(show: Callable[..., Opened]) -> None:
    generator = np.random.default_rng(5)
    sizes = [(3000, 2000), (3000, 2000), (2500, 1500)]
    records = tuple(
        measured(f"w{i}", i, "q", np.sort(generator.random(min(shape)))[::-1].copy(), shape)
        for i, shape in enumerate(sizes)
    )
    opened = show(Run("scan", "large", records, ()))
    assert opened.tab.locator("#rank-thinned").is_visible()
    rank = opened.tab.locator("#rank")
    seen = []
    for wanted in (1, 777, 1234, 1999, 2000):
        rank.fill(str(wanted))
        rank.press("Enter")
        k = int(rank.input_value())
        assert abs(k - wanted) <= 4
        exact = expected_costs(Run("scan", "large", records, ()), opened.chosen(), k)
        for key in ("one-frobenius", "one-energy", "one-spectral", "one-parameters"):
            assert opened.number(f"#{key}") == pytest.approx(exact[key], rel=5.1e-4, abs=1e-12), key
        # The third matrix may hold other ranks: its error is then bounded from above, and the sign says so.
        shown = opened.number("#all-frobenius")
        assert shown >= exact["all-frobenius"] * (1 - 5.1e-4)
        assert shown == pytest.approx(
            exact["all-frobenius"], rel=5.1e-4 if "≤" not in opened.text("#all-frobenius") else 0.02, abs=1e-12
        )
        seen.append(k)
    rank.press("ArrowDown")
    assert int(rank.input_value()) < seen[-1]
    rank.press("ArrowUp")
    assert int(rank.input_value()) == seen[-1]


# ---------------------------------------------------------------- table


def test_the_table_is_sorted_and_filtered(show: Callable[..., Opened]) -> None:
    opened = show()
    tab = opened.tab
    names = tab.locator("#rows tbody th")
    assert names.all_inner_texts() == [r.name for r in PLANTED.records]
    heading = tab.locator('[data-sort="condition"]')
    by_condition = [r.name for r in sorted(PLANTED.records, key=lambda r: -float(str(r.readings["condition"])))]
    heading.click()
    assert names.all_inner_texts() == by_condition
    assert tab.locator("th", has=heading).get_attribute("aria-sort") == "descending"
    heading.press("Enter")
    assert names.all_inner_texts() == by_condition[::-1]
    tab.locator("#filter").fill("BF Blocks.1")
    assert names.all_inner_texts() == ["blocks.1.k.weight"]
    assert opened.text("#count") == f"1 of {len(PLANTED.records)} matrices"
    tab.locator("#filter").fill("no such thing")
    assert names.count() == 0
    tab.locator("#filter").fill("")
    before = tab.locator("#rows thead th").count()
    tab.locator("#every").check()
    assert tab.locator("#rows thead th").count() > before
    names.nth(4).get_by_role("button").click()
    assert opened.chosen() == by_condition[::-1][4]
    assert tab.locator("#rows tr[aria-current]").count() == 1


# ---------------------------------------------------------------- runs beside each other


def test_two_runs_are_compared(show: Callable[..., Opened]) -> None:
    opened = show(PLANTED, [TUNED])
    tab = opened.tab
    said = opened.text("#compare")
    assert "A was made by 0.2.0, B by 0.1.0: readings may differ for that reason." in said
    assert f"{len(PLANTED.records) - 1} matrices in both A and B, 1 only in A, 1 only in B." in said
    tab.locator("#compare-reading").select_option("sigma_max")
    assert tab.locator("#reading").input_value() == "sigma_max"
    shown = opened.traces("compare-figure")[1]
    assert shown["zmin"] == -shown["zmax"]
    np.testing.assert_allclose([z for row in shown["z"] for z in row if z is not None], math.log10(2.0), rtol=1e-4)
    assert sum(z is None for row in shown["z"] for z in row) == 1
    changes = tab.locator("#changes tbody td:nth-child(2)").all_inner_texts()
    assert changes == ["×2.000"] * (len(PLANTED.records) - 1)
    tab.locator("#compare-reading").select_option("condition")
    assert set(tab.locator("#changes tbody td:nth-child(2)").all_inner_texts()) == {"×1.000"}
    opened.click_cell("compare-figure", "k", "1")
    assert opened.chosen() == "blocks.1.k.weight"
    traces = {trace.get("name"): trace for trace in opened.traces("matrix-figure") if trace.get("showlegend")}
    assert set(traces) == {"A", "B"}
    np.testing.assert_allclose(traces["B"]["y"], 2.0 * np.array(traces["A"]["y"]), rtol=1e-6)
    tab.locator("#name").select_option(label="blocks.0.q.weight")  # only in A
    assert not any(trace.get("showlegend") for trace in opened.traces("matrix-figure"))


def test_a_reading_is_followed_over_three_runs(show: Callable[..., Opened]) -> None:
    opened = show(PLANTED, [TUNED, LATER])
    tab = opened.tab
    tab.locator("#compare-reading").select_option("sigma_max")
    tab.locator("#compare-run").select_option("1")
    np.testing.assert_allclose(
        [z for row in opened.traces("compare-figure")[1]["z"] for z in row if z is not None], math.log10(4.0), rtol=1e-4
    )
    assert opened.text("#changes-second") == "C"
    tab.locator("#over-role").select_option("k")
    lines = [trace for trace in opened.traces("over-figure") if "lines" in trace["mode"]]
    first = [float(str(r.readings["sigma_max"])) for r in PLANTED.records if r.readings["role"] == "k"]
    np.testing.assert_allclose([line["y"] for line in lines], np.outer(first, [1, 2, 4]), rtol=1e-4)
    expected = figures.over_runs([PLANTED, TUNED, LATER], "sigma_max", "k").data
    np.testing.assert_allclose([line["y"] for line in lines], [trace.y for trace in expected], rtol=1e-4)


# ---------------------------------------------------------------- themes and sizes


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_theme_follows_the_system_until_it_is_switched(show: Callable[..., Opened], theme: str) -> None:
    opened = show(PLANTED, [TUNED], theme=theme)
    through_the_page(opened)

    def lightness() -> float:
        channels = opened.tab.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
        return float(sum(channels)) / 765.0

    def ink() -> str:
        return str(opened.tab.evaluate("document.getElementById('matrix-figure').layout.font.color"))

    bright, first = lightness(), ink()
    assert (bright > 0.9) == (theme == "light")
    opened.tab.locator("#theme").click()
    assert (lightness() > 0.9) != (theme == "light")
    assert ink() != first
    opened.tab.locator("#theme").click()
    assert (lightness(), ink()) == (bright, first)


@pytest.mark.parametrize("others", [[], [TUNED, LATER]], ids=["alone", "compared"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_on_a_phone_nothing_is_wider_than_the_screen(
    show: Callable[..., Opened], theme: str, others: list[Run]
) -> None:
    opened = show(PLANTED, others, width=PHONE, theme=theme)
    through_the_page(opened)
    opened.tab.locator("#every").check()
    assert opened.tab.evaluate("document.documentElement.scrollWidth") == PHONE
    outside = opened.tab.evaluate(
        """() => [...document.querySelectorAll("body *")].filter((node) => {
            const box = node.getBoundingClientRect();
            return box.width && box.right > innerWidth + 1 && !node.closest(".scroll") && !node.closest("svg");
        }).map((node) => node.id || node.className || node.tagName)"""
    )
    assert outside == ["skip"] or outside == []


# ---------------------------------------------------------------- a comparison


def test_the_page_of_a_comparison(show: Callable[..., Opened]) -> None:
    """Verdict first, the change's own spectrum, and what a LoRA of a rank costs."""
    import torch

    import eigenscope as es

    generator = torch.Generator().manual_seed(5)
    base = {
        f"layers.{i}.{name}.weight": torch.randn(*shape, generator=generator)
        for i in range(3) for name, shape in (("q_proj", (48, 32)), ("<b>up</b>_proj", (64, 48)))
    }  # fmt: skip
    base["norm.weight"] = torch.ones(32)
    tuned = {name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()}
    tuned["layers.1.q_proj.weight"] = base["layers.1.q_proj.weight"].clone()
    run = es.diff(base, tuned).run
    for width in (DESK, PHONE):
        opened = show(run, width=width)
        through_the_page(opened)
        assert opened.text(".verdict") == run.verdict
        assert opened.text("#findings li").startswith("layers.1.q_proj.weight is unchanged: every entry is the same")
        assert opened.tab.locator("#reading").input_value() == "relative_change"
        assert opened.tab.evaluate("document.documentElement.scrollWidth") == width
    assert opened.chosen() != "layers.1.q_proj.weight"  # it has no spectrum to draw
    opened.click_cell("map-figure", "q", "2")
    assert opened.chosen() == "layers.2.q_proj.weight"
    opened.tab.locator("#rank").fill("4")
    opened.tab.locator("#rank").press("Enter")
    (record,) = [r for r in run.records if r.name == "layers.2.q_proj.weight"]
    assert opened.number("#one-energy") == pytest.approx(record.readings["energy_4"], rel=1e-3)
    assert opened.number("#one-parameters") == 4 * (48 + 32)
    opened.tab.locator("#name").select_option(label="layers.1.q_proj.weight")
    assert not opened.tab.locator("#matrix-figure").is_visible()
