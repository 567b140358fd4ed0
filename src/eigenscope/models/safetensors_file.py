"""safetensors: one file, or shards with an index. Headers are checked by the safetensors library."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from eigenscope.errors import SourceError
from eigenscope.models.checkpoint import Checkpoint, TensorInfo

DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
    "BOOL": "bool", "C64": "complex64",
}  # fmt: skip
"""Formats that hold one number an entry; the others (F4, F6) pack several and are named, not guessed."""


class SafetensorsCheckpoint(Checkpoint):
    """One or more safetensors files whose tensor names do not repeat.

    Each read opens its file and closes it again, so that pages of tensors already seen leave the memory.

    Args:
        source: what the user named.
        paths: the files.
        config: the model's configuration.
        expected: tensor name → file, from an index; every tensor must be where the index puts it.

    Raises:
        SourceError: a header that the library refuses, a name in two files, or an index that does not fit.
    """

    def __init__(
        self,
        source: str,
        paths: list[Path],
        config: Mapping[str, Any],
        expected: Mapping[str, Path] | None = None,
    ) -> None:
        tensors: dict[str, TensorInfo] = {}
        self._place: dict[str, Path] = {}
        for path in paths:
            for info in _list(path):
                if info.name in tensors:
                    raise SourceError(
                        f"tensor {info.name!r} stands in this file and in {self._place[info.name].name}", where=path.name,
                        expected="each tensor once", remedy="name one of the files instead of the folder",
                    )  # fmt: skip
                tensors[info.name] = info
                self._place[info.name] = path
        for name, path in (expected or {}).items():
            if self._place.get(name) != path:
                raise SourceError(
                    f"the index puts tensor {name!r} here, and it is not",
                    where=path.name,
                    expected="an index that fits",
                )
        super().__init__(source, tensors, config, tuple(paths))

    def _read(self, info: TensorInfo, start: int, stop: int) -> Tensor:
        try:
            with safe_open(self._place[info.name], framework="pt") as file:
                if not info.shape or 0 in info.shape:
                    return _tensor(file.get_tensor(info.name))
                return _tensor(file.get_slice(info.name)[start:stop])
        except (SafetensorError, OSError) as error:
            raise SourceError(f"cannot be read: {error}", where=f"{self._place[info.name]}: {info.name}") from error


def _tensor(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise SafetensorError(f"gave a {type(value).__name__}")
    return value


def _list(path: Path) -> list[TensorInfo]:
    try:
        with safe_open(path, framework="pt") as file:
            infos = []
            for name in file.offset_keys():
                piece = file.get_slice(name)
                infos.append(_info(name, tuple(piece.get_shape()), piece.get_dtype()))
            return infos
    except (SafetensorError, OSError) as error:
        raise SourceError(
            f"not a sound safetensors file: {_diagnose(path) or error}", where=str(path),
            remedy="download or save it again",
        ) from error  # fmt: skip


def _info(name: str, shape: tuple[int, ...], dtype: str) -> TensorInfo:
    known = DTYPES.get(dtype, dtype)
    torch_dtype = getattr(torch, known, None)
    size = torch_dtype.itemsize if isinstance(torch_dtype, torch.dtype) else 1
    count = 1
    for extent in shape:
        count *= extent
    return TensorInfo(name, shape, known, count * size, "" if dtype in DTYPES else f"packed format {dtype} is not read")


def _diagnose(path: Path) -> str:
    """Which tensor a broken header is broken at, where that can be told; otherwise empty."""
    size = path.stat().st_size if path.is_file() else 0
    with path.open("rb") as stream:
        first = stream.read(8)
        if len(first) < 8:
            return f"it holds {size} bytes, too few for a header"
        length = struct.unpack("<Q", first)[0]
        if length > size - 8:
            return f"the header promises {length} bytes and the file holds {size}"
        raw = stream.read(length)
    names: list[str] = []

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if any(isinstance(value, dict) and "data_offsets" in value for _, value in pairs):
            names.extend(name for name, _ in pairs)
        return dict(pairs)

    try:
        header = json.loads(raw, object_pairs_hook=keep)
    except (ValueError, RecursionError):
        return ""
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        return f"the header names tensor {repeated[0]!r} twice"
    if not isinstance(header, dict):
        return ""
    for name, entry in header.items():
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if isinstance(offsets, list) and len(offsets) == 2 and isinstance(offsets[1], int):
            end = offsets[1] + 8 + length
            if end > size:
                return f"tensor {name!r} ends at byte {end} and the file at {size}: it is cut off"
    return ""
