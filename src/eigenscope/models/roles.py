"""Names of tensors → the layer they belong to and the role they play, across the architectures in use."""

from __future__ import annotations

import re
from collections.abc import Iterable

_EDGE = r"(?:^|[._])"
"""What ``~`` stands for in the patterns: the start of a part of the name."""

ROLES: tuple[tuple[str, str], ...] = tuple(
    (role, pattern.replace("~", _EDGE))
    for role, pattern in (
        # what is embedded
        ("token_type_embedding", r"token_types?(_embeddings?|_embd)?$|~segment_embeddings?$"),
        ("relative_position", r"relative_attention_bias$|rel_pos_[hw]$|relative_position_bias_table$|attn_rel_b$"),
        ("position_embedding", r"(position|pos|positional)_?(embeddings?|embed|embd|encoding)$|~wpe$|embed_positions$"),
        (
            "patch_embedding",
            r"patch_?embed(ding|dings|der)?(\.proj(ection)?)?$|patch_embeddings\.projection$|patch_embd$",
        ),
        ("lm_head", r"~lm_head$|~embed_out$|\Aoutput$|predictions\.decoder$|~output_layer$"),
        ("embedding", r"~wte$|word_embeddings?$|embed_tokens$|tok(en)?_embeddings?$|token_embd$|~shared$|~embed_in$"),
        ("embedding", r"~embeddings?$|~embed$|~emb$|lookup_table$"),
        # experts
        ("shared_expert_gate", r"shared_expert_gate$|ffn_gate_inp_shexp$"),
        (
            "router",
            r"router(\.(layer|classifier|gate|weight))?$|ffn_gate_inp$|(moe|mlp|ffn|block_sparse_moe|feed_forward)\.gate$",
        ),
        ("gate", r"shared_experts?\.(gate_proj|w1)$|ffn_gate_shexp$"),
        # attention
        ("qkv", r"query_key_value$|~c_attn$|in_proj_weight$|~w?qkv(_proj|_mat)?$|attn_qkv$|~w_pack$|attn_qkvw$"),
        ("kv", r"~(kv_proj|to_kv|key_value|c_kv|kv)$"),
        ("q_a", r"~q_a_proj$|attn_q_a$"),
        ("q_b", r"~q_b_proj$|attn_q_b$"),
        ("kv_a", r"~kv_a_proj(_with_mqa)?$|attn_kv_a_mqa$"),
        ("kv_b", r"~kv_b_proj$|attn_kv_b$"),
        ("q", r"~(q|q_proj|q_lin|query|query_proj|wq|to_q|attn_q|query_layer|linear_q|q_proj_weight)$"),
        ("k", r"~(k|k_proj|k_lin|key|key_proj|wk|to_k|attn_k|key_layer|linear_k|k_proj_weight)$"),
        ("v", r"~(v|v_proj|v_lin|value|value_proj|wv|to_v|attn_v|value_layer|linear_v|v_proj_weight)$"),
        ("o", r"(attention|attn|selfattention|crossattention)\.(output\.dense|output|out|dense|proj|c_proj|wo|o)$"),
        ("o", r"~(o_proj|out_lin|attn_output|to_out(\.0)?|linear_out|wo_proj)$"),
        ("o", r"(attention|attn)[^.]*\.(out_proj|out_proj\.weight|o)$|layer\.[01]\.(self|encdec)attention\.o$"),
        # feed-forward
        ("gate_up", r"gate_up_proj$|gate_up$|ffn_gate_up(_exps)?$"),
        ("gate", r"gate_proj$|experts\.\d+\.w1$|feed_forward\.w1$|mlp\.w1$|~wi_0$|ffn_gate(_exps)?$|~w1$"),
        ("up", r"up_proj$|experts\.\d+\.w3$|feed_forward\.w3$|mlp\.w3$|~wi_1$|~wi$|ffn_up(_exps)?$|~w3$"),
        ("up", r"intermediate\.dense$|~c_fc$|dense_h_to_4h$|~fc1$|ffn\.lin1$|~linear1$|~fc_in$|~lin1$|ffn\.dense$"),
        ("down", r"down_proj$|experts\.\d+\.w2$|feed_forward\.w2$|mlp\.w2$|ffn_down(_exps)?$|~w2$|densereludense\.wo$"),
        ("down", r"mlp\.c_proj$|dense_4h_to_h$|~fc2$|ffn\.lin2$|~linear2$|~fc_out$|~lin2$|mlp\.wo$|ffn\.output_dense$"),
        ("down", r"(?:layer|layers|blocks?|groups)\.\d+\.output\.dense$|ffn_output$|~output\.dense$"),
        # state-space
        ("ssm_in", r"(mixer|mamba|ssm)\.in_proj$|ssm_in$"),
        ("ssm_x", r"(mixer|mamba|ssm)\.x_proj$|ssm_x$"),
        ("ssm_dt", r"(mixer|mamba|ssm)\.dt_proj$|ssm_dt$"),
        ("ssm_out", r"(mixer|mamba|ssm)\.out_proj$|ssm_out$"),
        ("o", r"~out_proj$"),
        # heads and adapters
        ("pooler", r"pooler(\.dense)?$"),
        ("classifier", r"~classifier$|~score$|~qa_outputs$|~classification_head\.\w+$|~head$"),
        ("lora_a", r"lora_a(\.\w+)?$"),
        ("lora_b", r"lora_b(\.\w+)?$"),
    )
)

CROSS = re.compile(r"cross_?att|encdecattention|encoder_attn|multihead_attn")
SHARED_EXPERT = re.compile(r"shared_expert|_shexp")
EXPERT = re.compile(r"experts?[._]|_exps$|experts\.")
RECURRENT = re.compile(r"(?:^|\.)weight_(?P<kind>ih|hh|hr)(?:_l(?P<layer>\d+))?(?P<reverse>_reverse)?$")
_COMPILED = tuple((role, re.compile(pattern)) for role, pattern in ROLES)


def stem(name: str) -> str:
    """The name without the ending that says only that it is a parameter, in lower case."""
    return re.sub(r"\.(weight|parametrizations\.weight\.original\d?)$", "", name).lower()


def role_of(name: str) -> str:
    """Role of a weight, or the last telling part of its name where no role is known."""
    low = stem(name)
    recurrent = RECURRENT.search(name)
    if recurrent:
        return recurrent["kind"] + ("_reverse" if recurrent["reverse"] else "")
    for role, pattern in _COMPILED:
        if pattern.search(low):
            if CROSS.search(low) and role in ("q", "k", "v", "o", "qkv", "kv"):
                return f"cross_{role}"
            if SHARED_EXPERT.search(low) and role in ("gate", "up", "down", "gate_up"):
                return f"shared_expert_{role}"
            if EXPERT.search(low) and role in ("gate", "up", "down", "gate_up"):
                return f"expert_{role}"
            return role
    telling = [part for part in low.split(".") if not part.isdigit()]
    return telling[-1] if telling else low


def layers_of(names: Iterable[str]) -> dict[str, tuple[int | None, str]]:
    """Layer number of each tensor, and the stack it belongs to where the model has more than one.

    The layer is the first integer in the dotted name. Where integers stand under several parents (an encoder
    and a decoder), the stack is the first part in which the parents differ. Parents that themselves end in a
    number (``layer1.0`` … ``layer4.2``, as in residual networks) are one stack, counted through.
    """
    places: dict[str, tuple[str, int] | None] = {}
    for name in names:
        recurrent = RECURRENT.search(name)
        if recurrent:
            places[name] = ("", int(recurrent["layer"])) if recurrent["layer"] else None
            continue
        parts = name.split(".")
        index = next((i for i, part in enumerate(parts) if part.isdigit() and i > 0), None)
        # Six digits are more than any depth, and huge numbers in a hostile name are not worth parsing.
        index = None if index is None or len(parts[index]) > 6 else index
        places[name] = None if index is None else (".".join(parts[:index]), int(parts[index]))
    offsets = _offsets({place for place in places.values() if place})
    parents = sorted({re.sub(r"\d+$", "", place[0]) for place in places.values() if place and place[0]})
    stacks = _distinguish(parents)
    result: dict[str, tuple[int | None, str]] = {}
    for name, place in places.items():
        if place is None:
            result[name] = (None, "")
        else:
            parent = re.sub(r"\d+$", "", place[0])
            result[name] = (place[1] + offsets.get(place[0], 0), stacks.get(parent, ""))
    return result


def _offsets(places: set[tuple[str, int]]) -> dict[str, int]:
    """How many layers stand before each numbered parent (``layer2`` follows all of ``layer1``)."""
    sizes: dict[str, int] = {}
    for parent, index in places:
        sizes[parent] = max(sizes.get(parent, 0), index + 1)
    offsets: dict[str, int] = {}
    running: dict[str, int] = {}
    numbered = [(re.sub(r"\d+$", "", parent), int(match[0]), parent) for parent in sizes
                if (match := re.search(r"\d{1,6}$", parent))]  # fmt: skip
    for family, _, parent in sorted(numbered):
        offsets[parent] = running.get(family, 0)
        running[family] = offsets[parent] + sizes[parent]
    return offsets


def _distinguish(parents: list[str]) -> dict[str, str]:
    if len(parents) < 2:
        return {}
    split = [parent.split(".") for parent in parents]
    depth = next((i for i in range(min(map(len, split))) if len({parts[i] for parts in split}) > 1), None)
    if depth is None:
        return dict(zip(parents, parents, strict=True))
    return {parent: parts[depth] for parent, parts in zip(parents, split, strict=True)}
