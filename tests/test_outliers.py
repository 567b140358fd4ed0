"""What stands out: planted faults are named, first and once; a sound model names none of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import eigenscope as es
from eigenscope.measures import outliers
from eigenscope.measures.duplicates import find_duplicates, sample_entries
from eigenscope.results import Record

ROLES = {"self_attn.q_proj": (96, 64), "self_attn.o_proj": (64, 96), "mlp.up_proj": (128, 64)}


def sound_model(layers=8, seed=0):
    """Each matrix is noise and twelve directions, of strengths that vary a little from layer to layer."""
    rng = np.random.default_rng(seed)
    model = {}
    for layer in range(layers):
        for role, shape in ROLES.items():
            left = np.linalg.qr(rng.standard_normal((shape[0], 12)))[0]
            right = np.linalg.qr(rng.standard_normal((shape[1], 12)))[0]
            strengths = 30.0 * np.geomspace(1.0, 4.0, 12) * np.exp(0.05 * rng.standard_normal(12))
            matrix = rng.standard_normal(shape) + (left * strengths) @ right.T
            model[f"model.layers.{layer}.{role}.weight"] = torch.from_numpy(0.02 * matrix).float()
    return model


def name(layer, role):
    return f"model.layers.{layer}.{role}.weight"


def findings_of(model):
    return es.scan(model).run.findings


@pytest.mark.parametrize("seed", range(6))
def test_a_sound_model_has_no_findings(seed):
    assert findings_of(sound_model(seed=seed)) == ()


def test_each_planted_fault_is_the_first_finding():
    generator = torch.Generator().manual_seed(1)
    up, q, o = name(3, "mlp.up_proj"), name(5, "self_attn.q_proj"), name(2, "self_attn.o_proj")
    model = sound_model()
    left, values, right = torch.linalg.svd(model[up], full_matrices=False)
    faults = {
        "numerical rank 4": {up: (left[:, :4] * values[:4]) @ right[:4]},
        "where its 7 peers": {o: model[o] * 1e4},
        "noise alone explains all 64": {q: torch.randn(96, 64, generator=generator) * model[q].std()},
        "every entry is 0": {q: torch.zeros(96, 64)},
        "nearly identical": {q: model[name(1, "self_attn.q_proj")] * 1.01},
        "2 matrices are identical": {q: model[name(1, "self_attn.q_proj")]},
    }
    for words, change in faults.items():
        findings = findings_of({**model, **change})
        assert words in findings[0].sentence
        assert set(change) <= set(findings[0].names)
        assert {n for found in findings for n in found.names} <= {*change, name(1, "self_attn.q_proj")}


def test_a_duplicated_layer_is_one_finding():
    model = sound_model()
    for role in ROLES:
        model[name(6, role)] = model[name(2, role)].clone()
    (found,) = findings_of(model)
    assert found.sentence == "layers 2 and 6 share 3 matrices (q, o, up) that are identical"
    assert len(found.names) == 6


def test_tied_embeddings_are_named_as_identical():
    table = torch.randn(200, 64, generator=torch.Generator().manual_seed(3)) * (1 + torch.arange(64))
    found = findings_of({"embed_tokens.weight": table, "lm_head.weight": table.clone(), **sound_model()})
    assert found[0].sentence == "2 matrices are identical: embed_tokens.weight, lm_head.weight"
    transposed = findings_of({"embed_tokens.weight": table, "other.weight": table.T.contiguous(), **sound_model()})
    assert "identical: embed_tokens.weight, other.weight" in transposed[0].sentence


def test_independent_noise_is_no_duplicate_though_the_spectra_are_close():
    generator = torch.Generator().manual_seed(4)
    records = es.scan({f"{i}.weight": torch.randn(300, 300, generator=generator) for i in range(4)}).run.records
    spectra = [record.values / np.linalg.norm(record.values) for record in records]
    assert np.linalg.norm(spectra[0] - spectra[1]) < 0.02
    assert find_duplicates(records) == []


def test_equal_samples_with_other_spectra_are_no_duplicates():
    matrix = torch.randn(50, 40, generator=torch.Generator().manual_seed(5))
    (one,) = es.scan({"a.weight": matrix}).run.records
    other = Record("b.weight", one.readings, one.values * 1.5, None, one.sample)
    assert find_duplicates([one, other]) == []
    assert len(find_duplicates([one, Record("b.weight", one.readings, one.values, None, one.sample)])) == 1


def test_the_difference_of_near_copies_is_estimated_within_its_error():
    generator = torch.Generator().manual_seed(6)
    matrix, noise = torch.randn(200, 300, generator=generator), torch.randn(200, 300, generator=generator)
    sentence = findings_of({"a.weight": matrix, "b.weight": matrix + 0.03 * noise})[0].sentence
    value, error = (float(part.strip(" %of")) for part in sentence.split("differ by ")[1].split(" of")[0].split("±"))
    assert abs(value - 3.0) < 4 * error
    assert 0.0 < error < 0.3


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e290])
def test_copies_are_found_at_any_scale(scale):
    matrix = torch.randn(40, 30, generator=torch.Generator().manual_seed(9)).double() * scale
    found = findings_of({"a.weight": matrix, "b.weight": matrix.clone(), "c.weight": matrix * 1e6})
    assert [each.names for each in found if "identical" in each.sentence] == [("a.weight", "b.weight")]


def test_samples_depend_on_the_shape_alone():
    matrix = torch.randn(30, 20, generator=torch.Generator().manual_seed(7))
    assert np.array_equal(sample_entries(matrix), sample_entries(matrix.T))
    assert np.array_equal(sample_entries(matrix), sample_entries(matrix.clone()))
    assert sample_entries(matrix).shape == (256,)


def test_dead_rows_and_columns_are_counted():
    model = sound_model()
    q = model[name(4, "self_attn.q_proj")]
    q[10:40] = 0.0
    q[:, 5] = 0.0
    result = es.scan(model)
    row = result.table.set_index("name").loc[name(4, "self_attn.q_proj")]
    assert (row["zero_rows"], row["zero_cols"]) == (30, 1)
    assert "30 of 96 rows are 0: dead outputs" in result.run.findings[0].sentence


@pytest.mark.parametrize("count", [1, 2, 3])
def test_too_few_peers_to_judge(count):
    model = {name(i, "mlp.up_proj"): value for i, value in enumerate(sound_model(count).values())}
    model = {k: v * (1e6 if i == 0 else 1.0) for i, (k, v) in enumerate(model.items())}
    assert outliers.deviations(es.scan(model).run.records[: outliers.FEWEST_PEERS]) == []


def test_normal_populations_are_named_as_rarely_as_stated():
    # 400 populations of 12 layers, one reading: the share of named matrices against 2·CHANCE, with room for the MAD's tails.
    rng = np.random.default_rng(8)
    named = 0
    for _ in range(400):
        rows = [
            Record(f"{i}", {"role": "q", "layer": i, "rows": 9, "cols": 9, "frobenius": float(np.exp(x))}, np.ones(9))
            for i, x in enumerate(rng.standard_normal(12))
        ]
        named += len(outliers.deviations(rows))
    assert 0 < named < 400 * 12 * 0.02


def test_rows_that_were_not_measured_do_not_disturb():
    model = sound_model()
    model[name(0, "mlp.up_proj")][0, 0] = float("nan")
    result = es.scan(model)
    assert result.run.findings == ()
    assert list(result.outliers.columns) == ["names", "sentence", "severity", "reading"]


def test_faults_of_a_real_model_come_first(demo):
    base = load_file(demo / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    layer = "encoder.layer.{}.".format
    noise, low, scaled = (
        layer(2) + "attention.self.value.weight", layer(4) + "intermediate.dense.weight",
        layer(1) + "attention.output.dense.weight",
    )  # fmt: skip
    first, second = dict(base), dict(base)
    first[noise] = torch.randn(384, 384, generator=generator) * base[noise].std()
    left, values, right = torch.linalg.svd(base[low], full_matrices=False)
    first[low] = (left[:, :4] * values[:4]) @ right[:4]
    second[scaled] = base[scaled] * 1e4
    second |= {n: base[n.replace(layer(3), layer(0))].clone() for n in base if n.startswith(layer(3))}
    sound, broken, copied = findings_of(base), findings_of(first)[:5], findings_of(second)[:5]
    assert any(found.names == (noise,) and "noise alone" in found.sentence for found in broken)
    assert any(found.names == (low,) and "numerical rank 4" in found.sentence for found in broken)
    assert any(found.names == (scaled,) and "σ max" in found.sentence for found in copied)
    assert any(found.sentence.startswith("layers 0 and 3 share 6 matrices") for found in copied)
    # What the model itself has to say: its pooler was never trained.
    assert [found.names for found in sound] == [("pooler.dense.weight",)]
