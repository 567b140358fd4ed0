"""Entries rounded to a few levels: found where they are, and not where they only look so."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import eigenscope as es
from eigenscope.measures.quantization import find_levels


def weights(rows=256, cols=384, seed=0):
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed)) * 0.04


def rounded(W, kind):
    gguf = pytest.importorskip("gguf")
    quantised = gguf.quants.quantize(W.numpy(), gguf.GGMLQuantizationType[kind])
    return torch.from_numpy(gguf.quants.dequantize(quantised, gguf.GGMLQuantizationType[kind]).copy())


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
def test_the_floor_is_the_norm_of_the_rounding(kind):
    W = weights()
    Q = rounded(W, kind)
    found = find_levels(Q)
    error = Q - W
    # Q4_0's 16 levels are not centred: it clips one end, so that its error is a little more than the model's.
    assert found.error == pytest.approx(float(error.std()), rel=0.10)
    assert found.floor == pytest.approx(float(torch.linalg.matrix_norm(error, 2)), rel=0.12)
    assert found.levels <= 16
    assert 0.0 < found.stderr < 0.05 * found.error


def test_levels_that_are_not_equidistant():
    # The 16 levels of NF4 are quantiles of the normal law (Dettmers et al. 2023), scaled by the largest of 64 entries.
    levels = torch.distributions.Normal(0.0, 1.0).icdf(torch.linspace(0.02, 0.98, 16))
    levels /= levels.abs().max()
    W = weights()
    blocks = W.reshape(-1, 64)
    scales = blocks.abs().max(dim=1, keepdim=True).values
    nearest = ((blocks / scales)[:, :, None] - levels).abs().argmin(dim=2)
    Q = (levels[nearest] * scales).reshape(W.shape)
    found = find_levels(Q)
    assert found.error == pytest.approx(float((Q - W).std()), rel=0.15)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scaling(scale):
    Q = rounded(weights(), "Q4_1")
    assert find_levels(Q * scale).floor == pytest.approx(find_levels(Q).floor * scale, rel=1e-5)


def pruned(W):
    return torch.where(W.abs() < W.abs().flatten().kthvalue(int(0.7 * W.numel())).values, 0.0, W)


@pytest.mark.parametrize(
    "W",
    [weights(), weights().bfloat16(), weights().half(), weights().double(), pruned(weights()), torch.zeros(64, 64),
     torch.ones(64, 64), torch.eye(64), weights(4, 20), weights(1, 64), torch.zeros(0, 64)],
    ids=["fp32", "bf16", "fp16", "fp64", "pruned", "zero", "ones", "identity", "narrow", "row", "empty"],
)  # fmt: skip
def test_what_is_not_quantised(W):
    assert find_levels(W) is None


def test_eight_bits_are_not_taken_for_four():
    assert find_levels(rounded(weights(), "Q8_0")) is None


def test_a_run_says_it_once_and_counts_what_lies_below():
    W = weights(128, 128)
    W[:, :8] *= 30.0
    left, values, right = torch.linalg.svd(W)
    W = (left * torch.cat([values[:40], torch.full((88,), 1e-3)])) @ right
    result = es.scan({f"layers.{i}.q_proj.weight": rounded(W.roll(i, 0).contiguous(), "Q4_1") for i in range(3)})
    floors = result.table["quantization_floor"].to_numpy()
    below = sum(int(np.sum(r.values < f)) for r, f in zip(result.run.records, floors, strict=True))
    assert below > 100
    last = result.run.findings[-1]
    assert last.severity == 0.0
    assert f"{below:,} of 384" in last.sentence
    assert last.sentence.startswith("3 matrices hold at most 16 levels")
