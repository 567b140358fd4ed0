"""All singular values of a matrix: the bounds of the Gram route, and the smallest values that it finds again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import eigenscope as es
from cases import with_spectrum
from eigenscope.methods import lapack
from eigenscope.methods.bounds import lapack_bound
from eigenscope.methods.smallest import smallest_values


def steep(size: int, few: int, last: float) -> torch.Tensor:
    """A spectrum from 1 to 0.01, whose ``few`` smallest values fall to ``last``."""
    values = torch.logspace(0, -2, size, dtype=torch.float64)
    if few:
        values[-few:] = torch.logspace(-6, np.log10(last), few, dtype=torch.float64)
    return values


@pytest.mark.parametrize("seed", range(30))
def test_bounds_hold_against_lapack_on_random_shapes_and_spectra(seed):
    generator = torch.Generator().manual_seed(seed)
    rows, cols = (int(x) for x in torch.randint(1, 260, (2,), generator=generator))
    power = float(torch.rand(1, generator=generator)) * 4.0
    values = torch.linspace(1.0, 0.01, min(rows, cols), dtype=torch.float64) ** power
    dtype = (torch.float64, torch.float32, torch.bfloat16, torch.float16)[seed % 4]
    matrix = with_spectrum(rows, cols, values, seed).to(dtype)
    truth = torch.linalg.svdvals(matrix.double())
    for method in ("auto", "gram"):
        found = es.spectrum(matrix, method=method)
        slack = lapack_bound((rows, cols), float(truth[0]))
        assert torch.all((found.values - truth).abs() <= found.bounds + slack)
        assert torch.all(found.bounds <= 1e-3 * found.values) or method == "gram"


@pytest.mark.parametrize("shape", [(120, 120), (300, 120), (120, 300)], ids=str)
@pytest.mark.parametrize("few", [1, 3, 9])
@pytest.mark.parametrize("last", [1e-6, 1e-9, 1e-12])
@pytest.mark.parametrize("scale", [1.0, 1e-180, 1e180, 1e-310])
def test_few_tiny_values_are_found_by_inverse_iteration(shape, few, last, scale):
    values = steep(120, few, last)
    matrix = with_spectrum(*shape, values, seed=few) * scale
    found = es.spectrum(matrix)
    if scale == 1e-310:  # entries of so few bits that the planted values are not there any more
        found, values = es.spectrum(matrix * 1e300 * 1e10), torch.linalg.svdvals(matrix * 1e300 * 1e10)
        scale = 1.0
    assert found.method == "gram, inverse iteration"
    assert f"; {few} smallest" in found.reason
    made = lapack_bound(shape, float(values[0]))
    assert torch.all((found.values / scale - values).abs() <= found.bounds / scale + made)
    assert float((found.bounds / scale)[-few:].max()) <= 2.1 * made
    assert torch.all(found.values[:-1] >= found.values[1:])


def test_without_inverse_iteration_the_tiny_values_would_be_wrong():
    values = steep(120, 3, 1e-9)
    matrix = with_spectrum(120, 120, values, seed=1)
    wrong = es.spectrum(matrix, method="gram")
    assert abs(float(wrong.values[-1]) - 1e-9) > 1e-10
    assert float(es.spectrum(matrix).values[-1]) == pytest.approx(1e-9, rel=1e-5)


@pytest.mark.parametrize("rank", [0, 1, 100, 117, 119])
def test_matrices_without_full_rank_keep_their_bounds(rank):
    values = torch.linspace(2.0, 1.0, rank, dtype=torch.float64)
    matrix = with_spectrum(120, 130, values, seed=rank) if rank else torch.zeros(120, 130)
    found = es.spectrum(matrix)
    made = lapack_bound((120, 130), 2.0)
    assert torch.all((found.values[:rank] - values).abs() <= found.bounds[:rank] + made)
    assert torch.all(found.values[rank:] <= found.bounds[rank:] + made)
    assert float(found.values[rank:].max()) <= 2.0 * made if rank else float(found.values.max()) == 0.0


def test_rows_of_zeros_and_repeated_rows_are_singular():
    matrix = torch.randn(90, 90, generator=torch.Generator().manual_seed(0))
    matrix[7] = 0.0
    matrix[20] = matrix[21]
    found = es.spectrum(matrix)
    assert torch.all(found.values[-2:] <= found.bounds[-2:] + lapack_bound((90, 90), float(found.values[0])))
    assert float(found.values[-3]) == pytest.approx(float(torch.linalg.svdvals(matrix.double())[-3]), rel=1e-9)


def test_smallest_values_refuse_what_they_cannot_show():
    values = torch.cat([torch.linspace(3.0, 1.0, 57, dtype=torch.float64), torch.tensor([3e-7, 2e-7, 1e-7]).double()])
    matrix = with_spectrum(80, 60, values, seed=2)
    rounding = lapack_bound((80, 60), 3.0)
    found = smallest_values(matrix, 3, 0.9, rounding)
    assert found is not None
    assert torch.allclose(found[0], values[-3:], rtol=1e-6, atol=rounding)
    assert found[1] <= rounding
    assert smallest_values(matrix, 3, 1e-7, rounding) is None  # others may be smaller than these
    assert smallest_values(matrix, 3, 0.9, 0.0) is None  # an accuracy that float64 does not have
    assert smallest_values(torch.zeros(9, 9, dtype=torch.float64), 1, 0.5, rounding) is None
    # The values asked for lie inside a cluster of equal ones: no gap sets them apart.
    assert smallest_values(torch.eye(40, dtype=torch.float64), 2, 1.0, rounding) is None


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
@pytest.mark.parametrize("shape", [(64, 64), (700, 20), (20, 700)], ids=str)
def test_float32_matrices_whose_squares_leave_its_range(scale, shape):
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(3)) * scale
    found = es.spectrum(matrix)
    truth = torch.linalg.svdvals(matrix.double())
    assert torch.all((found.values - truth).abs() <= found.bounds + lapack_bound(shape, float(truth[0])))
    assert float(((found.values - truth).abs() / truth).max()) < 1e-10


@pytest.mark.parametrize("size", [1, 2, 3, 50, 200])
@pytest.mark.parametrize("scale", [0.0, 1e-300, 1e-160, 1.0, 1e160, 1e300])
def test_eigenvalues_without_vectors_are_those_of_numpy(size, scale):
    rng = np.random.default_rng(size)
    matrix = rng.standard_normal((2 * size, size))
    gram = matrix.T @ matrix
    single = (gram / np.abs(gram).max()).astype(np.float32)
    assert np.allclose(lapack.symmetric_eigen(single.copy())[0], np.linalg.eigvalsh(single), rtol=0.0, atol=1e-5 * size)
    gram *= scale / np.abs(gram).max()
    expected = np.linalg.eigvalsh(gram)
    upper = np.triu(gram) + np.tril(np.full_like(gram, np.nan), -1)  # the other triangle is not read
    assert np.allclose(lapack.symmetric_eigen(upper)[0], expected, rtol=0.0, atol=1e-13 * expected[-1])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_eigenvalues_that_are_not_numbers_are_refused(bad):
    matrix = np.eye(30)
    matrix[3, 4] = bad
    with pytest.raises(ArithmeticError, match="30×30"):
        lapack.symmetric_eigen(matrix)
