"""Matrices of known spectra, and every operator beside its dense twin."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from eigenscope.operators.algebra import Block, Gram, Product, Scaled, Sum
from eigenscope.operators.arrays import Dense, LowRank, Sparse, as_operator
from eigenscope.operators.base import LinearOperator
from eigenscope.operators.curvature import Hessian, hessian
from eigenscope.operators.evaluated import LossHessian
from eigenscope.operators.gauss_newton import Fisher, GaussNewton, fisher, gauss_newton
from eigenscope.operators.jacobian import Jacobian, JacobianAdjoint, jacobian, tangent_kernel
from eigenscope.operators.preconditioned import Preconditioned, preconditioned
from eigenscope.operators.streamed import Rows, RowsAdjoint, SlicedRows, centred

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
SHAPES = ((7, 4), (4, 7))
OTHER_SHAPES = ((5, 5), (1, 6), (6, 1), (1, 1), (0, 5), (5, 0), (0, 0))
"""Tried in double precision only: they ask about shapes, not about rounding."""


def gaussian(m: int, n: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """(m, n) standard normal entries, drawn in double precision, then rounded to ``dtype``."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=wide).to(dtype)


def orthonormal(m: int, k: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """(m, k) orthonormal columns, k ≤ m: the Q of a Gaussian matrix, in double precision."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.linalg.qr(gaussian(m, k, seed, wide))[0]


def with_spectrum(m: int, n: int, values: Tensor, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """(m, n) matrix U diag(values) Vᴴ of the given k ≤ min(m, n) singular values; the others are 0.

    Formed in double precision, then rounded to ``dtype``: by Weyl's inequality no singular value moves by more
    than the rounding, eps·‖A‖_F.
    """
    count = len(values)
    left, right = orthonormal(m, count, seed, dtype), orthonormal(n, count, seed + 1, dtype)
    return ((left * values.to(torch.float64)) @ right.mH).to(dtype)


def symmetric_with_spectrum(values: Tensor, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """(n, n) exactly symmetric (Hermitian) matrix of the given n eigenvalues, signed, in any order."""
    vectors = orthonormal(len(values), len(values), seed, dtype)
    matrix = (vectors * values.to(torch.float64)) @ vectors.mH
    return ((matrix + matrix.mH) / 2).to(dtype)


def _steps(k: int) -> Tensor:
    return torch.arange(k, dtype=torch.float64)


def _padded(values: Tensor, k: int) -> Tensor:
    return torch.cat([values[:k], torch.zeros(max(k - len(values), 0), dtype=torch.float64)])


SPECTRA: dict[str, Callable[[int], Tensor]] = {
    "flat": lambda k: torch.ones(k, dtype=torch.float64),
    "decaying": lambda k: 10.0 ** (-6.0 * _steps(k) / max(k - 1, 1)),
    "polynomial": lambda k: 1.0 / (1.0 + _steps(k)),
    "repeated": lambda k: 1.0 / (1.0 + _steps(k) // 3),
    "clustered": lambda k: 10.0 ** -((3 * _steps(k)) // max(k, 1)) * (1.0 - 1e-9 * _steps(k)),
    "rank-deficient": lambda k: _padded(1.0 / (1.0 + _steps((k + 1) // 2)), k),
    "zero": lambda k: torch.zeros(k, dtype=torch.float64),
    "one": lambda k: _padded(torch.ones(1, dtype=torch.float64), k),
}
"""name → (k,) descending float64 values. decaying: 1 … 1e-6 whatever k; repeated: each value three times;
clustered: three groups, near 1, 0.1 and 0.01, 1e-9 apart inside; rank-deficient: half are 0; one: rank one."""


def close(actual: Tensor, expected: Tensor, *factors: Tensor) -> bool:
    """Equal up to 100 roundings of the expected value, or of the product of the factors' norms."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    scale = float(torch.linalg.vector_norm(expected))
    if factors:
        scale = float(torch.stack([torch.linalg.vector_norm(factor).double() for factor in factors]).prod())
    error = float(torch.linalg.vector_norm(actual - expected))
    return error <= 100 * torch.finfo(expected.dtype).eps * scale


@dataclass(frozen=True)
class Case:
    """An operator class, and how to build one instance of it together with the matrix that it stands for."""

    name: str
    kind: type[LinearOperator]
    build: Callable[[], tuple[LinearOperator, Tensor]]


Built = tuple[LinearOperator, Tensor]
Builder = Callable[[int, int, torch.dtype], Built]


def _dense(m: int, n: int, dtype: torch.dtype) -> Built:
    matrix = gaussian(m, n, 1, dtype)
    return Dense(matrix), matrix.clone()


def _low_rank(m: int, n: int, dtype: torch.dtype) -> Built:
    left, right = gaussian(m, 2, 2, dtype), gaussian(n, 2, 3, dtype)
    return LowRank(left, right), left @ right.mH


def _low_rank_core(m: int, n: int, dtype: torch.dtype) -> Built:
    left, right, core = gaussian(m, 3, 4, dtype), gaussian(n, 3, 5, dtype), gaussian(3, 1, 6, dtype)[:, 0]
    return LowRank(left, right, core), left @ torch.diag(core) @ right.mH


def _sparse_matrix(m: int, n: int, dtype: torch.dtype) -> Tensor:
    matrix = gaussian(m, n, 7, dtype)
    return torch.where(matrix.real.abs() < 0.5, torch.zeros_like(matrix), matrix)


def _sparse_csr(m: int, n: int, dtype: torch.dtype) -> Built:
    matrix = _sparse_matrix(m, n, dtype)
    return Sparse(scipy.sparse.csr_array(matrix.numpy())), matrix


def _sparse_coo(m: int, n: int, dtype: torch.dtype) -> Built:
    matrix = _sparse_matrix(m, n, dtype)
    return Sparse(scipy.sparse.coo_matrix(matrix.numpy())), matrix


def _sum(m: int, n: int, dtype: torch.dtype) -> Built:
    (left, left_matrix), (right, right_matrix) = _dense(m, n, dtype), _low_rank(m, n, dtype)
    return left + right, left_matrix + right_matrix


def _difference(m: int, n: int, dtype: torch.dtype) -> Built:
    (left, left_matrix), (right, right_matrix) = _sparse_csr(m, n, dtype), _low_rank(m, n, dtype)
    return left - right, left_matrix - right_matrix


def _scaled(m: int, n: int, dtype: torch.dtype) -> Built:
    operator, matrix = _dense(m, n, dtype)
    factor = 0.5 - 2.0j if dtype.is_complex else -2.5
    return factor * operator, factor * matrix


def _product(m: int, n: int, dtype: torch.dtype) -> Built:
    left, right = gaussian(m, 3, 8, dtype), gaussian(3, n, 9, dtype)
    return Dense(left) @ Dense(right), left @ right


def _nested(m: int, n: int, dtype: torch.dtype) -> Built:
    (outer, outer_matrix), (inner, inner_matrix) = _dense(m, n, dtype), _sparse_csr(n, n, dtype)
    return -(outer @ (inner + inner.gram())), -(outer_matrix @ (inner_matrix + inner_matrix.mH @ inner_matrix))


def _gram(m: int, n: int, dtype: torch.dtype) -> Built:
    operator, matrix = _dense(m, n, dtype)
    return operator.gram(), matrix.mH @ matrix


def _block_slices(m: int, n: int, dtype: torch.dtype) -> Built:
    matrix = gaussian(m + 3, n + 2, 10, dtype)
    return Block(Dense(matrix), slice(2, 2 + m), slice(0, n)), matrix[2 : 2 + m, :n]


def _block_positions(m: int, n: int, dtype: torch.dtype) -> Built:
    matrix = gaussian(m + 3, 2 * n, 11, dtype)
    rows = torch.randperm(m + 3, generator=torch.Generator().manual_seed(12))[:m]
    return Block(Dense(matrix), rows, slice(None, None, 2)), matrix[rows][:, ::2]


def _block_rows(m: int, n: int, dtype: torch.dtype) -> Built:
    operator, matrix = _low_rank_core(m + 1, n, dtype)
    return Block(operator, rows=slice(None, -1)), matrix[:-1]


def _rows(m: int, n: int, dtype: torch.dtype) -> Built:
    matrix = gaussian(m, n, 16, dtype)
    return Rows(SlicedRows(matrix.numpy()), block_bytes=16 * max(n, 1)), matrix


def _sparse_rows(m: int, n: int, dtype: torch.dtype) -> Built:
    matrix = _sparse_matrix(m, n, dtype)
    return Rows(SlicedRows(scipy.sparse.csr_array(matrix.numpy())), block_bytes=24 * max(n, 1)), matrix


def _rows_adjoint(m: int, n: int, dtype: torch.dtype) -> Built:
    operator, matrix = _rows(n, m, dtype)
    return operator.T, matrix.mH


def _centred(m: int, n: int, dtype: torch.dtype) -> Built:
    operator, matrix = _rows(m, n, dtype)
    mean = gaussian(n, 1, 17, dtype)[:, 0]
    return centred(operator, mean), matrix - mean


RECTANGULAR: dict[str, tuple[type[LinearOperator], Builder]] = {
    "dense": (Dense, _dense),
    "low rank": (LowRank, _low_rank),
    "low rank with core": (LowRank, _low_rank_core),
    "sparse CSR": (Sparse, _sparse_csr),
    "sparse COO": (Sparse, _sparse_coo),
    "sum": (Sum, _sum),
    "difference": (Sum, _difference),
    "scaled": (Scaled, _scaled),
    "product": (Product, _product),
    "nested": (Scaled, _nested),
    "Gram": (Gram, _gram),
    "block of slices": (Block, _block_slices),
    "block of positions": (Block, _block_positions),
    "block of rows": (Block, _block_rows),
    "streamed rows": (Rows, _rows),
    "streamed sparse rows": (Rows, _sparse_rows),
    "adjoint of streamed rows": (RowsAdjoint, _rows_adjoint),
    "centred": (Sum, _centred),
}


def _symmetric(dtype: torch.dtype) -> tuple[Dense, Tensor]:
    matrix = symmetric_with_spectrum(torch.tensor([3.0, 1.0, 0.0, -2.0, 1e-3]), 13, dtype)
    return Dense(matrix, symmetric=True), matrix


def _symmetric_dense(dtype: torch.dtype) -> Built:
    return _symmetric(dtype)


def _symmetric_low_rank(dtype: torch.dtype) -> Built:
    factor, core = gaussian(5, 2, 14, dtype), torch.tensor([2.0, -1.0], dtype=dtype.to_real())
    return LowRank(factor, factor.clone(), core), factor @ torch.diag(core.to(dtype)) @ factor.mH


def _symmetric_sparse(dtype: torch.dtype) -> Built:
    matrix = _sparse_matrix(5, 5, dtype)
    matrix = matrix + matrix.mH
    return Sparse(scipy.sparse.csc_array(matrix.resolve_conj().numpy()), symmetric=True), matrix


def _symmetric_sum(dtype: torch.dtype) -> Built:
    (left, left_matrix), (right, right_matrix) = _symmetric(dtype), _symmetric_low_rank(dtype)
    return left + right, left_matrix + right_matrix


def _symmetric_scaled(dtype: torch.dtype) -> Built:
    operator, matrix = _symmetric(dtype)
    return operator * np.float32(-3.0), matrix * -3.0


def _symmetric_block(dtype: torch.dtype) -> Built:
    operator, matrix = _symmetric(dtype)
    positions = torch.tensor([4, 0, 2])
    return Block(operator, positions, positions), matrix[positions][:, positions]


def _from_float16(dtype: torch.dtype) -> Built:
    matrix = gaussian(4, 3, 15).to(torch.float16)
    return as_operator(matrix), matrix.to(torch.float32)


def _small_loss(dtype: torch.dtype) -> tuple[torch.nn.Module, Callable[..., Tensor], list[tuple[Tensor, Tensor]]]:
    """A net of tanh units, its mean squared error, and two batches of unequal size."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh(), torch.nn.Linear(2, 1)).to(dtype)
    with torch.no_grad():
        for place, parameter in enumerate(model.parameters()):
            parameter.copy_(gaussian(parameter.numel(), 1, 40 + place, dtype).reshape(parameter.shape))
    x, y = gaussian(5, 2, 45, dtype), gaussian(5, 1, 46, dtype)

    def loss(model: torch.nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return torch.nn.functional.mse_loss(model(batch[0]), batch[1])

    return model, loss, [(x[:3], y[:3]), (x[3:], y[3:])]


def _dense_hessian(model: torch.nn.Module, value: Tensor) -> Tensor:
    """∇² of the value by differentiating each entry of its gradient."""
    parameters = list(model.parameters())
    first = torch.cat([part.reshape(-1) for part in torch.autograd.grad(value, parameters, create_graph=True)])
    rows = [torch.autograd.grad(entry, parameters, retain_graph=True, allow_unused=True) for entry in first]
    return torch.stack([
        torch.cat([torch.zeros_like(p).reshape(-1) if part is None else part.reshape(-1) for part, p in zip(row, parameters)])
        for row in rows
    ])  # fmt: skip


def _hessian(dtype: torch.dtype) -> Built:
    model, loss, batches = _small_loss(dtype)
    operator = hessian(model, loss, batches)
    twin = copy.deepcopy(model).double()
    pairs = [(x.double(), y.double()) for x, y in batches]
    dense = sum(len(pair[0]) / 5 * _dense_hessian(twin, loss(twin, pair)) for pair in pairs)
    return operator, dense.to(dtype)


def _loss_hessian(dtype: torch.dtype) -> Built:
    matrix = symmetric_with_spectrum(torch.tensor([3.0, 1.0, 0.0, -2.0, 1e-3]), 13, dtype)
    first, second = gaussian(2, 1, 18, dtype).requires_grad_(), gaussian(1, 3, 19, dtype).requires_grad_()
    point = torch.cat([first.reshape(-1), second.reshape(-1)])
    return LossHessian(0.5 * point @ matrix @ point, [first, second]), matrix


def _dense_jacobian(model: torch.nn.Module, x: Tensor) -> Tensor:
    """The Jacobian of the outputs by the parameters, in double precision, a gradient for each output."""
    twin = copy.deepcopy(model).double()
    rows = [torch.autograd.grad(y, list(twin.parameters()), retain_graph=True) for y in twin(x.double()).reshape(-1)]
    return torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])


def _gauss_newton(dtype: torch.dtype) -> Built:
    model, loss, batches = _small_loss(dtype)
    J = _dense_jacobian(model, torch.cat([x for x, _ in batches]))
    return gauss_newton(model, loss, batches), (2.0 / 5.0 * J.mT @ J).to(dtype)


def _empirical_fisher(dtype: torch.dtype) -> Built:
    model, loss, batches = _small_loss(dtype)
    x, y = (torch.cat(parts) for parts in zip(*batches))
    J = _dense_jacobian(model, x) * 2.0 * (copy.deepcopy(model).double()(x.double()) - y.double()).detach()
    return fisher(model, loss, batches, kind="empirical"), (J.mT @ J / 5.0).to(dtype)


def _jacobian(dtype: torch.dtype) -> Built:
    model, _, batches = _small_loss(dtype)
    x = torch.cat([x for x, _ in batches])
    return jacobian(model, x, params=True), _dense_jacobian(model, x).to(dtype)


def _jacobian_adjoint(dtype: torch.dtype) -> Built:
    operator, dense = _jacobian(dtype)
    return operator.T, dense.mT


def _tangent_kernel(dtype: torch.dtype) -> Built:
    model, _, batches = _small_loss(dtype)
    J = _dense_jacobian(model, batches[0][0])
    return tangent_kernel(model, batches[0][0]), (J @ J.mT).to(dtype)


def _preconditioned(dtype: torch.dtype) -> Built:
    operator, dense = _symmetric(dtype)
    diagonal = torch.tensor([4.0, 0.25, 1.0, 9.0, 100.0], dtype=dtype)
    return preconditioned(operator, diagonal), dense / torch.outer(diagonal, diagonal).sqrt()


REAL: dict[str, tuple[type[LinearOperator], Callable[[torch.dtype], Built]]] = {
    "symmetric Hessian": (Hessian, _hessian),
    "symmetric Gauss-Newton": (GaussNewton, _gauss_newton),
    "symmetric empirical Fisher": (Fisher, _empirical_fisher),
    "Jacobian": (Jacobian, _jacobian),
    "adjoint of a Jacobian": (JacobianAdjoint, _jacobian_adjoint),
    "tangent kernel": (Gram, _tangent_kernel),
    "symmetric preconditioned": (Preconditioned, _preconditioned),
    "symmetric Hessian of an evaluated loss": (LossHessian, _loss_hessian),
}
"""Operators of a model's loss, which is real."""


SYMMETRIC: dict[str, tuple[type[LinearOperator], Callable[[torch.dtype], Built]]] = {
    "symmetric dense": (Dense, _symmetric_dense),
    "symmetric low rank": (LowRank, _symmetric_low_rank),
    "symmetric sparse": (Sparse, _symmetric_sparse),
    "symmetric sum": (Sum, _symmetric_sum),
    "symmetric scaled": (Scaled, _symmetric_scaled),
    "principal block": (Block, _symmetric_block),
}


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


CASES: tuple[Case, ...] = (
    *(
        Case(f"{name} {m}×{n} {_short(dtype)}", kind, lambda b=build, s=(m, n, dtype): b(*s))
        for name, (kind, build) in RECTANGULAR.items()
        for dtype in DTYPES
        for m, n in (SHAPES + OTHER_SHAPES if dtype == torch.float64 else SHAPES)
    ),
    *(
        Case(f"{name} {_short(dtype)}", kind, lambda b=build, d=dtype: b(d))
        for name, (kind, build) in SYMMETRIC.items()
        for dtype in DTYPES
    ),
    *(
        Case(f"{name} {_short(dtype)}", kind, lambda b=build, d=dtype: b(d))
        for name, (kind, build) in REAL.items()
        for dtype in (torch.float32, torch.float64)
    ),
    Case("as_operator of float16", Dense, lambda: _from_float16(torch.float16)),
)


class Diagonal(LinearOperator):
    """An operator with known eigenvalues, and nothing else that a method could use."""

    def __init__(self, values: Tensor, stop: int | None = None) -> None:
        super().__init__((len(values), len(values)), values.dtype, values.device, symmetric=True)
        self.values, self.stop = values, stop

    def _matmat(self, X: Tensor) -> Tensor:
        if self.stop is not None and self.products > self.stop:
            raise KeyboardInterrupt
        return self.values[:, None] * X

    def _adjoint(self) -> LinearOperator:
        return self
