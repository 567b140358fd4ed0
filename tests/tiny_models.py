"""Tiny randomly initialised models of transformers, by name, and what their own code makes of a fused weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

transformers = pytest.importorskip("transformers")

VOCABULARY = 31
HIDDEN = 16
HEADS = 4
_SMALL = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_USUAL = {**_SMALL, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
_GROUPED = {**_USUAL, "num_key_value_heads": 2}
_GPT2 = {**_SMALL, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 20}
_FALCON = {**_SMALL, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
_TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4}
_IMAGE = {**_TOWER, "image_size": 8, "patch_size": 4}
_SEQ2SEQ = {
    **_SMALL, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
}  # fmt: skip
_EXPERTS = {**_GROUPED, "head_dim": 4, "num_experts_per_tok": 2}

CONFIGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("gpt2", "CausalLM", _GPT2),
    "gpt2_cross": ("gpt2", "CausalLM", {**_GPT2, "add_cross_attention": True}),
    "openai_gpt": ("openai-gpt", "", _GPT2),
    "gpt_neox": ("gpt_neox", "CausalLM", _USUAL),
    "bloom": ("bloom", "CausalLM", {**_SMALL, "hidden_size": 16, "n_layer": 2, "n_head": 4}),
    "falcon_rw": ("falcon", "CausalLM", {**_FALCON, "multi_query": False, "new_decoder_architecture": False}),
    "falcon_7b": ("falcon", "CausalLM", {**_FALCON, "multi_query": True, "new_decoder_architecture": False}),
    "falcon_40b": ("falcon", "CausalLM", {**_FALCON, "num_kv_heads": 2, "new_decoder_architecture": True}),
    "gpt_bigcode_mqa": ("gpt_bigcode", "CausalLM", {**_GPT2, "multi_query": True}),
    "gpt_bigcode_mha": ("gpt_bigcode", "CausalLM", {**_GPT2, "multi_query": False}),
    "phi3": ("phi3", "CausalLM", _GROUPED),
    "mpt": ("mpt", "CausalLM", {**_SMALL, "d_model": 16, "n_layers": 2, "n_heads": 4}),
    "modernbert": ("modernbert", "", {**_USUAL, "cls_token_id": 1, "sep_token_id": 2}),
    "persimmon": ("persimmon", "CausalLM", {**_USUAL, "qk_layernorm": False}),
    "codegen": ("codegen", "CausalLM", {**_GPT2, "rotary_dim": 2}),
    "deberta": ("deberta", "", {**_USUAL, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "minimax": ("minimax", "CausalLM", {**_EXPERTS, "num_local_experts": 3,
                                        "layer_types": ["linear_attention", "full_attention"]}),
    "qwen3_next": ("qwen3_next", "CausalLM", {
        **_EXPERTS, "num_experts": 3, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 12,
        "linear_key_head_dim": 4, "linear_value_head_dim": 6, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "layer_types": ["linear_attention", "full_attention"]}),
    "qwen3_5": ("qwen3_5_text", "CausalLM", {
        **_GROUPED, "head_dim": 4, "linear_key_head_dim": 4, "linear_value_head_dim": 6, "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "layer_types": ["linear_attention", "full_attention"]}),
    "llama": ("llama", "CausalLM", _GROUPED),
    "mixtral": ("mixtral", "CausalLM", {**_GROUPED, "num_local_experts": 3}),
    "qwen3_moe": ("qwen3_moe", "CausalLM", {**_EXPERTS, "num_experts": 3, "moe_intermediate_size": 8}),
    "qwen2_moe": ("qwen2_moe", "CausalLM", {
        **_EXPERTS, "num_experts": 3, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 12}),
    "llama4": ("llama4_text", "CausalLM", {**_EXPERTS, "num_local_experts": 3, "intermediate_size_mlp": 20}),
    "gpt_oss": ("gpt_oss", "CausalLM", {**_EXPERTS, "num_local_experts": 3}),
    # As wide inside as outside: the shape of down no longer tells which way round it is stored.
    "gpt_oss_square": ("gpt_oss", "CausalLM", {**_EXPERTS, "num_local_experts": 3, "intermediate_size": 16}),
    "granitemoe": ("granitemoe", "CausalLM", {**_GROUPED, "num_local_experts": 3, "num_experts_per_tok": 2}),
    "deepseek_v3": ("deepseek_v3", "CausalLM", {
        **_USUAL, "num_key_value_heads": 4, "n_routed_experts": 4, "n_group": 2, "topk_group": 1,
        "num_experts_per_tok": 2, "moe_intermediate_size": 8, "q_lora_rank": 6, "kv_lora_rank": 5,
        "qk_rope_head_dim": 2, "qk_nope_head_dim": 3, "v_head_dim": 4, "first_k_dense_replace": 1}),
    "t5": ("t5", "Seq2SeqLM", {**_SMALL, "d_model": 16, "d_ff": 24, "d_kv": 4, "num_layers": 2,
                               "num_decoder_layers": 3, "num_heads": 4, "decoder_start_token_id": 0}),
    "bart": ("bart", "Seq2SeqLM", _SEQ2SEQ),
    "bert": ("bert", "MaskedLM", _USUAL),
    "distilbert": ("distilbert", "", {**_SMALL, "dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 24}),
    "vit": ("vit", "", {**_IMAGE, "num_hidden_layers": 2}),
    "swin": ("swin", "", {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 4],
                          "window_size": 2}),
    "resnet": ("resnet", "", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 1]}),
    "clip": ("clip", "", {
        "text_config": {**_TOWER, **_SMALL, "num_hidden_layers": 2},
        "vision_config": {**_IMAGE, "num_hidden_layers": 3}, "projection_dim": 8}),
    "wav2vec2": ("wav2vec2", "", {
        **_USUAL, "conv_dim": (8, 8), "conv_stride": (2, 2), "conv_kernel": (3, 3), "num_feat_extract_layers": 2,
        "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}),
    "mamba": ("mamba", "CausalLM", {**_SMALL, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4,
                                    "time_step_rank": 3}),
}  # fmt: skip


@cache
def tiny(kind: str) -> Any:
    """The model, seed 0, every bias 0, in evaluation mode; the same object each time, so tests must not change it."""
    model_type, head, settings = CONFIGS[kind]
    config = transformers.AutoConfig.for_model(model_type, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"AutoModel{'For' if head else ''}{head}").from_config(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim > 2 and "experts" in name:
                nn.init.normal_(parameter, std=0.3)  # some are left as they were allocated
    return model.eval()


def run(model: Any, **extra: Any) -> None:
    """One position of every token: at position 0 rotary embeddings leave q and k as they are."""
    tokens = torch.arange(VOCABULARY)[:, None]
    with torch.no_grad():
        model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False, **extra)


@contextmanager
def attention_calls() -> Iterator[list[tuple[nn.Module, Tensor, Tensor, Tensor]]]:
    """(module, query, key, value) of every call of transformers' attention function; (samples, heads · width)."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as functions

    calls: list[tuple[nn.Module, Tensor, Tensor, Tensor]] = []
    ours = functions["sdpa"]

    def recorded(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append((module, *(x.transpose(1, 2).flatten(2).flatten(0, 1) for x in (query, key, value))))
        return ours(module, query, key, value, *args, **kwargs)

    functions["sdpa"] = recorded
    try:
        yield calls
    finally:
        functions["sdpa"] = ours


class Results(TorchFunctionMode):
    """Records what calls of one torch function return: of ``torch.split``, of ``Tensor.chunk``, …"""

    def __init__(self, wanted: str) -> None:
        super().__init__()
        self.wanted, self.results = wanted, []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.__name__ == self.wanted:
            self.results.append(result)
        return result


@contextmanager
def inputs_of(modules: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Last input (samples, features) of each module by name."""
    seen: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[name] = args[0].detach().reshape(-1, args[0].shape[-1])

        return keep

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
