"""The columns of the tables, one module a verb: what each reading means, in what unit, and whose formula it is.

One list a verb, from which the terminal, the page, the README's table and the tests are derived. Without a verb's name,
the columns are those of ``scan``.
"""

from __future__ import annotations

from eigenscope.columns import adapter, adapter_layers, diff, monitor
from eigenscope.columns.column import Column
from eigenscope.columns.scan import COLUMNS

BY_NAME: dict[str, Column] = {column.name: column for column in COLUMNS}
READINGS: tuple[Column, ...] = tuple(column for column in COLUMNS if column.reading)
TABLES: dict[str, tuple[Column, ...]] = {
    "scan": COLUMNS,
    "diff": diff.COLUMNS,
    "adapter": adapter.COLUMNS,
    "adapter init": adapter_layers.INIT,
    "adapter merge": adapter_layers.CUT,
    "adapter resize": adapter_layers.CUT,
    "adapter show": adapter_layers.SHOW,
    "monitor": monitor.COLUMNS,
}
"""Verb → the columns of its table."""


def columns_of(verb: str) -> tuple[Column, ...]:
    """The columns of a verb's table; those of ``scan`` for a verb without a table of its own."""
    return TABLES.get(verb, COLUMNS)


def named(verb: str) -> dict[str, Column]:
    """Name → column of a verb's table."""
    return {column.name: column for column in columns_of(verb)}


__all__ = ["BY_NAME", "COLUMNS", "READINGS", "TABLES", "Column", "columns_of", "named"]
