"""Several checkpoints at once, conditions, and what the command line makes of both."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from safetensors.torch import save_file

import eigenscope as es
from eigenscope.cli import main
from eigenscope.errors import InputError


def checkpoint(step):
    """Four matrices; those of layer 1 grow with the step."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        f"model.layers.{layer}.self_attn.{role}_proj.weight": torch.randn(24, 24, generator=generator)
        for layer in range(2) for role in ("q", "k")
    }  # fmt: skip
    return {name: tensor * (10.0**step if ".1." in name else 1.0) for name, tensor in weights.items()}


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"step{step}.safetensors" for step in range(3)]
    for step, path in enumerate(paths):
        save_file(checkpoint(step), path)
    return [str(path) for path in paths]


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["eigenscope", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main.main()
        captured = capsys.readouterr()
        return left.value.code, captured.out, captured.err

    return call


def test_each_reading_over_time(files):
    series = es.scan_series(files)
    table = series.table
    assert list(table["checkpoint"].unique()) == [0, 1, 2]
    assert list(table["source"].unique()) == files
    grown = table[table["name"] == "model.layers.1.self_attn.q_proj.weight"]["sigma_max"].to_numpy()
    assert grown[1:] / grown[:-1] == pytest.approx([10.0, 10.0])
    assert table.drop(columns=["checkpoint", "source"])[:4].equals(es.scan(files[0]).table)
    figure = series.figure("sigma_max", role="q")
    assert len(figure.data) >= 2


def test_modules_and_dictionaries_make_a_series_too(tmp_path):
    series = es.scan_series([checkpoint(0), checkpoint(1)], include=("*.q_proj.*",))
    assert len(series.table) == 4
    assert series.report(tmp_path / "page.html").read_text("utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize("sources", [[], "demo"])
def test_a_series_needs_a_list(sources):
    with pytest.raises(InputError, match="list of at least one"):
        es.scan_series(sources)


def test_no_run_file_from_python():
    with pytest.raises(InputError, match="-o FOLDER"):
        es.scan_series([checkpoint(0)], output="x.db")


def test_the_terminal_shows_medians_and_matrices_over_time(run, files):
    code, out, _ = run("scan", *files)
    assert code == 0
    line = next(line.split() for line in out.splitlines() if line.startswith("‖W‖F"))
    small, middle, large = (float(word.replace(",", "")) for word in line[1:])
    assert small < middle < large
    code, out, _ = run("scan", *files, "--columns", "sigma_max")
    rows = [line for line in out.splitlines() if "q_proj" in line]
    assert len(rows) == 2
    assert len({*rows[0].split()[1:]}) == 1
    assert len({*rows[1].split()[1:]}) == 3


def test_a_series_resumes_from_its_folder(run, files, tmp_path):
    folder = tmp_path / "runs"
    assert run("scan", *files, "-o", folder)[0] == 0
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["001-step0.safetensors.db", "002-step1.safetensors.db", "003-step2.safetensors.db"]
    before = [path.read_bytes() for path in sorted(folder.iterdir())]
    assert run("scan", *files, "-o", folder)[0] == 0
    assert [path.read_bytes() for path in sorted(folder.iterdir())] == before
    code, out, _ = run("report", *sorted(folder.iterdir()), "-o", tmp_path / "page.html")
    assert (code, out.strip()) == (0, str(tmp_path / "page.html"))


def test_a_file_where_a_folder_is_needed(run, files, tmp_path):
    (tmp_path / "taken").write_text("x")
    code, _, err = run("scan", *files, "-o", tmp_path / "taken")
    assert code == 2
    assert "expected a folder" in err


def test_json_of_a_series_is_a_list(run, files):
    _, out, _ = run("scan", *files, "--json")
    parsed = json.loads(out)
    assert [entry["source"] for entry in parsed] == files
    assert all("findings" in entry for entry in parsed)
    _, out, _ = run("scan", *files, "--plan", "--json")
    assert len(json.loads(out)) == 3


@pytest.mark.parametrize(
    ("condition", "code", "words"),
    [
        ("sigma_max > 1e9", 0, ""),
        ("sigma_max > 500", 1, "2 rows meet 'sigma_max > 500': model.layers.1"),
        ('role == "q" and layer == 0 and sigma_max > 0', 1, "1 row meets"),
        ("sigma_mx > 5", 2, "sigma_max"),
        ("sigma_max >", 2, "cannot be read"),
        ("role > 3", 2, "text with a number"),
    ],
)
def test_conditions_decide_the_exit_code(run, files, condition, code, words):
    seen, out, err = run("scan", files[2], "--fail-on", condition)
    assert seen == code
    assert words in err
    assert ("4 matrices" in out) == (code != 2)


def test_conditions_are_refused_before_the_work(run, tmp_path):
    code, _, err = run("scan", tmp_path / "missing", "--fail-on", "nonsense > 1")
    assert code == 2
    assert "nonsense" in err
    assert "missing" not in err


def test_several_conditions_each_say_what_they_found(run, files):
    code, _, err = run("scan", files[2], "--fail-on", "sigma_max > 500", "--fail-on", "layer == 0")
    assert code == 1
    assert len(err.strip().splitlines()) == 2


def test_the_columns_of_weightwatcher(run, files):
    code, out, _ = run("scan", files[0], "--columns", "weightwatcher")
    names = out.splitlines()[0].split()
    table = es.scan(files[0]).weightwatcher
    assert code == 0
    assert names == list(table.columns)
    assert len(out.splitlines()) == 1 + len(table)
    _, text, _ = run("scan", files[0], "--columns", "weightwatcher", "--json")
    assert [row["longname"] for row in json.loads(text)["records"]] == list(table["longname"])
    code, _, err = run("scan", files[0], "--columns", "weightwatcher,alpha")
    assert code == 2
    assert "it alone" in err
