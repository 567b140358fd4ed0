"""Norms and biases that training changed: reported, or written whole beside the factors, as PEFT's modules to save."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from eigenscope.models.checkpoint import Checkpoint
from eigenscope.tasks.adapter_targets import Targets, changed_vectors


def find_saved(
    base: Checkpoint, tuned: Checkpoint, targets: Targets, layers: Collection[str], *, write: bool
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Base name → tuned value of what is to be written, and what is to be said.

    A module of norms is saved whole, as PEFT wraps it; the bias of a linear layer alone. PEFT takes a name in
    ``modules_to_save`` for the end of a path, without regard to dots, so that other modules of norms whose paths end in a
    saved one's have to be saved with it.

    Args:
        base, tuned: open checkpoints.
        targets: their weights matched; ``vectors`` are the candidates.
        layers: modules that are adapted.
        write: whether they are wanted.
    """
    changed = changed_vectors(base, tuned, targets.vectors)
    if not changed:
        return {}, ()
    if not write:
        return {}, (
            f"{len(changed)} norms and biases changed and are not in the adapter: use save_modules to write them",
        )
    matrices = {target.module for target in targets.targets} | {name.rpartition(".")[0] for name in targets.refused}
    pure = _pure([first for first, _ in targets.vectors], matrices)
    chosen = {_module(name) for name in changed if _module(name) in pure}
    while True:
        more = {module for module in pure - chosen if any(module.endswith(name) for name in chosen)}
        if not more:
            break
        chosen |= more
    saved, left = {}, []
    for first, second in targets.vectors:
        module, _, parameter = first.rpartition(".")
        if module in chosen:
            saved[first] = tuned.read(second)
        elif first in changed and parameter == "bias" and module:
            saved[first] = changed[first]
        elif first in changed:
            left.append(first)
    said = (
        f"{len(left)} changed parameters cannot be saved, being part of no module of their own: {', '.join(left[:3])}",
    )
    return saved, said if left else ()


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _pure(names: Collection[str], matrices: Collection[str]) -> set[str]:
    """Modules that have a weight and hold vectors only, in themselves and below."""
    modules = {_module(name) for name in names if name.endswith(".weight")}
    return {
        module for module in modules
        if module and module not in matrices and not any(other.startswith(f"{module}.") for other in matrices)
    }  # fmt: skip
