"""The WeightWatcher columns against WeightWatcher itself, on the demo model: exit 1 where a sound definition disagrees.

Usage: python oracles/weightwatcher.py --weightwatcher PYTHON [--model FOLDER]

PYTHON is an interpreter with weightwatcher, transformers and pandas installed. Its SVD is SciPy's in float64 where there is
no GPU; with one it is in float32, and the columns then agree to 1e-5 or so only.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import eigenscope as es
from eigenscope.models.sources import open_checkpoint
from eigenscope.tasks.weightwatcher import COLUMNS, as_run

ANALYZE = """
import logging, sys, warnings
warnings.simplefilter("ignore"); logging.disable(logging.CRITICAL)
import torch; torch.set_num_threads(1)
import transformers, weightwatcher
model = transformers.AutoModel.from_pretrained(sys.argv[1], dtype=torch.float32)
table = weightwatcher.WeightWatcher(model=model).analyze()
print("\\n#table\\n" + table.to_csv(index=False, float_format="%.17g"))
"""
TOLERANCE = 1e-6
TAIL = ("alpha", "alpha_weighted", "log_alpha_norm", "xmin", "num_pl_spikes")
"""Equal where the cut-off is the same."""
OTHER = {
    "D": "theirs looks below the steps only",
    "sigma": "theirs leaves the search for the cut-off out",
    "warning": "theirs without evidence",
    "matrix_rank": "theirs with float64's epsilon",
    "rank_loss": "theirs with float64's epsilon",
    "weak_rank_loss": "theirs with an absolute bound",
}
"""Different by design. Their definitions, applied to our values, must give their figures all the same."""
ABSENT = {"layer_id": "order of modules, not in a checkpoint", "has_esd": "always True"}


def theirs(python: str, folder: str) -> pd.DataFrame:
    """WeightWatcher's own table, by longname."""
    done = subprocess.run(
        [python, "-W", "ignore", "-c", ANALYZE, folder], capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if "#table" not in done.stdout:
        raise SystemExit(f"WeightWatcher failed:\n{done.stderr[-2000:]}")
    table = pd.read_csv(io.StringIO(done.stdout.partition("#table\n")[2]), keep_default_na=False)
    return table.set_index("longname", drop=False)


def difference(ours: pd.Series, other: pd.Series) -> float:
    """Largest relative difference of numbers; share of unequal texts."""
    if ours.dtype == object or not pd.api.types.is_numeric_dtype(other):
        return float(np.mean(ours.astype(str).to_numpy() != other.astype(str).to_numpy()))
    a, b = ours.to_numpy(float), other.to_numpy(float)
    return float(np.max(np.abs(a - b) / np.where(b == 0.0, 1.0, np.abs(b)), initial=0.0))


def by_their_definitions(values: NDArray[np.float64], longer: int, size: int) -> dict[str, float]:
    """The columns that differ, from our values, by their formulas, with their cut-off: the largest ``size`` values."""
    logs = 2.0 * np.log(values[:size] / values[size - 1])
    exponent = size / np.sum(logs)
    rank = np.count_nonzero(values > values[0] * longer * np.finfo(np.float64).eps)
    p = values**2 / np.sum(values**2)
    return {
        "alpha": 1.0 + exponent,
        "D": np.max(np.abs(np.exp(-exponent * logs) - (np.arange(size) + 1.0) / size)),
        "sigma": exponent / np.sqrt(size),
        "matrix_rank": rank,
        "rank_loss": len(values) - rank,
        "weak_rank_loss": np.count_nonzero(values**2 < 1e-6),
        "entropy": -np.sum(p * np.log(p)) / np.log(rank),
    }


def distance(values: NDArray[np.float64], size: int) -> float:
    """Kolmogorov-Smirnov distance, on both sides of every step, of the tail of a given size."""
    logs = 2.0 * np.log(values[:size] / values[size - 1])
    survival = np.exp(-size / np.sum(logs) * logs)
    steps = np.arange(size) / size
    return float(max(np.max(np.abs(survival - steps)), np.max(np.abs(survival - steps - 1.0 / size))))


def main() -> int:
    """Compare; the number of disagreements decides the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--weightwatcher", metavar="PYTHON", required=True)
    parser.add_argument("--model", default="demo")
    options = parser.parse_args()
    folder = str(open_checkpoint(options.model).files[0].parent)
    other = theirs(options.weightwatcher, folder)
    run = as_run(es.scan(options.model, workers=1).run)
    records = {str(record.readings["longname"]): record for record in run.records}
    missing = set(other.index) - set(records)
    ours = pd.DataFrame([dict(records[name].readings) for name in other.index if name in records]).set_index(
        "longname", drop=False
    )
    other = other.loc[ours.index]
    same = (ours["num_pl_spikes"] == other["num_pl_spikes"]).to_numpy()
    print(f"{len(other)} of their rows compared, {len(missing)} missing here; {len(records) - len(ours)} more here")
    same_rank = (ours["matrix_rank"] == other["matrix_rank"]).to_numpy()
    print(f"same cut-off in {same.sum()}, same rank in {same_rank.sum()}")
    wrong = len(missing)
    names = {column.name for column in COLUMNS}
    for name in sorted(set(other.columns) | names):
        if name in ABSENT or name not in names:
            print(f"  {name:18} not given: {ABSENT.get(name, 'UNEXPECTED')}")
            wrong += name not in ABSENT
            continue
        rows = same if name in TAIL else same_rank if name == "entropy" else np.ones(len(ours), bool)
        gap = difference(ours[name][rows], other[name][rows])
        note = "" if rows.all() else f"in {rows.sum()} rows; {difference(ours[name], other[name]):.1e} in all"
        fault = name not in OTHER and gap > TOLERANCE
        print(f"  {name:18} {gap:8.1e}  {note or OTHER.get(name, '')}{'  DISAGREES' if fault else ''}")
        wrong += fault
    print("their definitions on our values, their cut-off:")
    again = pd.DataFrame(
        [by_their_definitions(records[name].values, row["N"], row["num_pl_spikes"]) for name, row in other.iterrows()],
        index=other.index,
    )
    for name in again:
        gap = difference(again[name], other[name])
        print(f"  {name:18} {gap:8.1e}{'  DISAGREES' if gap > TOLERANCE else ''}")
        wrong += gap > TOLERANCE
    smaller = sum(
        float(ours["D"][name]) <= distance(records[name].values, row["num_pl_spikes"]) * (1.0 + 1e-12)
        for name, row in other.iterrows()
    )
    print(f"our D is at most the distance at their cut-off in {smaller} of {len(other)}")
    wrong += smaller < len(other)
    ratio = ours["sigma"] / other["sigma"]
    print(f"sigma: ours/theirs {ratio.median():.2f} (median), {ratio.min():.2f} to {ratio.max():.2f}")
    shift = ((ours["alpha"] - other["alpha"]).abs() / ours["sigma"])[~same]
    print(
        f"alpha where the cut-off differs: {shift.median():.2f} (median), at most {shift.max():.2f} of our standard errors apart"
    )
    print(f"warnings, theirs: {other['warning'].value_counts().to_dict()}")
    print(f"warnings, ours:   {ours['warning'].str.split(':').str[0].value_counts().to_dict()}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
