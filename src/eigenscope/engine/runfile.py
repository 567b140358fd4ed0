"""The SQLite file of a run: one transaction per row, so that an interrupted run loses no finished row."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from eigenscope.errors import RunFileError
from eigenscope.results import Compared, Coverage, Record, Run

SCHEMA = 2
APPLICATION = 0x45534350
"""Marks the file as ours ("ESCP") in SQLite's header."""

MAGIC = b"SQLite format 3\0"

_TABLES = (
    "CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE records (name TEXT PRIMARY KEY, place INTEGER NOT NULL, readings TEXT NOT NULL,"
    " singular_values BLOB, eigenvalues BLOB, sample BLOB)",
    "CREATE TABLE coverage (place INTEGER PRIMARY KEY, tensor TEXT NOT NULL, entry TEXT NOT NULL)",
)


class RunFile:
    """A run's rows on disk. Without a path, a temporary database that vanishes when it is closed.

    Args:
        path: the file; made if it does not exist.
        identity: what makes two runs the same (verb, source's fingerprint, options): plain values. A file whose
            identity differs is refused, never overwritten. None opens a finished file for reading.

    Raises:
        RunFileError: not a run file, of another run, of a newer version, or not writable.
    """

    def __init__(self, path: str | Path | None, identity: Mapping[str, Any] | None = None) -> None:
        self.where = str(path) if path is not None else "temporary run file"
        if path is not None and identity is None and not Path(path).is_file():
            raise RunFileError("no such file", where=self.where, expected="a run file, as written by -o RUN")
        if path is not None and _begins(Path(path)) not in (b"", MAGIC):
            # SQLite takes a file of a few bytes for an empty database, and would write over it.
            raise RunFileError("not a run file", where=self.where, remedy="name another file")
        with self._guarded():
            self._db = sqlite3.connect(str(path) if path is not None else "", isolation_level=None)
        try:
            with self._guarded():
                self._prepare(identity, on_disk=path is not None)
        except BaseException:
            self._db.close()
            raise

    def _prepare(self, identity: Mapping[str, Any] | None, *, on_disk: bool) -> None:
        if self._is_new():
            if identity is None:
                raise RunFileError("is empty", where=self.where, expected="a run file, as written by -o RUN")
            self._create(identity, on_disk=on_disk)
        if self._db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION:
            raise RunFileError("is a database of another program", where=self.where, remedy="name another file")
        if self._about("schema") != str(SCHEMA):
            raise RunFileError(
                f"has schema {self._about('schema')}", where=self.where, expected=f"schema {SCHEMA}",
                remedy="it was written by another version of eigenscope; name another file",
            )  # fmt: skip
        if identity is None:
            return
        if not on_disk:
            # It vanishes with the process: nothing of it needs to be safe.
            self._db.execute("PRAGMA synchronous = OFF")
            self._db.execute("PRAGMA journal_mode = OFF")
        else:
            # The log survives a killed process; only a power cut can lose the last rows, never the file.
            self._db.execute("PRAGMA synchronous = NORMAL")
        stored = self._json("identity")
        wanted = json.loads(json.dumps(identity))
        if stored != wanted:
            differing = sorted(key for key in {*stored, *wanted} if stored.get(key) != wanted.get(key))
            shown = [f"{key} {_short(stored.get(key))}, now {_short(wanted.get(key))}" for key in differing[:3]]
            raise RunFileError(
                f"holds another run ({'; '.join(shown)})", where=self.where,
                remedy="name another run file, or delete this one",
            )  # fmt: skip

    def _is_new(self) -> bool:
        return bool(self._db.execute("PRAGMA schema_version").fetchone()[0] == 0)

    def _create(self, identity: Mapping[str, Any], *, on_disk: bool) -> None:
        db = self._db
        if on_disk:
            db.execute("PRAGMA journal_mode = WAL")
        # One transaction: a process killed in its middle leaves an empty file, another that began as well waits.
        db.execute("BEGIN IMMEDIATE")
        if self._is_new():
            for statement in _TABLES:
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {APPLICATION}")
            about = [("schema", str(SCHEMA)), ("identity", json.dumps(identity, sort_keys=True))]
            db.executemany("INSERT INTO about VALUES (?, ?)", about)
        db.execute("COMMIT")

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise RunFileError(
                f"cannot be used: {error}", where=self.where,
                remedy="check the folder, its rights and free space; rows already written are kept",
            ) from error  # fmt: skip
        except (sqlite3.DatabaseError, UnicodeError) as error:
            raise RunFileError(f"not a run file: {error}", where=self.where, remedy="name another file") from error

    @contextmanager
    def _parsing(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RunFileError(
                f"is damaged: {type(error).__name__}: {error}", where=self.where,
                remedy="delete it and run the same command again",
            ) from error  # fmt: skip

    def _about(self, key: str) -> str | None:
        row = self._db.execute("SELECT value FROM about WHERE key = ?", (key,)).fetchone()
        return str(row[0]) if row else None

    def _json(self, key: str) -> dict[str, Any]:
        with self._parsing():
            return dict(json.loads(self._about(key) or "{}"))

    def finished(self) -> set[str]:
        """Names of the rows that are already here."""
        with self._guarded():
            return {name for (name,) in self._db.execute("SELECT name FROM records")}

    def append(self, record: Record, place: int) -> None:
        """Write one row, in its own transaction; ``place`` is its position in the table."""
        arrays = ((record.values, "<f8"), (record.eigenvalues, "<c16"), (record.sample, "<f8"))
        blobs = (None if array is None else np.ascontiguousarray(array, dtype).tobytes() for array, dtype in arrays)
        row = (record.name, place, json.dumps(dict(record.readings)), *blobs)
        with self._guarded():
            self._db.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?, ?, ?)", row)

    def describe(self, source: str, coverage: tuple[Coverage, ...]) -> None:
        """Write what is known before the first row: the source's name and the fate of every tensor."""
        rows = [(place, entry.tensor, json.dumps(asdict(entry))) for place, entry in enumerate(coverage)]
        with self._guarded():
            self._db.execute("BEGIN")
            self._db.executemany("INSERT OR REPLACE INTO coverage VALUES (?, ?, ?)", rows)
            self._db.execute("INSERT OR REPLACE INTO about VALUES ('source', ?)", (source,))
            self._db.execute("COMMIT")

    def finish(self, provenance: Mapping[str, Any]) -> None:
        """Write how the run was made, and fold the log into the file: from now on it is one file, easily copied."""
        with self._guarded():
            about = ("provenance", json.dumps(provenance, default=str))
            self._db.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", about)
        # A reader in another process keeps the log alive; nothing is lost by that.
        with suppress(sqlite3.OperationalError):
            self._db.execute("PRAGMA journal_mode = DELETE")

    def provenance(self) -> dict[str, Any]:
        """How the run was made; empty while it is not finished."""
        with self._guarded():
            return self._json("provenance")

    def load(self) -> Run:
        """The run as it stands, finished or not.

        Raises:
            RunFileError: the file is damaged.
        """
        with self._guarded(), self._parsing():
            rows = self._db.execute(
                "SELECT name, readings, singular_values, eigenvalues, sample FROM records ORDER BY place"
            )
            records = tuple(
                Record(
                    str(name),
                    dict(json.loads(readings)),
                    _array(values, "<f8"),
                    _array(eigenvalues, "<c16"),
                    _array(sample, "<f8"),
                )
                for name, readings, values, eigenvalues, sample in rows
            )
            entries = self._db.execute("SELECT entry FROM coverage ORDER BY place")
            coverage = tuple(_coverage(**json.loads(entry)) for (entry,) in entries)
            verb, source = str(self._json("identity").get("verb", "")), self._about("source") or ""
        return Run(verb, source, records, coverage, self.provenance())

    def close(self) -> None:
        """Close the file; a temporary one is gone."""
        self._db.close()

    def __enter__(self) -> RunFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}…"


def _array(data: bytes | None, dtype: str) -> Any:
    return None if data is None else np.frombuffer(data, dtype)


def _coverage(shape: list[int], **entry: Any) -> Coverage:
    return (Compared if "relative_change" in entry else Coverage)(shape=tuple(map(int, shape)), **entry)


def _begins(path: Path) -> bytes:
    if not path.is_file():
        return b""
    try:
        with path.open("rb") as stream:
            return stream.read(len(MAGIC))
    except OSError as error:
        raise RunFileError(f"cannot be used: {error.strerror}", where=str(path), remedy="check its rights") from error
