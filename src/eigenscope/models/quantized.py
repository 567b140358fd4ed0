"""Weights stored with separate scales (FP8, INT8): found, checked and multiplied in. Packed formats are named."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from eigenscope.models.checkpoint import TensorInfo

SCALED_DTYPES = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "int8")
SCALE_ENDINGS = ("_scale_inv", "_scale", "_scales")
COMPANIONS = (
    "_scale_inv", "_scale", "_scales", "_scale_2", "_zero_point", "_shape", "_g_idx", ".scales", ".qzeros", ".g_idx", ".absmax",
    ".quant_map", ".nested_absmax", ".nested_quant_map", ".SCB", ".weight_format", "_absmax",
)  # fmt: skip


def companion_of(name: str) -> bool:
    """Whether a tensor only serves another: scales, zero points and tables of a quantisation."""
    return name.endswith(COMPANIONS) or ".quant_state." in name


def packed(info: TensorInfo, tensors: Mapping[str, TensorInfo]) -> str:
    """Which packed quantisation a tensor is in, or empty where it is none that is known."""
    name = info.name
    if info.problem or not info.dtype.startswith(("int", "uint")):
        return ""
    if name.endswith(".qweight"):
        return "packed integers of GPTQ or AWQ"
    if name.endswith(("weight_packed", "_packed")):
        return "packed integers of compressed-tensors"
    if name.endswith("_blocks") and name.removesuffix("_blocks") + "_scales" in tensors:
        return "packed MXFP4 blocks"
    if f"{name}.absmax" in tensors or any(key.startswith(f"{name}.quant_state.") for key in tensors):
        return "packed 4-bit integers of bitsandbytes"
    if name.removesuffix("weight") + "SCB" in tensors:
        return "8-bit integers of bitsandbytes"
    if info.dtype == "uint8" and any(name + ending in tensors for ending in SCALE_ENDINGS):
        return "packed 4-bit floats with block scales"
    return ""


def find_scale(
    info: TensorInfo, tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]
) -> tuple[str, tuple[int, int], str]:
    """The scale of an FP8 or INT8 weight: its name, the block it holds for (rows, cols), and how it was seen.

    Scales multiply: W = W_stored · scale, as DeepSeek-V3's ``weight_scale_inv`` and compressed-tensors'
    ``weight_scale`` both do. A name that is empty with a reason means that the weight cannot be read.
    """
    name = next((info.name + end for end in SCALE_ENDINGS if info.name + end in tensors), "")
    if not name:
        return "", (1, 1), "" if info.dtype != "int8" else "integers without a scale"
    shape = tensors[name].shape
    rows, cols = info.shape[-2:]
    if tensors[name].dtype not in ("float32", "bfloat16", "float16", "float8_e8m0fnu"):
        return "", (1, 1), f"scale {name} is {tensors[name].dtype}, not a plain number"
    if len(info.shape) != 2:
        return "", (1, 1), f"scales of a {len(info.shape)}-dimensional weight are not read"
    if math.prod(shape) == 1:
        return name, (rows, cols), "one scale"
    if shape in ((rows,), (rows, 1)):
        return name, (1, cols), "a scale per row"
    if len(shape) == 2 and all(shape):
        settings = config.get("quantization_config")
        size = settings.get("weight_block_size") if isinstance(settings, Mapping) else None
        block = tuple(size) if isinstance(size, list | tuple) and len(size) == 2 else _block(rows, cols, shape)
        if block and all(isinstance(b, int) and b > 0 for b in block):
            height, width = int(block[0]), int(block[1])
            if (math.ceil(rows / height), math.ceil(cols / width)) == shape:
                return name, (height, width), f"a scale per block of {height}×{width}"
    return "", (1, 1), f"scale {name} of shape {tuple(shape)} does not fit {rows}×{cols}"


def _block(rows: int, cols: int, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The power of two for which the blocks come out as many as the scales, when exactly one does."""
    sizes = [2**power for power in range(3, 12)]
    fits = [(h, w) for h in sizes for w in sizes if (math.ceil(rows / h), math.ceil(cols / w)) == shape]
    square = [fit for fit in fits if fit[0] == fit[1]]
    return (fits if len(fits) == 1 else square)[0] if len(fits) == 1 or len(square) == 1 else None


def apply_scale(rows: Tensor, scale: Tensor, block: tuple[int, int], start: int) -> Tensor:
    """Stored rows (r, n), the first of them row ``start`` of the weight, times their scales; float32."""
    scale = scale.to(torch.float32)
    values = rows.to(torch.float32)
    if scale.numel() == 1:
        return values * scale.reshape(())
    grid = scale.reshape(-1, 1) if scale.ndim == 1 else scale
    down = torch.arange(start, start + rows.shape[0]) // block[0]
    across = torch.arange(rows.shape[1]) // block[1]
    return values * grid[down][:, across]
