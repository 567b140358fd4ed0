"""Progress as plain events; who draws them is not decided here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """``done`` of ``total`` units of work are finished, the last of them ``label``."""

    done: int
    total: int
    label: str


Listener = Callable[[Progress], None]


def silent(event: Progress) -> None:
    """The listener that ignores every event."""
    del event
