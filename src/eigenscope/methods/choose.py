"""Where decompositions are asked for: takes any matrix or operator, picks the method, says why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from eigenscope.errors import InputError
from eigenscope.methods import exact
from eigenscope.operators.arrays import Dense, as_operator
from eigenscope.results import Spectrum

DENSE_LIMIT = 2**31
"""Bytes of float64 beyond which an operator known by its products is not turned into a matrix."""
ENDS = ("LA", "SA", "LM", "both")


def svd(
    A: Any,
    k: int | None = None,
    *,
    tol: float | None = None,
    method: str = "auto",
    generator: torch.Generator | None = None,
) -> Spectrum:
    """Leading singular triplets of any matrix or operator.

    Args:
        A: (m, n) tensor, ndarray, SciPy sparse matrix or :class:`LinearOperator`. Never changed.
        k: how many triplets, 1 ≤ k ≤ min(m, n); None for all of them.
        tol: largest residual accepted as converged, relative to ‖A‖₂. Default 1e-6.
        method: "auto", "gram" or "lapack". Never ignored.
        generator: source of randomness of the random methods. The exact ones draw nothing, and say so
            by ``seed=None`` in the result.

    Returns:
        :class:`Spectrum` with float64 values and vectors, residuals computed from products.

    Raises:
        InputError: not a matrix, NaN or Inf in it, k out of range, negative tol, unknown method, or an operator
            too large to be decomposed densely.
    """
    matrix, products = _dense(A)
    rows, cols = matrix.shape
    count = _count(k, min(rows, cols), f"a {rows}×{cols} matrix")
    _check_tolerance(tol)
    return _counted(exact.singular_triplets(matrix, count, method=method, tol=tol), products)


def spectrum(A: Any, *, tol: float | None = None, method: str = "auto") -> Spectrum:
    """All singular values of any matrix or operator, without vectors.

    Args:
        A: (m, n) tensor, ndarray, SciPy sparse matrix or :class:`LinearOperator`. Never changed.
        tol: accuracy asked of every value, relative to ‖A‖₂; None asks for σ_min to 1e-3 of itself.
        method: "auto", "gram", "lapack" or "lapack-float32".

    Raises:
        InputError: not a matrix, NaN or Inf in it, negative tol, unknown method, or an operator too large.
    """
    _check_tolerance(tol)
    matrix, products = _dense(A)
    return _counted(exact.singular_values(matrix, method=method, tol=tol), products)


def eigh(
    A: Any,
    k: int | None = None,
    *,
    which: Literal["LA", "SA", "LM", "both"] = "LA",
    tol: float | None = None,
    method: str = "auto",
    generator: torch.Generator | None = None,
) -> Spectrum:
    """Eigenpairs of a symmetric (Hermitian) matrix or operator, descending.

    Args:
        A: (n, n) tensor, ndarray, SciPy sparse matrix or symmetric :class:`LinearOperator`. Never changed.
        k: how many, 1 ≤ k ≤ n; None for all.
        which: "LA" largest, "SA" smallest, "LM" largest in magnitude, "both" ends.
        tol: largest residual accepted as converged, relative to ‖A‖₂. Default 1e-6.
        method: "auto" or "lapack".
        generator: as in :func:`svd`.

    Raises:
        InputError: not symmetric, by the rule of :class:`Dense`, or as in :func:`svd`.
    """
    if which not in ENDS:
        raise InputError(f"unknown which={which!r}", expected=", ".join(ENDS))
    if method not in ("auto", "lapack"):
        raise InputError(f"unknown method {method!r}", expected="auto or lapack")
    _check_tolerance(tol)
    matrix, products = _dense(A)
    rows, cols = matrix.shape
    if rows != cols:
        raise InputError(f"eigenvalues of a {rows}×{cols} matrix", expected="a square matrix", remedy="use svd")
    Dense(matrix, symmetric=True)  # refuses a matrix that is not
    count = _count(k, rows, f"a {rows}×{cols} matrix")
    return _counted(exact.symmetric_pairs(matrix, count, which, tol=tol), products)


def _dense(A: Any) -> tuple[Tensor, int]:
    operator = as_operator(A)
    if isinstance(operator, Dense):
        return operator.matrix, 0
    rows, cols = operator.shape
    if rows * cols * 8 > DENSE_LIMIT:
        raise InputError(
            f"a {rows}×{cols} operator would need {rows * cols * 8 / 2**30:.1f} GiB as a matrix",
            where=repr(operator), expected=f"at most {DENSE_LIMIT / 2**30:.0f} GiB",
        )  # fmt: skip
    return operator.to_dense(), min(rows, cols)


def _counted(result: Spectrum, products: int) -> Spectrum:
    return replace(result, products=products) if products else result


def _count(k: int | None, limit: int, where: str) -> int:
    if k is None:
        k = limit
    if not 1 <= k <= limit:
        raise InputError(f"k = {k}", where=where, expected=f"1 ≤ k ≤ {limit}")
    return k


def _check_tolerance(tol: float | None) -> None:
    if tol is not None and not tol >= 0.0:
        raise InputError(f"tol = {tol}", expected="a tolerance ≥ 0, relative to ‖A‖₂")
