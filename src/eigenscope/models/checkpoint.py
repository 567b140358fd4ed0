"""The contract of a checkpoint: tensors by name, their shapes without their data, one of them at a time."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eigenscope.errors import InputError, SourceError

LARGEST = 2**63 - 1
"""Of an extent, and of the number of entries: PyTorch holds both in 64 signed bits."""
LONGEST_EMPTY = 2**24
"""Of an extent of a tensor without entries, which costs a file nothing to promise."""
DEEPEST = 64
"""Levels of dictionaries and lists that are looked into for tensors."""


@dataclass(frozen=True)
class TensorInfo:
    """What a checkpoint says of a tensor before any of its data is read.

    Attributes:
        name: unique in the checkpoint.
        shape: as stored, outermost dimension first.
        dtype: storage format: a torch dtype's name, or a GGUF quantisation such as "Q4_1".
        nbytes: size in the file.
        problem: why it cannot be read, or empty.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    problem: str = ""


class Checkpoint(ABC):
    """Tensors by name. Opening lists shapes; ``read`` brings one tensor, or some of its leading rows.

    A checkpoint holds no open file, so that it can be sent to a worker, and any thread may read from it.

    Args:
        places: tensor name → where it is, in the format's own terms.

    Attributes:
        source: what the user named.
        tensors: name → :class:`TensorInfo`, in the order of the file.
        config: the model's configuration where there is one, else empty.
        files: the files that hold the tensors.
        notes: what a reader should know of how it was opened.

    Raises:
        SourceError: a shape that no tensor can have.
    """

    def __init__(
        self,
        source: str,
        tensors: Mapping[str, TensorInfo],
        config: Mapping[str, Any],
        files: tuple[Path, ...],
        places: Mapping[str, Any],
        notes: tuple[str, ...] = (),
    ) -> None:
        for info in tensors.values():
            _check_shape(info, source)
        self.source = printable(source)
        self.tensors = dict(tensors)
        self.config = dict(config)
        self.files = files
        self.notes = notes
        self._places = dict(places)
        self._stamps = {path: _stamp(path) for path in files}

    @abstractmethod
    def _read(self, info: TensorInfo, start: int, stop: int) -> Tensor:
        """Rows ``start:stop``, checked to exist; all of a scalar, for which they are 0:1."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows ``start:stop`` (along the first dimension) of one tensor, dequantised where the format is GGUF's.

        Raises:
            SourceError: no such tensor, or it cannot be read; the message says why.
            InputError: rows that the tensor does not have.
        """
        info = self.tensors.get(name)
        if info is None:
            raise SourceError(f"no tensor named {name!r}", where=self.source)
        if info.problem:
            raise SourceError(info.problem, where=name)
        size = info.shape[0] if info.shape else 1
        end = size if stop is None else stop
        if not 0 <= start <= end <= size:
            raise InputError(f"rows {start}:{end}", where=name, expected=f"rows within 0:{size}")
        tensor = self._read(info, start, end)
        expected = (end - start, *info.shape[1:]) if info.shape else ()
        if tuple(tensor.shape) != expected:
            raise SourceError(f"read a tensor of shape {tuple(tensor.shape)}", where=name, expected=str(expected))
        return tensor

    def part(self, names: Collection[str]) -> Checkpoint:
        """The same checkpoint with these tensors alone and no configuration: little to send to a worker."""
        smaller = copy.copy(self)
        smaller.config = {}
        smaller.tensors = {name: self.tensors[name] for name in names}
        smaller._places = {name: self._places[name] for name in names}
        return smaller

    def fingerprint(self) -> str:
        """SHA-256 of all that decides the rows of a run: the tensors' contents and the configuration.

        Raises:
            SourceError: a file changed since it was opened, or can no longer be read.
        """
        total = hashlib.sha256(json.dumps(self.config, sort_keys=True, default=_kind).encode())
        for path in self.files:
            with self._unchanged(path).open("rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
        return total.hexdigest()

    def _unchanged(self, path: Path) -> Path:
        """The path, while the file there is the one whose header was read."""
        if _stamp(path) != self._stamps[path]:
            raise SourceError("the file changed since it was opened", where=str(path), remedy="start again")
        return path


class MemoryCheckpoint(Checkpoint):
    """Tensors that already live in this process: a state dict, or any mapping of names to arrays.

    Args:
        tensors: name → torch tensor or ndarray. Held by reference, never changed.
        source: how reports name it.
        config: the model's configuration.

    Raises:
        InputError: a value that is neither a tensor nor an array.
    """

    def __init__(self, tensors: Mapping[str, Any], source: str = "tensors", config: Mapping[str, Any] | None = None):
        infos: dict[str, TensorInfo] = {}
        places: dict[str, Held] = {}
        for key, value in tensors.items():
            name = printable(str(key))
            if not isinstance(value, Tensor | np.ndarray):
                raise InputError(f"{name!r} is a {type(value).__name__}", where=source, expected="tensors or arrays")
            if name in infos:
                raise InputError(f"two tensors are named {name!r}", where=source, expected="each name once")
            infos[name] = describe(name, value)
            places[name] = Held(None if infos[name].problem else value)
        super().__init__(source, infos, config or {}, (), places)

    def _read(self, info: TensorInfo, start: int, stop: int) -> Tensor:
        held: Held = self._places[info.name]
        return held.rows(start, stop)

    def fingerprint(self) -> str:
        total = hashlib.sha256(super().fingerprint().encode())
        for name, info in self.tensors.items():
            total.update(f"{name} {info.shape} {info.dtype}".encode())
            if not info.problem:
                total.update(_bytes(self.read(name)).data)
        return total.hexdigest()


class Held:
    """A tensor or array of this process. Pickled by value: PyTorch's own way would move the caller's storage."""

    def __init__(self, value: Tensor | np.ndarray[Any, Any] | None) -> None:
        self._value = value.detach() if isinstance(value, Tensor) else value

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows ``start:stop``; all of a scalar."""
        value = self._value
        if value is None:
            raise SourceError("it has no data")
        taken = value[start:stop] if value.ndim else value
        if isinstance(taken, Tensor):
            return taken
        # A copy of the rows: the array may be read-only, reversed, or of the other byte order.
        return torch.from_numpy(np.array(taken, dtype=taken.dtype.newbyteorder("="), order="C"))

    def __reduce__(self) -> tuple[Any, ...]:
        if self._value is None:
            return Held, (None,)
        whole = self.rows(0, self._value.shape[0] if self._value.ndim else 1)
        return _unpack, (_bytes(whole), whole.dtype, tuple(whole.shape))


def _unpack(data: np.ndarray[Any, Any], dtype: torch.dtype, shape: tuple[int, ...]) -> Held:
    return Held(
        torch.from_numpy(data.copy()).view(dtype).reshape(shape) if data.size else torch.empty(shape, dtype=dtype)
    )


def _bytes(tensor: Tensor) -> np.ndarray[Any, Any]:
    flat = tensor.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    array: np.ndarray[Any, Any] = flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8)
    return array


def describe(name: str, value: Tensor | np.ndarray[Any, Any]) -> TensorInfo:
    """:class:`TensorInfo` of a live tensor or array; those that have no entries to read say so."""
    if isinstance(value, np.ndarray):
        try:
            label = _label(torch.from_numpy(np.empty(0, value.dtype.newbyteorder("="))).dtype)
        except TypeError:
            return TensorInfo(name, value.shape, str(value.dtype), value.nbytes, f"dtype {value.dtype} is not read")
        return TensorInfo(name, value.shape, label, value.nbytes)
    if isinstance(value, torch.nn.UninitializedParameter | torch.nn.UninitializedBuffer):
        return TensorInfo(name, (), _label(value.dtype), 0, "a lazy parameter that has no shape yet")
    if value.is_nested:
        return TensorInfo(name, (), _label(value.dtype), 0, "a nested tensor is not read")
    problem = ""
    if value.layout != torch.strided:
        problem = f"layout {value.layout} is not read"
    elif value.is_quantized:
        problem = f"quantised dtype {value.dtype} is not read"
    elif value.device.type == "meta":
        problem = "on the meta device: it has no data"
    return TensorInfo(name, tuple(value.shape), _label(value.dtype), value.numel() * value.element_size(), problem)


def walk(value: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested dictionaries and lists, by its dotted path; other values are passed over.

    A dictionary that stands in several places is entered once, so that neither a cycle nor a few references that
    multiply (the "billion laughs") can hold a reader.

    Raises:
        SourceError: deeper than :data:`DEEPEST`.
    """
    yield from _walk(value, prefix, set(), 0)


def _walk(value: Any, prefix: str, entered: set[int], depth: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield printable(prefix or "tensor"), value
    elif isinstance(value, Mapping | list | tuple) and id(value) not in entered:
        if depth == DEEPEST:
            raise SourceError(f"nested more than {DEEPEST} deep", expected="a state dict")
        entered.add(id(value))
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _walk(item, f"{prefix}.{key}" if prefix else str(key), entered, depth + 1)


def printable(text: str) -> str:
    """Text that any file can hold: a lone surrogate (from a file's name, or a forged one) is spelled out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def check_index(expected: Mapping[str, Path], places: Mapping[str, Path]) -> None:
    """Every tensor must be where the index puts it.

    Raises:
        SourceError: one is not.
    """
    for name, path in expected.items():
        if places.get(name) != path:
            raise SourceError(
                f"the index puts tensor {name!r} here, and it is not", where=str(path),
                expected="an index that fits its files", remedy="download the index and the files again",
            )  # fmt: skip


def repeated(name: str, first: Path, second: Path) -> SourceError:
    """The error for a tensor that stands in two files."""
    return SourceError(
        f"tensor {name!r} stands in this file and in {first.name}", where=str(second),
        expected="each tensor once", remedy="name one of the files instead of the folder",
    )  # fmt: skip


def inside(folder: Path, name: str, where: str) -> Path:
    """The file that an index names, which must lie in the index's own folder.

    Links are followed only within the folder, or into the ``blobs`` folder of a Hugging Face cache beside
    its ``snapshots``, which is how that cache is laid out.

    Raises:
        SourceError: an absolute name, a name that leaves the folder, or a link that does.
    """
    refusal = SourceError(
        f"names the file {name!r}, outside its own folder", where=where, expected="a file beside the index",
        remedy="the checkpoint is not to be trusted; where it is, copy its files into one folder",
    )  # fmt: skip
    relative = Path(name)
    if relative.is_absolute() or ".." in relative.parts or "\x00" in name:
        raise refusal
    path = folder / relative
    allowed = [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":
        allowed.append(folder.resolve().parent.parent / "blobs")
    if path.exists() and not any(path.resolve().is_relative_to(root) for root in allowed):
        raise refusal
    return path


def _check_shape(info: TensorInfo, source: str) -> None:
    limit = LONGEST_EMPTY if 0 in info.shape else LARGEST
    if any(extent > limit for extent in info.shape) or math.prod(info.shape) > LARGEST:
        raise SourceError(
            f"tensor {info.name!r} has the shape {info.shape}", where=source, expected="a shape that a tensor can have",
            remedy="the file is damaged or forged; download it again",
        )  # fmt: skip


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise SourceError(f"cannot be read: {error.strerror}", where=str(path)) from error
    return status.st_size, status.st_mtime_ns


def _label(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _kind(value: object) -> str:
    return str(value) if isinstance(value, torch.dtype) else type(value).__name__
