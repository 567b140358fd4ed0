"""Every reading against an independent computation, its limits, and its invariance to scaling."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eigenscope.measures import conditioning, rank

RNG = np.random.default_rng(0)
spectra = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=40).map(lambda v: np.sort(np.array(v))[::-1].copy())


def test_readings_of_a_matrix_known_by_hand():
    values = np.array([3.0, 2.0, 1.0])
    assert rank.stable_rank(values) == pytest.approx(14 / 9)
    assert rank.participation_ratio(values) == pytest.approx(14**2 / 98)
    p = np.array([3, 2, 1]) / 6
    assert rank.effective_rank(values) == pytest.approx(math.exp(scipy.stats.entropy(p)))
    assert conditioning.condition_number(values) == pytest.approx(3.0)
    assert conditioning.digits_lost(1000.0) == pytest.approx(3.0)
    assert conditioning.digits_left(1000.0, conditioning.FP16_EPS) == pytest.approx(math.log10(1024) - 3)
    assert conditioning.digits_left(1e9, conditioning.FP16_EPS) == 0.0
    assert rank.parameters_saved((10, 20), 3) == 200 - 3 * 31


@pytest.mark.parametrize("k", [1, 2, 7, 64])
def test_a_flat_spectrum_uses_all_its_directions(k):
    values = np.full(k, 0.37)
    for reading in (rank.stable_rank, rank.effective_rank, rank.participation_ratio):
        assert reading(values) == pytest.approx(k)


def test_energy_ranks_are_not_off_by_one():
    flat = np.ones(10)
    assert rank.rank_for_energy(flat, 0.9) == 9
    assert rank.rank_for_energy(flat, 0.91) == 10
    assert rank.rank_for_energy(flat, 1.0) == 10
    assert rank.rank_for_energy(np.array([1.0, 0.0]), 1.0) == 1
    assert rank.rank_for_energy(np.array([10.0, 1e-9]), 0.99) == 1
    with pytest.raises(ValueError, match="share"):
        rank.rank_for_energy(flat, 0.0)


@settings(max_examples=200, deadline=None)
@given(spectra, st.floats(0.01, 1.0))
def test_energy_rank_is_the_smallest_that_keeps_the_share(values, share):
    k = rank.rank_for_energy(values, share)
    energy = np.cumsum(values**2) / np.sum(values**2)
    assert energy[k - 1] >= share - 1e-9
    assert k == 1 or energy[k - 2] < share + 1e-9


@settings(max_examples=200, deadline=None)
@given(spectra, st.sampled_from([1e-200, 1e-12, 2.0**40, 1e12, 1e200]))
def test_readings_are_invariant_to_scaling(values, scale):
    for reading in (rank.stable_rank, rank.effective_rank, rank.participation_ratio, conditioning.condition_number):
        assert reading(values * scale) == pytest.approx(reading(values), rel=1e-9)
    assert rank.rank_for_energy(values * scale, 0.95) == rank.rank_for_energy(values, 0.95)
    assert rank.numerical_rank(values * scale, (50, 50), 2.0**-23) == rank.numerical_rank(values, (50, 50), 2.0**-23)


@settings(max_examples=200, deadline=None)
@given(spectra)
def test_ranks_are_ordered(values):
    stable, effective = rank.stable_rank(values), rank.effective_rank(values)
    assert 1 - 1e-9 <= stable <= rank.participation_ratio(values) * (1 + 1e-9) <= len(values) * (1 + 1e-6)
    assert stable <= len(values) * (1 + 1e-9)
    assert 1 - 1e-9 <= effective <= len(values) * (1 + 1e-9)


def test_numerical_rank_is_judged_by_the_storage_format():
    factors = RNG.standard_normal((300, 8)) @ RNG.standard_normal((8, 200))
    stored = torch.tensor(factors)
    for dtype, eps in (
        (torch.float64, 2.0**-52),
        (torch.float32, 2.0**-23),
        (torch.bfloat16, 2.0**-7),
        (torch.float16, 2.0**-10),
    ):
        values = np.linalg.svd(stored.to(dtype).to(torch.float64).numpy(), compute_uv=False)
        assert rank.numerical_rank(values, (300, 200), eps) == 8
    float32 = np.linalg.svd(stored.to(torch.float32).to(torch.float64).numpy(), compute_uv=False)
    # Judged with float64's epsilon, the rounding of float32 passes for signal.
    assert rank.numerical_rank(float32, (300, 200), 2.0**-52) > 8
    assert rank.numerical_rank(float32, (300, 200), 2.0**-23) == np.linalg.matrix_rank(factors, rtol=300 * 2.0**-23)


def test_a_full_rank_matrix_keeps_its_rank_in_bfloat16():
    values = np.linalg.svd(torch.tensor(RNG.standard_normal((256, 128))).bfloat16().double().numpy(), compute_uv=False)
    assert rank.numerical_rank(values, (256, 128), 2.0**-7) == 128


@pytest.mark.parametrize("target", [1.5, 10.0, 1e4, 1e8])
@pytest.mark.parametrize("shape", [(30, 12), (12, 12), (12, 30)])
def test_ridge_brings_the_stacked_matrix_to_the_target(shape, target):
    matrix = RNG.standard_normal(shape) * 10.0 ** RNG.uniform(-3, 3)
    values = np.linalg.svd(matrix, compute_uv=False)
    counted = values if shape[0] >= shape[1] else np.append(values, 0.0)
    ridge = conditioning.ridge_for_condition(counted, target)
    stacked = np.vstack([matrix, math.sqrt(ridge) * np.eye(shape[1])])
    if ridge > 0:
        assert np.linalg.cond(stacked) == pytest.approx(target, rel=1e-6)
    else:
        assert np.linalg.cond(matrix) <= target
    with pytest.raises(ValueError, match="target"):
        conditioning.ridge_for_condition(values, 1.0)


@pytest.mark.parametrize("values", [np.zeros(4), np.zeros(0)], ids=["zero", "empty"])
def test_undefined_readings_are_none_and_not_a_number(values):
    for reading in (rank.stable_rank, rank.effective_rank, rank.participation_ratio, conditioning.condition_number):
        assert reading(values) is None
    assert rank.rank_for_energy(values, 0.9) is None
    assert rank.numerical_rank(values, (4, 4), 2.0**-23) == 0
    assert conditioning.ridge_for_condition(values, 10.0) is None


def test_singular_matrices_have_infinite_condition():
    assert conditioning.condition_number(np.array([1.0, 0.0])) == math.inf
    assert conditioning.digits_lost(math.inf) == math.inf
    assert conditioning.digits_left(math.inf, 2.0**-23) == 0.0


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2, torch.float8_e4m3fn]
)
@pytest.mark.parametrize("transposed", [False, True])
def test_fp16_shares_are_those_of_the_conversion(dtype, transposed):
    generator = torch.Generator().manual_seed(0)
    exponents = torch.empty(700, 40).uniform_(-45, 30, generator=generator)
    matrix = (2.0**exponents * torch.randn(700, 40, generator=generator).sign()).to(dtype)
    matrix[0, :5] = torch.tensor([0.0, 65504.0, 65519.99, 65520.0, 2.0**-25]).to(dtype)
    wide = torch.nan_to_num(matrix.to(torch.float64), nan=1.0, posinf=1.0, neginf=1.0)  # what such a format cannot hold
    matrix = wide.to(dtype).T if transposed else wide.to(dtype)
    entries = conditioning.inspect_entries(matrix)
    wide = matrix.to(torch.float64)
    half = wide.to(torch.float16)
    assert entries.overflow == pytest.approx(float(half.isinf().double().mean()), abs=1e-15)
    assert entries.underflow == pytest.approx(float(((half == 0) & (wide != 0)).double().mean()), abs=1e-15)
    assert (entries.nan, entries.infinite, entries.first) == (0, 0, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64])
def test_entries_that_are_not_finite_are_counted_and_placed(dtype):
    matrix = torch.zeros(3000, 500, dtype=dtype)
    matrix[2500, 7] = float("nan")
    matrix[2600, 1] = float("inf")
    matrix[2999, 499] = -float("inf")
    entries = conditioning.inspect_entries(matrix)
    assert (entries.nan, entries.infinite, entries.first) == (1, 2, (2500, 7))
    assert (entries.overflow, entries.underflow) == (0.0, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex128, torch.float8_e4m3fn])
def test_rows_and_columns_of_zeros_are_counted(dtype):
    matrix = torch.ones(1000, 300).to(dtype)
    matrix[3] = matrix[999] = 0.0
    matrix[:, 7] = -0.0
    entries = conditioning.inspect_entries(matrix)
    assert (entries.zero_rows, entries.zero_cols) == (2, 1)
    entries = conditioning.inspect_entries(matrix.T)
    assert (entries.zero_rows, entries.zero_cols) == (1, 2)


def test_storage_epsilon_of_every_format():
    assert conditioning.storage_eps("float32") == 2.0**-23
    assert conditioning.storage_eps("bfloat16") == 2.0**-7
    assert conditioning.storage_eps("float8_e4m3fn") == 2.0**-3
    assert conditioning.storage_eps("Q4_1") == 2.0**-23
    assert conditioning.storage_eps("int8") == 2.0**-23


def test_complex_formats_have_the_epsilon_of_their_parts():
    assert conditioning.storage_eps("complex128") == conditioning.storage_eps("float64") == 2.0**-52
    assert conditioning.storage_eps("complex64") == conditioning.storage_eps("Q4_1") == 2.0**-23
