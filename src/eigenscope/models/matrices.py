"""Which tensors of a checkpoint are linear maps, what each map is, and how its matrix is read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from eigenscope.errors import SourceError
from eigenscope.models import fused, quantized
from eigenscope.models.checkpoint import Checkpoint, TensorInfo
from eigenscope.models.fused import Convolution, Part, Split, Step, whole
from eigenscope.models.roles import ENDING, RECURRENT, layers_of, role_of, stem
from eigenscope.results import Coverage

CONV1D_MODELS = frozenset(("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"))
BUFFERS = (
    "position_ids", "masked_bias", "running_mean", "running_var", "num_batches_tracked", "inv_freq", "cos_cached",
    "sin_cached", "freqs_cis", "attn_mask",
)  # fmt: skip
OPTIMISER = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg")


@dataclass(frozen=True)
class Matrix:
    """One linear map of a checkpoint, and the plain data by which any worker can read it.

    Attributes:
        name: the tensor's name, with ``:part`` where the tensor holds several maps. Unique.
        tensor: name of the tensor.
        layer: depth, or None.
        role: what it does; prefixed with the stack in models that have several.
        rows, cols: outputs m and inputs n.
        dtype: storage format.
        start, stop: leading rows of the tensor to read.
        steps: views that turn them into (rows, cols).
        scale: tensor of scales to multiply by, or empty.
        block: rows and columns that one scale holds for.
        gain: tensor of norms of a weight-normalised weight, or empty.
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
    gain: str = ""
    kernel: tuple[int, ...] = ()
    groups: int | None = None
    transposed: bool = False
    bytes_per_entry: float = 4.0
    problem: str = ""


def list_matrices(checkpoint: Checkpoint) -> tuple[tuple[Matrix, ...], tuple[Coverage, ...]]:
    """Every matrix of a checkpoint, and one coverage entry for every tensor, in the order of the file."""
    tensors = checkpoint.tensors
    left_out = {info.name: _not_a_matrix(info, tensors) for info in tensors.values()}
    layers = layers_of(name for name, reason in left_out.items() if not reason)
    matrices: list[Matrix] = []
    coverage: list[Coverage] = []
    for info in tensors.values():
        reason = left_out[info.name]
        found: list[Matrix] = []
        outcome: Literal["read", "not a matrix", "not readable"] = "not a matrix"
        if not reason:
            found, reason = _matrices_of(info, checkpoint, *layers[info.name])
            if found:
                outcome = "not readable" if found[0].problem else "read"
        elif reason == info.problem:
            outcome = "not readable"
        matrices.extend(found)
        coverage.append(Coverage(info.name, info.shape, info.dtype, outcome, reason, len(found)))
    return tuple(_distinct(matrices)), tuple(coverage)


def _distinct(matrices: Iterable[Matrix]) -> list[Matrix]:
    """A tensor may be named like a part of another (``w`` split into ``w:q``, and a tensor ``w:q``)."""
    seen: set[str] = set()
    result = []
    for matrix in matrices:
        name = matrix.name
        while name in seen:
            name += "'"
        seen.add(name)
        result.append(matrix if name == matrix.name else replace(matrix, name=name))
    return result


def read_matrix(checkpoint: Checkpoint, matrix: Matrix) -> Tensor:
    """The (rows, cols) matrix in its storage dtype; float32 where it was dequantised.

    Raises:
        SourceError: it cannot be read; the message says why.
    """
    if matrix.problem:
        raise SourceError(matrix.problem, where=matrix.name)
    tensor = checkpoint.read(matrix.tensor, matrix.start, matrix.stop)
    if matrix.scale:
        tensor = quantized.apply_scale(tensor, checkpoint.read(matrix.scale), matrix.block, matrix.start)
    if matrix.gain:
        tensor = quantized.apply_gain(tensor, checkpoint.read(matrix.gain))
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


def _matrices_of(info: TensorInfo, checkpoint: Checkpoint, layer: int | None, stack: str) -> tuple[list[Matrix], str]:
    """The matrices of a tensor and how it was seen; none, and why."""
    tensors, shape, role = checkpoint.tensors, _squeezed(info), role_of(info.name)
    is_packed = quantized.packed(info, tensors)
    problem = info.problem or is_packed
    scale, block, how_scaled = "", (1, 1), ""
    if not problem and info.dtype in quantized.SCALED_DTYPES:
        scale, block, how_scaled = quantized.find_scale(info, tensors, checkpoint.config)
        if not scale and how_scaled != quantized.NOT_SCALED:
            problem = how_scaled
    gain = "" if problem else quantized.find_gain(info.name, tensors)
    convolution = None
    if is_packed:
        flat = (shape[0], math.prod(shape[1:]))
        parts, how = [Part("", "", 0, shape[0], (("reshape", flat),), *flat)], ""
    else:
        convolution = _convolution(info.name, shape, checkpoint.config)
        parts, how = _parts(info.name, shape, role, convolution, checkpoint)
    if not parts:
        return [], how
    notes = (how, how_scaled, "weight norm multiplied out" if gain else "", _parametrised(info.name, tensors, gain))
    matrices = [
        Matrix(
            name=f"{info.name}:{part.suffix}" if part.suffix else info.name, tensor=info.name, layer=layer,
            role=(f"{stack}." if stack else "") + _role(role, part), rows=part.rows, cols=part.cols, dtype=info.dtype,
            start=part.start, stop=part.stop, steps=part.steps, scale=scale, block=block, gain=gain,
            kernel=shape[2:] if convolution else (), groups=convolution.groups if convolution else None,
            transposed=convolution is not None and convolution.transposed,
            bytes_per_entry=info.nbytes / max(math.prod(info.shape), 1), problem=problem,
        )
        for part in (parts if shape == info.shape and not gain else _of_whole(parts, info.shape, shape))
    ]  # fmt: skip
    return matrices, problem or ", ".join(note for note in notes if note)


def _role(role: str, part: Part) -> str:
    return f"cross_{part.role}" if part.role and role.startswith("cross_") else part.role or role


def _squeezed(info: TensorInfo) -> tuple[int, ...]:
    """The shape without leading ones of a bare parameter (``pos_embed`` is (1, positions, width))."""
    shape = info.shape
    while len(shape) > 2 and shape[0] == 1 and not ENDING.search("." + info.name):
        shape = shape[1:]
    return shape


def _of_whole(parts: list[Part], stored: tuple[int, ...], shape: tuple[int, ...]) -> list[Part]:
    """Parts of a tensor that has to be read whole, and seen in another shape than it is stored in."""
    return [
        replace(part, start=0, stop=stored[0], steps=(("reshape", shape), ("take", (0, part.start, part.stop, 1)), *part.steps))
        for part in parts
    ]  # fmt: skip


def _parametrised(name: str, tensors: Mapping[str, TensorInfo], gain: str) -> str:
    original = ".parametrizations." in name and not gain
    spectral = name.endswith("weight_orig") and name.removesuffix("orig") + "u" in tensors
    return "as stored, before the module normalises it" if original or spectral else ""


def _not_a_matrix(info: TensorInfo, tensors: Mapping[str, TensorInfo]) -> str:
    """Why a tensor is no linear map, as far as its name, dtype and number of dimensions tell; empty if it may be."""
    name, shape = info.name, info.shape
    last, first = name.rsplit(".", 1)[-1], name.split(".", 1)[0].lower()
    if first.startswith("optim") or first in ("lr_scheduler", "scheduler") or last in OPTIMISER:
        return "optimiser state"
    if quantized.is_companion(name, tensors):
        return "scale or table of a quantised weight"
    if quantized.is_gain(name, tensors):
        return "norms of a weight-normalised weight"
    if last in BUFFERS:
        return f"buffer {last}"
    if not shape:
        return info.problem or "a scalar"
    if quantized.packed(info, tensors):
        return ""
    if len(shape) == 1 or (len(shape) > 2 and max(shape) == math.prod(shape) and not ENDING.search("." + name)):
        return "a vector: bias, norm or scale"
    if len(shape) > 2 and 0 in shape:
        return "a tensor without entries"
    if last in ("bias", "biases") or last.endswith("_bias") or last.startswith("bias_"):
        return "bias or mask"
    if last in ("A_log", "ssm_a"):
        return "diagonal of a state-space recurrence"
    if info.dtype == "int8":
        scaled = quantized.find_scale(info, tensors, {})[2] != "integers without a scale"
        return "" if scaled else "integers without a scale"
    return "integers: an index or a mask" if info.dtype.startswith(("int", "uint", "bool")) else ""


def _convolution(name: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> Convolution | None:
    low = stem(name)
    if len(shape) not in (3, 4, 5) or not ENDING.search("." + name):
        return None
    module = ENDING.sub("", "." + name)[1:]
    known = fused.convolution_of(low, f"{module}.weight", len(shape), config)
    stacked = len(shape) == 3 and fused.is_stack_of_experts(low)
    return None if known is None or (stacked and known.groups is None) else known


def _parts(
    name: str, shape: tuple[int, ...], role: str, convolution: Convolution | None, checkpoint: Checkpoint
) -> Split:
    config, tensors, low = checkpoint.config, checkpoint.tensors, stem(name)
    if convolution:
        return fused.unfold(shape, convolution)
    if len(shape) == 3 and fused.is_stack_of_experts(low):
        return fused.split_experts(name, (shape[0], shape[1], shape[2]), role, tensors, config)
    if len(shape) != 2:
        return [], f"a parameter of {len(shape)} dimensions that is no known linear map"
    pair = (shape[0], shape[1])
    if RECURRENT.search(name):
        return _recurrent(name, pair, role, tensors)
    inputs_first = _is_conv1d(name, tensors, config)
    split: Split | None = None
    if role in ("qkv", "cross_qkv"):
        split = fused.split_attention(low, pair, config, inputs_first=inputs_first)
    elif role == "q":
        split = fused.split_gated_query(pair, config)
    elif not inputs_first:
        split = fused.split_gate_up(name, pair, role, tensors)
    if split:
        return split
    return [whole(pair, inputs_first=inputs_first)], "Conv1D, stored as (in, out)" if inputs_first else ""


def _is_conv1d(name: str, tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> bool:
    """Whether a weight is that of transformers' Conv1D: (in, out), told by the model or by the block's own ``c_attn``."""
    path = name.split(".")
    if len(path) < 2 or path[-1] != "weight" or path[-2] not in ("c_attn", "c_proj", "c_fc", "q_attn"):
        return False
    if fused.model_kinds(config) & CONV1D_MODELS:
        return True
    fused_attention = tensors.get(".".join([*path[:-3], "attn", "c_attn", "weight"]))
    shape = fused_attention.shape if fused_attention else ()
    return len(shape) == 2 and shape[1] == 3 * shape[0] > 0


def _recurrent(name: str, shape: tuple[int, int], role: str, tensors: Mapping[str, TensorInfo]) -> Split:
    match = RECURRENT.search(name)
    if match is None or match["kind"] == "hr":
        return [whole(shape)], "projection of a recurrent state"
    # Units of the layer: what the projection of its state takes in or, without one, its recurrent weight.
    siblings = [tensors.get(name[: match.start("kind")] + kind + name[match.end("kind") :]) for kind in ("hr", "hh")]
    units = [info.shape[1] for info in siblings if info is not None and len(info.shape) == 2]
    return fused.split_gates(shape, units[0] if units else 0, role)
