"""The contract of a checkpoint: tensors by name, their shapes without their data, one of them at a time."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eigenscope.errors import InputError, SourceError


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

    Attributes:
        source: what the user named.
        tensors: name → :class:`TensorInfo`, in the order of the file.
        config: the model's configuration where there is one, else empty.
        files: the files that hold the tensors; their content is the checkpoint's identity.
        notes: what a reader should know of how it was opened.
    """

    def __init__(
        self,
        source: str,
        tensors: Mapping[str, TensorInfo],
        config: Mapping[str, Any],
        files: tuple[Path, ...],
        notes: tuple[str, ...] = (),
    ) -> None:
        self.source = source
        self.tensors = dict(tensors)
        self.config = dict(config)
        self.files = files
        self.notes = notes

    @abstractmethod
    def _read(self, info: TensorInfo, start: int, stop: int) -> Tensor: ...

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows ``start:stop`` (along the first dimension) of one tensor, dequantised where the format is GGUF's.

        Raises:
            SourceError: no such tensor, or it cannot be read; the message says why.
        """
        info = self.tensors.get(name)
        if info is None:
            raise SourceError(f"no tensor named {name!r}", where=self.source)
        if info.problem:
            raise SourceError(info.problem, where=name)
        size = info.shape[0] if info.shape else 1
        tensor = self._read(info, start, size if stop is None else stop)
        expected = ((size if stop is None else stop) - start, *info.shape[1:]) if info.shape else ()
        if tuple(tensor.shape) != expected:
            raise SourceError(f"read a tensor of shape {tuple(tensor.shape)}", where=name, expected=str(expected))
        return tensor

    def fingerprint(self) -> str:
        """SHA-256 of the files' contents (of the tensors' where there is no file)."""
        total = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
        return total.hexdigest()


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
        held: dict[str, Tensor] = {}
        for name, value in tensors.items():
            if isinstance(value, np.ndarray):
                value = torch.as_tensor(value)
            if not isinstance(value, Tensor):
                raise InputError(f"{name!r} is a {type(value).__name__}", where=source, expected="tensors or arrays")
            held[name] = value.detach()
        infos = {name: describe(name, value) for name, value in held.items()}
        super().__init__(source, infos, config or {}, ())
        self._held = held

    def _read(self, info: TensorInfo, start: int, stop: int) -> Tensor:
        tensor = self._held[info.name]
        return tensor[start:stop] if info.shape else tensor

    def fingerprint(self) -> str:
        total = hashlib.sha256()
        for name, tensor in self._held.items():
            total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            flat = tensor.cpu().contiguous().reshape(-1)
            total.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
        return total.hexdigest()


def describe(name: str, tensor: Tensor) -> TensorInfo:
    """:class:`TensorInfo` of a live tensor; layouts that have no entries to read say so."""
    problem = ""
    if tensor.layout != torch.strided:
        problem = f"layout {tensor.layout} is not read"
    elif tensor.is_quantized:
        problem = f"quantised dtype {tensor.dtype} is not read"
    elif tensor.device.type == "meta":
        problem = "on the meta device: it has no data"
    return TensorInfo(
        name,
        tuple(tensor.shape),
        str(tensor.dtype).removeprefix("torch."),
        tensor.numel() * tensor.element_size(),
        problem,
    )


def inside(folder: Path, name: str, where: str) -> Path:
    """The file that an index names, which must lie in the index's own folder.

    Links are followed only within the folder, or into the ``blobs`` folder of a Hugging Face cache beside
    its ``snapshots``, which is how that cache is laid out.

    Raises:
        SourceError: an absolute name, a name that leaves the folder, or a link that does.
    """
    refusal = SourceError(
        f"names the file {name!r}, outside its own folder", where=where,
        expected="a file beside the index", remedy="the checkpoint is not to be trusted, or copy the files together",
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
