"""Randomized decompositions of any operator: a random sketch finds the range, an exact SVD in it does the rest.

Halko, Martinsson & Tropp, Finding structure with randomness, SIAM Review 53(2), 2011; with all passes kept in the
basis, the block Krylov method of Musco & Musco, NeurIPS 2015. The approximation is A ≈ Q QᴴA with Q orthonormal, so
errors obey Pythagoras: ‖A − QB_r‖_F² = ‖A − QQᴴA‖_F² + ‖B − B_r‖_F² for every B_r that approximates B = QᴴA.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from eigenscope.errors import InputError
from eigenscope.methods.bounds import lapack_bound
from eigenscope.methods.exact import DEFAULT_TOLERANCE
from eigenscope.methods.lapack import add_gram, symmetric_eigen
from eigenscope.methods.orthonormal import polished
from eigenscope.methods.probes import check_count, gaussian, source
from eigenscope.methods.recurrence import Products, wide
from eigenscope.operators.arrays import Dense, LowRank, Sparse, as_operator
from eigenscope.operators.base import LinearOperator
from eigenscope.results import Spectrum

STEEP = 300.0
"""Up to this σ₁/σₖ the products of eigenvectors of BᴴB are orthogonal to eps·(σ₁/σₖ)² ≈ 2e-11, without a QR."""


def range_finder(
    A: Any, size: int, *, power: int = 2, krylov: bool = False, generator: torch.Generator | None = None
) -> Tensor:
    """Orthonormal basis of a space that holds most of A's action.

    Subspace iteration with a QR factorisation after every product (Halko et al. 2011, Algorithm 4.4), so that no
    direction is lost below eps·σ₁. For real A, size = k + p and p ≥ 2 the expected error obeys their Theorem 10.5,
    E‖A − QQᴴA‖_F ≤ √(1 + k/(p − 1))·√(Σ_{j>k} σⱼ²) without power iterations, and with them Corollary 10.10,
    E‖A − QQᴴA‖₂ ≤ [(1 + √(k/(p−1)))·σ_{k+1}^(2q+1) + (e√(k+p)/p)·√(Σ_{j>k} σⱼ^(2(2q+1)))]^(1/(2q+1)).

    Args:
        A: (m, n) operator, tensor, ndarray or SciPy sparse matrix. Never changed.
        size: columns of the sketch, 1 ≤ size ≤ min(m, n).
        power: q ≥ 0, applications of AAᴴ.
        krylov: keep the basis of every pass and not of the last one alone.
        generator: None for a fresh seed.

    Returns:
        Q (m, size), or with ``krylov`` (m, min((q + 1)·size, m, n)), in A's dtype and on its device.

    Raises:
        InputError: not a matrix, entries or products not finite, size or power out of range.
    """
    operator = as_operator(A)
    limit = min(operator.shape)
    if not 1 <= size <= limit:
        raise InputError(f"size = {size}", where=repr(operator), expected=f"1 ≤ size ≤ {limit}")
    check_count(power, "power", 0)
    return sketched(Products(operator), size, power, krylov, source(generator)[0])[0]


def randomized_svd(
    A: Any,
    k: int,
    *,
    oversampling: int = 10,
    power: int = 2,
    krylov: bool = True,
    block: int | None = None,
    tol: float | None = None,
    generator: torch.Generator | None = None,
) -> Spectrum:
    """Approximate k leading singular triplets, at a cost that is known beforehand.

    A fixed number of products, whatever the accuracy that comes of it: the residuals say which one did. Block Krylov
    iteration needs about √q passes where subspace iteration needs q (Musco & Musco 2015, Theorem 1), at the same
    number of products. For triplets that converge to a tolerance use ``svd``.

    Args:
        A: (m, n) operator, tensor, ndarray or SciPy sparse matrix. Never changed.
        k: how many triplets, 1 ≤ k ≤ min(m, n).
        oversampling: p ≥ 0 columns of the sketch beyond k.
        power: q ≥ 0 applications of AᴴA; at most (2q + 2)(k + p) + k columns are multiplied.
        krylov: block Krylov iteration; False for subspace iteration, which needs 1/(q + 1) of the memory.
        block: with ``krylov``, columns multiplied at a time, ≤ k + p, which is the default. Narrower ones reach
            further in the same number of products (32 are still fast), but find at most ``block`` copies of a repeated value.
        tol: largest residual that counts as converged, relative to σ₁; default 1e-6. It changes the flags alone.
        generator: None for a fresh seed; ``seed`` of the result says which. The global generator is never drawn from.

    Returns:
        :class:`Spectrum` in double precision; values are never too large but by rounding, as they are singular values
        of a projection of A (Horn & Johnson, Topics in Matrix Analysis, Corollary 3.1.3).

    Raises:
        InputError: not a matrix, entries or products not finite, k, oversampling, power or tol out of range.
    """
    operator = as_operator(A)
    limit = min(operator.shape)
    _check(operator, k, oversampling, power, tol)
    generator, seed = source(generator)
    # All orthogonalisations are on the long side, the SVD of B is on the short one.
    flipped = operator.shape[0] < operator.shape[1]
    products = Products(operator.T if flipped else operator)
    size = min(k + oversampling, limit)
    if block is not None:
        check_count(block, "block")
        if not krylov or block > size:
            raise InputError(f"block = {block}", where="randomized_svd", expected=f"krylov=True and block ≤ {size}")
        size, power = block, math.ceil(size * (power + 1) / block) - 1
    basis, projected = sketched(products, size, power, krylov, generator)
    kind = "block Krylov" if krylov and power else "subspace"
    result = triplets(products, basis, projected, k, tol)
    result = replace(
        result,
        method="randomized-krylov" if krylov else "randomized",
        reason=f"sketch of {size} columns, {power} {kind} iterations; residuals measured",
        frobenius=known_frobenius(operator),
        seed=seed,
    )
    return swapped(result) if flipped else result


def _check(A: LinearOperator, k: int, oversampling: int, power: int, tol: float | None) -> None:
    limit = min(A.shape)
    if not 1 <= k <= limit:
        raise InputError(f"k = {k}", where=repr(A), expected=f"1 ≤ k ≤ {limit}")
    check_count(oversampling, "oversampling", 0)
    check_count(power, "power", 0)
    if tol is not None and not tol >= 0.0:
        raise InputError(f"tol = {tol}", expected="a tolerance ≥ 0, relative to ‖A‖₂")


def sketched(
    products: Products, size: int, power: int, krylov: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Q (m, l) orthonormal and B = AᴴQ / scale (n, l), l ≥ size."""
    rows, cols = products.A.shape
    block = torch.linalg.qr(products.forward(gaussian(products.A, size, generator)))[0]
    back = products.backward(block)
    # Column by column in memory, as LAPACK wants them.
    width = min((power + 1) * size, rows, cols) if krylov else size
    basis, projected = block.new_empty(width, rows).mT, block.new_empty(width, cols).mT
    basis[:, :size], projected[:, :size], count = block, back, size
    for _ in range(power):
        if krylov and count == width:
            break
        # A direction with σ < √eps·σ₁ would be lost in AAᴴ without this QR.
        image = products.forward(torch.linalg.qr(back)[0])
        if krylov:
            block = _extension(basis[:, :count], image)[:, : width - count]
        else:
            block, count = torch.linalg.qr(image)[0], 0
        back = products.backward(block)
        end = count + block.shape[1]
        basis[:, count:end], projected[:, count:end], count = block, back, end
    return basis, projected


def _extension(basis: Tensor, block: Tensor) -> Tensor:
    """(m, b) orthonormal columns, orthogonal to the basis (m, j), that span with it the block's columns.

    Gram-Schmidt, repeated until it holds; a block that adds next to nothing is completed by the columns of a
    Householder QR, whatever they are.
    """
    eps = torch.finfo(block.dtype).eps
    size = float(torch.linalg.vector_norm(block, dim=0).max())
    inner = basis.mH @ block
    for _ in range(3):
        block, R = torch.linalg.qr(block - basis @ inner)
        # What projecting leaves, eps·‖block‖, has been magnified by dividing by R: allow what a product's rounding
        # may be.
        if 0.25 * math.sqrt(len(block)) * float(R.diagonal().abs().min()) >= size > 0.0:
            return block
        inner, size = basis.mH @ block, 1.0
        if float(inner.abs().max()) <= 10.0 * eps:
            return block
    completed: Tensor = torch.linalg.qr(torch.cat([basis, block], dim=1))[0][:, basis.shape[1] :]
    return completed


def triplets(products: Products, basis: Tensor, projected: Tensor, k: int, tol: float | None) -> Spectrum:
    """The k leading triplets of Q Bᴴ, residuals measured by k more products.

    Args:
        products: of A, (m, n).
        basis: Q (m, l).
        projected: B = AᴴQ / scale (n, l).
        k: 0 ≤ k ≤ l.
        tol: largest residual accepted as converged, relative to σ₁; None for 1e-6.
    """
    double = wide(basis.dtype)
    projected = projected.to(double)
    W = _leading(projected, k, basis.dtype)
    image = projected @ W
    sigma = torch.linalg.vector_norm(image, dim=0)
    if 0 < k < projected.shape[1] and 0.0 < float(sigma.max()) <= STEEP * float(sigma.min()):
        order = sigma.argsort(descending=True)
        W, image, sigma = W[:, order], image[:, order], sigma[order]
        right = image / sigma
    else:
        short, R = torch.linalg.qr(image)
        P, sigma, Yh = torch.linalg.svd(R)
        W, image, right = W @ Yh.mH, image @ Yh.mH, short @ P
    left = (basis @ W.to(basis.dtype)).to(double)
    nearest = polished(left)
    left = torch.linalg.qr(left)[0] if nearest is None else nearest
    forward = products.forward(right).to(double) - left * sigma
    # AᴴU is the product AᴴQ, combined as U is.
    backward = image - right * sigma
    residuals = torch.maximum(torch.linalg.vector_norm(forward, dim=0), torch.linalg.vector_norm(backward, dim=0))
    sigma, scale = sigma * products.scale, products.scale
    residuals = residuals * scale
    largest = float(sigma[0]) if k else 0.0
    shape = products.A.shape
    return Spectrum(
        values=sigma, left=left, right=right, residuals=residuals,
        bounds=residuals + lapack_bound(shape, largest, products.A.dtype),
        converged=residuals <= (DEFAULT_TOLERANCE if tol is None else tol) * largest, kind="singular", shape=shape,
        complete=k == min(shape), frobenius=None, method="randomized", reason="", products=products.count,
    )  # fmt: skip


def _leading(projected: Tensor, k: int, dtype: torch.dtype) -> Tensor:
    """(l, k) orthonormal coefficients of the space of the k leading singular vectors of B (n, l), in double precision.

    By the eigenvectors of BᴴB, which costs a fraction of an SVD, where what squaring loses, eps·σ₁²/σₖ, is less than
    the rounding of the products that B came from.
    """
    size = projected.shape[1]
    if k in (0, size):
        return torch.eye(size, k, dtype=projected.dtype, device=projected.device)
    leading: Tensor
    if projected.is_complex() or projected.device.type != "cpu":
        values, vectors = torch.linalg.eigh(projected.mH @ projected)
        leading, least, most = vectors[:, -k:], float(values[-k]), float(values[-1])
    else:
        gram = projected.new_zeros(size, size)
        # Whichever of the two layouts it has; a copy of neither.
        by_columns = projected.mT.is_contiguous()
        block = projected.mT if by_columns else projected.contiguous()
        add_gram(gram.numpy(), block.numpy(), of_rows=by_columns)
        found, coefficients = symmetric_eigen(gram.numpy(), largest=k)
        leading, least, most = torch.from_numpy(coefficients), float(found[0]), float(found[-1])
    lost = torch.finfo(torch.float64).eps * math.sqrt(most / least) if least > 0.0 else math.inf
    if lost > 100.0 * torch.finfo(dtype).eps:
        leading = torch.linalg.svd(torch.linalg.qr(projected)[1])[2][:k].mH
    return leading


def swapped(result: Spectrum) -> Spectrum:
    """The triplets of Aᴴ as those of A."""
    rows, cols = result.shape
    return replace(result, left=result.right, right=result.left, shape=(cols, rows))


def known_frobenius(A: LinearOperator) -> float | None:
    """‖A‖_F where the entries or the factors are at hand, summed in double precision and scaled; else None."""
    if isinstance(A, Dense):
        return entries_norm(A.matrix)
    if isinstance(A, Sparse):
        entries = A.matrix.copy()
        entries.sum_duplicates()
        return entries_norm(torch.from_numpy(entries.data))
    if isinstance(A, LowRank):
        left, right = torch.linalg.qr(A.left)[1], torch.linalg.qr(A.right)[1]
        return entries_norm((left if A.core is None else left * A.core) @ right.mH)
    return None


def entries_norm(entries: Tensor) -> float:
    """Root of the sum of |entry|² over a tensor of any shape, in double precision; no square overflows or vanishes."""
    if not entries.numel():
        return 0.0
    if entries.ndim > 1 and entries.dtype != wide(entries.dtype) and entries.device.type == "cpu":
        # The squares of float32 numbers are in the range of float64; blocks of rows stay in the cache.
        blocks = (rows.to(wide(entries.dtype)).reshape(-1) for rows in torch.split(entries, 64))
        return math.sqrt(sum(float(torch.vdot(block, block).real) for block in blocks))
    norm = float(torch.linalg.vector_norm(entries, dtype=wide(entries.dtype)))
    if 1e-140 < norm < 1e140:
        return norm
    largest = float(entries.abs().max())
    return largest * float(torch.linalg.vector_norm(entries / largest)) if largest else 0.0
