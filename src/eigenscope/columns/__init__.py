"""The columns of the tables, one module a verb: what each reading means, in what unit, and whose formula it is.

One list a verb, from which the terminal, the page, the README's table and the tests are derived. Without a verb's name,
the columns are those of ``scan``.
"""

from __future__ import annotations

from eigenscope.columns.column import Column
from eigenscope.columns.scan import COLUMNS

BY_NAME: dict[str, Column] = {column.name: column for column in COLUMNS}
READINGS: tuple[Column, ...] = tuple(column for column in COLUMNS if column.reading)

__all__ = ["BY_NAME", "COLUMNS", "READINGS", "Column"]
