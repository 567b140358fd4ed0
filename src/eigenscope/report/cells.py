"""A value of a run as text: the same in the terminal, in a figure and on the page."""

from __future__ import annotations

import difflib
import html
import math
import unicodedata
from collections.abc import Iterable

from eigenscope.columns import Column, columns_of
from eigenscope.errors import InputError
from eigenscope.results import Run, Value

MISSING, INFINITE = "–", "∞"

# Control, format (direction overrides among them), surrogate, private, unassigned, separators other than the space.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"})


def visible(text: object) -> str:
    """Text in which every character that a terminal or a browser obeys instead of showing is spelled out.

    Names come from files that nobody vouches for: an escape becomes ``\\x1b``, a direction override ``\\u202e``.
    """
    line = str(text)
    if line.isascii() and line.isprintable():
        return line
    return "".join(_spelled(c) if c != " " and unicodedata.category(c) in _UNSAFE else c for c in line)


def _spelled(character: str) -> str:
    code = ord(character)
    if code > 0xFFFF:
        return f"\\U{code:08x}"
    return f"\\u{code:04x}" if code > 0xFF else f"\\x{code:02x}"


def plotly_text(text: object) -> str:
    """Visible text that Plotly draws as it stands: no tags, no entities, no TeX between dollar signs."""
    return html.escape(visible(text), quote=False).replace("$", "&#36;")


def format_value(column: Column, value: Value) -> str:
    """A cell: four significant digits, counts in full, shares in per cent, ∞, and – where it is not defined."""
    if value is None:
        return MISSING
    if column.kind == "text" or isinstance(value, str):
        return visible(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return INFINITE if value > 0 else f"−{INFINITE}"
    if column.kind == "share":
        return f"{significant(100.0 * value, 3)} %"
    if column.kind == "count" and value == int(value):
        return f"{int(value):,}".replace("-", "−")
    return significant(value)


def significant(value: float, digits: int = 4) -> str:
    """Fixed-point while that stays short, else ``1.234e-7``."""
    if value == 0:
        return "0"
    mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
    exponent = int(power)
    text = f"{value:,.{max(0, digits - 1 - exponent)}f}" if -4 < exponent < 6 else f"{mantissa}e{exponent}"
    return text.replace("-", "−", 1) if value < 0 else text


def rounded(value: Value, digits: int = 5) -> Value:
    """A value that JSON can hold in few characters: ``digits`` significant ones; what is not finite as text.

    The text is what JavaScript's ``Number`` reads back: "Infinity", "-Infinity", "NaN".
    """
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    short = float(f"{value:.{digits}g}")
    return short if math.isfinite(short) else value


def shown_columns(run: Run) -> tuple[Column, ...]:
    """The columns in which at least one record of the run has a value, in the order of the table."""
    return tuple(c for c in columns_of(run.verb) if any(r.readings.get(c.name) is not None for r in run.records))


def doubt(status: Value) -> str:
    """What the status says against a row; empty where there is nothing."""
    return "" if status in (None, "ok") else visible(status)


def unknown(kind: str, given: str, known: Iterable[str], *, remedy: str = "") -> InputError:
    """The error for a name that the run does not have, with the names that come near it."""
    names = list(dict.fromkeys(known))
    near = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
    near = near or [name for name in names if given and given.lower() in name.lower()][:3]
    few = near or (names if len(names) <= 12 else [*names[:3], "…"])
    expected = ", ".join(visible(name) for name in few) or f"a run that has a {kind}"
    return InputError(f"unknown {kind} {given!r}", expected=expected, remedy=remedy)
