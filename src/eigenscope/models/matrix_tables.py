"""Matrices kept as text, tables and images: Matrix Market, CSV and TSV, Parquet, PNG and JPEG."""

from __future__ import annotations

import csv
import gzip
import importlib
import re
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import scipy.io
from numpy.typing import NDArray

from eigenscope.errors import EigenscopeError, InputError, SourceError
from eigenscope.models.checkpoint import printable

Opened = tuple[tuple[int, int] | None, str, tuple[str, ...], Callable[[], Any]]
"""Shape where known, storage dtype, notes, and what reads it."""


def open_market(path: Path) -> Opened:
    """A Matrix Market file (Boisvert, Pozo & Remington, NISTIR 5935, 1996), gzipped or not.

    Raises:
        SourceError: no such file, or a header that promises more entries than so many bytes can hold.
    """
    with _sound(path, "Matrix Market"):
        rows, cols, entries, layout, field, symmetry = scipy.io.mminfo(path)
        # The shortest entry of the two layouts is "1 1" or "1", with its line end.
        least = (4 if layout == "coordinate" else 2) * entries
        if symmetry != "general" and layout == "array":
            least //= 2
        if least > _unpacked(path, least):
            raise ValueError(f"the header promises {entries:,} entries, more than the file can hold")
    dtype = {"complex": "complex128", "real": "float64", "double": "float64", "pattern": "float64"}.get(field, "int64")
    notes = [f"{symmetry}: stored by half"] if symmetry != "general" else []
    if field == "pattern":
        notes.append("a pattern without values: every entry is taken as 1")

    def load() -> Any:
        with _sound(path, "Matrix Market"):
            matrix = scipy.io.mmread(path)
            return matrix if isinstance(matrix, np.ndarray) else matrix.tocsr()

    return (int(rows), int(cols)), dtype, tuple(notes), load


def _unpacked(path: Path, enough: int) -> int:
    """Bytes of the text, counted no further than ``enough``."""
    if path.suffix.lower() != ".gz":
        return path.stat().st_size
    size = 0
    with gzip.open(path) as stream:
        while size < enough and (part := stream.read(2**20)):
            size += len(part)
    return size


def open_parquet(path: Path) -> Opened:
    """The numeric columns of a Parquet file, side by side.

    Raises:
        SourceError: not such a file.
        InputError: no numeric column.
    """
    with _sound(path, "Parquet"):
        file = pyarrow.parquet.ParquetFile(path)
        schema, rows = file.schema_arrow, file.metadata.num_rows
    index = [name for name in schema.names if re.fullmatch(r"__index_level_\d+__", name)]
    numeric = [
        f for f in schema if (pa.types.is_integer(f.type) or pa.types.is_floating(f.type)) and f.name not in index
    ]
    chosen, others = [field.name for field in numeric], [name for name in schema.names if name not in index]
    others = [name for name in others if name not in chosen]
    if not chosen:
        raise InputError(
            "no numeric column",
            where=str(path),
            expected="integers or floats",
            remedy=f"it has: {_listed(others) or 'none'}",
        )
    kinds = {field.type.to_pandas_dtype() for field in numeric}
    dtype = np.dtype(kinds.pop()) if len(kinds) == 1 else np.dtype(np.float64)
    notes = [
        f"{what} left out: {_listed(names)}" for what, names in (("not numeric,", others), ("index,", index)) if names
    ]

    def load() -> NDArray[Any]:
        with _sound(path, "Parquet"):
            table = file.read(columns=chosen)
        columns = []
        for name, column in zip(table.column_names, table.columns, strict=True):
            if column.null_count:
                row = int(np.flatnonzero(column.is_null().to_numpy())[0])
                raise InputError(
                    f"{column.null_count} missing values in column {printable(name)!r}, the first at row {row} from 0",
                    where=str(path), expected="a number in every cell", remedy="fill or drop them",
                )  # fmt: skip
            columns.append(column.to_numpy().astype(dtype, copy=False))
        return np.column_stack(columns)

    return (rows, len(chosen)), str(dtype), tuple(notes), load


def open_image(path: Path) -> Opened:
    """A PNG or JPEG as its greyscale values.

    Raises:
        InputError: Pillow, which reads them, is not installed.
        SourceError: not a sound image.
    """
    try:
        Image = importlib.import_module("PIL.Image")  # an extra, so that types need not know of it
    except ImportError as error:
        raise InputError(
            "images are read by Pillow, which is not installed",
            where=str(path),
            remedy="install it: pip install pillow",
        ) from error
    with _sound(path, "image", Image.DecompressionBombError), Image.open(path, formats=["PNG", "JPEG"]) as image:
        (cols, rows), mode = image.size, image.mode
    grey = mode[0] in "IF"
    notes = () if grey or mode in ("1", "L") else (f"{mode} colours as their luma (ITU-R 601-2)",)

    def load() -> NDArray[Any]:
        with _sound(path, "image", Image.DecompressionBombError), Image.open(path, formats=["PNG", "JPEG"]) as image:
            return np.asarray(image if grey else image.convert("L"))

    return (rows, cols), "uint8" if not grey else {"I": "int32", "F": "float32"}.get(mode, "uint16"), notes, load


def open_text(path: Path, delimiter: str) -> Opened:
    """Numbers separated by commas (or semicolons) or tabs, with or without a line of names and a column of labels.

    The first line holds names where a cell of it, beyond the first, is no number. The first column holds labels where
    it is no number in the first row, or where the line of names is empty or one short there. Lines that are empty or
    begin with # are passed over.

    Raises:
        SourceError: not text in UTF-8.
        InputError: no numbers in it.
    """
    with _sound(path, "text"), path.open(encoding="utf-8-sig", newline="") as stream:
        head = stream.read(65536)
        if delimiter == "," and ";" in head and "," not in head:
            delimiter = ";"
        stream.seek(0)
        lines = _lines(csv.reader(stream, delimiter=delimiter))
        first, second = next(lines, (0, []))[1], next(lines, (0, []))[1]
    names = not all(map(_is_number, first[1:] if len(first) > 1 else first))
    row = second if names else first
    labels = bool(row) and (
        not _is_number(row[0]) or (names and (first[0].strip() == "" or len(first) == len(row) - 1))
    )
    if len(row) - labels < 1:
        raise InputError("no numbers", where=str(path), expected="rows of numbers, all of one length")
    notes = [
        what for what, there in (("names in the first line", names), ("labels in the first column", labels)) if there
    ]

    def load() -> NDArray[Any]:
        with _sound(path, "text"):
            try:
                return _parse(path, delimiter, names, labels, len(row), complex_entries=False)
            except _Complex:
                return _parse(path, delimiter, names, labels, len(row), complex_entries=True)

    return None, "float64", tuple(notes), load


class _Complex(Exception):
    """A cell holds a complex number."""


def _parse(path: Path, delimiter: str, names: bool, labels: bool, width: int, complex_entries: bool) -> NDArray[Any]:
    values = array("d")
    with path.open(encoding="utf-8-sig", newline="") as stream:
        lines = _lines(csv.reader(stream, delimiter=delimiter))
        if names:
            next(lines)
        for line, row in lines:
            if len(row) != width:
                raise InputError(
                    f"line {line} has {len(row)} cells", where=str(path), expected=f"{width}, as in the first row",
                    remedy="fill or drop what is missing",
                )  # fmt: skip
            cells = row[1:] if labels else row
            try:
                if complex_entries:
                    for number in map(_complex, cells):
                        values.extend((number.real, number.imag))
                else:
                    values.extend(map(float, cells))
            except ValueError:
                raise _bad_cell(path, line, cells, labels) from None
    entries = np.frombuffer(values, np.complex128 if complex_entries else np.float64)
    return entries.reshape(-1, width - labels)


def _bad_cell(path: Path, line: int, cells: list[str], labels: bool) -> Exception:
    place, cell = next((i, cell) for i, cell in enumerate(cells) if not _is_number(cell, real=True))
    if _is_number(cell):
        return _Complex()
    what = f"{printable(cell[:40])!r} is not a number" if cell.strip() else "no value"
    return InputError(
        f"{what}, at line {line}, cell {place + 1 + labels}", where=str(path), expected="a number in every cell",
        remedy="fill or drop it",
    )  # fmt: skip


def _lines(reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Rows with the number of the line that each ends in."""
    for row in reader:
        if row and not row[0].startswith("#"):
            yield reader.line_num, row


def _is_number(cell: str, real: bool = False) -> bool:
    try:
        float(cell) if real else _complex(cell)
    except ValueError:
        return False
    return True


def _complex(cell: str) -> complex:
    text = cell.strip()
    return complex(text[:-1] + "j" if text.endswith("i") else text)


def _listed(names: list[str]) -> str:
    few = [printable(name) for name in names[:5]]
    return ", ".join(few) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


@contextmanager
def _sound(path: Path, kind: str, *more: type[Exception]) -> Iterator[None]:
    """What a library says of a damaged file, as one line."""
    try:
        yield
    except EigenscopeError:
        raise
    except MemoryError as error:
        raise SourceError("it needs more memory than there is", where=str(path)) from error
    except (ValueError, OSError, EOFError, OverflowError, csv.Error, pa.ArrowException, SyntaxError, *more) as error:
        raise SourceError(f"not a sound {kind} file: {error}", where=str(path)) from error
