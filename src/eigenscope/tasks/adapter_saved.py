"""What an adapter needs beside its factors: norms and biases that training changed, and whether embeddings are tied."""

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


OUTPUTS = ("lm_head.weight", "embed_out.weight", "decoder.weight")
GENERATORS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
TIED_BY_PEFT = "embed_tokens"
"""The one name of a token embedding whose adapter PEFT can share with the output layer."""


def tying(base: Checkpoint, embeddings: Collection[str]) -> tuple[dict[str, bool], tuple[str, ...]]:
    """Configuration and remarks for adapted token embeddings that are also the output layer.

    PEFT changes the one module that is named. With ``ensure_weight_tying`` the output layer has the change as well while the
    adapter is not merged; merging adds it to the shared weight twice.

    Args:
        base: the open checkpoint.
        embeddings: modules of adapted token embeddings.
    """
    names = base.config.get("architectures")
    generates = isinstance(names, list) and any(str(name).endswith(GENERATORS) for name in names)
    tied = base.config.get("tie_word_embeddings", generates and not any(n.endswith(OUTPUTS) for n in base.tensors))
    if not tied or not embeddings:
        return {}, ()
    if any(name.endswith(TIED_BY_PEFT) for name in embeddings):
        said = "the embedding is tied to the output layer: written with ensure_weight_tying; to merge use adapter apply, as " \
               "PEFT would add the change to the shared weight twice"  # fmt: skip
        return {"ensure_weight_tying": True}, (said,)
    return {}, ("the embedding is tied to the output layer, which PEFT changes only when the adapter is merged",)
