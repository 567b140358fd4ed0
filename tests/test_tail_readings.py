"""The tail's columns: what is given, what is asked for, copies without some vectors, blocks of one aspect ratio."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from eigenscope.columns import BY_NAME
from eigenscope.errors import InputError
from eigenscope.measures import tail
from eigenscope.tasks.tails import tail_readings, thinned_copies


def of_matrix(matrix):
    return np.linalg.svd(matrix, compute_uv=False)


@pytest.mark.parametrize("shape", [(30, 10), (10, 30), (20, 20), (7, 100), (100, 7), (1, 5), (3, 3)])
@pytest.mark.parametrize("aspect", [1.0, 2.0, 7.5])
@pytest.mark.parametrize("windows", [1, 2, 5, 50])
def test_blocks_have_the_aspect_asked_for_and_stay_inside(shape, aspect, windows):
    blocks = tail.fixed_aspect_blocks(shape, aspect, windows)
    assert 1 <= len(blocks) <= windows
    assert len({(rows.start, cols.start) for rows, cols in blocks}) == len(blocks)
    matrix = np.arange(shape[0] * shape[1]).reshape(shape)
    parts = [matrix[block] for block in blocks]
    assert len({part.shape for part in parts}) == 1
    long, short = max(parts[0].shape), min(parts[0].shape)
    # As near as whole rows and columns allow.
    assert abs(long - aspect * short) <= max(1.0, aspect) / 2.0 or short == 1
    assert long == max(shape) or short == min(shape)
    if windows > 1 and len(blocks) > 1:
        assert parts[0].flat[0] == 0
        assert parts[-1].flat[-1] == matrix.size - 1


@pytest.mark.parametrize(("shape", "aspect", "windows"), [((0, 3), 1.0, 1), ((3, 3), 0.5, 1), ((3, 3), 1.0, 0), ((3, 3), math.nan, 1), ((3, 3), math.inf, 1)])  # fmt: skip
def test_blocks_out_of_range_are_refused(shape, aspect, windows):
    with pytest.raises(InputError, match="aspect"):
        tail.fixed_aspect_blocks(shape, aspect, windows)


def readings_of(matrix, seed=0, **options):
    W = torch.as_tensor(matrix)
    values = of_matrix(W.double().numpy())
    asked = {"tests": 0, "stability": 0, "fixed_aspect": 0.0} | options
    return tail_readings(W, values, floor=len(values) * 2.0**-52, generator=np.random.default_rng(seed), **asked)


ALWAYS = {"alpha", "alpha_stderr", "alpha_tail", "alpha_cutoff", "alpha_ks", "alpha_verdict", "decay", "decay_r2"}
ON_REQUEST = {
    "tests": {f"lr_{law}{end}" for law in ("lognormal", "exponential", "truncated") for end in ("", "_p")}
    | {"alpha_p", "alpha_p_stderr"},
    "stability": {"alpha_stability"},
    "fixed_aspect": {"alpha_fixed_aspect", "alpha_fixed_aspect_spread"},
}


def test_readings_are_those_asked_for_and_are_columns():
    matrix = np.random.default_rng(0).standard_t(1.5, size=(120, 60))
    assert set(readings_of(matrix)) == ALWAYS
    for option, names in ON_REQUEST.items():
        readings = readings_of(matrix, **{option: 10})
        assert set(readings) == ALWAYS | names
        assert all(readings[name] is not None for name in names - {"alpha_fixed_aspect_spread"})
    assert ALWAYS.union(*ON_REQUEST.values()) <= set(BY_NAME)
    assert readings_of(matrix, stability=1).keys() == ALWAYS


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_readings_take_every_format_and_are_the_seeds(dtype):
    matrix = torch.as_tensor(np.random.default_rng(1).standard_t(2.0, size=(60, 90))).to(dtype)
    before = matrix.clone()
    asked = {"tests": 5, "stability": 4, "fixed_aspect": 1.5}
    first = readings_of(matrix, **asked)
    assert readings_of(matrix, **asked) == first
    assert torch.equal(matrix, before)
    assert readings_of(matrix, seed=1, **asked)["alpha_stability"] != first["alpha_stability"]


@pytest.mark.parametrize(("shape", "side"), [((40, 30), 0), ((30, 40), 1), ((40, 40), 1), ((6, 4), 0)])
def test_ten_copies_leave_every_vector_of_the_longer_side_out_once(shape, side):
    long = max(shape)
    labels = torch.arange(long).reshape(-1, 1) if side == 0 else torch.arange(long)
    W = labels.expand(shape).clone()
    copies = list(thinned_copies(W, min(10, long), np.random.default_rng(0)))
    left_out = [set(range(long)) - set(copy.flatten().tolist()) for copy in copies]
    assert sorted(label for group in left_out for label in group) == list(range(long))
    assert all(copy.shape[1 - side] == shape[1 - side] for copy in copies)
    again = list(thinned_copies(W, 13, np.random.default_rng(0)))
    assert len(again) == 13
    assert all(torch.equal(a, b) for a, b in zip(copies, again, strict=False))


def test_stability_is_the_spread_over_copies_and_grows_where_one_vector_carries_the_tail():
    rng = np.random.default_rng(5)
    matrix = rng.standard_t(1.5, size=(80, 120))
    alphas = [
        tail.fit_tail(of_matrix(copy.numpy())).alpha
        for copy in thinned_copies(torch.as_tensor(matrix), 10, np.random.default_rng(0))
    ]
    assert readings_of(matrix, stability=10)["alpha_stability"] == pytest.approx(np.std(alphas, ddof=1), rel=1e-6)
    assert (
        readings_of(matrix, stability=10)["alpha_stability"]
        == readings_of(matrix.T.copy(), stability=10)["alpha_stability"]
    )


def test_fixed_aspect_makes_noise_of_any_shape_alike():
    def alpha(shape, name, **options):
        return np.mean(
            [readings_of(np.random.default_rng(seed).standard_normal(shape), **options)[name] for seed in range(12)]
        )

    plain = alpha((96, 96), "alpha"), alpha((960, 96), "alpha")
    square = (
        alpha((96, 96), "alpha_fixed_aspect", fixed_aspect=1.0),
        alpha((960, 96), "alpha_fixed_aspect", fixed_aspect=1.0),
    )
    assert abs(plain[1] - plain[0]) > 5.0 * abs(square[1] - square[0])
    matrix = np.random.default_rng(0).standard_normal((90, 30))
    assert readings_of(matrix, fixed_aspect=3.0) | readings_of(matrix) == readings_of(
        matrix, fixed_aspect=1.0 / 3.0
    ) | readings_of(matrix)
    whole = readings_of(matrix, fixed_aspect=3.0)
    assert whole["alpha_fixed_aspect"] == pytest.approx(whole["alpha"], rel=1e-9)
    assert whole["alpha_fixed_aspect_spread"] is None
    blocks = [tail.fit_tail(of_matrix(matrix[start : start + 30])).alpha for start in (0, 30, 60)]
    thirds = readings_of(matrix, fixed_aspect=1.0)
    assert thirds["alpha_fixed_aspect"] == pytest.approx(np.mean(blocks), rel=1e-9)
    assert thirds["alpha_fixed_aspect_spread"] == pytest.approx(np.std(blocks, ddof=1), rel=1e-9)
