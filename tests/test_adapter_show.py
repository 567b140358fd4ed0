"""``adapter show``: readings from the factors alone, against numpy on ΔW itself."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import eigenscope as es
from eigenscope.cli.main import main
from eigenscope.errors import InputError, SourceError
from eigenscope.models.peft import AdapterFile, AdapterLayer
from eigenscope.models.peft_write import write_adapter
from eigenscope.tasks.adapter_show import measured


def file_of(
    values: dict[str, list[float]], *, scale=2.0, dtype=torch.float32, m=24, n=18, seed=0, **config
) -> AdapterFile:
    """Layers whose ΔW has these singular values."""
    layers = {}
    for i, (module, sigma) in enumerate(values.items()):
        generator = torch.Generator().manual_seed(seed + i)
        r = len(sigma)
        U, V = (torch.linalg.qr(torch.randn(k, r, generator=generator, dtype=torch.float64)).Q for k in (m, n))
        # Any invertible T between the factors leaves the product: what is read may not depend on it.
        T = torch.randn(r, r, generator=generator, dtype=torch.float64) + 3.0 * torch.eye(r)
        B, A = U * torch.tensor(sigma, dtype=torch.float64) / scale @ T, torch.linalg.solve(T, V.T)
        layers[module] = AdapterLayer(module, "linear", B.to(dtype), A.to(dtype), scale, None, (m, n))
    return AdapterFile(layers, config, {}, "memory")


NAMES = [f"model.layers.{i}.self_attn.q_proj" for i in range(6)]
SPECTRA = {name: [3.0, 1.0, 0.5, 0.1] for name in NAMES}


def rows(run) -> dict[str, dict]:
    return {record.name: dict(record.readings) for record in run.records}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_readings_are_those_of_the_dense_change(dtype):
    file = file_of(SPECTRA, dtype=dtype)
    run = measured(file)
    for record in run.records:
        layer, row = file.layers[record.name], record.readings
        W = layer.delta().numpy()
        sigma = np.linalg.svd(W, compute_uv=False)[:4]
        share = sigma**2 / (sigma**2).sum()
        assert np.allclose(record.values, sigma, rtol=1e-10)
        assert row["frobenius"] == pytest.approx(np.linalg.norm(W), rel=1e-12)
        assert row["sigma_max"] == pytest.approx(sigma[0], rel=1e-12)
        assert row["stable_rank"] == pytest.approx((sigma**2).sum() / sigma[0] ** 2, rel=1e-12)
        p = sigma / sigma.sum()
        assert row["effective_rank"] == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-10)
        assert row["rank_99"] == int(np.searchsorted(np.cumsum(share), 0.99)) + 1
        assert row["wasted_rank"] == 4 - row["rank_99"]
        assert row["first_share"] == pytest.approx(share[0], rel=1e-12)
        assert row["balance"] == pytest.approx(float(layer.B.double().norm() / layer.A.double().norm()), rel=1e-12)
        assert (row["rank"], row["scale"], row["alpha"]) == (4, 2.0, 8.0)
        assert (row["layer"], row["role"], row["dtype"]) == (int(record.name.split(".")[2]), "q", str(dtype)[6:])
        assert row["parameters"] == 4 * (24 + 18)
        assert row["error_bound"] < 1e-12 * sigma[0] * 100


def test_alpha_of_rank_stabilised_adapters():
    run = measured(file_of(SPECTRA, use_rslora=True))
    assert all(row["alpha"] == pytest.approx(2.0 * 2.0) for row in rows(run).values())


@pytest.mark.parametrize(
    ("dtype", "sigma", "used"),
    [
        (torch.float32, [1.0, 0.5, 1e-3, 1e-5], 4), (torch.float32, [1.0, 0.5, 1e-3, 1e-11], 3),
        (torch.bfloat16, [1.0, 0.5, 0.2, 1e-5], 3), (torch.float64, [1.0, 0.5, 1e-3, 1e-11], 4),
        (torch.float64, [1.0, 0.0, 0.0, 0.0], 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_used_rank_is_what_rounding_of_the_format_cannot_have_made(dtype, sigma, used, scale):
    run = measured(file_of({"model.a": [scale * value for value in sigma]}, dtype=dtype, scale=scale))
    assert rows(run)["model.a"]["used_rank"] == used


def test_used_rank_counts_no_direction_that_rounding_made():
    """Rank 2 exactly, in a format of 8 bits: all four values are there, two of them rounding. Seeds 0 to 19."""
    for seed in range(20):
        file = file_of({"model.a": [1.0, 0.5, 0.0, 0.0]}, dtype=torch.bfloat16, seed=seed)
        run = measured(file)
        assert len(run.records[0].values) == 4
        assert run.records[0].values[2] > 0.0
        assert rows(run)["model.a"]["used_rank"] <= 2


def test_layers_never_trained_dominated_or_apart_are_found():
    values = {name: [1.0, 0.9, 0.8, 0.7] for name in NAMES}
    values[NAMES[1]] = [1.0, 0.01, 0.01, 0.01]
    values[NAMES[2]] = [90.0, 81.0, 72.0, 63.0]
    file = file_of(values)
    layers = dict(file.layers)
    dead = layers[NAMES[0]]
    layers[NAMES[0]] = AdapterLayer(dead.module, "linear", torch.zeros_like(dead.B), dead.A, 2.0, None, dead.shape)
    off = layers[NAMES[5]]
    layers[NAMES[5]] = AdapterLayer(off.module, "linear", off.B, off.A, 0.0, None, off.shape)
    run = measured(AdapterFile(layers, {}, {}, "memory"))
    found = rows(run)
    assert found[NAMES[0]]["status"] == "never trained: B = 0"
    assert found[NAMES[5]]["status"] == "does nothing: scale·B A = 0"
    assert found[NAMES[0]]["stable_rank"] is None
    assert found[NAMES[0]]["used_rank"] == 0
    sentences = [finding.sentence for finding in run.findings]
    assert sentences[0].startswith("2 layers have ΔW = 0")
    assert any("over 90 % of ‖ΔW‖² in one direction" in s and NAMES[1] in s for s in sentences)
    assert all(len(finding.names) <= 2 for finding in run.findings)
    healthy = measured(file_of(SPECTRA))
    assert not healthy.findings, [finding.sentence for finding in healthy.findings]
    nothing = measured(AdapterFile({NAMES[0]: layers[NAMES[0]]}, {}, {}, "memory"))
    assert nothing.verdict.startswith("No layer of this adapter does anything")


def test_unused_directions_are_found():
    values = dict(SPECTRA)
    values[NAMES[3]] = [1.0, 0.5, 0.0, 0.0]
    run = measured(file_of(values))
    assert any("fewer directions above rounding" in f.sentence and "uses 2 of 4" in f.sentence for f in run.findings)
    assert run.verdict.startswith("Used rank 2 to 4 of 4; stable rank 1.14 to 1.25")


def test_dora_shows_its_magnitude():
    file = file_of({"model.a": [1.0, 0.5]})
    one = file.layers["model.a"]
    layer = AdapterLayer("model.a", "linear", one.B, one.A, one.scale, torch.linspace(1.0, 2.0, 24), one.shape)
    row = rows(measured(AdapterFile({"model.a": layer}, {}, {}, "memory")))["model.a"]
    assert row["magnitude"] == pytest.approx(1.5)
    assert row["parameters"] == 2 * (24 + 18) + 24


def test_size_relative_to_the_base_under_any_prefix_and_a_base_that_does_not_fit():
    file = file_of(SPECTRA)
    W = torch.randn(24, 18, generator=torch.Generator().manual_seed(9))
    expected = {name: float(file.layers[name].delta().norm() / W.double().norm()) for name in NAMES}
    for prefix, drop in (("", ""), ("text.", ""), ("", "model.")):
        base = {prefix + name.removeprefix(drop) + ".weight": W for name in NAMES}
        found = rows(measured(file, base=base))
        for name in NAMES:
            assert found[name]["relative_change"] == pytest.approx(expected[name], rel=1e-10), (prefix, drop)
    some = rows(measured(file, base={NAMES[0] + ".weight": W, NAMES[1] + ".weight": W.T.contiguous()}))
    assert some[NAMES[0]]["status"] == "ok"
    assert some[NAMES[1]]["relative_change"] is None
    assert some[NAMES[1]]["status"] == "the base has no weight of this module and shape"
    with pytest.raises(InputError, match=r"no layer of the adapter fits.*q_proj of shape \(24, 18\)"):
        measured(file, base={"other.weight": W})
    assert "relative_change" not in rows(measured(file))[NAMES[0]]


def run(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["eigenscope", "adapter", "show", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        main()
    out = capsys.readouterr()
    return int(left.value.code or 0), out.out, out.err


def test_on_the_command_line_and_in_python(tmp_path, monkeypatch, capsys):
    write_adapter(tmp_path / "a", file_of(SPECTRA))
    code, out, _ = run(monkeypatch, capsys, tmp_path / "a", "--report", tmp_path / "page.html")
    assert code == 0
    assert "Used rank 4 of 4" in out
    assert "used" in out.splitlines()[0]
    page = (tmp_path / "page.html").read_text()
    assert "never trained" not in page
    assert "used rank" in page
    code, out, _ = run(monkeypatch, capsys, tmp_path / "a", "--json")
    found = json.loads(out)
    assert found["verb"] == "adapter show"
    assert found["records"][0]["used_rank"] == 4
    code, _, err = run(monkeypatch, capsys, tmp_path / "a", "--fail-on", "wasted_rank > 0")
    assert code == 1
    assert "6 rows meet" in err
    code, _, err = run(monkeypatch, capsys, tmp_path / "a", "--columns", "used_rnk")
    assert code == 2
    assert "used_rank" in err
    code, _, err = run(monkeypatch, capsys, tmp_path / "none")
    assert code == 2
    shown = es.show_adapter(tmp_path / "a")
    assert list(shown.table["used_rank"]) == [4] * 6
    assert shown.figure("stable_rank").data
    assert shown.figure(matrix=NAMES[0]).data


def test_an_adapter_without_its_configuration(tmp_path):
    write_adapter(tmp_path / "a", file_of(SPECTRA))
    (tmp_path / "a" / "adapter_config.json").unlink()
    with pytest.raises(SourceError, match="alpha"):
        es.show_adapter(tmp_path / "a")
    found = es.show_adapter(tmp_path / "a", alpha=8.0)
    assert found.run.records[0].readings["scale"] == 2.0
