"""Runs to report on: one with everything that goes wrong in it, and planted ones whose readings are known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from eigenscope.columns import COLUMNS
from eigenscope.measures.noise import Noise, fit_noise
from eigenscope.measures.tail import NO_TAIL, fit_tail
from eigenscope.results import Coverage, Finding, Record, Run, Value

LAYERS, ROLES = 6, ("q", "k", "v", "o", "up", "down")
TAG, END, ESCAPE, MARKUP, OVERRIDE = (
    "<script>alert(1)</script>",
    "</script><!--",
    "\x1b[31mred",
    "[red]x[/]",
    "a\u202eb",
)
HOSTILE = (TAG, END, ESCAPE, MARKUP, OVERRIDE)
NAN_STATUS = "not measured: 3 NaN and 0 infinite entries, first at row 3, column 4"


def readings_of(values: np.ndarray, rows: int, cols: int) -> dict[str, Value]:
    energy = np.cumsum(values**2) / np.sum(values**2)
    condition = float(values[0] / values[-1]) if values[-1] > 0 else math.inf
    ranks = {f"rank_{p}": int(np.searchsorted(energy, p / 100) + 1) for p in (90, 95, 99)}
    return {
        "sigma_max": float(values[0]), "sigma_min": float(values[-1]), "frobenius": float(np.linalg.norm(values)),
        "nuclear": float(values.sum()), "condition": condition, "digits_lost": math.log10(condition),
        "digits_left": max(0.0, 7.2 - math.log10(condition)), "numerical_rank": int(np.count_nonzero(values > 1e-6)),
        "stable_rank": float(np.sum(values**2) / values[0] ** 2), "ridge": 0.0, "overflow_fp16": 0.0,
        "underflow_fp16": 3e-6, "method": "gram", "error_bound": 1.5e-9, "status": "ok", **ranks,
        **{f"params_saved_{p}": rows * cols - ranks[f"rank_{p}"] * (rows + cols + 1) for p in (90, 95, 99)},
    }  # fmt: skip


def record(name: str, layer: int | None, role: str, values: np.ndarray | None, **changes: Value) -> Record:
    rows, cols = (48, 32) if role == "up" else (32, 48)
    facts: dict[str, Value] = {
        "name": name, "layer": layer, "role": role, "rows": rows, "cols": cols, "dtype": "float32"
    }  # fmt: skip
    measured = {} if values is None else readings_of(values, rows, cols)
    together = {**facts, **measured, **changes}
    return Record(name, {column.name: together.get(column.name) for column in COLUMNS}, values)


def make_run() -> Run:
    generator = np.random.default_rng(20240611)
    names = {"q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
             "o": "attention.output.dense", "up": "intermediate.dense", "down": "output.dense"}  # fmt: skip

    def values() -> np.ndarray:
        return np.sort(generator.gamma(2.0, 1.0, 32))[::-1].copy()

    records = [record("embeddings.word_embeddings.weight", None, "embedding", values())]
    for layer in range(LAYERS):
        for role in ROLES:
            records.append(record(f"encoder.layer.{layer}.{names[role]}.weight", layer, role, values()))
    singular = np.append(values()[:-2], [1e-17, 0.0])
    records += [
        record("encoder.layer.2.singular.weight", 2, "odd", singular, status="singular to working precision"),
        record("encoder.layer.3.nan.weight", 3, "nan", None, status=NAN_STATUS),
        *(record(f"{name}.weight", 4, "odd", None, status=f"not measured: {name}") for name in HOSTILE),
        *(record(f"encoder.layer.5.experts.{i}.weight", 5, "expert_up", values()) for i in range(5)),
        record("pooler.dense.weight", None, "pooler", values()),
    ]
    coverage = [Coverage(r.name, (32, 48), "float32", "read", "", 1) for r in records if r.values is not None]
    coverage += [
        Coverage("norm.weight", (32,), "float32", "not a matrix", "a vector: bias, norm or scale", 0),
        Coverage("norm.bias", (32,), "float32", "not a matrix", "a vector: bias, norm or scale", 0),
        Coverage("scale", (), "float32", "not a matrix", "a scalar", 0),
        *(Coverage(f"{name}.weight", (32, 48), "Q9_9", "not readable", f"format {name}", 0) for name in HOSTILE),
    ]
    provenance = {"eigenscope": "0.1.0", "seed": 7, "wall seconds": 1.25, "include": [], "options": {"dtype": END}}
    return Run("scan", f"models/{TAG}", tuple(records), tuple(coverage), provenance)


RUN = make_run()
FINDINGS = tuple(
    Finding((RUN.records[i].name,), f"{RUN.records[i].name} is {i} times as {TAG} as its peers.", float(i), "condition")
    for i in (1, 7, 3, 4, 2, 6, 5)
)
BARE = replace(RUN, records=tuple(replace(r, values=None) for r in RUN.records))
EMPTY = Run("scan", "nothing", (), ())


def statistics_of(values: np.ndarray, shape: tuple[int, int]) -> dict[str, Value]:
    """The noise and the tail readings of a spectrum, as a scan fills them in."""
    found, tail = fit_noise(values, shape), fit_tail(values)
    readings: dict[str, Value] = {"noise_verdict": found if isinstance(found, str) else found.verdict,
                                  "alpha_verdict": NO_TAIL if tail is None else tail.verdict}  # fmt: skip
    if isinstance(found, Noise):
        readings |= {
            "noise_level": found.level, "noise_edge": found.edge, "noise_rank": found.rank,
            "signal_energy": found.signal_energy, "bulk_distance": found.distance, "optimal_rank": found.optimal_rank,
        }  # fmt: skip
    if tail is not None:
        readings |= {
            "alpha": tail.alpha, "alpha_stderr": tail.stderr, "alpha_tail": tail.size, "alpha_cutoff": tail.cutoff,
            "alpha_ks": tail.ks,
        }  # fmt: skip
    return readings


def measured(
    name: str, layer: int | None, role: str, values: np.ndarray, shape: tuple[int, int], dtype: str = "float32"
) -> Record:
    """A record with every reading of the values."""
    size = {"float32": 4, "bfloat16": 2}[dtype]
    readings = readings_of(values, *shape) | statistics_of(values, shape)
    saved = {f"bytes_saved_{p}": size * int(str(readings[f"params_saved_{p}"])) for p in (90, 95, 99)}
    changes = {**readings, **saved, "rows": shape[0], "cols": shape[1], "dtype": dtype}
    return record(name, layer, role, values, **changes)


def planted_run(seed: int = 11, layers: int = 4) -> Run:
    """Noise with spikes (q), pure noise (k), a power law (up), and one matrix that is far from its peers (q, layer 2)."""
    generator = np.random.default_rng(seed)
    records = []
    for layer in range(layers):
        spiked = generator.standard_normal((96, 64)) + 4.0 * np.outer(
            generator.standard_normal(96), generator.standard_normal(64)
        )
        law = np.sort(generator.pareto(1.5, 120) + 1.0)[::-1] ** 0.5
        noise = generator.standard_normal((64, 64))
        spectra = [np.linalg.svd(matrix, compute_uv=False) for matrix in (spiked, noise)]
        if layer == 2:
            spectra[0] = np.append(spectra[0][:-1], 1e-6 * spectra[0][0])
        records += [
            measured(f"blocks.{layer}.q.weight", layer, "q", spectra[0], (96, 64)),
            measured(f"blocks.{layer}.k.weight", layer, "k", spectra[1], (64, 64), "bfloat16"),
            measured(f"blocks.{layer}.up.weight", layer, "up", law, (480, 120)),
        ]
    coverage = tuple(Coverage(r.name, (int(str(r.readings["rows"])), int(str(r.readings["cols"]))), "float32", "read", "", 1)
                     for r in records)  # fmt: skip
    worst = "blocks.2.q.weight"
    findings = [Finding((worst,), f"{worst}: κ = 1e6, its peers have 9", 9.0, "condition")]
    findings += [
        Finding((f"blocks.{i}.k.weight",), f"blocks.{i}.k.weight: noise alone", 5.0 - i, "noise_rank")
        for i in range(layers)
    ]
    findings += [Finding((f"blocks.{i}.up.weight",), "a heavy tail", 0.5 - 0.1 * i, "alpha") for i in range(2)]
    made = {"eigenscope": "0.2.0", "seed": 0, "dtype": "float64", "wall seconds": 0.5}
    return Run("scan", "models/planted", tuple(records), coverage, made, tuple(findings))


def changed(run: Run, factor: float, *, version: str = "0.2.0", source: str = "models/changed") -> Run:
    """The run with larger values, its first matrix gone and another one come."""
    records = [
        replace(r, values=r.values * factor, readings={
            name: value * factor if name in ("sigma_max", "frobenius") and isinstance(value, float) else value
            for name, value in r.readings.items()
        })
        for r in run.records[1:] if r.values is not None
    ]  # fmt: skip
    new = replace(run.records[0], name="lm_head.<b>weight</b>")
    return replace(
        run, records=(*records, new), provenance={**run.provenance, "eigenscope": version}, source=source, findings=()
    )


PLANTED = planted_run()

# Runs that have little in them, or only what is degenerate.
_FEW, _SAME = np.array([3.0, 2.0, 1.0]), np.full(24, 0.5)
_ZERO = replace(record("w", 0, "q", None, sigma_max=0.0, sigma_min=0.0, status="the zero matrix"), values=np.zeros(8))
_HALF = np.append(np.linspace(3.0, 1.0, 10), np.zeros(14))
_OF_0_1_0 = (
    "name",
    "layer",
    "role",
    "rows",
    "cols",
    "dtype",
    "sigma_max",
    "sigma_min",
    "condition",
    "rank_90",
    "status",
)
ODD_RUNS: dict[str, Run] = {
    "empty": EMPTY,
    "everything that goes wrong": replace(RUN, findings=FINDINGS),
    "no values": BARE,
    "only failures": replace(RUN, records=tuple(r for r in RUN.records if r.readings["sigma_max"] is None)),
    "made by 0.1.0": replace(
        PLANTED,
        provenance={"eigenscope": "0.1.0"},
        findings=(),
        records=tuple(replace(r, readings={name: r.readings[name] for name in _OF_0_1_0}) for r in PLANTED.records),
    ),
    "three values": Run("scan", "few", (measured("w", 0, "q", _FEW, (3, 5)),), ()),
    "one value": Run("scan", "one", (measured("w", None, "q", np.array([2.0]), (1, 9)),), ()),
    "constant": Run("scan", "same", (measured("w", 0, "q", _SAME, (24, 24)),), ()),
    "half of the values 0": Run("scan", "half", (measured("w", 0, "q", _HALF, (24, 30)),), ()),
    "the zero matrix": Run("scan", "zero", (_ZERO,), ()),
    "far out of scale": Run("scan", "far", (measured("w", 0, "q", 1e-150 * _HALF[:10], (10, 30)),), ()),
}
