"""An encoder of sentences held in low rank: what its embeddings are worth, at equal parameters, from one calibration.

Usage: python oracles/compress_embeddings.py [MODEL] [--keep 0.7] [--tokens 20480] [--seed 0,1,2]

MODEL is "demo" (all-MiniLM-L6-v2), a folder or a hub id. Every way of cutting is judged by the correlation of its cosines with
the similarities that people saw between the Lee-50 documents, and by the cosine to the dense model's own embeddings on 500
sentences of the State of the Union address of 2026, of whose kind no calibration text is. Exit 1 where two-sided whitening
with one threshold is below one-sided whitening with uniform ranks in two plain factors, or below the plain SVD, in either.
"""

from __future__ import annotations

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import argparse
import math
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compress import OURS, ways
from compress_texts import address, calibration, lee
from torch import Tensor

from eigenscope.models.language import load_language_model, mean_embedding
from eigenscope.models.text import Domain
from eigenscope.tasks.compress import factorise
from eigenscope.tasks.compress_options import CompressOptions
from eigenscope.tasks.compress_subject import of_language_model

SENTENCES = 500


@torch.no_grad()
def embed(model: Any, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """(t, d) normalised embeddings, float64."""
    rows = []
    for start in range(0, len(texts), 32):
        batch = tokenizer(
            list(texts[start : start + 32]), padding=True, truncation=True, max_length=256, return_tensors="pt"
        )  # fmt: skip
        states = model(**batch).last_hidden_state
        rows.append(mean_embedding(states, batch["attention_mask"].bool()).double())
    return torch.cat(rows)


def people() -> tuple[list[str], np.ndarray]:
    """The Lee-50 documents, and the mean similarities of their pairs, (50, 50)."""
    documents = (lee() / "lee.cor").read_text("utf-8", "replace").strip().split("\n")
    return documents, np.loadtxt(lee() / "similarities0-1.txt")


def correlation(embeddings: Tensor, similarities: np.ndarray) -> float:
    """Pearson's, over all pairs."""
    pairs = np.triu_indices(len(embeddings), 1)
    cosines = (embeddings @ embeddings.T).numpy()[pairs]
    return float(np.corrcoef(cosines, similarities[pairs])[0, 1])


def main() -> None:
    """Print a table for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--keep", type=float, default=0.7)
    parser.add_argument("--tokens", type=int, default=20480)
    parser.add_argument("--seed", default="0,1,2")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    language = load_language_model(wanted.model)
    model, tokenizer = language.model, language.tokenizer
    documents, similarities = people()
    sentences = [text for text in re.split(r"(?<=[.!?])\s+", address()) if 20 <= len(text) <= 400][:SENTENCES]
    dense = embed(model, tokenizer, sentences)
    print(
        f"dense: Lee-50 {correlation(embed(model, tokenizer, documents), similarities):.3f}, {len(sentences)} sentences"
    )
    good = True
    for seed in (int(part) for part in wanted.seed.split(",")):
        options = CompressOptions(keep=wanted.keep, tokens=wanted.tokens, seed=seed, batch=16)
        subject = of_language_model(language, [Domain(*pair) for pair in calibration().items()], options)
        with tempfile.TemporaryDirectory() as folder:
            factored = factorise(subject, options, Path(folder), workers=1)
            print(f"seed {seed}: {'; '.join(factored.notes)}")
            found = {}
            for name, fitted, allocation in ways(factored):
                keep = wanted.keep
                ranks = (
                    fitted.uniform(keep) if allocation == "uniform" else fitted.within(keep * fitted.dense_parameters)
                )
                with fitted.installed(ranks):
                    cosines = (embed(model, tokenizer, sentences) * dense).sum(dim=1)
                    lees = correlation(embed(model, tokenizer, documents), similarities)
                found[name] = (lees, float(cosines.mean()))
                error = float(cosines.std()) / math.sqrt(len(cosines))
                print(
                    f"  {name:44} keeps {ranks.parameters / fitted.dense_parameters:.3f}  Lee-50 {lees:.3f}  "
                    f"cosine {found[name][1]:.4f} ± {error:.4f}  predicted {ranks.predicted:.4f}", flush=True,
                )  # fmt: skip
        rivals = [value for name, value in found.items() if name.endswith("uniform, two factors")]
        good &= all(mine >= other for rival in rivals for mine, other in zip(found[OURS], rival, strict=True))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
