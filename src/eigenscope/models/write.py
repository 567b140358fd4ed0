"""Checkpoints written: safetensors streamed tensor by tensor, into a folder that appears when it is whole."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from eigenscope.errors import InputError
from eigenscope.models.safetensors_file import DTYPES

CODES = {name: code for code, name in DTYPES.items()}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
LARGEST_SHARD = 5 * 10**9
"""Bytes; transformers' own limit was 5 GB for years, and any of its versions reads such shards."""


@dataclass(frozen=True)
class TensorSpec:
    """What is known of a tensor before its data is there: name, shape, dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * self.dtype.itemsize


Reader = Callable[[str], Tensor]
"""Name → the tensor: called once for each, when its turn to be written comes."""


def write_safetensors(path: Path, specs: Sequence[TensorSpec], read: Reader) -> None:
    """One safetensors file; memory holds one tensor at a time.

    The library's own writer takes all tensors at once. The format (https://github.com/huggingface/safetensors, "Format"):
    8 bytes with the length of a JSON header, the header, the data without gaps; here, as there, the widest dtypes first, so
    that every tensor is aligned.

    Args:
        path: the file, replaced where there is one.
        specs: all tensors of the file.
        read: gives each of them.

    Raises:
        InputError: a dtype that the format lacks, or a tensor that comes out other than its spec.
        OSError: the file cannot be written.
    """
    ordered = sorted(specs, key=lambda spec: (-spec.dtype.itemsize, spec.name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for spec in ordered:
        code = CODES.get(str(spec.dtype).removeprefix("torch."))
        if code is None:
            raise InputError(f"dtype {spec.dtype}", where=spec.name, expected="a dtype that safetensors holds")
        header[spec.name] = {
            "dtype": code, "shape": list(spec.shape), "data_offsets": [offset, offset + spec.nbytes]
        }  # fmt: skip
        offset += spec.nbytes
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for spec in ordered:
            tensor = read(spec.name)
            if tuple(tensor.shape) != spec.shape or tensor.dtype != spec.dtype:
                raise InputError(
                    f"came out as {tensor.dtype} {tuple(tensor.shape)}",
                    where=spec.name,
                    expected=f"{spec.dtype} {spec.shape}",
                )
            if tensor.numel():
                stream.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def shards(specs: Iterable[TensorSpec], largest: int = LARGEST_SHARD) -> dict[str, list[TensorSpec]]:
    """File name → its tensors, in the order given, no file larger than ``largest`` bytes unless one tensor is.

    Raises:
        InputError: ``largest`` is not positive.
    """
    if largest < 1:
        raise InputError(f"shards of {largest} bytes", expected="a positive size")
    groups: list[list[TensorSpec]] = []
    size = 0
    for spec in specs:
        if not groups or size + spec.nbytes > largest:
            groups.append([])
            size = 0
        groups[-1].append(spec)
        size += spec.nbytes
    if len(groups) < 2:
        return {SINGLE: groups[0] if groups else []}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, 1)}


def write_shards(folder: Path, layout: Mapping[str, Sequence[TensorSpec]], read: Reader, index: str = INDEX) -> None:
    """The files of ``layout`` (name → tensors) and, of more than one, their index, as transformers reads them.

    Raises:
        InputError, OSError: as :func:`write_safetensors`.
    """
    for name, specs in layout.items():
        write_safetensors(folder / name, specs, read)
    if len(layout) > 1:
        total = sum(spec.nbytes for specs in layout.values() for spec in specs)
        places = {spec.name: name for name, specs in layout.items() for spec in specs}
        content = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / index).write_text(json.dumps(content, indent=2) + "\n", "utf-8")


@contextmanager
def replacing_folder(folder: str | Path, *, force: bool = False, stale: str = "") -> Iterator[Path]:
    """A folder beside ``folder`` that takes its place, whole, when the block ends without an error.

    Where ``folder`` already holds files (with ``force``), the new ones are moved in together at the end, each replacing
    its namesake; files that match ``stale`` and are not among the new ones are removed; others stay.

    Args:
        folder: the folder to make.
        force: write into one that exists and is not empty.
        stale: regular expression of names that would be read in place of the new files.

    Raises:
        InputError: it exists and is not empty, without ``force``, or it is a file.
        OSError: it cannot be written; an older folder of that name is then untouched.
    """
    target = Path(folder)
    check_folder(target, force=force)
    target = target.resolve()
    try:
        beside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name[:200]}."))
    except OSError as error:
        raise _named(error, target) from error
    try:
        yield beside
        mask = os.umask(0)
        os.umask(mask)
        # mkdtemp makes folders private; the finished one gets the rights that any new folder would have.
        beside.chmod(0o777 & ~mask)
        if target.is_dir() and any(target.iterdir()):
            _move_into(beside, target, stale)
        else:
            beside.replace(target)
    except OSError as error:
        raise _named(error, target) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def check_folder(folder: str | Path, *, force: bool = False) -> None:
    """Find out before the work whether the folder can be written.

    Raises:
        InputError: it exists and is not empty, without ``force``, or it is a file.
        OSError: its parent is missing or may not be written.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise InputError("is a file", where=str(folder), expected="a folder to write", remedy="name another one")
    if target.is_dir() and any(target.iterdir()) and not force:
        raise InputError(
            "exists and is not empty",
            where=str(folder),
            expected="a new folder",
            remedy="name another one, or use --force",
        )
    parent = target.resolve().parent
    if not parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(parent))
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise _named(error, target) from error


def _move_into(beside: Path, target: Path, stale: str) -> None:
    new = sorted(path.relative_to(beside) for path in beside.rglob("*") if path.is_file())
    for name in new:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (beside / name).replace(target / name)
    for path in target.iterdir():
        if stale and path.is_file() and re.fullmatch(stale, path.name) and Path(path.name) not in new:
            path.unlink()


def _named(error: OSError, target: Path) -> OSError:
    """The same error with the name that the user knows, not that of a temporary file."""
    return OSError(error.errno or errno.EIO, error.strerror or str(error), str(target))
