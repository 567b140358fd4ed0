"""Products of thin factors without the product: against LAPACK on the product itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eigenscope.errors import InputError
from eigenscope.methods.factored import Factors, core_svd, factored_svd, frobenius, recompressed, stacked

SHAPES = [(40, 30, 5), (30, 40, 5), (7, 50, 12), (50, 7, 12), (6, 6, 6), (1, 9, 3), (9, 1, 1)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def pair(m: int, n: int, r: int, seed: int = 0, scale: float = 2.0, decay: float = 0.7) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    B = torch.randn(m, r, generator=generator, dtype=torch.float64) * decay ** torch.arange(r)
    return Factors(B, torch.randn(r, n, generator=generator, dtype=torch.float64), scale)


def dense(factors: Factors) -> torch.Tensor:
    return factors.scale * factors.B.double() @ factors.A.double()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1.0, -0.25, 1e-9, 1e9])
def test_values_vectors_and_residuals_are_those_of_the_product(shape, scale):
    factors = pair(*shape, scale=scale)
    found, W = factored_svd(factors), dense(factors)
    expected = torch.linalg.svdvals(W)[: len(found)]
    assert len(found) == min(shape)
    assert float((found.values - expected).abs().max()) <= float(found.bounds[0])
    assert float(found.bounds[0]) < 1e-11 * float(expected[0])
    identity = torch.eye(len(found), dtype=torch.float64)
    for vectors in (found.left, found.right):
        assert torch.allclose(vectors.T @ vectors, identity, atol=1e-13, rtol=0.0)
    assert torch.allclose((found.left * found.values) @ found.right.T, W, atol=1e-13 * float(expected[0]), rtol=0.0)
    measured = torch.linalg.vector_norm(W @ found.right - found.left * found.values, dim=0)
    assert float((found.residuals - measured).min()) >= -1e-13 * float(expected[0])
    assert bool(found.converged.all())
    assert frobenius(factors) == pytest.approx(float(W.norm()), rel=1e-13)


def test_the_bound_tells_when_large_factors_make_a_small_product():
    """B A = 1e-9 times a rank-one matrix, from factors of size 1: values below 1e-15 are rounding and the bound says so."""
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(30, 1, generator=generator).double(), torch.randn(1, 20, generator=generator).double()
    z = torch.randn(1, 20, generator=generator).double()
    factors = Factors(torch.cat([x, -x], 1), torch.cat([z + 1e-9 * y, z], 0))
    found = core_svd(factors)
    exact = float((factors.A[0] - factors.A[1]).norm() * x.norm())
    assert abs(float(found.values[0]) - exact) <= found.bound
    assert float(found.values[1]) <= found.bound
    assert found.bound > 1e-8 * float(found.values[0]), "relative to σ₁ the digits are gone"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [2.0, -0.5])
def test_truncation_errs_as_measured_and_not_more_than_the_optimum_and_the_rounding(shape, dtype, scale):
    factors, W = pair(*shape), dense(pair(*shape))
    values = torch.linalg.svdvals(W)
    for rank in {0, 1, min(shape) // 2, min(shape)}:
        found = recompressed(factors, rank, scale=scale, dtype=dtype)
        assert found.factors.B.dtype == found.factors.A.dtype == dtype
        assert found.factors.rank == rank
        actual = float((W - dense(found.factors)).norm())
        assert found.error == pytest.approx(actual, rel=1e-6, abs=1e-12 * float(values[0]))
        assert found.least == pytest.approx(float(values[rank:].norm()), rel=1e-9, abs=1e-12 * float(values[0]))
        assert found.error >= found.least * (1.0 - 1e-9)
        rounding = 8.0 * torch.finfo(dtype).eps * float(values.norm())
        assert found.error <= found.least + rounding


def test_the_measured_error_sees_what_storage_does_to_small_numbers():
    """Negative test of the certificate: in float16 numbers below 6e-8 vanish, and the optimum knows nothing of it."""
    factors = pair(20, 20, 4, scale=1e-13)
    found = recompressed(factors, 4, dtype=torch.float16)
    actual = float((dense(factors) - dense(found.factors)).norm())
    assert found.least == 0.0
    assert found.error == pytest.approx(actual, rel=1e-6)
    assert found.error > 0.01 * float(dense(factors).norm())


def test_equal_factors_come_back_balanced_and_zeros_are_left_out():
    factors = pair(12, 9, 3)
    spread = Factors(factors.B * 1e6, factors.A * 1e-6, factors.scale)
    found = recompressed(spread, 3, scale=2.0, dtype=torch.float64).factors
    assert torch.allclose(found.B.norm(dim=0), found.A.norm(dim=1), rtol=1e-12)
    nothing = Factors(torch.zeros(12, 3), torch.randn(3, 9, generator=torch.Generator().manual_seed(0)))
    assert recompressed(nothing, 3).factors.rank == 0
    assert recompressed(nothing, 3).error == 0.0


def test_a_sum_is_one_product_of_stacked_factors():
    terms = [pair(20, 15, rank, seed=rank, scale=scale) for rank, scale in ((1, 3.0), (4, -1e-3), (7, 1e3), (2, 0.0))]
    whole = stacked(terms)
    expected = sum(dense(term) for term in terms)
    assert whole.rank == 14
    assert torch.allclose(dense(whole), expected, atol=1e-13 * float(expected.norm()), rtol=0.0)
    mixed = [Factors(t.B.to(dtype), t.A.to(dtype), t.scale) for t, dtype in zip(terms, DTYPES, strict=True)]
    expected = sum(dense(term) for term in mixed)
    assert torch.allclose(dense(stacked(mixed)), expected, atol=1e-13 * float(expected.norm()), rtol=0.0)
    assert frobenius(stacked([terms[0], -terms[0]])) <= 1e-13 * frobenius(terms[0])


def test_truncation_of_a_sum_is_that_of_the_dense_sum():
    terms = [pair(25, 30, 4, seed=seed) for seed in range(3)]
    W = sum(dense(term) for term in terms)
    U, values, Vh = torch.linalg.svd(W)
    found = recompressed(stacked(terms), 5, dtype=torch.float64)
    best = (U[:, :5] * values[:5]) @ Vh[:5]
    assert torch.allclose(dense(found.factors), best, atol=1e-12 * float(values[0]), rtol=0.0)
    assert found.error == pytest.approx(float(values[5:].norm()), rel=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_any_shape_and_rank(seed):
    rng = np.random.default_rng(seed)
    m, n, r = (int(k) for k in rng.integers(1, 25, 3))
    factors = pair(m, n, r, seed, scale=float(rng.normal()), decay=float(rng.uniform(0.1, 1.0)))
    W = dense(factors)
    rank = int(rng.integers(0, min(m, n, r) + 1))
    found = recompressed(factors, rank, dtype=torch.float64)
    assert float((W - dense(found.factors)).norm()) == pytest.approx(found.error, rel=1e-6, abs=1e-12 * float(W.norm()))


def test_input_that_makes_no_sense_is_refused():
    factors = pair(6, 5, 2)
    with pytest.raises(InputError, match=r"\(m, r\) and \(r, n\)"):
        Factors(torch.ones(3, 2), torch.ones(3, 4))
    with pytest.raises(InputError, match="scale nan"):
        Factors(torch.ones(3, 2), torch.ones(2, 4), float("nan"))
    for arguments in ({"rank": 3}, {"rank": -1}, {"rank": 1, "scale": 0.0}):
        with pytest.raises(InputError, match="rank"):
            recompressed(factors, **arguments)
    with pytest.raises(InputError, match="not finite"):
        core_svd(Factors(torch.tensor([[float("nan")]]), torch.ones(1, 1)))
    with pytest.raises(InputError, match=r"beyond the range of torch.float16"):
        recompressed(Factors(factors.B * 1e12, factors.A), 2, dtype=torch.float16)
    with pytest.raises(InputError, match="no terms"):
        stacked([])
    with pytest.raises(InputError, match=r"shapes \(6, 5\) and \(5, 6\)"):
        stacked([factors, factors.T])
