"""An adapter as Python sees it: its layers, its table, and the files that PEFT loads."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eigenscope.columns import columns_of
from eigenscope.methods.factored import Factors, factored_svd
from eigenscope.models.peft import AdapterFile, AdapterLayer, read_adapter
from eigenscope.models.peft_write import write_adapter
from eigenscope.models.roles import layers_of, role_of
from eigenscope.report.cells import unknown
from eigenscope.results import Record, Run, Value
from eigenscope.tasks.rows import versions
from eigenscope.tasks.tables import frame

if TYPE_CHECKING:
    import pandas as pd


class Adapter:
    """A low-rank adapter: for each module ΔW = scale · B A.

    Attributes:
        file: layers, configuration, and parameters that are saved whole.
        run: the rows of the table, with how the adapter was made; of a loaded one, what the file tells.
        modules: paths of the base's modules, where the base is known.
    """

    def __init__(self, file: AdapterFile, run: Run | None = None, modules: Collection[str] = ()) -> None:
        self.file = file
        self.run = _described(file) if run is None else run
        self.modules = tuple(modules)

    @classmethod
    def load(cls, source: str | Path, *, alpha: float | None = None) -> Adapter:
        """Read an adapter of PEFT's format.

        Args:
            source: the folder, or the file of its weights.
            alpha: scale numerator, where there is no configuration.

        Raises:
            SourceError: no adapter there, or one that is not understood or not sound.
        """
        return cls(read_adapter(source, alpha=alpha))

    def save(self, folder: str | Path, *, force: bool = False) -> Path:
        """Write ``adapter_config.json`` and ``adapter_model.safetensors``, both or neither, and return the folder.

        Raises:
            InputError: the folder exists and is not empty, without ``force``; or the adapter cannot be written.
            OSError: it cannot be written.
        """
        write_adapter(folder, self.file, force=force, modules=self.modules)
        return Path(folder)

    @property
    def table(self) -> pd.DataFrame:
        """One row a layer, columns as in ``eigenscope.columns.columns_of(run.verb)``; layers that were left out say why."""
        return frame(self.run, columns_of(self.run.verb))

    @property
    def layers(self) -> dict[str, AdapterLayer]:
        """Module → factors."""
        return dict(self.file.layers)

    @property
    def parameters(self) -> int:
        """Numbers stored, parameters saved whole included."""
        return sum(layer.parameters for layer in self.file.layers.values()) + sum(
            x.numel() for x in self.file.saved.values()
        )

    def spectrum(self, name: str) -> NDArray[np.float64]:
        """(r,) singular values of scale · B A of one layer, descending, from the factors alone.

        Raises:
            InputError: no such layer; near names are offered.
        """
        layer = self.file.layers.get(name)
        if layer is None:
            raise unknown("layer", name, tuple(self.file.layers))
        values: NDArray[np.float64] = factored_svd(Factors(layer.B, layer.A, layer.scale)).values.numpy()
        return values

    def resize(
        self,
        *,
        rank: int | None = None,
        energy: float | None = None,
        error: float | None = None,
        budget: str | float | None = None,
        dtype: str = "",
    ) -> Adapter:
        """The same adapter with smaller factors: :func:`eigenscope.tasks.adapter_resize.resize_adapter`."""
        from eigenscope.tasks.adapter_resize import resize_adapter

        return resize_adapter(self, rank=rank, energy=energy, error=error, budget=budget, dtype=dtype)

    def __add__(self, other: Adapter) -> Adapter:
        """What both do together, exactly: ranks add. :func:`eigenscope.tasks.adapter_merge.merge_adapters` has weights."""
        return self._with(other, 1.0)

    def __sub__(self, other: Adapter) -> Adapter:
        """What this one does beyond the other, as a trained adapter beyond the one that it began as."""
        return self._with(other, -1.0)

    def _with(self, other: Adapter, weight: float) -> Adapter:
        if not isinstance(other, Adapter):
            return NotImplemented
        from eigenscope.tasks.adapter_merge import merge_adapters

        return merge_adapters([self, other], [1.0, weight])

    def __repr__(self) -> str:
        return f"Adapter({self.run.source!r}, {len(self.file.layers)} layers, {self.parameters:,} parameters)"


def _described(file: AdapterFile) -> Run:
    """What a file alone tells of its layers: sizes, ranks."""
    layers = layers_of(file.layers)
    records = tuple(Record(name, _facts(layer, layers[name])) for name, layer in file.layers.items())
    return Run("adapter", file.source, records, (), versions())


def _facts(layer: AdapterLayer, place: tuple[int | None, str]) -> dict[str, Value]:
    role, stack = role_of(f"{layer.module}.weight"), place[1]
    return {
        "name": layer.module, "layer": place[0], "role": f"{stack}.{role}" if stack else role, "kind": layer.kind,
        "rows": layer.B.shape[0], "cols": layer.A.shape[1], "dtype": str(layer.B.dtype).removeprefix("torch."),
        "rank": layer.rank, "parameters": layer.parameters, "bytes": layer.nbytes, "status": "ok",
    }  # fmt: skip
