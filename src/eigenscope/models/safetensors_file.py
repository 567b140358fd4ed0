"""safetensors: one file, or shards with an index. Headers are checked by the safetensors library, and before it here."""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from eigenscope.errors import SourceError
from eigenscope.models.checkpoint import Checkpoint, TensorInfo, check_index, repeated

DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
    "BOOL": "bool", "C64": "complex64",
}  # fmt: skip
"""Formats that hold one number an entry; the others (F4, F6) pack several and are named, not guessed."""
LONGEST_HEADER = 100_000_000
"""Bytes; the limit of the safetensors library."""


class SafetensorsCheckpoint(Checkpoint):
    """One or more safetensors files whose tensor names do not repeat.

    Each read maps the tensor's own part of the file, so that the pages of a tensor leave the memory with it.

    Args:
        source: what the user named.
        paths: the files.
        config: the model's configuration.
        expected: tensor name → file, from an index; every tensor must be where the index puts it.

    Raises:
        SourceError: a header that lies, a name that stands twice, or an index that does not fit.
    """

    def __init__(
        self, source: str, paths: list[Path], config: Mapping[str, Any], expected: Mapping[str, Path] | None = None
    ) -> None:
        tensors: dict[str, TensorInfo] = {}
        places: dict[str, tuple[Path, int]] = {}
        for path in paths:
            for info, begin in _list(path):
                if info.name in tensors:
                    raise repeated(info.name, places[info.name][0], path)
                tensors[info.name] = info
                places[info.name] = path, begin
        check_index(expected or {}, {name: path for name, (path, _) in places.items()})
        super().__init__(source, tensors, config, tuple(paths), places)

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor."""
        path: Path = self._places[name][0]
        return path

    def _read(self, info: TensorInfo, start: int, stop: int) -> Tensor:
        path, begin = self._places[info.name]
        dtype, shape = getattr(torch, info.dtype), (stop - start, *info.shape[1:]) if info.shape else ()
        size = math.prod(shape) * dtype.itemsize
        if size == 0:
            return torch.empty(shape, dtype=dtype)
        begin += start * math.prod(info.shape[1:]) * dtype.itemsize
        inside = begin % mmap.ALLOCATIONGRANULARITY
        try:
            with self._unchanged(path).open("rb") as stream:
                # Copied where it is written to: a tensor cannot be told that it must not be.
                part = mmap.mmap(stream.fileno(), inside + size, access=mmap.ACCESS_COPY, offset=begin - inside)
        except (ValueError, OSError) as error:
            raise SourceError(f"cannot be read: {error}", where=f"{path}: {info.name}") from error
        entries = torch.frombuffer(part, dtype=torch.uint8, count=size, offset=inside)
        return (entries.clone() if begin % dtype.itemsize else entries).view(dtype).reshape(shape)


def _list(path: Path) -> list[tuple[TensorInfo, int]]:
    """Every tensor of a file, and the byte at which it begins."""
    try:
        places = _check_header(path)
        with safe_open(path, framework="pt") as file:
            pieces = [(name, file.get_slice(name)) for name in file.offset_keys()]
            return [(_info(name, tuple(piece.get_shape()), piece.get_dtype()), places[name]) for name, piece in pieces]
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise SourceError(
            f"not a sound safetensors file: {error}", where=str(path), remedy="download or save it again"
        ) from error


def _info(name: str, shape: tuple[int, ...], dtype: str) -> TensorInfo:
    known = DTYPES.get(dtype, dtype)
    torch_dtype = getattr(torch, known, None)
    size = torch_dtype.itemsize if isinstance(torch_dtype, torch.dtype) else 1
    count = 1
    for extent in shape:
        count *= extent
    return TensorInfo(name, shape, known, count * size, "" if dtype in DTYPES else f"packed format {dtype} is not read")


def _check_header(path: Path) -> dict[str, int]:
    """Where each tensor begins; what the library does not check (a name that stands twice), or say (where a file ends).

    Raises:
        ValueError: the reason, in words.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        first = stream.read(8)
        if len(first) < 8:
            raise ValueError(f"it holds {size} bytes, too few for a header")
        length = struct.unpack("<Q", first)[0]
        if length > min(size - 8, LONGEST_HEADER):
            raise ValueError(f"the header promises {length} bytes and the file holds {size}")
        header = json.loads(stream.read(length), object_pairs_hook=_each_once)
    spans = sorted(_spans(header))
    for _, stop, name in spans:
        if 8 + length + stop > size:
            raise ValueError(f"tensor {name!r} ends at byte {8 + length + stop} and the file at {size}: it is cut off")
    for (_, stop, first_name), (start, _, name) in pairwise(spans):
        if start < stop:
            raise ValueError(f"tensors {first_name!r} and {name!r} overlap")
    return {name: 8 + length + start for start, _, name in spans}


def _spans(header: object) -> Iterator[tuple[int, int, str]]:
    """Where each tensor begins and ends in the data. Entries of another form are left to the library."""
    for name, entry in header.items() if isinstance(header, dict) else ():
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if isinstance(offsets, list) and len(offsets) == 2 and all(isinstance(offset, int) for offset in offsets):
            yield offsets[0], offsets[1], name


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the header names {name!r} twice")
        found[name] = value
    return found
