"""Randomized decompositions: planted spectra, the theorems' bounds over many seeds, and what each knob is for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import eigenscope as es
from cases import SPECTRA, gaussian, orthonormal, with_spectrum
from eigenscope.errors import InputError
from eigenscope.methods.randomized import known_frobenius, randomized_svd, range_finder

SHAPES = [(40, 40), (70, 25), (25, 70), (1, 7), (7, 1)]
KINDS = [
    (torch.float64, 1.0), (torch.float64, 1e12), (torch.float64, 1e-12), (torch.float64, 1e-200),
    (torch.float32, 1.0), (torch.float32, 1e-12), (torch.complex128, 1.0),
]  # fmt: skip


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def tail(values, k):
    return float(torch.linalg.vector_norm(values[k:]))


def range_error(A, Q, norm="fro"):
    return float(torch.linalg.matrix_norm(A - Q @ (Q.mH @ A), norm))


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "scale"), KINDS, ids=str)
@pytest.mark.parametrize("krylov", [True, False])
@pytest.mark.parametrize("part", ["one", "some", "all"])
def test_triplets_are_what_they_say(name, shape, dtype, scale, krylov, part):
    values = SPECTRA[name](min(shape))
    A = (with_spectrum(*shape, values, 7, torch.complex128 if dtype.is_complex else torch.float64) * scale).to(dtype)
    before = A.clone()
    k = {"one": 1, "some": max(1, min(shape) // 4), "all": min(shape)}[part]
    result = randomized_svd(A, k, krylov=krylov, generator=seeded(1))
    assert torch.equal(A, before)
    wide = A.to(torch.complex128 if dtype.is_complex else torch.float64) / scale
    sigma, residuals, bounds = result.values / scale, result.residuals / scale, result.bounds / scale
    size = float(values[0])
    eps = torch.finfo(dtype).eps
    assert result.left.shape == (shape[0], k)
    assert result.right.shape == (shape[1], k)
    for vectors in (result.left, result.right):
        assert vectors.dtype == wide.dtype
        assert float((vectors.mH @ vectors - torch.eye(k, dtype=wide.dtype)).abs().max()) < 1e-13
    again = torch.maximum(
        torch.linalg.vector_norm(wide @ result.right - result.left * sigma, dim=0),
        torch.linalg.vector_norm(wide.mH @ result.left - result.right * sigma, dim=0),
    )
    rounding = 4 * math.sqrt(max(shape)) * eps * size
    assert torch.all(again <= bounds)
    assert torch.all((again - residuals).abs() <= rounding)
    assert torch.all(result.converged == (result.residuals <= 1e-6 * result.values[0]))
    # A projection of A: no value is too large, but by rounding; and one lies within each bound.
    assert torch.all(sigma <= values[:k] + rounding)
    assert torch.all((sigma.unsqueeze(1) - values).abs().min(dim=1).values <= bounds + rounding)
    assert torch.all(sigma[:-1] >= sigma[1:])
    assert result.complete == (k == min(shape))
    if part == "all":
        assert torch.all((sigma - values).abs() <= rounding)
        assert bool(result.converged.all()) or eps > 1e-10
    assert result.frobenius / scale == pytest.approx(float(torch.linalg.vector_norm(values)), rel=1e-6, abs=1e-300)
    assert result.seed == 1


@pytest.mark.parametrize("name", ["decaying", "polynomial", "repeated", "rank-deficient"])
@pytest.mark.parametrize("krylov", [True, False])
def test_leading_values_are_accurate_with_power_and_not_without(name, krylov):
    """Negative test of the power iterations: without them the values miss by more than with them is promised."""
    values = SPECTRA[name](200)
    A = with_spectrum(240, 200, values, 3)
    k = 8

    def wrong(power):
        runs = [randomized_svd(A, k, power=power, krylov=krylov, generator=seeded(s)).values for s in range(5)]
        return np.mean([float(((values[:k] - found) / values[:k]).max()) for found in runs])

    promised = 1e-3 if name != "decaying" or krylov else 1e-2
    assert wrong(4) < promised < 10 * promised < wrong(0)
    assert wrong(4) < wrong(1) < wrong(0)


def test_a_spike_under_noise_is_found_with_power_only():
    """Slow decay, many columns: five values twice the noise edge."""
    noise = gaussian(300, 200, 1) / math.sqrt(300)
    spikes = with_spectrum(300, 200, torch.full((5,), 3.6, dtype=torch.float64), 2)
    truth = torch.linalg.svd(noise + spikes)
    right = truth[2][:5].mH

    def captured(power):
        found = randomized_svd(noise + spikes, 5, oversampling=5, power=power, generator=seeded(0)).right
        return float((right.T @ found).square().sum()) / 5

    assert captured(3) > 0.999
    assert captured(0) < 0.9


@pytest.mark.parametrize("krylov", [True, False])
def test_oversampling_helps(krylov):
    A = with_spectrum(100, 80, SPECTRA["polynomial"](80), 3)

    def error(oversampling):
        runs = [
            randomized_svd(A, 10, oversampling=oversampling, power=1, krylov=krylov, generator=seeded(s))
            for s in range(8)
        ]
        return np.mean([float(run.residuals.max()) for run in runs])

    assert error(10) < 0.5 * error(0)


def test_krylov_is_more_accurate_for_the_same_products():
    exact = torch.linspace(1, 0.5, 200, dtype=torch.float64)
    A = with_spectrum(250, 200, exact, 4)
    krylov = randomized_svd(A, 8, power=6, krylov=True, generator=seeded(0))
    subspace = randomized_svd(A, 8, power=6, krylov=False, generator=seeded(0))
    narrow = randomized_svd(A, 8, power=6, block=6, generator=seeded(0))
    assert krylov.products == subspace.products == narrow.products == 14 * 18 + 8
    errors = [float((exact[:8] - result.values).max()) for result in (narrow, krylov, subspace)]
    assert errors[0] < 0.1 * errors[1]
    assert errors[1] < 0.1 * errors[2]


def test_a_narrow_block_misses_copies_of_a_value():
    values = torch.cat([torch.ones(12), torch.full((28,), 0.3)]).to(torch.float64)
    A = with_spectrum(60, 40, values, 5)
    wide = randomized_svd(A, 12, generator=seeded(0))
    assert torch.allclose(wide.values, torch.ones(12, dtype=torch.float64))
    narrow = randomized_svd(A, 12, block=4, power=0, oversampling=4, generator=seeded(0))
    assert int((narrow.values > 0.99).sum()) < 12


def test_small_values_are_lost_without_orthonormalisation_between_passes():
    """(AAᴴ)ᵠAΩ in floating point holds nothing below eps^(1/(2q+1))·σ₁; the QR factorisations keep it."""
    values = torch.logspace(0, -10, 11, dtype=torch.float64)
    A = with_spectrum(60, 40, values, 6)
    omega = torch.randn(40, 11, dtype=torch.float64, generator=seeded(0))
    naive = A @ omega
    for _ in range(3):
        naive = A @ (A.T @ naive)
    assert range_error(A, torch.linalg.qr(naive)[0], 2) > 1e-5
    assert range_error(A, range_finder(A, 11, power=3, generator=seeded(0)), 2) < 1e-14
    for krylov in (True, False):
        found = randomized_svd(A, 11, oversampling=0, power=3, krylov=krylov, generator=seeded(0)).values
        assert torch.allclose(found, values, rtol=1e-4, atol=0)


@pytest.mark.parametrize("krylov", [True, False])
def test_values_below_the_root_of_eps_survive_the_small_decomposition(krylov):
    """A Gram matrix of B would hold nothing below 1e-8·σ₁."""
    values = torch.logspace(0, -12, 40, dtype=torch.float64)
    A = with_spectrum(60, 50, values, 6)
    found = randomized_svd(A, 35, oversampling=3, power=1, krylov=krylov, generator=seeded(0)).values
    assert torch.allclose(found[:30], values[:30], rtol=1e-3, atol=0)
    squared = torch.linalg.eigvalsh(A.T @ A).flip(0).clamp(min=0).sqrt()
    assert not torch.allclose(squared[:30], values[:30], rtol=0.1, atol=0)


@pytest.mark.parametrize("name", ["flat", "decaying", "polynomial", "repeated", "clustered"])
@pytest.mark.parametrize("shape", [(60, 50), (50, 60)])
@pytest.mark.parametrize(("k", "p"), [(5, 2), (5, 10), (12, 4)])
def test_expected_error_obeys_halko_martinsson_and_tropp(name, shape, k, p):
    """Theorems 10.5 and 10.6 in expectation, without power iterations; the mean over seeds has four standard errors."""
    values = SPECTRA[name](50)
    A = with_spectrum(*shape, values, 8)
    bases = [range_finder(A, k + p, power=0, generator=seeded(s)) for s in range(40)]
    frobenius = np.array([range_error(A, Q) for Q in bases])
    spectral = np.array([range_error(A, Q, 2) for Q in bases])
    bound = math.sqrt(1 + k / (p - 1)) * tail(values, k)
    assert frobenius.mean() <= bound + 4 * frobenius.std() / math.sqrt(40)
    bound = (1 + math.sqrt(k / (p - 1))) * float(values[k]) + math.e * math.sqrt(k + p) / p * tail(values, k)
    assert spectral.mean() <= bound + 4 * spectral.std() / math.sqrt(40)


@pytest.mark.parametrize("power", [1, 2, 4])
def test_power_scheme_obeys_its_corollary(power):
    """Corollary 10.10; and the same bound is broken without the power iterations, so it says something."""
    values, k, p = SPECTRA["polynomial"](60), 5, 8
    A = with_spectrum(80, 60, values, 9)
    high = values ** (2 * power + 1)
    inner = (1 + math.sqrt(k / (p - 1))) * float(high[k]) + math.e * math.sqrt(k + p) / p * tail(high, k)
    bound = inner ** (1 / (2 * power + 1))
    errors = [range_error(A, range_finder(A, k + p, power=power, generator=seeded(s)), 2) for s in range(30)]
    assert np.mean(errors) <= bound
    krylov = [
        range_error(A, range_finder(A, k + p, power=power, krylov=True, generator=seeded(s)), 2) for s in range(5)
    ]
    assert np.mean(krylov) < 0.9 * np.mean(errors)


def test_range_finder_gives_an_orthonormal_basis_of_the_size_asked_for():
    A = with_spectrum(50, 30, SPECTRA["one"](30), 1)
    for krylov, width in ((False, 8), (True, 24)):
        Q = range_finder(A, 8, krylov=krylov, generator=seeded(0))
        assert Q.shape == (50, width)
        assert float((Q.T @ Q - torch.eye(width, dtype=torch.float64)).abs().max()) < 1e-13
        assert range_error(A, Q) < 1e-14
    assert range_finder(A, 12, power=4, krylov=True, generator=seeded(0)).shape == (50, 30)
    assert range_finder(A.float(), 3, generator=seeded(0)).dtype == torch.float32


@pytest.mark.parametrize("build", ["dense", "sparse", "low rank", "product", "gram"])
def test_any_operator(build):
    left, right = gaussian(70, 6, 1), gaussian(60, 6, 2)
    A = left @ right.T
    operator = {
        "dense": lambda: es.Dense(A),
        "sparse": lambda: es.Sparse(scipy.sparse.csr_array(A.numpy())),
        "low rank": lambda: es.LowRank(left, right),
        "product": lambda: es.Dense(left) @ es.Dense(right.T.contiguous()),
        "gram": lambda: es.Dense(A).gram(),
    }[build]()
    result = randomized_svd(operator, 6, generator=seeded(0))
    exact = torch.linalg.svdvals(A)[:6]
    if build == "gram":
        exact = exact**2
    assert torch.allclose(result.values, exact, rtol=1e-12)
    assert bool(result.converged.all())
    known = build in ("dense", "sparse", "low rank")
    assert result.frobenius == (pytest.approx(float(torch.linalg.vector_norm(A)), rel=1e-12) if known else None)
    assert result.products == 6 * 16 + 6


def test_known_norm_counts_duplicates_once_and_leaves_them():
    matrix = scipy.sparse.coo_array((np.array([1.0, 2.0]), (np.array([0, 0]), np.array([1, 1]))), shape=(2, 3)).tocsr()
    duplicated = scipy.sparse.csr_array((np.array([1.0, 2.0]), np.array([1, 1]), np.array([0, 2, 2])), shape=(2, 3))
    operator = es.Sparse(duplicated)
    assert known_frobenius(operator) == 3.0
    assert operator.matrix.nnz == 2
    assert known_frobenius(es.Sparse(matrix)) == 3.0
    core = torch.tensor([2.0, -1.0], dtype=torch.float64)
    frames = orthonormal(9, 2, 1), orthonormal(8, 2, 2)
    assert known_frobenius(es.LowRank(*frames, core)) == pytest.approx(math.sqrt(5))
    assert known_frobenius(es.Dense(torch.zeros(0, 3))) == 0.0


def test_same_seed_same_bits_fresh_seed_recorded_and_global_generator_untouched():
    A = gaussian(50, 30, 3)
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    first, second = (randomized_svd(A, 5) for _ in range(2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert first.seed != second.seed
    again = randomized_svd(A, 5, generator=seeded(first.seed))
    for name in ("values", "left", "right", "residuals"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(second, name))


def test_tolerance_moves_the_flags_alone():
    A = gaussian(60, 40, 3)
    loose, strict = (randomized_svd(A, 5, tol=tol, generator=seeded(0)) for tol in (0.5, 1e-15))
    assert torch.equal(loose.values, strict.values)
    assert bool(loose.converged.all())
    assert not bool(strict.converged.any())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda A: randomized_svd(A, 0), "k = 0"),
        (lambda A: randomized_svd(A, 13), "1 ≤ k ≤ 12"),
        (lambda A: randomized_svd(A, 2, oversampling=-1), "oversampling = -1"),
        (lambda A: randomized_svd(A, 2, power=-1), "power = -1"),
        (lambda A: randomized_svd(A, 2, tol=-1.0), "tol = -1"),
        (lambda A: randomized_svd(A, 2, tol=float("nan")), "tol = nan"),
        (lambda A: randomized_svd(A, 2, block=0), "block = 0"),
        (lambda A: randomized_svd(A, 2, block=13), "block ≤ 12"),
        (lambda A: randomized_svd(A, 2, block=2, krylov=False), "krylov=True"),
        (lambda A: randomized_svd(A * float("inf"), 2), "infinite"),
        (lambda A: randomized_svd(es.Dense(A * float("nan")), 2), "NaN"),
        (lambda A: range_finder(A, 0), "size = 0"),
        (lambda A: range_finder(A, 13), "1 ≤ size ≤ 12"),
        (lambda A: range_finder(A, 3, power=-2), "power = -2"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call(gaussian(30, 12, 0))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    m=st.integers(1, 14), n=st.integers(1, 14), k=st.integers(1, 14), p=st.integers(0, 5), power=st.integers(0, 3),
    krylov=st.booleans(), rank=st.integers(0, 14), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape_rank_and_sketch(m, n, k, p, power, krylov, rank, seed):
    k, rank = min(k, m, n), min(rank, m, n)
    A = gaussian(m, rank, seed) @ gaussian(rank, n, seed + 1)
    result = randomized_svd(A, k, oversampling=p, power=power, krylov=krylov, generator=seeded(seed))
    exact = torch.linalg.svdvals(A)
    size = float(exact[0]) + 1e-300
    for vectors in (result.left, result.right):
        assert float((vectors.mH @ vectors - torch.eye(k, dtype=torch.float64)).abs().max()) < 1e-12
    assert torch.all(result.values <= exact[:k] + 1e-13 * size)
    assert torch.all((result.values.unsqueeze(1) - exact).abs().min(dim=1).values <= result.bounds + 1e-13 * size)
    if rank <= k + p:
        assert torch.all((result.values - exact[:k]).abs() <= 1e-10 * size)
    transposed = randomized_svd(A.T, k, oversampling=p, power=power, krylov=krylov, generator=seeded(seed))
    if m != n:  # the same computation, sides exchanged
        assert torch.equal(transposed.values, result.values)
        assert torch.equal(transposed.left, result.right)
