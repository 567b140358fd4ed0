"""Names that do not fit: cut so that they still tell one from the other."""

from __future__ import annotations

import re
from collections.abc import Sequence

CUT = "…"


def shorten(names: Sequence[str], width: int) -> list[str]:
    """The names in at most ``width`` characters each; different ones stay different wherever that is possible.

    Where all fit, all are left alone. Else all lose ``.weight``, and those that are still too long lose, by the first
    of these rules that keeps all apart: leading parts; leading parts up to the first number, and some of the middle;
    some of the middle; the front.
    """
    if all(len(name) <= width for name in names):
        return list(names)
    different = len(set(names))
    bare = [name.replace(".weight:", ":").removesuffix(".weight") for name in names]
    bare = bare if len(set(bare)) == different else list(names)
    best: list[str] = []
    for rule in (_last_parts, _from_number, _ends, _tail):
        tried = [name if len(name) <= width else rule(name, width) for name in bare]
        if len(set(tried)) == different:
            return tried
        best = max(best, tried, key=lambda names: len(set(names)))
    return best


def _last_parts(name: str, width: int) -> str:
    parts = name.split(".")
    for first in range(1, len(parts)):
        kept = CUT + ".".join(parts[first:])
        if len(kept) <= width:
            return kept
    return _tail(name, width)


def _from_number(name: str, width: int) -> str:
    number = re.search(r"(?<=\.)\d+(?=\.)", name)
    if number is None:
        return _last_parts(name, width)
    kept = CUT + name[number.start() :]
    return kept if len(kept) <= width else _ends(kept, width)


def _ends(name: str, width: int) -> str:
    head = (width - 1) // 2
    return name[:head] + CUT + name[len(name) - (width - 1 - head) :]


def _tail(name: str, width: int) -> str:
    return CUT + name[len(name) - (width - 1) :]
