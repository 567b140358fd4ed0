"""PROPACK as a method: what it misses is found, what fails is done by another, seeds repeat, nothing global is drawn."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg as spla
import torch

import eigenscope as es
from cases import with_spectrum
from eigenscope.errors import InputError
from eigenscope.methods import propack


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(200, 120), (120, 200)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("tol", [1e-1, 1e-3, 1e-6])
def test_flat_spectra_are_found_by_it_alone(shape, dtype, tol):
    matrix = torch.randn(*shape, dtype=dtype, generator=seeded(3))
    result = propack.singular_triplets(es.Dense(matrix), 6, tol=tol, generator=seeded(0))
    truth = torch.linalg.svdvals(matrix.double())
    assert result.reason.startswith("one vector")
    assert result.method == "propack"
    assert bool(result.converged.all())
    assert torch.all((result.values - truth[:6]).abs() <= max(tol**2, 1e-6) * truth[0])
    again = torch.linalg.vector_norm(matrix.double() @ result.right - result.left * result.values, dim=0)
    assert torch.all(again <= result.residuals + 1e-5 * truth[0])
    assert (result.left.T @ result.left - torch.eye(6).double()).abs().max() < 1e-12


@pytest.mark.parametrize("seed", range(8))
def test_copies_that_it_misses_are_found(seed):
    values = torch.cat([torch.tensor([5.0, 5.0, 5.0, 5.0, 3.0, 3.0]), 0.9 ** torch.arange(294.0)]).double()
    matrix = with_spectrum(320, 300, values, seed=seed)
    _, alone, _ = spla.svds(matrix.numpy(), 4, tol=1e-1, solver="propack", random_state=np.random.default_rng(seed))
    assert alone.min() < 4.0  # without a check the answer would be wrong
    result = propack.singular_triplets(es.Dense(matrix), 4, tol=1e-1, generator=seeded(seed))
    assert torch.allclose(result.values, values[:4], rtol=0.1)
    assert "missed values" in result.reason
    assert result.method == "propack"


@pytest.mark.parametrize("k", [1, 3, 40])
@pytest.mark.parametrize("matrix", [torch.zeros(50, 40), torch.eye(50, 40), torch.ones(50, 40)], ids=["0", "I", "1"])
def test_invariant_subspaces_are_left_to_the_block_method(matrix, k):
    result = propack.singular_triplets(es.Dense(matrix), k, generator=seeded(0))
    assert torch.allclose(result.values, torch.linalg.svdvals(matrix.double())[:k], atol=1e-5)
    assert result.left.shape == (50, k)
    assert bool(result.converged.all())


def test_seeds_repeat_and_nothing_global_is_drawn():
    matrix = es.Dense(torch.randn(90, 70, generator=seeded(1)))
    np.random.seed(5)
    before, theirs = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, second, other = (propack.singular_triplets(matrix, 3, tol=1e-2, generator=seeded(s)) for s in (7, 7, 8))
    assert torch.equal(first.right, second.right)
    assert not torch.equal(first.right, other.right)
    assert first.seed == 7
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == theirs).all()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extreme_scales(scale):
    matrix = torch.randn(60, 50, generator=seeded(1))
    result = propack.singular_triplets(es.Dense(matrix * scale), 3, tol=1e-3, generator=seeded(0))
    assert torch.allclose(result.values / scale, torch.linalg.svdvals(matrix.double())[:3], rtol=1e-4)


def test_sparse_matrices_and_strided_ones():
    sparse = scipy.sparse.random_array((400, 300), density=0.05, rng=np.random.default_rng(0))
    result = es.svd(sparse, 4, method="propack", generator=seeded(0))
    assert np.allclose(result.values.numpy(), np.linalg.svd(sparse.toarray(), compute_uv=False)[:4], rtol=1e-8)
    strided = torch.randn(120, 160, generator=seeded(2))[::2, ::2]
    result = es.svd(strided, 3, tol=1e-2, method="propack", generator=seeded(0))
    assert torch.allclose(result.values, torch.linalg.svdvals(strided.double())[:3], rtol=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: propack.singular_triplets(es.Dense(a.to(torch.complex64)), 2), "real matrices"),
        (lambda a: propack.singular_triplets(es.LowRank(a, a), 2), "real matrices"),
        (lambda a: propack.singular_triplets(es.Dense(a), 0), "k = 0"),
        (lambda a: propack.singular_triplets(es.Dense(a), 2, tol=-1.0), "tol = -1"),
    ],
)
def test_what_it_cannot_do_is_said(call, message):
    with pytest.raises(InputError, match=message):
        call(torch.randn(9, 7, generator=seeded(0)))
