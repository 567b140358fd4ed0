"""What a user names → a checkpoint: a folder, a file, a hub id, ``demo``, a module, a mapping of tensors."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from eigenscope.errors import InputError, SourceError
from eigenscope.models.checkpoint import Checkpoint, MemoryCheckpoint, inside, printable, walk
from eigenscope.models.demo import demo_folder
from eigenscope.models.gguf_file import GGUFCheckpoint
from eigenscope.models.pytorch_file import PyTorchCheckpoint
from eigenscope.models.safetensors_file import SafetensorsCheckpoint

PYTORCH_ENDINGS = (".bin", ".pt", ".pth", ".ckpt")
KINDS = ((".safetensors",), (".gguf",), PYTORCH_ENDINGS)
"""In order of preference; an index of one kind is of no interest where only files of another are."""
ENDINGS = (".safetensors", ".gguf", *PYTORCH_ENDINGS)
INDEX_ENDING = ".index.json"
NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "scaler", "rng_state", "random_states")
"""What the names of a trainer's own files begin with."""
OF_MODULES = ("transposed_convolutions", "convolution_groups")
"""What is known of a live module's convolutions; a file's configuration has no say in it."""


def open_checkpoint(source: Any) -> Checkpoint:
    """Open a checkpoint; shapes are listed, no tensor is read.

    Args:
        source: a path or its text, ``"demo"``, a hub id ``"owner/name"``, an ``nn.Module``, a mapping of tensors,
            or an open :class:`Checkpoint`.

    Raises:
        SourceError: nothing there, nothing readable in it, or it will not be trusted.
        InputError: an object of another kind.
    """
    if isinstance(source, Checkpoint):
        return source
    if isinstance(source, torch.nn.Module):
        return _of_module(source)
    if isinstance(source, Mapping):
        return MemoryCheckpoint(source)
    if not isinstance(source, str | os.PathLike):
        raise InputError(
            f"a {type(source).__name__}",
            where="source",
            expected="a path, a hub id, 'demo', a module or a mapping",
        )
    text = os.fsdecode(source)
    try:
        return _open_named(text)
    except OSError as error:  # its rights, its length, a disk that fails
        raise SourceError(
            f"cannot be read: {error.strerror or error}", where=str(error.filename or text),
            remedy="check the path and its rights",
        ) from error  # fmt: skip


def _open_named(text: str) -> Checkpoint:
    if printable(text) != text:
        raise SourceError("the name is no UTF-8 text", where=printable(text), remedy="rename the file")
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise SourceError("there is no such user", where=text, expected="a path") from error
    if text == "demo" and not path.exists():
        return _open_folder(demo_folder(), "demo")
    if text and path.is_dir():
        return _open_folder(path, text)
    if path.is_file():
        return _open_file(path, text)
    if text and path.exists():
        raise SourceError("is neither a file nor a folder", where=text, expected="a checkpoint's file or folder")
    if _looks_like_hub_id(text):
        return _open_folder(_from_hub(text), text)
    raise SourceError(
        "no such file or folder", where=text or "an empty name",
        expected="a checkpoint's folder or file, a hub id owner/name, or demo",
    )  # fmt: skip


def _of_module(module: torch.nn.Module) -> MemoryCheckpoint:
    config = getattr(module, "config", None)
    as_dict = config.to_dict() if config is not None and callable(getattr(config, "to_dict", None)) else {}
    transposed, groups = [], {}
    for name, child in module.named_modules():
        if isinstance(child, torch.nn.modules.conv._ConvNd):
            if child.transposed:
                transposed.append(f"{name}.weight")
            groups[f"{name}.weight"] = child.groups
    as_dict |= dict(zip(OF_MODULES, (transposed, groups), strict=True))
    # A state dict may also hold what is no tensor: versions, packed parameters, extra state.
    return MemoryCheckpoint(dict(walk(module.state_dict())), type(module).__name__, as_dict)


def _open_file(path: Path, source: str) -> Checkpoint:
    if path.name.endswith(INDEX_ENDING):
        return _open_index(path, source)
    config = _config(path.parent)
    with path.open("rb") as stream:
        magic = stream.read(4)
    suffix = path.suffix.lower()
    if suffix == ".gguf" or magic == b"GGUF":
        return GGUFCheckpoint(source, path)
    if suffix == ".safetensors":
        return SafetensorsCheckpoint(source, [path], config)
    if suffix in PYTORCH_ENDINGS:
        return PyTorchCheckpoint(source, [path], config)
    raise SourceError(f"unknown kind of file {path.suffix or path.name!r}", where=source, expected=", ".join(ENDINGS))


def _open_folder(folder: Path, source: str) -> Checkpoint:
    names = sorted(item.name for item in folder.iterdir() if item.is_file() and not item.name.startswith("."))
    config = _config(folder)
    for endings in KINDS:
        indexes = [name for name in names if name.endswith(tuple(ending + INDEX_ENDING for ending in endings))]
        weights = [name for name in names if Path(name).suffix in endings and not name.startswith(NO_WEIGHTS)]
        if not weights:
            continue
        several = indexes if len(indexes) > 1 else weights if endings == (".gguf",) and len(weights) > 1 else []
        if several:
            raise SourceError(
                f"{len(several)} checkpoints: {', '.join(several[:4])}{', …' if len(several) > 4 else ''}", where=source,
                expected="one", remedy="name one of the files",
            )  # fmt: skip
        if indexes:
            return _open_index(inside(folder, indexes[0], source), source)
        files = [inside(folder, name, source) for name in weights]
        if endings == (".gguf",):
            return GGUFCheckpoint(source, files[0])
        return (SafetensorsCheckpoint if endings == (".safetensors",) else PyTorchCheckpoint)(source, files, config)
    for name in names:
        if name.endswith(INDEX_ENDING):
            return _open_index(inside(folder, name, source), source)  # which names the shards that are missing
    below = sorted({str(p.parent.relative_to(folder)) for p in folder.glob("*/*") if p.suffix in ENDINGS})
    raise SourceError(
        "no weights in this folder" if any(folder.iterdir()) else "the folder is empty", where=source,
        expected="a file ending in " + ", ".join(ENDINGS),
        remedy=f"there are weights in {', '.join(below[:8])}: name one of them" if below else "",
    )  # fmt: skip


def _open_index(index: Path, source: str) -> Checkpoint:
    content = _json(index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError("has no weight_map", where=str(index), expected="tensor name → file name")
    places = {str(name): inside(index.parent, str(file), str(index)) for name, file in weight_map.items()}
    shards = list(dict.fromkeys(places.values()))
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise SourceError(
            f"{len(missing)} of {len(shards)} shards are missing: {', '.join(missing[:3])}", where=str(index),
            remedy="download the missing files into the same folder",
        )  # fmt: skip
    kind = SafetensorsCheckpoint if shards[0].suffix == ".safetensors" else PyTorchCheckpoint
    return kind(source, shards, _config(index.parent), places)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    content = _json(path) if path.is_file() else {}
    return {key: value for key, value in content.items() if key not in OF_MODULES}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise SourceError(f"not sound JSON: {error}", where=str(path), remedy="download or save it again") from error
    if not isinstance(content, dict):
        raise SourceError(f"holds a {type(content).__name__}", where=str(path), expected="a JSON object")
    return content


def _looks_like_hub_id(text: str) -> bool:
    parts = text.split("/")
    return len(parts) == 2 and all(part and not part.startswith(".") for part in parts) and "\\" not in text


def _from_hub(repo: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    remedy = "check the name; for a private model log in with `hf auth login`; offline, only cached models are found"
    try:
        # Weights in PyTorch's pickle format are fetched only where the repository has no safetensors.
        for patterns in (["*.safetensors"], ["*.gguf"], ["*.bin", "*.pt", "*.pth"]):
            folder = Path(snapshot_download(repo, allow_patterns=["*.json", *patterns], ignore_patterns=["*/*"]))
            if any(item.suffix in ENDINGS for item in folder.iterdir()):
                return folder
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise SourceError(f"no such file or folder, and not on the hub: {reason}", where=repo, remedy=remedy) from error
    raise SourceError(
        "the hub's repository holds no weights beside its configuration", where=repo, expected=", ".join(ENDINGS),
        remedy="where they are in a folder of it, download that folder and name it",
    )  # fmt: skip
