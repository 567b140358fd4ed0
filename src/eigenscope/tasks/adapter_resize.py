"""``adapter resize``: an adapter at a lower rank, from its factors alone."""

from __future__ import annotations

import time
from dataclasses import asdict

from eigenscope.errors import InputError
from eigenscope.methods.factored import Factors
from eigenscope.models.peft import AdapterFile
from eigenscope.results import Run
from eigenscope.tasks.adapter import Adapter
from eigenscope.tasks.adapter_cut import Cut, Product, cut_layers, facts_of
from eigenscope.tasks.rows import versions


def resize_adapter(
    adapter: Adapter,
    *,
    rank: int | None = None,
    energy: float | None = None,
    error: float | None = None,
    budget: str | float | None = None,
    dtype: str = "",
) -> Adapter:
    """The same adapter with smaller factors, each layer's the best of its rank (Eckart & Young 1936).

    The factor that ΔW is scaled by (alpha/r, or alpha/√r of rsLoRA) stays as it is in every layer, and alpha follows the
    new rank: what the adapter does, and how fast it would go on learning, stay the same. Of DoRA, B A is cut and the magnitude is
    kept: PEFT divides by the new rows' norms, so that every output keeps its norm exactly, and the error is that of its
    direction before that division. Exactly one of ``rank``, ``energy``, ``error`` and ``budget`` is given.

    Args:
        adapter: never changed.
        rank: of every layer, at most; a layer keeps what it has.
        energy: share of every ‖ΔW‖_F² to keep.
        error: largest ‖ΔW − BA‖_F/‖ΔW‖_F of every layer.
        budget: for all layers together, ``"20MB"`` or a number of parameters: it goes to the largest σ²/(m + n).
        dtype: of the factors: "float32", "float16", "bfloat16"; default: as they are.

    Raises:
        InputError: none or several of the four, a value out of range, or rank 0 is left of every layer.
    """
    cut = Cut(rank, energy, error, budget, dtype)
    if (rank, energy, error, budget) == (None, None, None, None):
        raise InputError("no size given", where="resize", expected="one of rank, energy, error, budget")
    file, begun, cpu = adapter.file, time.perf_counter(), time.process_time()
    wholes = [Product(layer, Factors(layer.B, layer.A, layer.scale), layer.rank) for layer in file.layers.values()]
    layers, records = cut_layers(wholes, cut, facts_of(file), file.source)
    made = AdapterFile(layers, file.config, file.saved, file.source)
    provenance = {
        **versions(), **asdict(cut), "wall seconds": round(time.perf_counter() - begun, 3),
        "CPU seconds": round(time.process_time() - cpu, 3),
    }  # fmt: skip
    return Adapter(made, Run("adapter resize", file.source, records, (), provenance), adapter.modules)
