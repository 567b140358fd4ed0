"""Ways of holding a language model's layers in low rank, at equal parameters, from one calibration: loss added on unseen text.

Usage: python oracles/compress.py MODEL [--seed 0] [--work FOLDER] [--minutes 9] [--keep 0.8,0.6]
       python oracles/compress.py MODEL --summary [--work FOLDER]

MODEL is a folder or hub id of a causal model (SmolLM2-135M for the figures in the README). The moments of a seed's 16,384 tokens of
four kinds of text are measured once; all ways are fitted to them and measured on the State of the Union address of 2026. What
is done is kept in FOLDER, and the same command goes on from it; --minutes ends it after the row in hand. --summary reads
the seeds that are there: exit 1 where two-sided whitening with one threshold adds more than 0.42 (keep 0.8) or 0.38
(keep 0.6) of what one-sided whitening with uniform ranks in two plain factors does, as its paper has it.

The prediction is checked on the held-out text, by the loss added, and by the Kullback-Leibler divergence of the compressed
model from the dense one: the quantity whose second-order term it is, without the noise of the text's own tokens.
"""

from __future__ import annotations

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from compress_texts import address, calibration
from torch import Tensor

from eigenscope.models.language import load_language_model
from eigenscope.models.statistics import call
from eigenscope.models.text import Domain, windows
from eigenscope.tasks.compress import Factored, Ranks, factorise, refitted, sharing
from eigenscope.tasks.compress_factors import fit
from eigenscope.tasks.compress_options import CompressOptions
from eigenscope.tasks.compress_subject import of_language_model

RIVAL = "one-sided, uniform, two factors"
OURS = "two-sided, one threshold"
WANTED = {0.8: 0.42, 0.6: 0.38}
PREDICTED = (0.97, 0.95, 0.9, 0.8)
WINDOWS = 8
Row = dict[str, Any]


def ways(factored: Factored) -> Iterator[tuple[str, Factored, str]]:
    """Name, fitted model, allocation of every way; each is fitted when it is come to, and read where it was before."""
    yield OURS, factored, "global"
    one = refitted(factored, "one-sided")
    yield RIVAL, one, "uniform"
    yield "one-sided, uniform, rows and combinations", _held(one, plain=False), "uniform"
    yield "one-sided, one threshold", _held(one, plain=False), "global"
    if factored.fitting.random is not None:
        yield f"{OURS}, random tokens 0.3", _with_prior(factored, 0.3), "global"
    yield "two-sided, uniform", factored, "uniform"
    yield "two-sided, one threshold, two factors", _held(factored, plain=True), "global"
    yield "ASVD scaling, uniform, two factors", refitted(factored, "scaled"), "uniform"
    yield "plain SVD, uniform, two factors", refitted(factored, "plain"), "uniform"


def _with_prior(fitted: Factored, prior: float) -> Factored:
    """The same with another share of random tokens in the inputs' metric."""
    folder = fitted.folder.parent / f"prior-{prior:g}"
    folder.mkdir(exist_ok=True)
    fitting, subject = replace(fitted.fitting, prior=prior), fitted.subject
    terms = {
        each.name: each for each in fit(subject.model, sharing(subject.layers, fitting.fitted), fitting, folder, 1)
    }
    return Factored(subject, fitted.options, [terms[name] for name in subject.layers], fitting, folder)


def _held(fitted: Factored, *, plain: bool) -> Factored:
    return Factored(fitted.subject, fitted.options, fitted.terms, fitted.fitting, fitted.folder, plain=plain)


@torch.no_grad()
def differences(model: Any, batches: Sequence[Any], reference: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Loss added and divergence KL(dense ‖ model) of every window, nats per token; ``reference`` is the dense log-probabilities."""
    added, divergence = [], []
    for batch, dense in zip(batches, reference, strict=True):
        now = call(model, batch).logits[:, :-1].log_softmax(dim=-1)
        targets = batch["input_ids"][:, 1:, None]
        added.append((dense - now).gather(-1, targets).mean(dim=(1, 2)))
        divergence.append((dense.exp() * (dense - now)).sum(dim=-1).mean(dim=1))
    return torch.cat(added), torch.cat(divergence)


def measured(values: Tensor) -> tuple[float, float]:
    """Mean and its standard error."""
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


class Run:
    """The rows of one seed, kept as they are found."""

    def __init__(self, model: str, seed: int, work: Path, minutes: float) -> None:
        self.ends = time.monotonic() + 60.0 * minutes
        self.path = work / f"rows-{seed}.json"
        self.rows: dict[str, Row] = json.loads(self.path.read_text()) if self.path.is_file() else {}
        language = load_language_model(model)
        domains = [Domain(name, text) for name, text in calibration().items()]
        options = CompressOptions(keep=0.8, tokens=20480, seed=seed, batch=2)
        self.subject = of_language_model(language, domains, options)
        folder = work / f"seed-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        begun = time.process_time()
        self.factored = factorise(self.subject, options, folder, workers=1)
        print(f"seed {seed}: moments and terms in {time.process_time() - begun:.0f} CPU s; {self.factored.notes}")
        text = windows(language.tokenizer, [Domain("unseen", address())], 512 * WINDOWS, 512, seed=seed)
        self.texts = {"unseen": list(text.batches(2)), "held-out": list(self.subject.held_out)}
        self.references: dict[str, list[Tensor]] = {}

    def measure(self, key: str, fitted: Factored, ranks: Ranks, text: str) -> None:
        """One row, unless it is there."""
        batches = self.texts[text]
        if text not in self.references:
            with torch.no_grad():
                self.references = {
                    text: [call(self.subject.model, b).logits[:, :-1].log_softmax(dim=-1) for b in batches]
                }
        with fitted.installed(ranks):
            added, divergence = differences(self.subject.model, batches, self.references[text])
        keep = ranks.parameters / fitted.dense_parameters
        self.rows[key] = {
            "keep": keep, "predicted": ranks.predicted, "added": measured(added), "divergence": measured(divergence)
        }  # fmt: skip
        self.path.write_text(json.dumps(self.rows, indent=1))
        print(f"{key:60} {shown(self.rows[key])}", flush=True)

    def go_on(self, keeps: Sequence[float]) -> bool:
        """Whether all rows are there."""
        for name, fitted, allocation in ways(self.factored):
            for keep in keeps:
                key = f"{name} @ {keep:g}"
                if key in self.rows:
                    continue
                if time.monotonic() > self.ends:
                    return False
                uniform = allocation == "uniform"
                ranks = fitted.uniform(keep) if uniform else fitted.within(keep * fitted.dense_parameters)
                self.measure(key, fitted, ranks, "unseen")
        for keep in PREDICTED:
            key = f"prediction @ {keep:g}"
            if key not in self.rows:
                if time.monotonic() > self.ends:
                    return False
                ranks = self.factored.within(keep * self.factored.dense_parameters)
                self.measure(key, self.factored, ranks, "held-out")
        return True


def shown(row: Row) -> str:
    """A row in one line."""
    (added, error), (divergence, other) = row["added"], row["divergence"]
    return (
        f"keeps {row['keep']:.3f}  predicted {row['predicted']:.4f}  added {added:+.4f} ± {error:.4f}  "
        f"divergence {divergence:.4f} ± {other:.4f}"
    )


def summary(work: Path) -> bool:
    """Means over the seeds and their ratios to the rival; whether what is wanted holds for each seed."""
    seeds = {path.stem: json.loads(path.read_text()) for path in sorted(work.glob("rows-*.json"))}
    holds = bool(seeds)
    print(f"{'':52}{'keep':>5}  " + "  ".join(f"{name:>16}" for name in seeds) + "   × the rival")
    for key in next(iter(seeds.values()), {}):
        name, keep = key.split(" @ ")
        if name == "prediction" or not all(key in rows for rows in seeds.values()):
            continue
        ratios = [rows[key]["added"][0] / rows[f"{RIVAL} @ {keep}"]["added"][0] for rows in seeds.values()]
        if name == OURS and float(keep) in WANTED:
            holds &= max(ratios) <= WANTED[float(keep)]
        cells = "  ".join("{:8.3f} ± {:.3f}".format(*rows[key]["added"]) for rows in seeds.values())
        print(f"{name:52}{keep:>5}  {cells}   {', '.join(f'{ratio:.3f}' for ratio in ratios)}")
    for seed, rows in seeds.items():
        for key, row in rows.items():
            if key.startswith("prediction"):
                ratio = row["divergence"][0] / row["predicted"]
                print(f"{seed} {key:20} {shown(row)}  divergence {ratio:.2f} × predicted")
    return holds


def main() -> None:
    """Go on with one seed, or sum up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("compress-oracle"))
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--keep", default="0.8,0.6")
    parser.add_argument("--summary", action="store_true")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    if wanted.summary:
        sys.exit(0 if summary(wanted.work) else 1)
    wanted.work.mkdir(parents=True, exist_ok=True)
    run = Run(wanted.model, wanted.seed, wanted.work, wanted.minutes)
    whole = run.go_on([float(part) for part in wanted.keep.split(",")])
    print("all rows are there" if whole else "not done: the same command goes on from here")


if __name__ == "__main__":
    main()
