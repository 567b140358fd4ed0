"""Low-rank approximation in the metric of a layer's inputs and of the loss at its outputs.

‖G^½ (W − Ŵ) X^½‖_F is least, over rank r, for Ŵ = G^−½ [G^½ W X^½]_r X^−½ (Eckart & Young, 1936, in the inner products of
G and X); any factors F Fᵀ = G, X do in place of the roots, and Cholesky's cost a tenth of what those by eigenvalues do.

With X = E[x xᵀ] over a layer's inputs and G = E[g gᵀ] over the gradients of the loss at its outputs, labels drawn from
the model, half the squared norm is the second-order estimate of the loss added, the Fisher matrix of the layer
taken as X ⊗ G (Martens & Grosse, K-FAC, ICML 2015, §3.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from eigenscope.errors import InputError
from eigenscope.methods.choose import svd


@dataclass(frozen=True)
class Metric:
    """A symmetric positive definite matrix C = F Fᵀ, used by its factor: ‖Fᵀ A‖_F = ‖C^½ A‖_F.

    Attributes:
        factor: (n, n) F, lower triangular, float64; or (n,) the roots > 0 of a diagonal matrix.
    """

    factor: Tensor

    def weigh(self, A: Tensor) -> Tensor:
        """Fᵀ A."""
        return self.factor.unsqueeze(1) * A if self.factor.dim() == 1 else self.factor.T @ A

    def undo(self, A: Tensor) -> Tensor:
        """F^−ᵀ A, so that undo(weigh(A)) = A."""
        if self.factor.dim() == 1:
            return A / self.factor.unsqueeze(1)
        undone: Tensor = torch.linalg.solve_triangular(self.factor.T, A, upper=True)
        return undone

    def solve(self, B: Tensor) -> Tensor:
        """C⁻¹ B."""
        if self.factor.dim() == 1:
            return B / self.factor.square().unsqueeze(1)
        return torch.cholesky_solve(B, self.factor)


def metric(moment: Tensor, damping: float) -> Metric:
    """The metric of a second moment, ``damping`` times its mean eigenvalue added to all of them.

    Args:
        moment: (n, n) symmetric, positive semidefinite up to rounding; float32 or float64.
        damping: > 0, as the moment may be singular.

    Raises:
        InputError: it is not finite, or zero.
    """
    moment = moment.to(torch.float64)
    if not bool(torch.isfinite(moment).all()):
        raise InputError("a second moment that is not finite", expected="finite activations and gradients")
    mean = float(moment.diagonal().mean())
    if not mean > 0.0:
        raise InputError("a second moment that is zero", expected="activations that reach the layer")
    damped = moment.clone()
    damped.diagonal().add_(damping * mean)
    factor, failed = torch.linalg.cholesky_ex(damped)
    if not int(failed):
        return Metric(factor)
    # Rounding in float32 can leave eigenvalues more negative than the damping: they are zero.
    values, vectors = torch.linalg.eigh(moment)
    roots = (values.clamp(min=0.0) + damping * mean).sqrt()
    return Metric(torch.linalg.qr(roots.unsqueeze(1) * vectors.T).R.T)


def scaling(moment: Tensor, power: float) -> Metric:
    """Root mean square of every input to some power, as ASVD weighs columns (Yuan et al., ASVD, 2023, §3.2, with α = ``power``).

    Args:
        moment: (n, n) second moment, of which the diagonal is used.
        power: α.
    """
    scale = moment.diagonal().to(torch.float64).clamp(min=0.0).sqrt()
    return Metric(scale.clamp(min=1e-6 * float(scale.max()) or 1.0) ** power)


@dataclass(frozen=True)
class WeightedSVD:
    """W = left · diag(values) · right, its leading r terms the best rank-r approximation in the two metrics.

    Attributes:
        values: (s,) singular values of G^½ W X^½, float64, descending.
        left: (m, s), orthonormal in G.
        right: (s, n), rows orthonormal in X.
    """

    values: Tensor
    left: Tensor
    right: Tensor


def weighted_svd(W: Tensor, outputs: Metric | None, inputs: Metric | None) -> WeightedSVD:
    """All terms of W in the metrics of its outputs (G) and inputs (X); None is the Euclidean one.

    Args:
        W: (m, n), any floating dtype.
        outputs, inputs: metrics of sizes m and n.
    """
    M = W.to(torch.float64)
    M = M if inputs is None else inputs.weigh(M.T).T
    M = M if outputs is None else outputs.weigh(M)
    found = svd(M)
    if found.left is None or found.right is None:
        raise InputError("the decomposition gave no vectors", where=f"a {W.shape[0]}×{W.shape[1]} layer")
    left, right = found.left, found.right
    left = left if outputs is None else outputs.undo(left)
    right = right if inputs is None else inputs.undo(right)
    return WeightedSVD(found.values, left, right.T.contiguous())


def interpolate(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
    """A product left @ right of full rank r by r of its own rows, chosen by pivoted QR, and the combinations of them.

    Golub & Van Loan, Matrix Computations, 4th ed., §5.4.2; Cheng et al., SIAM J. Sci. Comput. 26(4), 2005, Theorem 3.

    Args:
        left: (m, r) float64.
        right: (r, n).

    Returns:
        down (r, n), up (m − r, r), order (m,) int64 with (left @ right) = cat([down, up @ down])[order], and the largest
        entry of ``up``: how far an error in the chosen rows grows in the others.
    """
    rank = left.shape[1]
    R, pivots = scipy.linalg.qr(left.numpy().T, mode="r", pivoting=True, check_finite=False)
    up = scipy.linalg.solve_triangular(R[:, :rank], R[:, rank:], check_finite=False).T
    places = torch.from_numpy(np.argsort(pivots))
    chosen = left[torch.from_numpy(pivots[:rank].astype(np.int64))]
    growth = float(np.abs(up).max()) if up.size else 0.0
    return chosen @ right, torch.from_numpy(np.ascontiguousarray(up)), places, growth


def held_out_losses(found: WeightedSVD, outputs: Tensor | None, inputs: Tensor | None) -> Tensor:
    """(s + 1,) float64: ½‖G^½ (W − Ŵ_r) X^½‖_F² for r = 0 … s in moments that the terms were not fitted to.

    With L and R the terms cut, it is half the sum of the entries of (Lᵀ G L) ∘ (R X Rᵀ): trailing blocks of one matrix for
    all r at once.

    Args:
        found: the terms.
        outputs, inputs: second moments G (m, m) and X (n, n); None is the identity.
    """
    left, right = found.left * found.values, found.right
    P = left.T @ (left if outputs is None else outputs.to(torch.float64) @ left)
    Q = (right if inputs is None else right @ inputs.to(torch.float64)) @ right.T
    product = P * Q
    # Sum over i, j ≥ r: the row r and the column r, on top of what is beyond r.
    upper = torch.triu(product, 1).sum(dim=1) + torch.tril(product, -1).sum(dim=0) + product.diagonal()
    losses = 0.5 * upper.flip(0).cumsum(0).flip(0)
    return torch.cat([losses, losses.new_zeros(1)]).clamp(min=0.0)
