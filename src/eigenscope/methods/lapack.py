"""A few LAPACK/BLAS routines, in two precisions, called without holding Python's global lock.

``scipy.linalg`` keeps the lock during ``eigvalsh``, so two threads run as one. SciPy publishes the addresses
of the same routines for compiled code (``scipy.linalg.cython_blas``, ``cython_lapack``); a ctypes call to
them releases the lock. ``syrk`` also adds into a given array, which lets a Gram matrix be summed by blocks.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cython_blas, cython_lapack

Array = NDArray[np.float64] | NDArray[np.float32]


def _routine(module: ModuleType, name: str, arguments: int) -> Callable[..., None]:
    capsule = module.__pyx_capi__[name]
    get_name = ctypes.pythonapi.PyCapsule_GetName
    get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    address = get_pointer(capsule, get_name(capsule))
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arguments)(address)


_SYRK = {np.dtype(kind): _routine(cython_blas, name, 10) for kind, name in (("f8", "dsyrk"), ("f4", "ssyrk"))}
_SYEVR = {np.dtype(kind): _routine(cython_lapack, name, 21) for kind, name in (("f8", "dsyevr"), ("f4", "ssyevr"))}
_SYTRD = {np.dtype(kind): _routine(cython_lapack, name, 10) for kind, name in (("f8", "dsytrd"), ("f4", "ssytrd"))}
_STERF = {np.dtype(kind): _routine(cython_lapack, name, 4) for kind, name in (("f8", "dsterf"), ("f4", "ssterf"))}


def _int(value: int) -> Any:
    return ctypes.byref(ctypes.c_int(value))


def _real(value: float, like: Array) -> Any:
    return ctypes.byref((ctypes.c_double if like.dtype == np.float64 else ctypes.c_float)(value))


def add_gram(total: Array, block: Array, *, of_rows: bool) -> None:
    """Add the Gram matrix of ``block`` to one triangle of ``total``, in place.

    Args:
        total: (n, n) C-contiguous, float64 or float32; only its upper triangle is written.
        block: C-contiguous, of the same dtype; (r, n) adds blockᵀ block, or with ``of_rows`` (n, c) adds block blockᵀ.
        of_rows: which of the two.
    """
    n = total.shape[0]
    rows, cols = block.shape
    sound = block.flags.c_contiguous and total.flags.c_contiguous and block.dtype == total.dtype
    if (rows if of_rows else cols) != n or not sound:
        raise ValueError(f"block {block.shape} {block.dtype} does not fit a {total.dtype} Gram matrix of size {n}")
    # Fortran sees the transpose: the C-contiguous (r, n) block is its n×r matrix with leading dimension n.
    _SYRK[total.dtype](
        b"L", b"T" if of_rows else b"N", _int(n), _int(cols if of_rows else rows), _real(1.0, total),
        block.ctypes.data, _int(max(cols, 1)), _real(1.0, total), total.ctypes.data, _int(max(n, 1)),
    )  # fmt: skip


def symmetric_eigen(matrix: Array, largest: int = 0) -> tuple[Array, Array | None]:
    """Eigenvalues of a symmetric matrix, ascending; the ``largest`` ones with vectors, by ``syevr``, if > 0.

    All values without vectors come from ``sytrd`` and ``sterf``, which ``syevr`` itself calls for them, but in blocks of
    the width that is fastest.

    Args:
        matrix: (n, n) C-contiguous, read from its upper triangle and **destroyed**.
        largest: 0 for all values and no vectors; otherwise how many of the largest pairs.

    Returns:
        values (n,) or (largest,), and vectors (n, largest) or None.

    Raises:
        ArithmeticError: LAPACK reports that it did not converge.
    """
    n = matrix.shape[0]
    if n == 0:
        return np.empty(0, matrix.dtype), None
    if not largest:
        return _all_values(matrix), None
    saved = matrix.copy()
    values, vectors, info = _syevr(matrix, largest)
    if info != 0 or len(values) < largest:
        # Among many equal values it may find no representation that tells them apart, or by index lose some of them.
        try:
            values, vectors = np.linalg.eigh(saved, UPLO="U")
        except np.linalg.LinAlgError as error:
            raise ArithmeticError(f"neither syevr nor syevd converged on a {n}×{n} matrix: {error}") from error
    return values[-largest:], vectors[:, -largest:]


def _all_values(matrix: Array) -> Array:
    n = matrix.shape[0]
    kind, info = matrix.dtype, ctypes.c_int()
    width = 16 if n < 1024 else 32
    diagonal, beside, factors, work = (np.empty(size, kind) for size in (n, n, n, width * n))
    _SYTRD[kind](
        b"L", _int(n), matrix.ctypes.data, _int(n), diagonal.ctypes.data, beside.ctypes.data, factors.ctypes.data,
        work.ctypes.data, _int(len(work)), ctypes.byref(info),
    )  # fmt: skip
    _STERF[kind](_int(n), diagonal.ctypes.data, beside.ctypes.data, ctypes.byref(info))
    if info.value != 0 or not np.isfinite(diagonal).all():
        raise ArithmeticError(f"sterf returned info={info.value} for a {n}×{n} matrix")
    return diagonal


def _syevr(matrix: Array, count: int) -> tuple[Array, Array, int]:
    n = matrix.shape[0]
    values, found = np.empty(n, matrix.dtype), ctypes.c_int()
    rows = np.empty((count, n), matrix.dtype)
    support, info = np.empty(2 * n, np.int32), ctypes.c_int()

    def call(work: Array, length: int, integers: NDArray[np.int32], integer_length: int) -> None:
        _SYEVR[matrix.dtype](
            b"V", b"I" if count < n else b"A", b"L", _int(n), matrix.ctypes.data, _int(n),
            _real(0.0, matrix), _real(0.0, matrix), _int(n - count + 1), _int(n), _real(0.0, matrix), ctypes.byref(found),
            values.ctypes.data, rows.ctypes.data, _int(n), support.ctypes.data, work.ctypes.data,
            _int(length), integers.ctypes.data, _int(integer_length), ctypes.byref(info),
        )  # fmt: skip

    size, integer_size = np.empty(1, matrix.dtype), np.empty(1, np.int32)
    call(size, -1, integer_size, -1)
    call(np.empty(int(size[0]), matrix.dtype), int(size[0]), np.empty(integer_size[0], np.int32), int(integer_size[0]))
    kept = max(found.value, 0)
    return values[:kept], rows[:kept].T, info.value
