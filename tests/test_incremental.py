"""Updated decompositions against batch ones, the bound on what updating lost, and angles between subspaces."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import eigenscope as es
from cases import SPECTRA, gaussian, orthonormal, symmetric_with_spectrum, with_spectrum
from eigenscope.errors import InputError
from eigenscope.methods.incremental import IncrementalSVD
from eigenscope.methods.subspaces import angle_bound, overlap, principal_angles

EPS = 2.0**-52


def rows_of(A, size, k, **options):
    svd = IncrementalSVD(k, **options)
    for block in A.split(size):
        svd.append_rows(block)
    return svd


def rest(A, svd):
    result = svd.spectrum()
    if svd.centred:
        A = A - A.mean(dim=0)
    return A - (result.left * result.values) @ result.right.mH


def assert_sound(A, svd):
    """Everything a result says of itself, against the whole matrix."""
    result = svd.spectrum()
    wide = A.to(torch.complex128 if A.is_complex() else torch.float64)
    whole = wide - wide.mean(dim=0) if svd.centred else wide
    sigma = torch.linalg.svdvals(whole)
    size = float(sigma[0])
    k = len(result)
    assert result.shape == tuple(A.shape) == svd.shape
    assert k == min(svd.k, A.shape[0] - svd.centred, A.shape[1])
    identity = torch.eye(k, dtype=wide.dtype)
    for vectors in (result.left, result.right):
        assert torch.all((vectors.mH @ vectors - identity).abs() < 1e-12)
    error = float(torch.linalg.vector_norm(rest(wide, svd)))
    assert error <= svd.error_bound + 1e-14 * size
    assert torch.all((result.values - sigma[:k]).abs() <= result.bounds + 1e-14 * size)
    assert torch.all(result.values[:-1] >= result.values[1:])
    assert result.frobenius == pytest.approx(float(torch.linalg.vector_norm(whole)), rel=1e-10, abs=1e-300)
    if svd.centred:
        assert torch.allclose(svd.mean, wide.mean(dim=0), rtol=1e-10, atol=1e-12 * size)
    return error


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("shape", [(24, 24), (40, 12), (12, 40), (1, 7), (7, 1)], ids=str)
@pytest.mark.parametrize("k", [1, 4, 60])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(torch.float64, 1.0), (torch.float64, 1e12), (torch.float64, 1e-12), (torch.float32, 1.0), (torch.complex128, 1.0)],
    ids=str,
)  # fmt: skip
def test_rows_and_columns_of_every_spectrum(name, shape, k, centred, dtype, scale):
    A = with_spectrum(*shape, SPECTRA[name](min(shape)), 3, dtype) * scale
    before = A.clone()
    by_rows = rows_of(A, 5, k, centred=centred)
    assert_sound(A, by_rows)
    by_cols = IncrementalSVD(k, centred=centred)
    for block in A.split(5, dim=1):
        by_cols.append_cols(block)
    assert_sound(A, by_cols)
    mixed = IncrementalSVD(k, centred=centred)
    m, n = shape[0] // 2 + 1, shape[1] // 2 + 1
    mixed.append_rows(A[:m, :n]).append_cols(A[:m, n:]).append_rows(A[m:])
    assert_sound(A, mixed)
    assert torch.equal(A, before)


@pytest.mark.parametrize("centred", [False, True])
def test_error_bound_is_the_error_while_only_rows_come(centred):
    A = gaussian(60, 20, 1) + 3.0
    svd = rows_of(A, 7, 6, centred=centred)
    error = float(torch.linalg.vector_norm(rest(A, svd)))
    assert svd.error_bound == pytest.approx(error, rel=1e-10)
    best = float(torch.linalg.vector_norm(torch.linalg.svdvals(A - A.mean(dim=0) if centred else A)[6:]))
    assert best < error < 1.2 * best


def test_changing_direction_needs_the_triangle_inequality():
    """The parts cut off by rows and by columns are not orthogonal: the root of their squares is less than the error."""
    rows = torch.tensor([[-1.0, 0.0], [1.0, -2.0], [-2.0, -1.0]], dtype=torch.float64)
    cols = torch.tensor([[-1.0], [-2.0], [-2.0]], dtype=torch.float64)
    last = torch.tensor([[-1.0, -2.0, 1.0]], dtype=torch.float64)
    svd, bounds = rows_of(rows, 1, 1), [0.0]
    bounds.append(svd.error_bound)
    bounds.append(svd.append_cols(cols).error_bound)
    bounds.append(svd.append_rows(last).error_bound)
    error = assert_sound(torch.cat([torch.cat([rows, cols], dim=1), last]), svd)
    assert math.hypot(*np.diff(bounds)) < 0.9 * error
    assert error <= svd.error_bound < 2 * error


def test_nothing_is_lost_where_the_rank_is_kept():
    A = with_spectrum(50, 30, torch.logspace(0, -8, 5, dtype=torch.float64), 2)
    batch = es.svd(A, 5, method="lapack")
    for svd in (rows_of(A, 3, 5), rows_of(A, 50, 5)):
        assert svd.error_bound < 1e-12
        result = svd.spectrum()
        assert torch.allclose(result.values, batch.values, rtol=0, atol=1e-13)
        assert bool(result.converged.all())
        assert float(principal_angles(result.right[:, :3], batch.right[:, :3]).max()) < 1e-7
    # The knob: one value fewer loses what it held, and says so.
    short = rows_of(A, 3, 4)
    assert short.error_bound == pytest.approx(1e-8, rel=1e-3)
    assert not bool(rows_of(A, 3, 2).spectrum().converged.any())


@pytest.mark.parametrize("centred", [False, True])
def test_the_order_of_arrival_matters_no_more_than_the_bounds_say(centred):
    A = gaussian(40, 15, 4) @ torch.diag(torch.logspace(0, -2, 15, dtype=torch.float64)) + 1.0
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    one, other = rows_of(A, 6, 5, centred=centred), rows_of(A[order], 6, 5, centred=centred)
    first, second = one.spectrum(), other.spectrum()
    left = torch.empty_like(second.left)
    left[order] = second.left
    apart = (first.left * first.values) @ first.right.T - (left * second.values) @ second.right.T
    distance = float(torch.linalg.vector_norm(apart))
    assert 0.0 < distance <= one.error_bound + other.error_bound
    assert torch.all((first.values - second.values).abs() <= first.bounds + second.bounds)


def test_centring_is_not_the_same_as_not_centring():
    A = gaussian(50, 8, 5) + 100.0
    plain, centred = rows_of(A, 10, 3), rows_of(A, 10, 3, centred=True)
    assert float(plain.spectrum().values[0]) > 1000
    assert float(centred.spectrum().values[0]) < 20
    assert plain.mean is None
    # The left vectors stay orthogonal to the constant vector, whatever blocks they came in.
    assert float(centred.spectrum().left.sum(dim=0).abs().max()) < 1e-12


def test_a_large_mean_costs_the_digits_of_the_mean_and_no_more():
    A = gaussian(60, 6, 6)
    shifted = rows_of(A + 1e8, 1, 6, centred=True).spectrum()
    exact = torch.linalg.svdvals(A - A.mean(dim=0))
    assert torch.allclose(shifted.values, exact, rtol=1e-6)
    naive = torch.linalg.eigvalsh((A + 1e8).T @ (A + 1e8) - 60 * torch.outer(*[(A + 1e8).mean(dim=0)] * 2))
    assert float((naive.flip(0).clamp(min=0).sqrt() - exact).abs().max()) > 1.0


def test_thousand_rows_one_at_a_time_keep_the_vectors_orthonormal():
    A = gaussian(1000, 10, 7)
    svd = rows_of(A, 1, 4, centred=True)
    assert_sound(A, svd)
    without = rows_of(A, 1, 4, centred=True, left=False)
    assert without.spectrum().left is None
    assert torch.equal(without.spectrum().values, svd.spectrum().values)


def test_incremental_pca_agrees_with_the_batch_covariance():
    """A stream of samples of a known covariance: the leading direction is found, as close as batch finds it."""
    direction = orthonormal(12, 1, 8)[:, 0]
    A = gaussian(600, 12, 9) + 5 * gaussian(600, 1, 10) * direction + 2.0
    result = rows_of(A, 25, 3, centred=True).spectrum()
    assert abs(float(result.right[:, 0] @ direction)) > 0.999
    covariance = np.cov(A.numpy().T)
    assert float(result.values[0]) ** 2 / 599 == pytest.approx(np.linalg.eigvalsh(covariance)[-1], rel=1e-3)


def test_empty_blocks_change_nothing_and_the_first_one_sets_the_width():
    svd = IncrementalSVD(2)
    svd.append_rows(torch.empty(0, 3)).append_rows(gaussian(4, 3, 1)).append_rows(
        torch.empty(0, 3, dtype=torch.float64)
    )
    svd.append_cols(torch.empty(4, 0, dtype=torch.float64))
    assert svd.shape == (4, 3)
    assert svd.spectrum().shape == (4, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: IncrementalSVD(0), "k = 0"),
        (lambda: IncrementalSVD(1).spectrum(), "nothing has come"),
        (lambda: rows_of(gaussian(4, 3, 0), 2, 1).append_rows(gaussian(2, 4, 0)), "block of 4 columns"),
        (lambda: rows_of(gaussian(4, 3, 0), 2, 1).append_cols(gaussian(3, 2, 0)), "block of 3 rows"),
        (lambda: rows_of(gaussian(4, 3, 0), 2, 1, left=False).append_cols(gaussian(4, 1, 0)), "left vectors"),
        (lambda: rows_of(gaussian(4, 3, 0), 2, 1).append_rows(gaussian(2, 3, 0, torch.complex128)), "complex128"),
        (lambda: rows_of(gaussian(4, 3, 0), 2, 1).append_rows(gaussian(2, 3, 0) * float("nan")), "NaN"),
    ],
)
def test_bad_blocks_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    m=st.integers(1, 9), n=st.integers(1, 9), k=st.integers(1, 10), centred=st.booleans(), seed=st.integers(0, 50),
    steps=st.lists(st.tuples(st.booleans(), st.integers(1, 5)), max_size=5),
)  # fmt: skip
def test_any_sequence_of_updates_keeps_its_promises(m, n, k, centred, seed, steps):
    A = gaussian(m, n, seed)
    svd = IncrementalSVD(k, centred=centred).append_rows(A)
    for number, (by_rows, size) in enumerate(steps):
        if by_rows:
            block = gaussian(size, A.shape[1], seed + number + 1)
            A, svd = torch.cat([A, block]), svd.append_rows(block)
        else:
            block = gaussian(A.shape[0], size, seed + number + 1)
            A, svd = torch.cat([A, block], dim=1), svd.append_cols(block)
    assert_sound(A, svd)


# Subspaces


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("angles", [[1e-12, 1e-6, 0.1], [0.3, math.pi / 4, 1.2], [1.0, 1.5, math.pi / 2 - 1e-10]])
def test_planted_angles_are_found_to_their_own_precision(dtype, angles):
    """X and Y = X cos θ + X⊥ sin θ have exactly the angles θ."""
    frame = orthonormal(20, 6, 3, dtype)
    theta = torch.tensor(angles, dtype=torch.float64)
    X, Y = frame[:, :3], frame[:, :3] * theta.cos() + frame[:, 3:] * theta.sin()
    mixed = Y @ gaussian(3, 3, 4, dtype)
    found = principal_angles(X, mixed)
    assert torch.allclose(found, theta, rtol=1e-3, atol=1e-15 * 20)
    assert torch.all((found - theta).abs() <= 1e-13)


def test_cosines_alone_would_lose_small_angles():
    frame = orthonormal(20, 2, 3)
    X, Y = frame[:, :1], frame[:, :1] * math.cos(1e-9) + frame[:, 1:] * math.sin(1e-9)
    assert float(principal_angles(X, Y)[0]) == pytest.approx(1e-9, rel=1e-5)
    assert float(torch.linalg.svdvals(X.T @ Y).clamp(max=1).acos()[0]) != pytest.approx(1e-9, rel=0.1)


def test_angles_of_spaces_of_different_dimension_and_of_a_space_with_itself():
    X = gaussian(10, 4, 1)
    assert principal_angles(X, X[:, :2] @ gaussian(2, 2, 2)).shape == (2,)
    assert float(principal_angles(X, X[:, :2] * 1e-200).max()) < 1e-14
    assert float(principal_angles(X[:, :2], X).max()) < 1e-14
    axes = torch.eye(4, dtype=torch.float64)
    assert torch.allclose(
        principal_angles(axes[:, :2], axes[:, 2:]), torch.full((2,), math.pi / 2, dtype=torch.float64)
    )


@pytest.mark.parametrize(
    ("X", "Y", "message"),
    [
        (torch.ones(3, 2), torch.eye(3), "columns of X depend"),
        (torch.eye(3), torch.zeros(3, 1), "columns of Y depend"),
        (torch.eye(3), torch.eye(4), "3 and 4 rows"),
        (torch.eye(3)[:2], torch.eye(3), "X is 2×3"),
        (torch.eye(3), torch.eye(3, dtype=torch.complex128), "differ in kind"),
        (torch.eye(3) * float("nan"), torch.eye(3), "NaN"),
    ],
)
def test_spaces_that_are_none_are_refused(X, Y, message):
    with pytest.raises(InputError, match=message):
        principal_angles(X, Y)


def test_overlap_of_equal_of_orthogonal_and_of_random_spaces():
    A = with_spectrum(200, 100, torch.linspace(2, 1, 20, dtype=torch.float64), 1)
    same = overlap(es.svd(A, 20), es.svd(3 * A, 20), 8)
    assert same.value == pytest.approx(1.0, abs=1e-12)
    assert same.error < 1e-8
    other = overlap(es.svd(A, 20), es.svd(gaussian(200, 100, 5), 20), 8, "right")
    assert other.chance == 8 / 100
    assert 0.02 < other.value < 0.2
    values = [
        float((orthonormal(200, 8, 2 * s).T @ orthonormal(200, 8, 2 * s + 1)).square().sum()) / 8 for s in range(40)
    ]
    assert np.mean(values) == pytest.approx(8 / 200, rel=0.1)


@pytest.mark.parametrize(
    ("k", "side", "message"), [(0, "left", "k = 0"), (4, "left", "k = 4"), (1, "up", "unknown side")]
)
def test_overlaps_that_cannot_be_are_refused(k, side, message):
    a = es.svd(gaussian(6, 5, 1), 3)
    with pytest.raises(InputError, match=message):
        overlap(a, a, k, side)
    with pytest.raises(InputError, match="without left"):
        overlap(a, es.spectrum(gaussian(6, 5, 1)), 1)


@pytest.mark.parametrize("noise", [1e-8, 1e-4, 1e-2])
@pytest.mark.parametrize("kind", ["singular", "eigen"])
def test_angle_bound_holds_and_is_of_the_right_size(noise, kind):
    """Leading vectors of A + E, judged by their residuals on A: the angle is bounded by residual over gap."""
    values = torch.tensor([5.0, 4.5, 4.0, 1.0, 0.5, 0.2], dtype=torch.float64)
    for seed in range(20):
        if kind == "singular":
            A = with_spectrum(12, 9, values, seed)
            left, right = (
                X[:, :4] for X in (lambda t: (t[0], t[2].mH))(torch.linalg.svd(A + noise * gaussian(12, 9, seed)))
            )
            sigma = (left.T @ A @ right).diagonal()
            exact = torch.linalg.svd(A)
            true = max(
                float(principal_angles(left[:, :3], exact[0][:, :3]).max()),
                float(principal_angles(right[:, :3], exact[2].mH[:, :3]).max()),
            )
            residuals = torch.maximum((A @ right - left * sigma).norm(dim=0), (A.T @ left - right * sigma).norm(dim=0))
        else:
            A = symmetric_with_spectrum(values, seed)
            E = noise * gaussian(6, 6, seed)
            right, left = torch.linalg.eigh(A + E + E.T)[1].flip(1)[:, :4], None
            sigma = (right.T @ A @ right).diagonal()
            true = float(principal_angles(right[:, :3], torch.linalg.eigh(A)[1].flip(1)[:, :3]).max())
            residuals = (A @ right - right * sigma).norm(dim=0)
        spectrum = es.Spectrum(
            sigma, left, right, residuals, residuals, residuals < 1, kind, tuple(A.shape), False, None, "test", ""
        )
        bound = angle_bound(spectrum, 3)
        assert true <= bound + 1e-12
        assert bound < 20 * true


def test_an_angle_is_unbounded_where_the_gap_is_not_known():
    A = with_spectrum(12, 9, SPECTRA["repeated"](9), 1)
    assert angle_bound(es.svd(A, 4), 4) == math.pi / 2
    assert angle_bound(es.svd(A, 5), 4) == math.pi / 2  # a value that repeats across the cut
    assert angle_bound(es.svd(A, 4), 3) < 1e-10
    assert angle_bound(es.svd(A), 9) < 1e-10  # nothing beyond but the zeros of the longer side
    with pytest.raises(InputError, match="k = 5"):
        angle_bound(es.svd(A, 4), 5)
