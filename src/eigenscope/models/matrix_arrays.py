"""NumPy's files: headers checked against the bytes that are there, members of archives, SciPy's sparse archives."""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import scipy.sparse
from numpy.lib import format as npy
from numpy.typing import NDArray

from eigenscope.errors import InputError, SourceError

_BROKEN = (ValueError, OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error, TypeError)


@dataclass(frozen=True)
class NpyHeader:
    """What the top of a ``.npy`` file says.

    Attributes:
        shape: of the array.
        fortran: whether it lies there in column-major order.
        dtype: of the entries, byte order included.
        offset: bytes before the first entry.
    """

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    offset: int


def read_top(stream: IO[bytes], size: int, where: str) -> NpyHeader:
    """The header of a ``.npy`` file (numpy.lib.format, versions 1 and 2), checked against its ``size`` in bytes.

    Raises:
        SourceError: not such a file, or one that promises more than it holds.
    """
    try:
        version = npy.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} of the format, which only structured arrays use")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(stream)
        offset = stream.tell()
    except (*_BROKEN, SyntaxError, tokenize.TokenError, RecursionError, MemoryError) as error:
        raise SourceError(
            f"not a sound npy file: {error}", where=where, remedy="write it again with numpy.save"
        ) from error
    if any(extent < 0 for extent in shape):
        raise SourceError(f"not a sound npy file: shape {shape}", where=where)
    promised = math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and promised > size - offset:
        raise SourceError(
            f"the header promises {promised:,} bytes of entries and the file holds {size - offset:,}", where=where,
            remedy="it is cut off, or it lies; write it again",
        )  # fmt: skip
    return NpyHeader(tuple(shape), fortran, dtype, offset)


def check_entries(dtype: np.dtype[Any], where: str) -> None:
    """Refuse entries that are not numbers of at most 64 bits (128 for complex ones).

    Raises:
        SourceError: Python objects, which only a pickle can hold.
        InputError: text, dates, records, extended precision.
    """
    if dtype.hasobject:
        raise SourceError(
            "its entries are pickled Python objects, which reading would execute", where=where,
            expected="numbers", remedy="save it again with astype(float)",
        )  # fmt: skip
    limit = {"b": 1, "i": 8, "u": 8, "f": 8, "c": 16}.get(dtype.kind, 0)
    if dtype.names or dtype.itemsize > limit:
        kind = f"records of {', '.join(dtype.names)}" if dtype.names else str(dtype)
        raise InputError(
            f"the entries are {kind}", where=where, expected="numbers of at most 64 bits", remedy="use astype(float)"
        )


def member_headers(path: Path) -> dict[str, NpyHeader]:
    """The arrays of a ``.npz`` archive by name, without their entries.

    Raises:
        SourceError: not such an archive, or a member that lies about its size.
    """
    headers = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.filename.endswith(".npy"):
                    with archive.open(info) as stream:
                        where = f"{path}: {info.filename}"
                        headers[info.filename.removesuffix(".npy")] = read_top(stream, info.file_size, where)
    except _BROKEN as error:
        raise SourceError(f"not a sound npz file: {error}", where=str(path)) from error
    return headers


def read_member(path: Path, name: str) -> NDArray[Any]:
    """One array of a ``.npz`` archive. No pickle is executed.

    Raises:
        SourceError: it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as stream:
            return np.asarray(npy.read_array(stream, allow_pickle=False))
    except (*_BROKEN, MemoryError, KeyError) as error:
        raise SourceError(f"cannot be read: {error}", where=f"{path}: {name}") from error


def read_sparse(path: Path, headers: Mapping[str, NpyHeader]) -> Any:
    """A matrix that ``scipy.sparse.save_npz`` wrote, as CSR or CSC, its indices checked.

    Raises:
        SourceError: parts are missing, or do not fit one another.
        InputError: entries that are not numbers.
    """
    check_entries(headers["data"].dtype, f"{path}: data")
    parts = {name: read_member(path, name) for name, header in headers.items() if not header.dtype.hasobject}
    try:
        for name in parts.keys() & {"indices", "indptr", "row", "col", "offsets", "shape"}:
            if parts[name].dtype.kind not in "iu":
                raise ValueError(f"{name} of {parts[name].dtype}")
        kind = parts["format"].item()
        kind = kind.decode("ascii") if isinstance(kind, bytes) else str(kind)
        rows, cols = (int(extent) for extent in parts["shape"])
        data = parts["data"]
        if kind in ("csr", "csc", "bsr"):
            make = {"csr": scipy.sparse.csr_matrix, "csc": scipy.sparse.csc_matrix, "bsr": scipy.sparse.bsr_matrix}[
                kind
            ]
            matrix = make((data, parts["indices"], parts["indptr"]), shape=(rows, cols))
            # An index outside the matrix would be read from outside the array.
            matrix.check_format(full_check=True)
        elif kind == "coo":
            matrix = scipy.sparse.coo_matrix((data, (parts["row"], parts["col"])), shape=(rows, cols))
        elif kind == "dia":
            matrix = scipy.sparse.dia_matrix((data, parts["offsets"]), shape=(rows, cols))
        else:
            raise ValueError(f"sparse format {kind!r}")
        return matrix if kind == "csc" else matrix.tocsr()
    except KeyError as error:
        raise SourceError(f"not a sound sparse matrix: it lacks {error}", where=str(path)) from error
    except (ValueError, TypeError, IndexError, OverflowError, MemoryError) as error:
        raise SourceError(f"not a sound sparse matrix: {error}", where=str(path)) from error
