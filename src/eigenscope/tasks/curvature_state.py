"""Results of stages ↔ plain values that a run file keeps. Eigenvectors are not kept: they are as large as the model."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from eigenscope.errors import RunFileError
from eigenscope.measures.paths import Path
from eigenscope.measures.slices import Escape, Slice
from eigenscope.methods.ends import Ends
from eigenscope.results import Density, Estimate, Spectrum
from eigenscope.tasks.curvature_stages import Point, Sharpness, Traces
from eigenscope.tasks.landscape import Landscape

KNOWN = {
    kind.__name__: kind
    for kind in (Density, Ends, Escape, Estimate, Landscape, Path, Point, Sharpness, Slice, Spectrum, Traces)
}
VECTORS = ("left", "right")


def pack(value: Any) -> Any:
    """Plain values: numbers, texts, lists, and mappings that say of which class they are."""
    if isinstance(value, Tensor):
        return {"tensor": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if is_dataclass(value) and not isinstance(value, type):
        kept = {f.name: getattr(value, f.name) for f in fields(value)}
        content = {name: pack(None if name in VECTORS else part) for name, part in kept.items()}
        return {"class": type(value).__name__, **content}
    if isinstance(value, tuple | list):
        return [pack(part) for part in value]
    if isinstance(value, dict):
        return {"mapping": {key: pack(part) for key, part in value.items()}}
    return value


def unpack(value: Any) -> Any:
    """What :func:`pack` was given, lists as tuples.

    Raises:
        RunFileError: a class that is not known, or not of this form.
    """
    if isinstance(value, list):
        return tuple(unpack(part) for part in value)
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return torch.tensor(value["tensor"], dtype=getattr(torch, str(value["dtype"])))
    if "mapping" in value:
        return {key: unpack(part) for key, part in value["mapping"].items()}
    kind = KNOWN.get(str(value.get("class")))
    if kind is None:
        raise RunFileError(f"holds an unknown result, {value.get('class')!r}", where="run file")
    try:
        return kind(**{name: unpack(part) for name, part in value.items() if name != "class"})
    except TypeError as error:
        raise RunFileError(
            f"holds a {kind.__name__} of another version: {error}", where="run file", remedy="name another file"
        ) from error
