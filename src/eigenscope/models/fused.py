"""Tensors that hold several linear maps: which rows or columns are which, from the configuration or the shape."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Step = tuple[str, tuple[int, ...]]
"""("reshape", shape), ("permute", order) or ("take", (axis, start, stop, step)): plain data, applied in turn."""


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


def setting(config: Mapping[str, Any], *names: str) -> Any:
    """First of these keys in the configuration, in its text part, or (GGUF) under the architecture's prefix."""
    architecture = config.get("general.architecture")
    for place in (config, config.get("text_config"), config.get("llm_config")):
        if isinstance(place, Mapping):
            for name in names:
                value = place.get(name, place.get(f"{architecture}.{name}"))
                if value is not None:
                    return value
    return None


def _positive(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


@dataclass(frozen=True)
class Heads:
    """Head counts and widths of the attention, None where the configuration does not tell."""

    queries: int | None
    keys: int | None
    width: int | None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Heads:
        """Read them from a Hugging Face or GGUF configuration."""
        queries = _positive(
            setting(config, "num_attention_heads", "n_head", "n_heads", "num_heads", "attention.head_count")
        )
        keys = _positive(setting(config, "num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num",
                                 "attention.head_count_kv"))  # fmt: skip
        width = _positive(setting(config, "head_dim", "kv_channels", "attention.key_length"))
        hidden = _positive(setting(config, "hidden_size", "n_embd", "d_model", "embedding_length"))
        if width is None and hidden and queries and hidden % queries == 0:
            width = hidden // queries
        return cls(queries, keys or queries, width)


def whole(shape: tuple[int, ...], *, transposed: bool = False) -> Part:
    """The tensor as one matrix."""
    rows, cols = (shape[1], shape[0]) if transposed else shape
    return Part("", "", 0, shape[0], (("permute", (1, 0)),) if transposed else (), rows, cols)


def blocks(shape: tuple[int, int], parts: list[tuple[str, int]], *, along_cols: bool = False) -> list[Part]:
    """Contiguous parts of given sizes, along the rows, or along the columns of a transposed (Conv1D) weight."""
    result, at = [], 0
    for suffix, size in parts:
        if along_cols:
            steps: tuple[Step, ...] = (("take", (1, at, at + size, 1)), ("permute", (1, 0)))
            result.append(Part(suffix, suffix, 0, shape[0], steps, size, shape[0]))
        else:
            result.append(Part(suffix, suffix, at, at + size, (), size, shape[1]))
        at += size
    return result


def interleaved(shape: tuple[int, int], groups: int, sizes: list[tuple[str, int]], width: int) -> list[Part]:
    """Parts that alternate head by head: rows are (groups, Σ sizes, width)."""
    cols, total = shape[1], sum(size for _, size in sizes)
    result, at = [], 0
    for suffix, size in sizes:
        rows = groups * size * width
        steps: tuple[Step, ...] = (
            ("reshape", (groups, total, width, cols)), ("take", (1, at, at + size, 1)), ("reshape", (rows, cols)),
        )  # fmt: skip
        result.append(Part(suffix, suffix, 0, shape[0], steps, rows, cols))
        at += size
    return result


def split_attention(stem: str, shape: tuple[int, int], config: Mapping[str, Any]) -> tuple[list[Part], str]:
    """q, k and v of a fused weight, and how they were told apart; no parts where the layout is not known.

    Layouts: contiguous thirds (GPT-2, ``in_proj_weight``, ViT, MPT, ModernBERT), contiguous with grouped keys (Phi-3,
    Falcon-7B, GPTBigCode), heads interleaved as (heads, 3, width) (GPT-NeoX, BLOOM, Persimmon, Falcon-RW),
    groups interleaved as (groups, queries + 2, width) (Falcon-40B, InternLM2).
    """
    rows, cols = shape
    kind = str(setting(config, "model_type") or "").lower()
    heads = Heads.of(config)
    last = stem.rsplit(".", 1)[-1]
    if last == "c_attn" and cols == 3 * rows:
        return blocks(shape, [("q", rows), ("k", rows), ("v", rows)], along_cols=True), "Conv1D, columns in thirds"
    thirds = [("q", rows // 3), ("k", rows // 3), ("v", rows // 3)]
    queries, keys, width = heads.queries, heads.keys, heads.width
    grouped: list[tuple[str, int]] = []
    if queries and keys and width and (queries + 2 * keys) * width == rows:
        grouped = [("q", queries * width), ("k", keys * width), ("v", keys * width)]
    if (
        last == "query_key_value"
        or (last == "c_attn" and kind == "gpt_bigcode")
        or (last == "wqkv" and kind == "internlm2")
    ):
        return _by_head(shape, kind, config, heads, grouped)
    if kind == "codegen":
        return [], "CodeGen's partitioned layout is not split"
    if grouped:
        return blocks(shape, grouped), "rows in blocks of q, k, v by the head counts"
    if rows % 3 == 0 and (rows == 3 * cols or last == "in_proj_weight" or not queries):
        return blocks(shape, thirds), "rows in thirds"
    return [], f"{rows} rows fit neither thirds nor the head counts of the configuration"


def _by_head(
    shape: tuple[int, int], kind: str, config: Mapping[str, Any], heads: Heads, grouped: list[tuple[str, int]]
) -> tuple[list[Part], str]:
    rows, queries, keys, width = shape[0], heads.queries, heads.keys, heads.width
    three = [("q", 1), ("k", 1), ("v", 1)]
    per_head = bool(queries and width and 3 * queries * width == rows)
    multi = bool(setting(config, "multi_query"))
    if kind == "internlm2" or (kind in ("falcon", "refinedweb") and setting(config, "new_decoder_architecture")):
        if queries and keys and width and queries % keys == 0 and (queries + 2 * keys) * width == rows:
            sizes = [("q", queries // keys), ("k", 1), ("v", 1)]
            return interleaved(shape, keys, sizes, width), f"{keys} groups of heads interleaved"
    elif kind in ("falcon", "refinedwebmodel", "gpt_bigcode") and multi:
        if queries and width and (queries + 2) * width == rows:
            parts = [("q", queries * width), ("k", width), ("v", width)]
            return blocks(shape, parts), "multi-query: rows of q, then one key and one value head"
    elif kind == "chatglm" and grouped:
        return blocks(shape, grouped), "rows in blocks of q, k, v by the head counts"
    elif kind in ("gpt_neox", "gpt_neox_japanese", "bloom", "persimmon", "falcon", "gpt_bigcode") and per_head:
        return interleaved(shape, queries or 1, three, width or 1), f"{queries} heads of q, k, v interleaved"
    known = f"model_type {kind!r}" if kind else "no model_type in the configuration"
    return [], f"fused attention of an unknown layout ({known}, {rows} rows)"


GATES = {4: ("i", "f", "g", "o"), 3: ("r", "z", "n")}
"""Order of the gates in PyTorch's LSTM and GRU weights."""


def split_gates(shape: tuple[int, int], hidden: int) -> tuple[list[Part], str]:
    """One part per gate of a recurrent weight of ``hidden`` units, or the whole for a plain RNN."""
    count = shape[0] // hidden if hidden and shape[0] % hidden == 0 else 0
    names = GATES.get(count)
    if names is None:
        return [whole(shape)], "recurrent weight" if count == 1 else "recurrent weight, gates not recognised"
    parts = [Part(n, "", i * hidden, (i + 1) * hidden, (), hidden, shape[1]) for i, n in enumerate(names)]
    return parts, f"split into the {len(names)} gates {', '.join(names)}"


def split_experts(
    stem: str, shape: tuple[int, int, int], config: Mapping[str, Any], role: str
) -> tuple[list[Part], str]:
    """One part per expert of an (experts, a, b) weight; gate and up apart where they are fused."""
    experts, first, second = shape
    hidden = _positive(setting(config, "hidden_size", "embedding_length"))
    fused = role.endswith("gate_up")
    # Without a configuration the stored order is taken; a transposed map has the same singular values.
    inputs_first = hidden is not None and first != second and (second if role.endswith("down") else first) == hidden
    result = []
    for expert in range(experts):
        base: tuple[Step, ...] = (("reshape", (first, second)),)
        if inputs_first:
            base += (("permute", (1, 0)),)
        rows, cols = (second, first) if inputs_first else (first, second)
        if not fused or rows % 2:
            result.append(Part(str(expert), "", expert, expert + 1, base, rows, cols))
            continue
        alternate = str(setting(config, "model_type")) == "gpt_oss"
        for index, name in enumerate(("gate", "up")):
            take = (0, index, rows, 2) if alternate else (0, index * rows // 2, (index + 1) * rows // 2, 1)
            steps = (*base, ("take", take))
            result.append(
                Part(f"{expert}:{name}", role.replace("gate_up", name), expert, expert + 1, steps, rows // 2, cols)
            )
    return result, f"{experts} experts, one by one" + (", gate and up apart" if fused else "")


TRANSPOSED = re.compile(r"conv_?transpose|transposed?_?conv|deconv|upconv|up_conv|convt\d?d?(\.|$)")


def unfold(stem: str, name: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> tuple[list[Part], str]:
    """A convolution's weight as the matrix that acts on one patch: (out, in/groups × kernel).

    A transposed convolution stores (in, out/groups, *kernel); its matrix is (out/groups × kernel, in).
    """
    kernel = math.prod(shape[2:])
    size = "×".join(map(str, shape[2:]))
    groups = (config.get("convolution_groups") or {}).get(name, 1)
    grouped = f", {groups} groups (block-diagonal as a map)" if groups > 1 else ""
    if name in (config.get("transposed_convolutions") or ()) or TRANSPOSED.search(stem):
        rows, cols = shape[1] * kernel, shape[0]
        steps: tuple[Step, ...] = (("reshape", (cols, rows)), ("permute", (1, 0)))
        return [Part("", "", 0, shape[0], steps, rows, cols)], f"transposed convolution {size}, unfolded{grouped}"
    rows, cols = shape[0], shape[1] * kernel
    return [
        Part("", "", 0, shape[0], (("reshape", (rows, cols)),), rows, cols)
    ], f"convolution {size}, unfolded{grouped}"
