"""Weights stored apart from their scales (FP8, INT8, weight normalisation): found, checked and multiplied in.

Packed formats are named, not read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from eigenscope.models.checkpoint import TensorInfo

FP8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
SCALED_DTYPES = (*FP8, "int8")
NOT_SCALED = "stored without a scale and read as stored"

SCALES = {"": ("_scale_inv", "_scale", "_scales"), ".weight": (".scale_weight", ".scale")}
"""Ending of a weight's name → what stands in its place in the name of its scale."""
COMPANIONS = {
    "": ("_scale_inv", "_scale", "_scales", "_scale_2", "_global_scale", "_zero_point", ".absmax", ".quant_map",
         ".nested_absmax", ".nested_quant_map"),
    ".weight": (".scale_weight", ".scale", ".scales", ".biases", ".SCB", ".weight_format"),
    "._data": ("._scale", "._shift"),
    ".W_q": (".scale", ".zero"),
    ".qweight": (".scales", ".qzeros", ".g_idx"),
    "_packed": ("_scale", "_global_scale", "_zero_point", "_shape", "_g_idx"),
    "_blocks": ("_scales",),
}  # fmt: skip
"""Ending of a quantised weight's name → what stands in its place in the names of the tensors that only serve it."""


def _named(name: str, endings: Mapping[str, tuple[str, ...]], tensors: Mapping[str, TensorInfo]) -> list[str]:
    """Tensors of the checkpoint whose names follow from that of a weight."""
    return [
        found
        for ending, replacements in endings.items()
        if name.endswith(ending)
        for replacement in replacements
        if (found := name.removesuffix(ending) + replacement) in tensors
    ]


def is_companion(name: str, tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether a tensor only serves another one: a scale, zero point or table of a quantised weight."""
    if ".quant_state." in name:
        return name.split(".quant_state.")[0] in tensors
    for ending, replacements in COMPANIONS.items():
        for replacement in replacements:
            served = tensors.get(name.removesuffix(replacement) + ending) if name.endswith(replacement) else None
            if served is not None and served.dtype.startswith(("int", "uint", "float8", "F4", "F6")):
                return True
    return False


def packed(info: TensorInfo, tensors: Mapping[str, TensorInfo]) -> str:
    """Which packed quantisation a tensor is in, or empty where it is none that is known."""
    name = info.name
    if info.problem or not info.dtype.startswith(("int", "uint")):
        return ""
    if name.endswith(".qweight"):
        return "packed integers of GPTQ or AWQ"
    if name.endswith(".weight") and info.dtype == "uint32" and name.removesuffix("weight") + "scales" in tensors:
        return "packed integers of MLX"
    if name.endswith("._data") and name.removesuffix("data") + "scale" in tensors:
        return "integers of quanto"
    if name.endswith(".W_q") and name.removesuffix("W_q") + "scale" in tensors:
        return "packed integers of HQQ"
    if name.endswith("weight_packed"):
        return "packed integers of compressed-tensors"
    if name.endswith("_blocks") and name.removesuffix("_blocks") + "_scales" in tensors:
        return "packed MXFP4 blocks"
    if f"{name}.absmax" in tensors or any(key.startswith(f"{name}.quant_state.") for key in tensors):
        return "packed 4-bit integers of bitsandbytes"
    if name.endswith(".weight") and name.removesuffix("weight") + "SCB" in tensors:
        return "8-bit integers of bitsandbytes"
    if info.dtype == "uint8" and _named(name, SCALES, tensors):
        return "packed 4-bit floats with block scales"
    return ""


def find_scale(
    info: TensorInfo, tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]
) -> tuple[str, tuple[int, int], str]:
    """The scale of an FP8 or INT8 weight: its name, the block it holds for (rows, cols), and how it was seen.

    Scales multiply: W = W_stored · scale, as DeepSeek-V3's ``weight_scale_inv`` and compressed-tensors'
    ``weight_scale`` both do. A stack of experts (experts, rows, cols) has its scales stacked alike. A name that is
    empty with a reason means that the weight cannot be read, except for FP8 ``NOT_SCALED``.
    """
    name = next(iter(_named(info.name, SCALES, tensors)), "")
    if not name:
        return "", (1, 1), "integers without a scale" if info.dtype == "int8" else NOT_SCALED
    if f"{info.name}_zero_point" in tensors:
        return "", (1, 1), f"quantised with zero points ({info.name}_zero_point), which are not read"
    scale = tensors[name]
    if scale.problem or scale.dtype not in ("float32", "bfloat16", "float16", "float64", "float8_e8m0fnu"):
        return "", (1, 1), f"scale {name} is {scale.dtype}, not a plain number"
    rows, cols = info.shape[-2:]
    stacked, shape = info.shape[:-2], scale.shape
    if math.prod(shape) == 1:
        return name, (rows, cols), "one scale"
    if len(stacked) == 1 and shape in (stacked, (*stacked, 1), (*stacked, 1, 1)):
        return name, (rows, cols), "a scale per expert"
    if shape == (*stacked, rows):
        return name, (1, cols), "a scale per row"
    if len(shape) == len(info.shape) <= 3 and shape[:-2] == stacked and all(shape):
        block = _block(rows, cols, shape[-2:], config)
        if block:
            return (
                name,
                block,
                "a scale per row" if block == (1, cols) else f"a scale per block of {block[0]}×{block[1]}",
            )
    return "", (1, 1), f"scale {name} of shape {tuple(shape)} does not fit {tuple(info.shape)}"


def _block(rows: int, cols: int, scales: tuple[int, ...], config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns that one scale holds for: those of the configuration, else the powers of two that fit."""
    settings = config.get("quantization_config")
    named = settings.get("weight_block_size") if isinstance(settings, Mapping) else None
    if isinstance(named, list | tuple) and len(named) == 2 and all(isinstance(b, int) and b > 0 for b in named):
        if (math.ceil(rows / named[0]), math.ceil(cols / named[1])) == scales:
            return int(named[0]), int(named[1])
        if 1 not in scales:
            return None
    height, width = _extent(rows, scales[0]), _extent(cols, scales[1])
    return (height, width) if height and width else None


def _extent(size: int, scales: int) -> int | None:
    """The power of two that divides ``size`` entries into that many blocks, the last one shorter; at most one does."""
    if scales == 1:
        return size
    return next((2**power for power in range(13) if math.ceil(size / 2**power) == scales), None)


def apply_scale(values: Tensor, scale: Tensor, block: tuple[int, int], start: int) -> Tensor:
    """Stored rows (or experts), the first of them number ``start`` of the weight, times their scales; float32."""
    scale = scale.to(torch.float32)
    values = values.to(torch.float32)
    if scale.numel() == 1:
        return values * scale.reshape(())
    rows, cols = values.shape[-2:]
    if values.ndim == 3:
        scale = scale.reshape(scale.shape[0], *(scale.shape[1:] or (1,)))[start : start + len(values)]
        scale, start = scale.reshape(len(scale), scale.shape[1], -1), 0
    elif scale.ndim == 1:
        scale = scale.reshape(-1, 1)
    down = torch.arange(start, start + rows) // block[0]
    across = torch.arange(cols) // block[1]
    spread: Tensor = scale[..., down, :][..., across]
    return values * spread


def find_gain(name: str, tensors: Mapping[str, TensorInfo]) -> str:
    """The norms of a weight-normalised weight of which this tensor holds the directions, or empty.

    ``torch.nn.utils.weight_norm`` stores ``weight_g`` and ``weight_v``; ``parametrizations.weight_norm`` stores
    ``original0`` and ``original1``.
    """
    for direction, norm in (("weight_v", "weight_g"), ("weight.original1", "weight.original0")):
        gain = tensors.get(name.removesuffix(direction) + norm) if name.endswith(direction) else None
        if gain is not None:
            shape = tensors[name].shape
            if len(gain.shape) in (0, len(shape)) and all(g in (1, s) for g, s in zip(gain.shape, shape, strict=False)):
                return gain.name
    return ""


def is_gain(name: str, tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether a tensor holds the norms of a weight-normalised weight."""
    for direction, norm in (("weight_v", "weight_g"), ("weight.original1", "weight.original0")):
        if name.endswith(norm):
            other = name.removesuffix(norm) + direction
            return other in tensors and find_gain(other, tensors) == name
    return False


def apply_gain(direction: Tensor, gain: Tensor) -> Tensor:
    """g · v / ‖v‖, the norm over the dimensions in which g is 1 (Salimans & Kingma, NeurIPS 2016, eq. 2)."""
    wide = torch.float64 if direction.dtype == torch.float64 else torch.float32
    direction, gain = direction.to(wide), gain.to(wide)
    over = [axis for axis in range(direction.ndim) if gain.ndim == 0 or gain.shape[axis] == 1]
    norms: Tensor = torch.linalg.vector_norm(direction, dim=over, keepdim=True)
    return direction * (gain / norms)
