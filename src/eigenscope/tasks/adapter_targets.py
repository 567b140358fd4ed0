"""Which weights of two checkpoints an adapter can carry, as modules that PEFT adapts, and why the others cannot be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from eigenscope.errors import InputError
from eigenscope.models.checkpoint import Checkpoint
from eigenscope.models.matrices import Matrix
from eigenscope.models.pairing import WRAPPERS, pair_checkpoints
from eigenscope.models.peft import Kind
from eigenscope.tasks.rows import is_wanted

FLOATS = ("float64", "float32", "float16", "bfloat16")
ENDING = ".weight"


@dataclass(frozen=True)
class Target:
    """A weight that PEFT can adapt.

    Attributes:
        module: its path in the base model.
        kind: how it is stored.
        shape: as stored, in both checkpoints.
        base, tuned: names of the tensor in each.
        layer, role: where it stands and what it does.
        dtype: in which the tuned checkpoint stores it.
    """

    module: str
    kind: Kind
    shape: tuple[int, ...]
    base: str
    tuned: str
    layer: int | None
    role: str
    dtype: str

    @property
    def sides(self) -> tuple[int, int]:
        """(m, n) of the map."""
        total = 1
        for extent in self.shape:
            total *= extent
        outputs = self.shape[1] if self.kind in ("conv1d_transposed", "embedding") else self.shape[0]
        return outputs, total // max(outputs, 1)


@dataclass(frozen=True)
class Targets:
    """What two checkpoints have in common, for an adapter.

    Attributes:
        targets: in the order of the tuned checkpoint.
        refused: tuned tensor → why no adapter carries it.
        vectors: (base, tuned) names of the tensors that are no matrices.
        modules: paths of all modules of the base.
        notes: how names were resolved, and what is tied.
    """

    targets: tuple[Target, ...]
    refused: dict[str, str]
    vectors: tuple[tuple[str, str], ...]
    modules: tuple[str, ...]
    notes: tuple[str, ...]


def find_targets(
    base: Checkpoint,
    tuned: Checkpoint,
    *,
    model: Any = None,
    include: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
) -> Targets:
    """Match two checkpoints and sort their weights.

    Args:
        base, tuned: open checkpoints.
        model: the base as a live module, whose classes then decide what a weight is; names decide otherwise.
        include, exclude: shell patterns over module paths.

    Raises:
        InputError: different architectures (the first mismatching tensors are named), or nothing is chosen.
    """
    pairing = pair_checkpoints(base, tuned)
    classes = _classes(model) if isinstance(model, nn.Module) else {}
    tied = _tied(base)
    targets, refused, seen = [], {}, set()
    for first, second in ((pair.base, pair.tuned) for pair in pairing.pairs):
        if second.tensor in seen:
            continue
        seen.add(second.tensor)
        module = _module(first.tensor)
        kind, reason = _kind(first, base.tensors[first.tensor].shape, classes.get(module))
        reason = reason or _unfit(base, tuned, first, second, tied)
        if reason or kind is None:
            refused[second.tensor] = reason
        elif is_wanted(module, include, exclude):
            shape = base.tensors[first.tensor].shape
            dtype = tuned.tensors[second.tensor].dtype
            targets.append(Target(module, kind, shape, first.tensor, second.tensor, second.layer, second.role, dtype))
    if not targets:
        why = next(iter(refused.values()), "")
        raise InputError(
            f"no weight that an adapter can carry is chosen{': ' + why if why else ''}", where=f"{base.source}, {tuned.source}",
            expected=f"weights of linear layers, embeddings or convolutions{' that match the patterns' if include or exclude else ''}",
        )  # fmt: skip
    modules = tuple(dict.fromkeys(_module(name) for name in base.tensors if "." in name))
    tied_note = tuple(
        f"{name} is tied to the token embedding, and adapted with it" for name in tied if name in base.tensors
    )
    return Targets(tuple(targets), refused, pairing.vectors, modules, (*pairing.notes, *tied_note))


def _module(tensor: str) -> str:
    """Path of the module in the model that the checkpoint loads into: without wrappers' parts and the parameter's name."""
    parts = [part for part in tensor.split(".") if part not in WRAPPERS]
    return ".".join(parts[:-1])


def _kind(matrix: Matrix, shape: tuple[int, ...], found: type[nn.Module] | None) -> tuple[Kind | None, str]:
    """How the weight is stored, or why PEFT cannot adapt it."""
    if not matrix.tensor.endswith(ENDING) or matrix.gain or "weight_" in matrix.tensor.rsplit(".", 1)[-1]:
        return None, "no weight of a linear layer, an embedding or a convolution"
    if found is not None and issubclass(found, nn.modules.conv._ConvTransposeNd):
        return None, "a transposed convolution, which PEFT does not adapt"
    if found is not None and issubclass(found, nn.Embedding):
        return "embedding", ""
    if matrix.kernel:
        if matrix.transposed or (matrix.groups or 1) > 1:
            what = "a transposed convolution" if matrix.transposed else f"a convolution of {matrix.groups} groups"
            return None, f"{what}, which PEFT does not merge"
        return "conv", ""
    if len(shape) != 2:
        return None, "a stack of matrices in one parameter, which this format does not adapt"
    role = matrix.role.rpartition(".")[2]
    if found is None and (role.endswith("embedding") or _module(matrix.tensor).endswith("relative_attention_bias")):
        return "embedding", ""
    transposed = any(step[0] == "permute" for step in matrix.steps)
    return ("conv1d_transposed" if transposed else "linear"), ""


def _unfit(base: Checkpoint, tuned: Checkpoint, first: Matrix, second: Matrix, tied: tuple[str, ...]) -> str:
    a, b = base.tensors[first.tensor], tuned.tensors[second.tensor]
    if first.problem or second.problem:
        return first.problem or second.problem
    quantised = next((info.dtype for info in (a, b) if info.dtype not in FLOATS), "")
    if quantised or first.scale or second.scale:
        return f"quantised ({quantised or a.dtype} with scales): dequantise both models first"
    if a.shape != b.shape:
        return f"{b.shape[0] - a.shape[0]:+,} rows: an adapter changes no sizes; resize the base's embeddings first"
    if _is_head(second) != _is_head(first):
        return "an output layer of its own where the other checkpoint ties it to the embedding"
    return "tied to the token embedding" if first.tensor in tied else ""


def _is_head(matrix: Matrix) -> bool:
    return matrix.role.rpartition(".")[2] == "lm_head"


def _tied(base: Checkpoint) -> tuple[str, ...]:
    """Output layers that the configuration ties to the token embedding, under the names that they are stored by."""
    text = base.config.get("text_config")
    config = {**base.config, **(text if isinstance(text, dict) else {})}
    heads = [name for name in base.tensors if name.endswith(("lm_head.weight", "embed_out.weight", "decoder.weight"))]
    return tuple(heads) if config.get("tie_word_embeddings") else ()


def _classes(model: nn.Module) -> dict[str, type[nn.Module]]:
    return {name: type(module) for name, module in model.named_modules()}


def changed_vectors(base: Checkpoint, tuned: Checkpoint, vectors: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    """Base name → the tuned value of every norm and bias that training changed."""
    changed = {}
    for first, second in vectors:
        value = tuned.read(second)
        if not bool((value == base.read(first)).all()):
            changed[first] = value
    return changed
