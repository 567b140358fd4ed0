"""Where decompositions are asked for: takes any matrix or operator, picks the method, says why."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from eigenscope.errors import InputError
from eigenscope.methods import exact, krylov, propack, quadrature
from eigenscope.methods import trace as traces
from eigenscope.methods.randomized import known_frobenius, randomized_svd
from eigenscope.operators.arrays import Dense, Sparse, as_operator
from eigenscope.operators.base import LinearOperator
from eigenscope.results import Density, DiagonalEstimate, Estimate, Spectrum

STEEP_GAIN = 2.0
"""How many times fewer products an iteration was seen to need where the spectrum is steep, than where it is flat."""
DENSE_LIMIT = 2**31
"""Bytes of float64 beyond which an operator known by its products is not turned into a matrix."""
DEVICE_SIZE = 512
"""Smaller side from which an iteration is tried on an accelerator, whose exact decompositions are slow."""
AS_ACCURATE = 0.1
"""The block Krylov method stops just below its tolerance, PROPACK and the exact ones far below: compared are equal accuracies."""
ENDS = ("LA", "SA", "LM", "both")
SVD_METHODS = ("auto", "gram", "lapack", "krylov", "propack", "randomized")
EIGH_METHODS = ("auto", "lapack", "krylov")


def svd(
    A: Any,
    k: int | None = None,
    *,
    which: Literal["largest", "smallest"] = "largest",
    tol: float | None = None,
    method: str = "auto",
    generator: torch.Generator | None = None,
) -> Spectrum:
    """Singular triplets of any matrix or operator, by default the leading ones.

    Args:
        A: (m, n) tensor, ndarray, SciPy sparse matrix or :class:`LinearOperator`. Never changed.
        k: how many triplets, 1 ≤ k ≤ min(m, n); None for all of them.
        which: "largest" or "smallest".
        tol: largest residual accepted as converged, relative to ‖A‖₂. Default 1e-6. It governs the cost of "krylov"
            and "propack", and of "auto", which may then choose them; the others do what they do and are judged by it.
        method: "auto", "gram", "lapack", "krylov", "propack" or "randomized". Never ignored.
        generator: source of randomness of the random methods; None draws a fresh seed. The exact ones draw nothing,
            and say so by ``seed=None`` in the result.

    Returns:
        :class:`Spectrum` with float64 values and vectors, residuals computed from products.

    Raises:
        InputError: not a matrix, NaN or Inf in it, k out of range, negative tol, unknown method or which, a method
            that cannot do what is asked, an operator whose adjoint is not that of its product, or one too large to be
            decomposed densely.
    """
    if method not in SVD_METHODS:
        raise InputError(f"unknown method {method!r}", expected=", ".join(SVD_METHODS))
    if which not in ("largest", "smallest"):
        raise InputError(f"unknown which={which!r}", expected="largest or smallest")
    _check_tolerance(tol)
    operator = as_operator(A)
    rows, cols = operator.shape
    count = _count(k, min(rows, cols), f"a {rows}×{cols} matrix")
    tolerance = exact.DEFAULT_TOLERANCE if tol is None else tol
    if which == "smallest" and method in ("propack", "randomized"):
        raise InputError(f"the {method} method finds the largest values only", remedy="use lapack or krylov")
    reason = "asked for"
    if method == "auto":
        method, reason = _svd_choice(operator, count, tolerance, which)
    products = _check_adjoint(operator)
    result = _by_method(operator, count, method, which, tol, generator)
    return replace(result, products=result.products + products, reason=_joined(reason, result.reason))


def _by_method(
    A: LinearOperator, k: int, method: str, which: Literal["largest", "smallest"], tol: float | None,
    generator: torch.Generator | None,
) -> Spectrum:  # fmt: skip
    tolerance = exact.DEFAULT_TOLERANCE if tol is None else tol
    if method == "randomized":
        return randomized_svd(A, k, tol=tol, generator=generator)
    if method == "propack":
        return propack.singular_triplets(A, k, tol=tolerance, generator=generator)
    if method == "krylov":
        return krylov.singular_triplets(A, k, which=which, tol=tolerance, generator=generator)
    matrix, products = _dense(A)
    route = "auto" if method == "exact" else method
    return replace(exact.singular_triplets(matrix, k, method=route, tol=tol, which=which), products=products)


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
    operator = as_operator(A)
    probed = _check_adjoint(operator)
    matrix, products = _dense(operator)
    return replace(exact.singular_values(matrix, method=method, tol=tol), products=products + probed)


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
        method: "auto", "lapack" or "krylov". Never ignored.
        generator: as in :func:`svd`.

    Raises:
        InputError: not symmetric, by the rule of :class:`Dense`, or as in :func:`svd`.
    """
    if which not in ENDS:
        raise InputError(f"unknown which={which!r}", expected=", ".join(ENDS))
    if method not in EIGH_METHODS:
        raise InputError(f"unknown method {method!r}", expected=", ".join(EIGH_METHODS))
    _check_tolerance(tol)
    operator, products = _symmetric(as_operator(A))
    rows, cols = operator.shape
    count = _count(k, rows, f"a {rows}×{cols} matrix")
    tolerance = exact.DEFAULT_TOLERANCE if tol is None else tol
    reason = "asked for"
    if method == "auto":
        method, reason = _eigh_choice(operator, count, tolerance)
    products += _check_adjoint(operator)
    if method == "krylov":
        result = krylov.eigenpairs(operator, count, which=which, tol=tolerance, generator=generator)
    else:
        matrix, multiplied = _dense(operator)
        Dense(matrix, symmetric=True)  # refuses a matrix that is not
        result = replace(exact.symmetric_pairs(matrix, count, which, tol=tol), products=multiplied)
    return replace(result, products=result.products + products, reason=_joined(reason, result.reason))


def _symmetric(operator: LinearOperator) -> tuple[LinearOperator, int]:
    """The operator, known to be symmetric, and the products that took; entries are looked at where nothing says so."""
    rows, cols = operator.shape
    if rows != cols:
        raise InputError(f"eigenvalues of a {rows}×{cols} matrix", expected="a square matrix", remedy="use svd")
    if operator.symmetric:
        return operator, 0
    if isinstance(operator, Sparse):
        return Sparse(operator.matrix, symmetric=True), 0
    matrix, products = _dense(operator)
    return Dense(matrix, symmetric=True), products


def density(
    A: Any,
    *,
    steps: int = 60,
    probes: int = 8,
    deflate: int = 20,
    kind: Literal["eigen", "singular"] | None = None,
    generator: torch.Generator | None = None,
) -> Density:
    """Distribution of the eigenvalues or singular values of any map: :func:`eigenscope.methods.quadrature.density`.

    Raises:
        InputError: as there, or an operator whose adjoint is not that of its product.
    """
    operator = as_operator(A)
    probed = _check_adjoint(operator)
    result = quadrature.density(operator, steps=steps, probes=probes, deflate=deflate, kind=kind, generator=generator)
    return replace(result, products=result.products + probed)


def trace(
    A: Any,
    *,
    tol: float = 0.01,
    method: str = "auto",
    max_products: int | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Trace of a square map to a relative standard error: :func:`eigenscope.methods.trace.estimate`.

    Raises:
        InputError: as there.
    """
    return traces.estimate(A, tol=tol, method=method, max_products=max_products, generator=generator)


def diagonal(
    A: Any,
    *,
    samples: int | None = None,
    tol: float = 0.05,
    method: str = "xdiag",
    max_products: int | None = None,
    generator: torch.Generator | None = None,
) -> DiagonalEstimate:
    """Diagonal of a square map with standard errors: :func:`eigenscope.methods.trace.diagonal`.

    Raises:
        InputError: as there, or an operator whose adjoint is not that of its product.
    """
    operator = as_operator(A)
    probed = _check_adjoint(operator) if method == "xdiag" else 0
    result = traces.diagonal(
        operator, samples=samples, tol=tol, method=method, max_products=max_products, generator=generator
    )
    return replace(result, products=result.products + probed)


def _svd_choice(A: LinearOperator, k: int, tol: float, which: str) -> tuple[str, str]:
    """ "exact" or "krylov" for k triplets, and why, in a sentence."""
    rows, cols = A.shape
    small = min(rows, cols)
    if k == small:
        return "exact", "all values are asked for"
    if not isinstance(A, Dense):
        return _operator_choice(A, k, 2)
    if which == "smallest":
        return "exact", "the smallest values of a dense matrix"
    if A.device.type != "cpu":
        few = 8 * k < small and small >= DEVICE_SIZE
        return ("krylov", "few values of a large matrix on an accelerator") if few else ("exact", "a small matrix")
    gram = exact.prefers_gram(A.matrix, k, tol)
    seconds = exact.gram_seconds(A.matrix, k, tol) if gram else exact.lapack_seconds(A.matrix)
    rivals = {"krylov": krylov.seconds(A, k, AS_ACCURATE * tol)}
    if propack.supports(A):
        rivals["propack"] = propack.seconds(A, k, tol)
    if _is_steep(A, k):
        # PROPACK gains as much, but for a steep spectrum with copies, which it must find anew by blocks.
        rivals["krylov"] /= STEEP_GAIN
    return _cheapest(A, k, tol, seconds + 3e-3 + 1e-4 * k, rivals)


def _is_steep(A: Dense, k: int) -> bool:
    """Whether few values hold the energy, so that an iteration finds them soon.

    The stable rank ‖A‖_F²/σ₁², here with a lower bound of σ₁ by two power steps, is at most 2k, and a quarter of what a
    square Gaussian matrix has.
    """
    norm = known_frobenius(A) or 0.0
    x = torch.randn(A.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(A.dtype)
    vector = A.matrix.mT @ (A.matrix @ (x / torch.linalg.vector_norm(x)))
    length = float(torch.linalg.vector_norm(vector))
    largest = float(torch.linalg.vector_norm(A.matrix @ (vector / length))) if length else 0.0
    # A ratio first: the squares of very large or small entries have no place in float64. Infinities and NaN are not steep.
    return largest > 0.0 and norm / largest <= math.sqrt(min(2.0 * k, min(A.shape) / 16.0))


def _eigh_choice(A: LinearOperator, k: int, tol: float) -> tuple[str, str]:
    """ "exact" or "krylov" for k eigenpairs, and why, in a sentence."""
    size = A.shape[0]
    if k == size:
        return "exact", "all values are asked for"
    if not isinstance(A, Dense):
        return _operator_choice(A, k, 1)
    if A.device.type != "cpu":
        return (
            ("krylov", "few values of a large matrix on an accelerator")
            if 8 * k < size >= DEVICE_SIZE
            else ("exact", "a small matrix")
        )
    seconds = (4.0 if A.dtype.is_complex else 1.0) * 9.0 * size**3 / 25e9
    return _cheapest(A, k, tol, seconds, {"krylov": krylov.seconds(A, k, tol, 1)})


def _cheapest(A: LinearOperator, k: int, tol: float, exactly: float, rivals: dict[str, float]) -> tuple[str, str]:
    """ "exact", or the fastest of the rivals by their seconds."""
    best = min(rivals, key=rivals.__getitem__)
    least = f"{k} of {min(A.shape)} values to {tol:g}"
    if rivals[best] < exactly:
        return best, f"{least}: about {rivals[best] / exactly:.2f} of the time of an exact decomposition"
    return "exact", f"{least}: an iteration would take about {rivals[best] / exactly:.1f} times as long"


def _operator_choice(A: LinearOperator, k: int, sides: int) -> tuple[str, str]:
    """An operator becomes a matrix only where that takes fewer products than an iteration."""
    rows, cols = A.shape
    small = min(rows, cols)
    expected = sides * (8 * k + 100 if krylov.is_cheap(A) else 2 * k + 20)
    if rows * cols * 8 > DENSE_LIMIT:
        return "krylov", f"as a matrix it would need {rows * cols * 8 / 2**30:.1f} GiB"
    if small <= expected:
        return "exact", f"{small} products give the whole matrix, an iteration needs about {expected}"
    return "krylov", f"about {expected} products, where the whole matrix takes {small}"


def _check_adjoint(operator: LinearOperator) -> int:
    """Two products that show whether ⟨Ax, y⟩ = ⟨x, Aᴴy⟩ for a random pair, up to the rounding of the products.

    Both sides are of the order of ‖A‖_F, against ‖Ax‖‖y‖ ≈ √m·‖A‖_F: a wrong adjoint is seen unless it is wrong in a
    part of the map that is 100·eps·√m small. Operators made of matrices are not asked, nor those that have tried it themselves.

    Returns:
        The products that took: 0 or 2.

    Raises:
        InputError: the two differ.
    """
    if operator.verified or krylov.is_cheap(operator) or min(operator.shape) == 0:
        return 0
    rows, cols = operator.shape
    source = torch.Generator().manual_seed(0)
    wide = torch.complex128 if operator.dtype.is_complex else torch.float64
    x, y = (
        torch.randn(size, dtype=wide, generator=source).to(operator.dtype).to(operator.device) for size in (cols, rows)
    )
    image, adjoint = operator @ x, operator.T @ y
    x, y, image, adjoint = (vector.cpu().to(wide) for vector in (x, y, image, adjoint))
    difference = abs(complex(torch.vdot(y, image) - torch.vdot(adjoint, x)))
    norm = torch.linalg.vector_norm
    size = float(norm(image) * norm(y)) + float(norm(x) * norm(adjoint))
    if difference > 100.0 * torch.finfo(operator.dtype).eps * size:
        what = (
            "it says that it is symmetric, and its products are not"
            if operator.symmetric
            else ("the products of its adjoint do not match its own")
        )
        raise InputError(
            f"{what}: ⟨Ax, y⟩ and ⟨x, Aᴴy⟩ differ by {difference / size:.1e} of ‖Ax‖‖y‖", where=repr(operator),
            expected=f"at most {100.0 * torch.finfo(operator.dtype).eps:.0e}",
            remedy="correct symmetric=… of the operator" if operator.symmetric else "correct its _adjoint",
        )  # fmt: skip
    return 2


def _joined(reason: str, detail: str) -> str:
    return f"{reason}; {detail}" if detail and detail != reason else reason


def _dense(operator: LinearOperator) -> tuple[Tensor, int]:
    if isinstance(operator, Dense):
        return operator.matrix, 0
    rows, cols = operator.shape
    if rows * cols * 8 > DENSE_LIMIT:
        raise InputError(
            f"a {rows}×{cols} operator would need {rows * cols * 8 / 2**30:.1f} GiB as a matrix",
            where=repr(operator), expected=f"at most {DENSE_LIMIT / 2**30:.0f} GiB",
            remedy="ask for a few values by method='krylov'",
        )  # fmt: skip
    return operator.to_dense(), min(rows, cols)


def _count(k: int | None, limit: int, where: str) -> int:
    if k is None:
        k = limit
    if not 1 <= k <= limit:
        raise InputError(f"k = {k}", where=where, expected=f"1 ≤ k ≤ {limit}")
    return k


def _check_tolerance(tol: float | None) -> None:
    if tol is not None and not tol >= 0.0:
        raise InputError(f"tol = {tol}", expected="a tolerance ≥ 0, relative to ‖A‖₂")
