"""``adapter apply``: the adapted model against PEFT's merged one, shards and files kept, and every bad input."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import adapters
import eigenscope as es
from conftest import write_shards
from eigenscope.errors import InputError, SourceError
from eigenscope.models import write
from eigenscope.models.peft import AdapterFile
from eigenscope.models.peft_write import write_adapter
from eigenscope.tasks.adapter_apply import adapted, make_plan

pytestmark = pytest.mark.filterwarnings(adapters.IGNORED)


def bert_adapter(folder, **more):
    names = ("encoder.layer.0.attention.self.query", "encoder.layer.1.output.dense")
    layers = {
        names[0]: adapters.random_layer(names[0], 24, 24, 2, scale=1.5),
        names[1]: adapters.random_layer(names[1], 24, 40, 3, scale=0.5, seed=4),
    }
    layers["embeddings.word_embeddings"] = adapters.random_layer(
        "embeddings.word_embeddings", 24, 50, 2, kind="embedding", shape=(50, 24)
    )
    write_adapter(folder, AdapterFile(layers, more))
    return folder


def test_the_weights_are_those_that_peft_merges(tmp_path):
    folder = adapters.save(adapters.bert(), tmp_path / "base")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"another copy of the weights")
    (folder / ".cache").mkdir()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (folder / "stolen.json").symlink_to("/etc/hostname")
    es.apply_adapter(folder, bert_adapter(tmp_path / "a"), tmp_path / "model")
    merged = adapters.with_peft(adapters.bert(), tmp_path / "a").merge_and_unload().state_dict()
    found = load_file(tmp_path / "model" / "model.safetensors")
    assert found.keys() == merged.keys()
    assert max(float((found[name] - value).abs().max()) for name, value in merged.items()) <= 1e-6
    names = {str(path.relative_to(tmp_path / "model")) for path in (tmp_path / "model").rglob("*") if path.is_file()}
    assert names == {"model.safetensors", "config.json", "tokenizer.json", "1_Pooling/config.json"}
    assert {path: path.read_bytes() for path in before} == before


def test_extract_apply_diff_gives_the_certified_error(tmp_path):
    base = adapters.save(adapters.bert(), tmp_path / "base")
    model = adapters.changed(adapters.bert(), ("query", "output.dense", "word_embeddings"), None)
    tuned = adapters.save(model, tmp_path / "tuned")
    found = es.extract_adapter(base, tuned, rank=4, workers=1)
    es.apply_adapter(base, found, tmp_path / "model")
    table = found.table.set_index("name")
    left = es.diff(tmp_path / "model", tuned, workers=1).table.set_index("name")
    first = adapters.bert()
    for module in found.layers:
        size = float((model.get_submodule(module).weight - first.get_submodule(module).weight).detach().double().norm())
        assert left.frobenius[f"{module}.weight"] == pytest.approx(table.error[module] * size, rel=1e-5)
    whole = es.extract_adapter(base, tuned, rank=50, workers=1)
    es.apply_adapter(base, whole, tmp_path / "whole")
    assert es.diff(tmp_path / "whole", tuned, workers=1).table.relative_change.max() < 1e-6


def test_shards_are_those_of_the_base_and_one_tensor_is_read_at_a_time(tmp_path, monkeypatch):
    tensors = {
        f"layers.{i}.q_proj.weight": torch.randn(8, 6, generator=torch.Generator().manual_seed(i)).bfloat16()
        for i in range(5)
    }
    tensors["norm.weight"] = torch.ones(6)
    (tmp_path / "base").mkdir()
    write_shards(tmp_path / "base", tensors, "safetensors")
    layer = adapters.random_layer("layers.3.q_proj", 8, 6, 2)
    adapter = es.Adapter(AdapterFile({layer.module: layer}))
    es.apply_adapter(tmp_path / "base", adapter, tmp_path / "model")
    ours, theirs = ({p.name for p in (tmp_path / x).iterdir()} for x in ("model", "base"))
    assert ours == theirs
    for path in (tmp_path / "base").glob("*.safetensors"):
        with safe_open(path, "pt") as first, safe_open(tmp_path / "model" / path.name, "pt") as second:
            assert sorted(first.keys()) == sorted(second.keys())
            for name in first.keys():  # noqa: SIM118
                a, b = first.get_tensor(name), second.get_tensor(name)
                assert a.dtype == b.dtype
                wanted = (a.double() + layer.delta()).bfloat16() if name == "layers.3.q_proj.weight" else a
                assert float((b - wanted).abs().max()) <= (0.02 if name == "layers.3.q_proj.weight" else 0.0)
    index = json.loads(next((tmp_path / "base").glob("*.index.json")).read_text())
    written = json.loads(next((tmp_path / "model").glob("*.index.json")).read_text())
    assert written["weight_map"] == index["weight_map"]


def test_dora_and_saved_parameters(tmp_path):
    base = {
        "a.weight": torch.randn(5, 4, generator=torch.Generator().manual_seed(0)),
        "a.bias": torch.zeros(5),
        "n.weight": torch.ones(4),
    }
    layer = dataclasses.replace(adapters.random_layer("a", 5, 4, 2), magnitude=torch.arange(1.0, 6.0))
    file = AdapterFile({"a": layer}, {}, {"a.bias": torch.ones(5), "n.weight": torch.full((4,), 2.0)})
    es.apply_adapter(base, es.Adapter(file), tmp_path / "model")
    found = load_file(tmp_path / "model" / "model.safetensors")
    assert torch.allclose(found["a.weight"].norm(dim=1), torch.arange(1.0, 6.0), rtol=1e-6)
    direction = base["a.weight"] + layer.delta().float()
    assert torch.allclose(
        found["a.weight"], direction * (torch.arange(1.0, 6.0) / direction.norm(dim=1))[:, None], atol=1e-6
    )
    assert torch.equal(found["a.bias"], torch.ones(5))
    assert torch.equal(found["n.weight"], torch.full((4,), 2.0))


def test_names_that_differ_by_a_prefix_are_matched():
    weight = {"encoder.0.q.weight": torch.zeros(6, 5), "encoder.1.q.weight": torch.zeros(6, 5)}
    for module in ("bert.encoder.1.q", "encoder.1.q"):
        layer = adapters.random_layer(module, 6, 5, 2)
        plan = make_plan(weight, es.Adapter(AdapterFile({module: layer})))
        assert list(plan.places) == ["encoder.1.q.weight"]
    prefixed = {f"model.{name}": value for name, value in weight.items()}
    layer = adapters.random_layer("encoder.1.q", 6, 5, 2)
    plan = make_plan(prefixed, es.Adapter(AdapterFile({"encoder.1.q": layer})))
    assert torch.allclose(adapted(plan, "model.encoder.1.q.weight").double(), layer.delta(), atol=1e-6)


def single(module="a", m=6, n=5, **more):
    return es.Adapter(AdapterFile({module: adapters.random_layer(module, m, n, 2)}, **more))


BASE = {"a.weight": torch.ones(6, 5), "b.weight": torch.ones(7, 5)}
BAD = {
    "another model's": (BASE, single("z"), r"1 keys of the adapter do not fit the base: z \(6, 5\)"),
    "another size": (BASE, single("b"), r"b \(6, 5\), where the base has one of shape \(7, 5\)"),
    "a saved parameter that is not there": (BASE, single(saved={"n.weight": torch.ones(3)}), r"n.weight \(3,\)"),
    "quantised": ({**BASE, "b.weight": torch.ones(7, 5).to(torch.float8_e4m3fn)}, single(), "quantised: b.weight.*quantise the result"),
    "trained from PiSSA": (BASE, single(config={"init_lora_weights": "pissa_niter_4"}), "trained from 'pissa_niter_4'"),
    "overflow": ({"a.weight": torch.full((6, 5), 6e4).half()}, es.Adapter(AdapterFile({"a": adapters.random_layer("a", 6, 5, 2, scale=1e6)})), "overflows torch.float16"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(name, tmp_path):
    base, adapter, message = BAD[name]
    with pytest.raises(InputError, match=message) as caught:
        es.apply_adapter(base, adapter, tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_folders_that_must_not_be_written(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    save_file(BASE, base / "model.safetensors")
    with pytest.raises(InputError, match="base's own folder"):
        es.apply_adapter(base, single(), base, force=True)
    with pytest.raises(InputError, match="exists and is not empty"):
        es.apply_adapter(BASE, single(), base)
    (base / "old.bin").write_bytes(b"x")
    es.apply_adapter(BASE, single(), base, force=True)
    assert {path.name for path in base.iterdir()} == {"model.safetensors"}
    with pytest.raises(SourceError, match="no such file"):
        es.apply_adapter(BASE, tmp_path / "none", tmp_path / "model")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_no_space_and_interruption_leave_nothing_half(error, tmp_path, monkeypatch):
    real = write.write_safetensors

    def fails(path, specs, read):
        real(path, specs, read)
        raise error

    monkeypatch.setattr(write, "write_safetensors", fails)
    with pytest.raises(type(error)):
        es.apply_adapter(BASE, single(), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_base_of_pytorchs_format_is_written_as_safetensors(tmp_path):
    (tmp_path / "base").mkdir()
    torch.save(BASE, tmp_path / "base" / "pytorch_model.bin")
    es.apply_adapter(tmp_path / "base", single(), tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["model.safetensors"]
    change = load_file(tmp_path / "model" / "model.safetensors")["a.weight"] - BASE["a.weight"]
    assert float((change.double() - single().layers["a"].delta()).abs().max()) <= 1e-6
    assert math.isfinite(float(change.sum()))
