"""Two checkpoints → which tensor of one is which of the other, by names and shapes alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from eigenscope.errors import InputError
from eigenscope.models.checkpoint import Checkpoint, TensorInfo
from eigenscope.models.matrices import Matrix, list_matrices
from eigenscope.results import Compared, Coverage, Outcome

WRAPPERS = frozenset(("_orig_mod", "base_layer", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
"""Parts of a name that compilers, adapters and parallel wrappers put into it, wherever they stand."""
KNOWN_PREFIXES = (
    "module.", "model.", "base_model.model.", "base_model.", "bert.", "roberta.", "distilbert.", "transformer.", "encoder.",
    "backbone.", "language_model.", "model.language_model.", "state_dict.", "model_state_dict.", "0.auto_model.",
)  # fmt: skip
DEEPEST_PREFIX = 4
"""Parts of a name, at most, that a prefix may have."""
LEAST_SHARE = 0.1
"""Share of the unmatched tensors that a prefix which is not among the known ones must explain."""
GROWING = re.compile(r"(embedding|lm_head)$")
"""Roles whose rows are tokens or positions: more can be added."""
HEADS = re.compile(r"(classifier|pooler|lm_head\w*)$")
"""Roles that a fine-tuned model may have in another size: not compared then."""
ADAPTERS = re.compile(r"lora_[ab]$")
SHOWN = 3


@dataclass(frozen=True)
class Pair:
    """Two matrices to compare, of one shape.

    Attributes:
        name: the row's name: that of the tuned matrix, or of the base's where only the base has the tensor.
        base, tuned: which rows of which tensor they are.
        problem: why they cannot be compared, or empty.
    """

    name: str
    base: Matrix
    tuned: Matrix
    problem: str = ""


@dataclass(frozen=True)
class Pairing:
    """What two checkpoints have in common.

    Attributes:
        pairs: matrices to compare, in the order of the tuned checkpoint.
        vectors: (base, tuned) names of other tensors to compare, of one shape.
        coverage: the fate of every tensor of both; that of the vectors is completed by who compares them.
        notes: how names were resolved, in sentences.
    """

    pairs: tuple[Pair, ...]
    vectors: tuple[tuple[str, str], ...]
    coverage: tuple[Compared, ...]
    notes: tuple[str, ...]


def pair_checkpoints(base: Checkpoint, tuned: Checkpoint) -> Pairing:
    """Match the tensors of two checkpoints by name, and the matrices in them part by part.

    Wrappers' parts of names (``_orig_mod``, ``base_layer``, …) and differing prefixes (``bert.``, ``model.``, ``module.``, …)
    are resolved. An output layer that only one file holds is compared with the other's token embedding, to which it is
    tied there. Of embeddings and output layers that have grown, the common rows are compared.

    Raises:
        InputError: different architectures: matrices of one name differ in shape, or hardly a name is in both.
    """
    return _Pairing(base, tuned).result()


class _Pairing:
    """The work of :func:`pair_checkpoints`, which needs the same six things throughout."""

    def __init__(self, base: Checkpoint, tuned: Checkpoint) -> None:
        self.base, self.tuned = base, tuned
        self.base_parts, self.base_fate = _by_tensor(base)
        self.tuned_parts, self.tuned_fate = _by_tensor(tuned)
        self.names, self.notes = match_names(base.tensors, tuned.tensors)
        self.pairs: list[Pair] = []
        self.vectors: list[tuple[str, str]] = []
        self.fates: dict[str, Compared] = {}
        self.differing: list[tuple[str, str]] = []

    def result(self) -> Pairing:
        for name, other in self.names.items():
            self._compare(name, other)
        matched = len(self.pairs)
        for name in self.tuned.tensors:
            if name not in self.names and not self._tied(name):
                self._alone(name, self.tuned_fate[name], "only in tuned")
        for name in self.base.tensors:
            if name not in self.names.values() and not self._tied_in_base(name):
                self._alone(name, self.base_fate[name], "only in base")
        self._check(matched)
        adapters = [m for matrices in self.tuned_parts.values() for m in matrices if ADAPTERS.search(m.role)]
        if adapters:
            self.notes.append(f"the tuned checkpoint holds {len(adapters):,} matrices of an adapter that is not merged: "
                              "what they add is not in ΔW")  # fmt: skip
        order = {name: place for place, name in enumerate([*self.tuned.tensors, *self.base.tensors])}
        self.pairs.sort(key=lambda pair: order[pair.tuned.tensor])
        return Pairing(tuple(self.pairs), tuple(self.vectors), tuple(self.fates.values()), tuple(self.notes))

    def _compare(self, name: str, other: str) -> None:
        first, second = self.base_parts[other], self.tuned_parts[name]
        fate, a, b = self.tuned_fate[name], self.base.tensors[other], self.tuned.tensors[name]
        renamed = f"against {other}" if other != name else ""
        if not first and not second:
            self._vector(name, other, fate, a, b, renamed)
            return
        pairs = self._parts(first, second, a, b)
        if pairs is None:
            if second and HEADS.search(second[0].role):
                self._fate(name, "not compared", f"{_size(a.shape)} in the base, {_size(b.shape)} here", base=other)
            else:
                self.differing.append((other, name))
            return
        grown = f"{b.shape[0] - a.shape[0]:+,} rows, not compared" if self._grown(second, a, b) else ""
        self.pairs += pairs
        problem = next((pair.problem for pair in pairs if pair.problem), "")
        reason = problem or ", ".join(text for text in (fate.reason, renamed, grown) if text)
        self._fate(name, "not readable" if problem else "compared", reason, base=other, matrices=len(pairs))
        if grown:
            said = "more" if b.shape[0] > a.shape[0] else "fewer"
            self.notes.append(f"{name} has {abs(b.shape[0] - a.shape[0]):,} rows {said} than in the base: the common "
                              f"{min(a.shape[0], b.shape[0]):,} are compared")  # fmt: skip

    def _vector(self, name: str, other: str, fate: Coverage, a: TensorInfo, b: TensorInfo, renamed: str) -> None:
        comparable = all(info.dtype.startswith(("float", "bfloat")) and not info.problem for info in (a, b))
        if fate.outcome == "not a matrix" and comparable and a.shape == b.shape and 0 not in b.shape:
            self.vectors.append((other, name))
        elif comparable and a.shape != b.shape:
            fate = replace(fate, outcome="not compared", reason=f"{_size(a.shape)} in the base, {_size(b.shape)} here")
        self._fate(name, fate.outcome, ", ".join(text for text in (fate.reason, renamed) if text), base=other)

    def _parts(self, first: list[Matrix], second: list[Matrix], a: TensorInfo, b: TensorInfo) -> list[Pair] | None:
        """The matrices of two tensors pairwise; None where they are not the same maps."""
        problem = next((matrix.problem for matrix in (*first, *second) if matrix.problem), "")
        if problem:
            chosen = second or first
            return [Pair(m.name, m, m, problem) for m in chosen]
        if not first or not second:
            return None
        ours, theirs = _suffixes(second), _suffixes(first)
        if ours.keys() != theirs.keys():
            # One side's configuration tells how a fused tensor is split, the other's does not.
            if a.shape != b.shape:
                return None
            longer, shorter = (second, first[0]) if len(second) > len(first) else (first, second[0])
            derived = [
                replace(shorter, start=m.start, stop=m.stop, steps=m.steps, rows=m.rows, cols=m.cols) for m in longer
            ]
            first, second = (derived, longer) if longer is second else (longer, derived)
            suffixes = [name.removeprefix(longer[0].tensor) for name in (m.name for m in longer)]
            names = [f"{b.name}{suffix}" for suffix in suffixes]
            roles = [m.role for m in longer]
            return [
                Pair(name, old, replace(new, name=name, role=role))
                for name, role, old, new in zip(names, roles, first, second, strict=True)
            ]
        pairs = [(theirs[suffix], matrix) for suffix, matrix in ours.items()]
        if self._grown(second, a, b):
            return [_common(old, new) for old, new in pairs]
        if any((old.rows, old.cols) != (new.rows, new.cols) for old, new in pairs):
            return None
        return [Pair(new.name, old, new) for old, new in pairs]

    def _grown(self, matrices: list[Matrix], a: TensorInfo, b: TensorInfo) -> bool:
        """Whether rows were added to, or taken from, a table of tokens or positions."""
        plain = len(matrices) == 1 and not matrices[0].steps and GROWING.search(matrices[0].role)
        return bool(plain) and len(a.shape) == len(b.shape) == 2 and a.shape[1] == b.shape[1] and a.shape != b.shape

    def _tied(self, name: str) -> bool:
        """An output layer that the base lacks, against the base's token embedding."""
        head = self._head(self.tuned_parts[name])
        table = self._table(self.base_parts, head)
        if head is None or table is None:
            return False
        self.pairs.append(_common(table, head))
        reason = f"not in the base, where it is tied to {table.tensor}, and compared with that"
        self._fate(name, "compared", reason, base=table.tensor, matrices=1)
        self.notes.append(f"{name} is {reason}")
        return True

    def _tied_in_base(self, name: str) -> bool:
        head = self._head(self.base_parts[name])
        table = self._table(self.tuned_parts, head)
        if head is None or table is None:
            return False
        self.pairs.append(replace(_common(head, table), name=name))
        reason = f"not in the tuned checkpoint, where it is tied to {table.tensor}, and compared with that"
        info = self.base.tensors[name]
        self.fates[f"base {name}"] = Compared(name, info.shape, info.dtype, "compared", reason, 1, base=name)
        self.notes.append(f"{name} is {reason}")
        return True

    def _head(self, matrices: list[Matrix]) -> Matrix | None:
        found = len(matrices) == 1 and matrices[0].role == "lm_head" and not matrices[0].problem
        return matrices[0] if found else None

    def _table(self, parts: Mapping[str, list[Matrix]], head: Matrix | None) -> Matrix | None:
        tables = [m for matrices in parts.values() for m in matrices if m.role.rpartition(".")[2] == "embedding"]
        fitting = [m for m in tables if head is not None and m.cols == head.cols and not m.problem and not m.steps]
        return fitting[0] if len(fitting) == 1 else None

    def _alone(self, name: str, fate: Coverage, outcome: Outcome) -> None:
        if outcome == "only in base":
            info = self.base.tensors[name]
            self.fates[f"base {name}"] = Compared(name, info.shape, info.dtype, outcome, fate.reason, 0)
        else:
            self._fate(name, outcome, fate.reason)

    def _fate(self, name: str, outcome: Outcome, reason: str, base: str = "", matrices: int = 0) -> None:
        info = self.tuned.tensors[name]
        self.fates[name] = Compared(name, info.shape, info.dtype, outcome, reason, matrices, base=base)

    def _check(self, matched: int) -> None:
        """Refuse checkpoints of different architectures."""
        first = [m for matrices in self.base_parts.values() for m in matrices]
        second = [m for matrices in self.tuned_parts.values() for m in matrices if not ADAPTERS.search(m.role)]
        if not second and any(self.tuned_parts.values()):
            raise InputError(
                "an adapter, not a model", where=self.tuned.source, expected="a checkpoint with all weights",
                remedy="look at it with eigenscope adapter, or apply it to the base first",
            )  # fmt: skip
        few = 2 * matched < min(len(first), len(second)) or not self.pairs
        if not self.differing and not few:
            return
        if self.differing:
            shown = [
                f"{name} is {_size(self.base.tensors[other].shape)} in the base and {_size(self.tuned.tensors[name].shape)} here"
                for other, name in self.differing[:SHOWN]
            ]
            what = f"{len(self.differing)} of {len(self.names)} tensors differ in shape: {'; '.join(shown)}"
        else:
            alone = [
                next((m for m in matrices if m.tensor not in known), None)
                for matrices, known in ((first, self.names.values()), (second, self.names.keys()))
            ]
            texts = [f"{m.tensor} ({m.rows}×{m.cols})" if m else "no matrix of its own" for m in alone]
            what = f"{matched} of {len(first)} matrices are in both: the base has {texts[0]}, the tuned one {texts[1]}"
        raise InputError(
            f"different architectures: {what}", where=f"{self.base.source}, {self.tuned.source}",
            expected="a checkpoint and one trained from it", remedy="look at each with eigenscope scan",
        )  # fmt: skip


def match_names(base: Mapping[str, TensorInfo], tuned: Mapping[str, TensorInfo]) -> tuple[dict[str, str], list[str]]:
    """Tuned name → base name of the tensors that are the same, and how names were resolved, in sentences.

    The same names first, then names without wrappers' parts. What is left is matched under the prefixes that explain most of
    it: one that one side has (``bert.encoder…`` and ``encoder…``), or a known one on each (``model.…`` and ``transformer.…``).
    A prefix never has a number in it, so that no layer is taken for another.
    """
    plain_base, plain_tuned = _plain(base), _plain(tuned)
    matched = {name: plain_base[key] for key, name in plain_tuned.items() if key in plain_base}
    notes = []
    wrapped = sum(name != other and {*name.split("."), *other.split(".")} & WRAPPERS != set()
                  for name, other in matched.items())  # fmt: skip
    if wrapped:
        notes.append(f"{wrapped:,} tensors matched without the parts of their names that wrappers add")
    left_base = {key: name for key, name in plain_base.items() if name not in matched.values()}
    left_tuned = {key: name for key, name in plain_tuned.items() if name not in matched}
    while left_base and left_tuned:
        votes = _votes(left_base, left_tuned, base, tuned)
        least = LEAST_SHARE * min(len(left_base), len(left_tuned))
        known = {pair: n for pair, n in votes.items() if n > least or {*pair} <= {"", *KNOWN_PREFIXES}}
        if not known:
            break
        first, second = max(known, key=lambda pair: (known[pair], -len(pair[0]) - len(pair[1])))
        found = _under(first, second, left_base, left_tuned)
        for key, other in found.items():
            matched[left_tuned.pop(key)] = left_base.pop(other)
        sides = [
            f"“{prefix}” of the {side}" for prefix, side in ((first, "base"), (second, "tuned checkpoint")) if prefix
        ]
        notes.append(f"{len(found):,} tensors matched without the prefix {' and '.join(sides)}")
    places = {name: place for place, name in enumerate(tuned)}
    return dict(sorted(matched.items(), key=lambda item: places[item[0]])), notes


def _plain(tensors: Iterable[str]) -> dict[str, str]:
    """Name without wrappers' parts → name; the names themselves where two would become one."""
    names = list(tensors)
    short = [".".join(part for part in name.split(".") if part not in WRAPPERS) for name in names]
    counts = Counter(short)
    return {(key if counts[key] == 1 else name): name for key, name in zip(short, names, strict=True)}


def _votes(
    left_base: Mapping[str, str], left_tuned: Mapping[str, str],
    base: Mapping[str, TensorInfo], tuned: Mapping[str, TensorInfo],
) -> Counter[tuple[str, str]]:  # fmt: skip
    """(prefix of the base, prefix of the tuned) → tensors of like shape that they would match."""
    votes: Counter[tuple[str, str]] = Counter()
    for key, name in left_tuned.items():
        for prefix in _prefixes(key):
            for other in ("", *(KNOWN_PREFIXES if not prefix or prefix in KNOWN_PREFIXES else ())):
                place = left_base.get(other + key.removeprefix(prefix))
                if place is not None and _alike(base[place], tuned[name]):
                    votes[other, prefix] += 1
    for key, name in left_base.items():
        for prefix in _prefixes(key):
            place = left_tuned.get(key.removeprefix(prefix))
            if prefix and prefix not in KNOWN_PREFIXES and place is not None and _alike(base[name], tuned[place]):
                votes[prefix, ""] += 1
    return votes


def _prefixes(key: str) -> list[str]:
    """ "", "a.", "a.b.", …: the beginnings of a name, up to its first number unless it is a known one."""
    parts = key.split(".")[:-1][:DEEPEST_PREFIX]
    result = [""]
    for count in range(1, len(parts) + 1):
        prefix = ".".join(parts[:count]) + "."
        if prefix in KNOWN_PREFIXES or not any(part.isdigit() for part in parts[:count]):
            result.append(prefix)
    return result


def _under(first: str, second: str, left_base: Mapping[str, str], left_tuned: Mapping[str, str]) -> dict[str, str]:
    return {
        key: other for key in left_tuned
        if key.startswith(second) and (other := first + key.removeprefix(second)) in left_base
    }  # fmt: skip


def _alike(a: TensorInfo, b: TensorInfo) -> bool:
    return a.shape == b.shape or (len(a.shape) == len(b.shape) == 2 and a.shape[1] == b.shape[1])


def _by_tensor(checkpoint: Checkpoint) -> tuple[dict[str, list[Matrix]], dict[str, Coverage]]:
    matrices, coverage = list_matrices(checkpoint)
    parts: dict[str, list[Matrix]] = {name: [] for name in checkpoint.tensors}
    for matrix in matrices:
        parts[matrix.tensor].append(matrix)
    return parts, {entry.tensor: entry for entry in coverage}


def _suffixes(matrices: list[Matrix]) -> dict[str, Matrix]:
    return {matrix.name.removeprefix(matrix.tensor): matrix for matrix in matrices}


def _common(base: Matrix, tuned: Matrix) -> Pair:
    """The leading rows that both have."""
    rows = min(base.rows, tuned.rows)
    first, second = (m if m.rows == rows else replace(m, rows=rows, stop=m.start + rows) for m in (base, tuned))
    return Pair(tuned.name, first, second)


def _size(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "scalar"
