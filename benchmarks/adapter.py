"""Rank-32 adapters of SmolLM2's 210 matrices: CPU seconds, error over the optimum, size of the file. Interleaved, one thread.

Usage: python benchmarks/adapter.py MODEL [--mergekit PATH] [--rounds 2]

MODEL is a folder of SmolLM2-135M in safetensors; PATH the program ``mergekit-extract-lora`` in an environment of its own. Two
tuned models are made from it: *planted*, rank 32 at 1 % of ‖W‖ with dense noise of a thirtieth of that, and *full*, Gaussian
noise at 1 %. CPU seconds are those of the whole work: reading both models, decomposing, certifying, writing the adapter; for
mergekit its process less that of its ``--help``. torch's SVD and ``svd_lowrank`` read and decompose, and write nothing.
The error over the optimum is that of all matrices together, √Σ‖ΔW − BA‖² over LAPACK's, less 1.

On a busy machine of two processors: planted 2.6 s, full 3.9 s, where mergekit takes 16.1 s of both (6.3 and 4.1 times as much) and
torch's SVD 14.2 s; 39.1 MB where mergekit writes 265.8 MB. Reading both models and writing takes 0.7 s of that. ``svd_lowrank``
takes 1.2 s, and on the full change its error is 1.26 % over the optimum, of which nothing warns: noise has no gap that a
sketch could use, and a proof that nothing was missed costs the tridiagonal reduction of a Gram matrix, two thirds of our time.
"""

from __future__ import annotations

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import math
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

import eigenscope as es
from eigenscope.models.checkpoint import Checkpoint
from eigenscope.models.peft import read_adapter
from eigenscope.models.write import TensorSpec, write_safetensors

RANK = 32
Factors = Mapping[str, tuple[Tensor, Tensor]]
"""Module → B (m, r) and A (r, n)."""


def make_tuned(base: Checkpoint, source: Path, folder: Path, *, low: float, dense: float) -> None:
    """A copy of the model whose linear layers are changed, relative to ‖W‖_F, by rank 32 and by noise."""
    generator = torch.Generator().manual_seed(0)

    def read(name: str) -> Tensor:
        W = base.read(name)
        if not name.endswith("_proj.weight"):
            return W
        m, n = W.shape
        parts = [(dense, torch.randn(m, n, generator=generator))]
        if low:
            planted = torch.randn(m, RANK, generator=generator) @ torch.randn(RANK, n, generator=generator)
            parts.append((low, planted))
        return W + sum(size * float(W.norm()) / part.norm() * part for size, part in parts)

    folder.mkdir()
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            shutil.copyfile(path, folder / path.name)
    specs = [TensorSpec(t.name, t.shape, getattr(torch, t.dtype)) for t in base.tensors.values()]
    write_safetensors(folder / "model.safetensors", specs, read)


def changes(base: Checkpoint, tuned: Checkpoint) -> dict[str, Callable[[], Tensor]]:
    """Module → ΔW, read when asked for."""
    names = [name for name in base.tensors if name.endswith("_proj.weight")]
    return {name.removesuffix(".weight"): lambda name=name: tuned.read(name) - base.read(name) for name in names}


def ours(base: Path, tuned: Path, folder: Path) -> Factors:
    """The whole verb."""
    adapter = es.extract_adapter(base, tuned, rank=RANK, workers=1)
    adapter.save(folder)
    uncertified = adapter.table.query("rank > 0 and status != 'ok'")
    if len(uncertified):
        print(f"  not certified: {len(uncertified)}")
    return {name: (layer.B, layer.A) for name, layer in adapter.layers.items()}


def full_svd(base: Path, tuned: Path, folder: Path) -> Factors:
    """torch.linalg.svd of every ΔW."""
    found = {}
    for name, read in changes(es.open_checkpoint(base), es.open_checkpoint(tuned)).items():
        U, S, Vh = torch.linalg.svd(read(), full_matrices=False)
        found[name] = (U[:, :RANK] * S[:RANK], Vh[:RANK])
    return found


def svd_lowrank(base: Path, tuned: Path, folder: Path) -> Factors:
    """torch.svd_lowrank at q = 32 and its two iterations."""
    found = {}
    for name, read in changes(es.open_checkpoint(base), es.open_checkpoint(tuned)).items():
        U, S, V = torch.svd_lowrank(read(), q=RANK, niter=2)
        found[name] = (U * S, V.T)
    return found


def mergekit(program: str) -> Callable[[Path, Path, Path], Factors]:
    """The program, as a user would call it."""

    def run(base: Path, tuned: Path, folder: Path) -> Factors:
        options = ["--model", tuned, "--base-model", base, "--out-path", folder, "--max-rank", RANK, "--quiet"]
        subprocess.run([program, *map(str, options)], check=True, capture_output=True)
        return {name: (layer.scale * layer.B.float(), layer.A) for name, layer in read_adapter(folder).layers.items()}

    return run


def seconds() -> float:
    """CPU seconds of this process and of those that it has run."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def left_out(deltas: Mapping[str, Callable[[], Tensor]], factors: Factors) -> float:
    """√Σ‖ΔW − BA‖²."""
    total = 0.0
    for name, read in deltas.items():
        B, A = factors.get(name, (None, None))
        rest = read() if B is None or A is None else read() - B.float() @ A.float()
        total += float(rest.double().square().sum())
    return math.sqrt(total)


def optimum(deltas: Mapping[str, Callable[[], Tensor]]) -> float:
    """√Σ of the squares of all singular values after the 32nd, by LAPACK."""
    return math.sqrt(
        sum(float(torch.linalg.svdvals(read().double())[RANK:].square().sum()) for read in deltas.values())
    )


def main() -> None:
    """Print a table for each of the two models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--mergekit", default=shutil.which("mergekit-extract-lora"))
    parser.add_argument("--rounds", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    contenders: dict[str, Callable[[Path, Path, Path], Factors]] = {
        "eigenscope": ours, "torch SVD": full_svd, "svd_lowrank": svd_lowrank
    }  # fmt: skip
    startup = 0.0
    if chosen.mergekit:
        contenders["mergekit"] = mergekit(chosen.mergekit)
        before = seconds()
        subprocess.run([chosen.mergekit, "--help"], check=True, capture_output=True)
        startup = seconds() - before
    base = es.open_checkpoint(chosen.model)
    for name, sizes in {"planted": (0.01, 0.01 / 30), "full": (0.0, 0.01)}.items():
        with tempfile.TemporaryDirectory() as place:
            tuned = Path(place) / "tuned"
            make_tuned(base, chosen.model, tuned, low=sizes[0], dense=sizes[1])
            compare(name, contenders, chosen.model, tuned, chosen.rounds, startup)


def compare(
    title: str, contenders: Mapping[str, Callable[[Path, Path, Path], Factors]], base: Path, tuned: Path, rounds: int,
    startup: float,
) -> None:  # fmt: skip
    """Time all contenders in turns, the best round of each."""
    deltas = changes(es.open_checkpoint(base), es.open_checkpoint(tuned))
    best, over, size = dict.fromkeys(contenders, math.inf), {}, {}
    least = optimum(deltas)
    for _ in range(rounds):
        for name, contender in contenders.items():
            folder = tuned.parent / f"adapter {time.time_ns()}"
            before = seconds()
            factors = contender(base, tuned, folder)
            best[name] = min(best[name], seconds() - before - (startup if name == "mergekit" else 0.0))
            over[name] = left_out(deltas, factors) / least - 1.0
            files = list(folder.glob("*.safetensors")) if folder.exists() else []
            size[name] = sum(path.stat().st_size for path in files)
    print(f"{title}: {len(deltas)} matrices, rank {RANK}")
    for name in contenders:
        written = f"{size[name] / 1e6:7.1f} MB" if size[name] else "         -"
        print(
            f"  {name:12s} {best[name]:7.2f} s CPU  ×{best[name] / best['eigenscope']:5.1f}  error over the optimum "
            f"{100 * over[name]:+.5f} %  {written}"
        )


if __name__ == "__main__":
    main()
