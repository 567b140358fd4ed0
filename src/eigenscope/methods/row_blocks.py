"""Singular triplets of a tall matrix that is read a block of rows at a time: one pass for the values, one for the rest.

The float64 Gram matrix of the columns is a sum over blocks of rows. One pass gives all singular values with the bound of
that route, and the right singular vectors; U = AV/σ takes a second one, which measures residuals and error as it goes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from eigenscope.errors import InputError
from eigenscope.methods.exact import DEFAULT_TOLERANCE, gram_bound, lapack_bound, value_bounds
from eigenscope.methods.lapack import add_gram, symmetric_eigen
from eigenscope.operators.streamed import Rows
from eigenscope.results import Spectrum

MOST_COLUMNS = 4096
"""Columns beyond which the Gram matrix is not formed: at this size it takes 128 MB, and its eigenvalues seconds."""


@dataclass(frozen=True)
class Reduced:
    """What one pass over the rows leaves.

    Attributes:
        spectrum: all n values, bounds, the k leading right vectors; no left ones and no residuals.
        mean: (n,) of the columns where the matrix was centred, else None.
    """

    spectrum: Spectrum
    mean: Tensor | None


def reduce_rows(rows: Rows, k: int, *, centre: bool = False, tol: float | None = None) -> Reduced:
    """All singular values and the k leading right singular vectors of a tall matrix, in one pass.

    With ``centre`` those of A − 1μᵀ. Rows are shifted by the mean of the first block, and the Gram matrix corrected by
    the rest of the shift at the end, so that a mean far from 0 costs no digits (Chan, Golub & LeVeque, The American
    Statistician 37(3), 1983, on shifted data).

    Args:
        rows: (m, n), n ≤ m and n ≤ 4096.
        k: vectors wanted, 1 ≤ k ≤ n.
        centre: subtract the mean of each column.
        tol: accuracy asked of every value, relative to σ₁; default 1e-6.

    Raises:
        InputError: more columns than rows or than 4096, k out of range, entries that are not finite.
    """
    m, n = rows.shape
    if not 1 <= k <= n <= min(m, MOST_COLUMNS):
        raise InputError(f"k = {k} of a {m}×{n} matrix", expected=f"1 ≤ k ≤ n ≤ min(m, {MOST_COLUMNS})")
    wide = torch.complex128 if rows.dtype.is_complex else torch.float64
    gram, total = torch.zeros(n, n, dtype=wide), torch.zeros(n, dtype=wide)
    shift: Tensor | None = None
    exponent: int | None = None
    for _, block in rows.blocks():
        entries = block.to(wide)
        if exponent is None and (largest := float(entries.abs().max())) > 0.0:
            exponent = math.frexp(largest)[1]
        # Two factors: 2^−e alone overflows for the smallest subnormal numbers.
        half = (exponent or 0) // 2
        entries = entries * 2.0**-half * 2.0 ** (half - (exponent or 0))
        if centre:
            shift = entries.mean(dim=0) if shift is None else shift
            entries -= shift
            total += entries.sum(dim=0)
        if wide.is_complex:
            gram += entries.mH @ entries
        else:
            add_gram(gram.numpy(), entries.contiguous().numpy(), of_rows=False)
    frobenius = math.sqrt(float(gram.diagonal().real.sum()))
    scale = 2.0 ** (exponent or 0)
    mean = None
    if shift is not None:
        rest = total / m
        gram -= m * torch.outer(rest.conj(), rest)
        mean = (shift + rest) * scale
    values, right = _decomposed(gram, k)
    largest = float(values[0])
    bounds = value_bounds(values, gram_bound(frobenius, largest, m, n))
    spectrum = Spectrum(
        values=values * scale, left=None, right=right, residuals=None, bounds=bounds * scale,
        converged=bounds <= (DEFAULT_TOLERANCE if tol is None else tol) * largest, kind="singular", shape=(m, n),
        complete=True, frobenius=float(torch.linalg.vector_norm(values)) * scale, method="gram by row blocks",
        reason=f"float64 Gram matrix of the {n} columns, summed over blocks of rows",
    )  # fmt: skip
    return Reduced(spectrum, mean)


def _decomposed(gram: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Singular values (n,) descending and vectors (n, k) from a Gram matrix, of which the upper triangle is read."""
    if gram.is_complex():
        eigenvalues, vectors = torch.linalg.eigh(gram, UPLO="U")
        return eigenvalues.flip(0).clamp(min=0.0).sqrt(), vectors.flip(1)[:, :k].contiguous()
    eigenvalues_only = symmetric_eigen(gram.clone().numpy())[0]
    found = symmetric_eigen(gram.numpy(), largest=k)[1]
    if found is None:
        raise InputError("no eigenvectors were computed", expected="k ≥ 1")
    values = torch.from_numpy(eigenvalues_only[::-1].copy()).clamp(min=0.0).sqrt()
    return values, torch.from_numpy(found[:, ::-1].copy())


def complete_triplets(
    rows: Rows, right: Tensor, mean: Tensor | None = None, *, tol: float | None = None
) -> tuple[Spectrum, float]:
    """The k triplets that belong to right singular vectors, in one more pass.

    σᵢ = ‖A vᵢ‖ and uᵢ = A vᵢ/σᵢ, so that ‖A v − σ u‖ is 0 and the residual is that of the adjoint, measured.

    Args:
        rows: (m, n).
        right: V (n, k), orthonormal columns, from :func:`reduce_rows`.
        mean: (n,) to subtract from each row, or None.
        tol: largest residual accepted as converged, relative to σ₁; default 1e-6.

    Returns:
        The triplets, with Frobenius norm; and ‖A − U diag(σ) Vᴴ‖_F, measured entry by entry.
    """
    m, n = rows.shape
    k = right.shape[1]
    left = torch.empty(m, k, dtype=right.dtype)
    back = torch.zeros(k, n, dtype=right.dtype)
    energy, missing = [], []
    for start, block in rows.blocks():
        entries = block.to(right.dtype)
        if mean is not None:
            entries = entries - mean
        product = entries @ right
        left[start : start + len(block)] = product
        back += product.mH @ entries
        energy.append(float(torch.linalg.vector_norm(entries)))
        missing.append(float(torch.linalg.vector_norm(entries - product @ right.mH)))
    sigma = torch.linalg.vector_norm(left, dim=0)
    if bool((sigma[1:] > sigma[:-1]).any()):
        order = sigma.argsort(descending=True, stable=True)
        sigma, left, right, back = sigma[order], left[:, order], right[:, order], back[order]
    divisor = sigma.clamp(min=torch.finfo(torch.float64).tiny)
    left /= divisor
    residuals = torch.linalg.vector_norm((back / divisor.unsqueeze(1)).mH - right * sigma, dim=0)
    largest = float(sigma.max())
    spectrum = Spectrum(
        values=sigma, left=left, right=right, residuals=residuals,
        bounds=residuals + lapack_bound((m, n), largest),
        converged=residuals <= (DEFAULT_TOLERANCE if tol is None else tol) * largest, kind="singular",
        shape=(m, n), complete=k == min(m, n), frobenius=math.hypot(*energy), method="gram by row blocks",
        reason=f"{k} right vectors from the Gram matrix of the {n} columns, left ones by a second pass",
    )  # fmt: skip
    return spectrum, math.hypot(*missing)
