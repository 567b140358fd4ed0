"""The verb end to end: planted spectra come back, every reading follows, nothing is lost on the way."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import eigenscope as es
from cases import with_spectrum
from eigenscope.columns import BY_NAME, COLUMNS
from eigenscope.errors import InputError


@pytest.fixture(scope="module")
def planted():
    """Ten matrices of known spectra in a dictionary of tensors."""
    model = {}
    for layer in range(5):
        values = torch.logspace(0, -1 - layer, 24, dtype=torch.float64) * 10.0**layer
        model[f"model.layers.{layer}.self_attn.q_proj.weight"] = with_spectrum(48, 24, values, seed=layer)
        low = torch.cat([torch.ones(layer + 1, dtype=torch.float64), torch.zeros(23 - layer, dtype=torch.float64)])
        model[f"model.layers.{layer}.mlp.down_proj.weight"] = with_spectrum(24, 60, low, seed=100 + layer)
    model["model.norm.weight"] = torch.ones(24)
    return model


def test_planted_spectra_come_back(planted):
    table = es.scan(planted).table.set_index("name")
    assert list(es.scan(planted).table.columns) == [c.name for c in COLUMNS]
    for layer in range(5):
        q = table.loc[f"model.layers.{layer}.self_attn.q_proj.weight"]
        assert (q["layer"], q["role"], q["rows"], q["cols"], q["dtype"]) == (layer, "q", 48, 24, "float64")
        assert q["sigma_max"] == pytest.approx(10.0**layer, rel=1e-9)
        assert q["condition"] == pytest.approx(10.0 ** (1 + layer), rel=1e-4)
        assert q["digits_lost"] == pytest.approx(1 + layer, abs=1e-4)
        assert q["status"] == "ok"
        down = table.loc[f"model.layers.{layer}.mlp.down_proj.weight"]
        assert down["numerical_rank"] == layer + 1
        assert down["stable_rank"] == pytest.approx(layer + 1)
        assert down["effective_rank"] == pytest.approx(layer + 1, rel=1e-6)
        assert down["condition"] == math.inf
        assert "singular to working precision" in down["status"]
        assert down["params_saved_99"] == 24 * 60 - (layer + 1) * 85
        assert down["bytes_saved_99"] == 8 * (24 * 60 - (layer + 1) * 85)


def test_values_are_kept_with_their_bounds(planted):
    result = es.scan(planted)
    for record in result.run.records:
        expected = np.linalg.svd(planted[record.name].numpy(), compute_uv=False)
        bound = record.readings["error_bound"] * record.readings["sigma_max"]
        assert np.all(np.abs(record.values - expected) <= bound + 1e-14 * expected[0])


@pytest.mark.parametrize("scale", [2.0**-40, 1e-12, 1e12])
def test_scaling_a_model_changes_no_verdict(planted, scale):
    one = es.scan(planted).table
    other = es.scan({name: tensor * scale for name, tensor in planted.items()}).table
    invariant = ["numerical_rank", "rank_90", "rank_95", "rank_99", "method"]
    assert one[invariant].equals(other[invariant])
    for name in ("stable_rank", "effective_rank", "participation"):
        assert np.allclose(one[name], other[name], rtol=1e-9)
    assert np.allclose(one["sigma_max"] * scale, other["sigma_max"], rtol=1e-9)
    assert (one["status"] == "ok").equals(other["status"] == "ok")


def test_workers_and_order_do_not_change_a_number(planted):
    tables = [es.scan(planted, workers=n).table for n in (1, 3)]
    assert tables[0].equals(tables[1])


def test_nothing_of_the_callers_is_changed(planted):
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Dropout(), torch.nn.LSTM(4, 3))
    model.train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator, threads = torch.random.get_rng_state(), torch.get_num_threads()
    assert len(es.scan(model, eigenvalues=True).table) == 1 + 8
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert torch.get_num_threads() == threads
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_a_bad_tensor_is_a_row_that_says_why():
    good = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    bad = good.clone()
    bad[3, 5] = float("nan")
    bad[4, 1] = float("inf")
    model = {"a.weight": good, "b.weight": bad, "c.weight": torch.zeros(4, 6), "d.weight": torch.zeros(0, 4),
             "e.weight": torch.ones(1, 9), "f.qweight": torch.ones(4, 4, dtype=torch.int32)}  # fmt: skip
    table = es.scan(model).table.set_index("name")
    assert table.loc["a.weight", "status"] == "ok"
    assert table.loc["b.weight", "status"] == "not measured: 1 NaN and 1 infinite entries, first at row 3, column 5"
    assert np.isnan(table.loc["b.weight", "sigma_max"])
    assert table.loc["c.weight", "status"] == "the zero matrix"
    assert (table.loc["c.weight", "sigma_max"], table.loc["c.weight", "numerical_rank"]) == (0.0, 0)
    assert "empty" in table.loc["d.weight", "status"]
    assert (table.loc["e.weight", "sigma_max"], table.loc["e.weight", "condition"]) == (3.0, 1.0)
    assert "GPTQ" in table.loc["f.qweight", "status"]
    assert len(es.scan(model).coverage) == len(model)


def test_eigenvalues_of_square_maps_on_request():
    rotation = torch.tensor([[0.0, -3.0], [3.0, 0.0]])
    model = {"a.weight": rotation, "b.weight": torch.ones(2, 3)}
    without, wanted = es.scan(model), es.scan(model, eigenvalues=True)
    assert without.table["spectral_radius"].isna().all()
    assert wanted.table["spectral_radius"].tolist()[0] == pytest.approx(3.0)
    assert np.allclose(np.sort_complex(wanted.run.records[0].eigenvalues), [-3j, 3j])
    assert wanted.run.records[1].eigenvalues is None


def test_float32_arithmetic_is_used_when_asked_and_bounds_say_so(planted):
    table = es.scan({k: v.float() for k, v in planted.items()}, dtype="float32").table
    assert set(table["method"]) == {"lapack-float32"}
    assert (table["error_bound"] > 1e-7).all()


def test_choosing_matrices(planted):
    assert len(es.scan(planted, include=("*.q_proj.*",)).table) == 5
    assert len(es.scan(planted, include=("*layers.1*", "*layers.2*"), exclude=("*mlp*",)).table) == 2
    with pytest.raises(InputError, match="none of the 10 matrices"):
        es.scan(planted, include=("nothing",))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": 0}, "0 workers"),
        ({"dtype": "float16"}, "float64 or float32"),
        ({"device": "nosuch"}, "nosuch"),
        ({"target_condition": 1.0}, "more than 1"),
        ({"conv_grid": 0}, "1 to 512"),
    ],
)
def test_bad_options_are_named(planted, arguments, message):
    with pytest.raises(InputError, match=message):
        es.scan(planted, **arguments)


def test_a_source_of_another_kind_is_named():
    with pytest.raises(InputError, match="a int"):
        es.scan(3)


def test_figures_of_a_scan(planted):
    result = es.scan(planted)
    assert result.figure().data
    assert result.figure(reading="stable_rank").data
    assert result.figure(matrix="model.layers.0.mlp.down_proj.weight").data
    with pytest.raises(InputError, match="stable_rank"):
        result.figure(reading="stable_rang")
    with pytest.raises(InputError, match="one of them"):
        result.figure(reading="condition", matrix="x")


def test_progress_counts_every_row(planted):
    events = []
    es.scan(planted, progress=events.append)
    assert [event.done for event in events] == list(range(11))
    assert {event.total for event in events} == {10}
    assert set(BY_NAME) >= {"condition", "status"}
