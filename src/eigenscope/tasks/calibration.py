"""Moments of a model's layers over a text, kept in files: the text that ranks are fitted to, that held out, and random tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from eigenscope.errors import InputError
from eigenscope.files import replacing
from eigenscope.models.language import mean_embedding
from eigenscope.models.lowrank import matrix_of
from eigenscope.models.statistics import Moments, Objective, call, collect_moments

Likelihood = Literal["causal", "masked", "classes", "embedding"]
"""What the model's outputs are the parameters of: tokens or classes by their logits, or an embedding with unit variance."""


DRAWS = 8
"""Directions in which an embedding is perturbed, for each batch: a passage gives a single embedding, but many tokens."""


def sampled_objective(kind: Likelihood, generator: torch.Generator) -> Objective:
    """The sum over samples of a loss whose labels are drawn from the model, so that E[g gᵀ] is Fisher's information.

    Martens, New insights and perspectives on the natural gradient method, JMLR 21, 2020, §5. For an embedding z the
    model is Gaussian of unit variance around z: a loss of ½‖Δz‖², which is 1 − cos for normalised ones.

    Args:
        kind: of the outputs.
        generator: of the labels.
    """

    def logits_loss(model: nn.Module, batch: Any) -> list[Tensor]:
        output = call(model, batch)
        logits: Tensor = output if isinstance(output, Tensor) else output.logits
        mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
        partial = mask is not None and logits.dim() == 3 and not bool(mask.all())
        rows = logits[mask.bool()] if mask is not None and partial else logits.reshape(-1, logits.shape[-1])
        with torch.no_grad():
            slope = rows.to(torch.float32).softmax(dim=-1)
            upto = slope.cumsum(dim=-1)
            drawn = torch.rand(len(rows), 1, generator=generator, device=generator.device) * upto[:, -1:]
            labels = torch.searchsorted(upto, drawn).clamp(max=rows.shape[-1] - 1)
            slope.scatter_add_(-1, labels, -torch.ones_like(drawn))
        # Linear in the outputs, with the gradient that the labels' cross-entropy has there: only that is wanted.
        return [(rows * slope).sum()]

    def embedding_loss(model: nn.Module, batch: Any) -> list[Tensor]:
        embedding = embed(model, batch)
        noise = torch.randn(DRAWS, *embedding.shape, generator=generator, device=generator.device).to(embedding)
        return [(embedding * draw).sum() for draw in noise]

    return embedding_loss if kind == "embedding" else logits_loss


def embed(model: nn.Module, batch: Any) -> Tensor:
    """(w, d): the sentence embeddings of an encoder, or a plain network's flattened output."""
    output = call(model, batch)
    if isinstance(output, Tensor):
        return output.flatten(1)
    return mean_embedding(output.last_hidden_state, batch["attention_mask"].bool())


@dataclass
class MomentFiles:
    """The moments of a set of layers in a folder, read one at a time.

    Attributes:
        folder: where the files are.
        kind: "fitted", "held-out" or "random".
        leaders, positions, repeated: as in :class:`Moments`.
        places: key in a file → the file.
    """

    folder: Path
    kind: str
    leaders: dict[str, str] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    repeated: list[str] = field(default_factory=list)
    places: dict[str, Path] = field(default_factory=dict)

    def inputs(self, layer: str) -> Tensor | None:
        """(n, n) float32, or None where nothing reached the layer."""
        return self._read(f"inputs:{self.leaders.get(layer, layer)}")

    def outputs(self, layer: str) -> Tensor | None:
        """(m, m) float32, or None."""
        return self._read(f"outputs:{layer}")

    def _read(self, key: str) -> Tensor | None:
        if key not in self.places:
            return None
        with safe_open(self.places[key], framework="pt") as file:
            tensor: Tensor = file.get_tensor(key)
            return tensor

    def add(self, path: Path) -> bool:
        """Take up a file, if it is there and whole."""
        if not path.is_file():
            return False
        with suppress(SafetensorError, KeyError, ValueError), safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["moments"])
            self.leaders |= facts["leaders"]
            self.positions |= facts["positions"]
            self.repeated = sorted({*self.repeated, *facts["repeated"]})
            self.places |= dict.fromkeys(file.keys(), path)
            return True
        return False


def _save(moments: Moments, path: Path) -> None:
    tensors = {f"inputs:{name}": value.cpu().contiguous() for name, value in moments.inputs.items()}
    tensors |= {f"outputs:{name}": value.cpu().contiguous() for name, value in moments.outputs.items()}
    facts = {"leaders": moments.leaders, "positions": moments.positions, "repeated": list(moments.repeated)}
    with replacing(path) as beside:
        save_file(tensors, beside, metadata={"moments": json.dumps(facts)})


def passes(model: nn.Module, names: Sequence[str], memory: float) -> list[list[str]]:
    """The layers in groups whose moments, in float32, take at most ``memory`` bytes; each group is one pass over the text.

    The groups cut the model's order, so that layers that share an input stay together as far as they can.
    """
    groups: list[list[str]] = []
    held = 0.0
    for name in names:
        rows, cols = matrix_of(model.get_submodule(name)).shape
        need = 4.0 * (rows**2 + cols**2)
        if not groups or held + need > memory:
            groups.append([])
            held = 0.0
        groups[-1].append(name)
        held += need
    return groups


def calibrate(
    model: nn.Module, groups: Sequence[Sequence[str]], batches: Callable[[], Iterable[Any]], kind: str, folder: Path, *,
    likelihood: Likelihood | None, seed: int, progress: Callable[[], None] = lambda: None,
) -> MomentFiles:  # fmt: skip
    """The moments of every group, one pass over the batches each; a group whose file is there already is not run again.

    Args:
        model: as in :func:`collect_moments`.
        groups: from :func:`passes`.
        batches: gives the same batches at each call.
        kind: the first part of the files' names.
        folder: for them.
        likelihood: of the outputs; None for inputs alone, without a backward pass.
        seed: of the labels drawn from the model.
        progress: called after each batch.

    Raises:
        InputError: as in :func:`collect_moments`.
        OSError: no space.
    """
    files = MomentFiles(folder, kind)
    for number, names in enumerate(groups):
        path = folder / f"{kind}-{number:03d}.safetensors"
        if files.add(path):
            continue
        # Every pass draws the same labels, so that the passes see one and the same loss.
        generator = torch.Generator(device=_device(model)).manual_seed(seed)
        objective = None if likelihood is None else sampled_objective(likelihood, generator)
        moments = collect_moments(model, names, batches(), objective, progress=progress)
        _save(moments, path)
        if not files.add(path):
            raise InputError("could not be read back", where=str(path), remedy="check the disk")
    return files


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
