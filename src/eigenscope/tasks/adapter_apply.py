"""``adapter apply``: a base and an adapter → the adapted model, streamed into the base's own shards."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eigenscope.engine.progress import Listener, Progress, silent
from eigenscope.errors import InputError, SourceError
from eigenscope.models.checkpoint import Checkpoint, inside
from eigenscope.models.matrices import list_matrices
from eigenscope.models.peft import AdapterFile, AdapterLayer, as_map, as_stored, read_adapter
from eigenscope.models.safetensors_file import SafetensorsCheckpoint
from eigenscope.models.sources import ENDINGS, INDEX_ENDING, open_checkpoint
from eigenscope.models.write import INDEX, TensorSpec, check_folder, replacing_folder, shards, write_shards
from eigenscope.tasks.adapter import Adapter
from eigenscope.tasks.adapter_targets import FLOATS

WEIGHTS = (*ENDINGS, ".h5", ".msgpack", ".onnx", ".ot", ".tflite", ".npz", ".mlmodel")
"""Files of weights, which are not copied beside the new ones."""
STALE = r".*(\.safetensors|\.bin|\.pt|\.pth|\.ckpt|\.index\.json)"
RESIDUAL = ("pissa", "olora", "corda", "loftq", "eva", "lora_ga")
"""Starts of training that change the base: such an adapter belongs on a base that is not the published one."""


@dataclass(frozen=True)
class ApplyPlan:
    """What will be written.

    Attributes:
        base: the open source.
        adapter: layers and saved parameters.
        places: base tensor → the layer that changes it.
        saved: base tensor → its new value.
        layout: file → its tensors.
        copied: the other files of the base's folder, relative to it.
    """

    base: Checkpoint
    adapter: AdapterFile
    places: Mapping[str, AdapterLayer]
    saved: Mapping[str, Tensor]
    layout: Mapping[str, Sequence[TensorSpec]]
    copied: tuple[Path, ...]

    def lines(self) -> dict[str, str]:
        """The plan in words, for ``--plan``."""
        total = sum(spec.nbytes for specs in self.layout.values() for spec in specs)
        largest = max((spec.nbytes for specs in self.layout.values() for spec in specs), default=0)
        return {
            "base": self.base.source,
            "adapter": self.adapter.source,
            "changed": f"{len(self.places)} weights, {len(self.saved)} parameters replaced whole",
            "written": f"{total / 1e6:,.1f} MB in {len(self.layout)} files, {len(self.copied)} others copied",
            "memory": f"{max(largest, 1) * 4 / 1e6:,.0f} MB for the largest tensor",
        }


def apply_adapter(
    base: Any, adapter: Adapter | str | Path, folder: str | Path, *, force: bool = False, alpha: float | None = None,
    progress: Listener = silent,
) -> Path:  # fmt: skip
    """Write the base with the adapter in its weights: W + scale · B A, of DoRA with its rows rescaled.

    One tensor is in memory at a time; shards, names and dtypes are those of the base, and its other files (configuration,
    tokenizer) are copied; of a hub id, those that were fetched with its weights, which are JSON alone. The folder appears when
    it is whole.

    Args:
        base: a path, a hub id, ``"demo"``, an ``nn.Module``, or a mapping. Never changed.
        adapter: a folder of PEFT's format, or an :class:`Adapter`.
        folder: where to write.
        force: also into a folder that exists and is not empty.
        alpha: scale numerator of an adapter without a configuration.
        progress: called after each tensor.

    Raises:
        SourceError: one of the two cannot be read.
        InputError: the adapter does not fit the base (the keys are named), a quantised base, the folder exists.
        OSError: it cannot be written.
    """
    plan = make_plan(base, adapter, alpha=alpha)
    check_target(plan, folder, force=force)
    return run_plan(plan, folder, force=force, progress=progress)


def make_plan(base: Any, adapter: Adapter | str | Path, *, alpha: float | None = None) -> ApplyPlan:
    """Open both and match them; no weight of the base is read."""
    file = adapter.file if isinstance(adapter, Adapter) else read_adapter(adapter, alpha=alpha)
    checkpoint = open_checkpoint(base)
    start = str(file.config.get("init_lora_weights") or "").lower()
    if start.startswith(RESIDUAL):
        raise InputError(
            f"the adapter was trained from {start!r}, which changes the base first", where=file.source,
            expected="an adapter of the base as it is",
            remedy="convert it with save_pretrained(path_initial_model_for_weight_conversion=…) of PEFT",
        )  # fmt: skip
    _check_plain(checkpoint)
    places, saved = _matched(checkpoint, file)
    return ApplyPlan(checkpoint, file, places, saved, _layout(checkpoint), _others(checkpoint))


def check_target(plan: ApplyPlan, folder: str | Path, *, force: bool) -> None:
    """Find out before the work whether the folder can be written.

    Raises:
        InputError: it exists, without ``force``, or it is the base's own.
        OSError: it cannot be written.
    """
    if any(path.parent.resolve() == Path(folder).resolve() for path in plan.base.files):
        raise InputError("is the base's own folder", where=str(folder), expected="another folder")
    check_folder(folder, force=force)


def run_plan(plan: ApplyPlan, folder: str | Path, *, force: bool = False, progress: Listener = silent) -> Path:
    """Write what the plan says."""
    total, done = sum(len(specs) for specs in plan.layout.values()), 0

    def read(name: str) -> Tensor:
        nonlocal done
        value = adapted(plan, name)
        done += 1
        progress(Progress(done, total, name))
        return value

    with replacing_folder(folder, force=force, stale=STALE) as beside:
        write_shards(beside, plan.layout, read, _index_name(plan.base))
        for name in plan.copied:
            (beside / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(plan.base.files[0].parent / name, beside / name)
    return Path(folder)


def adapted(plan: ApplyPlan, name: str) -> Tensor:
    """One tensor of the adapted model, in the base's dtype.

    Raises:
        InputError: the result is not finite where the base is.
    """
    value = plan.saved.get(name)
    W = plan.base.read(name)
    if value is not None:
        W = value.to(W.dtype)
    layer = plan.places.get(name)
    if layer is None:
        return W
    wide = torch.float64 if W.dtype == torch.float64 else torch.float32
    matrix = as_map(W, layer.kind).to(wide)
    result = torch.addmm(matrix, layer.B.to(wide), layer.A.to(wide), alpha=layer.scale)
    if layer.magnitude is not None:
        # Liu et al. 2024, eq. 5; the norm of each output's row, as PEFT takes it.
        norms = torch.linalg.vector_norm(result, dim=1, dtype=torch.float64)
        result = result * (layer.magnitude.double() / norms).to(wide).unsqueeze(1)
    stored = as_stored(result, layer.kind, tuple(W.shape)).to(W.dtype).contiguous()
    if not bool(torch.isfinite(stored).all()) and bool(torch.isfinite(W).all()):
        raise InputError(f"the adapted weight overflows {W.dtype}", where=name, expected="a base in a wider format")
    return stored


def _check_plain(checkpoint: Checkpoint) -> None:
    bad = [info for info in checkpoint.tensors.values() if info.problem or not _is_plain(info.dtype)]
    scaled = [] if bad else [m.tensor for m in list_matrices(checkpoint)[0] if m.scale or m.problem]
    if bad or scaled or checkpoint.config.get("quantization_config"):
        name = bad[0].name if bad else scaled[0] if scaled else "config.json: quantization_config"
        kind = f" ({bad[0].dtype})" if bad else ""
        raise InputError(
            f"the base is quantised: {name}{kind}", where=checkpoint.source, expected="weights in fp32, fp16 or bf16",
            remedy="apply the adapter to the unquantised base and quantise the result",
        )  # fmt: skip


def _is_plain(dtype: str) -> bool:
    return dtype in FLOATS or dtype.startswith(("int64", "int32", "bool", "uint8"))


def _matched(checkpoint: Checkpoint, file: AdapterFile) -> tuple[dict[str, AdapterLayer], dict[str, Tensor]]:
    """Base tensor → layer, and base tensor → new value; what does not fit is named."""
    transposed = {m.tensor for m in list_matrices(checkpoint)[0] if any(step[0] == "permute" for step in m.steps)}
    ends = _by_end(checkpoint)
    places: dict[str, AdapterLayer] = {}
    saved: dict[str, Tensor] = {}
    strange = []
    for module, layer in file.layers.items():
        name = ends.get(f"{module}.weight") or _longer(checkpoint, f"{module}.weight")
        fitted = None if name is None else _fitted(layer, checkpoint.tensors[name].shape, name in transposed)
        if name is None or fitted is None:
            has = f" of shape {checkpoint.tensors[name].shape}" if name else ""
            strange.append(f"{module} {layer.shape}{', where the base has one' + has if has else ''}")
        else:
            places[name] = fitted
    for parameter, value in file.saved.items():
        name = ends.get(parameter) or _longer(checkpoint, parameter)
        if name is None or checkpoint.tensors[name].shape != tuple(value.shape):
            strange.append(f"{parameter} {tuple(value.shape)}")
        else:
            saved[name] = value
    if strange:
        shown = "; ".join(strange[:4]) + ("; …" if len(strange) > 4 else "")
        raise InputError(
            f"{len(strange)} keys of the adapter do not fit the base: {shown}", where=file.source,
            expected=f"modules of {checkpoint.source}", remedy="name the base that the adapter was trained on",
        )  # fmt: skip
    return places, saved


def _by_end(checkpoint: Checkpoint) -> dict[str, str]:
    """Every end of a tensor's name that no other tensor has → the name; full names first."""
    ends: dict[str, str | None] = {}
    for name in checkpoint.tensors:
        parts = name.split(".")
        for start in range(1, len(parts) - 1):
            end = ".".join(parts[start:])
            ends[end] = None if end in ends else name
    return {end: name for end, name in ends.items() if name is not None} | {name: name for name in checkpoint.tensors}


def _longer(checkpoint: Checkpoint, key: str) -> str | None:
    """The tensor whose name is the end of a key: the adapter was trained on a model that wraps the base."""
    parts = key.split(".")
    ends = [".".join(parts[start:]) for start in range(1, len(parts) - 1)]
    return next((end for end in ends if end in checkpoint.tensors), None)


def _fitted(layer: AdapterLayer, shape: tuple[int, ...], transposed: bool) -> AdapterLayer | None:
    """The layer as the base stores its weight; None where it does not fit."""
    if layer.kind in ("linear", "conv1d_transposed"):
        m, n = layer.B.shape[0], layer.A.shape[1]
        if shape == (m, n) and not (m == n and transposed):
            return replace(layer, kind="linear", shape=shape)
        return replace(layer, kind="conv1d_transposed", shape=shape) if shape == (n, m) else None
    return layer if shape == layer.shape else None


def _layout(checkpoint: Checkpoint) -> dict[str, list[TensorSpec]]:
    """The base's own files of safetensors; of another format, shards of the usual size."""
    specs = [TensorSpec(t.name, t.shape, getattr(torch, t.dtype)) for t in checkpoint.tensors.values()]
    if not isinstance(checkpoint, SafetensorsCheckpoint):
        return shards(specs)
    layout: dict[str, list[TensorSpec]] = {path.name: [] for path in checkpoint.files}
    for spec in specs:
        layout[checkpoint.file_of(spec.name).name].append(spec)
    return layout


def _index_name(checkpoint: Checkpoint) -> str:
    folder = checkpoint.files[0].parent if isinstance(checkpoint, SafetensorsCheckpoint) else None
    found = sorted(p.name for p in folder.glob(f"*.safetensors{INDEX_ENDING}")) if folder else []
    return found[0] if found else INDEX


def _others(checkpoint: Checkpoint) -> tuple[Path, ...]:
    """Files of the base's folder that hold no weights, two levels deep; hidden ones and links that leave it are not copied."""
    if not checkpoint.files:
        return ()
    folder = checkpoint.files[0].parent
    found = []
    for path in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if hidden or not path.is_file() or path.suffix.lower() in WEIGHTS or path.name.endswith(INDEX_ENDING):
            continue
        try:
            found.append(inside(folder, str(name), str(folder)).relative_to(folder))
        except SourceError:
            continue
    return tuple(found)
