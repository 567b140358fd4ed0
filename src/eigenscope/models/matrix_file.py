"""One matrix in a file, in any of the formats that matrices are kept in: what it is, before its entries are read.

Files are not trusted: nothing is unpickled, and a header that promises more than the file holds is refused.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eigenscope.errors import InputError, SourceError
from eigenscope.models.checkpoint import Checkpoint, printable
from eigenscope.models.matrix_arrays import NpyHeader, check_entries, member_headers, read_member, read_sparse, read_top
from eigenscope.models.matrix_tables import open_image, open_market, open_parquet, open_text
from eigenscope.models.safetensors_file import SafetensorsCheckpoint
from eigenscope.operators.streamed import RowSource

IMAGES = (".png", ".jpg", ".jpeg")
ENDINGS = (".npy", ".npz", ".mtx", ".mtx.gz", ".csv", ".tsv", ".parquet", ".safetensors", *IMAGES)
_NAMED = re.compile(r"(.+\.(?:safetensors|npz)):(.+)", re.DOTALL | re.IGNORECASE)
_EXACT = {"f4": torch.float32, "f8": torch.float64, "c8": torch.complex64, "c16": torch.complex128}


@dataclass(frozen=True)
class MatrixFile:
    """A matrix that lies in a file, and how to read it.

    Attributes:
        source: what the user named.
        format: of the file, in words.
        shape: (m, n); None where only reading the whole file tells.
        dtype: the format in which the file stores the entries.
        size: bytes of the file, or of the entry in it, that reading takes.
        load: reads all of it: an ndarray, a SciPy sparse matrix or a tensor.
        rows: reads some rows of it; None where the format does not let one.
        adjoint: whether these rows are those of the adjoint.
        notes: what a reader should know of how it was taken.
    """

    source: str
    format: str
    shape: tuple[int, int] | None
    dtype: str
    size: int
    load: Callable[[], Any]
    rows: RowSource | None = None
    adjoint: bool = False
    notes: tuple[str, ...] = ()


class FileRows:
    """Rows of a matrix that lies in a file, or of its adjoint, by plain reads: mapped pages would count as memory used.

    Args:
        path: the file.
        header: where the array begins, its order and dtype.
        shape: (m, n) of the matrix.
        adjoint: give rows of Aᴴ.
    """

    def __init__(self, path: Path, header: NpyHeader, shape: tuple[int, int], adjoint: bool) -> None:
        self.path, self.shape = path, shape[::-1] if adjoint else shape
        self.dtype = _EXACT.get(header.dtype.str[1:], torch.float32 if header.dtype.kind == "f" else torch.float64)
        self._header, self._adjoint = header, adjoint
        self._target = np.dtype(str(self.dtype).removeprefix("torch."))

    def read(self, start: int, stop: int) -> Tensor:
        """Rows ``start:stop``, (stop − start, n): one read where they lie together, else one of each column.

        Raises:
            SourceError: the file ends before them.
        """
        rows, cols = self.shape
        with self.path.open("rb") as stream:
            if self._header.fortran == self._adjoint:
                entries = self._read(stream, start * cols, (stop - start) * cols).reshape(stop - start, cols)
            else:
                entries = np.empty((cols, stop - start), self._header.dtype)
                for col in range(cols):
                    entries[col] = self._read(stream, col * rows + start, stop - start)
                entries = entries.T
        entries = np.ascontiguousarray(entries, self._target)
        return torch.from_numpy(entries.conj() if self._adjoint and self.dtype.is_complex else entries)

    def _read(self, stream: IO[bytes], first: int, count: int) -> NDArray[Any]:
        stream.seek(self._header.offset + first * self._header.dtype.itemsize)
        entries = np.fromfile(stream, self._header.dtype, count)
        if len(entries) != count:
            raise SourceError("the file ends before its last row", where=str(self.path), remedy="write it again")
        return entries


class TensorRows:
    """Rows of one tensor of a checkpoint, narrow formats widened.

    Args:
        checkpoint: that holds it.
        name: of a 2-D tensor.
    """

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        self.checkpoint, self.name = checkpoint, name
        rows, cols = checkpoint.tensors[name].shape
        self.shape = (rows, cols)
        self.dtype = self.read(0, 1).dtype

    def read(self, start: int, stop: int) -> Tensor:
        """Rows ``start:stop``, (stop − start, n)."""
        block = self.checkpoint.read(self.name, start, stop)
        if block.is_complex() or (block.is_floating_point() and block.element_size() >= 4):
            return block
        return block.to(torch.float32 if block.is_floating_point() else torch.float64)


def open_matrix(source: str | Path, *, vector: bool = False) -> MatrixFile:
    """Find the matrix that ``source`` names, and read what its header tells.

    Args:
        source: a path; for a file of several matrices, ``FILE:NAME``.
        vector: whether one dimension is accepted, as a single column.

    Raises:
        SourceError: no such file, or one that is damaged, lies about its content, or would have to be executed.
        InputError: a format that is not known, several matrices to choose from, not two dimensions, nothing in it.
    """
    text = str(source)
    named = None if Path(text).exists() else _NAMED.fullmatch(text)
    path, name = (Path(named[1]), named[2]) if named else (Path(text), "")
    text = printable(text)
    if path.is_dir():
        raise InputError("a folder", where=text, expected="a matrix file", remedy="for a model use eigenscope scan")
    if not path.exists():
        raise SourceError("no such file", where=text)
    openers: dict[str, Callable[[], MatrixFile]] = {
        ".npy": lambda: _npy(path, text, vector),
        ".npz": lambda: _npz(path, text, name, vector),
        ".safetensors": lambda: _safetensors(path, text, name, vector),
        ".parquet": lambda: _table("Parquet", path, text, open_parquet(path)),
        ".csv": lambda: _table("CSV", path, text, open_text(path, ",")),
        ".tsv": lambda: _table("TSV", path, text, open_text(path, "\t")),
        ".mtx": lambda: _table("Matrix Market", path, text, open_market(path)),
        **dict.fromkeys(IMAGES, lambda: _table("image", path, text, open_image(path))),
    }
    ending = ".mtx" if path.name.lower().endswith(".mtx.gz") else path.suffix.lower()
    if ending not in openers:
        raise InputError(f"unknown format {path.suffix or path.name!r}", where=text, expected=", ".join(ENDINGS))
    return openers[ending]()


def _table(
    kind: str, path: Path, source: str,
    opened: tuple[tuple[int, int] | None, str, tuple[str, ...], Callable[[], Any]],
) -> MatrixFile:  # fmt: skip
    shape, dtype, notes, load = opened
    if shape is not None:
        _two_dimensions(shape, source, vector=False)
    return MatrixFile(source, kind, shape, dtype, path.stat().st_size, load, None, False, (*notes, *_converted(dtype)))


def _npy(path: Path, source: str, vector: bool) -> MatrixFile:
    with path.open("rb") as stream:
        header = read_top(stream, path.stat().st_size, source)
    check_entries(header.dtype, source)
    shape = _two_dimensions(header.shape, source, vector)
    # Of a wide matrix the rows of the adjoint: what is read in blocks is then tall.
    adjoint = shape[0] < shape[1]
    rows = FileRows(path, header, shape, adjoint)

    def load() -> NDArray[Any]:
        entries = np.fromfile(path, header.dtype, math.prod(shape), offset=header.offset)
        if len(entries) != math.prod(shape):
            raise SourceError("the file changed since it was opened", where=source)
        return entries.reshape(shape, order="F" if header.fortran else "C")

    dtype = str(header.dtype.newbyteorder("="))
    size = math.prod(shape) * header.dtype.itemsize
    return MatrixFile(source, "npy", shape, dtype, size, load, rows, adjoint, _converted(dtype))


def _npz(path: Path, source: str, name: str, vector: bool) -> MatrixFile:
    headers = member_headers(path)
    if {"format", "shape", "data"} <= headers.keys() and not name:
        matrix = read_sparse(path, headers)
        dtype = str(matrix.dtype)
        shape = _two_dimensions(matrix.shape, source, vector=False)
        size = path.stat().st_size
        return MatrixFile(source, "npz (sparse)", shape, dtype, size, lambda: matrix, notes=_converted(dtype))
    allowed = (1, 2) if vector else (2,)
    name = _choose({key: header.shape for key, header in headers.items()}, name, allowed, source)
    header = headers[name]
    check_entries(header.dtype, f"{source}: {name}")
    shape = _two_dimensions(header.shape, source, vector)
    dtype = str(header.dtype.newbyteorder("="))
    size = math.prod(shape) * header.dtype.itemsize
    return MatrixFile(
        source, "npz", shape, dtype, size, lambda: read_member(path, name).reshape(shape), notes=_converted(dtype)
    )


def _safetensors(path: Path, source: str, name: str, vector: bool) -> MatrixFile:
    checkpoint = SafetensorsCheckpoint(source, [path], {})
    allowed = (1, 2) if vector else (2,)
    name = _choose({key: info.shape for key, info in checkpoint.tensors.items()}, name, allowed, source)
    info = checkpoint.tensors[name]
    if info.problem:
        raise SourceError(info.problem, where=f"{source}: {name}")
    shape = _two_dimensions(info.shape, source, vector)
    rows = TensorRows(checkpoint, name) if len(info.shape) == 2 else None
    return MatrixFile(
        source, "safetensors", shape, info.dtype, info.nbytes, lambda: checkpoint.read(name).reshape(shape), rows,
        notes=_converted(info.dtype),
    )  # fmt: skip


def _choose(shapes: Mapping[str, tuple[int, ...]], name: str, allowed: tuple[int, ...], source: str) -> str:
    """The entry of that name, or the only matrix of the file."""
    if name in shapes:
        return name
    fitting = [key for key, shape in shapes.items() if len(shape) in allowed]
    if not name and len(fitting) == 1:
        return fitting[0]
    if not name and not fitting:
        found = ", ".join(f"{printable(key)} of shape {shape}" for key, shape in list(shapes.items())[:5])
        raise InputError(
            "no matrix in it", where=source, expected="a 2-D array", remedy=f"it holds {found or 'nothing'}"
        )
    near = difflib.get_close_matches(name, shapes, n=3, cutoff=0.5) if name else []
    few = ", ".join(printable(key) for key in near or (fitting if len(fitting) <= 8 else [*fitting[:5], "…"]))
    what = f"no entry named {printable(name)!r}" if name else f"{len(fitting)} matrices"
    raise InputError(what, where=source, expected=few, remedy="" if name else "name one of them: FILE:NAME")


def _two_dimensions(shape: tuple[int, ...], source: str, vector: bool) -> tuple[int, int]:
    if len(shape) == 1 and vector:
        shape = (shape[0], 1)
    if len(shape) != 2:
        remedy = "reshape it to one column or one row" if len(shape) == 1 else "save one 2-D slice of it"
        raise InputError(f"{len(shape)}-D, of shape {tuple(shape)}", where=source, expected="a matrix", remedy=remedy)
    if 0 in shape:
        raise InputError(f"empty: {shape[0]}×{shape[1]}", where=source, expected="at least one row and one column")
    return shape[0], shape[1]


def _converted(dtype: str) -> tuple[str, ...]:
    if re.match(r"u?int|bool", dtype):
        beyond = "; those beyond 2⁵³ are rounded" if dtype.endswith("int64") else ""
        return (f"{dtype} entries are converted to float64{beyond}",)
    narrow = dtype in ("float16", "bfloat16") or dtype.startswith("float8")
    return (f"{dtype} entries are widened to float32, without loss",) if narrow else ()
