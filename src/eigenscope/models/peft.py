"""Low-rank adapters in PEFT's format, read: ``adapter_config.json`` beside ``adapter_model.safetensors``.

An adapter adds ΔW = scale · B A to a weight W (Hu et al., LoRA, ICLR 2022, §4.1); DoRA then sets the norm of each row
of W + ΔW to a stored magnitude (Liu et al., ICML 2024, eq. 5). Both files are untrusted, as every checkpoint is.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from eigenscope.errors import InputError, SourceError
from eigenscope.models.checkpoint import Checkpoint
from eigenscope.models.pytorch_file import PyTorchCheckpoint
from eigenscope.models.safetensors_file import SafetensorsCheckpoint

Kind = Literal["linear", "conv1d_transposed", "conv", "embedding"]
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
WEIGHT_FILES = (WEIGHTS, "adapter_model.bin")
PREFIX = "base_model.model."
LARGEST_CONFIG = 2**24
"""Bytes."""
UNREAD = (
    "target_parameters", "layer_replication", "use_qalora", "use_bdlora", "kasa_config", "alora_invocation_tokens",
    "velora_config", "monteclora_config", "arrow_config", "lora_bias", "trainable_token_indices",
)  # fmt: skip
"""Settings of PEFT's under which an adapter is more than ΔW = scale · B A on whole modules."""
_KEY = re.compile(
    r"(?:(?P<module>.+)\.)?lora_(?:(?P<linear>[AB])(?:\.(?P<name>[^.]+))?\.weight"
    r"|embedding_(?P<embedding>[AB])(?:\.(?P<name2>[^.]+))?|(?P<magnitude>magnitude_vector)(?:\.(?P<name3>[^.]+))??(?:\.weight)?)$"
)
_REPEATS = re.compile(r"(?<!\\)[*+{]")
_REPEATED_GROUP = re.compile(r"\)[*+{]")
MOST_REPEATS = 4
"""Of a pattern in a configuration: with more, or with a repeated group, matching a name could take for ever."""


@dataclass(frozen=True)
class AdapterLayer:
    """What an adapter does to one weight: ΔW = scale · B A, an (m, n) map from n inputs to m outputs.

    Attributes:
        module: path inside the base model, without PEFT's ``base_model.model.``.
        kind: how the base stores W: "linear" (m, n); "conv1d_transposed" (n, m), transformers' Conv1D; "conv"
            (m, channels, *kernel), unfolded to n = channels · kernel; "embedding" (n, m) = (tokens, width).
        B: (m, r).
        A: (r, n).
        scale: alpha / r, or alpha / √r for rank-stabilised LoRA; resolved.
        magnitude: (m,) of DoRA, the norm of each row of the adapted map; None for plain LoRA.
        shape: of the base weight as stored.
    """

    module: str
    kind: Kind
    B: Tensor
    A: Tensor
    scale: float
    magnitude: Tensor | None
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        """r: columns of B."""
        return int(self.B.shape[1])

    @property
    def parameters(self) -> int:
        """Numbers stored: r (m + n), and m of a magnitude."""
        return self.B.numel() + self.A.numel() + (0 if self.magnitude is None else self.magnitude.numel())

    @property
    def nbytes(self) -> int:
        """Bytes of those numbers."""
        factors = (self.B, self.A) if self.magnitude is None else (self.B, self.A, self.magnitude)
        return sum(factor.numel() * factor.element_size() for factor in factors)

    def delta(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """(m, n) scale · B A in ``dtype``; of DoRA, the change before its rows are rescaled."""
        return self.scale * (self.B.to(dtype) @ self.A.to(dtype))


@dataclass(frozen=True)
class AdapterFile:
    """An adapter as a file holds it.

    Attributes:
        layers: module → :class:`AdapterLayer`.
        config: ``adapter_config.json`` as it stands; empty where there was none.
        saved: parameter (``module.weight``) → its new value whole: PEFT's modules to save, and trained biases.
        source: what the user named.
    """

    layers: Mapping[str, AdapterLayer]
    config: Mapping[str, Any] = field(default_factory=dict)
    saved: Mapping[str, Tensor] = field(default_factory=dict)
    source: str = ""


def as_map(weight: Tensor, kind: Kind) -> Tensor:
    """(m, n) view of a weight as its base stores it."""
    if kind in ("conv1d_transposed", "embedding"):
        return weight.T
    return weight.reshape(weight.shape[0], -1) if kind == "conv" else weight


def as_stored(matrix: Tensor, kind: Kind, shape: tuple[int, ...]) -> Tensor:
    """The (m, n) map in the shape in which its base stores it: the inverse of :func:`as_map`."""
    return (matrix.T if kind in ("conv1d_transposed", "embedding") else matrix).reshape(shape)


def read_adapter(source: str | Path, *, alpha: float | None = None) -> AdapterFile:
    """Read an adapter whole: it is small.

    Args:
        source: the folder, or the file of the weights with its configuration beside it.
        alpha: scale numerator, for weights that have no configuration; with one, it takes its place.

    Raises:
        SourceError: no adapter there, no configuration and no ``alpha``, keys or settings that are not understood,
            factors that do not fit one another or the configuration, values that are not finite.
        InputError: ``alpha`` is not a finite number.
    """
    if alpha is not None and not math.isfinite(alpha):
        raise InputError(f"alpha {alpha}", expected="a finite number")
    path = _weights_of(Path(source).expanduser())
    config = _config_of(path.parent / CONFIG, required=alpha is None)
    kind = SafetensorsCheckpoint if path.suffix == ".safetensors" else PyTorchCheckpoint
    checkpoint = kind(str(source), [path], {})
    factors, saved = _sorted_keys(checkpoint, str(path))
    if not factors and not saved:
        raise SourceError("holds no adapter weights", where=str(path), expected="tensors named …lora_A.weight")
    scales = _Scales(config, alpha, str(path.parent / CONFIG))
    layers = {module: _layer(module, parts, scales, str(path)) for module, parts in factors.items()}
    return AdapterFile(layers, config, saved, str(source))


def _weights_of(path: Path) -> Path:
    try:
        if path.is_file():
            return path
        found = [path / name for name in WEIGHT_FILES if (path / name).is_file()]
    except OSError as error:
        raise SourceError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    if not found:
        exists = path.is_dir()
        raise SourceError(
            "no adapter in this folder" if exists else "no such file or folder", where=str(path),
            expected="a folder with " + " or ".join(WEIGHT_FILES),
            remedy="" if exists else "download an adapter of the hub first: hf download OWNER/NAME --local-dir DIR",
        )  # fmt: skip
    return found[0]


def _config_of(path: Path, *, required: bool) -> dict[str, Any]:
    if not path.is_file():
        if required:
            raise SourceError(
                "no such file, and the weights do not tell their scale", where=str(path), expected=CONFIG,
                remedy="find the configuration, or give alpha: ΔW is then alpha / rank · B A",
            )  # fmt: skip
        return {}
    try:
        if path.stat().st_size > LARGEST_CONFIG:
            raise SourceError(f"holds more than {LARGEST_CONFIG} bytes", where=str(path), expected="a configuration")
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"not sound JSON: {error}", where=str(path), remedy="download or save it again") from error
    if not isinstance(content, dict):
        raise SourceError(f"holds a {type(content).__name__}", where=str(path), expected="a JSON object")
    if content.get("peft_type", "LORA") != "LORA":
        raise SourceError(
            f"an adapter of type {content['peft_type']!r}", where=str(path), expected="LORA, DoRA included",
            remedy="merge it into its base with PEFT, and extract a LoRA from the two models",
        )  # fmt: skip
    used = [name for name in UNREAD if content.get(name)]
    if used:
        raise SourceError(
            f"uses {', '.join(used)}, which is not read", where=str(path), expected="LoRA or DoRA of whole modules"
        )
    return content


def _sorted_keys(checkpoint: Checkpoint, where: str) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Factors by module, saved parameters by name; every key is understood or named."""
    factors: dict[str, dict[str, Tensor]] = {}
    saved: dict[str, Tensor] = {}
    strange, adapters = [], set()
    for key in checkpoint.tensors:
        name = key.removeprefix(PREFIX)
        match = _KEY.fullmatch(name)
        if match and match["module"]:
            part = match["linear"] or (f"embedding_{match['embedding']}" if match["embedding"] else "magnitude")
            adapters |= {found for found in (match["name"], match["name2"], match["name3"]) if found}
            parts = factors.setdefault(match["module"], {})
            if part in parts:
                raise SourceError(f"two tensors are the {part} of {match['module']!r}", where=where)
            parts[part] = checkpoint.read(key)
        elif not key.startswith(PREFIX) or "lora_" in name or "trainable_tokens" in name or "original_module" in name:
            strange.append(key)
        else:
            saved[_parameter(name)] = checkpoint.read(key)
    if strange:
        raise SourceError(
            f"{len(strange)} keys are not understood: {', '.join(strange[:4])}{', …' if len(strange) > 4 else ''}", where=where,
            expected=f"{PREFIX}MODULE.lora_A.weight, lora_B.weight, lora_embedding_A, lora_magnitude_vector",
            remedy="convert the file to PEFT's format",
        )  # fmt: skip
    if len(adapters) > 1:
        raise SourceError(f"holds {len(adapters)} adapters: {', '.join(sorted(adapters))}", where=where, expected="one")
    return factors, saved


def _parameter(name: str) -> str:
    """The base's own name of a saved parameter: PEFT's wrappers stand between the module and it."""
    parts = name.split(".")
    for wrapper in ("base_layer", "modules_to_save"):
        if len(parts) > 2 and wrapper in parts[1:]:
            at = parts.index(wrapper, 1)
            parts = parts[:at] + parts[-1:]
    return ".".join(parts)


def _layer(module: str, parts: Mapping[str, Tensor], scales: _Scales, where: str) -> AdapterLayer:
    place = f"{where}: {module}"
    embedded = "embedding_A" in parts or "embedding_B" in parts
    names = ("embedding_B", "embedding_A") if embedded else ("B", "A")
    missing = [f"lora_{name}" for name in names if name not in parts]
    if missing or (embedded and ("A" in parts or "B" in parts)):
        raise SourceError(
            f"has no {missing[0]}" if missing else "has the factors of two kinds",
            where=place,
            expected="one A and one B",
        )
    for name, tensor in parts.items():
        if not tensor.is_floating_point() or tensor.is_complex():
            raise SourceError(f"{name} holds {tensor.dtype}", where=place, expected="floating-point numbers")
        if not bool(torch.isfinite(tensor.float()).all()):
            raise SourceError(
                f"{name} holds values that are not finite",
                where=place,
                remedy="the training diverged; use an earlier step",
            )
    B, A = (parts[name] for name in names)
    convolved = A.dim() > 2
    fits = B.dim() == A.dim() >= 2 and B.shape[1] == A.shape[0] > 0 and (not convolved or set(B.shape[2:]) <= {1})
    if not fits:
        raise SourceError(
            f"B of shape {tuple(B.shape)} and A of shape {tuple(A.shape)}", where=place,
            expected="(m, r) and (r, n), or (m, r, 1, …) and (r, channels, kernel…)",
        )  # fmt: skip
    rank, outputs = int(A.shape[0]), int(B.shape[0])
    scale = scales.of(module, rank)
    flat = A.reshape(rank, -1)
    kind: Kind = (
        "embedding" if embedded else "conv" if convolved else "conv1d_transposed" if scales.transposed else "linear"
    )
    shape = (outputs, *A.shape[1:]) if kind in ("conv", "linear") else (flat.shape[1], outputs)
    magnitude = parts.get("magnitude")
    if magnitude is not None and magnitude.numel() != outputs:
        raise SourceError(f"magnitude of shape {tuple(magnitude.shape)}", where=place, expected=f"{outputs} numbers")
    if scales.dora != (magnitude is not None) and scales.dora is not None:
        raise SourceError(
            "has no magnitude" if scales.dora else "has a magnitude", where=place,
            expected="one" if scales.dora else "none: the configuration does not say use_dora",
        )  # fmt: skip
    return AdapterLayer(
        module, kind, B.reshape(outputs, rank), flat, scale, None if magnitude is None else magnitude.reshape(-1), shape
    )


class _Scales:
    """Rank and alpha of every module, as PEFT resolves them from a configuration.

    Attributes:
        transposed: whether linear weights are stored (inputs, outputs).
        dora: whether layers have magnitudes; None where no configuration tells.
    """

    def __init__(self, config: Mapping[str, Any], alpha: float | None, where: str) -> None:
        self.where, self.override = where, alpha
        self.transposed = bool(config.get("fan_in_fan_out"))
        self.dora: bool | None = bool(config.get("use_dora")) if config else None
        self.stabilised = bool(config.get("use_rslora"))
        # PEFT's own defaults for what a configuration leaves out.
        self.rank = self._number(config, "r", 8) if config else None
        self.alpha = alpha if alpha is not None else self._number(config, "lora_alpha", 8)
        self.ranks = Patterns(self._pattern(config, "rank_pattern"), where)
        self.alphas = Patterns({} if alpha is not None else self._pattern(config, "alpha_pattern"), where)

    def of(self, module: str, rank: int) -> float:
        """alpha / r of a module whose factors have this rank; alpha / √r for rank-stabilised LoRA.

        Raises:
            SourceError: the configuration gives the module another rank.
        """
        expected = self.ranks.get(module, self.rank)
        if expected is not None and expected != rank:
            raise SourceError(
                f"{module} has rank {rank}", where=self.where, expected=f"{expected:g}, as r and rank_pattern say",
                remedy="the configuration belongs to another adapter",
            )  # fmt: skip
        alpha = self.alphas.get(module, self.alpha)
        return float(alpha or 0.0) / (math.sqrt(rank) if self.stabilised else rank)

    def _pattern(self, config: Mapping[str, Any], name: str) -> dict[str, float]:
        content = config.get(name) or {}
        if not isinstance(content, dict):
            raise SourceError(f"{name} is a {type(content).__name__}", where=self.where, expected="pattern → number")
        return {str(key): self._number(content, key, None, name) for key in content}

    def _number(self, content: Mapping[str, Any], key: str, default: float | None, within: str = "") -> float:
        value = content.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise SourceError(f"{within or key} is {str(value)[:40]!r}", where=self.where, expected="a finite number")
        return float(value)


class Patterns:
    """PEFT's ``rank_pattern`` and ``alpha_pattern``: the first key that matches the end of a module's path decides.

    The rule is that of ``peft.utils.other.get_pattern_key``: ``(.*\\.)?(KEY)$``, KEY a regular expression, and a key that
    is the very path where none matches.

    Raises:
        SourceError: a key that is no regular expression, or one whose matching could take for ever.
    """

    def __init__(self, content: Mapping[str, float], where: str) -> None:
        self.content = dict(content)
        self._compiled: list[tuple[str, re.Pattern[str], str]] = []
        for key in content:
            if len(_REPEATS.findall(key)) > MOST_REPEATS or _REPEATED_GROUP.search(key):
                raise SourceError(f"the pattern {key[:60]!r} is not matched: it could take for ever", where=where)
            try:
                compiled = re.compile(rf"(.*\.)?({key})$")
            except (re.error, RecursionError, OverflowError) as error:
                raise SourceError(f"the pattern {key[:60]!r} is no regular expression: {error}", where=where) from error
            self._compiled.append((key, compiled, _tail(key)))

    def get(self, module: str, default: float | None) -> float | None:
        """The number of the first key that matches, or ``default``."""
        for key, compiled, tail in self._compiled:
            if module.endswith(tail) and compiled.match(module):
                return self.content[key]
        return self.content.get(module, default)


def _tail(key: str) -> str:
    """Text that every path which a pattern matches ends in, as far as it is plain to see: it spares most matching."""
    last = re.search(r"(?:^|\.)(\w*)$", key) if re.fullmatch(r"[\w.\\^-]+", key) else None
    return last[1] if last else ""
