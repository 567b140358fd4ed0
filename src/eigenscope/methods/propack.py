"""Leading singular triplets by PROPACK, Lanczos bidiagonalisation from a single vector, and a check of what it says.

Larsen, Lanczos bidiagonalization with partial reorthogonalization, DAIMI PB-357, Aarhus 1998; SciPy's copy of it. Of all
methods it needs the fewest products, and loses no time between them. But what it returns is not to be trusted as it is:

- It stops by its own bounds on the *values*. Here the residuals are measured, as everywhere.
- From a single vector only one copy of a multiple value can be reached but for rounding, and of values close to each
  other some may not have shown. So a second random vector, orthogonal to what was found, is iterated on: it shows a value
  that is missing, with the probability given in :func:`missing`.
- It gives up at an invariant subspace, and at the end of its basis.

Where any of this happens the block Krylov method of ``krylov.py`` finds the triplets anew, and the reason says so.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse.linalg as spla
import torch
from numpy.typing import NDArray

from eigenscope.errors import InputError
from eigenscope.methods import krylov
from eigenscope.methods.krylov_search import SCORES, Found
from eigenscope.methods.probes import source
from eigenscope.methods.randomized import known_frobenius
from eigenscope.methods.recurrence import GolubKahan, Products
from eigenscope.operators.arrays import Dense, Sparse
from eigenscope.operators.base import LinearOperator
from eigenscope.results import Spectrum

NARROW_LIMIT = 1e-5
"""Tolerances below it are near the rounding of float32 products: the matrix is then promoted at once."""
MEMORY = 2**30
"""Bytes of the two bases at most."""
READ = ((2**23, 70e9), (2**24, 40e9), (math.inf, 22e9))
"""Bytes a second at which a product reads a matrix of up to so many bytes, on one core of a server processor."""
CALL, OVERHEAD = 12e-6, 2e-3
"""Seconds to call a product, and to begin and end."""
RANGE = {torch.float32: 1e15, torch.float64: 1e120}
"""Norms beyond it, or below its inverse, are left to the block method, which scales its products."""


def supports(A: LinearOperator) -> bool:
    """Whether the method takes it: a real matrix on the CPU, dense or sparse."""
    return isinstance(A, Dense | Sparse) and A.device.type == "cpu" and A.dtype in RANGE


def singular_triplets(
    A: LinearOperator, k: int, *, tol: float = krylov.DEFAULT_TOLERANCE, generator: torch.Generator | None = None
) -> Spectrum:
    """The k largest singular triplets of a real matrix.

    Args:
        A: (m, n) :class:`Dense` or :class:`Sparse`, float32 or float64, on the CPU.
        k: 1 ≤ k ≤ min(m, n).
        tol: residual at which a triplet is converged, relative to σ₁.
        generator: on the CPU; None for a fresh seed. ``seed`` of the result says which.

    Returns:
        :class:`Spectrum` as that of :func:`eigenscope.methods.krylov.singular_triplets`.

    Raises:
        InputError: another operator, k or tol out of range, or products that are not finite.
    """
    if not supports(A):
        raise InputError("PROPACK takes real matrices on the CPU only", where=repr(A), remedy="use method='krylov'")
    if not 1 <= k <= min(A.shape):
        raise InputError(f"k = {k}", where=repr(A), expected=f"1 ≤ k ≤ {min(A.shape)}")
    if not tol >= 0.0:
        raise InputError(f"tol = {tol}", where=repr(A), expected="a tolerance ≥ 0, relative to ‖A‖₂")
    generator, seed = source(generator)
    flipped = A.shape[0] < A.shape[1]
    result, products, fault = _attempt(A.T if flipped else A, k, tol, generator)
    if result is None:
        result = krylov.singular_triplets(A, k, tol=tol, generator=generator)
        reason = f"PROPACK {fault}: done by {result.reason}"
        products += result.products
    else:
        reason = "one vector at a time, no copy of a value missing"
        if flipped:
            result = replace(result, left=result.right, right=result.left, shape=A.shape)
    return replace(result, method="propack", reason=reason, products=products, seed=seed)


def _attempt(A: LinearOperator, k: int, tol: float, generator: torch.Generator) -> tuple[Spectrum | None, int, str]:
    """What PROPACK finds, measured, or None; the products it took; and what is wrong with it. A is not wide."""
    rows, cols = A.shape
    matrix = _Matrix(A, tol < NARROW_LIMIT)
    largest = RANGE[matrix.operator.dtype]
    if not 1.0 / largest < matrix.norm < largest:
        return None, 0, "leaves matrices of extreme scale"
    basis = min(cols, 10 * k + 200, MEMORY // ((rows + cols) * matrix.operator.dtype.itemsize))
    rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
    if 3 * k > 2 * basis:
        return None, 0, "is for a small part of the values"
    try:
        left, values, right = spla.svds(
            matrix.counted, k, tol=tol, v0=matrix.random(rng, rows), maxiter=basis, solver="propack", random_state=rng
        )
    except (np.linalg.LinAlgError, ValueError) as error:
        return None, matrix.products, f"gave up ({str(error).rstrip('.')})"
    if not all(np.isfinite(part).all() for part in (left, values, right)):
        return None, matrix.products, "returned NaN"
    run = krylov.Run(matrix.operator, GolubKahan, ((SCORES["LA"], k),), k, tol, 1, None, generator)
    run.products = Products(matrix.operator)
    run.width = 1
    order = np.argsort(-values)
    left, right = torch.from_numpy(left[:, order]), torch.from_numpy(right[order])
    result = run.measured(Found(left, None, right.mT, None, float(values.max()), False))
    if not bool(result.converged.all()):
        return None, matrix.products + result.products, "stopped before its residuals were small"
    lost = missing(matrix, right.numpy(), float(result.values[0]), float(result.values[-1]), tol, rng)
    total = matrix.products + result.products
    return (None, total, "missed values") if lost else (result, total, "")


class _Matrix:
    """Counted products of one vector, in NumPy: a third faster than torch's, and nothing between them.

    Args:
        A: a :class:`Dense` or :class:`Sparse`.
        promote: whether to multiply in double precision, by a copy.
    """

    def __init__(self, A: LinearOperator, promote: bool) -> None:
        self.operator: Dense | Sparse
        if isinstance(A, Dense):
            matrix = A.matrix.to(torch.float64) if promote else A.matrix
            self.operator = Dense(matrix if 1 in matrix.stride() else matrix.contiguous())
            self._entries: Any = self.operator.matrix.numpy()
        elif isinstance(A, Sparse):
            self.operator = Sparse(A.matrix.astype(np.float64)) if promote else A
            self._entries = self.operator.matrix
        self._adjoint = self._entries.T
        self.norm = known_frobenius(self.operator) or 0.0
        self.products = 0
        self.counted = spla.LinearOperator(
            A.shape, matvec=self.forward, rmatvec=self.backward, dtype=self._entries.dtype
        )

    def random(self, rng: np.random.Generator, length: int) -> NDArray[Any]:
        """Standard normal entries."""
        return rng.standard_normal(length).astype(self._entries.dtype)

    def forward(self, x: NDArray[Any]) -> NDArray[Any]:
        """A x."""
        self.products += 1
        y: NDArray[Any] = self._entries @ x
        return y

    def backward(self, y: NDArray[Any]) -> NDArray[Any]:
        """Aᵀ y."""
        self.products += 1
        x: NDArray[Any] = self._adjoint @ y
        return x


def _needed(slack: float, length: int) -> int:
    """t of :func:`missing`."""
    gap = ((1.0 + 2.0 * slack) / (1.0 + slack)) ** 2 - 1.0
    return math.ceil(math.acosh(1.0 + 100.0 * math.sqrt(length / gap)) / math.acosh(1.0 + 2.0 * gap))


def seconds(A: Dense, k: int, tol: float) -> float:
    """Rough time of k triplets of a dense matrix on one CPU core, for comparisons; a flat spectrum is assumed.

    The number of steps is a fit to Gaussian matrices from 384² to 8192×1024. A product with one vector reads the matrix once,
    from a cache or from memory.
    """
    rows, cols = A.shape
    digits = -math.log10(min(1.0, max(tol, 1e-15)))
    steps = (4.5 * k + 40.0 * (1.0 + digits)) * math.exp(0.2 * math.log(max(rows, cols) / 2048.0))
    checks = min(_needed(max(tol, 1e-12), min(rows, cols)), 10.0 + 2.0 * steps)
    read = rows * cols * (8 if tol < NARROW_LIMIT else A.dtype.itemsize)
    product = read / next(rate for size, rate in READ if read <= size) + CALL
    orthogonal = (rows + cols) * (2.0 * steps**2 + 12.0 * k**2 + 4.0 * checks * (k + checks)) / 25e9
    return 2.0 * (steps + checks) * product + orthogonal + OVERHEAD


def missing(
    A: _Matrix, right: NDArray[Any], largest: float, least: float, tol: float, rng: np.random.Generator
) -> bool:
    """Whether A has a value above ``least``·(1 + tol) besides the k that were found.

    On the complement of their vectors AᵀA has no eigenvalue above θ = (least·(1 + tol))², unless one is missing. One of
    λ ≥ (least·(1 + 2·tol))² makes the Rayleigh quotient of t Lanczos steps from a random vector exceed θ as soon as
    T_t(1 + 2(λ − θ)/θ)²·(λ − θ)·1e-4/n ≥ θ, with probability 0.99: that of a component above 0.01/√n (Saad, Numerical
    Methods for Large Eigenvalue Problems, 2nd ed., §6.6). Where that would take more than twice the steps made so far, no
    more than these are made.

    Args:
        A: (m, n), m ≥ n.
        right: (k, n) orthonormal right vectors of what was found.
        largest, least: the largest and the smallest value found.
        tol: below what relative difference values are not told apart.
        rng: of the random vector.
    """
    count, length = right.shape
    eps = float(np.finfo(right.dtype).eps)
    slack = max(tol, 100.0 * eps * largest / least) if least > 0.0 else math.inf
    if count == length or largest <= least * (1.0 + slack):
        return False
    theta = (least * (1.0 + slack)) ** 2
    steps = min(_needed(slack, length), 10 + A.products, length - count)
    basis = np.empty((count + steps + 1, length), right.dtype)
    basis[:count] = right
    vector, coupling = A.random(rng, length), 0.0
    alphas: list[float] = []
    betas: list[float] = []
    for step in range(count, count + steps + 1):
        for _ in range(2):
            known = basis[:step]
            vector = vector - (known @ vector) @ known
        coupling = float(np.linalg.norm(vector))
        if step > count:
            betas.append(coupling)
        if step == count + steps or coupling <= 100.0 * eps * largest * least:
            break
        basis[step] = vector / coupling
        image = A.forward(basis[step])
        vector = A.backward(image)
        alphas.append(float(image @ image))
    if not alphas:
        return False
    top = scipy.linalg.eigvalsh_tridiagonal(np.array(alphas), np.array(betas[: len(alphas) - 1]))[-1]
    return bool(top > theta)
