"""Which tensors are matrices, held against the code of the models that own them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eigenscope.models.checkpoint import Checkpoint, MemoryCheckpoint
from eigenscope.models.matrices import list_matrices, read_matrix
from eigenscope.models.sources import open_checkpoint
from listing import check_coverage, checkpoint_of, coverage_of, draw, entries, matrices_of
from tiny_models import CONFIGS, HEADS, Results, attention_calls, inputs_of, run, tiny

# --- every model as a whole


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_tensor_of_a_model_is_accounted_for(kind: str) -> None:
    check_coverage(open_checkpoint(tiny(kind)))


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_saved_model_has_the_matrices_of_the_module(kind: str, tmp_path: Path) -> None:
    """transformers saves under the names of the hub, splits fused experts, and stores tied weights once."""
    tiny(kind).save_pretrained(tmp_path)
    module, folder = open_checkpoint(tiny(kind)), open_checkpoint(tmp_path)
    check_coverage(folder)

    def rows(checkpoint: Checkpoint) -> dict[tuple[Any, ...], str]:
        return {
            (m.layer, m.role, m.kernel, read_matrix(checkpoint, m).shape, read_matrix(checkpoint, m).numpy().tobytes()): m.tensor
            for m in list_matrices(checkpoint)[0]
        }  # fmt: skip

    in_module, in_folder = rows(module), rows(folder)
    assert not set(in_folder) - set(in_module)
    state = tiny(kind).state_dict()
    pointers = Counter(tensor.data_ptr() for tensor in state.values())
    for missing in set(in_module) - set(in_folder):
        assert pointers[state[in_module[missing]].data_ptr()] > 1, f"{in_module[missing]} is not tied"


# --- fused attention


def split_by_us(kind: str, tensor: str, seen: dict[str, Tensor]) -> dict[str, Tensor]:
    """x @ Wᵀ for the parts of a fused weight, x what its module was last given."""
    checkpoint = open_checkpoint(tiny(kind))
    x = seen[tensor.removesuffix(".weight")]
    # So that equal outputs mean equal matrices: LayerNorm takes away one direction at most.
    assert torch.linalg.matrix_rank(x) >= x.shape[1] - 1
    return {
        matrix.role.removeprefix("cross_"): x @ read_matrix(checkpoint, matrix).T
        for matrix in list_matrices(checkpoint)[0]
        if matrix.tensor == tensor
    }


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs.reshape(ours.shape), rtol=1e-4, atol=1e-5)


CALLED = {
    "gpt2": "transformer.h.{}.attn.c_attn.weight",
    "gpt_neox": "gpt_neox.layers.{}.attention.query_key_value.weight",
    "gpt_bigcode_mqa": "transformer.h.{}.attn.c_attn.weight",
    "gpt_bigcode_mha": "transformer.h.{}.attn.c_attn.weight",
    "phi3": "model.layers.{}.self_attn.qkv_proj.weight",
    "modernbert": "layers.{}.attn.Wqkv.weight",
    "persimmon": "model.layers.{}.self_attn.query_key_value.weight",
}


@pytest.mark.parametrize("kind", CALLED)
def test_fused_attention_is_split_as_the_attention_function_receives_it(kind: str) -> None:
    model = tiny(kind)
    names = [CALLED[kind].format(layer) for layer in range(2)]
    with inputs_of({n[:-7]: model.get_submodule(n[:-7]) for n in names}) as seen, attention_calls() as calls:
        run(model)
    for name, (_, query, key, value) in zip(names, calls, strict=True):
        ours = split_by_us(kind, name, seen)
        assert set(ours) == {"q", "k", "v"}
        close(ours["q"], query)
        close(ours["k"], key)
        close(ours["v"], value)


def test_gpt2_cross_attention_holds_keys_and_values(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("gpt2_cross")
    name = "transformer.h.1.crossattention.c_attn.weight"
    with inputs_of({name[:-7]: model.get_submodule(name[:-7])}) as seen, attention_calls() as calls:
        run(model, encoder_hidden_states=draw(31, 1, 16), encoder_attention_mask=torch.ones(31, 1))
    ours = split_by_us("gpt2_cross", name, seen)
    assert set(ours) == {"k", "v"}
    close(ours["k"], calls[-1][2])
    close(ours["v"], calls[-1][3])
    query = matrices_of(open_checkpoint(model))["transformer.h.1.crossattention.q_attn.weight"]
    assert query.role == "cross_q"
    assert query.steps == (("permute", (1, 0)),)


METHODS = {
    "bloom": ("transformer.h.0.self_attention", "_reshape", (0, 2, 1, 3)),
    "falcon_rw": ("transformer.h.0.self_attention", "_split_heads", (0, 1, 2, 3)),
    "falcon_7b": ("transformer.h.0.self_attention", "_split_heads", (0, 1, 2, 3)),
    "falcon_40b": ("transformer.h.0.self_attention", "_split_heads", (0, 1, 2, 3)),
}


@pytest.mark.parametrize("kind", METHODS)
def test_fused_attention_is_split_as_the_module_splits_it(kind: str) -> None:
    path, method, order = METHODS[kind]
    attention = tiny(kind).get_submodule(path)
    x = draw(40, 16)
    with torch.no_grad():
        theirs = getattr(attention, method)(attention.query_key_value(x[:, None]))
    matrices = entries(open_checkpoint(tiny(kind)))
    for part, expected in zip("qkv", theirs, strict=True):
        ours = x @ matrices[f"{path}.query_key_value.weight:{part}"].T
        expected = expected.permute(order).reshape(40, -1, HEADS)
        # Falcon-40B repeats each key for the queries of its group.
        ours = ours.reshape(40, -1, HEADS)
        close(ours.repeat_interleave(expected.shape[1] // ours.shape[1], 1), expected)


def test_codegen_is_split_as_its_attention_receives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("codegen")
    attention = model.get_submodule("transformer.h.1.attn")
    received: list[tuple[Tensor, ...]] = []
    ours = attention._attn

    def keep(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Any:
        received.append((query, key, value))
        return ours(query, key, value, *rest)

    monkeypatch.setattr(attention, "_attn", keep)
    name = "transformer.h.1.attn.qkv_proj.weight"
    with inputs_of({name[:-7]: attention.qkv_proj}) as seen:
        run(model)
    parts = split_by_us("codegen", name, seen)
    for part, theirs in zip("qkv", received[0], strict=True):
        close(parts[part], theirs.transpose(1, 2))


def test_mpt_and_deberta_are_split_as_their_chunks() -> None:
    for kind, name, count in (
        ("mpt", "transformer.blocks.1.attn.Wqkv.weight", 2),
        ("deberta", "encoder.layer.1.attention.self.in_proj.weight", 2),
    ):
        model = tiny(kind)
        with inputs_of({name[:-7]: model.get_submodule(name[:-7])}) as seen, Results("chunk") as chunks:
            run(model)
        assert len(chunks.results) == count  # one per layer
        ours = split_by_us(kind, name, seen)
        for part, theirs in zip("qkv", chunks.results[-1], strict=True):
            # DeBERTa has put the heads before the one position.
            close(ours[part], theirs)


def test_linear_attention_is_split_as_the_module_splits_it() -> None:
    name = "model.layers.0.self_attn.qkv_proj.weight"
    with inputs_of({name[:-7]: tiny("minimax").get_submodule(name[:-7])}) as seen, Results("split") as splits:
        run(tiny("minimax"))
    ours = split_by_us("minimax", name, seen)
    for part, theirs in zip("qkv", splits.results[0], strict=True):
        close(F.silu(ours[part]), theirs)

    x = draw(40, 16)
    attention = tiny("qwen3_next").get_submodule("model.layers.0.linear_attn")
    with torch.no_grad():
        both = attention.in_proj_qkvz(x[:, None]), attention.in_proj_ba(x[:, None])
        theirs = attention.fix_query_key_value_ordering(*both)
    matrices = entries(open_checkpoint(tiny("qwen3_next")))
    for part, expected in zip(("q", "k", "v", "attn_gate"), theirs, strict=False):
        close(x @ matrices[f"model.layers.0.linear_attn.in_proj_qkvz.weight:{part}"].T, expected)


def test_qwen_3_5_is_split_as_its_own_split_and_chunk() -> None:
    model = tiny("qwen3_5")
    name = "model.layers.0.linear_attn.in_proj_qkv.weight"
    convolution = model.get_submodule("model.layers.0.linear_attn.conv1d").weight[:, 0, -1].detach()
    with inputs_of({name[:-7]: model.get_submodule(name[:-7])}) as seen, Results("split") as splits:
        run(model)
    ours = split_by_us("qwen3_5", name, seen)
    mixed = torch.cat(splits.results[0], -1).reshape(31, -1)
    close(F.silu(torch.cat([ours["q"], ours["k"], ours["v"]], 1) * convolution), mixed)
    assert [ours[part].shape[1] for part in "qkv"] == [part.shape[-1] for part in splits.results[0]]

    name = "model.layers.1.self_attn.q_proj.weight"
    with inputs_of({name[:-7]: model.get_submodule(name[:-7])}) as seen, Results("chunk") as chunks:
        run(model)
    ours = split_by_us("qwen3_5", name, seen)
    query, gate = next(found for found in chunks.results if len(found) == 2 and found[0].shape[2:] == (HEADS, 4))
    close(ours["q"], query)
    close(ours["attn_gate"], gate)


def test_multihead_attention_is_split_as_torch_splits_it() -> None:
    module = nn.MultiheadAttention(12, 3, bias=False)
    x = draw(20, 12)
    theirs = F._in_projection_packed(x, x, x, module.in_proj_weight.detach())
    ours = entries(open_checkpoint(module))
    for part, expected in zip("qkv", theirs, strict=True):
        close(x @ ours[f"in_proj_weight:{part}"].T, expected)
    roles = {m.role for m in matrices_of(open_checkpoint(nn.MultiheadAttention(12, 3, kdim=5, vdim=7))).values()}
    assert roles == {"q", "k", "v", "o"}
    layer = open_checkpoint(nn.TransformerDecoderLayer(12, 3, 20))
    assert {m.role for m in matrices_of(layer).values()} == {
        "q", "k", "v", "o", "cross_q", "cross_k", "cross_v", "cross_o", "up", "down"}  # fmt: skip


def test_a_fused_weight_of_unknown_layout_is_left_whole_and_says_so() -> None:
    checkpoint = checkpoint_of({"h.0.self_attention.query_key_value.weight": draw(48, 16)})
    assert matrices_of(checkpoint)["h.0.self_attention.query_key_value.weight"].role == "qkv"
    assert "left whole" in coverage_of(checkpoint)["h.0.self_attention.query_key_value.weight"].reason
    # A vision tower is not cut by the head counts of the text model: (28 + 2·4)·16 rows are not 3·192.
    config = {"text_config": {"hidden_size": 448, "num_attention_heads": 28, "num_key_value_heads": 4}}
    vision = matrices_of(checkpoint_of({"visual.blocks.0.attn.qkv.weight": draw(576, 192)}, **config))
    assert [m.rows for m in vision.values()] == [192, 192, 192]


def test_conv1d_is_told_from_linear_without_a_configuration() -> None:
    gpt2 = {name: tensor for name, tensor in tiny("gpt2").state_dict().items() if ".h." in name}
    ours, known = entries(MemoryCheckpoint(gpt2)), entries(open_checkpoint(tiny("gpt2")))
    assert all(ours[name].equal(known[name]) for name in ours)
    nano = {"h.0.attn.c_attn.weight": draw(48, 16), "h.0.mlp.c_proj.weight": draw(16, 64)}  # nn.Linear
    assert entries(MemoryCheckpoint(nano))["h.0.attn.c_attn.weight:k"].equal(nano["h.0.attn.c_attn.weight"][16:32])
    assert entries(MemoryCheckpoint(nano))["h.0.mlp.c_proj.weight"].shape == (16, 64)


GGUF = {
    "llama": ({"attention.head_count": 4, "attention.head_count_kv": 2}, 32, (16, 8, 8)),
    "falcon": ({"attention.head_count": 4, "attention.head_count_kv": 1}, 24, (16, 4, 4)),
    "phi3": ({"attention.head_count": 4, "attention.head_count_kv": [2, 2]}, 32, (16, 8, 8)),
    "qwen35": (
        {"attention.head_count": 4, "attention.head_count_kv": 2, "ssm.group_count": 2, "ssm.state_size": 4,
         "ssm.inner_size": 32}, 48, (8, 8, 32)),
}  # fmt: skip


@pytest.mark.parametrize("architecture", GGUF)
def test_gguf_names_and_keys(architecture: str) -> None:
    keys, rows, sizes = GGUF[architecture]
    config = {"general.architecture": architecture, f"{architecture}.embedding_length": 16} | {
        f"{architecture}.{key}": value for key, value in keys.items()
    }
    tensors = {
        "token_embd.weight": draw(31, 16),
        "blk.1.attn_qkv.weight": draw(rows, 16),
        "blk.1.ffn_gate_exps.weight": draw(3, 24, 16),
        "blk.1.ffn_down_exps.weight": draw(3, 16, 24),
        "blk.0.ffn_up.weight": draw(48, 16),
        "blk.0.ffn_down.weight": draw(16, 24),
        "output.weight": draw(31, 16),
    }
    checkpoint = checkpoint_of(tensors, **config)
    check_coverage(checkpoint)
    found = matrices_of(checkpoint)
    assert [found[f"blk.1.attn_qkv.weight:{part}"].rows for part in "qkv"] == list(sizes)
    assert found["blk.1.ffn_gate_exps.weight:2"].role == "expert_gate"
    assert (found["blk.1.ffn_down_exps.weight:0"].rows, found["blk.1.ffn_down_exps.weight:0"].cols) == (16, 24)
    assert [found[f"blk.0.ffn_up.weight:{part}"].role for part in ("gate", "up")] == ["gate", "up"]
    assert (found["output.weight"].role, found["token_embd.weight"].role) == ("lm_head", "embedding")


# --- feed-forward and experts


@pytest.mark.parametrize(
    ("kind", "path", "fused", "down"),
    [("phi3", "model.layers.1.mlp", "gate_up_proj", "down_proj"), ("modernbert", "layers.1.mlp", "Wi", "Wo")],
)
def test_gate_and_up_are_what_the_feed_forward_makes_of_them(kind: str, path: str, fused: str, down: str) -> None:
    module, x = tiny(kind).get_submodule(path), draw(20, 16)
    W = entries(open_checkpoint(tiny(kind)))
    activation = F.silu if kind == "phi3" else F.gelu
    gate, up = (x @ W[f"{path}.{fused}.weight:{part}"].T for part in ("gate", "up"))
    with torch.no_grad():
        close((activation(gate) * up) @ W[f"{path}.{down}.weight"].T, module(x))


@pytest.mark.parametrize("config", [True, False])
@pytest.mark.parametrize(
    "kind", ["mixtral", "qwen3_moe", "granitemoe", "deepseek_v3", "llama4", "gpt_oss", "gpt_oss_square"]
)
def test_experts_are_what_their_module_makes_of_them(kind: str, config: bool) -> None:
    model = tiny(kind)
    path, module = next((n, m) for n, m in list(model.named_modules())[::-1] if n.endswith(".experts"))
    state = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(path)}
    checkpoint = MemoryCheckpoint(state, config=model.config.to_dict() if config else {})
    check_coverage(checkpoint)
    W = entries(checkpoint)
    experts, tokens = len(state[f"{path}.down_proj"]), 5
    if not config and kind in ("llama4", "gpt_oss", "gpt_oss_square"):
        # Halves or turns: that only the model's name tells. Which way round they are stored, the shapes do.
        assert {matrix.role for matrix in matrices_of(checkpoint).values()} == {"expert_gate_up", "expert_down"}
        assert W[f"{path}.gate_up_proj:1"].equal(state[f"{path}.gate_up_proj"][1].T)
        assert W[f"{path}.down_proj:1"].equal(state[f"{path}.down_proj"][1].T) or kind == "gpt_oss_square"
        return
    x = draw(experts, tokens, 16)
    with torch.no_grad():
        if kind == "llama4":
            theirs = module(x.reshape(-1, 16)).reshape(x.shape)
        else:
            index = torch.arange(experts).repeat_interleave(tokens)[:, None]
            theirs = module(x.reshape(-1, 16), index, torch.ones(experts * tokens, 1)).reshape(x.shape)
    for expert in range(experts):
        gate, up = (x[expert] @ W[f"{path}.gate_up_proj:{expert}:{part}"].T for part in ("gate", "up"))
        if kind.startswith("gpt_oss"):
            gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
            inside = (up + 1) * gate * torch.sigmoid(1.702 * gate)
        else:
            inside = F.silu(gate) * up
        close(inside @ W[f"{path}.down_proj:{expert}"].T, theirs[expert])


# --- recurrent layers and convolutions


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("projection", [0, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_lstm_gates_make_the_lstm(projection: int, bidirectional: bool) -> None:
    torch.manual_seed(0)
    module = nn.LSTM(5, 4, 2, bias=False, bidirectional=bidirectional, proj_size=projection)
    checkpoint = open_checkpoint(module)
    check_coverage(checkpoint)
    W, rows = entries(checkpoint), matrices_of(checkpoint)
    ending = "_reverse" if bidirectional else ""
    assert {(m.layer, m.role) for m in rows.values() if "ih_l1" in m.name and m.name.count("reverse") == bidirectional} == {
        (1, f"ih{ending}_{gate}") for gate in "ifgo"
    }  # fmt: skip
    # One step of the (reversed) first layer from a random state.
    x, h, c = draw(2, 5), draw(2, projection or 4, seed=1), draw(2, 4, seed=2)
    at = {g: x @ W[f"weight_ih_l0{ending}:{g}"].T + h @ W[f"weight_hh_l0{ending}:{g}"].T for g in "ifgo"}
    cell = torch.sigmoid(at["f"]) * c + torch.sigmoid(at["i"]) * torch.tanh(at["g"])
    state = torch.sigmoid(at["o"]) * torch.tanh(cell)
    if projection:
        state = state @ W[f"weight_hr_l0{ending}"].T
    place, directions = int(bidirectional), 1 + bidirectional
    first_h, first_c = torch.zeros(2 * directions, 2, projection or 4), torch.zeros(2 * directions, 2, 4)
    first_h[place], first_c[place] = h, c
    with torch.no_grad():
        _, (last_h, last_c) = module(x[None], (first_h, first_c))
    close(state, last_h[place])
    close(cell, last_c[place])


def test_gru_gates_make_the_gru_and_a_plain_rnn_is_one_matrix() -> None:
    torch.manual_seed(0)
    cell, x, h = nn.GRUCell(5, 4, bias=False), draw(2, 5), draw(2, 4, seed=1)
    W = entries(open_checkpoint(cell))
    r, z = (torch.sigmoid(x @ W[f"weight_ih:{g}"].T + h @ W[f"weight_hh:{g}"].T) for g in "rz")
    n = torch.tanh(x @ W["weight_ih:n"].T + r * (h @ W["weight_hh:n"].T))
    with torch.no_grad():
        close((1 - z) * n + z * h, cell(x, h))
    assert {m.role for m in matrices_of(open_checkpoint(nn.RNN(5, 4))).values()} == {"ih", "hh"}
    assert set(entries(open_checkpoint(nn.LSTMCell(5, 4)))) == {f"weight_{k}:{g}" for k in ("ih", "hh") for g in "ifgo"}


CONVOLUTIONS = {
    "conv1d": nn.Conv1d(4, 6, 3, bias=False),
    "conv2d": nn.Conv2d(4, 6, (3, 2), bias=False),
    "conv3d": nn.Conv3d(2, 3, 2, bias=False),
    "grouped": nn.Conv2d(4, 6, 3, groups=2, bias=False),
    "depthwise": nn.Conv2d(4, 8, 3, groups=4, bias=False),
    "pointwise": nn.Conv2d(4, 6, 1, bias=False),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_acts_on_one_patch_as_its_matrix(name: str) -> None:
    module = CONVOLUTIONS[name]
    checkpoint = open_checkpoint(nn.ModuleDict({"layer": module}))
    check_coverage(checkpoint)
    matrix = matrices_of(checkpoint)["layer.weight"]
    assert (matrix.kernel, matrix.groups) == (module.kernel_size, module.groups)
    patch = draw(1, module.in_channels, *module.kernel_size)
    W = read_matrix(checkpoint, matrix).reshape(module.groups, -1, matrix.cols)
    with torch.no_grad():
        close((W @ patch.reshape(module.groups, -1, 1)).flatten(), module(patch).flatten())
    assert (f"{module.groups} groups" in coverage_of(checkpoint)["layer.weight"].reason) == (module.groups > 1)
    bare = coverage_of(MemoryCheckpoint(dict(module.state_dict())))["weight"].reason
    assert ("groups not known" if name == "depthwise" else "taken as one group") in bare
    assert open_checkpoint(module).tensors.keys() == {"weight"}
    assert matrices_of(open_checkpoint(module))["weight"].groups == module.groups


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_makes_one_patch_of_one_pixel(groups: int) -> None:
    module = nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=False)
    checkpoint = open_checkpoint(nn.ModuleDict({"up": module}))
    matrix, pixel = matrices_of(checkpoint)["up.weight"], draw(1, 4, 1, 1)
    assert matrix.transposed
    assert matrix.groups == groups
    if groups == 1:
        with torch.no_grad():
            close(read_matrix(checkpoint, matrix) @ pixel.flatten(), module(pixel).flatten())


def test_a_three_dimensional_weight_that_is_no_convolution_is_not_unfolded() -> None:
    module = nn.ModuleDict({"pair": nn.Bilinear(3, 4, 5)})
    assert coverage_of(open_checkpoint(module))["pair.weight"].outcome == "not a matrix"


def test_weight_norm_is_multiplied_out_under_both_names() -> None:
    for plain, dim in ((nn.Conv1d(4, 6, 3), 0), (nn.Conv1d(4, 6, 3), 2), (nn.Linear(4, 6), 0), (nn.Linear(4, 6), None)):
        module = nn.ModuleDict({"m": nn.utils.parametrizations.weight_norm(plain, dim=dim)})
        with torch.no_grad():
            module["m"].parametrizations.weight.original0.mul_(3.0)
        expected = module["m"].weight.detach().reshape(6, -1)
        new = dict(module.state_dict())
        old = {name.replace("parametrizations.weight.original0", "weight_g")
               .replace("parametrizations.weight.original1", "weight_v"): tensor for name, tensor in new.items()}  # fmt: skip
        for checkpoint in (open_checkpoint(module), MemoryCheckpoint(new), MemoryCheckpoint(old)):
            check_coverage(checkpoint)
            (found,) = entries(checkpoint).values()
            torch.testing.assert_close(found, expected)


def test_a_parametrised_weight_is_read_as_stored_and_says_so() -> None:
    torch.manual_seed(0)
    module = nn.ModuleDict({"m": nn.utils.parametrizations.spectral_norm(nn.Linear(4, 6))})
    (name,) = entries(open_checkpoint(module))
    assert name == "m.parametrizations.weight.original"
    assert "as stored" in coverage_of(open_checkpoint(module))[name].reason
    old = {"m.weight_orig": draw(6, 4), "m.weight_u": draw(6), "m.weight_v": draw(4)}
    assert "as stored" in coverage_of(MemoryCheckpoint(old))["m.weight_orig"].reason
    assert list(entries(MemoryCheckpoint(old))) == ["m.weight_orig"]
