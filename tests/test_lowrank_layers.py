"""Layers held in low rank: what they compute, what they store, and how transformers loads them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from eigenscope.errors import InputError, SourceError
from eigenscope.measures.rank_curves import interpolative_cost
from eigenscope.methods.whitening import interpolate
from eigenscope.models import lowrank
from eigenscope.models import transformers_lowrank as plugin

LLAMA = LlamaConfig(
    vocab_size=60, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
GPT2 = GPT2Config(
    vocab_size=60, n_embd=16, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2, loss_type="ForCausalLM"
)


def held(dense: nn.Module, rank: int):
    """The best approximation of that rank as a low-rank layer, and as a matrix."""
    W = lowrank.matrix_of(dense).detach().to(torch.float64)
    U, s, V = torch.linalg.svd(W, full_matrices=False)
    left, right = U[:, :rank] * s[:rank], V[:rank]
    down, up, order, _ = interpolate(left, right)
    layer = lowrank.low_rank_twin(dense, rank)
    layer.load(lowrank.Interpolative(down, up, order), dense.bias)
    return layer, left @ right


def compressed(model, share=2):
    ranks, layers = {}, {}
    for name, dense in lowrank.dense_layers(model):
        if name != "lm_head":
            ranks[name] = min(lowrank.matrix_of(dense).shape) // share
            layers[name], _ = held(dense, ranks[name])
    lowrank.replace(model, layers)
    plugin.attach(model, plugin.LowRankConfig(ranks=ranks, made_by={"keep": 0.5}))
    return model.eval()


LAYERS = {
    "linear": (lambda: nn.Linear(7, 12), (3, 7)),
    "wide, no bias": (lambda: nn.Linear(12, 5, bias=False), (2, 4, 12)),
    "conv1d": (lambda: nn.Conv1d(3, 8, 3, stride=2, padding=1), (2, 3, 9)),
    "conv2d": (
        lambda: nn.Conv2d(3, 10, (3, 2), padding="same", dilation=(1, 2), padding_mode="circular"),
        (2, 3, 6, 5),
    ),
    "conv2d, no batch": (lambda: nn.Conv2d(3, 10, 2, bias=False), (3, 6, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 6, 2), (1, 2, 4, 4, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_low_rank_layer_is_the_dense_layer_of_the_approximation(name, rank):
    torch.manual_seed(3)
    make, shape = LAYERS[name]
    dense = make().double()
    layer, approximation = held(dense, rank)
    twin = make().double()
    with torch.no_grad():
        twin.weight.copy_(approximation.reshape(twin.weight.shape))
        if twin.bias is not None:
            twin.bias.copy_(dense.bias)
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(layer(x), twin(x), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(layer.weight, twin.weight, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(lowrank.to_dense(layer)(x), twin(x), rtol=1e-11, atol=1e-11)
    rows, cols = lowrank.matrix_of(dense).shape
    stored = sum(p.numel() for p in layer.parameters()) - (0 if dense.bias is None else rows)
    assert stored == interpolative_cost(rank, rows, cols) <= rows * cols


def test_full_rank_costs_no_more_than_the_dense_layer_and_changes_nothing():
    torch.manual_seed(4)
    dense = nn.Linear(6, 6).double()
    layer, _ = held(dense, 6)
    x = torch.randn(5, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), dense(x), rtol=1e-12, atol=1e-12)
    assert sum(p.numel() for p in layer.parameters()) == sum(p.numel() for p in dense.parameters())


def test_ranks_and_kinds_that_cannot_be_are_refused():
    for rank in (0, 6):
        with pytest.raises(InputError, match=f"rank {rank}"):
            lowrank.LowRankLinear(5, 9, rank)
    with pytest.raises(InputError, match="ungrouped convolution"):
        lowrank.LowRankConv(nn.Conv2d(4, 4, 3, groups=2), 2)
    layer = lowrank.LowRankLinear(5, 9, 2)
    with pytest.raises(InputError, match="factor"):
        layer.load(lowrank.Interpolative(torch.zeros(3, 5), torch.zeros(6, 3), torch.arange(9)), None)
    with pytest.raises(InputError, match="bias"):
        layer.load(lowrank.Interpolative(torch.zeros(2, 5), torch.zeros(7, 2), torch.arange(9)), None)


def test_module_used_at_two_names_is_replaced_at_both():
    model = nn.ModuleDict({"a": nn.Linear(4, 4)})
    model["b"] = model["a"]
    assert [name for name, _ in lowrank.dense_layers(model)] == ["a"]
    layer, _ = held(model["a"], 2)
    lowrank.replace(model, {"a": layer})
    assert model["a"] is layer
    assert model["b"] is layer


@pytest.mark.parametrize(
    ("config", "kind"), [(LLAMA, LlamaForCausalLM), (GPT2, GPT2LMHeadModel)], ids=["llama", "gpt2"]
)
def test_transformers_loads_saves_and_multiplies_out(config, kind, tmp_path):
    torch.manual_seed(5)
    model = compressed(kind(config))
    ids = torch.randint(3, 60, (2, 7))
    with torch.no_grad():
        wanted = model(ids).logits
        model.save_pretrained(tmp_path / "a")
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
        assert torch.equal(loaded(ids).logits, wanted)
        loaded.save_pretrained(tmp_path / "b", max_shard_size="4KB")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "b", device_map="cpu")
        assert len(list((tmp_path / "b").glob("*.safetensors"))) > 1
        assert torch.equal(again(ids).logits, wanted)
        bare = AutoModel.from_pretrained(tmp_path / "a")
        torch.testing.assert_close(
            bare(ids).last_hidden_state, model(ids, output_hidden_states=True).hidden_states[-1], rtol=1e-6, atol=1e-6
        )
        half = AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype=torch.bfloat16)
        torch.testing.assert_close(half(ids).logits.float(), wanted, rtol=0.1, atol=0.05)
        assert again.generate(ids[:1], max_new_tokens=3, do_sample=False, pad_token_id=0).shape[1] == 10
        again.dequantize()
        again.save_pretrained(tmp_path / "dense")
    plain = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert "quantization_config" not in plain
    with torch.no_grad():
        dense = kind.from_pretrained(tmp_path / "dense")
        torch.testing.assert_close(dense(ids).logits, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("first", ["eigenscope", "transformers"])
def test_a_fresh_process_needs_only_both_imports_in_either_order(first, tmp_path):
    torch.manual_seed(6)
    compressed(LlamaForCausalLM(LLAMA)).save_pretrained(tmp_path)
    second = "transformers" if first == "eigenscope" else "eigenscope"
    code = (
        f"import {first}\nimport {second}\nfrom transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})\n"
        "print(type(model.model.layers[0].mlp.up_proj).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "LowRankLinear"


def test_ranks_of_another_architecture_are_refused(tmp_path):
    model = compressed(LlamaForCausalLM(LLAMA))
    model.config.quantization_config.ranks = {"nowhere": 3}
    model.save_pretrained(tmp_path)
    with pytest.raises(SourceError, match="no layer 'nowhere'"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_adapters_train_on_it(tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(7)
    compressed(LlamaForCausalLM(LLAMA)).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.randint(3, 60, (4, 8))
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    optimizer = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        loss = adapted(input_ids=ids, labels=ids).loss
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.01
