"""An adapter of rank 32 for the 210 matrices of SmolLM2-135M cut to 16: CPU time against the SVD of B·A. One thread, in turns.

Usage: python benchmarks/resize.py [--rounds 3] [--layers 30] [--rank 32] [--to 16]

Contenders: ``resize``, the whole task with its table and the error of the stored factors measured; ``core``, its arithmetic
without that; the thin SVD of each B·A in float32, cut and its error measured; the same with full_matrices=True, as PEFT's
``add_weighted_adapter(combination_type="svd")`` does by default. Errors are ‖ΔW − BA‖F/‖ΔW‖F in float64.
"""

from __future__ import annotations

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from eigenscope.methods.factored import Factors, core_svd, recompressed
from eigenscope.models.peft import AdapterFile, AdapterLayer
from eigenscope.tasks.adapter import Adapter

SHAPES = {
    "self_attn.q_proj": (576, 576), "self_attn.k_proj": (192, 576), "self_attn.v_proj": (192, 576),
    "self_attn.o_proj": (576, 576), "mlp.gate_proj": (1536, 576), "mlp.up_proj": (1536, 576), "mlp.down_proj": (576, 1536),
}  # fmt: skip
Errors = dict[str, float]


def trained(layers: int, rank: int) -> Adapter:
    """Random factors whose products' singular values fall to a tenth of the first."""
    generator = torch.Generator().manual_seed(0)
    falling = 10.0 ** -(torch.arange(rank) / rank)
    made = {}
    for number in range(layers):
        for role, (m, n) in SHAPES.items():
            name = f"model.layers.{number}.{role}"
            B = torch.randn(m, rank, generator=generator) * falling / m**0.5
            made[name] = AdapterLayer(name, "linear", B, torch.randn(rank, n, generator=generator), 2.0, None, (m, n))
    return Adapter(AdapterFile(made))


def resize(adapter: Adapter, to: int) -> tuple[dict[str, torch.Tensor], Errors]:
    made = adapter.resize(rank=to)
    return {}, {record.name: float(record.readings["error"]) for record in made.run.records}


def core(adapter: Adapter, to: int) -> tuple[dict[str, torch.Tensor], Errors]:
    errors = {}
    for name, layer in adapter.layers.items():
        factors = Factors(layer.B.double(), layer.A.double(), layer.scale)
        found = core_svd(factors)
        errors[name] = recompressed(factors, to, scale=layer.scale, core=found).error / float(found.values.norm())
    return {}, errors


def dense(full: bool) -> Callable[[Adapter, int], tuple[dict[str, torch.Tensor], Errors]]:
    def cut(adapter: Adapter, to: int) -> tuple[dict[str, torch.Tensor], Errors]:
        kept = {}
        for name, layer in adapter.layers.items():
            U, values, Vh = torch.linalg.svd(layer.scale * (layer.B @ layer.A), full_matrices=full)
            kept[name] = ((U[:, :to] * values[:to]), Vh[:to])
        return kept, {}

    return cut


def main() -> None:
    """Time the contenders in turns and compare their errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--to", type=int, default=16)
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    adapter = trained(wanted.layers, wanted.rank)
    contenders = {
        "resize (whole task)": resize, "core": core, "SVD of B·A": dense(False), "SVD of B·A, full matrices": dense(True)
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    errors: dict[str, Errors] = {}
    resize(adapter, wanted.to)
    for _ in range(wanted.rounds):
        for name, contender in contenders.items():
            begun = time.process_time()
            kept, found = contender(adapter, wanted.to)
            seconds[name].append(time.process_time() - begun)
            errors[name] = found or {
                module: float((adapter.layers[module].delta() - B.double() @ A.double()).norm() / adapter.layers[module].delta().norm())
                for module, (B, A) in kept.items()
            }  # fmt: skip
    ours = statistics.median(seconds["resize (whole task)"])
    print(
        f"{len(adapter.layers)} matrices, rank {wanted.rank} → {wanted.to}, median of {wanted.rounds} rounds, 1 thread"
    )
    for name, times in seconds.items():
        apart = max(abs(errors[name][m] / errors["resize (whole task)"][m] - 1.0) for m in adapter.layers)
        middle = statistics.median(times)
        print(f"{name:28} {middle:8.3f} CPU s   {middle / ours:7.1f}×   errors differ by ≤ {apart:.1e} of themselves")


if __name__ == "__main__":
    main()
