"""PyTorch ``.bin``/``.pt`` files, read with ``weights_only=True``: no pickle in them is ever executed."""

from __future__ import annotations

import pickle
import re
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eigenscope.errors import SourceError
from eigenscope.models.checkpoint import Checkpoint, Held, TensorInfo, check_index, describe, repeated, walk

MOST_MAPPED = 2**28
"""Bytes read through mapped files before they are let go."""


class PyTorchCheckpoint(Checkpoint):
    """One or more PyTorch files. Tensors nested in dictionaries or lists are named by their dotted path.

    The zip format is memory-mapped. The format before PyTorch 1.6 cannot be: such a file is held whole, and
    ``notes`` says so.

    Args:
        source: what the user named.
        paths: the files.
        config: the model's configuration.
        expected: tensor name → file, from an index; every tensor must be where the index puts it.

    Raises:
        SourceError: a file that needs code to be loaded, is damaged, holds no tensor, or repeats a name.
    """

    def __init__(
        self, source: str, paths: list[Path], config: Mapping[str, Any], expected: Mapping[str, Path] | None = None
    ) -> None:
        tensors: dict[str, TensorInfo] = {}
        files: dict[str, Path] = {}
        places: dict[str, Path | Held] = {}
        notes = []
        for path in paths:
            mapped = _is_archive(path)
            if not mapped:
                notes.append(f"{path.name} is in PyTorch's old format: held in memory whole")
            for name, tensor in _load(path, mapped).items():
                if name in tensors:
                    raise repeated(name, files[name], path)
                tensors[name] = _describe(name, tensor, path)
                files[name] = path
                places[name] = path if mapped else Held(None if tensors[name].problem else tensor)
        check_index(expected or {}, files)
        self._mappings = _Mappings()
        super().__init__(source, tensors, config, tuple(paths), places, tuple(notes))

    def _read(self, info: TensorInfo, start: int, stop: int) -> Tensor:
        place: Path | Held = self._places[info.name]
        if isinstance(place, Path):
            nbytes = info.nbytes // max(info.shape[0] if info.shape else 1, 1) * (stop - start)
            place = Held(self._mappings.tensors(self._unchanged(place), nbytes)[info.name])
        return place.rows(start, stop)


class _Mappings:
    """The mapped files of a process, shared by its threads.

    All are let go once some bytes were read through them, so that pages already seen leave the memory. Mapping a
    file for each read instead would parse its pickle as often as it has tensors.
    """

    def __init__(self) -> None:
        self._files: dict[Path, dict[str, Tensor]] = {}
        self._seen = 0
        self._lock = threading.Lock()

    def tensors(self, path: Path, nbytes: int) -> dict[str, Tensor]:
        """The tensors of a file, of which ``nbytes`` will be read."""
        with self._lock:
            self._seen += nbytes
            if self._seen > MOST_MAPPED:
                self._files, self._seen = {}, nbytes
            if path not in self._files:
                self._files[path] = _load(path, mapped=True)
            return self._files[path]

    def __reduce__(self) -> tuple[Any, ...]:
        return _Mappings, ()


def _describe(name: str, tensor: Tensor, path: Path) -> TensorInfo:
    """As :func:`describe`; a tensor of few stored entries and a huge shape (strides of 0) is not believed."""
    info, size = describe(name, tensor), path.stat().st_size
    if not info.problem and info.nbytes > size:
        problem = f"it promises {info.nbytes} bytes and its file holds {size}"
        return TensorInfo(name, info.shape, info.dtype, info.nbytes, problem)
    return info


def _load(path: Path, mapped: bool) -> dict[str, Tensor]:
    try:
        sizes = _check_archive(path) if mapped else None
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        tensors: dict[str, Tensor] = {}
        for name, tensor in walk(content):
            while name in tensors:  # {"a.b": …, "a": {"b": …}}
                name += "'"
            tensors[name] = tensor
        if sizes is not None:
            _check_sizes(tensors, sizes)
    except Exception as error:  # what a damaged or forged pickle can raise is no closed list
        raise _explained(error, path) from error
    if not tensors:
        raise SourceError(f"holds a {type(content).__name__} and no tensor", where=str(path), expected="a state dict")
    return tensors


def _is_archive(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"  # what PyTorch goes by


def _check_archive(path: Path) -> set[int]:
    """PyTorch stores its records as they are; compressed ones could unpack to any size. The sizes of the data."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    if any(record.filename.endswith("/constants.pkl") for record in records):
        raise ValueError("a TorchScript archive")
    packed = [record.filename for record in records if record.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise ValueError(f"its record {packed[0]!r} is compressed, which PyTorch's never are")
    return {record.file_size for record in records if "/data/" in record.filename}


def _check_sizes(tensors: Mapping[str, Tensor], sizes: set[int]) -> None:
    """Each tensor's storage must be as long as a record: mapped, PyTorch itself would read into the next one."""
    for name, tensor in tensors.items():
        if tensor.layout == torch.strided and tensor.device.type == "cpu":
            nbytes = tensor.untyped_storage().nbytes()
            if nbytes and nbytes not in sizes:
                raise ValueError(f"tensor {name!r} promises a record of {nbytes} bytes, and there is none")


def _explained(error: Exception, path: Path) -> SourceError:
    reason = str(error).split("\n")[0] or type(error).__name__
    if isinstance(error, pickle.UnpicklingError):
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted:
            return SourceError(
                f"refused: it would run {wanted[1]} when loaded", where=str(path), expected="a file of tensors alone",
                remedy="save the state dict as safetensors where you trust the file",
            )  # fmt: skip
        detail = re.search(r"WeightsUnpickler error: ([^\n]+)", str(error))
        reason = detail[1].strip() if detail else reason
    if "TorchScript" in str(error):
        return SourceError(
            "refused: a TorchScript archive holds a program", where=str(path), expected="a file of tensors alone",
            remedy="save its state_dict() as safetensors where you trust the file",
        )  # fmt: skip
    return SourceError(f"not a sound PyTorch file: {reason}", where=str(path), remedy="download or save it again")
