"""The examples run, say what they promise, and draw their pictures."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
ARGUMENTS = {"edge_of_stability": ["--steps", "255"], "narrow_valley": ["--conditions", "10", "1000"], "saddle": []}


def run(name, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)  # where dataclasses look for it
    spec.loader.exec_module(module)
    picture = tmp_path / f"{name}.html"
    with warnings.catch_warnings():  # an example may choose its own filters
        found = module.main([*ARGUMENTS[name], "--out", str(picture)])
    text = picture.read_text("utf-8")
    assert "Plotly.newPlot" in text
    assert "cdn.plot.ly" not in text.split("Plotly.newPlot")[1]
    return found


def test_every_example_is_run_here():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(ARGUMENTS)


def test_the_edge_of_stability(tmp_path, monkeypatch, capsys):
    means = run("edge_of_stability", tmp_path, monkeypatch)
    descent, adam = means.values()
    assert adam == pytest.approx(1.0, rel=0.1)
    assert 0.6 < descent < 1.0  # on its way: it arrives after 500 steps of 1500
    assert "preconditioned λ_max over the bound 1.267e+04" in capsys.readouterr().out


def test_the_saddles(tmp_path, monkeypatch):
    ends = run("saddle", tmp_path, monkeypatch)
    for (_, method), end in ends.items():
        assert end.endswith("saddle") if method == "Newton" else end == "minimum"
    assert len(ends) == 10


def test_the_narrow_valley(tmp_path, monkeypatch):
    rows = run("narrow_valley", tmp_path, monkeypatch)
    assert len(rows) == 4
    for predicted, measured in rows.values():
        assert measured == pytest.approx(predicted, rel=0.05)
