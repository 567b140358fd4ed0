"""``adapter extract``: planted changes, LAPACK's optimum, PEFT's forward pass, and every bad input."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
import torch

import adapters
import eigenscope as es
from eigenscope.errors import InputError
from eigenscope.methods import dora, truncated
from eigenscope.models.activations import input_moments
from eigenscope.models.peft import read_adapter
from eigenscope.tasks.adapter_extract import parse_budget

pytestmark = pytest.mark.filterwarnings(adapters.IGNORED)
BERT = ("query", "output.dense", "word_embeddings")


def noise(m, n, seed=0):
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


def planted(m, n, rank, seed=1):
    return noise(m, rank, seed) @ noise(rank, n, seed + 1) / math.sqrt(rank)


MATRICES = {
    "noise": (lambda: noise(90, 120), 7),
    "tall noise": (lambda: noise(200, 60), 20),
    "rank and small noise": (lambda: planted(150, 180, 6) + 0.01 * noise(150, 180), 6),
    "rank and noise": (lambda: planted(150, 180, 6) + 0.3 * noise(150, 180), 6),
    "less rank than asked": (lambda: planted(150, 180, 3) + 0.05 * noise(150, 180), 9),
    "slow decay": (lambda: noise(100, 100) * torch.arange(1, 101) ** -1.0, 5),
    "fast decay": (lambda: noise(160, 160) * 0.7 ** torch.arange(160), 12),
    "tiny": (lambda: 1e-30 * noise(60, 50), 5),
    "huge": (lambda: 1e30 * noise(60, 50), 5),
    "all": (lambda: noise(9, 12), 9),
    "one column": (lambda: noise(30, 1), 1),
}


@pytest.mark.parametrize("name", MATRICES)
def test_the_error_is_the_best_the_bound_is_below_it_and_both_are_what_they_say(name):
    make, k = MATRICES[name]
    A = make()
    found = truncated.truncated(A, k, generator=torch.Generator().manual_seed(5))
    values = torch.linalg.svdvals(A.double())
    optimum = float(values[k:].norm())
    measured = float((A.double() - found.left.double() @ found.right.double().T).norm())
    size = float(A.double().norm())
    assert found.error == pytest.approx(measured, rel=1e-6, abs=1e-9 * size)
    assert found.least <= optimum * (1 + 1e-9) + 1e-12 * size
    assert found.certified
    assert found.left.dtype == found.right.dtype == torch.float32
    assert found.error <= (1 + truncated.EXCESS) * optimum + truncated.EXACT * size
    assert found.frobenius == pytest.approx(size, rel=1e-6)


def test_a_sketch_is_taken_only_where_it_is_certified():
    methods = {}
    for name, (make, k) in MATRICES.items():
        methods[name] = truncated.truncated(make(), k, generator=torch.Generator().manual_seed(5)).method
    assert methods["rank and small noise"] == methods["fast decay"] == "sketch"
    assert methods["noise"] == methods["less rank than asked"].replace("64", "32") == "gram32"


def test_a_sketch_without_a_gap_is_not_certified(monkeypatch):
    # The negative of the test above: where no gap is asked for, the bound itself refuses the noise.
    monkeypatch.setattr(truncated, "FIRST_GAP", 2.0)
    monkeypatch.setattr(truncated, "GAP", 2.0)
    found = truncated._by_sketch(noise(200, 300), 5, float(noise(200, 300).norm()), torch.Generator().manual_seed(0))
    assert found is not None
    assert not found.certified


def test_bad_arguments_of_the_truncation():
    with pytest.raises(InputError, match="k = 9"):
        truncated.truncated(noise(8, 9), 9, generator=torch.Generator())
    with pytest.raises(InputError, match="not finite"):
        truncated.truncated(torch.full((3, 3), math.nan), 1, generator=torch.Generator())


def test_dora_recovers_a_planted_direction_and_is_never_worse_than_lora():
    W, rank = noise(40, 30), 3
    direction = W + planted(40, 30, rank)
    tuned = (1.0 + 0.3 * torch.rand(40, 1, generator=torch.Generator().manual_seed(9))) * direction
    plain = truncated.truncated(tuned - W, rank, generator=torch.Generator().manual_seed(0))
    found = dora.fit_direction(W, tuned, plain, rank, generator=torch.Generator().manual_seed(0))
    assert found.error <= 0.2 * plain.error
    full = noise(40, 30, 8)
    plain = truncated.truncated(full - W, rank, generator=torch.Generator().manual_seed(0))
    assert dora.fit_direction(W, full, plain, rank, generator=torch.Generator().manual_seed(0)).error <= plain.error
    W[3], full[3] = 0.0, 0.0
    plain = truncated.truncated(full - W, rank, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match=r"row 3 .* zero"):
        dora.fit_direction(W, full, plain, rank, generator=torch.Generator().manual_seed(0))


PAIRS = {
    "bert": (adapters.bert, BERT, {}),
    "bert dora": (adapters.bert, BERT, {"dora": True}),
    "gpt2": (adapters.gpt2, ("c_attn", "mlp.c_proj", "wpe"), {}),
    "gpt2 dora": (adapters.gpt2, ("c_attn", "mlp.c_proj"), {"dora": True}),
    "llama": (adapters.llama, ("k_proj", "down_proj", "embed_tokens", "lm_head"), {}),
    "convolutions": (adapters.Convolutions, ("first", "second", "last"), {}),
    "convolutions dora": (adapters.Convolutions, ("first", "second", "last"), {"dora": True}),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_planted_change_is_recovered_by_peft(name, tmp_path):
    make, names, options = PAIRS[name]
    tuned = adapters.changed(make(), names, 3)
    found = es.extract_adapter(make(), tuned, rank=3, workers=1, **options)
    assert {layer.rank for layer in found.layers.values()} == {3}
    assert all(module.endswith(names) for module in found.layers)
    assert found.table.error.dropna().max() <= 1e-5
    found.save(tmp_path / "a")
    adapted = adapters.with_peft(make(), tmp_path / "a")
    assert float((adapters.outputs(adapted) - adapters.outputs(tuned)).abs().max()) <= 1e-5
    merged = adapted.merge_and_unload().state_dict()
    for module, layer in found.layers.items():
        T = tuned.get_submodule(module).weight.detach()
        assert float((merged[f"{module}.weight"] - T).abs().max()) <= 1e-5, module
        assert layer.shape == tuple(T.shape)


@pytest.mark.parametrize(
    "options",
    [
        {"energy": 0.7},
        {"error": 0.5},
        {"budget": 4000},
        {"budget": "12KB"},
        {"rank": 2, "dora": True},
        {"rank": 5, "dtype": "bfloat16"},
    ],
)
def test_mixed_ranks_give_the_forward_pass_that_is_predicted(options, tmp_path):
    tuned = adapters.changed(adapters.bert(), BERT, None)
    found = es.extract_adapter(adapters.bert(), tuned, workers=1, **options)
    found.save(tmp_path / "a")
    es.apply_adapter(adapters.save(adapters.bert(), tmp_path / "base"), tmp_path / "a", tmp_path / "model")
    applied = type(tuned).from_pretrained(tmp_path / "model").eval()
    adapted = adapters.with_peft(adapters.bert(), tmp_path / "a")
    assert float((adapters.outputs(adapted) - adapters.outputs(applied)).abs().max()) <= 1e-5
    table = found.table.set_index("name")
    for module in found.layers:
        W, T, M = (m.get_submodule(module).weight.detach().double() for m in (adapters.bert(), tuned, applied))
        assert table.error[module] == pytest.approx(float((T - M).norm() / (T - W).norm()), rel=1e-4)
        if "energy" in options:
            assert table.energy[module] >= options["energy"]
        if "error" in options:
            assert table.error[module] <= options["error"]
    if "budget" in options:
        size = sum(x.parameters for x in found.layers.values())
        limit, in_bytes = parse_budget(options["budget"])
        used = (tmp_path / "a" / "adapter_model.safetensors").stat().st_size if in_bytes else size
        assert 0.7 * limit <= used <= limit


def test_ranks_are_the_least_that_meet_the_target():
    tuned = adapters.changed(adapters.bert(), ("query",), None)
    for options, meets in (
        ({"energy": 0.6}, lambda tails: tails <= 0.4),
        ({"error": 0.4}, lambda tails: tails <= 0.16),
    ):
        table = es.extract_adapter(adapters.bert(), tuned, workers=1, **options).table.set_index("name")
        for name in table.index[table["rank"] > 0]:
            D = tuned.get_submodule(name).weight - adapters.bert().get_submodule(name).weight
            squares = torch.linalg.svdvals(D.detach().double()).square().numpy()
            tails = np.append(np.cumsum(squares[::-1])[::-1], 0.0) / squares.sum()
            assert table["rank"][name] == int(np.argmax(meets(tails)))


@pytest.mark.parametrize("seed", range(6))
def test_a_budget_never_leaves_more_than_a_uniform_rank_at_the_same_size(seed):
    generator = torch.Generator().manual_seed(seed)
    base, tuned = {}, {}
    for place in range(4):
        m, n = (int(x) for x in torch.randint(4, 40, (2,), generator=generator))
        decay = float(torch.rand(1, generator=generator)) * 2
        base[f"layers.{place}.q_proj.weight"] = torch.randn(m, n, generator=generator)
        tuned[f"layers.{place}.q_proj.weight"] = base[f"layers.{place}.q_proj.weight"] + torch.randn(
            m, n, generator=generator
        ) * torch.arange(1, n + 1) ** -decay * 10 ** float(torch.randn(1, generator=generator))
    sizes = {name.removesuffix(".weight"): float((tuned[name] - base[name]).norm()) for name in base}

    def left(adapter):
        table = adapter.table.set_index("name")
        return sum(((1.0 if table["rank"][name] == 0 else table.error[name]) * sizes[name]) ** 2 for name in sizes)

    for rank in (1, 3, 8):
        uniform = es.extract_adapter(base, tuned, rank=rank, workers=1)
        spread = es.extract_adapter(base, tuned, budget=uniform.parameters, workers=1)
        assert spread.parameters <= uniform.parameters
        assert left(spread) <= left(uniform) * (1 + 1e-5)


def test_text_lowers_the_error_of_the_outputs_and_says_so(tmp_path):
    tuned = adapters.changed(adapters.llama(), ("k_proj", "down_proj"), None)
    folder = adapters.save(adapters.llama(), tmp_path / "base")
    _tokenizer(folder)
    text = {"words": " ".join(f"word{i * i % 40}" for i in range(4000))}
    by_text = es.extract_adapter(folder, tuned, rank=3, workers=1, text=text, tokens=1024)
    plain = es.extract_adapter(folder, tuned, rank=3, workers=1)
    moments = input_moments(
        adapters.llama(), lambda: [{"input_ids": (torch.arange(512) ** 2 % 40 + 2).reshape(4, 128)}], list(plain.layers)
    )
    a, b = by_text.table.set_index("name"), plain.table.set_index("name")
    for module in plain.layers:
        W, T = (m.get_submodule(module).weight.detach().double() for m in (adapters.llama(), tuned))
        X = moments[module].matrix
        errors = [float(torch.trace(R @ X @ R.T)) for R in (T - W - x.layers[module].delta() for x in (by_text, plain))]
        assert errors[0] < errors[1], module
        assert a.error[module] >= b.error[module] - 1e-6
        assert a.optimal_error[module] <= a.output_error[module] * (1 + 1e-6)
    assert by_text.parameters == plain.parameters


def _tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"[UNK]": 0, "[PAD]": 1, **{f"word{i}": i + 2 for i in range(40)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)


def test_moments_are_those_of_the_inputs_without_padding():
    model = adapters.bert()
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    batch = {"input_ids": adapters.IDS, "attention_mask": mask}
    names = [
        f"encoder.layer.{i}.{x}" for i in (0, 1) for x in ("attention.self.query", "attention.self.key", "output.dense")
    ]
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(lambda m, x, name=name: seen[name].append(x[0]))
        for name in names
    ]
    with torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    model.train()
    for memory in (10**9, 1):
        found = input_moments(model, lambda: [batch, batch], names, memory=memory)
        for name in names:
            x = seen[name][0][mask.bool()].double()
            assert torch.allclose(found[name].matrix, x.T @ x / len(x), rtol=1e-5, atol=1e-7)
            assert found[name].tokens == 20
    assert found["encoder.layer.0.attention.self.query"].matrix.shape == (24, 24)
    assert model.training
    with pytest.raises(InputError, match="no module named 'nothing'"):
        input_moments(model, lambda: [batch], ["nothing"])


def test_changed_norms_and_biases_are_reported_and_written_on_request(tmp_path):
    tuned = adapters.changed(adapters.llama(), ("q_proj",), 2)
    with torch.no_grad():
        tuned.model.norm.weight.add_(0.3)
        tuned.model.layers[0].input_layernorm.weight.add_(0.3)
    plain = es.extract_adapter(adapters.llama(), tuned, rank=2, workers=1)
    assert "2 norms and biases changed" in plain.run.provenance["notes"]
    assert not plain.file.saved
    whole = es.extract_adapter(adapters.llama(), tuned, rank=2, workers=1, save_modules=True)
    whole.save(tmp_path / "a")
    adapted = adapters.with_peft(adapters.llama(), tmp_path / "a")
    assert float((adapters.outputs(adapted) - adapters.outputs(tuned)).abs().max()) <= 1e-5
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["modules_to_save"] == [
        "model.layers.0.input_layernorm", "model.norm"
    ]  # fmt: skip


def test_tied_embeddings_are_adapted_once_and_reach_the_output(tmp_path):
    from peft import PeftModel

    base = adapters.save(adapters.llama(tied=True), tmp_path / "base")
    tuned = adapters.changed(adapters.llama(tied=True), ("embed_tokens",), 2)
    found = es.extract_adapter(base, adapters.save(tuned, tmp_path / "tuned"), rank=2, workers=1)
    assert list(found.layers) == ["model.embed_tokens"]
    assert "tied to the output layer" in found.run.provenance["notes"]
    found.save(tmp_path / "a")
    with pytest.warns(UserWarning, match="missing adapter keys"):  # those that PEFT shares
        adapted = PeftModel.from_pretrained(adapters.llama(tied=True), str(tmp_path / "a")).eval()
    assert float((adapters.outputs(adapted) - adapters.outputs(tuned)).abs().max()) <= 1e-5
    es.apply_adapter(base, found, tmp_path / "model")
    applied = type(tuned).from_pretrained(tmp_path / "model").eval()
    assert float((adapters.outputs(applied) - adapters.outputs(tuned)).abs().max()) <= 1e-5
    live = es.extract_adapter(adapters.llama(tied=True), tuned, rank=2, workers=1)
    assert list(live.layers) == ["model.embed_tokens"]


def test_nothing_but_what_changed_is_written(tmp_path):
    tuned = adapters.changed(adapters.bert(), ("layer.1.attention.self.query",), 2)
    found = es.extract_adapter(adapters.bert(), tuned, rank=2, workers=1, save_modules=True)
    found.save(tmp_path / "a")
    assert list(read_adapter(tmp_path / "a").layers) == ["encoder.layer.1.attention.self.query"]
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["encoder.layer.1.attention.self.query"]
    assert config["modules_to_save"] is None
    assert set(found.table.status) == {"ok", "unchanged"}
    assert found.spectrum("encoder.layer.1.attention.self.query")[:2].min() > 0
    with pytest.raises(InputError, match="nothing"):
        found.spectrum("nothing")


def test_bf16_throughout(tmp_path):
    base = adapters.bert().bfloat16()
    tuned = adapters.changed(adapters.bert().bfloat16(), ("query",), 2, size=0.5)
    found = es.extract_adapter(base, tuned, rank=2, workers=1)
    layer = next(iter(found.layers.values()))
    assert layer.B.dtype == layer.A.dtype == torch.bfloat16
    name = layer.module
    D = tuned.get_submodule(name).weight.detach().double() - base.get_submodule(name).weight.detach().double()
    measured = float((D - layer.delta()).norm() / D.norm())
    table = found.table.set_index("name")
    assert table.error[name] == pytest.approx(measured, rel=1e-4)
    # The rounding of the factors is in the error, not in the bound.
    assert table.optimal_error[name] < table.error[name] < 0.05
    folder = adapters.save(base, tmp_path / "base")
    es.apply_adapter(folder, found, tmp_path / "model")
    applied = type(base).from_pretrained(tmp_path / "model")
    assert applied.get_submodule(name).weight.dtype == torch.bfloat16


def two(shape=(8, 6), **more):
    base = {"layers.0.q_proj.weight": noise(*shape), "layers.0.k_proj.weight": noise(*shape, seed=1), **more}
    return base, {
        name: value + 0.1 * noise(*value.shape, seed=7) if value.dim() == 2 else value for name, value in base.items()
    }


def test_a_change_that_is_not_finite_is_a_row(tmp_path):
    base, tuned = two()
    tuned["layers.0.q_proj.weight"][2, 3] = math.nan
    table = es.extract_adapter(base, tuned, rank=2, workers=1).table.set_index("name")
    assert "1 of the tuned one's entries are NaN" in table.status["layers.0.q_proj"]
    assert table["rank"].to_dict() == {"layers.0.q_proj": 0, "layers.0.k_proj": 2}
    table = es.extract_adapter(base, tuned, budget=30, workers=1).table.set_index("name")
    assert table["rank"].to_dict() == {"layers.0.q_proj": 0, "layers.0.k_proj": 2}


def test_what_no_adapter_carries_is_said():
    grown = {"embed_tokens.weight": noise(10, 6)}
    base, tuned = two(**grown, **{"layers.0.mlp.experts.down_proj": noise(24, 8).reshape(3, 8, 8)})
    tuned["embed_tokens.weight"] = noise(12, 6)
    found = es.extract_adapter(base, tuned, rank=2, workers=1)
    reasons = {entry.tensor: entry.reason for entry in found.run.coverage}
    assert "+2 rows" in reasons["embed_tokens.weight"]
    assert set(found.layers) == {"layers.0.q_proj", "layers.0.k_proj"}


BAD = {
    "nothing asked": (two(), {}, "none of them given"),
    "two things asked": (two(), {"rank": 1, "energy": 0.5}, "rank and energy given"),
    "rank 0": (two(), {"rank": 0}, "rank 0; expected at least 1"),
    "all the energy": (two(), {"energy": 1.0}, "energy 1.0"),
    "no error": (two(), {"error": 0.0}, "error 0.0"),
    "a budget of words": (two(), {"budget": "much"}, "budget 'much'.*20MB"),
    "a budget too small for any rank": (two(), {"budget": 3}, "rank 0"),
    "a budget too small for a file": (two(), {"budget": "100KB", "dtype": "int8"}, "dtype 'int8'"),
    "nothing changed": ((two()[0], two()[0]), {"rank": 1}, "nothing changed"),
    "other shapes": ((two()[0], two((8, 7))[1]), {"rank": 1}, r"q_proj.weight is 8×6 in the base and 8×7"),
    "no such module": (two(), {"rank": 1, "include": ("x*",)}, "no weight that an adapter can carry"),
    "DoRA by text": (two(), {"rank": 1, "dora": True, "text": {"a": "b"}}, "dora with text"),
    "text without a model": (two(), {"rank": 1, "text": {"a": "b"}}, "a dict"),
    "quantised": (({k: v.to(torch.float8_e4m3fn) for k, v in two()[0].items()}, two()[1]), {"rank": 1}, "quantised"),
    "all NaN": ((two()[0], {k: v * math.nan for k, v in two()[1].items()}), {"rank": 1}, "not finite"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name):
    (base, tuned), options, message = BAD[name]
    with pytest.raises(InputError, match=message) as caught:
        es.extract_adapter(base, tuned, workers=1, **options)
    assert "\n" not in str(caught.value)


def test_the_command_line(tmp_path, capsys, monkeypatch):
    from eigenscope.cli import main

    base = adapters.save(adapters.bert(), tmp_path / "base")
    tuned = adapters.save(adapters.changed(adapters.bert(), ("query",), None), tmp_path / "tuned")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["eigenscope", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main.main()
        return left.value.code, *capsys.readouterr()

    capsys.readouterr()  # transformers' own
    code, out, err = call("adapter", "extract", base, tuned, "--rank", 3, "-o", tmp_path / "a", "--plan")
    assert (code, err) == (0, "")
    assert "rank 3" in out
    assert not (tmp_path / "a").exists()
    code, out, err = call("adapter", "extract", base, tuned, "--rank", 3, "-o", tmp_path / "a")
    assert (code, err) == (0, "")
    assert "encoder.layer.1.attention.self.query" in out
    assert "2 layers" in out
    code, out, err = call("adapter", "extract", base, tuned, "--rank", 3, "-o", tmp_path / "a")
    assert code == 2
    assert "exists and is not empty" in err
    assert "--force" in err
    code, out, _ = call("adapter", "extract", base, tuned, "--budget", "4K", "-o", tmp_path / "a", "--force", "--json")
    assert code == 0
    assert {r["name"]: r["rank"] for r in json.loads(out)["records"] if r["rank"]}.keys() == {
        f"encoder.layer.{i}.attention.self.query" for i in (0, 1)
    }
    code, out, _ = call("adapter", "apply", base, tmp_path / "a", "-o", tmp_path / "model", "--json")
    assert code == 0
    assert json.loads(out)["folder"] == str(tmp_path / "model")
    code, _, err = call("adapter", "extract", base, tuned, "--rank", 3, "-o", tmp_path / "none" / "a")
    assert code == 2
    assert "none" in err
