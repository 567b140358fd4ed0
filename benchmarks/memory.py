"""Peak memory of a scan of a large sharded checkpoint, against the promise: 4 × the largest matrix in float64 a worker.

Usage: python benchmarks/memory.py [--gigabytes 6] [--workers 2] [--folder DIR]
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

import torch
from safetensors.torch import save_file

ROWS, COLS = 16384, 2048


def write(folder: Path, gigabytes: float) -> int:
    """Shards of float32 and bfloat16 matrices, one matrix in memory at a time; the bytes written."""
    generator, written, index = torch.Generator().manual_seed(0), 0, {}
    layer = 0
    while written < gigabytes * 1e9:
        shard = f"model-{layer:05d}.safetensors"
        dtype = torch.bfloat16 if layer % 8 == 7 else torch.float32
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        save_file({name: torch.randn(ROWS, COLS, generator=generator).to(dtype)}, folder / shard)
        index[name] = shard
        written += (folder / shard).stat().st_size
        layer += 1
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return written


def peak(folder: Path, workers: int) -> int:
    """Peak resident bytes of the command line, measured by the operating system."""
    code = (
        "import resource, sys; from eigenscope.cli.main import app; "
        f"app(['scan', {str(folder)!r}, '--workers', '{workers}', '--quiet'], standalone_mode=False); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stderr.split()[-1]) * 1024


def main() -> None:
    """Write, scan, print, clean up."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=6.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as text:
        folder = Path(text)
        free = shutil.disk_usage(folder).free
        if free < 1.2e9 * options.gigabytes:
            raise SystemExit(f"{free / 1e9:.0f} GB free; {1.2 * options.gigabytes:.0f} GB are needed")
        small, large = folder / "small", folder / "large"
        small.mkdir()
        large.mkdir()
        save_file({"a.weight": torch.eye(8)}, small / "model.safetensors")
        own = peak(small, options.workers)
        written = write(large, options.gigabytes)
        begun = time.perf_counter()
        whole = peak(large, options.workers)
        promise = 4 * 8 * ROWS * COLS * options.workers
        print(
            f"{written / 1e9:.1f} GB in {len(list(large.glob('*.safetensors')))} shards, {options.workers} workers, "
            f"{time.perf_counter() - begun:.0f} s: peak {whole / 1e6:,.0f} MB, of which the interpreter {own / 1e6:,.0f} MB; "
            f"above it {(whole - own) / 1e6:,.0f} MB, promised at most {promise / 1e6:,.0f} MB "
            f"({'kept' if whole - own <= promise else 'BROKEN'})"
        )


if __name__ == "__main__":
    main()
