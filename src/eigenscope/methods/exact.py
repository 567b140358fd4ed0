"""Decompositions of dense matrices by LAPACK, with the error bound of the route taken.

Two routes. *gram*: the float64 Gram matrix of the small side, summed block by block, then its eigenvalues; the
fastest, and for float32 weights more accurate than a float32 SVD, but squaring costs half of the digits of
the smallest values. Where these are few, inverse iteration finds them again. *lapack*: a bidiagonal SVD
(``gesdd``), whose absolute error is a few eps·σ₁.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from eigenscope.errors import InputError
from eigenscope.methods.bounds import gram_bound, lapack_bound, value_bounds
from eigenscope.methods.lapack import add_gram, symmetric_eigen
from eigenscope.methods.orthonormal import polished
from eigenscope.methods.smallest import smallest_values
from eigenscope.results import Spectrum

BLOCK = 192
"""Rows or columns promoted at a time: few, so that the cache still holds them when they are multiplied."""
DEVICE_BLOCK = 1024
SMALLEST_RELATIVE = 1e-3
"""Relative error bound of σ_min beyond which ``singular_values`` leaves the Gram route."""
DEFAULT_TOLERANCE = 1e-6


def singular_values(A: Tensor, *, method: str = "auto", tol: float | None = None) -> Spectrum:
    """All singular values of a real or complex matrix, without vectors.

    Args:
        A: (m, n), any floating dtype, on any device that has float64. Never changed.
        method: "auto", "gram" (float64 Gram matrix) or "lapack" (SVD in float64), "lapack-float32".
        tol: accuracy asked of every value, relative to σ₁. None asks for σ_min to 1e-3 of itself.

    Returns:
        A complete :class:`Spectrum` whose ``bounds`` hold for the route taken.

    Raises:
        InputError: an unknown method.
        ArithmeticError: LAPACK did not converge.
    """
    if method not in ("auto", "gram", "lapack", "lapack-float32"):
        raise InputError(f"unknown method {method!r}", expected="auto, gram, lapack or lapack-float32")
    if method == "gram" and A.is_complex():
        raise InputError("the gram method is for real matrices", remedy="use method='lapack'")
    if method.startswith("lapack") or A.is_complex():
        reason = "complex entries" if method == "auto" else "asked for"
        return _by_lapack(A, reason, tol, torch.float32 if method.endswith("float32") else torch.float64)
    by_gram = _by_gram(A, tol)
    if method == "gram" or not len(by_gram):
        return by_gram
    largest, smallest = float(by_gram.values[0]), float(by_gram.values[-1])
    if tol is not None:
        if bool(by_gram.converged.all()):
            return by_gram
        reason = f"the Gram route bounds the errors by {float(by_gram.bounds.max()) / largest:.0e}·σ₁ only"
    else:
        if float(by_gram.bounds[-1]) <= SMALLEST_RELATIVE * smallest or largest == 0.0:
            return by_gram
        refined = _smallest_again(A, by_gram)
        if refined is not None:
            return refined
        reason = f"σ_min/σ_max ≈ {smallest / largest:.0e} is near the floor of the Gram route"
    return _by_lapack(A, reason, tol, torch.float64)


def _by_gram(A: Tensor, tol: float | None) -> Spectrum:
    rows, cols = A.shape
    gram, exponent = gram_matrix(A)
    if A.device.type == "cpu":
        eigenvalues = torch.from_numpy(symmetric_eigen(gram.numpy())[0])
    else:
        eigenvalues = torch.linalg.eigvalsh(gram).cpu()
    values = eigenvalues.flip(0).clamp(min=0.0).sqrt()
    largest = float(values[0]) if len(values) else 0.0
    frobenius = float(torch.linalg.vector_norm(values))
    bounds = value_bounds(values, gram_bound(frobenius, largest, max(rows, cols), min(rows, cols)))
    scale = 2.0**exponent
    return _values_only(
        values * scale,
        bounds * scale,
        (rows, cols),
        tol,
        "gram",
        "float64 Gram matrix of the small side, fastest",
    )


def _smallest_again(A: Tensor, found: Spectrum) -> Spectrum | None:
    """The spectrum with the values that squaring left no digits of found by inverse iteration; None if that fails."""
    values, bounds = found.values, found.bounds
    size, doubtful = len(values), int((bounds > SMALLEST_RELATIVE * values).sum())
    most = min(2 * doubtful + 8, size // 8)
    if A.device.type != "cpu" or doubtful > most:
        return None
    # Cut where the gap is widest, so that the two parts of the spectrum cannot be mistaken for one another.
    counts = torch.arange(doubtful, most + 1)
    count = int(counts[((values - bounds)[size - counts - 1] / values[size - counts].clamp(min=1e-300)).argmax()])
    scale = 2.0 ** _exponent(A)
    rounding = lapack_bound(found.shape, float(values[0]))
    above = float(values[size - count - 1] - bounds[size - count - 1])
    again = smallest_values(_scaled(A, _exponent(A)).to(torch.float64), count, above / scale, rounding / scale)
    if again is None:
        return None
    values, bounds = values.clone(), bounds.clone()
    values[-count:] = again[0] * scale
    bounds[-count:] = again[1] * scale + rounding
    reason = f"{found.reason}; {count} smallest by inverse iteration"
    return _values_only(values, bounds, found.shape, None, "gram, inverse iteration", reason)


def _by_lapack(A: Tensor, reason: str, tol: float | None, dtype: torch.dtype) -> Spectrum:
    rows, cols = A.shape
    work = torch.complex128 if A.is_complex() and dtype == torch.float64 else dtype
    if A.is_complex() and dtype == torch.float32:
        work = torch.complex64
    exponent = _exponent(A)
    values = torch.linalg.svdvals(_scaled(A, exponent).to(work)).to("cpu", torch.float64)
    largest = float(values[0]) if len(values) else 0.0
    bounds = torch.full_like(values, lapack_bound((rows, cols), largest, dtype))
    scale = 2.0**exponent
    name = "lapack" if dtype == torch.float64 else "lapack-float32"
    return _values_only(values * scale, bounds * scale, (rows, cols), tol, name, reason)


def _values_only(
    values: Tensor, bounds: Tensor, shape: tuple[int, int], tol: float | None, method: str, reason: str
) -> Spectrum:
    largest = float(values[0]) if len(values) else 0.0
    tolerance = DEFAULT_TOLERANCE if tol is None else tol
    return Spectrum(
        values=values, left=None, right=None, residuals=None, bounds=bounds,
        converged=bounds <= tolerance * largest, kind="singular", shape=shape, complete=True,
        frobenius=float(torch.linalg.vector_norm(values)), method=method, reason=reason,
    )  # fmt: skip


def gram_matrix(A: Tensor) -> tuple[Tensor, int]:
    """Float64 Gram matrix of the small side, of A·2^−e, and e.

    A is promoted block by block, so that the float64 copy never exceeds :data:`BLOCK` rows or columns of it.
    On the CPU only the upper triangle is filled.

    Args:
        A: (m, n) real.

    Returns:
        (s, s) with s = min(m, n), and the exponent e that keeps the squares inside float64's range.
    """
    rows, cols = A.shape
    size, of_rows = min(rows, cols), rows < cols
    exponent = _exponent(A)
    on_cpu = A.device.type == "cpu"
    gram = torch.zeros(size, size, dtype=torch.float64, device=A.device)
    buffer = torch.empty((BLOCK if on_cpu else DEVICE_BLOCK) * size, dtype=torch.float64, device=A.device)
    for part in torch.split(A, BLOCK if on_cpu else DEVICE_BLOCK, dim=1 if of_rows else 0):
        block = buffer[: part.numel()].view(part.shape)
        block.copy_(_scaled(part, exponent))
        if on_cpu:
            add_gram(gram.numpy(), block.numpy(), of_rows=of_rows)
        else:
            gram += block @ block.T if of_rows else block.T @ block
    return gram, exponent


def _exponent(A: Tensor) -> int:
    """e such that the largest entry of A·2^−e is near 1; 0 unless its square would leave float64's range."""
    if A.dtype not in (torch.float64, torch.complex128) or A.numel() == 0:
        return 0
    largest = float(A.abs().max())
    return int(math.frexp(largest)[1]) if largest != 0.0 and not 1e-120 < largest < 1e120 else 0


def _scaled(A: Tensor, exponent: int) -> Tensor:
    # Two factors: 2^−e alone overflows for the smallest subnormal numbers.
    return A if exponent == 0 else A * 2.0 ** (-exponent // 2) * 2.0 ** (-exponent - (-exponent // 2))


NARROW_LIMIT = 1e-4
"""Tolerance from which a float32 matrix has its Gram matrix formed in float32: the residuals that leaves are near 1e-6."""


def prefers_gram(A: Tensor, k: int, tol: float) -> bool:
    """Whether ``singular_triplets`` tries the Gram route: real, on the CPU, and tall, wide or asked for few."""
    small, long = min(A.shape), max(A.shape)
    few = 5 * k <= 4 * small if _is_narrow(A, tol) else 3 * k <= small
    return not A.is_complex() and A.device.type == "cpu" and (long >= 2.5 * small or few)


def _is_narrow(A: Tensor, tol: float) -> bool:
    return A.dtype == torch.float32 and tol >= NARROW_LIMIT


def gram_seconds(A: Tensor, k: int, tol: float) -> float:
    """Rough time of k triplets by the Gram route on one CPU core: for comparison with other routes, not for clocks."""
    long, small = max(A.shape), min(A.shape)
    narrow = 0.5 if _is_narrow(A, tol) else 1.0
    return narrow * (long * small**2 + 4.0 * small**3 + 4.0 * long * small * k) / 45e9


def lapack_seconds(A: Tensor) -> float:
    """The same of the LAPACK route, whatever k is."""
    long, small = max(A.shape), min(A.shape)
    return (4.0 if A.is_complex() else 1.0) * (4.0 * long * small**2 + 22.0 * small**3) / 40e9


def singular_triplets(
    A: Tensor, k: int, *, method: str = "auto", tol: float | None = None, which: str = "largest"
) -> Spectrum:
    """The k leading (or last) singular triplets of a dense matrix, float64 (complex128), residuals measured.

    Args:
        A: (m, n), any floating dtype. Never changed.
        k: 1 ≤ k ≤ min(m, n).
        method: "auto", "gram" (eigenvectors of the small Gram matrix, then U = AV/σ) or "lapack" (``gesdd``).
        tol: largest residual accepted as converged, relative to σ₁; default 1e-6. From 1e-4 on the Gram matrix of a
            float32 matrix is formed in float32, and one step of Rayleigh-Ritz made with its eigenvectors.
        which: "largest" or "smallest", the latter by LAPACK alone.

    Raises:
        InputError: an unknown method, or gram for a complex matrix or the smallest values.
    """
    if method not in ("auto", "gram", "lapack"):
        raise InputError(f"unknown method {method!r}", expected="auto, gram or lapack")
    if method == "gram" and (A.is_complex() or A.device.type != "cpu"):
        raise InputError("the gram method is for real matrices on the CPU", remedy="use method='lapack'")
    if method == "gram" and which == "smallest":
        raise InputError("the gram method squares the smallest values away", remedy="use method='lapack'")
    tolerance = DEFAULT_TOLERANCE if tol is None else tol
    if method == "gram" or (method == "auto" and which == "largest" and prefers_gram(A, k, tolerance)):
        why = f"{k} of {min(A.shape)} values of a {A.shape[0]}×{A.shape[1]} matrix"
        if _is_narrow(A, tolerance):
            quick = _triplets_by_narrow_gram(A, k, tolerance, f"{why}: float32 Gram matrix and a Rayleigh-Ritz step")
            if quick is not None and bool(quick.converged.all()):
                return quick
        result, orthogonality = _triplets_by_gram(A, k, tolerance, f"{why}: eigenvectors of the small Gram matrix")
        good = orthogonality < 1e-9 and float(result.residuals.max()) <= 1e-9 * float(result.values[0])  # type: ignore[union-attr]
        if method == "gram" or good:
            return result
        reason = "the Gram route lost orthogonality in the small values"
    else:
        reason = "asked for" if method == "lapack" else "dense matrix, all or many values, or the smallest"
    return _triplets_by_lapack(A, k, tolerance, reason, which)


def _triplets_by_gram(A: Tensor, k: int, tol: float, reason: str) -> tuple[Spectrum, float]:
    gram, exponent = gram_matrix(A)
    values, vectors = symmetric_eigen(gram.numpy(), largest=k)
    if vectors is None:
        raise InputError("no eigenvectors were computed", where=f"matrix {tuple(A.shape)}")
    small = torch.from_numpy(vectors[:, ::-1].copy())
    sigma = torch.from_numpy(values[::-1].copy()).clamp(min=0.0).sqrt()
    A = _scaled(A.to(torch.float64), exponent)
    wide = A.shape[0] < A.shape[1]
    product = A.T @ small if wide else A @ small
    sigma = torch.linalg.vector_norm(product, dim=0)
    long = product / sigma.clamp(min=torch.finfo(torch.float64).tiny)
    orthogonality = float((long.T @ long - torch.eye(k, dtype=torch.float64)).abs().max())
    order = sigma.argsort(descending=True)
    left, right = (small[:, order], long[:, order]) if wide else (long[:, order], small[:, order])
    sigma, norm = sigma[order], float(sigma.max())
    return _with_residuals(A, left, sigma, right, tol, "gram", reason, exponent, norm), orthogonality


def _triplets_by_narrow_gram(A: Tensor, k: int, tol: float, reason: str) -> Spectrum | None:
    """None where float32 does not hold the squares: of the entries, or of the last values beside the first."""
    wide = A.shape[0] < A.shape[1]
    tall = A.mT if wide else A
    largest = float(A.abs().max())
    if not 1e-12 < largest < 1e12:
        return None
    size = tall.shape[1]
    gram = torch.zeros(size, size)
    add_gram(gram.numpy(), A.contiguous().numpy(), of_rows=wide)
    _, vectors = symmetric_eigen(gram.numpy(), largest=k)
    if vectors is None:
        return None
    right = polished(torch.from_numpy(vectors[:, ::-1].copy()).to(torch.float64))
    if right is None:
        return None
    # Thin blocks are multiplied from the left, where BLAS is fastest.
    W = (right.to(torch.float32).mT @ tall.mT).mT.to(torch.float64)
    left = polished(W / torch.linalg.vector_norm(W, dim=0).clamp(min=torch.finfo(torch.float64).tiny))
    if left is None:
        return None
    sigma = (left * W).sum(dim=0)
    Z = (left.to(torch.float32).mT @ tall).mT.to(torch.float64)
    residuals = torch.maximum(
        torch.linalg.vector_norm(W - left * sigma, dim=0), torch.linalg.vector_norm(Z - right * sigma, dim=0)
    )
    order = sigma.argsort(descending=True)
    left, right, sigma, residuals = left[:, order], right[:, order], sigma[order], residuals[order]
    top = float(sigma[0])
    bounds = residuals + lapack_bound((tall.shape[0], size), top, torch.float32)
    norms = [torch.linalg.vector_norm(rows.to(torch.float64)) for rows in torch.split(A, 64)]
    return Spectrum(
        values=sigma, left=right if wide else left, right=left if wide else right, residuals=residuals, bounds=bounds,
        converged=residuals <= tol * top, kind="singular", shape=(A.shape[0], A.shape[1]), complete=k == size,
        frobenius=float(torch.linalg.vector_norm(torch.stack(norms))), method="gram", reason=reason,
    )  # fmt: skip


def _triplets_by_lapack(A: Tensor, k: int, tol: float, reason: str, which: str) -> Spectrum:
    exponent = _exponent(A)
    A = _scaled(A, exponent).to(torch.complex128 if A.is_complex() else torch.float64)
    left, sigma, right = torch.linalg.svd(A, full_matrices=False)
    part = slice(k) if which == "largest" else slice(len(sigma) - k, None)
    norm = float(sigma[0])
    return _with_residuals(A, left[:, part], sigma[part], right[part].mH, tol, "lapack", reason, exponent, norm)


def _with_residuals(
    A: Tensor, left: Tensor, sigma: Tensor, right: Tensor, tol: float, method: str, reason: str, exponent: int,
    largest: float,
) -> Spectrum:  # fmt: skip
    rows, cols = A.shape
    forward = torch.linalg.vector_norm(A @ right - left * sigma, dim=0)
    backward = torch.linalg.vector_norm(A.mH @ left - right * sigma, dim=0)
    residuals = torch.maximum(forward, backward)
    scale = 2.0**exponent
    return Spectrum(
        values=sigma * scale, left=left.contiguous(), right=right.contiguous(), residuals=residuals * scale,
        bounds=(residuals + lapack_bound((rows, cols), largest)) * scale, converged=residuals <= tol * largest,
        kind="singular", shape=(rows, cols), complete=len(sigma) == min(rows, cols),
        frobenius=float(torch.linalg.vector_norm(A)) * scale, method=method, reason=reason,
    )  # fmt: skip


def symmetric_pairs(A: Tensor, k: int, which: str, *, tol: float | None = None) -> Spectrum:
    """k eigenpairs of a dense symmetric (Hermitian) matrix, descending, residuals measured.

    Args:
        A: (n, n). Never changed.
        k: 1 ≤ k ≤ n.
        which: "LA" largest, "SA" smallest, "LM" largest in magnitude, "both": ⌈k/2⌉ largest and ⌊k/2⌋ smallest.
        tol: largest residual accepted as converged, relative to max |λ|; default 1e-6.
    """
    tolerance = DEFAULT_TOLERANCE if tol is None else tol
    n = A.shape[0]
    exponent = _exponent(A)
    A = _scaled(A, exponent).to(torch.complex128 if A.is_complex() else torch.float64)
    values, vectors = torch.linalg.eigh(A)
    values, vectors = values.flip(0), vectors.flip(1)
    if which == "LM":
        chosen = values.abs().argsort(descending=True, stable=True)[:k].sort().values
    else:
        top = {"LA": k, "SA": 0, "both": k - k // 2}[which]
        chosen = torch.cat([torch.arange(top), torch.arange(n - (k - top), n)])
    largest = float(values.abs().max())
    picked, basis = values[chosen], vectors[:, chosen]
    residuals = torch.linalg.vector_norm(A @ basis - basis * picked, dim=0)
    scale = 2.0**exponent
    return Spectrum(
        values=picked * scale, left=None, right=basis.contiguous(), residuals=residuals * scale,
        bounds=(residuals + lapack_bound((n, n), largest)) * scale, converged=residuals <= tolerance * largest,
        kind="eigen", shape=(n, n), complete=k == n, frobenius=float(torch.linalg.vector_norm(A)) * scale,
        method="lapack", reason="dense symmetric matrix",
    )  # fmt: skip


def eigenvalues(A: Tensor) -> Tensor:
    """All eigenvalues of a general square matrix, complex128, by descending modulus (LAPACK ``geev``).

    They are those of A + E with ‖E‖ of the order of eps·‖A‖; far from normality they can differ much from A's own
    (Golub & Van Loan, Matrix Computations, 4th ed., §7.2).

    Raises:
        InputError: A is not square.
    """
    rows, cols = A.shape
    if rows != cols:
        raise InputError(f"eigenvalues of a {rows}×{cols} matrix", expected="a square matrix")
    values: Tensor = torch.linalg.eigvals(A.to(torch.complex128 if A.is_complex() else torch.float64)).cpu()
    return values[values.abs().argsort(descending=True, stable=True)]
