"""Findings as text: the same sentences, in the same order, in the terminal and on the page."""

from __future__ import annotations

import re
from dataclasses import dataclass

from eigenscope.report.cells import visible
from eigenscope.results import Finding, Run

NOTHING = "Nothing stands out."


@dataclass(frozen=True)
class Piece:
    """A part of a sentence.

    Attributes:
        text: what is shown.
        row: place in the run of the matrix that the text names, or None for plain text.
    """

    text: str
    row: int | None = None


@dataclass(frozen=True)
class Line:
    """A finding on the page.

    Attributes:
        pieces: its sentence, with the names of matrices apart.
        name, row: the matrix that stands for it and its place in the run, None where the run has no such matrix.
        reading: the column that shows it best, or "".
    """

    pieces: tuple[Piece, ...]
    name: str
    row: int | None
    reading: str


def in_order(run: Run) -> list[Finding]:
    """The findings of a run, most severe first."""
    return sorted(run.findings, key=lambda finding: -finding.severity)


def sentence(finding: Finding) -> str:
    """The sentence; it ends with the first matrix's name where it does not hold it."""
    said, name = visible(finding.sentence), visible(finding.names[0]) if finding.names else ""
    return said if name in said else f"{said} {name}"


def on_page(run: Run) -> list[Line]:
    """The findings of a run as lines of the page."""
    places = {visible(record.name): i for i, record in enumerate(run.records)}
    lines = []
    for finding in in_order(run):
        name = visible(finding.names[0]) if finding.names else ""
        lines.append(Line(_pieces(finding, places), name, places.get(name), finding.reading))
    return lines


def _pieces(finding: Finding, places: dict[str, int]) -> tuple[Piece, ...]:
    # The longest first: one name may begin with another.
    names = sorted({visible(name) for name in finding.names if visible(name) in places}, key=len, reverse=True)
    said = sentence(finding)
    if not names:
        return (Piece(said),)
    split = re.split(f"({'|'.join(map(re.escape, names))})", said)
    return tuple(Piece(text, places[text] if i % 2 else None) for i, text in enumerate(split) if text)
