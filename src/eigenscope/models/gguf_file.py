"""GGUF: header walked with every length checked against the file; tensors dequantised one by one by ``gguf``.

``gguf.GGUFReader`` is not used: it takes seconds for a vocabulary of 50,000 and believes the lengths it reads.
"""

from __future__ import annotations

import math
import mmap
import struct
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from eigenscope.errors import SourceError
from eigenscope.models.checkpoint import Checkpoint, TensorInfo

NATIVE = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
}  # fmt: skip
LONGEST_KEPT = 256
"""Arrays longer than this (the vocabulary) are stepped over, not kept in ``config``."""


class GGUFCheckpoint(Checkpoint):
    """A GGUF file, version 2 or 3, little-endian.

    Shapes are given outermost first, as PyTorch has them (GGUF writes them the other way round).

    Raises:
        SourceError: a header that lies about its lengths, or the ``gguf`` package is missing.
    """

    def __init__(self, source: str, path: Path) -> None:
        try:
            import gguf  # noqa: F401
        except ImportError as error:
            raise SourceError(
                "reading GGUF needs the package gguf", where=str(path), remedy="pip install 'eigenscope[gguf]'"
            ) from error
        header = _Header(path)
        tensors: dict[str, TensorInfo] = {}
        places: dict[str, tuple[int, int]] = {}
        for name, shape, kind, offset in header.tensors:
            if name in tensors:
                raise SourceError(f"the header names tensor {name!r} twice", where=str(path))
            label, nbytes, problem = _format(kind, shape)
            # No format packs more than 8 entries into a byte; of an unknown one, no more can be said.
            end = header.data + offset + (math.prod(shape) // 8 if nbytes is None else nbytes)
            if end > header.size:
                raise SourceError(
                    f"tensor {name!r} ends at byte {end} and the file at {header.size}: it is cut off",
                    where=str(path), remedy="download it again",
                )  # fmt: skip
            tensors[name] = TensorInfo(name, shape, label, nbytes or 0, problem)
            places[name] = header.data + offset, kind
        # One block of data under many names would cost a reader any amount of work.
        spans = sorted(
            (places[name][0], places[name][0] + info.nbytes, name) for name, info in tensors.items() if info.nbytes
        )
        for (_, stop, first), (start, _, second) in pairwise(spans):
            if start < stop:
                raise SourceError(
                    f"tensors {first!r} and {second!r} overlap", where=str(path),
                    remedy="the file is damaged or forged; download it again",
                )  # fmt: skip
        count = header.values.get("split.count", 1)
        part = f"{path.name} is one of {count} parts; the others are not read"
        notes = (part,) if isinstance(count, int) and count > 1 else ()
        super().__init__(source, tensors, header.values, (path,), places, notes)

    def _read(self, info: TensorInfo, start: int, stop: int) -> Tensor:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize

        path = self._unchanged(self.files[0])
        offset, number = self._places[info.name]
        kind = GGMLQuantizationType(number)
        shape = (stop - start, *info.shape[1:]) if info.shape else ()
        if 0 in shape:
            return torch.empty(shape, dtype=NATIVE.get(kind.name, torch.float32))
        per_row = info.nbytes // (info.shape[0] if info.shape else 1)
        try:
            raw = np.fromfile(path, np.uint8, count=per_row * (stop - start), offset=offset + per_row * start)
        except OSError as error:
            raise SourceError(f"cannot be read: {error.strerror}", where=f"{path}: {info.name}") from error
        if raw.size != per_row * (stop - start):
            raise SourceError(f"{per_row * (stop - start) - raw.size} bytes are missing", where=f"{path}: {info.name}")
        if kind.name in NATIVE:
            return torch.from_numpy(raw).view(NATIVE[kind.name]).reshape(shape)
        block, size = GGML_QUANT_SIZES[kind]
        with np.errstate(all="ignore"):  # scales of NaN or infinity are the row's to report
            values = dequantize(raw.reshape(-1, info.shape[-1] // block * size), kind)
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).reshape(shape)


def _format(kind: int, shape: tuple[int, ...]) -> tuple[str, int | None, str]:
    """Name of a tensor type, bytes of a tensor of that shape (None if unknown), and why it cannot be read."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    if kind not in GGMLQuantizationType._value2member_map_:
        return f"GGUF type {kind}", None, f"GGUF type {kind} is unknown to the installed gguf package"
    name = GGMLQuantizationType(kind).name
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    nbytes = math.prod(shape) // block * size
    if (shape[-1] if shape else 1) % block:
        return name, nbytes, f"rows of {shape[-1] if shape else 1} are not whole blocks of {block} ({name})"
    if name in NATIVE:
        return str(NATIVE[name]).removeprefix("torch."), nbytes, ""
    return name, nbytes, "" if _dequantised(kind) else f"the installed gguf package cannot dequantise {name}"


@lru_cache
def _dequantised(kind: int) -> bool:
    """Whether ``gguf`` can, found by trying one block: it keeps no public list."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[GGMLQuantizationType(kind)][1]), np.uint8), GGMLQuantizationType(kind))
    except NotImplementedError:
        return False
    return True


class _Header:
    """The parsed header: scalar metadata, tensor descriptions, and where the data begin."""

    SCALARS: ClassVar[dict[int, str]] = {
        0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
    }  # fmt: skip
    STRING, ARRAY = 8, 9

    def __init__(self, path: Path) -> None:
        self.path, self.size, self.at = path, path.stat().st_size, 0
        if self.size < 24:
            raise SourceError(f"it holds {self.size} bytes, too few for a GGUF header", where=str(path))
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
            self.view = view
            magic, version = view[:4], struct.unpack_from("<I", view, 4)[0]
            if magic != b"GGUF" or version not in (2, 3):
                raise SourceError(
                    f"magic {magic!r}, version {version}",
                    where=str(path),
                    expected="little-endian GGUF 2 or 3",
                )
            self.at = 8
            tensor_count, value_count = self._scalar("Q"), self._scalar("Q")
            self._plausible(tensor_count + value_count, 12, "tensors and values")
            self.values = {}
            for _ in range(value_count):
                key = self._string()
                self.values[key] = self._value(self._scalar("I"))
            self.tensors = [self._tensor() for _ in range(tensor_count)]
            alignment = self.values.get("general.alignment", 32)
            if not isinstance(alignment, int) or alignment <= 0:
                raise SourceError(f"general.alignment = {alignment}", where=str(path), expected="a positive integer")
            self.data = -(-self.at // alignment) * alignment
            del self.view

    def _plausible(self, count: int, least: int, what: str) -> None:
        if count * least > self.size - self.at:
            raise SourceError(
                f"the header promises {count} {what} at byte {self.at} and the file has {self.size} bytes",
                where=str(self.path), remedy="the file is cut off or forged; download it again",
            )  # fmt: skip

    def _scalar(self, code: str) -> Any:
        length = struct.calcsize("<" + code)
        self._plausible(length, 1, "bytes")
        value = struct.unpack_from("<" + code, self.view, self.at)[0]
        self.at += length
        return value

    def _string(self) -> str:
        length = self._scalar("Q")
        self._plausible(length, 1, "bytes of text")
        self.at += length
        return self.view[self.at - length : self.at].decode("utf-8", "replace")

    def _value(self, kind: int) -> Any:
        if kind in self.SCALARS:
            return self._scalar(self.SCALARS[kind])
        if kind == self.STRING:
            return self._string()
        if kind != self.ARRAY:
            raise SourceError(f"value type {kind} at byte {self.at}", where=str(self.path), expected="a GGUF type 0–12")
        inner, count = self._scalar("I"), self._scalar("Q")
        least = struct.calcsize("<" + self.SCALARS[inner]) if inner in self.SCALARS else 8
        self._plausible(count, least, "array entries")
        if inner in self.SCALARS:
            code = f"<{count}{self.SCALARS[inner]}"
            start, self.at = self.at, self.at + least * count
            return list(struct.unpack_from(code, self.view, start)) if count <= LONGEST_KEPT else None
        if inner != self.STRING:
            raise SourceError(
                f"array of type {inner} at byte {self.at}", where=str(self.path), expected="scalars or text"
            )
        kept = [self._string() for _ in range(count)]
        return kept if count <= LONGEST_KEPT else None

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self._string(), self._scalar("I")
        if dimensions > 8:
            raise SourceError(
                f"tensor {name!r} has {dimensions} dimensions", where=str(self.path), expected="at most 8"
            )
        shape = tuple(self._scalar("Q") for _ in range(dimensions))[::-1]
        return name, shape, self._scalar("I"), self._scalar("Q")
