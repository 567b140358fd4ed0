"""Text → windows of tokens: from text files, folders, tables with a column of text, a dataset of the hub, or strings."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eigenscope.errors import InputError, SourceError

COLUMN = "text"
LARGEST = 64 * 2**20
"""Characters read of one source."""
CHARACTERS = 12
"""Characters taken for each token wanted: more than any usual text has."""
TEXT_ENDINGS = (".txt", ".md", ".rst", ".py", ".tex", ".html", ".cor")


@dataclass(frozen=True)
class Domain:
    """Text of one kind.

    Attributes:
        name: where it is from.
        text: all of it.
    """

    name: str
    text: str


@dataclass(frozen=True)
class Windows:
    """Token ids of equally long windows, padded at the right where ``mask`` is False.

    Attributes:
        ids: (w, l) int64.
        mask: (w, l) bool, which places hold a token.
        domains: (w,) index of each window's domain.
        names: of the domains.
    """

    ids: Tensor
    mask: Tensor
    domains: Tensor
    names: tuple[str, ...]

    @property
    def tokens(self) -> int:
        """Places that hold a token."""
        return int(self.mask.sum())

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice | Tensor) -> Windows:
        return Windows(self.ids[part], self.mask[part], self.domains[part], self.names)

    def shuffled(self, seed: int) -> Windows:
        """The same windows in an order that the seed draws."""
        return self[torch.randperm(len(self.ids), generator=torch.Generator().manual_seed(seed))]

    def batches(self, size: int) -> Iterator[dict[str, Tensor]]:
        """``input_ids`` and ``attention_mask`` of up to ``size`` windows at a time."""
        for start in range(0, len(self.ids), size):
            yield {
                "input_ids": self.ids[start : start + size],
                "attention_mask": self.mask[start : start + size].long(),
            }


Texts = str | Path | Mapping[str, str] | Sequence[str | Path | Domain]
"""One source or several, or names → texts."""


def read_domains(sources: Texts) -> tuple[Domain, ...]:
    """The text of every source, one domain each.

    Args:
        sources: text files; folders, of which all text files are joined; ``.parquet``, ``.jsonl`` or ``.csv`` files, of
            which the column "text" is taken, or the one after a colon (``reviews.parquet:body``); the id owner/name of a
            dataset on the hub, where the ``datasets`` package is installed; or a mapping of names to texts.

    Raises:
        SourceError: one cannot be read, or holds no text.
    """
    if isinstance(sources, Mapping):
        found = [Domain(name, text) for name, text in sources.items()]
    else:
        listed = [sources] if isinstance(sources, str | Path) else list(sources)
        found = [item if isinstance(item, Domain) else Domain(str(item), _read(str(item))) for item in listed]
    if not found:
        raise InputError("no text", expected="at least one source")
    for domain in found:
        if not domain.text.strip():
            raise SourceError("holds no text", where=domain.name)
    return tuple(found)


def _read(source: str) -> str:
    path, column = Path(source), COLUMN
    if not path.exists() and ":" in source:
        name, column = source.rsplit(":", 1)
        path = Path(name)
    try:
        if path.is_dir():
            files = sorted(item for item in path.rglob("*") if item.is_file() and item.suffix in TEXT_ENDINGS)
            return _joined(item.read_text("utf-8", "replace") for item in files)
        if path.suffix in (".parquet", ".jsonl", ".csv") and path.is_file():
            return _joined(_rows(path, column))
        if path.is_file():
            with path.open(encoding="utf-8", errors="replace") as stream:
                return stream.read(LARGEST)
    except OSError as error:
        raise SourceError(f"cannot be read: {error.strerror or error}", where=source) from error
    if str(path).count("/") == 1 and not str(path).startswith((".", "/")) and importlib.util.find_spec("datasets"):
        return _joined(_of_hub(str(path), column))
    raise SourceError(
        "no such file or folder", where=source, expected="a text file, a folder, .parquet, .jsonl or .csv",
        remedy="for a dataset of the hub, owner/name, install the datasets package",
    )  # fmt: skip


def _joined(parts: Iterator[str]) -> str:
    taken, size = [], 0
    for part in parts:
        taken.append(part)
        size += len(part)
        if size > LARGEST:
            break
    return "\n\n".join(taken)[:LARGEST]


def _rows(path: Path, column: str) -> Iterator[str]:
    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                try:
                    yield str(json.loads(line)[column])
                except (ValueError, KeyError, TypeError) as error:
                    raise SourceError(
                        f"line {number} holds no {column!r}", where=str(path), expected="a JSON object with that key",
                        remedy=f"name another key: {path}:KEY",
                    ) from error  # fmt: skip
        return
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    try:
        if path.suffix == ".csv":
            options = pyarrow.csv.ParseOptions(newlines_in_values=True)
            batches: Any = pyarrow.csv.open_csv(path, parse_options=options)
            names = batches.schema.names
        else:
            file = pyarrow.parquet.ParquetFile(path)
            names = file.schema_arrow.names
            batches = file.iter_batches(columns=[column]) if column in names else []
        if column not in names:
            raise SourceError(f"no column {column!r}", where=str(path), expected=f"one of {', '.join(names[:8])}")
        for batch in batches:
            yield from (str(text) for text in batch.column(batch.schema.get_field_index(column)).to_pylist() if text)
    except pa.ArrowException as error:
        raise SourceError(f"cannot be read: {error}", where=str(path)) from error


def _of_hub(name: str, column: str) -> Iterator[str]:
    datasets: Any = importlib.import_module("datasets")
    try:
        for row in islice(datasets.load_dataset(name, split="train", streaming=True), LARGEST):
            if column not in row:
                raise SourceError(f"no column {column!r}", where=name, expected=f"one of {', '.join(row)}")
            yield str(row[column])
    except (OSError, ValueError) as error:
        raise SourceError(f"cannot be read from the hub: {error}", where=name) from error


def windows(
    tokenizer: Any, domains: Sequence[Domain], tokens: int, length: int, *, seed: int, passages: bool = False
) -> Windows:
    """Windows of ``length`` tokens, the same number from every domain, from a place in it that the seed draws.

    Args:
        tokenizer: of the model; called as transformers' are.
        domains: the texts.
        tokens: how many in all, about; a domain that has fewer gives what it has.
        length: of a window.
        seed: of the place where each domain's stretch of text begins.
        passages: whole passages with the model's special tokens, padded, as encoders want them; else an uncut stream.

    Raises:
        InputError: a domain shorter than one window, or nothing asked for.
    """
    each = max(1, round(tokens / len(domains) / length))
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for domain in domains:
        needed = each * length * CHARACTERS
        latest = max(0, len(domain.text) - needed)
        start = int(torch.randint(latest + 1, (1,), generator=generator))
        text = domain.text[start : start + needed]
        parts.append(_passages(tokenizer, text, each, length) if passages else _stream(tokenizer, text, each, length))
        if not len(parts[-1][0]):
            raise InputError(
                "is shorter than one window", where=domain.name, expected=f"at least {length} tokens",
                remedy="give more text, or ask for shorter windows",
            )  # fmt: skip
    index = torch.cat([torch.full((len(ids),), place) for place, (ids, _) in enumerate(parts)])
    ids, mask = torch.cat([ids for ids, _ in parts]), torch.cat([mask for _, mask in parts])
    return Windows(ids, mask, index, tuple(domain.name for domain in domains))


def _stream(tokenizer: Any, text: str, count: int, length: int) -> tuple[Tensor, Tensor]:
    # The whole text is longer than the model's context on purpose, of which the tokenizer would warn.
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.int64)
    whole = min(count, len(ids) // length)
    ids = ids[: whole * length].reshape(whole, length)
    return ids, torch.ones_like(ids, dtype=torch.bool)


def _passages(tokenizer: Any, text: str, count: int, length: int) -> tuple[Tensor, Tensor]:
    words = text.split()
    passages = [" ".join(words[start : start + length]) for start in range(0, len(words), length)][:count]
    if not passages:
        return torch.zeros(0, length, dtype=torch.int64), torch.zeros(0, length, dtype=torch.bool)
    found = tokenizer(passages, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    return found["input_ids"], found["attention_mask"].bool()


def split_windows(given: Windows, share: float) -> tuple[Windows, Windows]:
    """The windows without the last of every domain, and those: about ``share`` of them, at least one each.

    Raises:
        InputError: a domain has a single window.
    """
    held = torch.zeros(len(given), dtype=torch.bool)
    for place, name in enumerate(given.names):
        of_domain = torch.nonzero(given.domains == place)[:, 0]
        if len(of_domain) < 2:
            raise InputError(
                "gives a single window, and one has to be held out", where=name, expected="at least two",
                remedy="give more text, or ask for shorter windows",
            )  # fmt: skip
        held[of_domain[-max(1, round(share * len(of_domain))) :]] = True
    return given[~held], given[held]
