"""Tensors that hold several linear maps: which rows or columns are which, from the configuration or the shape."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eigenscope.models.checkpoint import TensorInfo
from eigenscope.models.roles import EXPERT

Step = tuple[str, tuple[int, ...]]
"""("reshape", shape), ("permute", order) or ("take", (axis, start, stop, step)): plain data, applied in turn."""
Shapes = Mapping[str, TensorInfo]


@dataclass(frozen=True)
class Part:
    """One linear map inside a tensor.

    Attributes:
        suffix: added to the tensor's name after a colon; empty where the tensor is a single map.
        role: replaces the tensor's role; empty keeps it.
        start, stop: leading rows to read.
        steps: how they become the (rows, cols) matrix.
        rows, cols: outputs and inputs of the map.
    """

    suffix: str
    role: str
    start: int
    stop: int
    steps: tuple[Step, ...]
    rows: int
    cols: int


Split = tuple[list[Part], str]
"""The maps in a tensor, and in words how they were told apart."""


def setting(config: Mapping[str, Any], *names: str) -> Any:
    """First of these keys in the configuration, in its text part, or (GGUF) under the architecture's prefix."""
    architecture = config.get("general.architecture")
    for place in (config, config.get("text_config"), config.get("llm_config"), config.get("attn_config")):
        if isinstance(place, Mapping):
            for name in names:
                value = place.get(name, place.get(f"{architecture}.{name}"))
                if value is not None:
                    return value
    return None


def model_kinds(config: Mapping[str, Any]) -> set[str]:
    """``model_type`` of the model and of its language part, in lower case."""
    places = (config, config.get("text_config"), config.get("llm_config"), config.get("decoder"))
    found = [place.get("model_type") for place in places if isinstance(place, Mapping)]
    return {kind.lower() for kind in found if isinstance(kind, str)}


def count(config: Mapping[str, Any], *names: str) -> int | None:
    """A positive integer of the configuration; a list with one entry per layer counts where all are the same."""
    value = setting(config, *names)
    if isinstance(value, list) and value and all(entry == value[0] for entry in value):
        value = value[0]
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


@dataclass(frozen=True)
class Heads:
    """Head counts and widths of the attention, None where the configuration does not tell."""

    queries: int | None
    keys: int | None
    width: int | None
    hidden: int | None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Heads:
        """Read them from a Hugging Face or GGUF configuration."""
        queries = count(config, "num_attention_heads", "n_head", "n_heads", "num_heads", "attention.head_count")
        names = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_n_heads", "attention.head_count_kv")
        keys = count(config, *names) if setting(config, *names) is not None else queries
        width = count(config, "head_dim", "kv_channels", "attention.key_length")
        hidden = count(config, "hidden_size", "n_embd", "d_model", "embedding_length")
        if width is None and hidden and queries and hidden % queries == 0:
            width = hidden // queries
        return cls(queries, keys, width, hidden)


def whole(shape: tuple[int, int], *, inputs_first: bool = False) -> Part:
    """The tensor as one matrix."""
    rows, cols = shape[::-1] if inputs_first else shape
    return Part("", "", 0, shape[0], (("permute", (1, 0)),) if inputs_first else (), rows, cols)


def divide(
    shape: tuple[int, int], groups: int, sizes: list[tuple[str, int]], *, inputs_first: bool = False
) -> list[Part]:
    """Parts of given rows in each of ``groups`` equal groups of outputs; one group is contiguous blocks."""
    cols = shape[0] if inputs_first else shape[1]
    turned: tuple[Step, ...] = (("permute", (1, 0)),) if inputs_first else ()
    each = sum(size for _, size in sizes)
    result, at = [], 0
    for name, size in sizes:
        if groups == 1 and not inputs_first:
            result.append(Part(name, name, at, at + size, (), size, cols))
        else:
            steps = (*turned, ("reshape", (groups, each, cols)), ("take", (1, at, at + size, 1)),
                     ("reshape", (groups * size, cols)))  # fmt: skip
            result.append(Part(name, name, 0, shape[0], steps, groups * size, cols))
        at += size
    return result


Layout = tuple[int, list[tuple[str, int]], str]
"""Groups of rows, the parts of each group with their rows, and how it was known."""

BY_HEAD: dict[str, frozenset[str]] = {
    "query_key_value": frozenset(
        ("gpt_neox", "gpt_neox_japanese", "bloom", "persimmon", "falcon", "refinedwebmodel", "chatglm")
    ),
    "c_attn": frozenset(("gpt_bigcode",)),
    "in_proj": frozenset(("deberta",)),
    "qkv_proj": frozenset(("minimax",)),
    "wqkv": frozenset(("internlm2",)),
}
"""Name of the weight → models whose rows alternate head by head."""


def split_attention(stem: str, shape: tuple[int, int], config: Mapping[str, Any], *, inputs_first: bool) -> Split:
    """q, k and v of a fused weight, and how they were told apart; the whole where the layout is not known.

    Layouts: contiguous thirds (GPT-2, ``in_proj_weight``, ViT, MPT, ModernBERT), contiguous with grouped keys (Phi-3,
    Falcon-7B, GPTBigCode), heads interleaved as (heads, 3, width) (GPT-NeoX, BLOOM, Persimmon, Falcon-RW, DeBERTa,
    MiniMax), groups interleaved as (groups, queries + 2, width) (Falcon-40B, InternLM2), CodeGen's four partitions of
    q, v, k, and the unequal q, k, v of gated linear attention (Qwen3-Next).
    """
    rows, cols = shape[::-1] if inputs_first else shape
    found = _layout(stem.rsplit(".", 1)[-1], rows, cols, config, inputs_first)
    if isinstance(found, str):
        return [whole(shape, inputs_first=inputs_first)], f"left whole: {found}"
    groups, sizes, how = found
    names = ", ".join(name for name, _ in sizes)
    return divide(shape, groups, sizes, inputs_first=inputs_first), f"fused {names}: {how}"


def _layout(last: str, rows: int, cols: int, config: Mapping[str, Any], inputs_first: bool) -> Layout | str:
    kinds, heads = model_kinds(config), Heads.of(config)
    queries, keys, width = heads.queries, heads.keys, heads.width
    linear = _linear_attention(last, rows, config)
    if linear:
        return linear
    if last == "c_attn" and inputs_first and cols and rows == 2 * cols:
        return 1, [("k", cols), ("v", cols)], "Conv1D, columns in halves"
    if last == "c_attn" and inputs_first and rows == 3 * cols:
        return 1, [("q", cols), ("k", cols), ("v", cols)], "Conv1D, columns in thirds"
    if "codegen" in kinds and rows % 12 == 0:
        return 4, [("q", rows // 12), ("v", rows // 12), ("k", rows // 12)], "four partitions of q, v, k"
    if last in ("query_key_value", "in_proj") or kinds & BY_HEAD.get(last, frozenset()):
        return _by_head(last, rows, config, heads, kinds)
    # The head counts are those of the text model: a vision tower of another width is not judged by them.
    if queries and keys and width and heads.hidden in (None, cols) and (queries + 2 * keys) * width == rows:
        sizes = [("q", queries * width), ("k", keys * width), ("v", keys * width)]
        return 1, sizes, "rows in blocks of q, k, v by the head counts"
    if rows % 3 == 0 and (rows == 3 * cols or last == "in_proj_weight" or not queries):
        thirds = [("q", rows // 3), ("k", rows // 3), ("v", rows // 3)]
        return 1, thirds, "rows in thirds" + ("" if kinds or last == "in_proj_weight" else ", as is usual")
    return f"{rows} rows fit neither thirds nor the head counts of the configuration"


def _by_head(last: str, rows: int, config: Mapping[str, Any], heads: Heads, kinds: set[str]) -> Layout | str:
    queries, keys, width = heads.queries, heads.keys, heads.width
    new = setting(config, "new_decoder_architecture") or "refinedweb" in kinds
    if "chatglm" in kinds and setting(config, "multi_query_attention"):
        keys = count(config, "multi_query_group_num")
        if queries and keys and width and (queries + 2 * keys) * width == rows:
            sizes = [("q", queries * width), ("k", keys * width), ("v", keys * width)]
            return 1, sizes, "rows in blocks of q, k, v by the head counts"
    elif last == "wqkv" or (kinds & {"falcon", "refinedweb"} and new):
        if queries and keys and width and queries % keys == 0 and (queries + 2 * keys) * width == rows:
            sizes = [("q", queries // keys * width), ("k", width), ("v", width)]
            return keys, sizes, f"{keys} groups of heads interleaved"
    elif kinds & {"falcon", "refinedwebmodel", "gpt_bigcode"} and setting(config, "multi_query"):
        if queries and width and (queries + 2) * width == rows:
            sizes = [("q", queries * width), ("k", width), ("v", width)]
            return 1, sizes, "multi-query: rows of q, then one key and one value head"
    elif kinds & BY_HEAD.get(last, frozenset()) and queries and width and 3 * queries * width == rows:
        return queries, [("q", width), ("k", width), ("v", width)], f"{queries} heads of q, k, v interleaved"
    known = f"model_type {', '.join(sorted(kinds))}" if kinds else "no model_type in the configuration"
    return f"fused attention of an unknown layout ({known}, {rows} rows)"


def _linear_attention(last: str, rows: int, config: Mapping[str, Any]) -> Layout | str | None:
    """Gated delta nets: q and k of one width, v and the output gate z of another; None for any other attention."""
    if last not in ("in_proj_qkv", "in_proj_qkvz", "attn_qkv"):
        return None
    groups = count(config, "linear_num_key_heads", "ssm.group_count")
    key = count(config, "linear_key_head_dim", "ssm.state_size")
    value = count(config, "ssm.inner_size")
    if value is None:
        value = (count(config, "linear_num_value_heads") or 0) * (count(config, "linear_value_head_dim") or 0)
    if groups and key and value:
        if last != "in_proj_qkvz" and rows == 2 * groups * key + value:
            return 1, [("q", groups * key), ("k", groups * key), ("v", value)], "linear attention, rows in blocks"
        if last == "in_proj_qkvz" and value % groups == 0 and rows == 2 * (groups * key + value):
            sizes = [("q", key), ("k", key), ("v", value // groups), ("attn_gate", value // groups)]
            return groups, sizes, f"linear attention, {groups} groups of q, k, v and gate interleaved"
    return None if last == "attn_qkv" else f"linear attention whose head counts do not give {rows} rows"


def split_gated_query(shape: tuple[int, int], config: Mapping[str, Any]) -> Split | None:
    """q and the output gate of Qwen3-Next's and Qwen3.5's attention, interleaved by head; None for any other."""
    heads = Heads.of(config)
    family = any(kind.startswith(("qwen3_next", "qwen3_5")) for kind in model_kinds(config))
    if family and heads.queries and heads.width and shape[0] == 2 * heads.queries * heads.width:
        sizes = [("q", heads.width), ("attn_gate", heads.width)]
        return divide(shape, heads.queries, sizes), f"fused q and gate: {heads.queries} heads interleaved"
    return None


DOWN_OF = {"wi": "wo", "Wi": "Wo", "dense_h_to_4h": "dense_4h_to_h", "ffn_up": "ffn_down"}
"""Names of up that may hold the gate as well → the down that tells: it then takes half as many inputs."""


def split_gate_up(name: str, shape: tuple[int, int], role: str, tensors: Shapes) -> Split | None:
    """Gate and up of a fused feed-forward weight, the half that goes through the activation first; else None."""
    path = name.split(".")
    down = tensors.get(".".join([*path[:-2], DOWN_OF.get(path[-2], ""), path[-1]])) if len(path) > 1 else None
    doubled = down is not None and len(down.shape) == 2 and shape[0] == 2 * down.shape[1] > 0
    if not (doubled or role.endswith("gate_up")):
        return None
    if shape[0] % 2:
        return [whole(shape)], "left whole: an odd number of rows for gate and up"
    base = role.removesuffix("gate_up").removesuffix("up")
    half = shape[0] // 2
    parts = [Part(n, base + n, i * half, (i + 1) * half, (), half, shape[1]) for i, n in enumerate(("gate", "up"))]
    return parts, "fused gate and up: rows in halves"


GATES = {4: ("i", "f", "g", "o"), 3: ("r", "z", "n")}
"""Order of the gates in PyTorch's LSTM and GRU weights."""


def split_gates(shape: tuple[int, int], hidden: int, role: str) -> Split:
    """One part per gate of a recurrent weight of ``hidden`` units, or the whole for a plain RNN."""
    number = shape[0] // hidden if hidden and shape[0] % hidden == 0 else 0
    names = GATES.get(number)
    if names is None:
        return [whole(shape)], "recurrent weight" if number == 1 else "recurrent weight, gates not recognised"
    parts = [Part(n, f"{role}_{n}", i * hidden, (i + 1) * hidden, (), hidden, shape[1]) for i, n in enumerate(names)]
    return parts, f"split into the {len(names)} gates {', '.join(names)}"


def is_stack_of_experts(stem: str) -> bool:
    """Whether a 3-D weight of this name is (experts, a, b)."""
    return bool(EXPERT.search(stem)) and not re.search(r"experts?\.[0-9]+\.", stem)


def split_experts(
    name: str, shape: tuple[int, int, int], role: str, tensors: Shapes, config: Mapping[str, Any]
) -> Split:
    """One part per expert of an (experts, a, b) weight; gate and up apart where they are fused."""
    experts, first, second = shape
    inputs_first = _inputs_first(name, shape, role, tensors, config)
    turned: tuple[Step, ...] = (("permute", (1, 0)),) if inputs_first else ()
    rows, cols = (second, first) if inputs_first else (first, second)
    kinds = model_kinds(config)
    fused = role.endswith("gate_up") and rows % 2 == 0
    how = f"{experts} experts, one by one" + (", stored as (in, out)" if inputs_first else "")
    if fused and inputs_first and not kinds:
        # Llama 4 stores gate and up in halves, gpt-oss in turns: without a name there is no telling.
        fused, how = False, f"{how}, gate and up together: no model_type tells how they are laid out"
    result = []
    for expert in range(experts):
        steps: tuple[Step, ...] = (("reshape", (first, second)), *turned)
        if not fused:
            result.append(Part(str(expert), role, expert, expert + 1, steps, rows, cols))
            continue
        for index, half in enumerate(("gate", "up")):
            take = (0, index, rows, 2) if "gpt_oss" in kinds else (0, index * rows // 2, (index + 1) * rows // 2, 1)
            own = role.removesuffix("gate_up") + half
            result.append(Part(f"{expert}:{half}", own, expert, expert + 1, (*steps, ("take", take)), rows // 2, cols))
    return result, how + (", gate and up apart" if fused else "")


PARTNERS = (("gate_up_proj", "down_proj"), ("input_linear", "output_linear"), ("ffn_gate_up_exps", "ffn_down_exps"))


def _inputs_first(
    name: str, shape: tuple[int, int, int], role: str, tensors: Shapes, config: Mapping[str, Any]
) -> bool:
    """Whether experts are stored (inputs, outputs), as in Llama 4 and gpt-oss, and not the usual way round.

    Gate and up together put out twice what down takes in, which settles it; else the model's width does.
    """
    for upper, lower in PARTNERS:
        for this, other in ((upper, lower), (lower, upper)):
            partner = tensors.get(name.replace(this, other)) if this in name else None
            if partner is not None and len(partner.shape) == 3:
                wide, narrow = (shape, partner.shape) if this == upper else (partner.shape, shape)
                if wide[1] == 2 * narrow[2]:
                    return False
                if wide[2] == 2 * narrow[1]:
                    return True
    hidden = count(config, "hidden_size", "embedding_length")
    if hidden is None or shape[1] == shape[2]:
        return bool(model_kinds(config) & {"llama4", "llama4_text", "gpt_oss"})
    return (shape[2] if role.endswith("down") else shape[1]) == hidden


TRANSPOSED = re.compile(r"conv_?transpose|transposed?_?conv|deconv|upconv|convt\d?d?(\.|$)")


@dataclass(frozen=True)
class Convolution:
    """What is known of a convolution besides its weight: ``groups`` is None where a bare state dict does not tell."""

    groups: int | None
    transposed: bool


def convolution_of(stem: str, key: str, dimensions: int, config: Mapping[str, Any]) -> Convolution | None:
    """The convolution that a weight belongs to; None where the modules are at hand and say that it is none."""
    groups, transposed = config.get("convolution_groups"), config.get("transposed_convolutions")
    if isinstance(groups, Mapping) and isinstance(transposed, list):
        known = groups.get(key)
        if isinstance(known, int):
            return Convolution(known, key in transposed)
        if dimensions == 3:  # nn.Bilinear; a module of one's own that calls conv2d has more dimensions
            return None
    return Convolution(None, bool(TRANSPOSED.search(stem)))


def unfold(shape: tuple[int, ...], convolution: Convolution) -> Split:
    """A convolution's weight as the matrix that acts on one patch: (out, in/groups × kernel).

    A transposed convolution stores (in, out/groups, *kernel); its matrix is (out/groups × kernel, in).
    """
    size = "×".join(map(str, shape[2:]))
    flat = (shape[0], math.prod(shape[1:]))
    steps: tuple[Step, ...] = (("reshape", flat),)
    if convolution.groups is not None:
        note = f", {convolution.groups} groups (block-diagonal as a map)" if convolution.groups > 1 else ""
    else:
        note = ", groups not known" if shape[1] == 1 < shape[0] else ", taken as one group"
    if convolution.transposed:
        part = Part("", "", 0, shape[0], (*steps, ("permute", (1, 0))), flat[1], flat[0])
        return [part], f"transposed convolution {size}, unfolded{note}"
    return [Part("", "", 0, shape[0], steps, *flat)], f"convolution {size}, unfolded{note}"
