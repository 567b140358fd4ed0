"""Names of tensors → the layer they belong to and the role they play, across the architectures in use."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_EDGE = r"(?:^|[._])"
"""What ``~`` stands for in the patterns: the start of a word of the name."""
_PART = r"(?:^|\.)"
"""What ``@`` stands for: the start of a part between dots."""

ROLES: tuple[tuple[str, str], ...] = tuple(
    (role, pattern.replace("~", _EDGE).replace("@", _PART))
    for role, pattern in (
        # what is embedded
        ("token_type_embedding", r"token_types?(_embeddings?|_embd)?$|~segment_embeddings?$"),
        ("relative_position", r"relative_attention_bias$|rel_pos_[hw]$|relative_position_bias_table$|attn_rel_b$"),
        ("position_embedding", r"(position|positions|pos|positional)_?(embeddings?|embed|embd|encoding)$|~wpe$"),
        ("position_embedding", r"embed_positions$"),
        ("patch_embedding", r"patch_?embed(ding|dings|der)?(\.proj(ection)?)?$|patch_embd$"),
        ("token", r"~(cls|class|mask|register|dist(illation)?)_(tokens?|emb)$"),
        ("lm_head", r"~lm_head$|~embed_out$|\Aoutput$|predictions\.decoder$|~output_layer$"),
        ("lm_head_transform", r"transform\.dense$|~vocab_transform$|lm_head\.dense$"),
        ("embedding", r"~wte$|word_embeddings?$|embed_tokens$|tok(en)?_embeddings?$|token_embd$|~shared$|~embed_in$"),
        ("embedding", r"~embeddings?$|~embed$|~emb$|lookup_table$"),
        # experts
        ("shared_expert_router", r"shared_expert_gate$|ffn_gate_inp_shexp$"),
        (
            "router",
            r"router(\.(layer|classifier|gate|weight))?$|ffn_gate_inp$|(moe|mlp|ffn|feed_forward)\.gate$",
        ),
        ("gate", r"shared_experts?\.(gate_proj|w1)$|ffn_gate_shexp$"),
        # attention
        ("attn_gate", r"in_proj_z$|attn_gate$|(attn|attention)\.gate_proj$"),
        (
            "qkv",
            r"query_key_value$|~c_attn$|in_proj_weight$|~w?qkvz?(_proj|_mat|_linear)?$|attn_qkv$|~w_pack$|attn_qkvw$",
        ),
        ("qkv", r"~att_proj$|attention\.self\.in_proj$"),
        ("kv", r"~(kv_proj|to_kv|key_value|c_kv|kv)$"),
        ("q_a", r"~q_a_proj$|attn_q_a$"),
        ("q_b", r"~q_b_proj$|attn_q_b$"),
        ("kv_a", r"~kv_a_proj(_with_mqa)?$|attn_kv_a_mqa$"),
        ("kv_b", r"~kv_b_proj$|attn_kv_b$"),
        ("up", r"(feed_forward|ffn)\.key$"),
        ("down", r"(feed_forward|ffn)\.value$"),
        ("q", r"@(q|q_proj|q_lin|q_attn|query|query_proj|w_?q|to_q|query_layer|linear_q|q_proj_weight)$|~attn_q$"),
        ("k", r"@(k|k_proj|k_lin|key|key_proj|w_?k|to_k|key_layer|linear_k|k_proj_weight)$|~attn_k$"),
        ("v", r"@(v|v_proj|v_lin|value|value_proj|w_?v|to_v|value_layer|linear_v|v_proj_weight)$|~attn_v$"),
        ("o", r"(attention|attn|selfattention|crossattention)\.(output\.dense|output|out|dense|proj|c_proj|wo|o)$"),
        ("o", r"~(o_proj|out_lin|attn_output|to_out(\.0)?|linear_out|wo_proj)$"),
        ("o", r"(attention|attn)[^.]*\.(out_proj|out_proj\.weight|o)$|layer\.[01]\.(self|encdec)attention\.o$"),
        # feed-forward
        ("gate_up", r"gate_up_proj$|gate_up$|ffn_gate_up(_exps)?$|(moe|mlp)\.input_linear$"),
        ("gate", r"gate_proj$|experts\.\d+\.w1$|feed_forward\.w1$|mlp\.w1$|~wi_0$|ffn_gate(_exps)?$|~w1$"),
        ("up", r"up_proj$|experts\.\d+\.w3$|feed_forward\.w3$|mlp\.w3$|~wi_1$|~wi$|ffn_up(_exps|_shexp)?$|~w3$"),
        (
            "up",
            r"intermediate\.dense$|~c_fc$|dense_h_to_4h$|~fc1$|ffn\.lin1$|~linear1$|~fc_in$|~lin1$|ffn\.dense$|@ffn$",
        ),
        ("up", r"~intermediate_dense$|~pwconv1$|ff\.layer_1$|mlp\.in_proj$"),
        ("down", r"down_proj$|experts\.\d+\.w2$|feed_forward\.w2$|mlp\.w2$|ffn_down(_exps|_shexp)?$|~w2$"),
        (
            "down",
            r"densereludense\.wo$|mlp\.c_proj$|dense_4h_to_h$|~fc2$|ffn\.lin2$|~linear2$|~fc_out$|~lin2$|mlp\.wo$",
        ),
        ("down", r"(?:layer|layers|blocks?|groups)\.\d+\.output\.dense$|ffn_output$|~output\.dense$|~output_dense$"),
        ("down", r"~pwconv2$|ff\.layer_2$|mlp\.out_proj$|(moe|mlp)\.output_linear$"),
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
SHARED_EXPERT = re.compile(r"shared_expert|_shexp|shared_mlp")
EXPERT = re.compile(r"experts?[._]|_exps$|(?:^|\.)(?:block_sparse_moe|mlp)\.(?:in|out)put_linear$")
RECURRENT = re.compile(r"(?:^|\.)weight_(?P<kind>ih|hh|hr)(?:_l(?P<layer>[0-9]{1,6}))?(?P<reverse>_reverse)?$")
ENDING = re.compile(
    r"(?:\.(?:weight(?:_v|_orig|_packed|\._data)?|qweight|W_q|parametrizations\.weight\.original[01]?)|_blocks)$",
    re.IGNORECASE,
)
"""What stands behind the name of the map: the parameter, its normalised or quantised form."""
BLOCKS = ("blocks", "layers", "albert_layers")
"""Parts that number the blocks of a stage: ``stages.2.layers.0``, ``layers.1.blocks.5``."""
_COMPILED = tuple((role, re.compile(pattern)) for role, pattern in ROLES)


def stem(name: str) -> str:
    """The name without the ending that says only that it is a parameter, in lower case."""
    return ENDING.sub("", name).removesuffix(".base_layer").lower()


def role_of(name: str) -> str:
    """Role of a weight, or the last telling part of its name where no role is known."""
    recurrent = RECURRENT.search(name)
    if recurrent:
        return recurrent["kind"] + ("_reverse" if recurrent["reverse"] else "")
    low = stem(name)
    for role, pattern in _COMPILED:
        if pattern.search(low):
            if CROSS.search(low) and role in ("q", "k", "v", "o", "qkv", "kv"):
                return f"cross_{role}"
            if SHARED_EXPERT.search(low) and role in ("gate", "up", "down", "gate_up"):
                return f"shared_expert_{role}"
            if EXPERT.search(low) and role in ("gate", "up", "down", "gate_up"):
                return f"expert_{role}"
            return role
    telling = [part for part in low.split(".") if part and not part.isdigit()]
    return telling[-1] if telling else "weight"


@dataclass(frozen=True)
class _Place:
    """Where a tensor stands: the numbered list, the number in it, and the number within that one if it is a stage."""

    stack: str
    number: int
    block: int | None


def layers_of(names: Iterable[str]) -> dict[str, tuple[int | None, str]]:
    """Layer number of each tensor, and the stack it belongs to where the model has more than one.

    The layer is the first integer in the dotted name. Where integers stand under several parents (an encoder
    and a decoder), the stack is the first part in which the parents differ. Stages of blocks (``layer1.0`` …
    ``layer4.2``, ``stages.0.layers.1``) are one stack, counted through; what stands in a stage outside its blocks
    counts with the first of them.
    """
    places = {name: _place(name) for name in names}
    sizes: dict[str, dict[int, int]] = {}
    staged: set[str] = set()
    for place in places.values():
        if place is not None:
            stages = sizes.setdefault(place.stack, {})
            stages[place.number] = max(stages.get(place.number, 1), (place.block or 0) + 1)
            if place.block is not None:
                staged.add(place.stack)
    before = {stack: _before(sizes[stack]) for stack in staged}
    stacks = _distinguish(sorted(sizes))
    result: dict[str, tuple[int | None, str]] = {}
    for name, place in places.items():
        if place is None:
            result[name] = (None, "")
        else:
            first = before[place.stack][place.number] if place.stack in before else place.number
            result[name] = (first + (place.block or 0), stacks.get(place.stack, ""))
    return result


def _number(part: str) -> int | None:
    """An index; more than six digits are more than any depth, and huge ones in a hostile name are not parsed."""
    return int(part) if re.fullmatch(r"[0-9]{1,6}", part) else None


def _place(name: str) -> _Place | None:
    recurrent = RECURRENT.search(name)
    cell = int(recurrent["layer"]) if recurrent and recurrent["layer"] else None
    parts = (name[: recurrent.start()] if recurrent else name).split(".")
    at = next((i for i, part in enumerate(parts) if part.isascii() and part.isdigit()), None)
    if at is None:
        return None if cell is None else _Place(".".join(parts), cell, None)
    number = _number(parts[at])
    if number is None:
        return None
    stack = ".".join(parts[:at])
    stage = re.search(r"(?<![0-9])[0-9]{1,6}$", stack)
    if stage:
        return _Place(stack[: stage.start()], int(stage[0]), number)
    inner = _number(parts[at + 2]) if len(parts) > at + 2 and parts[at + 1].lower() in BLOCKS else None
    return _Place(stack, number, (cell or None) if inner is None else inner)


def _before(sizes: dict[int, int]) -> dict[int, int]:
    """Stage → how many blocks stand before it."""
    result, total = {}, 0
    for number in sorted(sizes):
        result[number] = total
        total += sizes[number]
    return result


def _distinguish(stacks: list[str]) -> dict[str, str]:
    """Stack → the first part of its name in which the stacks differ; nothing where there is only one."""
    if len(stacks) < 2:
        return {}
    split = [stack.split(".") for stack in stacks]
    depth = next((i for i in range(min(map(len, split))) if len({parts[i] for parts in split}) > 1), None)
    if depth is None:
        return {stack: stack for stack in stacks}
    return {stack: parts[depth] for stack, parts in zip(stacks, split, strict=True)}
