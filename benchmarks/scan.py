"""CPU time of a full scan against WeightWatcher's ``analyze()`` and against bare values-only calls, interleaved.

Every contender has one BLAS thread. Usage: python benchmarks/scan.py [--rounds 5] [--model FOLDER] [--weightwatcher PYTHON]

WeightWatcher runs in its own interpreter (one with weightwatcher and transformers installed, named by --weightwatcher):
a process that loads the model once and then analyses it once a round, so that neither imports nor loading count.
The bare calls get the matrices in memory and do nothing but singular values.
"""

from __future__ import annotations

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import scipy.linalg
import torch

import eigenscope as es
from eigenscope.models.matrices import list_matrices, read_matrix
from eigenscope.models.sources import open_checkpoint

WEIGHTWATCHER = """
import logging, sys, time, warnings
warnings.simplefilter("ignore"); logging.disable(logging.CRITICAL)
import torch; torch.set_num_threads(1)
import transformers, weightwatcher
model = transformers.AutoModel.from_pretrained(sys.argv[1], dtype=torch.float32)
print("ready", flush=True)
for line in sys.stdin:
    begun = time.process_time()
    table = weightwatcher.WeightWatcher(model=model).analyze()
    print("result", time.process_time() - begun, len(table), flush=True)
"""


def gram(matrix: np.ndarray) -> np.ndarray:
    """The fastest known route: float64 Gram matrix of the small side and scipy's eigvalsh."""
    wide = matrix.astype(np.float64)
    product = wide @ wide.T if wide.shape[0] < wide.shape[1] else wide.T @ wide
    eigenvalues = scipy.linalg.eigvalsh(product, driver="evr", check_finite=False, overwrite_a=True)
    return np.sqrt(eigenvalues.clip(0))[::-1]


def svdvals64(matrix: np.ndarray) -> np.ndarray:
    """SciPy's LAPACK in float64."""
    return scipy.linalg.svdvals(matrix.astype(np.float64), check_finite=False)


def svdvals32(matrix: np.ndarray) -> np.ndarray:
    """torch's LAPACK in float32."""
    return torch.linalg.svdvals(torch.from_numpy(matrix)).numpy()


def timed(function: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall seconds of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    return time.process_time() - cpu, time.perf_counter() - wall


class WeightWatcher:
    """The other program, held ready in its own interpreter."""

    def __init__(self, python: str, folder: str) -> None:
        self.process = subprocess.Popen(
            [python, "-W", "ignore", "-c", WEIGHTWATCHER, folder],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.covered = 0
        self._line("ready")

    def _line(self, start: str) -> list[str]:
        for line in self.process.stdout:
            if line.startswith(start):
                return line.split()
        raise SystemExit("WeightWatcher ended early")

    def run(self) -> float:
        """CPU seconds of one analysis."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        _, seconds, covered = self._line("result")
        self.covered = int(covered)
        return float(seconds)


def main() -> None:
    """Run the rounds, print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--weightwatcher", metavar="PYTHON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = open_checkpoint(options.model)
    matrices = [read_matrix(checkpoint, m).float().contiguous().numpy() for m in list_matrices(checkpoint)[0]]
    truth = [svdvals64(matrix) for matrix in matrices]
    result = es.scan(options.model, workers=1)
    bounds = [r.readings["error_bound"] * r.readings["sigma_max"] for r in result.run.records]

    def error(values: list[np.ndarray]) -> float:
        """Largest relative error of the values that stand above the scan's own error bound."""
        return max(
            float(np.max(np.abs(v - t)[t > b] / t[t > b])) for v, t, b in zip(values, truth, bounds, strict=True)
        )

    routes = {"float64 Gram + scipy evr": gram, "scipy svdvals float64": svdvals64, "torch svdvals float32": svdvals32}
    accuracy = {name: error([route(m) for m in matrices]) for name, route in routes.items()}
    accuracy["eigenscope scan"] = error([record.values for record in result.run.records])
    other = WeightWatcher(options.weightwatcher, str(checkpoint.files[0].parent)) if options.weightwatcher else None
    seconds: dict[str, list[float]] = {}
    walls: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(options.rounds):
        cpu, wall = timed(lambda: es.scan(options.model, workers=1))
        seconds.setdefault("eigenscope scan", []).append(cpu)
        walls[1].append(wall)
        walls[2].append(timed(lambda: es.scan(options.model, workers=2))[1])
        for name, route in routes.items():
            seconds.setdefault(name, []).append(timed(lambda route=route: [route(m) for m in matrices])[0])
        if other:
            seconds.setdefault("WeightWatcher analyze", []).append(other.run())
    own = seconds["eigenscope scan"]
    print(f"{options.model}: {len(matrices)} matrices, load {os.getloadavg()[0]:.1f} of {os.cpu_count()} processors")
    if other:
        print(f"WeightWatcher covers {other.covered} of them")
    for name, row in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(row, own, strict=True))
        shown = f"{accuracy[name]:.0e}" if name in accuracy else "float32 SVD"
        print(
            f"  {name:28} {statistics.median(row):7.3f} CPU s ({min(row):.3f}–{max(row):.3f})  {ratio:5.2f} × ours  error {shown}"
        )
    gain = [a / b for a, b in zip(walls[1], walls[2], strict=True)]
    print(f"  one worker to two: {statistics.median(gain):.2f} × wall ({min(gain):.2f}–{max(gain):.2f})")


if __name__ == "__main__":
    sys.exit(main())
