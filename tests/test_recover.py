"""Training the factors: what is trained on what, and by how much."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from eigenscope.errors import InputError
from eigenscope.models.lowrank import Interpolative, LowRankLinear
from eigenscope.models.text import Windows
from eigenscope.tasks.recover import ALIKE, apart, recover, schedule


def windows_of(ids: torch.Tensor, mask: torch.Tensor | None = None) -> Windows:
    mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    return Windows(ids, mask, torch.zeros(len(ids), dtype=torch.int64), ("text",))


def test_windows_that_overlap_what_is_measured_on_are_left_out():
    stream = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    held = stream[100:200].reshape(2, 50)
    batches = [{"input_ids": held, "attention_mask": torch.ones_like(held)}]
    # One that ends with the sixteen first tokens held out, one with fifteen of them, one in the middle, one far away.
    places = [100 + ALIKE - 50, 100 + ALIKE - 51, 120, 400]
    given = windows_of(torch.stack([stream[place : place + 50] for place in places]))
    assert torch.equal(apart(given, batches).ids, given.ids[[1, 3]])


def test_padding_is_no_text_in_common():
    ids = torch.zeros(2, 40, dtype=torch.int64)
    ids[0, :10], ids[1, :10] = torch.arange(1, 11), torch.arange(11, 21)
    mask = ids > 0
    assert len(apart(windows_of(ids[:1], mask[:1]), [{"input_ids": ids[1:], "attention_mask": mask[1:]}])) == 1
    assert not len(apart(windows_of(ids[:1], mask[:1]), [{"input_ids": ids[:1], "attention_mask": mask[:1]}]))


def pair(size: float) -> tuple[nn.Module, nn.Module]:
    """A dense layer and one of rank 2 with the same first rows, all weights times ``size``."""
    generator = torch.Generator().manual_seed(4)
    dense = nn.Linear(6, 5, bias=False)
    low = LowRankLinear(6, 5, 2, False)
    with torch.no_grad():
        dense.weight.copy_(size * torch.randn(5, 6, generator=generator))
    low.load(Interpolative(dense.weight[:2].detach(), torch.randn(3, 2, generator=generator), torch.arange(5)), None)
    return dense, low


def test_steps_are_in_proportion_to_the_factors():
    """Adam's first step moves every entry by the learning rate, whatever its gradient: here by that share of the factor."""
    batch = torch.randn(64, 6, generator=torch.Generator().manual_seed(5))
    for size in (1.0, 1e-3):
        dense, low = pair(size)
        before = low.down.weight.detach().clone()
        recover(low, dense, [batch], "embedding", steps=1, learning_rate=1e-2)
        moved = (low.down.weight.detach() - before).abs()
        scale = float(before.square().mean().sqrt())
        assert float(moved.median()) == pytest.approx(1e-2 * scale, rel=0.05)


def test_training_ends_at_the_best_that_is_known_and_leaves_the_teacher_alone():
    dense, low = pair(1.0)
    kept = dense.weight.detach().clone()
    batches = [torch.randn(64, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
    done = recover(low, dense, batches, "embedding", steps=400, learning_rate=3e-2)
    # Isotropic inputs: the best of rank 2 leaves the energy of the singular values cut.
    best = 0.5 * float((torch.linalg.svdvals(kept)[2:] ** 2).sum())
    assert sum(done.losses[-8:]) / 8 < 1.15 * best
    assert done.losses[0] > 2 * best
    assert torch.equal(dense.weight, kept)
    assert dense.weight.grad is None


def test_learning_rate_rises_and_falls_to_nothing():
    shares = [schedule(step, 100) for step in range(100)]
    assert max(shares) == 1.0
    assert shares.index(1.0) == 9
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert 0.0 < shares[-1] < 1e-3


def test_what_cannot_be_trained_is_refused():
    dense, low = pair(1.0)
    with pytest.raises(InputError, match="nothing to train"):
        recover(low, dense, [], "embedding", steps=3, learning_rate=1e-2)
    with pytest.raises(InputError, match="nothing to train"):
        recover(nn.Linear(6, 5), dense, [torch.ones(2, 6)], "embedding", steps=3, learning_rate=1e-2)
    with pytest.raises(InputError, match="loss nan at step 0"):
        recover(low, dense, [torch.full((2, 6), math.nan)], "embedding", steps=3, learning_rate=1e-2)
