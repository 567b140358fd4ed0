"""Which parameters of a model an operator is about, and their order in its flat vectors."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eigenscope.errors import InputError

Selection = str | Sequence[str] | Callable[[str, Tensor], bool] | None
"""None: all that require a gradient. A regular expression searched in the names; names of parameters or of modules;
or a predicate of (name, parameter)."""


@dataclass(frozen=True)
class Layout:
    """The chosen parameters, laid end to end in flat vectors (p,), each in row-major order.

    Attributes:
        names: as in ``model.named_parameters()``; of a shared parameter the first.
        tensors: the parameters themselves.
    """

    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]

    @property
    def size(self) -> int:
        """p, the number of entries of all of them."""
        return sum(tensor.numel() for tensor in self.tensors)

    def places(self) -> Iterator[tuple[str, slice]]:
        """Each name, and where it lies in a flat vector."""
        start = 0
        for name, tensor in zip(self.names, self.tensors):
            yield name, slice(start, start + tensor.numel())
            start += tensor.numel()

    def split(self, flat: Tensor) -> list[Tensor]:
        """(p,) → one tensor of each parameter's shape."""
        parts = torch.split(flat, [tensor.numel() for tensor in self.tensors])
        return [part.reshape(tensor.shape) for part, tensor in zip(parts, self.tensors)]

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """(p,) → name: tensor of the parameter's shape."""
        return dict(zip(self.names, self.split(flat)))

    def add(self, total: Tensor, parts: Sequence[Tensor | None], factor: float) -> None:
        """Add ``factor`` times the parts to a flat vector (p,), in place."""
        for part, (_, place) in zip(parts, self.places()):
            if part is not None:
                total[place].add_(part.reshape(-1), alpha=factor)

    def flat(self, parts: Sequence[Tensor | None]) -> Tensor:
        """One tensor per parameter → (p,); None stands for zeros."""
        return torch.cat([
            tensor.new_zeros(tensor.numel()) if part is None else part.reshape(-1)
            for part, tensor in zip(parts, self.tensors)
        ])  # fmt: skip


def chosen(model: nn.Module, selection: Selection) -> tuple[Layout, list[str]]:
    """The parameters that are selected, and sentences about those that are left out.

    A shared parameter answers to all of its names and is listed once, under the first.

    Raises:
        InputError: nothing is selected, an unknown name, or only frozen parameters.
    """
    where = f"parameters of {type(model).__name__}"
    aliases: dict[int, list[str]] = {}
    tensors: dict[int, Tensor] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(tensor), []).append(name)
        tensors[id(tensor)] = tensor
    if not tensors:
        raise InputError("a model without parameters", where=where)
    wanted = _wanted(aliases, tensors, selection, where)
    frozen = [aliases[key][0] for key in wanted if not tensors[key].requires_grad]
    kept = [key for key in wanted if tensors[key].requires_grad]
    if not kept:
        raise InputError(
            f"all {len(frozen)} parameters are frozen, the first is {frozen[0]}", where=where,
            expected="at least one that requires a gradient", remedy="call requires_grad_(True) on them",
        )  # fmt: skip
    notes = []
    if frozen:
        entries = sum(tensors[key].numel() for key in wanted if not tensors[key].requires_grad)
        notes.append(f"{len(frozen)} frozen parameters ({entries:,} entries) are not part of the operator.")
    shared = [aliases[key] for key in kept if len(aliases[key]) > 1]
    if shared:
        notes.append(f"{shared[0][0]} is shared with {', '.join(shared[0][1:])} and counted once.")
    return Layout(tuple(aliases[key][0] for key in kept), tuple(tensors[key] for key in kept)), notes


def _wanted(aliases: dict[int, list[str]], tensors: dict[int, Tensor], selection: Selection, where: str) -> list[int]:
    if selection is None:
        return list(aliases)
    if isinstance(selection, str):
        try:
            pattern = re.compile(selection)
        except re.error as error:
            raise InputError(f"params={selection!r} is no regular expression: {error}", where=where) from error
        found = [key for key, names in aliases.items() if any(pattern.search(name) for name in names)]
        return found or _nothing(aliases, selection, where)
    if callable(selection):
        found = [key for key, names in aliases.items() if any(selection(name, tensors[key]) for name in names)]
        return found or _nothing(aliases, "the predicate", where)
    picked: set[int] = set()
    for item in selection:
        hits = {key for key, names in aliases.items() if any(n == item or n.startswith(f"{item}.") for n in names)}
        picked |= hits or set(_nothing(aliases, str(item), where))
    return [key for key in aliases if key in picked] or _nothing(aliases, "an empty list", where)


def _nothing(aliases: dict[int, list[str]], what: str, where: str) -> list[int]:
    names = [name for group in aliases.values() for name in group]
    near = difflib.get_close_matches(what, names, n=3, cutoff=0.3) or names[:3]
    raise InputError(f"{what} selects nothing", where=where, expected=f"names such as {', '.join(near)}")
