"""The best approximation of rank k of a dense matrix, its error measured, and a bound on what any other could reach.

Eckart & Young (Psychometrika 1, 1936): no matrix of rank k comes closer to A in the Frobenius norm than √(‖A‖_F² − Σ_{i≤k}
σᵢ²). Two routes give A ≈ U Uᴴ A with that error nearly. *sketch*: subspace iteration (Halko, Martinsson & Tropp, SIAM Review
53(2), 2011), where the values fall after the k-th. *gram*: the Gram matrix of the short side and LAPACK's k leading
eigenvectors of it, in float32 where its rounding is small beside the error, else in float64. What neither can be is taken
for granted: Σ_{i≤k} σᵢ² is bounded from above for the route taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eigenscope.errors import InputError
from eigenscope.methods.lapack import add_gram, symmetric_eigen

OVERSAMPLING = 16
EXCESS = 1e-4
"""Largest share by which the error may exceed the bound on the least possible one before a finer route is taken."""
EXACT = 1e-6
"""Error relative to ‖A‖_F below which nothing is left to decide: the rounding of float32."""
MEASURED = 1e-7
"""Rounding of an error measured in float32, relative to it."""
FIRST_GAP, GAP = 0.75, 0.35
"""How far the (k + 8)-th singular value must fall below the k-th, after one pass and after the power step, for the sketch to
be worth going on with. Pure noise shows 0.8 and more after one pass, because that blurs the gap."""
POWER = 3
"""Power steps at most."""
PROBES, NORM_STEPS, NORM_ALPHA = 16, (1, 2), 4.0
NORM_FAILURE = len(NORM_STEPS) * NORM_ALPHA**-PROBES
"""5e-10: chance that ‖E‖₂ exceeds its bound."""
BLOCK = 1024


@dataclass(frozen=True)
class Truncated:
    """A ≈ left @ rightᴴ, rank k.

    Attributes:
        left: (m, k) and right: (n, k), float32, of which the one on the short side is orthonormal times √σ and both have
            columns of norm √σ.
        values: (k,) float64 σ̂, descending; Σσ̂² is the energy kept.
        frobenius: ‖A‖_F.
        error: ‖A − left rightᴴ‖_F, measured by subtracting.
        least: no matrix of rank k comes closer to A than this.
        method: "sketch", "gram32" or "gram64".
        failure: chance that ``least`` is no bound; 0.0 where nothing was sampled.
    """

    left: Tensor
    right: Tensor
    values: Tensor
    frobenius: float
    error: float
    least: float
    method: str
    failure: float = 0.0

    @property
    def certified(self) -> bool:
        """Whether the error is within ``EXCESS`` of the least possible, or at the rounding of float32."""
        return self.error <= (1.0 + EXCESS) * self.least or self.error <= EXACT * self.frobenius


def truncated(A: Tensor, k: int, *, generator: torch.Generator, frobenius: float | None = None) -> Truncated:
    """The approximation of rank k of a real matrix, within ``EXCESS`` of the best one or with the finest route's bound.

    Args:
        A: (m, n) float32 on the CPU, finite. Never changed.
        k: 1 ≤ k ≤ min(m, n).
        generator: of the sketch.
        frobenius: ‖A‖_F where it is known already.

    Returns:
        :class:`Truncated`. Fewer than k columns where the rest of the values is zero.

    Raises:
        InputError: k out of range, or entries that are not finite.
        ArithmeticError: LAPACK did not converge.
    """
    if A.dim() != 2 or not 1 <= k <= min(A.shape):
        raise InputError(f"k = {k}", where=f"a matrix of shape {tuple(A.shape)}", expected="1 ≤ k ≤ min(m, n)")
    norm = norm_of(A) if frobenius is None else frobenius
    if not math.isfinite(norm):
        raise InputError("entries that are not finite", where="truncated", expected="finite numbers")
    # A power of two, exact: squares neither overflow nor vanish.
    exponent = math.frexp(norm)[1] if norm and not 1e-9 < norm < 1e9 else 0
    scaled = torch.ldexp(A, torch.tensor(-exponent)) if exponent else A
    wide = A.shape[0] <= A.shape[1]
    found = _routes(scaled if wide else scaled.T, k, math.ldexp(norm, -exponent), generator)
    size = math.ldexp(1.0, exponent)
    root = math.sqrt(size)
    left, right = (found.left, found.right) if wide else (found.right, found.left)
    return Truncated(
        left * root, right * root, found.values * size, found.frobenius * size, found.error * size,
        found.least * size, found.method, found.failure,
    )  # fmt: skip


def _routes(A: Tensor, k: int, frobenius: float, generator: torch.Generator) -> Truncated:
    """A is (m, n) with m ≤ n."""
    if frobenius == 0.0:
        return Truncated(
            A.new_zeros(A.shape[0], 0), A.new_zeros(A.shape[1], 0), A.new_zeros(0).double(), 0.0, 0.0, 0.0, "zero"
        )
    found = _by_sketch(A, k, frobenius, generator)
    for dtype in (np.float32, np.float64):
        if found is not None and found.certified:
            break
        found = _by_gram(A, k, frobenius, dtype)
    return found  # type: ignore[return-value]


def _by_sketch(A: Tensor, k: int, frobenius: float, generator: torch.Generator) -> Truncated | None:
    """None where one pass shows that the values do not fall after the k-th."""
    size = k + OVERSAMPLING
    if 3 * size > A.shape[0]:
        return None
    Y = A @ torch.randn(A.shape[1], size, generator=generator)
    falls = torch.linalg.eigvalsh((Y.T @ Y).double()).flip(0).clamp(min=0.0)
    if float(falls[k + 8]) > FIRST_GAP**2 * float(falls[k - 1]):
        return None
    Q, found = torch.linalg.qr(Y)[0], None
    for _ in range(POWER):
        Q = torch.linalg.qr(A @ (A.T @ Q))[0]
        projected = A.T @ Q
        energies, rotation = torch.linalg.eigh(_gram(projected))
        energies, rotation = energies.flip(0).clamp(min=0.0), rotation.flip(1)
        if float(energies[k + 8]) > GAP**2 * float(energies[k - 1]):
            return None
        excess = _missed(A, Q, projected, energies, rotation, k, generator)
        chosen = rotation[:, :k].float()
        found = _finish(A, Q @ chosen, projected @ chosen, frobenius, excess, "sketch", NORM_FAILURE)
        if found.certified:
            break
    return found


def _missed(
    A: Tensor, Q: Tensor, projected: Tensor, energies: Tensor, rotation: Tensor, k: int, generator: torch.Generator
) -> float:
    """Bound on Σ_{i≤k} (σᵢ(A)² − Λᵢᵢ): what a basis Q leaves out; infinite where the gap after the k-th does not tell.

    In the basis [Q X, Q⊥], with X the eigenvectors of BᴴB, B = AᴴQ, and Λ its eigenvalues, AAᴴ = [[Λ, Gᴴ], [G, C]], with
    ‖C‖₂ = ‖(I − QQᴴ)A‖₂² ≤ c. For every τ > 0 that is at most diag(Λ + GᴴG/τ, C + τI) in the order of positive
    semidefinite matrices (2·Re xᴴGᴴy ≤ ‖Gx‖²/τ + τ‖y‖²). With τ = Λ_kk − c the second block has no eigenvalue above the
    k-th of the first, so the k largest of the first bound the sum (Ky Fan). G is small, and enters squared: its rounding
    does not matter.
    """
    c = math.inf
    for steps in NORM_STEPS:
        c = min(c, _complement_norm(A, Q, steps, generator) ** 2)
        if 2.0 * c < float(energies[k - 1]):
            break
    tau = float(energies[k - 1]) - c
    if not tau > 0.0:
        return math.inf
    image = A @ (projected @ rotation.float())
    image -= Q @ (Q.T @ image)
    coupled = torch.diag(energies) + _gram(image) / tau
    return float(torch.linalg.eigvalsh(coupled)[-k:].sum() - energies[:k].sum())


def _complement_norm(A: Tensor, Q: Tensor, steps: int, generator: torch.Generator) -> float:
    """Bound on ‖E‖₂, E = (I − QQᴴ)A, but for a chance of ``NORM_FAILURE``.

    Halko, Martinsson & Tropp 2011, eq. 4.3, ‖F‖₂ ≤ α√(2/π)·max ‖Fωᵢ‖, applied to F = (EEᴴ)ᑫE (Dixon, SIAM J. Numer.
    Anal. 20(4), 1983).
    """
    X = torch.randn(A.shape[1], PROBES, generator=generator)
    logs = torch.zeros(PROBES, dtype=torch.float64)
    for step in range(2 * steps + 1):
        X = A.T @ X if step % 2 else A @ X
        X = X if step % 2 else X - Q @ (Q.T @ X)
        sizes = torch.linalg.vector_norm(X, dim=0, dtype=torch.float64).clamp(min=1e-300)
        logs += sizes.log()
        X = X / sizes.float().clamp(min=1e-38)
    top = float(logs.max()) + math.log(NORM_ALPHA * math.sqrt(2.0 / math.pi))
    return math.exp(top / (2 * steps + 1))


def _by_gram(A: Tensor, k: int, frobenius: float, dtype: type[np.floating]) -> Truncated:
    rows, cols = A.shape
    gram = np.zeros((rows, rows), dtype)
    for start in range(0, cols, BLOCK):
        add_gram(gram, np.ascontiguousarray(A[:, start : start + BLOCK].numpy(), dtype), of_rows=True)
    upper = np.triu(gram)
    squares = 2.0 * float(np.vdot(upper, upper)) - float(np.vdot(gram.diagonal(), gram.diagonal()))
    values, vectors = symmetric_eigen(gram, k)
    if vectors is None:
        raise ArithmeticError("no eigenvectors")  # not reached: k ≥ 1
    left = torch.from_numpy(vectors[:, ::-1].copy())
    right = A.T.to(left.dtype) @ left
    kept = float(torch.linalg.vector_norm(right, dtype=torch.float64)) ** 2
    top = float(np.maximum(values, 0.0).sum(dtype=np.float64))
    slack = float(np.finfo(dtype).eps) / 2.0 * sum_slack(frobenius, squares, (rows, cols), k)
    return _finish(
        A, left, right, frobenius, max(top - kept, 0.0) + slack, "gram32" if dtype is np.float32 else "gram64"
    )


def sum_slack(frobenius: float, squares: float, shape: tuple[int, int], k: int) -> float:
    """What rounding may hide of the sum of the k largest eigenvalues of a Gram matrix H = AAᴴ, in unit roundoffs.

    That sum changes by at most √k·‖δ‖_F under a perturbation δ (Ky Fan; Cauchy-Schwarz). The inner products of length n
    perturb H by √n·u·‖A‖_F² (Higham & Mary, SIAM J. Sci. Comput. 41(5), 2019, Theorem 3.1), the symmetric eigensolver by
    p(m)·u·‖H‖_F with p(m) = m (LAPACK Users' Guide, §4.7).

    Args:
        frobenius: ‖A‖_F.
        squares: ‖H‖_F².
        shape: (m, n) of A.
        k: how many eigenvalues.
    """
    rows, cols = shape
    return math.sqrt(k) * (math.sqrt(cols) * frobenius**2 + rows * math.sqrt(max(squares, 0.0)))


def _finish(
    A: Tensor, left: Tensor, right: Tensor, frobenius: float, excess: float, method: str, failure: float = 0.0
) -> Truncated:
    """A ≈ left rightᴴ with the norms of the columns shared evenly; columns of no norm are dropped.

    By Pythagoras the least possible error is √(error² − excess): the measured error of an orthogonal projection has all
    its digits where the difference ‖A‖² − Σσ̂² would have none, and columns orthonormal to δ change it by δ²‖A‖².
    """
    sizes = torch.linalg.vector_norm(right, dim=0, dtype=torch.float64)
    order = torch.argsort(sizes, descending=True)
    order = order[sizes[order] > torch.finfo(torch.float32).eps * 0.1 * sizes.max()]
    values = sizes[order]
    roots = values.sqrt().float()
    left, right = left[:, order].float() * roots, right[:, order].float() / roots
    error = residual(A, left, right, frobenius)
    least = (1.0 - MEASURED) * math.sqrt(max(error**2 - excess, 0.0))
    return Truncated(left, right, values, frobenius, error, least, method, failure)


def residual(A: Tensor, left: Tensor, right: Tensor, size: float | None = None) -> float:
    """‖A − left rightᴴ‖_F, by subtracting: in float32, and in float64 where that has too few digits.

    Args:
        A: (m, n); left: (m, k); right: (n, k), any floating dtype.
        size: ‖A‖_F where it is known already.
    """
    rest = torch.addmm(A.float(), left.float(), right.float().T, alpha=-1.0)
    found = norm_of(rest)
    if found > 1e-3 * (norm_of(A) if size is None else size):
        return found
    return float(torch.linalg.vector_norm(torch.addmm(A.double(), left.double(), right.double().T, alpha=-1.0)))


def norm_of(A: Tensor) -> float:
    """‖A‖_F of a matrix: rows in its own precision, which is fast, and their squares summed in float64.

    Rounding of the rows averages out: relative to the norm it is some 1e-9 for float32. Infinite or NaN where an entry is.
    """
    rows = torch.linalg.vector_norm(A, dim=0 if A.stride(0) < A.stride(-1) else 1)
    found = float(torch.linalg.vector_norm(rows.double()))
    # Squares may leave the range of float32 where the entries do not.
    return found if 1e-15 < found < 1e15 else float(torch.linalg.vector_norm(A.double()))


def _gram(X: Tensor) -> Tensor:
    """(l, l) XᴴX in float64."""
    wide = X.double()
    return wide.T @ wide
