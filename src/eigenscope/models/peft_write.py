"""Low-rank adapters written in PEFT's format, so that PEFT changes the modules that the adapter names and no other."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from eigenscope.errors import InputError
from eigenscope.models.peft import CONFIG, PREFIX, WEIGHTS, AdapterFile, AdapterLayer, Patterns
from eigenscope.models.write import TensorSpec, replacing_folder, write_safetensors

STALE = r"adapter_model\..*"
"""Weights of another format, which a reader could find in place of the new ones."""


def write_adapter(
    folder: str | Path, adapter: AdapterFile, *, force: bool = False, modules: Collection[str] = ()
) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``; the folder appears when it is whole.

    What the factors decide (ranks, alphas, target modules, kinds) is written from them; everything else of
    ``adapter.config`` is kept.

    Args:
        folder: where; made if it does not exist.
        adapter: layers, saved parameters, configuration.
        force: also into a folder that exists and is not empty.
        modules: paths of all modules of the base, as far as known: those that PEFT would change beside the adapter's
            own are then excluded by name.

    Raises:
        InputError: the folder exists; the adapter is empty; layers with and without magnitude; a parameter that is
            saved whole and adapted as well; a base in which PEFT cannot tell the modules apart.
        OSError: it cannot be written; an older one of that name is then untouched.
    """
    config = adapter_config(adapter, modules)
    tensors = adapter_tensors(adapter)
    specs = [TensorSpec(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()]
    with replacing_folder(folder, force=force, stale=STALE) as beside:
        write_safetensors(beside / WEIGHTS, specs, tensors.__getitem__)
        (beside / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def adapter_tensors(adapter: AdapterFile) -> dict[str, Tensor]:
    """The tensors of an adapter under PEFT's names and in its shapes."""
    tensors: dict[str, Tensor] = {}
    for module, layer in adapter.layers.items():
        stem = f"{PREFIX}{module}.lora_"
        if layer.kind == "embedding":
            tensors |= {f"{stem}embedding_A": layer.A, f"{stem}embedding_B": layer.B}
        elif layer.kind == "conv":
            kernel = layer.shape[2:]
            tensors[f"{stem}A.weight"] = layer.A.reshape(layer.rank, -1, *kernel)
            tensors[f"{stem}B.weight"] = layer.B.reshape(*layer.B.shape, *(1 for _ in kernel))
        else:
            tensors |= {f"{stem}A.weight": layer.A, f"{stem}B.weight": layer.B}
        if layer.magnitude is not None:
            shape = (1, -1, *(1 for _ in layer.shape[2:])) if layer.kind == "conv" else (-1,)
            tensors[f"{stem}magnitude_vector"] = layer.magnitude.reshape(shape)
    for name, value in adapter.saved.items():
        module, _, parameter = name.rpartition(".")
        # The parameters of an adapted module are one level down, in what PEFT's layer wraps.
        tensors[f"{PREFIX}{module}.base_layer.{parameter}" if module in adapter.layers else f"{PREFIX}{name}"] = value
    return tensors


def adapter_config(adapter: AdapterFile, modules: Collection[str] = ()) -> dict[str, Any]:
    """``adapter_config.json`` of an adapter, exact for PEFT's rules of matching.

    Raises:
        InputError: as :func:`write_adapter`.
    """
    layers = adapter.layers
    _check(adapter)
    stabilised = bool(adapter.config.get("use_rslora"))
    ranks = {module: float(layer.rank) for module, layer in layers.items()}
    alphas = {module: _alpha(layer, stabilised) for module, layer in layers.items()}
    rank, alpha = _most_common(ranks.values(), 8.0), _most_common(alphas.values(), 8.0)
    holders = {name.rpartition(".")[0] for name in adapter.saved}
    # PEFT wraps a module that it saves and asks for all of its parameters; a bias alone is loaded into the base as it is.
    saved_modules = sorted(name for name in holders - layers.keys() if f"{name}.weight" in adapter.saved)
    biased = holders - set(saved_modules)
    return {
        "task_type": None, "base_model_name_or_path": None, "inference_mode": True, "lora_dropout": 0.0,
        "init_lora_weights": True,
        **adapter.config,
        "peft_type": "LORA",
        "r": _plain(rank),
        "lora_alpha": _plain(alpha),
        "target_modules": sorted(layers),
        "exclude_modules": _excluded(layers, modules) or None,
        "rank_pattern": _pattern(ranks, rank),
        "alpha_pattern": _pattern(alphas, alpha),
        "use_rslora": stabilised,
        "use_dora": any(layer.magnitude is not None for layer in layers.values()),
        "fan_in_fan_out": any(layer.kind == "conv1d_transposed" for layer in layers.values()),
        "modules_to_save": saved_modules or None,
        "bias": "none" if not biased else "lora_only" if biased <= layers.keys() else "all",
        "layers_to_transform": None, "layers_pattern": None,
    }  # fmt: skip


def _check(adapter: AdapterFile) -> None:
    layers = adapter.layers
    if not layers:
        raise InputError("an adapter without layers", expected="at least one module with a rank above 0")
    empty = [module for module, layer in layers.items() if not module or layer.rank < 1]
    if empty:
        raise InputError(
            f"{empty[0]!r} has no name or rank 0", where="adapter", expected="a module's path and a rank ≥ 1"
        )
    plain = [module for module, layer in layers.items() if layer.magnitude is None]
    if 0 < len(plain) < len(layers):
        raise InputError(
            f"{plain[0]} has no magnitude, and other layers have one", expected="magnitudes for all layers or for none",
            remedy="give it the norms of its adapted rows: that is plain LoRA in DoRA's form",
        )  # fmt: skip
    both = [module for module in layers if f"{module}.weight" in adapter.saved]
    if both:
        raise InputError(f"{both[0]} is adapted and saved whole", where="adapter", expected="one of the two")


def _alpha(layer: AdapterLayer, stabilised: bool) -> float:
    alpha = layer.scale * (math.sqrt(layer.rank) if stabilised else layer.rank)
    return float(round(alpha)) if math.isclose(alpha, round(alpha), rel_tol=1e-12) else alpha


def _most_common(values: Iterable[float], default: float) -> float:
    """The value of most layers, the larger one of two that are equally common."""
    counts = Counter(values)
    return max(counts, key=lambda value: (counts[value], value)) if counts else default


def _plain(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _pattern(values: Mapping[str, float], default: float) -> dict[str, float | int]:
    """The modules that differ from ``default``, under keys by which PEFT finds each of them and no other.

    Paths as they stand are also what programs look up that take the keys for names, older versions of PEFT among them. They
    are escaped and anchored only where that would be ambiguous: ``lm_head`` also ends the path ``draft.lm_head``.
    """
    differing = {module: _plain(value) for module, value in values.items() if value != default}
    # A longer path first: PEFT takes the first key that matches the end of a path.
    plain = {module: differing[module] for module in sorted(differing, key=lambda name: (-len(name), name))}
    if all(re.fullmatch(r"[\w.-]+", module) for module in plain):
        found = Patterns(plain, "rank_pattern")
        if all(found.get(module, default) == value for module, value in values.items()):
            return plain
    return {f"^{re.escape(module)}": value for module, value in plain.items()}


def _excluded(layers: Collection[str], modules: Collection[str]) -> list[str]:
    """Modules that are not adapted though their path ends in that of one that is: PEFT would adapt them as well."""
    known = set(layers)
    extra = sorted(name for name in modules if name not in known and any(end in known for end in _ends(name)))
    for name in extra:
        hit = [layer for layer in layers if layer.endswith(f".{name}")]
        if hit:
            raise InputError(
                f"PEFT cannot adapt {hit[0]!r} and leave {name!r} out", where="target_modules", expected="other names"
            )
    return extra


def _ends(path: str) -> Iterable[str]:
    parts = path.split(".")
    return (".".join(parts[start:]) for start in range(1, len(parts)))
