"""Makes low-rank checkpoints known to transformers as soon as both it and eigenscope are imported, in either order.

Importing transformers takes seconds, and ``eigenscope --help`` must not; so nothing is imported here that is not already.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

REGISTRY = "transformers.quantizers.auto"
PLUGIN = "eigenscope.models.transformers_lowrank"


class _AfterImport(MetaPathFinder):
    """Finds the registry once, as any other finder would, and has the plug-in imported when it is there."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != REGISTRY or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_and_register(module: ModuleType) -> None:
            load(module)
            importlib.import_module(PLUGIN)

        spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Register now if transformers is there, else when it comes."""
    if REGISTRY in sys.modules:
        importlib.import_module(PLUGIN)
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())
