"""Singular triplets of a tall matrix that is read a block of rows at a time: one pass for the values, one for the rest.

The float64 Gram matrix of the columns is a sum over blocks of rows. One pass gives all singular values with the bound of
that route, and the right singular vectors; U = AV/σ takes a second one, which measures residuals and error as it goes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from eigenscope.errors import InputError
from eigenscope.methods.bounds import gram_bound, lapack_bound, value_bounds
from eigenscope.methods.exact import DEFAULT_TOLERANCE
from eigenscope.methods.lapack import add_gram, symmetric_eigen
from eigenscope.operators.streamed import Rows
from eigenscope.results import Spectrum

MOST_COLUMNS = 4096
"""Columns beyond which the Gram matrix is not formed: at this size it takes 128 MB, and its eigenvalues seconds."""


ORTHOGONAL = 1e-10
"""Largest cosine between two left vectors that counts as a right angle."""
TINY = torch.finfo(torch.float64).tiny
Centre = Literal["", "columns", "rows"]
"""Whose mean is taken away: that of each column, of each row, or none."""


@dataclass(frozen=True)
class Reduced:
    """What one pass over the rows leaves.

    Attributes:
        spectrum: all n values, bounds, the k leading right vectors; no left ones and no residuals.
        centre: whose mean was taken away.
        mean: (n,) of the columns, or (m,) of the rows, else None.
        exponent: e of the factor 2^−e that keeps squares inside float64's range.
    """

    spectrum: Spectrum
    centre: Centre
    mean: Tensor | None
    exponent: int


def reduce_rows(rows: Rows, k: int, *, centre: Centre = "", tol: float | None = None) -> Reduced:
    """All singular values and the k leading right singular vectors of a tall matrix, in one pass.

    With ``centre="columns"`` those of A − 1μᵀ. Rows are shifted by the mean of the first block, and the Gram matrix
    corrected by the rest of the shift at the end, so that a mean far from 0 costs no digits (Chan, Golub & LeVeque, The
    American Statistician 37(3), 1983, on shifted data). With ``centre="rows"`` those of A − μ1ᵀ.

    Args:
        rows: (m, n), n ≤ m and n ≤ 4096.
        k: vectors wanted, 1 ≤ k ≤ n.
        centre: subtract the mean of each column, or of each row.
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
    means: list[Tensor] = []
    exponent: int | None = None
    for _, block in rows.blocks():
        entries = block.to(wide)
        if exponent is None and (largest := float(entries.abs().max())) > 0.0:
            exponent = math.frexp(largest)[1]
        entries = _scaled(entries, exponent or 0)
        if centre == "rows":
            means.append(entries.mean(dim=1))
            entries -= means[-1].unsqueeze(1)
        elif centre:
            shift = entries.mean(dim=0) if shift is None else shift
            entries -= shift
            total += entries.sum(dim=0)
        if wide.is_complex:
            gram += entries.mH @ entries
        else:
            add_gram(gram.numpy(), entries.contiguous().numpy(), of_rows=False)
    frobenius = math.sqrt(float(gram.diagonal().real.sum()))
    mean = torch.cat(means) if means else None
    if shift is not None:
        rest = total / m
        gram -= m * torch.outer(rest.conj(), rest)
        mean = shift + rest
    values, right = _decomposed(gram, k)
    back = exponent or 0
    largest = float(values[0])
    bounds = value_bounds(values, gram_bound(frobenius, largest, m, n))
    spectrum = Spectrum(
        values=_scaled(values, -back), left=None, right=right, residuals=None, bounds=_scaled(bounds, -back),
        converged=bounds <= (DEFAULT_TOLERANCE if tol is None else tol) * largest, kind="singular", shape=(m, n),
        complete=True, frobenius=float(_scaled(torch.linalg.vector_norm(values), -back)), method="gram by row blocks",
        reason=f"float64 Gram matrix of the {n} columns, summed over blocks of rows",
    )  # fmt: skip
    return Reduced(spectrum, centre, None if mean is None else _scaled(mean, -back), back)


def _scaled(entries: Tensor, exponent: int) -> Tensor:
    """The entries times 2^−e, in two factors: 2^−e alone overflows for the smallest subnormal numbers."""
    half = exponent // 2
    return entries if exponent == 0 else entries * 2.0**-half * 2.0 ** (half - exponent)


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


def complete_triplets(rows: Rows, reduced: Reduced, k: int, *, tol: float | None = None) -> tuple[Spectrum, float]:
    """The k leading triplets, in one more pass.

    σᵢ = ‖A vᵢ‖ and uᵢ = A vᵢ/σᵢ, so that ‖A v − σ u‖ is 0 and the residual is that of the adjoint: measured, or for the
    smallest values, where the measurement divides by them, bounded by what the vectors before leave of the matrix.

    Args:
        rows: (m, n), those that were reduced.
        reduced: of at least k right vectors.
        k: how many.
        tol: largest residual accepted as converged, relative to σ₁; default 1e-6.

    Returns:
        The triplets, with Frobenius norm; and ‖A − U diag(σ) Vᴴ‖_F/‖A‖_F, measured entry by entry.

    Raises:
        InputError: fewer right vectors than that.
    """
    if reduced.spectrum.right is None or not 1 <= k <= reduced.spectrum.right.shape[1]:
        raise InputError(f"k = {k}", expected="as many right vectors from the first pass")
    right = reduced.spectrum.right[:, :k]
    mean = None if reduced.mean is None else reduced.mean.to(right.dtype)
    m, n = rows.shape
    left = torch.empty(m, k, dtype=right.dtype)
    back, inner = torch.zeros(k, n, dtype=right.dtype), torch.zeros(k, k, dtype=right.dtype)
    energy, missing = [], []
    for start, block in rows.blocks():
        entries = block.to(right.dtype)
        if mean is not None:
            entries = entries - (mean[start : start + len(block)].unsqueeze(1) if reduced.centre == "rows" else mean)
        entries = _scaled(entries, reduced.exponent)
        product = entries @ right
        left[start : start + len(block)] = product
        back += product.mH @ entries
        inner += product.mH @ product
        energy.append(float(torch.linalg.vector_norm(entries)))
        missing.append(float(torch.linalg.vector_norm(entries - product @ right.mH)))
    total, lost = math.hypot(*energy), math.hypot(*missing)
    left, sigma, right, back = _orthonormal(left, inner, right, back)
    largest = float(sigma[0])
    measured = torch.linalg.vector_norm((back / sigma.clamp(min=TINY).unsqueeze(1)).mH - right * sigma, dim=0)
    # u_i is orthogonal to the u before it, so that Aᴴu_i is no longer than what these leave of A, and of what V leaves.
    limit = sigma.square().flip(0).cumsum(0).flip(0).sqrt() + lost + sigma
    residuals = torch.minimum(measured, limit)
    spectrum = Spectrum(
        values=_scaled(sigma, -reduced.exponent), left=left, right=right,
        residuals=_scaled(residuals, -reduced.exponent),
        bounds=_scaled(residuals + lapack_bound((m, n), largest), -reduced.exponent),
        converged=residuals <= (DEFAULT_TOLERANCE if tol is None else tol) * largest, kind="singular",
        shape=(m, n), complete=k == min(m, n), frobenius=total * 2.0**reduced.exponent, method="gram by row blocks",
        reason=f"{k} right vectors from the Gram matrix of the {n} columns, left ones by a second pass",
    )  # fmt: skip
    return spectrum, lost / total if total else 0.0


def _orthonormal(left: Tensor, inner: Tensor, right: Tensor, back: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """U, σ, V and σUᴴA from Y = AV, YᴴY, V and YᴴA.

    The columns of Y are orthogonal to eps·σ₁², and Y/σ to eps·σ₁²/σₖ²: too little where the values span many decades. There
    Y = QR and the SVD of R make them so, within the same spaces.
    """
    sigma = torch.linalg.vector_norm(left, dim=0)
    scale = sigma.clamp(min=TINY)
    cosines = inner / scale / scale.unsqueeze(1)
    off = float((cosines - torch.eye(len(sigma), dtype=inner.dtype)).abs().max())
    if off <= ORTHOGONAL and not bool((sigma[1:] > sigma[:-1]).any()):
        left /= scale
        return left, sigma, right, back
    basis, factor = torch.linalg.qr(left)
    rotation, sigma, turned = torch.linalg.svd(factor)
    return basis @ rotation, sigma, right @ turned.mH, turned @ back
