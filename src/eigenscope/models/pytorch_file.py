"""PyTorch ``.bin``/``.pt`` files, read with ``weights_only=True``: no pickle in them is ever executed."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eigenscope.errors import SourceError
from eigenscope.models.checkpoint import Checkpoint, TensorInfo, describe


class PyTorchCheckpoint(Checkpoint):
    """One or more PyTorch files. Tensors nested in dictionaries or lists are named by their dotted path.

    The zip format is memory-mapped anew for each read, so that pages already seen leave the memory. The format
    before PyTorch 1.6 cannot be mapped: such a file is held whole, and ``notes`` says so.

    Raises:
        SourceError: a file that needs code to be loaded, is damaged, holds no tensor, or repeats a name.
    """

    def __init__(self, source: str, paths: list[Path], config: Mapping[str, Any]) -> None:
        tensors: dict[str, TensorInfo] = {}
        self._place: dict[str, Path] = {}
        self._held: dict[Path, dict[str, Tensor]] = {}
        notes = []
        for path in paths:
            found = _load(path)
            if not zipfile.is_zipfile(path):
                self._held[path] = found
                notes.append(f"{path.name} is in PyTorch's old format: held in memory whole")
            for name, tensor in found.items():
                if name in tensors:
                    raise SourceError(
                        f"tensor {name!r} stands in this file and in {self._place[name].name}", where=path.name,
                        expected="each tensor once", remedy="name one of the files instead of the folder",
                    )  # fmt: skip
                tensors[name] = describe(name, tensor)
                self._place[name] = path
        super().__init__(source, tensors, config, tuple(paths), tuple(notes))

    def _read(self, info: TensorInfo, start: int, stop: int) -> Tensor:
        path = self._place[info.name]
        tensor = (self._held.get(path) or _load(path))[info.name]
        return tensor[start:stop] if info.shape else tensor


def _load(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it would run {wanted[1]}" if wanted else "it is not a plain dictionary of tensors"
        raise SourceError(
            f"refused: {what} when loaded", where=str(path), expected="a file of tensors alone",
            remedy="save the state dict as safetensors where you trust the file",
        ) from error  # fmt: skip
    except (RuntimeError, ValueError, EOFError, LookupError, OSError, AttributeError, TypeError) as error:
        reason = str(error).split("\n")[0]
        raise SourceError(
            f"not a sound PyTorch file: {reason}", where=str(path), remedy="download or save it again"
        ) from error
    tensors = dict(_walk(content, ""))
    if not tensors:
        raise SourceError(f"holds a {type(content).__name__} and no tensor", where=str(path), expected="a state dict")
    return tensors


def _walk(value: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield prefix or "tensor", value.detach()
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _walk(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _walk(item, f"{prefix}.{index}" if prefix else str(index))
