"""A matrix larger than memory through ``eigenscope svd``: peak memory, time and passes, against what was planted.

The matrix is float32, rank 20 plus noise, written a block of rows at a time; its leading values are known to about a
hundredth from the planted ones. Usage: python benchmarks/out_of_core.py [--gigabytes 10] [--cols 2048] [-k 20] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PROMISE = 1.5e9
RANK = 20
BLOCK = 8192


def write(path: Path, rows: int, cols: int) -> np.ndarray:
    """Rows of U diag(σ) Vᵀ + noise with U Gaussian; the expected leading singular values."""
    rng = np.random.default_rng(0)
    right = np.linalg.qr(rng.standard_normal((cols, RANK)))[0].astype(np.float32)
    strengths = (20.0 * 0.85 ** np.arange(RANK)).astype(np.float32)
    header = {"descr": "<f4", "fortran_order": False, "shape": (rows, cols)}
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for start in range(0, rows, BLOCK):
            height = min(BLOCK, rows - start)
            scores = rng.standard_normal((height, RANK), dtype=np.float32) * strengths
            block = scores @ right.T + 0.5 * rng.standard_normal((height, cols), dtype=np.float32)
            stream.write(block.tobytes())
    return np.sqrt(rows * (strengths.astype(float) ** 2 + 0.25))


def run(path: Path, *arguments: str) -> tuple[dict[str, object], int, float]:
    """The answer of the command line, its peak resident bytes and its seconds."""
    code = (
        "import resource, sys; sys.argv = ['eigenscope', 'svd', *sys.argv[1:]]\n"
        "from eigenscope.cli.main import main\n"
        "try: main()\n"
        "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), *arguments, "--json"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout), int(done.stderr.split()[-1]) * 1024, time.perf_counter() - begun


def main() -> None:
    """Write, decompose with one and with two passes, print, clean up."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=10.0)
    parser.add_argument("--cols", type=int, default=2048)
    parser.add_argument("-k", type=int, default=RANK)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as text:
        folder = Path(text)
        free = shutil.disk_usage(folder).free
        if free < 1.1e9 * options.gigabytes:
            raise SystemExit(f"{free / 1e9:.0f} GB free; {1.1 * options.gigabytes:.0f} GB are needed")
        rows = int(options.gigabytes * 1e9 / 4 / options.cols)
        small, path = folder / "small.npy", folder / "large.npy"
        np.save(small, np.eye(4, dtype=np.float32))
        own = run(small, "--passes", "2", "-k", "2")[1]
        begun = time.perf_counter()
        expected = write(path, rows, options.cols)
        print(
            f"{rows:,}×{options.cols} float32, {path.stat().st_size / 1e9:.1f} GB, written in {time.perf_counter() - begun:.0f} s"
        )
        for passes in ("1", "2"):
            found, peak, seconds = run(path, "--passes", passes, "-k", str(options.k))
            values, residuals = np.array(found["values"]), found["residuals"]
            count = min(RANK, len(values))
            doubt = max(found["bounds"] if residuals is None else residuals) / values[0]
            kind = "error bound" if residuals is None else "residual"
            print(
                f"--passes {passes}: {seconds:.0f} s, {found['provenance']['passes']} passes, peak {peak / 1e6:,.0f} MB "
                f"(the interpreter alone {own / 1e6:,.0f} MB; {'kept' if peak <= PROMISE else 'BROKEN'}: {PROMISE / 1e6:,.0f} MB), "
                f"{kind} ≤ {doubt:.1e}·σ₁, planted values met to {np.abs(values[:count] / expected[:count] - 1).max():.1%}"
            )


if __name__ == "__main__":
    main()
