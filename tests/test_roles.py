"""Names → roles and layers, over the models and conventions in use and over names made to break them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from eigenscope.models.checkpoint import MemoryCheckpoint
from eigenscope.models.matrices import list_matrices, read_matrix
from eigenscope.models.roles import ROLES, layers_of, role_of
from eigenscope.models.sources import open_checkpoint
from eigenscope.tasks.readings import ScanOptions, measure
from listing import check_coverage, coverage_of, draw, entries, matrices_of

MLP, GLU, ATTENTION = "up down", "gate up down", "q k v o"
CROSS = "cross_q cross_k cross_v cross_o"
EXPERTS = "router expert_gate expert_up expert_down"
SHARED = "shared_expert_gate shared_expert_up shared_expert_down"

MODELS: dict[str, tuple[str, str, dict[str, int]]] = {
    "gpt2": (f"{ATTENTION} {MLP}", "embedding position_embedding lm_head", {"": 2}),
    "gpt2_cross": (f"{ATTENTION} {CROSS} {MLP}", "embedding position_embedding lm_head", {"": 2}),
    "openai_gpt": (f"{ATTENTION} {MLP}", "embedding position_embedding", {"": 2}),
    "gpt_neox": (f"{ATTENTION} {MLP}", "embedding lm_head", {"": 2}),
    "bloom": (f"{ATTENTION} {MLP}", "embedding lm_head", {"": 2}),
    "falcon_40b": (f"{ATTENTION} {MLP}", "embedding lm_head", {"": 2}),
    "gpt_bigcode_mqa": (f"{ATTENTION} {MLP}", "embedding position_embedding lm_head", {"": 2}),
    "phi3": (f"{ATTENTION} {GLU}", "embedding lm_head", {"": 2}),
    "mpt": (f"{ATTENTION} {MLP}", "embedding lm_head", {"": 2}),
    "modernbert": (f"{ATTENTION} {GLU}", "embedding", {"": 2}),
    "persimmon": (f"{ATTENTION} {MLP}", "embedding lm_head", {"": 2}),
    "codegen": (f"{ATTENTION} {MLP}", "embedding lm_head", {"": 2}),
    "deberta": (f"{ATTENTION} {MLP} pos_proj pos_q_proj", "embedding position_embedding", {"": 2}),
    "minimax": (f"{ATTENTION} output_gate {EXPERTS}", "embedding lm_head", {"": 2}),
    "qwen3_next": (f"{ATTENTION} attn_gate in_proj_ba conv1d {EXPERTS} {SHARED} shared_expert_router", "embedding lm_head", {"": 2}),
    "qwen3_5": (f"{ATTENTION} attn_gate in_proj_a in_proj_b conv1d {GLU}", "embedding lm_head", {"": 2}),
    "llama": (f"{ATTENTION} {GLU}", "embedding lm_head", {"": 2}),
    "mixtral": (f"{ATTENTION} {EXPERTS}", "embedding lm_head", {"": 2}),
    "qwen3_moe": (f"{ATTENTION} {EXPERTS}", "embedding lm_head", {"": 2}),
    "qwen2_moe": (f"{ATTENTION} {EXPERTS} {SHARED} shared_expert_router", "embedding lm_head", {"": 2}),
    "llama4": (f"{ATTENTION} {EXPERTS} {SHARED}", "embedding lm_head", {"": 2}),
    "gpt_oss": (f"{ATTENTION} {EXPERTS}", "embedding lm_head", {"": 2}),
    "granitemoe": (f"{ATTENTION} {EXPERTS}", "embedding lm_head", {"": 2}),
    "deepseek_v3": (f"q_a q_b kv_a kv_b o {GLU} {EXPERTS} {SHARED}", "embedding lm_head", {"": 2}),
    "t5": (f"{ATTENTION} {CROSS} {MLP} relative_position", "embedding lm_head", {"encoder": 2, "decoder": 3}),
    "bart": (f"{ATTENTION} {CROSS} {MLP}", "embedding position_embedding lm_head", {"encoder": 2, "decoder": 2}),
    "bert": (
        f"{ATTENTION} {MLP}", "embedding position_embedding token_type_embedding lm_head lm_head_transform", {"": 2}),
    "distilbert": (f"{ATTENTION} {MLP}", "embedding position_embedding", {"": 2}),
    "vit": (f"{ATTENTION} {MLP}", "position_embedding patch_embedding pooler", {"": 2}),
    "swin": (f"{ATTENTION} {MLP} relative_position reduction", "patch_embedding", {"": 4}),
    "resnet": ("convolution", "convolution", {"": 3}),
    "clip": (
        f"{ATTENTION} {MLP}", "embedding position_embedding patch_embedding visual_projection text_projection",
        {"text_model": 2, "vision_model": 3}),
    "wav2vec2": (f"{ATTENTION} {MLP} conv", "projection conv", {"encoder": 2, "feature_extractor": 2}),
    "mamba": ("ssm_in ssm_x ssm_dt ssm_out conv1d", "embedding lm_head", {"": 2}),
}  # fmt: skip
"""Model → roles inside its layers, roles outside them, and how many layers each stack has."""


@pytest.mark.parametrize("kind", MODELS)
def test_roles_and_layers_of_a_model(kind: str) -> None:
    tiny = pytest.importorskip("tiny_models").tiny
    inside, outside, stacks = MODELS[kind]
    matrices, _ = list_matrices(open_checkpoint(tiny(kind)))
    split = [(m.layer, m.role.split(".")) for m in matrices]
    assert {parts[-1] for layer, parts in split if layer is not None} == set(inside.split())
    assert {".".join(parts) for layer, parts in split if layer is None} == set(outside.split())
    for stack, depth in stacks.items():
        layers = {layer for layer, parts in split if layer is not None and ".".join(parts[:-1]) == stack}
        assert layers == set(range(depth))
    assert {".".join(parts[:-1]) for layer, parts in split if layer is not None} == set(stacks)


NAMES = {
    # Llama and its kin, as the hub has them, adapters and quantised weights among them
    "model.layers.7.self_attn.q_proj.weight": (7, "q"),
    "model.layers.7.self_attn.q_proj.base_layer.weight": (7, "q"),
    "base_model.model.model.layers.7.self_attn.v_proj.lora_A.default.weight": (7, "lora_a"),
    "model.layers.7.self_attn.o_proj.qweight": (7, "o"),
    "model.layers.0.mlp.down_proj.weight_packed": (0, "down"),
    "layers.3.attention.wo.weight": (3, "o"),
    "layers.3.feed_forward.w1.weight": (3, "gate"),
    "layers.3.feed_forward.w3.weight": (3, "up"),
    "tok_embeddings.weight": (None, "embedding"),
    "output.weight": (None, "lm_head"),
    "model.layers.2.block_sparse_moe.experts.11.w2.weight": (2, "expert_down"),
    "model.layers.2.block_sparse_moe.gate.weight": (2, "router"),
    "model.layers.2.block_sparse_moe.input_linear.weight": (2, "expert_gate_up"),
    "model.layers.2.mlp.shared_experts.up_proj.weight": (2, "shared_expert_up"),
    "model.layers.2.mlp.shared_expert_gate.weight": (2, "shared_expert_router"),
    "model.layers.2.mlp.experts.gate_up_proj_blocks": (2, "expert_gate_up"),
    # GGUF
    "blk.5.attn_output.weight": (5, "o"),
    "blk.5.attn_gate.weight": (5, "attn_gate"),
    "blk.5.ffn_up_shexp.weight": (5, "shared_expert_up"),
    "blk.5.ffn_gate_inp_shexp.weight": (5, "shared_expert_router"),
    "blk.5.ffn_gate_inp.weight": (5, "router"),
    "token_embd.weight": (None, "embedding"),
    # timm, torchvision, OpenAI's CLIP, PyTorch's own, RWKV
    "blocks.4.attn.qkv.weight": (4, "qkv"),
    "blocks.4.attn.proj.weight": (4, "o"),
    "visual.transformer.resblocks.4.mlp.c_fc.weight": (4, "up"),
    "layers.4.self_attn.in_proj_weight": (4, "qkv"),
    "layers.4.multihead_attn.in_proj_weight": (4, "cross_qkv"),
    "rwkv.blocks.4.feed_forward.key.weight": (4, "up"),
    "rwkv.blocks.4.attention.key.weight": (4, "k"),
    "encoder.rnns.1.weight_hh_l0_reverse": (1, "hh_reverse"),
    "encoder.lstm.weight_ih_l2": (2, "ih"),
    "cell.weight_ih": (None, "ih"),
    # not attention, though they end alike
    "layers.1.time_mix_key": (1, "time_mix_key"),
    "layers.1.mlp.out_proj.weight": (1, "down"),
    "0.weight": (0, "weight"),
    "features.10.weight": (10, "features"),
    "": (None, "weight"),
}


@pytest.mark.parametrize("name", NAMES)
def test_role_and_layer_of_one_name(name: str) -> None:
    assert (layers_of([name])[name][0], role_of(name)) == NAMES[name]


def test_stages_of_blocks_are_counted_through() -> None:
    residual = [
        "layer1.0.conv1.weight",
        "layer1.1.conv1.weight",
        "layer2.0.conv1.weight",
        "layer2.0.downsample.0.weight",
    ]
    assert [layers_of(residual)[name][0] for name in residual] == [0, 1, 2, 2]
    staged = [
        "stages.0.blocks.0.w",
        "stages.0.blocks.1.w",
        "stages.1.downsample.w",
        "stages.1.blocks.0.w",
        "stages.1.blocks.4.w",
    ]
    assert [layers_of(staged)[name][0] for name in staged] == [0, 1, 2, 2, 6]
    # A sublayer of a block is no block of a stage (T5), and neither is an expert.
    for name in ("encoder.block.3.layer.1.DenseReluDense.wi.weight", "layers.3.mlp.experts.7.up_proj.weight"):
        assert layers_of([name])[name][0] == 3


def test_stacks_are_named_after_the_first_part_that_differs() -> None:
    names = ["model.vision.layers.0.w", "model.text.layers.1.w", "model.text.norm"]
    assert layers_of(names) == {names[0]: (0, "vision"), names[1]: (1, "text"), names[2]: (None, "")}
    recurrent = ["encoder.weight_ih_l0", "decoder.weight_ih_l1"]
    assert layers_of(recurrent) == {recurrent[0]: (0, "encoder"), recurrent[1]: (1, "decoder")}


def test_tensors_that_are_no_matrices_make_no_stack() -> None:
    tensors = {
        "model.layers.0.q_proj.weight": draw(3, 3), "model.norms.0.weight": draw(3),
        "optimizer_state.state.0.exp_avg": draw(3, 3), "model.layers.1.q_proj.weight": draw(3, 3),
    }  # fmt: skip
    assert [(m.layer, m.role) for m in matrices_of(MemoryCheckpoint(tensors)).values()] == [(0, "q"), (1, "q")]


def test_every_pattern_is_in_lower_case_and_can_match() -> None:
    for role, pattern in ROLES:
        assert re.compile(pattern)
        assert pattern.replace(r"\A", "").lower() == pattern.replace(r"\A", ""), role


# --- names and shapes made to break it

ODD_SHAPES: dict[str, tuple[Tensor, str]] = {
    "row": (draw(1, 5), "read"),
    "column": (draw(5, 1), "read"),
    "none.weight": (draw(0, 5), "read"),
    "nothing.weight": (draw(5, 0), "read"),
    "experts.none": (draw(1000, 0, 0), "not a matrix"),
    "conv_none.weight": (draw(0, 3, 3, 3), "not a matrix"),
    "scalar": (torch.tensor(1.0), "not a matrix"),
    "vector.weight": (draw(4), "not a matrix"),
    "six.weight": (draw(2, 2, 2, 2, 2, 2), "not a matrix"),
    "complex.weight": (torch.complex(draw(3, 4), draw(3, 4, seed=1)), "read"),
    "mask": (torch.ones(4, 4, dtype=torch.bool), "not a matrix"),
    "index": (torch.ones(4, 4, dtype=torch.int64), "not a matrix"),
    "bytes.weight": (torch.ones(4, 4, dtype=torch.int8), "not a matrix"),
    "h.0.attn.bias": (torch.ones(1, 1, 6, 6), "not a matrix"),
    "h.0.attn.masked_bias": (torch.tensor(-1e4), "not a matrix"),
    "pos_embed": (draw(1, 7, 4), "read"),
    "cls_token": (draw(1, 1, 4), "not a matrix"),
    "relative_position_bias_table": (draw(9, 2), "read"),
    "rotary_emb.inv_freq": (draw(8), "not a matrix"),
    "rotary_emb.cos_cached": (draw(1, 1, 9, 4), "not a matrix"),
    "bn.running_mean": (draw(4), "not a matrix"),
    "bn.num_batches_tracked": (torch.tensor(3), "not a matrix"),
    "final_logits_bias": (draw(1, 9), "not a matrix"),
    "experts.down_proj_bias": (draw(3, 9), "not a matrix"),
    "optimizer_state.state.0.exp_avg": (draw(4, 4), "not a matrix"),
    "state.0.exp_avg_sq": (draw(4, 4), "not a matrix"),
    "backbone.layers.0.mixer.A_log": (draw(4, 4), "not a matrix"),
    "": (draw(3, 3), "read"),
    ".": (draw(3, 3), "read"),
    "0": (draw(3, 3), "read"),
    "0.1.2.weight": (draw(3, 3), "read"),
    "a.weight.b.weight": (draw(3, 3), "read"),
    "层.0.ñ.weight": (draw(3, 3), "read"),
    "layers.².q_proj.weight": (draw(3, 3), "read"),
    "layers.٣.q_proj.weight": (draw(3, 3), "read"),
    "layers." + "9" * 5000 + ".q_proj.weight": (draw(3, 3), "read"),
    "lstm.weight_ih_l" + "9" * 5000: (draw(8, 3), "read"),
    "stage" + "9" * 5000 + ".0.weight": (draw(3, 3), "read"),
    "weight_hh_l0": (draw(0, 0), "read"),
    "line\nbreak\x00.weight": (draw(3, 3), "read"),
    "w.weight:q": (draw(3, 3), "read"),
}


def test_odd_shapes_and_names_are_all_accounted_for() -> None:
    checkpoint = MemoryCheckpoint({name: tensor for name, (tensor, _) in ODD_SHAPES.items()})
    check_coverage(checkpoint)
    found = coverage_of(checkpoint)
    assert {name: found[name].outcome for name in ODD_SHAPES} == {name: out for name, (_, out) in ODD_SHAPES.items()}
    for matrix in list_matrices(checkpoint)[0]:
        record = measure(checkpoint, ScanOptions(), matrix)
        if 0 in (matrix.rows, matrix.cols):
            assert str(record.readings["status"]).startswith("empty")
        else:
            W = read_matrix(checkpoint, matrix).to(torch.complex128)
            assert record.readings["sigma_max"] == pytest.approx(float(torch.linalg.matrix_norm(W, 2)), rel=1e-6)
    assert matrices_of(checkpoint)["pos_embed"].rows == 7


def test_a_tensor_named_like_a_part_of_another_keeps_its_own_row() -> None:
    checkpoint = MemoryCheckpoint({"in_proj_weight": draw(9, 3), "in_proj_weight:q": draw(2, 2)})
    found = entries(checkpoint)
    assert len(found) == 4
    assert found["in_proj_weight:q"].shape == (3, 3)
    assert found["in_proj_weight:q'"].shape == (2, 2)


HOSTILE: list[dict[str, Any]] = [
    {"model_type": ["falcon"], "num_attention_heads": "4", "hidden_size": -1},
    {"text_config": 3, "llm_config": [], "attn_config": "x", "decoder": 1, "quantization_config": [1]},
    {"convolution_groups": [1], "transposed_convolutions": 3},
    {"convolution_groups": {"c.weight": "two"}, "transposed_convolutions": []},
    {"num_attention_heads": 10**30, "num_key_value_heads": 10**30, "head_dim": 10**30},
    {"num_attention_heads": True, "head_dim": [], "hidden_size": [[]], "general.architecture": {}},
    {"quantization_config": {"weight_block_size": ["a", None]}},
]


@pytest.mark.parametrize("config", HOSTILE, ids=lambda config: json.dumps(config)[:40])
def test_a_configuration_cannot_break_the_listing(config: dict[str, Any]) -> None:
    tensors = {
        "h.0.query_key_value.weight": draw(48, 16), "a.qkv.weight": draw(24, 8), "c.weight": draw(4, 2, 3, 3),
        "experts.gate_up_proj": draw(2, 6, 4), "f.weight": draw(4, 4).to(torch.float8_e4m3fn), "f.weight_scale": draw(2, 2),
        "in_proj_qkvz.weight": draw(12, 4), "q_proj.weight": draw(8, 4),
    }  # fmt: skip
    check_coverage(MemoryCheckpoint(tensors, config=config))


WORDS = st.sampled_from(
    ["weight", "bias", "layers", "0", "1", "12", "experts", "q_proj", "qkv", "c_attn", "gate_up_proj", "down_proj", "wi",
     "wo", "conv", "weight_ih_l0", "weight_hh_l0", "weight_hr_l0", "weight_v", "weight_g", "weight_scale", "parametrizations",
     "original0", "original1", "qweight", "query_key_value", "in_proj_weight", "blocks", "stage1", "", "optim", "x_blocks"]
)  # fmt: skip
SHAPES = st.lists(st.integers(0, 6), min_size=0, max_size=5)
DTYPES = st.sampled_from(
    [torch.float32, torch.float16, torch.float8_e4m3fn, torch.int8, torch.uint8, torch.bool, torch.complex64]
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.dictionaries(
        st.lists(WORDS | st.text(max_size=3), max_size=4).map(".".join), st.tuples(SHAPES, DTYPES), max_size=6
    )
)
def test_any_names_and_shapes_are_accounted_for(content: dict[str, tuple[list[int], torch.dtype]]) -> None:
    checkpoint = MemoryCheckpoint({name: torch.ones(shape).to(dtype) for name, (shape, dtype) in content.items()})
    check_coverage(checkpoint)
    matrices_of(checkpoint)
