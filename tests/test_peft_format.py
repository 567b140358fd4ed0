"""PEFT's adapter format: PEFT itself writes what is read here, and loads what is written."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file

import adapters
from eigenscope.errors import InputError, SourceError
from eigenscope.models.peft import AdapterFile, Patterns, as_map, as_stored, read_adapter
from eigenscope.models.peft_write import adapter_config, write_adapter
from eigenscope.models.write import TensorSpec, replacing_folder, shards, write_safetensors, write_shards

pytestmark = pytest.mark.filterwarnings(adapters.IGNORED)
BERT = ("query", "attention.output.dense", "word_embeddings")
CASES = {
    "bert": (adapters.bert, BERT, {}),
    "bert rslora": (adapters.bert, BERT, {"use_rslora": True}),
    "bert dora": (adapters.bert, BERT, {"use_dora": True}),
    "bert patterns": (adapters.bert, BERT, {"rank_pattern": {r"layer\.1\..*": 2, "query": 3}, "alpha_pattern": {"query": 5}}),
    "bert rslora patterns": (adapters.bert, BERT, {"use_rslora": True, "rank_pattern": {"query": 3}, "alpha_pattern": {"1.*query": 5}}),
    "gpt2": (adapters.gpt2, ("c_attn", "mlp.c_proj"), {"fan_in_fan_out": True}),
    "gpt2 dora": (adapters.gpt2, ("c_attn", "mlp.c_proj"), {"fan_in_fan_out": True, "use_dora": True}),
    "llama": (adapters.llama, ("q_proj", "k_proj", "down_proj", "lm_head"), {}),
    "convolutions": (adapters.Convolutions, ("first", "second", "last"), {}),
    "convolutions dora": (adapters.Convolutions, ("first", "second", "last"), {"use_dora": True}),
}  # fmt: skip


def trained(make, targets, options, folder):
    """An adapter as PEFT makes and saves one, its factors drawn at random; and what the model says with it."""
    model = get_peft_model(make(), LoraConfig(r=4, lora_alpha=6, target_modules=list(targets), **options)).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_magnitude" in name:
                parameter.mul_(1.3)
            elif "lora_" in name:
                parameter.normal_(std=0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it saves no embeddings
        model.save_pretrained(folder, save_embedding_layers=False)
    return model, adapters.outputs(model)


@pytest.mark.parametrize("name", CASES)
def test_what_peft_writes_is_read_and_what_is_written_peft_loads(name, tmp_path):
    make, targets, options = CASES[name]
    model, wanted = trained(make, targets, options, tmp_path / "theirs")
    found = read_adapter(tmp_path / "theirs")
    assert len(found.layers) == sum(hasattr(m, "lora_dropout") for m in model.modules())
    write_adapter(tmp_path / "ours", found)
    again = adapters.with_peft(make(), tmp_path / "ours")
    assert float((adapters.outputs(again) - wanted).abs().max()) <= 1e-6
    # The map that the layer says it adds is the one that PEFT merges.
    base, merged = make().state_dict(), model.merge_and_unload().state_dict()
    for module, layer in found.layers.items():
        W = as_map(base[f"{module}.weight"].double(), layer.kind)
        adapted = W + layer.delta()
        if layer.magnitude is not None:
            adapted *= (layer.magnitude / adapted.norm(dim=1)).unsqueeze(1)
        result = as_stored(adapted, layer.kind, layer.shape)
        assert float((result - merged[f"{module}.weight"]).abs().max()) <= 1e-6, module
        assert layer.shape == tuple(base[f"{module}.weight"].shape)


def test_a_second_reading_gives_the_same_layers(tmp_path):
    trained(*CASES["bert patterns"], tmp_path / "theirs")
    first = read_adapter(tmp_path / "theirs")
    write_adapter(tmp_path / "ours", first)
    second = read_adapter(tmp_path / "ours")
    for module, layer in first.layers.items():
        other = second.layers[module]
        assert torch.equal(layer.A, other.A)
        assert torch.equal(layer.B, other.B)
        assert other.scale == pytest.approx(layer.scale, rel=1e-15)


@pytest.mark.parametrize(
    "module", ["encoder.layer.1.q", "encoder.layer.11.q", "q", "x.encoder.layer.1.q", "encoder_layer.1.q", "k"]
)
@pytest.mark.parametrize(
    "keys",
    [
        ["layer.1.q", "q"],
        ["q", "layer.1.q"],
        [r"layer\.1\.q"],
        ["1.*q"],
        ["^q"],
        ["encoder.layer.1.q"],
        ["(q|k)"],
        [r"\d.q"],
    ],
)
def test_patterns_match_as_in_peft(module, keys):
    content = {key: float(place) for place, key in enumerate(keys)}
    assert Patterns(content, "here").get(module, -1.0) == content.get(get_pattern_key(keys, module), -1.0)


@pytest.mark.parametrize("key", ["(a+)+$", "(.*)*", ".*.*.*.*.*x"])
def test_a_pattern_that_would_never_end_is_refused(key):
    with pytest.raises(SourceError, match="could take for ever"):
        Patterns({key: 1.0}, "here")


def test_patterns_written_tell_modules_apart_that_end_alike():
    layers = {
        name: adapters.random_layer(name, 6, 5, rank)
        for name, rank in (("head", 2), ("draft.head", 3), ("a.b", 3), ("a_b", 1), ("c.a_b", 3), ("other", 3))
    }
    config = adapter_config(AdapterFile(layers))
    for name, layer in layers.items():
        key = get_pattern_key(config["rank_pattern"], name)
        assert config["rank_pattern"].get(key, config["r"]) == layer.rank, name
        key = get_pattern_key(config["alpha_pattern"], name)
        assert config["alpha_pattern"].get(key, config["lora_alpha"]) == layer.rank, name


def test_a_module_that_ends_alike_is_not_adapted(tmp_path):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.head, self.draft = torch.nn.Linear(5, 5), torch.nn.ModuleDict({"head": torch.nn.Linear(5, 5)})

        def forward(self, x):
            return self.head(self.draft["head"](x))

    model = Model()
    file = AdapterFile({"head": adapters.random_layer("head", 5, 5, 2)})
    write_adapter(tmp_path / "a", file, modules=[name for name, _ in model.named_modules()])
    adapted = adapters.with_peft(model, tmp_path / "a")
    assert [name for name, m in adapted.named_modules() if hasattr(m, "lora_A")] == ["base_model.model.head"]
    # Without the base's names PEFT takes the one for the other: the exclusion is what the test above rests on.
    assert adapter_config(file)["exclude_modules"] is None


def test_saved_modules_and_biases_are_loaded_by_peft(tmp_path):
    tuned = adapters.bert()
    with torch.no_grad():
        tuned.encoder.layer[0].output.LayerNorm.weight.add_(0.5)
        tuned.encoder.layer[0].attention.self.query.bias.add_(0.5)
        tuned.encoder.layer[0].attention.self.key.bias.add_(0.5)
    state = tuned.state_dict()
    names = [f"encoder.layer.0.output.LayerNorm.{p}" for p in ("weight", "bias")]
    names += [f"encoder.layer.0.attention.self.{p}.bias" for p in ("query", "key")]
    layer = adapters.random_layer("encoder.layer.0.attention.self.query", 24, 24, 2)
    file = AdapterFile({layer.module: layer}, {}, {name: state[name] for name in names})
    write_adapter(tmp_path / "a", file)
    with torch.no_grad():
        tuned.get_submodule(layer.module).weight.add_(layer.delta().float())
    found = adapters.with_peft(adapters.bert(), tmp_path / "a")
    assert float((adapters.outputs(found) - adapters.outputs(tuned)).abs().max()) <= 1e-6
    assert read_adapter(tmp_path / "a").saved.keys() == set(names)


def written(folder, change=None, config=None):
    """A sound adapter on disk, then spoilt."""
    file = AdapterFile(
        {"a.q": adapters.random_layer("a.q", 6, 5, 2), "a.k": adapters.random_layer("a.k", 6, 5, 3, seed=1)}
    )
    write_adapter(folder, file)
    if change:
        tensors = load_file(folder / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, folder / "adapter_model.safetensors")
    if config is not None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


PREFIX = "base_model.model.a.q."
SPOILT = {
    "a key of another format": (lambda t: t.update({"lora_unet_a_q.lora_down.weight": torch.ones(2)}), None, "not understood: lora_unet"),
    "a second adapter": (lambda t: t.update({f"{PREFIX}x.lora_A.one.weight": torch.ones(2, 5), f"{PREFIX}x.lora_B.two.weight": torch.ones(6, 2)}), None, "2 adapters: one, two"),
    "no B": (lambda t: t.pop(f"{PREFIX}lora_B.weight"), None, "has no lora_B"),
    "factors that do not fit": (lambda t: t.update({f"{PREFIX}lora_B.weight": torch.ones(6, 4)}), None, r"B of shape \(6, 4\)"),
    "NaN": (lambda t: t[f"{PREFIX}lora_B.weight"].fill_(float("nan")), None, "not finite"),
    "integers": (lambda t: t.update({f"{PREFIX}lora_B.weight": torch.ones(6, 2, dtype=torch.int32)}), None, "int32"),
    "a rank that the configuration does not say": (None, {"r": 7, "rank_pattern": {}}, "has rank [23]; expected 7"),
    "a magnitude without DoRA": (lambda t: t.update({f"{PREFIX}lora_magnitude_vector": torch.ones(6)}), None, "has a magnitude"),
    "DoRA without a magnitude": (None, {"use_dora": True}, "has no magnitude"),
    "an alpha of words": (None, {"lora_alpha": "many"}, "lora_alpha is 'many'"),
    "a pattern of no expression": (None, {"rank_pattern": {"(": 2}}, "no regular expression"),
    "ranks in a list": (None, {"rank_pattern": [1]}, "rank_pattern is a list"),
    "another kind of adapter": (None, {"peft_type": "IA3"}, "type 'IA3'"),
    "settings beyond LoRA": (None, {"target_parameters": ["x"]}, "target_parameters"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILT)
def test_what_is_not_sound_is_refused_in_one_line(name, tmp_path):
    change, config, message = SPOILT[name]
    with pytest.raises(SourceError, match=message) as caught:
        read_adapter(written(tmp_path / "a", change, config))
    assert "\n" not in str(caught.value)


def test_without_a_configuration_alpha_is_needed(tmp_path):
    folder = written(tmp_path / "a")
    (folder / "adapter_config.json").unlink()
    with pytest.raises(SourceError, match=r"do not tell their scale.*[Gg]ive alpha|give alpha"):
        read_adapter(folder)
    found = read_adapter(folder, alpha=6.0)
    assert {name: layer.scale for name, layer in found.layers.items()} == {"a.q": 3.0, "a.k": 2.0}


def test_places_without_an_adapter(tmp_path):
    with pytest.raises(SourceError, match="no such file or folder"):
        read_adapter(tmp_path / "none")
    with pytest.raises(SourceError, match="no adapter in this folder"):
        read_adapter(tmp_path)


def test_weights_in_pytorchs_format_and_with_the_adapters_name_in_the_keys(tmp_path):
    folder = written(tmp_path / "a")
    wanted = read_adapter(folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(
        {re.sub(r"(lora_[AB])\.", r"\1.default.", key): value for key, value in tensors.items()},
        folder / "adapter_model.bin",
    )
    found = read_adapter(folder)
    assert all(torch.equal(found.layers[name].B, layer.B) for name, layer in wanted.layers.items())


def test_a_pickle_is_not_executed(tmp_path):
    folder = written(tmp_path / "a")
    (folder / "adapter_model.safetensors").unlink()
    torch.save({"x": print}, folder / "adapter_model.bin")
    with pytest.raises(SourceError, match=r"refused|not a sound"):
        read_adapter(folder)


def test_what_cannot_be_written_is_refused(tmp_path):
    layer = adapters.random_layer("a", 6, 5, 2)
    with pytest.raises(InputError, match="without layers"):
        write_adapter(tmp_path / "a", AdapterFile({}))
    with pytest.raises(InputError, match="adapted and saved whole"):
        write_adapter(tmp_path / "a", AdapterFile({"a": layer}, {}, {"a.weight": torch.ones(6, 5)}))
    dora = dataclasses.replace(layer, module="b", magnitude=torch.ones(6))
    with pytest.raises(InputError, match="a has no magnitude"):
        write_adapter(tmp_path / "a", AdapterFile({"a": layer, "b": dora}))
    assert not list(tmp_path.iterdir())


def test_a_folder_is_replaced_only_with_force_and_keeps_what_is_not_ours(tmp_path):
    folder = written(tmp_path / "a")
    (folder / "notes.txt").write_text("mine")
    (folder / "adapter_model.bin").write_bytes(b"old")
    file = AdapterFile({"z": adapters.random_layer("z", 6, 5, 2)})
    with pytest.raises(InputError, match="exists and is not empty"):
        write_adapter(folder, file)
    assert "a.q" in read_adapter(folder).layers
    write_adapter(folder, file, force=True)
    assert list(read_adapter(folder).layers) == ["z"]
    assert (folder / "notes.txt").read_text() == "mine"
    assert not (folder / "adapter_model.bin").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_error_in_the_middle_leaves_nothing(tmp_path):
    def fails(name):
        if name == "b":
            raise KeyboardInterrupt
        return torch.ones(3)

    specs = [TensorSpec(name, (3,), torch.float32) for name in "abc"]
    with pytest.raises(KeyboardInterrupt), replacing_folder(tmp_path / "out") as beside:
        write_safetensors(beside / "x.safetensors", specs, fails)
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match="No space left") as caught, replacing_folder(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    assert caught.value.filename == str(tmp_path / "out")
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError), replacing_folder(tmp_path / "none" / "out"):
        pass
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"), replacing_folder(tmp_path / "file", force=True):
        pass


def test_streamed_shards_are_read_by_the_library(tmp_path):
    tensors = {
        "a": torch.randn(7, 3, generator=torch.Generator().manual_seed(0)), "b.é": torch.arange(5), "c": torch.tensor(2.5).bfloat16(),
        "d": torch.zeros(0, 4), "e": torch.ones(3, 2).T.half(), "f": torch.tensor([True, False, True]),
    }  # fmt: skip
    specs = [TensorSpec(name, tuple(t.shape), t.dtype) for name, t in tensors.items()]
    asked = []

    def read(name):
        asked.append(name)
        return tensors[name]

    layout = shards(specs, 60)
    write_shards(tmp_path, layout, read)
    assert sorted(asked) == sorted(tensors)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    for name, file in index["weight_map"].items():
        found = load_file(tmp_path / file)[name]
        assert found.dtype == tensors[name].dtype
        assert torch.equal(found, tensors[name])
    assert index["metadata"]["total_size"] == sum(spec.nbytes for spec in specs)
    assert list(shards(specs)) == ["model.safetensors"]
    with pytest.raises(InputError, match="came out as"):
        write_safetensors(tmp_path / "x", [TensorSpec("a", (7, 4), torch.float32)], read)
