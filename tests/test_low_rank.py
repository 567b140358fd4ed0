"""An error asked for is an error had, at nearly the least rank; and matrices read once or twice, a block of rows at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import eigenscope as es
from cases import SPECTRA, gaussian, with_spectrum
from eigenscope.errors import InputError
from eigenscope.methods.adaptive import (
    NORM_ALPHA,
    NORM_FAILURE,
    PROBES,
    SAMPLED_FACTOR,
    SAMPLED_FAILURE,
    _Basis,
    _Spectral,
    adaptive_svd,
)
from eigenscope.methods.recurrence import Products
from eigenscope.methods.streaming import single_pass_svd, two_pass_svd

NORMS = {"frobenius": "fro", "spectral": 2}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def wide(A):
    return A.to(torch.complex128 if A.is_complex() else torch.float64)


def approximation(result):
    return (result.spectrum.left * result.spectrum.values) @ result.spectrum.right.mH


def tails(values, norm):
    """Error of the best approximation of rank 0, 1, …"""
    if norm == "spectral":
        return torch.cat([values, torch.zeros(1, dtype=torch.float64)])
    return torch.cat([values.square().flip(0).cumsum(0).flip(0), torch.zeros(1, dtype=torch.float64)]).sqrt()


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("shape", [(90, 60), (60, 90)], ids=str)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("error", [0.29, 0.011, 1e-4, 1e-9])
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(torch.float64, 1.0), (torch.float64, 1e12), (torch.float64, 1e-12), (torch.float32, 1.0), (torch.complex128, 1.0)],
    ids=str,
)  # fmt: skip
def test_error_asked_is_error_had_at_nearly_the_least_rank(name, shape, norm, error, dtype, scale):
    values = SPECTRA[name](60)
    A = with_spectrum(*shape, values, 1, dtype) * scale
    before = A.clone()
    result = adaptive_svd(A, error=error, norm=norm, block=8, generator=seeded(2))
    assert torch.equal(A, before)
    true = float(torch.linalg.matrix_norm(wide(A) / scale - approximation(result) / scale, NORMS[norm]))
    size = float(tails(values, norm)[0])
    assert true <= result.bound / scale
    possible = dtype != torch.float32 or error > 5e-5
    if possible:
        assert result.met
        assert true <= error * size
        least = int((tails(values, norm) > error * size).sum())
        # The spectral bound is some 1.15 times the norm: the rank is that of a smaller error.
        most = int((tails(values, norm) > error * size / 1.25).sum()) if norm == "spectral" else least
        assert least <= len(result.spectrum) <= most + 3 + least // 20
        assert result.least_rank <= least
    rank = len(result.spectrum)
    eye = torch.eye(rank, dtype=wide(A).dtype)
    for vectors in (result.spectrum.left, result.spectrum.right):
        assert torch.all((vectors.mH @ vectors - eye).abs() < 1e-13)
    rounding = 4 * math.sqrt(90) * torch.finfo(dtype).eps * size
    if norm == "frobenius":
        assert result.error / scale == pytest.approx(true, rel=0.5, abs=rounding)
    else:
        assert result.error / scale <= true + rounding
    assert result.failure <= 20 * SAMPLED_FAILURE
    assert result.spectrum.seed == 2


def test_an_error_that_rounding_forbids_is_not_said_to_be_met():
    A = with_spectrum(60, 40, SPECTRA["polynomial"](40), 1).float()
    for norm in NORMS:
        result = adaptive_svd(A, error=1e-9, norm=norm, generator=seeded(0))
        assert not result.met
        assert "not met" in result.spectrum.reason
    assert adaptive_svd(A.double(), error=1e-9, generator=seeded(0)).met


def test_slow_decay_needs_the_basis_improved_and_the_rank_certified_itself():
    """Without either the rank is what blocks of random directions and a sum of two bounds allow: far above the least."""
    values = torch.linspace(1, 0.3, 200, dtype=torch.float64)
    A = with_spectrum(220, 200, values, 1)
    result = adaptive_svd(A, error=0.6, block=16, generator=seeded(0))
    least = int((tails(values, "frobenius") > 0.6 * float(torch.linalg.vector_norm(values))).sum())
    assert result.met
    assert least <= len(result.spectrum) <= 1.02 * least
    values = torch.cat([torch.linspace(1, 0.9, 4), torch.linspace(0.75, 0.3, 196)]).to(torch.float64)
    A = with_spectrum(220, 200, values, 1)
    result = adaptive_svd(A, error=0.8, norm="spectral", block=16, generator=seeded(0))
    assert result.met
    assert 4 <= len(result.spectrum) <= 45
    assert float(torch.linalg.matrix_norm(A - approximation(result), 2)) <= result.bound <= 0.8


@pytest.mark.parametrize("norm", NORMS)
def test_largest_rank_is_kept_to_and_said_to_fall_short(norm):
    A = with_spectrum(80, 60, SPECTRA["polynomial"](60), 1)
    full = adaptive_svd(A, error=0.05, norm=norm, generator=seeded(0))
    short = adaptive_svd(A, error=0.05, norm=norm, max_rank=5, block=4, generator=seeded(0))
    assert full.met
    assert not short.met
    assert len(short.spectrum) == 5
    true = float(torch.linalg.matrix_norm(A - approximation(short), NORMS[norm]))
    assert true <= short.bound
    enough = adaptive_svd(A, error=0.05, norm=norm, max_rank=len(full.spectrum) + 20, generator=seeded(0))
    assert enough.met


def test_bookkeeping_alone_would_certify_what_is_not_so():
    """‖A‖² − ‖B‖² says 0 at √eps·‖A‖ already: the error there is measured by probes."""
    values = torch.logspace(0, -12, 60, dtype=torch.float64)
    A = with_spectrum(80, 60, values, 1)
    result = adaptive_svd(A, error=1e-10, block=5, generator=seeded(0))
    size = float(torch.linalg.vector_norm(values))
    # What the difference of squares cannot tell from 0: a rank of 40 would do.
    assert (
        float(size**2 - (values[:40] ** 2).sum()) < 1e-15 < 1e-10 * size < float(torch.linalg.vector_norm(values[40:]))
    )
    assert result.met
    assert 48 <= len(result.spectrum) <= 54
    assert result.failure > 0.0
    slow = with_spectrum(80, 60, SPECTRA["polynomial"](60), 1)
    assert adaptive_svd(slow, error=0.1, block=5, generator=seeded(0)).failure == 0.0


def test_chance_of_failure_of_the_sampled_norm_is_no_less_than_simulated():
    """On the hardest matrix, of rank one, with fewer probes, so that failures can be seen."""
    probes, factor = 4, 2.0
    bound = (math.exp(1 - factor**-2) / factor**2) ** (probes / 2)
    draws = np.random.default_rng(0).standard_normal((200_000, probes))
    seen = np.mean(factor * np.sqrt((draws**2).mean(axis=1)) < 1.0)
    assert 0.2 * bound < seen < bound
    stated = (math.exp(1 - SAMPLED_FACTOR**-2) / SAMPLED_FACTOR**2) ** (PROBES / 2)
    assert stated == pytest.approx(SAMPLED_FAILURE)
    # Halko et al., Lemma 4.1, for the spectral norm: P(α√(2/π)·max|gᵢ| < 1) ≤ α^−q.
    seen = np.mean(3.0 * math.sqrt(2 / math.pi) * np.abs(draws).max(axis=1) < 1.0)
    assert 0.2 * 3.0**-4 < seen < 3.0**-4


def test_spectral_bound_has_its_factor_and_no_more():
    """Of a matrix of rank one it is σ·(α√(2/π)·max|gᵢ|)^(1/15) for 16 standard normal gᵢ."""
    A = es.Dense(with_spectrum(30, 20, torch.tensor([0.1], dtype=torch.float64), 3))
    ratios = []
    for seed in range(50):
        basis = _Basis.empty(Products(A), 1, 20, seeded(seed))
        ratios.append(_Spectral(basis).rest().bound * basis.products.scale / 0.1)
    lowest, highest = ((NORM_ALPHA * math.sqrt(2 / math.pi) * g) ** (1 / 15) for g in (0.8, 4.5))
    assert all(lowest < ratio < highest for ratio in ratios)


def test_operators_need_their_norm_only_for_the_frobenius_error():
    A = with_spectrum(50, 40, SPECTRA["decaying"](40), 1)
    operator = es.Dense(A) @ es.Dense(torch.eye(40, dtype=torch.float64))
    with pytest.raises(InputError, match="Pass frobenius="):
        adaptive_svd(operator, error=0.1)
    size = float(torch.linalg.vector_norm(A))
    given_it = adaptive_svd(operator, error=0.1, frobenius=size, generator=seeded(0))
    same = adaptive_svd(A, error=0.1, generator=seeded(0))
    assert torch.allclose(given_it.spectrum.values, same.spectrum.values)
    assert adaptive_svd(operator, error=0.1, norm="spectral", generator=seeded(0)).met
    sparse = es.Sparse(scipy.sparse.csr_array(A.numpy()))
    assert len(adaptive_svd(sparse, error=0.1, generator=seeded(0)).spectrum) == len(same.spectrum)


def test_seeds_of_the_adaptive_and_streamed_methods():
    A = gaussian(40, 30, 1)
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    for call in (
        lambda g: adaptive_svd(A, error=0.3, generator=g),
        lambda g: adaptive_svd(A, error=0.5, norm="spectral", generator=g),
        lambda g: single_pass_svd(A.split(7), 30, 4, generator=g),
        lambda g: two_pass_svd(lambda: A.split(7), 30, 4, generator=g),
    ):
        first, second = call(None), call(None)
        again = call(seeded(first.spectrum.seed))
        assert first.spectrum.seed != second.spectrum.seed
        assert torch.equal(first.spectrum.right, again.spectrum.right)
        assert (first.error, first.bound) == (again.error, again.bound)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"error": 0.0}, "error = 0"), ({"error": 1.0}, "error = 1"), ({"error": float("nan")}, "error = nan"),
        ({"error": 0.1, "norm": "nuclear"}, "unknown norm"), ({"error": 0.1, "block": 0}, "block = 0"),
        ({"error": 0.1, "max_rank": 0}, "max_rank = 0"),
    ],
)  # fmt: skip
def test_bad_arguments_of_adaptive_svd_are_named(options, message):
    with pytest.raises(InputError, match=message):
        adaptive_svd(torch.eye(4), **options)


# Streams of rows


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("shape", [(90, 40), (40, 90), (3, 50), (50, 3), (1, 6), (6, 1)], ids=str)
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(torch.float64, 1.0), (torch.float64, 1e12), (torch.float64, 1e-200), (torch.float32, 1.0), (torch.complex128, 1.0)],
    ids=str,
)  # fmt: skip
def test_streamed_triplets_are_what_they_say(name, shape, k, dtype, scale):
    k = min(k, *shape)
    values = SPECTRA[name](min(shape))
    A = with_spectrum(*shape, values, 3, dtype).to(torch.float64 if scale != 1.0 else dtype) * scale
    for passes in (1, 2, 4):
        if passes == 1:
            result = single_pass_svd(iter(A.split(7)), shape[1], k, generator=seeded(0))
        else:
            result = two_pass_svd(
                lambda: iter(A.split(7)), shape[1], k, passes=passes, oversampling=4, generator=seeded(0)
            )
        spectrum = result.spectrum
        rest = wide(A) / scale - (spectrum.left * (spectrum.values / scale)) @ spectrum.right.mH
        true = float(torch.linalg.vector_norm(rest))
        size = float(torch.linalg.vector_norm(values))
        sigma = spectrum.values / scale
        made = 1e-6 * size if dtype == torch.float32 else 1e-14 * size
        assert true <= result.bound / scale
        assert torch.all((sigma - values[:k]).abs() <= spectrum.bounds / scale + made)
        assert spectrum.frobenius / scale == pytest.approx(size, rel=1e-6, abs=1e-300)
        assert spectrum.shape == shape
        eye = torch.eye(k, dtype=wide(A).dtype)
        for vectors in (spectrum.left, spectrum.right):
            assert float((vectors.mH @ vectors - eye).abs().max()) < 1e-13
        if passes == 1:
            assert spectrum.residuals is None
            assert result.failure == SAMPLED_FAILURE
        else:
            assert result.error / scale == pytest.approx(true, rel=1e-6, abs=1e-13 * size)
            again = torch.linalg.vector_norm(wide(A).mH @ spectrum.left / scale - spectrum.right * sigma, dim=0)
            assert torch.all(again <= spectrum.bounds / scale)
            assert torch.all(
                torch.linalg.vector_norm(wide(A) @ spectrum.right / scale - spectrum.left * sigma, dim=0) < 1e-13
            )


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_one_pass_is_exact_up_to_the_rank_of_its_sketch(rank):
    values = torch.linspace(2, 1, rank, dtype=torch.float64)
    A = with_spectrum(70, 50, values, 4)
    result = single_pass_svd(A.split(11), 50, rank, sketch=rank, generator=seeded(0))
    assert float(torch.linalg.vector_norm(A - approximation(result))) < 1e-11
    assert result.error < 1e-11
    # One column fewer cannot hold it.
    if rank > 1:
        less = single_pass_svd(A.split(11), 50, rank - 1, sketch=rank - 1, generator=seeded(0))
        assert less.error > 0.5


@pytest.mark.parametrize("name", ["flat", "decaying", "polynomial", "clustered"])
@pytest.mark.parametrize("sketch", [5, 9, 17])
def test_expected_error_obeys_tropp_and_others(name, sketch):
    """Theorem 5.1 for the approximation before it is cut, here k = the sketch: then nothing is cut."""
    values = SPECTRA[name](50)
    A = with_spectrum(60, 50, values, 5)
    runs = [single_pass_svd(A.split(20), 50, sketch, sketch=sketch, generator=seeded(s)) for s in range(40)]
    squares = np.array([float(torch.linalg.vector_norm(A - approximation(run))) ** 2 for run in runs])
    core = 2 * sketch + 1
    bound = min(
        (core - 1) / (core - sketch - 1) * (sketch + j - 1) / (sketch - j - 1) * float((values[j:] ** 2).sum())
        for j in range(sketch - 1)
    )
    assert squares.mean() <= bound + 4 * squares.std() / math.sqrt(40)
    # The estimate of the error is unbiased in the square, and never beyond its bound here.
    estimates = np.array([run.error**2 for run in runs])
    ratio = estimates / squares
    assert abs(ratio.mean() - 1.0) < 5 * ratio.std() / math.sqrt(40)
    assert all(math.sqrt(square) <= run.bound for square, run in zip(squares, runs, strict=True))


def test_triplets_beyond_the_rank_are_converged_zeros():
    A = with_spectrum(60, 40, torch.tensor([1.0, 1e-3], dtype=torch.float64), 3)
    spectrum = two_pass_svd(lambda: A.split(7), 40, 6, tol=1e-12, generator=seeded(0)).spectrum
    assert bool(spectrum.converged.all())
    assert torch.all(spectrum.residuals < 1e-14)
    assert torch.all(spectrum.values[2:] < 1e-14)


def test_a_larger_sketch_and_a_second_pass_help():
    A = with_spectrum(100, 80, SPECTRA["polynomial"](80), 6)
    best = float(torch.linalg.vector_norm(SPECTRA["polynomial"](80)[5:]))

    def error(**options):
        return np.mean([single_pass_svd(A.split(9), 80, 5, generator=seeded(s), **options).error for s in range(8)])

    twice = [
        np.mean([two_pass_svd(lambda: A.split(9), 80, 5, passes=p, generator=seeded(s)).error for s in range(8)])
        for p in (2, 4)
    ]
    assert error(sketch=6) > error() > error(sketch=60) > 0.95 * best
    assert error() > 1.1 * best
    assert best <= twice[1] * (1 + 1e-9) <= twice[0] < 1.02 * best
    assert twice[1] < 1.0001 * best


def test_blocks_of_any_kind_and_size():
    A = gaussian(20, 8, 7)
    whole = two_pass_svd(lambda: [A], 8, 8, generator=seeded(0)).spectrum
    parts = [A[:0], A[:1].numpy(), scipy.sparse.csr_array(A[1:9].numpy()), es.Dense(A[9:])]
    pieces = two_pass_svd(lambda: parts, 8, 8, generator=seeded(0)).spectrum
    assert torch.allclose(whole.values, pieces.values)
    assert torch.allclose(whole.values, torch.linalg.svdvals(A))
    halves = two_pass_svd(lambda: [A.to(torch.bfloat16)], 8, 8, generator=seeded(0)).spectrum
    assert torch.allclose(halves.values, torch.linalg.svdvals(A.to(torch.bfloat16).double()))
    once = single_pass_svd(iter(parts), 8, 8, generator=seeded(0))
    assert torch.allclose(once.spectrum.values, whole.values)


def blocks_that_change():
    counts = iter((5, 6))
    return lambda: [torch.ones(next(counts), 3)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: single_pass_svd([], 3, 1), "0 rows came"),
        (lambda: single_pass_svd([torch.ones(1, 3)], 3, 2), "1 rows came.*at least k = 2"),
        (lambda: single_pass_svd([torch.ones(1, 3)], 3, 4), "k = 4"),
        (lambda: single_pass_svd([torch.ones(4, 3)], 3, 2, sketch=1), "sketch = 1"),
        (lambda: single_pass_svd([torch.ones(4, 3), torch.ones(4, 2)], 3, 2), r"block 1 is of shape \(4, 2\)"),
        (lambda: single_pass_svd([torch.ones(4, 3), torch.ones(4, 3) * math.nan], 3, 2), "NaN"),
        (lambda: single_pass_svd([torch.ones(4, 3), torch.ones(4, 3) * 1j], 3, 2), "block 1 is torch.complex128"),
        (lambda: two_pass_svd(list, 3, 1), "0 rows came"),
        (lambda: two_pass_svd(lambda: [torch.ones(4, 3)], 3, 1, passes=1), "passes = 1"),
        (lambda: two_pass_svd(lambda: [torch.ones(4, 3)], 3, 4), "k = 4"),
        (lambda: two_pass_svd(lambda: [torch.ones(4, 3)], 3, 1, oversampling=-1), "oversampling = -1"),
        (lambda: two_pass_svd(blocks_that_change(), 3, 1), "5 rows came before, 6 in pass 2"),
    ],
)
def test_bad_streams_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_empty_matrices_are_refused(shape):
    with pytest.raises(InputError, match=r"min\(m, n\) = 0"):
        adaptive_svd(torch.zeros(shape), error=0.1)


def test_probability_that_the_spectral_bound_fails_is_stated():
    result = adaptive_svd(gaussian(50, 40, 1), error=0.5, norm="spectral", generator=seeded(0))
    assert NORM_FAILURE <= result.failure <= 20 * NORM_FAILURE


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    m=st.integers(1, 12), n=st.integers(1, 12), rank=st.integers(0, 12), block=st.integers(1, 5), seed=st.integers(0, 99),
    norm=st.sampled_from(["frobenius", "spectral"]), error=st.floats(1e-8, 0.9),
)  # fmt: skip
def test_any_shape_and_error(m, n, rank, block, seed, norm, error):
    rank = min(rank, m, n)
    A = gaussian(m, rank, seed) @ gaussian(rank, n, seed + 1)
    result = adaptive_svd(A, error=error, norm=norm, block=block, generator=seeded(seed))
    true = float(torch.linalg.matrix_norm(A - approximation(result), NORMS[norm]))
    assert result.met
    assert true <= result.bound <= error * float(torch.linalg.matrix_norm(A, NORMS[norm])) * (1 + 1e-12)
    assert len(result.spectrum) <= rank
