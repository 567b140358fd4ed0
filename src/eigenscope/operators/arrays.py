"""Operators over arrays: a dense tensor, low-rank factors, a SciPy sparse matrix."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from eigenscope.errors import InputError
from eigenscope.operators.base import LinearOperator

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
"""The dtypes in which products are computed; ``as_operator`` promotes all others."""
_ACCEPTED = "float32, float64, complex64 or complex128"


@final
class Dense(LinearOperator):
    """A dense matrix. It shares the tensor's memory, and takes no part in autograd with respect to it.

    Args:
        matrix: (m, n), float32, float64, complex64 or complex128, on any device. NaN is not looked for here:
            ``as_operator`` does.
        symmetric: claim that the matrix equals its adjoint. It is checked:
            maxᵢⱼ|A − Aᴴ| ≤ max(n, 100)·eps·maxᵢⱼ|A|, which leaves room for the rounding of a computed product
            BᴴB (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., (3.13)).

    Raises:
        InputError: not a strided 2-D tensor of these dtypes, or claimed symmetric and not so.
    """

    def __init__(self, matrix: Tensor, symmetric: bool = False) -> None:
        _check_tensor(matrix, "Dense")
        _check_dtype(matrix.dtype, "Dense")
        self.matrix = matrix.detach()
        """(m, n), the entries: for methods that work on them and not on products."""
        rows, cols = matrix.shape
        super().__init__((rows, cols), matrix.dtype, matrix.device, symmetric)
        if symmetric and matrix.numel():
            asymmetry = float((self.matrix - self.matrix.mH).abs().max())
            _check_symmetric(asymmetry, float(self.matrix.abs().max()), self)

    def _matmat(self, X: Tensor) -> Tensor:
        if X.shape[1] > 1 and X.device.type == "cpu" and not X.is_complex():
            # BLAS multiplies a thin block from the left up to ten times as fast as from the right.
            return (X.mT @ self.matrix.mT).mT
        return self.matrix @ X

    def _adjoint(self) -> LinearOperator:
        return Dense(self.matrix.mH)


@final
class LowRank(LinearOperator):
    """L diag(c) Rᴴ, applied factor by factor: 2(m + n)r operations a column. For real factors Rᴴ = Rᵀ.

    Symmetric where L and R are equal, entry by entry, and c is real. The tensors are shared, not copied.

    Args:
        left: L (m, r), float32, float64, complex64 or complex128.
        right: R (n, r), of the same dtype and device.
        core: c (r,), of the same dtype, or of the real one that belongs to it (the singular values of
            ``torch.linalg.svd``); None for ones.

    Raises:
        InputError: other dimensions or dtypes, ranks that differ, or tensors on several devices.
    """

    def __init__(self, left: Tensor, right: Tensor, core: Tensor | None = None) -> None:
        _check_tensor(left, "LowRank left")
        _check_tensor(right, "LowRank right")
        _check_dtype(left.dtype, "LowRank left")
        where = f"LowRank of left {_described(left)} and right {_described(right)}"
        if left.shape[1] != right.shape[1]:
            raise InputError(
                f"ranks {left.shape[1]} and {right.shape[1]} differ", where=where, expected="(m, r) and (n, r)"
            )
        if left.dtype != right.dtype or left.device != right.device:
            raise InputError("the factors differ in kind", where=where, expected="one dtype and one device")
        if core is not None:
            _check_core(core, left, where)
            core = core.detach().to(left.dtype)
        self.left, self.right, self.core = left.detach(), right.detach(), core
        real_core = core is None or not core.is_complex() or not bool(core.imag.any())
        symmetric = real_core and torch.equal(self.left, self.right)
        super().__init__((left.shape[0], right.shape[0]), left.dtype, left.device, symmetric)

    def _matmat(self, X: Tensor) -> Tensor:
        inner = self.right.mH @ X
        if self.core is not None:
            inner = self.core.unsqueeze(1) * inner
        return self.left @ inner

    def _adjoint(self) -> LinearOperator:
        return LowRank(self.right, self.left, None if self.core is None else self.core.conj())


@final
class Sparse(LinearOperator):
    """A SciPy sparse matrix, on the CPU. CSR and CSC are kept and share memory; others are converted to CSR.

    Its products are SciPy's: as fast as torch's sparse CSR, which is in beta, and with a free adjoint, since
    the transpose of CSR is CSC. They take no part in autograd.

    Args:
        matrix: (m, n) SciPy sparse matrix or array, float32, float64, complex64 or complex128.
        symmetric: claim that the matrix equals its adjoint, checked as in :class:`Dense`.

    Raises:
        InputError: not a 2-D SciPy sparse matrix of these dtypes, or claimed symmetric and not so.
    """

    def __init__(self, matrix: Any, symmetric: bool = False) -> None:
        if not scipy.sparse.issparse(matrix) or matrix.ndim != 2:
            got = f"{matrix.ndim}-D" if scipy.sparse.issparse(matrix) else f"a {type(matrix).__name__}"
            raise InputError(f"the matrix is {got}", where="Sparse", expected="a 2-D SciPy sparse matrix")
        dtype = _torch_dtype(matrix.dtype)
        _check_dtype(dtype or matrix.dtype, "Sparse")
        self.matrix = matrix if matrix.format in ("csr", "csc") else matrix.tocsr()
        """(m, n) SciPy matrix in CSR or CSC."""
        super().__init__(matrix.shape, dtype or torch.float64, "cpu", symmetric)
        if symmetric and self.matrix.nnz:
            entries = self.matrix.copy()  # SciPy's abs and max merge duplicate entries in place
            asymmetry = float(abs(entries - entries.conj().T).max())
            _check_symmetric(asymmetry, float(abs(entries).max()), self)

    def _matmat(self, X: Tensor) -> Tensor:
        return torch.from_numpy(self.matrix @ X.detach().resolve_conj().resolve_neg().numpy())

    def _adjoint(self) -> LinearOperator:
        return Sparse(self.matrix.conj(copy=False).T)


def as_operator(A: Any) -> LinearOperator:
    """The operator of any matrix: an operator as it is, a tensor or ndarray as Dense, SciPy sparse as Sparse.

    Integers and booleans become float64 (whole numbers beyond 2⁵³ are rounded); float16, bfloat16 and float8
    become float32, without loss. Nothing is written to A. Where no conversion is needed the operator shares A's
    memory, so that what is written into A afterwards is seen; a read-only ndarray, or one that torch cannot view, is
    copied.

    Args:
        A: (m, n) :class:`LinearOperator`, tensor on any device, ndarray or SciPy sparse matrix.

    Raises:
        InputError: another type or dtype, not 2-D, a masked array, or NaN or infinite entries: how many, and
            where the first one is.
    """
    if isinstance(A, LinearOperator):
        return A
    if scipy.sparse.issparse(A):
        return _from_sparse(A)
    if isinstance(A, np.ndarray):
        return _from_tensor(_from_numpy(A))
    if isinstance(A, Tensor):
        return _from_tensor(A)
    raise InputError(
        f"the matrix is a {type(A).__name__}",
        expected="a LinearOperator, a torch tensor, a NumPy array or a SciPy sparse matrix",
        remedy="use numpy.asarray on it",
    )


def _from_tensor(matrix: Tensor) -> LinearOperator:
    _check_tensor(matrix, "matrix")
    operator = Dense(_widened(matrix))
    parts = torch.view_as_real(operator.matrix.resolve_conj()) if operator.dtype.is_complex else operator.matrix
    # One pass without a temporary: minimum and maximum carry any NaN or infinity.
    if parts.numel() and not all(bool(extreme.isfinite()) for extreme in torch.aminmax(parts)):
        bad = operator.matrix.isfinite().logical_not()
        row, col = bad.nonzero()[0].tolist()
        raise _not_finite(int(bad.sum()), matrix.numel(), row, col, operator.matrix[row, col].item())
    return operator


def _widened(matrix: Tensor) -> Tensor:
    """Integers as float64, narrow floats as float32; anything else as it is."""
    kind = matrix.dtype
    if kind.is_complex or (kind.is_floating_point and kind.itemsize >= 4):
        return matrix
    try:
        return matrix.to(torch.float32 if kind.is_floating_point else torch.float64)
    except NotImplementedError as error:  # formats that torch stores, packed, but cannot convert
        raise InputError(
            f"the entries are {kind}, which torch cannot convert", where="matrix", remedy="unpack them first"
        ) from error


def _from_numpy(array: NDArray[Any]) -> Tensor:
    if isinstance(array, np.ma.MaskedArray):
        raise InputError("the matrix is a masked array", remedy="use A.filled(value)")
    array = np.asarray(array, dtype=_promoted(array.dtype))
    # torch takes neither negative strides nor fractions of an entry, and warns of a read-only buffer.
    fits = all(stride >= 0 and stride % array.itemsize == 0 for stride in array.strides)
    if not (fits and array.flags.behaved):
        array = array.copy()
    return torch.from_numpy(array)


def _from_sparse(matrix: Any) -> LinearOperator:
    operator = Sparse(matrix.astype(_promoted(matrix.dtype), copy=False))
    bad = ~np.isfinite(operator.matrix.data)
    if bad.any():
        entries = operator.matrix.tocoo()
        rows, cols, values = entries.row[bad], entries.col[bad], entries.data[bad]
        first = np.lexsort((cols, rows))[0]
        raise _not_finite(len(rows), len(bad), int(rows[first]), int(cols[first]), values[first].item())
    return operator


def _promoted(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The NumPy dtype, in native byte order, that holds every value of a given one and has products."""
    if dtype.kind in "biu":
        return np.dtype(np.float64)
    if dtype == np.float16:
        return np.dtype(np.float32)
    native = dtype.newbyteorder("=")
    if _torch_dtype(native) is None:
        raise InputError(
            f"the entries are {dtype}", expected=f"numbers of at most 64 bits, or {_ACCEPTED}",
            remedy="use A.astype('float64')",
        )  # fmt: skip
    return native


def _torch_dtype(dtype: np.dtype[Any]) -> torch.dtype | None:
    return {str(known).removeprefix("torch."): known for known in DTYPES}.get(np.dtype(dtype).name)


def _not_finite(count: int, total: int, row: int, col: int, value: complex) -> InputError:
    return InputError(
        f"{count} of {total} entries are NaN or infinite, the first ({value}) at row {row}, column {col} from 0",
        where="matrix",
        expected="finite entries",
        remedy="replace them, or find what wrote them",
    )


def _check_tensor(matrix: Tensor, where: str) -> None:
    if not isinstance(matrix, Tensor):
        raise InputError(f"a {type(matrix).__name__}", where=where, expected="a torch tensor", remedy="use as_operator")
    if matrix.ndim != 2:
        raise InputError(
            f"{matrix.ndim}-D, of shape {tuple(matrix.shape)}",
            where=where,
            expected="a 2-D matrix",
            remedy="use A.reshape(rows, -1)",
        )
    if matrix.layout != torch.strided or matrix.is_meta or matrix.is_quantized:
        kind = "meta" if matrix.is_meta else "quantized" if matrix.is_quantized else str(matrix.layout)
        raise InputError(
            f"a {kind} tensor",
            where=where,
            expected="a strided tensor with values",
            remedy="pass a sparse matrix as a SciPy one, a quantized one after dequantize()",
        )


def _check_dtype(dtype: object, where: str) -> None:
    if dtype not in DTYPES:
        raise InputError(
            f"the entries are {dtype}",
            where=where,
            expected=_ACCEPTED,
            remedy="convert them; as_operator promotes integers and narrow floats",
        )


def _check_core(core: Tensor, left: Tensor, where: str) -> None:
    rank = left.shape[1]
    if core.shape != (rank,):
        raise InputError(f"core of shape {tuple(core.shape)}", where=where, expected=f"({rank},)")
    if core.dtype not in (left.dtype, left.dtype.to_real()) or core.device != left.device:
        raise InputError(f"core {_described(core)}", where=where, expected=f"{left.dtype.to_real()} on {left.device}")


def _check_symmetric(asymmetry: float, largest: float, operator: LinearOperator) -> None:
    # The largest entry and not the Frobenius norm: it neither overflows nor underflows at extreme scales.
    tolerance = max(operator.shape[0], 100) * torch.finfo(operator.dtype).eps
    if not asymmetry <= tolerance * largest:
        raise InputError(
            f"claimed symmetric, but max|A − Aᴴ| is {asymmetry:.3g} where max|A| is {largest:.3g}",
            where=repr(operator), expected=f"at most {tolerance:.1g}·max|A|", remedy="use (A + Aᴴ)/2",
        )  # fmt: skip


def _described(tensor: Tensor) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"({'×'.join(map(str, tensor.shape))}, {dtype}, {tensor.device})"
