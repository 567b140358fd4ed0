"""One column of a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "count", "number", "share"]


@dataclass(frozen=True)
class Column:
    """One column of the table.

    Attributes:
        name: the key of ``Record.readings`` and of the DataFrame.
        label: short heading.
        kind: "text", "count" (integer), "number" (real), "share" (0…1, shown in per cent).
        meaning: what it says, in at most two sentences.
        source: whose definition it is; empty for plain facts.
        scale: how a colour or an axis shows it.
        reading: whether it is a figure of the matrix (and so can be mapped over layer × role).
    """

    name: str
    label: str
    kind: Kind
    meaning: str
    source: str = ""
    scale: Literal["linear", "log"] = "linear"
    reading: bool = True


def fact(name: str, label: str, kind: Kind, meaning: str) -> Column:
    """A column that says what the row is about, or how it was made, and measures nothing."""
    return Column(name, label, kind, meaning, reading=False)
