"""Which tensors of a checkpoint are linear maps, what each map is, and how its matrix is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from eigenscope.errors import SourceError
from eigenscope.models.checkpoint import Checkpoint, TensorInfo
from eigenscope.models.fused import (
    Part,
    Step,
    split_attention,
    split_experts,
    split_gates,
    unfold,
    whole,
)  # fmt: skip
from eigenscope.models.quantized import SCALED_DTYPES, apply_scale, companion_of, find_scale, packed
from eigenscope.models.roles import EXPERT, RECURRENT, layers_of, role_of, stem
from eigenscope.results import Coverage

CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp")
BUFFERS = ("position_ids", "masked_bias", "running_mean", "running_var", "num_batches_tracked", "inv_freq")


@dataclass(frozen=True)
class Matrix:
    """One linear map of a checkpoint, and the plain data by which any worker can read it.

    Attributes:
        name: the tensor's name, with ``:part`` where the tensor holds several maps.
        tensor: name of the tensor.
        layer: depth, or None.
        role: what it does; prefixed with the stack in models that have several.
        rows, cols: outputs m and inputs n.
        dtype: storage format.
        start, stop: leading rows of the tensor to read.
        steps: views that turn them into (rows, cols).
        scale: tensor of scales to multiply by, or empty.
        block: rows and columns that one scale holds for.
        kernel: spatial size, for convolutions.
        groups: of a convolution; None where a bare state dict does not tell.
        transposed: whether it is a transposed convolution.
        bytes_per_entry: in the file; a fraction for block-quantised formats.
        problem: why it cannot be read, or empty.
    """

    name: str
    tensor: str
    layer: int | None
    role: str
    rows: int
    cols: int
    dtype: str
    start: int = 0
    stop: int = 0
    steps: tuple[Step, ...] = ()
    scale: str = ""
    block: tuple[int, int] = (1, 1)
    kernel: tuple[int, ...] = ()
    groups: int | None = None
    transposed: bool = False
    bytes_per_entry: float = 4.0
    problem: str = ""


def list_matrices(checkpoint: Checkpoint) -> tuple[tuple[Matrix, ...], tuple[Coverage, ...]]:
    """Every matrix of a checkpoint, and one coverage entry for every tensor, in the order of the file."""
    matrices: list[Matrix] = []
    coverage: list[Coverage] = []
    layers = layers_of(checkpoint.tensors)
    for info in checkpoint.tensors.values():
        found, entry = _matrices_of(info, checkpoint, *layers[info.name])
        matrices.extend(found)
        coverage.append(entry)
    return tuple(matrices), tuple(coverage)


def read_matrix(checkpoint: Checkpoint, matrix: Matrix) -> Tensor:
    """The (rows, cols) matrix in its storage dtype; float32 where it was dequantised.

    Raises:
        SourceError: it cannot be read; the message says why.
    """
    if matrix.problem:
        raise SourceError(matrix.problem, where=matrix.name)
    tensor = checkpoint.read(matrix.tensor, matrix.start, matrix.stop)
    if matrix.scale:
        tensor = apply_scale(tensor, checkpoint.read(matrix.scale), matrix.block, matrix.start)
    for action, numbers in matrix.steps:
        if action == "reshape":
            tensor = tensor.reshape(numbers)
        elif action == "permute":
            tensor = tensor.permute(numbers)
        else:
            axis, start, stop, step = numbers
            tensor = tensor[(slice(None),) * axis + (slice(start, stop, step),)]
    if tuple(tensor.shape) != (matrix.rows, matrix.cols):
        raise SourceError(
            f"came out as {tuple(tensor.shape)}", where=matrix.name, expected=f"({matrix.rows}, {matrix.cols})"
        )
    return tensor


def _matrices_of(
    info: TensorInfo, checkpoint: Checkpoint, layer: int | None, stack: str
) -> tuple[list[Matrix], Coverage]:
    def left_out(outcome: str, reason: str) -> tuple[list[Matrix], Coverage]:
        kind: Any = outcome
        return [], Coverage(info.name, info.shape, info.dtype, kind, reason, 0)

    reason = _not_a_matrix(info, checkpoint.tensors)
    if reason:
        return left_out("not a matrix", reason)
    problem = info.problem or packed(info, checkpoint.tensors)
    shape = _squeezed(info)
    scale, block, how_scaled = "", (1, 1), ""
    if not problem and info.dtype in SCALED_DTYPES and len(shape) >= 2:
        scale, block, how_scaled = find_scale(info, checkpoint.tensors, checkpoint.config)
        if how_scaled and not scale:
            if how_scaled == "integers without a scale":
                return left_out("not a matrix", how_scaled)
            problem = how_scaled
    if not problem and info.dtype.startswith(("int", "uint", "bool")) and not scale:
        return left_out("not a matrix", "integers: an index or a mask")
    role = role_of(info.name)
    parts, how = _parts(info.name, shape, role, checkpoint)
    if not parts:
        return left_out("not a matrix", how)
    prefix = f"{stack}." if stack else ""
    convolution = len(shape) > 2 and "convolution" in how
    matrices = [
        Matrix(
            name=f"{info.name}:{part.suffix}" if part.suffix else info.name, tensor=info.name, layer=layer,
            role=prefix + _role(role, part), rows=part.rows, cols=part.cols, dtype=info.dtype, start=part.start,
            stop=part.stop, steps=part.steps, scale=scale, block=block, problem=problem,
            kernel=shape[2:] if convolution else (), transposed="transposed" in how,
            groups=(checkpoint.config.get("convolution_groups") or {}).get(info.name),
            bytes_per_entry=info.nbytes / max(math.prod(info.shape), 1),
        )
        for part in _restored(parts, info.shape, shape)
    ]  # fmt: skip
    seen = ", ".join(text for text in (how, how_scaled) if text)
    outcome: Any = "not readable" if problem else "read"
    return matrices, Coverage(info.name, info.shape, info.dtype, outcome, problem or seen, len(matrices))


def _role(role: str, part: Part) -> str:
    if not part.role:
        return f"{role}_{part.suffix}" if part.suffix in ("i", "f", "g", "o", "r", "z", "n") else role
    return f"cross_{part.role}" if role.startswith("cross_") else part.role


def _squeezed(info: TensorInfo) -> tuple[int, ...]:
    """The shape without leading ones of a bare parameter (``pos_embed`` is (1, positions, width))."""
    shape = info.shape
    while len(shape) > 2 and shape[0] == 1 and not info.name.endswith("weight"):
        shape = shape[1:]
    return shape


def _restored(parts: list[Part], stored: tuple[int, ...], shape: tuple[int, ...]) -> list[Part]:
    """Parts of the squeezed shape as parts of the stored one."""
    if stored == shape:
        return parts
    return [
        replace(part, start=0, stop=stored[0], steps=(("reshape", shape), ("take", (0, part.start, part.stop, 1)), *part.steps))
        for part in parts
    ]  # fmt: skip


def _not_a_matrix(info: TensorInfo, tensors: Mapping[str, TensorInfo]) -> str:
    last = info.name.rsplit(".", 1)[-1]
    first = info.name.split(".", 1)[0].lower()
    if first.startswith("optim") or first in ("exp_avg", "exp_avg_sq", "lr_scheduler", "scheduler"):
        return "optimiser state"
    if companion_of(info.name):
        return "scale or table of a quantised weight"
    if last in BUFFERS:
        return f"buffer {last}"
    if not info.shape:
        return "a scalar"
    if len(info.shape) == 1:
        return "a vector: bias, norm or scale"
    if last == "bias" or last.startswith("bias_"):
        return "bias or mask"
    if last in ("A_log", "ssm_a"):
        return "diagonal of a state-space recurrence"
    return ""


def _parts(name: str, shape: tuple[int, ...], role: str, checkpoint: Checkpoint) -> tuple[list[Part], str]:
    config, low = checkpoint.config, stem(name)
    if len(shape) == 2:
        pair = (shape[0], shape[1])
        if RECURRENT.search(name):
            return _recurrent(name, pair, checkpoint)
        if role in ("qkv", "cross_qkv"):
            parts, how = split_attention(low, pair, config)
            return (parts, f"fused q, k, v: {how}") if parts else ([whole(pair)], f"left whole: {how}")
        if role.endswith("gate_up") or (low.endswith("dense_h_to_4h") and config.get("model_type") == "chatglm"):
            if pair[0] % 2 == 0:
                half = pair[0] // 2
                parts = [
                    Part(n, role.replace("gate_up", n) if "gate_up" in role else n, i * half, (i + 1) * half, (), half, pair[1])
                    for i, n in enumerate(("gate", "up"))
                ]  # fmt: skip
                return parts, "fused gate and up: rows in halves"
            return [whole(pair)], "left whole: an odd number of rows for gate and up"
        if (
            low.rsplit(".", 1)[-1] in ("c_attn", "c_proj", "c_fc", "q_attn")
            and config.get("model_type") in CONV1D_MODELS
        ):
            return [whole(pair, transposed=True)], "Conv1D, stored as (in, out)"
        return [whole(pair)], ""
    if len(shape) == 3 and EXPERT.search(low):
        return split_experts(low, (shape[0], shape[1], shape[2]), config, role)
    if len(shape) in (3, 4, 5) and name.endswith("weight"):
        return unfold(low, name, shape, config)
    return [], f"a parameter of {len(shape)} dimensions that is no known linear map"


def _recurrent(name: str, shape: tuple[int, int], checkpoint: Checkpoint) -> tuple[list[Part], str]:
    def sibling(kind: str) -> TensorInfo | None:
        match = RECURRENT.search(name)
        if match is None:
            return None
        return checkpoint.tensors.get(name[: match.start("kind")] + kind + name[match.end("kind") :])

    projection, recurrent = sibling("hr"), sibling("hh")
    if name.endswith("_hr") or "weight_hr" in name:
        return [whole(shape)], "projection of a recurrent state"
    source = projection or recurrent
    hidden = source.shape[1] if source is not None and len(source.shape) == 2 else 0
    return split_gates(shape, hidden)
