"""What holding a language model in low rank costs, and what it gains: CPU time, peak memory, tokens per second. One thread.

Usage: python benchmarks/compress.py MODEL [--tokens 20480] [--only cost|speed] [--keep 0.5] [--rounds 5]

MODEL is a folder or hub id of a causal model (SmolLM2-135M for the figures in the README); the text comes with the packages that
oracles/compress_texts.py names.

cost   CPU seconds of ``compress`` from moments to terms, and its peak memory, against what it cannot do without: forward and
       backward over the calibration tokens, and for each matrix one eigendecomposition of both second moments and one SVD, in
       float64. Those are timed on two batches, and once for each size.
speed  tokens per second at batch 1, while reading a prompt and while writing, of the dense model and of one with every layer
       held in --keep of its parameters, in turns, with the bytes that writing a token reads; and where the time of writing goes.
       Speed does not depend on the values of the factors, which are drawn at random.
"""

from __future__ import annotations

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import argparse
import copy
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "oracles"))
from compress_texts import calibration

from eigenscope.engine.progress import Progress
from eigenscope.measures.rank_curves import rank_curve, uniform_ranks
from eigenscope.methods.choose import svd
from eigenscope.models import lowrank
from eigenscope.models.language import load_language_model
from eigenscope.models.statistics import call
from eigenscope.models.text import Domain
from eigenscope.tasks.compress import factorise
from eigenscope.tasks.compress_measure import bytes_of, speeds
from eigenscope.tasks.compress_options import CompressOptions
from eigenscope.tasks.compress_subject import Subject, of_language_model


def peak() -> float:
    """Largest resident size of the process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def seconds(work: Callable[[], object]) -> float:
    """CPU time of one call."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def passes(model: Any, subject: Subject) -> float:
    """CPU seconds of forward and backward of the cross-entropy over all calibration tokens, from two batches."""
    batches = subject.fitted[:2]

    def run() -> None:
        for batch in batches:
            states = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
            logits = model(inputs_embeds=states, attention_mask=batch["attention_mask"]).logits
            nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten()).backward()

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    run()
    measured = seconds(run)
    tokens = sum(batch["input_ids"].numel() for batch in batches)
    return measured * sum(batch["input_ids"].numel() for batch in (*subject.fitted, *subject.held_out)) / tokens


def decompositions(subject: Subject) -> float:
    """CPU seconds of one float64 eigendecomposition of each side and one SVD for every matrix, each size timed once."""
    shapes = Counter(lowrank.matrix_of(subject.model.get_submodule(name)).shape for name in subject.layers)
    generator = torch.Generator().manual_seed(0)
    total, known = 0.0, {}
    for (rows, cols), count in shapes.items():
        W = torch.randn(rows, cols, generator=generator, dtype=torch.float64)
        for size in (rows, cols):
            if size not in known:
                A = torch.randn(size, size, generator=generator, dtype=torch.float64)
                moment = A @ A.T
                known[size] = seconds(lambda moment=moment: torch.linalg.eigh(moment))  # type: ignore[misc]
        total += count * (known[rows] + known[cols] + seconds(lambda W=W: svd(W)))  # type: ignore[misc]
    return total


def cost(source: str, tokens: int) -> None:
    """Time and memory of moments and terms."""
    language = load_language_model(source)
    options = CompressOptions(keep=0.8, tokens=tokens)
    subject = of_language_model(language, [Domain(*pair) for pair in calibration().items()], options)
    run, exact = passes(language.model, subject), decompositions(subject)
    before = peak()
    spent: dict[str, float] = {}
    last = time.process_time()

    def listen(event: Progress) -> None:
        nonlocal last
        now = time.process_time()
        spent[event.label], last = spent.get(event.label, 0.0) + now - last, now

    begun = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        factorise(subject, options, Path(folder), workers=1, progress=listen)
        whole = time.process_time() - begun
        statistics = sum(path.stat().st_size for path in Path(folder).glob("fitted-*"))
    print(f"{len(subject.layers)} layers, {tokens:,} tokens, one of five held out")
    print(f"forward and backward {run:.0f} CPU s, eigh and SVD of every matrix {exact:.0f}: together {run + exact:.0f}")
    parts = ", ".join(f"{label} {value:.0f}" for label, value in spent.items())
    print(f"compress {whole:.0f} CPU s = {whole / (run + exact):.2f} × that (wanted: below 1.5 ×): {parts}")
    largest = max(lowrank.matrix_of(subject.model.get_submodule(name)).numel() for name in subject.layers)
    print(
        f"peak memory {peak() / 1e6:,.0f} MB; a forward and a backward pass of two windows alone {before / 1e6:,.0f}, "
        f"statistics {statistics / 1e6:,.0f}, the largest layer in float64 {8 * largest / 1e6:,.0f}"
    )


def held(model: Any, keep: float, multiple: int) -> Any:
    """A copy of the model with every layer but the last held at the same share, its factors drawn at random."""
    made = copy.deepcopy(model)
    layers = {}
    generator = torch.Generator().manual_seed(0)
    for name, module in lowrank.dense_layers(made):
        if module is made.get_output_embeddings():
            continue
        rows, cols = lowrank.matrix_of(module).shape
        curve = rank_curve(torch.linspace(1, 0, min(rows, cols) + 1).double().numpy(), rows, cols, multiple=multiple)
        twin: Any = lowrank.low_rank_twin(module, uniform_ranks([curve], keep)[0])
        for factor in (twin.down.weight, twin.up.weight):
            factor.data.normal_(0.0, factor.shape[1] ** -0.5 if factor.numel() else 1.0, generator=generator)
        layers[name] = twin
    lowrank.replace(made, layers)
    return made.eval()


def read_for_a_token(model: Any) -> int:
    """Bytes of weights that writing a token reads: all but the embedding, where that is not the output layer too."""
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return bytes_of(model) - (0 if tied else bytes_of(model.get_input_embeddings()))


@torch.no_grad()
def shares(model: Any) -> str:
    """Where the time of writing goes, by operation."""
    ids = torch.full((1, 1), 5)
    cache = call(model, {"input_ids": torch.full((1, 256), 5), "use_cache": True}).past_key_values
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(8):
            cache = call(model, {"input_ids": ids, "past_key_values": cache, "use_cache": True}).past_key_values
    found = profile.key_averages()
    total = sum(item.self_cpu_time_total for item in found)
    top = sorted(found, key=lambda item: -item.self_cpu_time_total)[:6]
    return ", ".join(f"{item.key} {item.self_cpu_time_total / total:.0%} ({item.count // 8} calls)" for item in top)


def speed(source: str, keep: float, rounds: int) -> None:
    """Tokens per second."""
    dense: Any = load_language_model(source).model
    models = {"dense": dense, f"keep {keep:g}": held(dense, keep, 1), f"keep {keep:g}, ranks × 8": held(dense, keep, 8)}
    ids = torch.randint(1000, (1, 256), generator=torch.Generator().manual_seed(0))
    found = speeds(list(models.values()), ids, rounds=rounds)
    whole = read_for_a_token(dense)
    for (name, model), at in zip(models.items(), found, strict=True):
        size = read_for_a_token(model)
        print(
            f"{name:20} prompt {at.prompt:7.1f} tokens/s ({at.prompt / found[0].prompt:.2f} ×), generation "
            f"{at.generation:6.2f} ({at.generation / found[0].generation:.2f} ×); a token reads {size / 1e6:.0f} MB "
            f"({whole / size:.2f} × fewer), {size * at.generation / 1e9:.1f} GB/s"
        )
    head = bytes_of(dense.get_output_embeddings())
    print(f"of which the output layer, which stays dense, {head / 1e6:.0f} MB")
    for name, model in list(models.items())[:2]:
        print(f"{name}: {shares(model)}")


def main() -> None:
    """Measure both, or one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=20480)
    parser.add_argument("--only", choices=("cost", "speed"))
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=5)
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    if wanted.only != "cost":
        speed(wanted.model, wanted.keep, wanted.rounds)
    if wanted.only != "speed":
        cost(wanted.model, wanted.tokens)


if __name__ == "__main__":
    main()
