"""Weights stored apart from their scales, and packed formats."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from eigenscope.errors import SourceError
from eigenscope.models.checkpoint import MemoryCheckpoint
from eigenscope.models.matrices import read_matrix
from eigenscope.models.sources import open_checkpoint
from eigenscope.tasks.readings import ScanOptions, measure
from listing import check_coverage, coverage_of, draw, entries, matrices_of

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
DEEPSEEK = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}


def quantised(
    W: Tensor, height: int, width: int, dtype: torch.dtype, scale_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Stored weight and its scales, one for each block: the loop that a textbook would write."""
    rows, cols = W.shape
    stored = torch.zeros(rows, cols).to(dtype)
    scales = torch.zeros(math.ceil(rows / height), math.ceil(cols / width))
    largest = 127.0 if dtype == torch.int8 else torch.finfo(dtype).max
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            block = W[i * height : (i + 1) * height, j * width : (j + 1) * width]
            scale = block.abs().max() / largest
            scale = torch.exp2(scale.log2().ceil()) if scale_dtype == torch.float8_e8m0fnu else scale
            scales[i, j] = scale
            values = block / scale.to(scale_dtype).float()
            values = values.round() if dtype == torch.int8 else values
            stored[i * height : (i + 1) * height, j * width : (j + 1) * width] = values.to(dtype)
    return stored, scales.to(scale_dtype)


def dequantised(stored: Tensor, scales: Tensor, height: int, width: int) -> Tensor:
    """The same loop backwards."""
    result = stored.float()
    for i in range(stored.shape[0]):
        for j in range(stored.shape[1]):
            result[i, j] *= float(scales[i // height, j // width])
    return result


BLOCKS = {
    "DeepSeek's blocks, odd sizes": (150, 260, 128, 128, E4M3, torch.float32),
    "blocks, one block high": (100, 300, 128, 128, E4M3, torch.float32),
    "one scale": (20, 30, 20, 30, E4M3, torch.float32),
    "a scale per row": (20, 30, 1, 30, E4M3, torch.bfloat16),
    "a scale per column": (20, 30, 20, 1, E5M2, torch.float32),
    "groups of a row, powers of two": (20, 96, 1, 32, E4M3, torch.float8_e8m0fnu),
    "INT8 by row": (20, 30, 1, 30, torch.int8, torch.float32),
    "INT8, one scale": (20, 30, 20, 30, torch.int8, torch.float16),
}


@pytest.mark.parametrize("ending", ["weight_scale_inv", "weight_scale", "scale", "scale_weight"])
@pytest.mark.parametrize("case", BLOCKS)
def test_scales_are_multiplied_in(case: str, ending: str, tmp_path: Path) -> None:
    rows, cols, height, width, dtype, scale_dtype = BLOCKS[case]
    W = draw(rows, cols) * torch.linspace(0.1, 10, rows)[:, None]
    stored, scales = quantised(W, height, width, dtype, scale_dtype)
    expected = dequantised(stored, scales.float(), height, width)
    assert (expected - W).norm() < 0.1 * W.norm()  # the oracle itself makes sense
    tensors = {"layers.0.mlp.down_proj.weight": stored, f"layers.0.mlp.down_proj.{ending}": scales}
    save_file(tensors, tmp_path / "model.safetensors")
    configured = DEEPSEEK if (height, width) == (128, 128) else {}
    for checkpoint in (
        MemoryCheckpoint(tensors),
        MemoryCheckpoint(tensors, config=configured),
        open_checkpoint(tmp_path),
    ):
        check_coverage(checkpoint)
        (matrix,) = matrices_of(checkpoint).values()
        assert read_matrix(checkpoint, matrix).equal(expected)
        assert "scale" in coverage_of(checkpoint)[matrix.tensor].reason
        assert coverage_of(checkpoint)[f"layers.0.mlp.down_proj.{ending}"].outcome == "not a matrix"
        sigma = measure(checkpoint, ScanOptions(), matrix).readings["sigma_max"]
        assert sigma == pytest.approx(float(torch.linalg.matrix_norm(expected.double(), 2)), rel=1e-9)


def test_a_vector_or_a_number_of_scales_is_read_too() -> None:
    stored, scales = quantised(draw(20, 30), 1, 30, E4M3, torch.float32)
    checkpoint = MemoryCheckpoint({"w": stored, "w_scale": scales[:, 0]})
    assert entries(checkpoint)["w"].equal(dequantised(stored, scales, 1, 30))
    checkpoint = MemoryCheckpoint({"w": stored, "w_scale": torch.tensor(0.5)})
    assert entries(checkpoint)["w"].equal(stored.float() * 0.5)


def test_a_part_of_a_fused_weight_takes_its_own_scales() -> None:
    stored, scales = quantised(draw(90, 30), 8, 8, E4M3, torch.float32)  # parts of 30 rows begin inside a block
    checkpoint = MemoryCheckpoint({"self_attn.qkv_proj.weight": stored, "self_attn.qkv_proj.weight_scale_inv": scales})
    expected = dequantised(stored, scales, 8, 8)
    for part, rows in zip("qkv", expected.split(30), strict=True):
        assert entries(checkpoint)[f"self_attn.qkv_proj.weight:{part}"].equal(rows)


@pytest.mark.parametrize("shape", [(3, 5, 3), (3, 40, 1), (3, 40), (3, 1, 1), (3, 1), (3,)])
def test_stacked_experts_take_their_own_scales(shape: tuple[int, ...]) -> None:
    stored = draw(3, 40, 24).to(E4M3)
    scales = draw(*shape).abs()
    full = {(3, 5, 3): lambda s: s.repeat_interleave(8, 1).repeat_interleave(8, 2), (3, 40): lambda s: s[..., None]}
    expected = stored.float() * full.get(shape, lambda s: s.reshape(3, -1, 1))(scales)
    name = "layers.0.mlp.experts.down_proj"
    checkpoint = MemoryCheckpoint({name: stored, f"{name}_scale_inv": scales})
    check_coverage(checkpoint)
    assert [entries(checkpoint)[f"{name}:{expert}"].equal(expected[expert]) for expert in range(3)] == [True] * 3


def test_fp8_without_a_scale_is_read_as_stored_and_says_so() -> None:
    stored = draw(8, 8).to(E4M3)
    checkpoint = MemoryCheckpoint({"layers.0.q_proj.weight": stored, "layers.0.q_proj.input_scale": torch.tensor(2.0)})
    assert entries(checkpoint)["layers.0.q_proj.weight"].float().equal(stored.float())
    assert "without a scale" in coverage_of(checkpoint)["layers.0.q_proj.weight"].reason
    assert coverage_of(checkpoint)["layers.0.q_proj.input_scale"].reason == "a scalar"


@pytest.mark.parametrize(
    ("dtype", "more", "said"),
    [
        (E4M3, {"w_scale": draw(3)}, "does not fit"),
        (E4M3, {"w_scale": draw(7, 2)}, "does not fit"),
        (E4M3, {"w_scale": draw(2, 2, 2)}, "does not fit"),
        (E4M3, {"w_scale": torch.ones(300, 1, dtype=torch.uint8)}, "w_scale is uint8"),
        (torch.int8, {"w_scale": draw(300, 1), "w_zero_point": torch.ones(300, 1, dtype=torch.int8)}, "zero points"),
    ],
)
def test_a_scale_that_cannot_be_used_makes_the_weight_unreadable(
    dtype: torch.dtype, more: dict[str, Tensor], said: str
) -> None:
    checkpoint = MemoryCheckpoint({"w": torch.ones(300, 200).to(dtype), **more})
    check_coverage(checkpoint)
    entry, matrix = coverage_of(checkpoint)["w"], matrices_of(checkpoint)["w"]
    assert (entry.outcome, entry.matrices) == ("not readable", 1)
    assert said in entry.reason
    with pytest.raises(SourceError, match=said):
        read_matrix(checkpoint, matrix)
    record = measure(checkpoint, ScanOptions(), matrix)
    assert said in str(record.readings["status"])
    assert record.readings["sigma_max"] is None


def test_the_block_size_of_the_configuration_is_obeyed_or_the_weight_refused() -> None:
    stored, scales = quantised(draw(60, 90), 20, 30, E4M3, torch.float32)  # not powers of two
    tensors = {"w": stored, "w_scale_inv": scales}
    config = {"quantization_config": {"weight_block_size": [20, 30]}}
    checkpoint = MemoryCheckpoint(tensors, config=config)
    assert entries(checkpoint)["w"].equal(dequantised(stored, scales, 20, 30))
    wrong = {"quantization_config": {"weight_block_size": [128, 128]}}
    assert coverage_of(MemoryCheckpoint(tensors, config=wrong))["w"].outcome == "not readable"


def integers(*shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    return torch.ones(shape, dtype=dtype)


P = "model.layers.3.self_attn.q_proj."
PACKED: dict[str, tuple[str, dict[str, Tensor]]] = {
    "GPTQ": (P + "qweight", {
        P + "qweight": integers(8, 64, dtype=torch.int32), P + "qzeros": integers(2, 8, dtype=torch.int32),
        P + "scales": draw(2, 64).half(), P + "g_idx": integers(64, dtype=torch.int32)}),
    "AWQ": (P + "qweight", {
        P + "qweight": integers(64, 8, dtype=torch.int32), P + "qzeros": integers(2, 8, dtype=torch.int32),
        P + "scales": draw(2, 64).half()}),
    "bitsandbytes": (P + "weight", {
        P + "weight": integers(2048, 1), P + "weight.absmax": integers(64), P + "weight.quant_map": draw(16),
        P + "weight.nested_absmax": draw(1), P + "weight.nested_quant_map": draw(256),
        P + "weight.quant_state.bitsandbytes__nf4": integers(80)}),
    "8-bit integers of bitsandbytes": (P + "weight", {
        P + "weight": integers(64, 64, dtype=torch.int8), P + "SCB": draw(64), P + "weight_format": integers(1)}),
    "MXFP4": ("model.layers.3.mlp.experts.gate_up_proj_blocks", {
        "model.layers.3.mlp.experts.gate_up_proj_blocks": integers(2, 64, 3, 16),
        "model.layers.3.mlp.experts.gate_up_proj_scales": integers(2, 64, 3),
        "model.layers.3.mlp.experts.gate_up_proj_bias": draw(2, 64)}),
    "compressed-tensors": (P + "weight_packed", {
        P + "weight_packed": integers(64, 8, dtype=torch.int32), P + "weight_scale": draw(64, 2),
        P + "weight_shape": integers(2, dtype=torch.int64), P + "weight_zero_point": integers(8, 2, dtype=torch.int32)}),
    "MLX": (P + "weight", {
        P + "weight": integers(64, 8, dtype=torch.uint32), P + "scales": draw(64, 1).half(),
        P + "biases": draw(64, 1).half()}),
    "quanto": (P + "weight._data", {
        P + "weight._data": integers(64, 64, dtype=torch.int8), P + "weight._scale": draw(64, 1)}),
    "HQQ": (P + "W_q", {P + "W_q": integers(32, 64), P + "scale": draw(64, 1), P + "zero": draw(64, 1)}),
    "4-bit floats": (P + "weight", {
        P + "weight": integers(64, 32), P + "weight_scale": torch.ones(64, 4).to(E4M3), P + "weight_scale_2": draw()}),
}  # fmt: skip


@pytest.mark.parametrize("name", PACKED)
def test_packed_formats_are_rows_that_name_the_format(name: str) -> None:
    tensor, tensors = PACKED[name]
    checkpoint = MemoryCheckpoint(tensors)
    check_coverage(checkpoint)
    (matrix,) = matrices_of(checkpoint).values()
    assert (matrix.tensor, matrix.layer) == (tensor, 3)
    assert matrix.role == ("expert_gate_up" if name == "MXFP4" else "q")
    assert coverage_of(checkpoint)[tensor].outcome == "not readable"
    assert name in coverage_of(checkpoint)[tensor].reason
    assert name in str(measure(checkpoint, ScanOptions(), matrix).readings["status"])
    assert {entry.outcome for key, entry in coverage_of(checkpoint).items() if key != tensor} <= {"not a matrix"}


def test_a_name_that_ends_in_scale_is_no_scale_by_itself() -> None:
    checkpoint = MemoryCheckpoint(
        {"logit_scale": torch.tensor(2.0), "w": draw(3, 3), "w_scale": draw(4, 5), "x.scales": draw(3, 3)}
    )
    assert set(entries(checkpoint)) == {"w", "w_scale", "x.scales"}  # w is not quantised: nothing to scale
