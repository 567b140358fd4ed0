"""A run as a table, in memory or in a file that other programs read."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from eigenscope.columns import Column, columns_of
from eigenscope.errors import InputError
from eigenscope.files import replacing
from eigenscope.results import Run

TYPES = {"text": pa.string(), "count": pa.int64(), "number": pa.float64(), "share": pa.float64()}
ENDINGS = (".csv", ".parquet", ".json")


def arrow_table(run: Run, *, columns: Sequence[Column] | None = None, with_values: bool = False) -> pa.Table:
    """One row per matrix; missing readings are null.

    Args:
        run: the run.
        columns: names and types, in that order; default: those of the run's verb.
        with_values: add a column ``singular_values`` of lists.
    """
    columns = columns_of(run.verb) if columns is None else columns
    arrays = {c.name: pa.array([r.readings.get(c.name) for r in run.records], TYPES[c.kind]) for c in columns}
    if with_values:
        lists = [None if r.values is None else r.values.tolist() for r in run.records]
        arrays["singular_values"] = pa.array(lists, pa.list_(pa.float64()))
    return pa.table(arrays)


def plain(value: Any) -> Any:
    """A value that every JSON parser reads: infinities become text, as in the JSON mapping of Protocol Buffers."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def as_json(run: Run, *, columns: Sequence[Column] | None = None, with_values: bool = False) -> str:
    """The whole run as one JSON object, in ASCII: source, verdict, records, findings, coverage, provenance."""
    columns = columns_of(run.verb) if columns is None else columns
    records = []
    for record in run.records:
        row: dict[str, Any] = {c.name: record.readings.get(c.name) for c in columns}
        if with_values:
            row["singular_values"] = None if record.values is None else record.values.tolist()
        records.append(row)
    content = {
        "verb": run.verb, "source": run.source, **({"verdict": run.verdict} if run.verdict else {}), "records": records,
        "findings": [vars(found) for found in run.findings],
        "coverage": [vars(entry) for entry in run.coverage], "provenance": dict(run.provenance),
    }  # fmt: skip
    return json.dumps(plain(content), indent=1, allow_nan=False, default=str)


def write(run: Run, path: str | Path) -> None:
    """Write CSV (readings), Parquet or JSON (readings and singular values), by the ending of ``path``.

    Raises:
        InputError: another ending.
        OSError: the file cannot be written; an older one of that name is then untouched.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in ENDINGS:
        raise InputError(
            f"unknown format {target.suffix or target.name!r}", where=str(path), expected=", ".join(ENDINGS)
        )
    with replacing(target) as beside:
        if suffix == ".csv":
            pyarrow.csv.write_csv(arrow_table(run), beside)
        elif suffix == ".parquet":
            pyarrow.parquet.write_table(arrow_table(run, with_values=True), beside)
        else:
            beside.write_text(as_json(run, with_values=True), "utf-8")
