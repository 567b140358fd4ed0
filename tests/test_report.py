"""The report: a synthetic run with everything that goes wrong in it → text, figures, page."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eigenscope.columns import BY_NAME, READINGS
from eigenscope.errors import InputError
from eigenscope.report import cells, curves, figures, findings, grid, html, layouts, shell, shorten, text
from eigenscope.report.page_data import page_data
from eigenscope.report.summary import summarize
from eigenscope.results import Coverage, Finding, Record, Run, Value
from runs import (
    BARE,
    EMPTY,
    END,
    ESCAPE,
    FINDINGS,
    HOSTILE,
    LAYERS,
    MARKUP,
    RUN,
    TAG,
    record,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(run: Run = RUN, **options: Any) -> str:
    file = io.StringIO()
    text.print_run(run, file=file, **options)
    return file.getvalue()


def squeezed(content: str) -> str:
    return re.sub(r"\s+", "", content)


# ---------------------------------------------------------------- a value as text


@pytest.mark.parametrize(
    ("value", "kind", "shown"),
    [
        (None, "number", "–"), (math.inf, "number", "∞"), (-math.inf, "number", "−∞"), (math.nan, "number", "NaN"),
        (0.0, "number", "0"), (1234567.0, "number", "1.235e6"), (12345.6, "number", "12,346"),
        (0.00123456, "number", "0.001235"), (1.23456e-7, "number", "1.235e-7"), (-1.5, "number", "−1.500"),
        (1234567, "count", "1,234,567"), (-42, "count", "−42"), (0.25, "share", "25.0 %"), (0.0, "share", "0 %"),
        (5.97e-7, "share", "5.97e-5 %"), (ESCAPE, "text", "\\x1b[31mred"),
    ],
)  # fmt: skip
def test_a_value_as_text(value: Value, kind: Any, shown: str) -> None:
    assert cells.format_value(replace(BY_NAME["condition"], kind=kind), value) == shown


@given(st.text())
def test_visible_text_has_nothing_that_a_terminal_obeys(given_text: str) -> None:
    shown = cells.visible(given_text)
    assert shown.isprintable()
    assert cells.visible(shown) == shown
    assert shown == given_text or not given_text.isprintable()


@given(st.floats(allow_nan=False))
def test_rounded_values_pass_through_json(value: float) -> None:
    back = float(json.loads(json.dumps(cells.rounded(value), allow_nan=False)))
    assert back == value or math.isclose(back, value, rel_tol=6e-5, abs_tol=5e-324)


def test_shortened_names_stay_apart_and_keep_their_layer() -> None:
    names = [record.name for record in RUN.records if record.name.startswith("encoder")]
    for width in (19, 25, 33, 46, 60):
        short = shorten.shorten(names, width)
        assert max(map(len, short)) <= width
        assert len(set(short)) == len(names)
    assert shorten.shorten(names, 60) == names
    assert "…2.attention.self.key" in shorten.shorten(names, 25)
    # Names that differ in ``.weight`` alone keep it.
    assert len(set(shorten.shorten(["block.0.projection", "block.0.projection.weight"], 17))) == 2


# ---------------------------------------------------------------- the terminal


@pytest.mark.parametrize("width", [30, 60, 80, 120, 200])
@pytest.mark.parametrize("run", [RUN, EMPTY], ids=["run", "empty"])
def test_no_line_is_wider_than_the_terminal(run: Run, width: int) -> None:
    coverage = io.StringIO()
    text.print_coverage(run, file=coverage, width=width)
    for line in [*printed(run, width=width).splitlines(), *coverage.getvalue().splitlines()]:
        assert len(line) <= width, line


def test_the_columns_that_matter_most_are_there_at_80() -> None:
    head = " ".join(printed(width=80).splitlines()[:2])
    for word in ("name", "role", "shape", "σ max", "κ", "stable", "99\u00a0%"):
        assert word in head
    assert "dtype" not in head
    assert "dtype" in printed(width=200).splitlines()[1]


@pytest.mark.parametrize("width", [60, 200])
def test_every_doubtful_row_is_named_in_full(width: int) -> None:
    shown = squeezed(printed(width=width))
    doubtful = [r for r in RUN.records if r.readings["status"] != "ok"]
    assert len(doubtful) == 2 + len(HOSTILE)
    for each in doubtful:
        assert squeezed(f"{cells.visible(each.name)}: {cells.visible(each.readings['status'])}") in shown


def test_the_numbers_are_those_of_the_record() -> None:
    lines = printed(width=300).splitlines()
    for each in RUN.records:
        line = next(line for line in lines if cells.visible(each.name) in line)
        for name in ("sigma_max", "condition", "stable_rank", "rank_99"):
            assert cells.format_value(BY_NAME[name], each.readings[name]) in line.split()


def test_totals_and_coverage_close_the_table() -> None:
    lines = printed(width=160).splitlines()
    measured = sum(r.values is not None for r in RUN.records)
    assert lines[-1].startswith(f"{len(RUN.records)} matrices · {measured} of them measured · ")
    assert lines[-1].endswith("1.2 s · errors ≤ 1.5e-9·σ max")
    assert f"{measured}  read, {measured} matrices" in printed(width=160)
    assert "        2  a vector: bias, norm or scale" in lines
    assert summarize(RUN).share == "89.7 % of 75,329 parameters"


def test_all_of_the_parameters_is_said_only_of_all() -> None:
    large = record("large", 0, "q", np.ones(4), rows=480, cols=480)
    entries = (
        Coverage("large", (480, 480), "float32", "read", "", 1),
        Coverage("one", (1,), "float32", "not a matrix", "", 0),
    )
    assert summarize(Run("scan", "s", (large,), entries)).share.startswith("99.9 %")
    assert summarize(Run("scan", "s", (large,), entries[:1])).share.startswith("100 %")


def test_singular_values_are_not_needed_for_text() -> None:
    assert printed(BARE, width=120) == printed(RUN, width=120)


@pytest.mark.parametrize("file", [io.StringIO, Terminal])
def test_escapes_and_markup_in_names_are_inert(file: type[io.StringIO]) -> None:
    out = file()
    text.print_run(RUN, file=out, width=300)
    text.print_coverage(RUN, file=out, width=300)
    text.print_plan({ESCAPE: MARKUP}, file=out, width=300)
    shown = out.getvalue()
    assert "\x1b[31m" not in shown
    assert "\u202e" not in shown
    assert "\\x1b[31mred" in shown
    assert MARKUP in shown
    assert ("\x1b" in shown) == out.isatty()  # colours of our own, and on terminals only


def test_asked_for_columns_come_in_that_order_and_what_does_not_fit_is_said() -> None:
    head = printed(width=100, columns=("condition", "dtype", "sigma_max")).splitlines()[0].split()
    assert head == ["name", "κ", "dtype", "σ", "max"] or head == ["name", "κ", "dtype", "σ max"]
    narrow = printed(width=44, columns=("condition", "dtype", "sigma_max", "frobenius"))
    assert "1 column too many for 44 characters: frobenius" in " ".join(narrow.split())


def test_unknown_column_suggests_a_near_one() -> None:
    with pytest.raises(InputError, match="stable_rank"):
        printed(columns=("stable_rnk",))


def test_text_survives_an_encoding_without_greek() -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    text.print_run(RUN, file=file, width=100)
    file.flush()
    assert b"? max" in raw.getvalue()


def test_coverage_names_every_tensor_with_its_reason() -> None:
    out = io.StringIO()
    text.print_coverage(RUN, file=out, width=60)
    shown = squeezed(out.getvalue())
    for entry in RUN.coverage:
        assert squeezed(cells.visible(entry.tensor)) in shown
        assert squeezed(cells.visible(entry.reason)) in shown


def test_progress_is_drawn_on_a_terminal_only() -> None:
    drawn = {}
    for key, file, quiet in (("pipe", io.StringIO(), False), ("quiet", Terminal(), True), ("tty", Terminal(), False)):
        with text.ProgressBar(quiet=quiet, file=file) as bar:
            bar.update(1, 3, ESCAPE + MARKUP)
        drawn[key] = file.getvalue()
    assert drawn["pipe"] == drawn["quiet"] == ""
    assert "1/3" in drawn["tty"]
    assert ESCAPE not in drawn["tty"]


# ---------------------------------------------------------------- curves


@given(st.integers(1, 60_000), st.integers(16, 300))
def test_thinning_keeps_both_ends_and_the_limit(count: int, limit: int) -> None:
    index = curves.thin(count, limit)
    assert index[0] == 1
    assert index[-1] == count
    assert len(index) <= limit
    assert (np.diff(index) > 0).all()
    assert len(index) == count or len(index) > limit // 3


@pytest.mark.parametrize("scale", [1e-180, 1.0, 1e180])
def test_energy_does_not_depend_on_the_scale_of_the_weights(scale: float) -> None:
    values = np.array([4.0, 2.0, 1.0])
    curve = curves.curve_of(Record("w", {"rows": 3, "cols": 3}, values * scale))
    assert curve is not None
    np.testing.assert_allclose(curve.energy, np.array([16, 20, 21]) / 21, rtol=1e-14)


def test_a_partial_spectrum_knows_what_it_leaves_out() -> None:
    curve = curves.curve_of(record("w", 0, "q", np.array([2.0, 1.0]), frobenius=math.sqrt(10.0)))
    assert curve is not None
    np.testing.assert_allclose(curve.energy, [0.4, 0.5])
    assert curve.size == 32


@pytest.mark.parametrize("values", [None, np.zeros(3), np.array([np.nan, 1.0]), np.array([])])
def test_what_cannot_be_drawn_has_no_curve(values: np.ndarray | None) -> None:
    assert curves.curve_of(replace(RUN.records[0], values=values)) is None


# ---------------------------------------------------------------- figures


@pytest.mark.parametrize("name", ["condition", "sigma_max", "stable_rank", "rank_99", "underflow_fp16"])
def test_the_heat_map_shows_the_values_of_the_records(name: str) -> None:
    blank, colored, texts = figures.heat_map(RUN, name).data
    layers, roles = list(colored.x), list(colored.y)
    assert layers == ["–", *map(str, range(LAYERS))]
    column = BY_NAME[name]
    for each in RUN.records:
        if each.readings["role"] in ("expert_up", "odd", "nan"):
            continue
        layer = each.readings["layer"]
        r, c = roles.index(str(each.readings["role"])), layers.index("–" if layer is None else str(layer))
        value = each.readings[name]
        assert isinstance(value, int | float)
        color = 10 ** colored.z[r][c] if column.scale == "log" else colored.z[r][c]
        assert color == pytest.approx(value, rel=1e-12)
        assert each.name in colored.customdata[r][c]
        assert cells.format_value(column, value) in colored.hovertext[r][c]
        assert blank.z[r][c] is None
    assert len(texts.text) == sum(z is not None for row in colored.z for z in row)


def test_the_heat_map_tells_infinite_undefined_and_absent_apart() -> None:
    blank, colored, _ = figures.heat_map(RUN, "condition").data
    layers, roles = list(colored.x), list(colored.y)
    infinite, undefined, absent = (
        (roles.index(role), layers.index(layer)) for role, layer in (("odd", "2"), ("nan", "3"), ("nan", "0"))
    )
    assert colored.z[infinite[0]][infinite[1]] == colored.zmax
    assert "∞" in colored.hovertext[infinite[0]][infinite[1]]
    assert colored.z[undefined[0]][undefined[1]] is None
    assert blank.z[undefined[0]][undefined[1]] == 0
    assert "not defined" in blank.hovertext[undefined[0]][undefined[1]]
    assert colored.z[absent[0]][absent[1]] is blank.z[absent[0]][absent[1]] is None
    assert math.isfinite(colored.zmax)


def test_a_cell_of_several_matrices_shows_their_median_and_range() -> None:
    _, colored, _ = figures.heat_map(RUN, "stable_rank").data
    values = sorted(float(str(r.readings["stable_rank"])) for r in RUN.records if r.readings["role"] == "expert_up")
    r, c = list(colored.y).index("expert_up"), list(colored.x).index("5")
    assert colored.z[r][c] == values[2]
    hover = colored.hovertext[r][c]
    lowest, middle, highest = (cells.significant(values[i]) for i in (0, 2, 4))
    assert hover == f"stable rank: median {middle} of 5, from {lowest} to {highest}"
    assert "5 matrices" in colored.customdata[r][c]


@pytest.mark.parametrize("values", [(2.0, 2.0), (0.0, 0.0), (math.inf, math.inf), (0.0, math.inf), (1e-300, 1e300)])
@pytest.mark.parametrize("name", ["condition", "stable_rank"])
def test_colours_have_a_range_whatever_the_values(name: str, values: tuple[float, float]) -> None:
    records = tuple(record(f"w{i}", i, "q", None, **{name: value}) for i, value in enumerate(values))
    shading = grid.shade(Run("scan", "s", records, ()), grid.lay_out(Run("scan", "s", records, ())), BY_NAME[name])
    assert shading.low < shading.high
    assert all(shading.low <= c <= shading.high for row in shading.colors for c in row if c is not None)
    assert all(-1e-6 <= (place - shading.low) / (shading.high - shading.low) <= 1 + 1e-6 for place, _ in shading.ticks)


def test_one_outlier_does_not_take_the_colours_of_all_others() -> None:
    records = [record(f"w{i}", i, "q", None, condition=100.0 + i) for i in range(20)]
    run = Run("scan", "s", (*records, record("far", 20, "q", None, condition=1e17)), ())
    shading = grid.shade(run, grid.lay_out(run), BY_NAME["condition"])
    assert shading.high < 3
    assert shading.colors[0][-1] == shading.high
    assert shading.ticks[-1][1].startswith("≥")
    near = replace(run, records=tuple(records))
    assert not any("≥" in label for _, label in grid.shade(near, grid.lay_out(near), BY_NAME["condition"]).ticks)


def test_spectra_are_relative_to_the_largest_value() -> None:
    lines = figures.spectra(RUN, "q").data[1:]
    assert len(lines) == LAYERS
    for line, each in zip(lines, (r for r in RUN.records if r.readings["role"] == "q"), strict=True):
        assert each.values is not None
        np.testing.assert_allclose(line.y, each.values / each.values[0])
        assert line.x[-1] == 1.0
    assert len({line.line.color for line in lines}) == LAYERS


def test_the_menu_of_roles_shows_one_role_at_a_time() -> None:
    figure = figures.spectra(RUN)
    (menu,) = figure.layout.updatemenus
    assert sum(bool(trace.visible) for trace in figure.data[1:]) == LAYERS
    for button in menu.buttons:
        assert len(button.args[0]["visible"]) == len(figure.data)
    assert {button.label for button in menu.buttons} == set(figures.lines_by_role(RUN))


def test_a_spectrum_has_its_values_energy_and_marks() -> None:
    each = RUN.records[1]
    assert each.values is not None
    values, floor, *_, energy, error, marks = figures.spectrum(RUN, each.name).data
    np.testing.assert_array_equal(values.y, each.values)
    assert floor.x is None
    assert energy.y[-1] == pytest.approx(1.0)
    np.testing.assert_allclose(np.square(error.y), 1.0 - np.array(energy.y), atol=1e-14)
    assert list(marks.x) == [each.readings[f"rank_{p}"] for p in (90, 95, 99)]
    for rank, share in zip(marks.x, marks.y, strict=True):
        assert energy.y[rank - 1] >= share > (energy.y[rank - 2] if rank > 1 else 0)


def test_a_singular_spectrum_shows_its_error_bound() -> None:
    _, floor, *_ = figures.spectrum(RUN, "encoder.layer.2.singular.weight").data
    assert floor.y[0] == pytest.approx(1.5e-9 * float(str(figures_record("encoder.layer.2.singular.weight"))))


def figures_record(name: str) -> Value:
    return next(r for r in RUN.records if r.name == name).readings["sigma_max"]


@pytest.mark.parametrize(
    ("call", "near"),
    [
        (lambda: figures.heat_map(RUN, "stabel_rank"), "stable_rank"),
        (lambda: figures.heat_map(RUN, "dtype"), "unknown reading"),
        (lambda: figures.heat_map(RUN, "conv_norm"), "no matrix of the run has"),
        (lambda: figures.heat_map(EMPTY, "condition"), "no matrix of the run has"),
        (lambda: figures.spectra(RUN, "experts_up"), "expert_up"),
        (lambda: figures.spectra(BARE), "no matrix has singular values"),
        (lambda: figures.spectrum(RUN, "pooler.dense"), "pooler.dense.weight"),
        (lambda: figures.spectrum(RUN, "encoder.layer.3.nan.weight"), "3 NaN"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_near_names(call: Any, near: str) -> None:
    with pytest.raises(InputError, match=near):
        call()


def test_names_are_text_to_plotly() -> None:
    record_of_tag = replace(RUN.records[1], name=f"{TAG}$x$")
    run = replace(RUN, records=(record_of_tag,))
    for figure in (
        figures.heat_map(run, "condition"),
        figures.spectra(run, "q"),
        figures.spectrum(run, record_of_tag.name),
    ):
        shown = figure.to_json()
        assert "alert(1)" in shown
        assert "<script" not in json.loads(shown).__repr__()
        assert "$x$" not in shown


# ---------------------------------------------------------------- findings


def test_terminal_and_page_tell_the_same_findings_in_the_same_order() -> None:
    run = replace(RUN, findings=FINDINGS)
    page = html.render(run)
    listed = re.findall(r"<li(?: hidden)?><span>(.*?)</span>", page.split('id="findings"')[1].split("</ol>")[0])
    on_page = [unescape(re.sub(r"<.*?>", "", line)) for line in listed]
    heading, *lines = printed(run, width=400).split("7 findings")[1].split("\n\n")[0].splitlines()
    assert heading == ""
    in_terminal = [re.sub(r"^ *\d+\. ", "", line) for line in lines]
    assert on_page == in_terminal == [f.sentence for f in sorted(FINDINGS, key=lambda f: -f.severity)]
    assert page.count("<li hidden>") == len(FINDINGS) - html.FINDINGS_AT_FIRST


def test_a_finding_leads_to_its_matrix_and_reading() -> None:
    row = 3
    name = RUN.records[row].name
    without = Finding((name,), "One of them stands out.", 2.0, "stable_rank")
    several = Finding((RUN.records[1].name, "gone"), f"{RUN.records[1].name} equals gone.", 1.0)
    lines = findings.on_page(replace(RUN, findings=(several, without)))
    assert [line.row for line in lines] == [row, 1]
    assert [(line.reading, [(p.text, p.row) for p in line.pieces]) for line in lines] == [
        ("stable_rank", [("One of them stands out. ", None), (name, row)]),
        ("", [(RUN.records[1].name, 1), (" equals gone.", None)]),
    ]


def test_one_name_inside_another_is_not_taken_for_it() -> None:
    records = (record("layer.1", 1, "q", None), record("layer.11", 11, "q", None))
    found = Finding(("layer.1", "layer.11"), "layer.11 and layer.1 are equal.", 1.0)
    (line,) = findings.on_page(Run("scan", "s", records, (), {}, (found,)))
    assert [(p.text, p.row) for p in line.pieces if p.row is not None] == [("layer.11", 1), ("layer.1", 0)]


def test_where_nothing_was_found_both_say_so() -> None:
    assert "Nothing stands out." in Page(html.render(RUN)).text
    assert "Nothing stands out." in printed()
    for run in (EMPTY, replace(RUN, records=tuple(r for r in RUN.records if r.values is None))):
        assert "Nothing stands out." not in printed(run) + Page(html.render(run)).text


# ---------------------------------------------------------------- the page


class Page(HTMLParser):
    """What a browser makes of the page."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.data = ""
        self.text = ""
        self.style = ""
        self.open: list[tuple[str, dict[str, str | None]]] = [("", {})]
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        while self.open[-1][0] not in (tag, ""):
            self.open.pop()
        if len(self.open) > 1:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        tag, attributes = self.open[-1]
        if tag == "script" and attributes.get("id") == "data":
            self.data += data
        elif tag == "script":
            self.scripts.append(data)
        elif tag == "style":
            self.style += data
        else:
            self.text += data


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(html.render(RUN))


def test_everything_from_the_run_is_text_on_the_page(page: Page) -> None:
    assert len([tag for tag, _ in page.tags if tag == "script"]) == 3
    assert len(page.scripts) == 2
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    data = json.loads(page.data)
    assert data["names"] == [cells.visible(r.name) for r in RUN.records]
    for name in HOSTILE:
        assert f"{cells.visible(name)}.weight" in page.text
        assert f"format {cells.visible(name)}" in page.text
    assert f"dtype: {END}" in page.text
    assert "\x1b" not in page.text
    assert "</" not in shell.as_json(page_data(RUN))


def test_the_page_loads_nothing(page: Page) -> None:
    for tag, attributes in page.tags:
        assert "src" not in attributes
        assert tag not in ("link", "iframe", "object", "embed", "img")
        assert (attributes.get("href") or "#").startswith("#")
    assert "url(" not in page.style
    assert "@import" not in page.style
    for script in page.scripts[1:]:
        assert "http" not in script


def test_only_our_scripts_may_run_and_nothing_may_be_fetched(page: Page) -> None:
    policy = next(str(a["content"]) for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    for script in page.scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert "connect-src" not in policy
    assert "'unsafe-eval'" not in policy
    assert "unsafe-inline" not in policy.split("script-src")[1]


@pytest.mark.parametrize("run", [EMPTY, BARE, RUN], ids=["empty", "without values", "run"])
def test_every_section_that_is_linked_is_there(run: Run) -> None:
    page = Page(html.render(run, [RUN]))
    targets = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {str(attributes["href"])[1:] for _, attributes in page.tags if "href" in attributes} <= targets


def test_every_link_inside_the_page_has_its_target() -> None:
    page = Page(html.render(replace(RUN, findings=FINDINGS), [RUN, BARE]))
    targets = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    links = {str(attributes["href"])[1:] for _, attributes in page.tags if "href" in attributes}
    assert links <= targets
    script = page.scripts[1]
    assert set(re.findall(r'\$\("([\w-]+)"\)', script)) <= targets


def test_each_reading_of_the_run_can_be_chosen_once_and_is_explained(page: Page) -> None:
    shown = [column for column in READINGS if any(r.readings[column.name] is not None for r in RUN.records)]
    assert 0 < len(shown) < len(READINGS)
    options = [a["value"] for tag, a in page.tags if tag == "option" and "value" in a]
    assert sorted(map(str, options)) == sorted(column.name for column in shown)
    assert {a["data-meaning"] for _, a in page.tags if "data-meaning" in a} == set(options)
    assert {name for _, names in layouts.SCAN.groups for name in names} <= set(BY_NAME)
    for column in shown:
        assert column.meaning in page.text
        assert column.source in page.text


def test_the_page_says_what_the_terminal_says(page: Page) -> None:
    columns = {column["name"]: column for column in json.loads(page.data)["columns"]}
    lines = printed(width=400).splitlines()
    shown = [name for name in layouts.SCAN.priority if name in columns and name != "name"]
    assert len(shown) > 12
    for row, each in enumerate(RUN.records):
        line = next(line for line in lines if cells.visible(each.name) in line)
        for name in shown:
            assert columns[name]["texts"][row] in line
    assert "conv_norm" not in columns


def test_the_data_of_the_page_are_those_of_the_run(page: Page) -> None:
    data = json.loads(page.data)
    columns = {column["name"]: column for column in data["columns"]}
    for row, each in enumerate(RUN.records):
        for name in ("sigma_max", "condition", "rank_99"):
            value, held = each.readings[name], columns[name]["values"][row]
            assert (held is None) == (value is None)
            assert held is None or float(held) == pytest.approx(float(str(value)), rel=6e-5)
        curve = data["curves"]["rows"][row]
        assert (curve is None) == (each.values is None)
        if curve is not None and each.values is not None:
            index = np.array(data["curves"]["index"][str(curve["count"])])
            packed = np.frombuffer(base64.b64decode(curve["packed"]), "<f4").reshape(4, len(index))
            np.testing.assert_allclose(packed[0] * curve["largest"], each.values[index - 1], rtol=1e-6)
    for r, cell_row in enumerate(data["heat"]["cells"]):
        for c, rows in enumerate(cell_row):
            for row in rows:
                assert columns["role"]["texts"][row] == data["heat"]["figure"]["data"][0]["y"][r]
                assert columns["layer"]["texts"][row] == data["heat"]["figure"]["data"][0]["x"][c]


@pytest.mark.parametrize("run", [EMPTY, BARE], ids=["empty", "without values"])
def test_a_run_without_matrices_or_values_has_a_page(run: Run) -> None:
    page = Page(html.render(run))
    data = json.loads(page.data)
    assert len(data["names"]) == len(run.records)
    assert not data["spectra"]["roles"]
    assert ("option" in {tag for tag, _ in page.tags}) == bool(run.records)


def test_large_runs_stay_small() -> None:
    values = np.sort(np.random.default_rng(3).random(4096))[::-1].copy()
    some = [record(f"model.layers.{i // 7}.w{i % 7}.weight", i // 7, f"r{i % 7}", values) for i in range(300)]
    many = [record(f"layers.{i // 700}.experts.{i % 700}.weight", i // 700, "e", values[:256]) for i in range(2100)]
    sizes = [len(shell.as_json(page_data(Run("scan", "s", tuple(rows), ())))) for rows in (some, many)]
    assert sizes[0] < 3_000_000
    assert sizes[1] < 6_000_000
    drawn = page_data(Run("scan", "s", tuple(many), ()))["spectra"]["roles"][0]
    assert drawn["of"] == 2100
    assert len(drawn["rows"]) == figures.MAX_LINES


def test_the_page_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.html"
    html.write_page(EMPTY, path)
    first = path.read_bytes()
    html.write_page(RUN, path)
    second = path.read_bytes()
    assert first != second
    assert second.decode("utf-8") == html.render(RUN)

    def full_disk(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:1000])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space"):
        html.write_page(EMPTY, path)
    assert path.read_bytes() == second
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]
