"""``adapter init``: an adapter to begin training from, made of the base's own singular vectors."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from eigenscope.engine.pool import available_cpus, stream, threads
from eigenscope.engine.progress import Listener, Progress, silent
from eigenscope.errors import InputError
from eigenscope.methods.choose import svd
from eigenscope.methods.whitening import Metric
from eigenscope.models.checkpoint import Checkpoint
from eigenscope.models.peft import AdapterFile, AdapterLayer, as_map
from eigenscope.models.peft_write import write_adapter
from eigenscope.models.sources import open_checkpoint
from eigenscope.models.write import check_folder, replacing_folder
from eigenscope.report.cells import unknown
from eigenscope.results import Coverage, Record, Run, Value
from eigenscope.tasks import adapter_apply
from eigenscope.tasks.adapter import Adapter
from eigenscope.tasks.adapter_extract import named_base, task_of
from eigenscope.tasks.adapter_layer import FAILURES, WRITTEN
from eigenscope.tasks.adapter_targets import Target, Targets, find_targets
from eigenscope.tasks.adapter_text import input_metrics
from eigenscope.tasks.rows import versions

Start = Literal["pissa", "milora", "mica", "olora", "corda", "corda-kpm"]
STARTS: tuple[Start, ...] = get_args(Start)
UNCHANGED: tuple[Start, ...] = ("mica",)
"""Starts whose B A is 0, so that the base stays as it is."""
ADAPTER, BASE = "adapter", "base"
"""Folders within the one that is written."""


@dataclass(frozen=True)
class InitOptions:
    """How training begins.

    Attributes:
        start: which of :data:`STARTS`.
        rank: r of every layer, cut to min(m, n).
        alpha: numerator of the scale alpha/r; None for r, a scale of 1.
        dtype: of the factors.
        include, exclude: shell patterns over module paths; output layers only where ``include`` names them.
        tokens: of the text, about.
        seed: of everything random.

    Raises:
        InputError: an unknown start, or a number out of range.
    """

    start: Start = "pissa"
    rank: int = 16
    alpha: float | None = None
    dtype: str = "float32"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    tokens: int = 16384
    seed: int = 0

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise unknown("start", self.start, STARTS)
        if self.rank < 1:
            raise InputError(f"rank {self.rank}", expected="at least 1")
        if self.alpha is not None and not 0.0 < self.alpha < float("inf"):
            raise InputError(f"alpha {self.alpha}", expected="a positive number")
        if self.dtype not in WRITTEN:
            raise unknown("dtype", self.dtype, tuple(WRITTEN))


class InitialAdapter(Adapter):
    """The result of :func:`init_adapter`: an :class:`Adapter` that knows the base it is part of."""

    base: Checkpoint
    start: Start

    def save(self, folder: str | Path, *, force: bool = False, progress: Listener = silent) -> Path:
        """Write ``folder/adapter`` and, where B A is taken out of the base, ``folder/base``: both or neither.

        Raises:
            InputError: the folder exists and is not empty, without ``force``; or a quantised base.
            OSError: it cannot be written.
        """
        target = Path(folder)
        check_folder(target, force=force)
        config = dict(self.file.config)
        if self.start not in UNCHANGED:
            config["base_model_name_or_path"] = str(target.resolve() / BASE)
        with replacing_folder(target, force=force) as beside:
            write_adapter(beside / ADAPTER, replace(self.file, config=config), modules=self.modules)
            if self.start not in UNCHANGED:
                taken = {name: replace(layer, scale=-layer.scale) for name, layer in self.file.layers.items()}
                rest = Adapter(AdapterFile(taken, {}, {}, self.file.source), self.run)
                adapter_apply.run_plan(
                    adapter_apply.make_plan(self.base, rest), beside / BASE, progress=progress
                )  # fmt: skip
        return target


def init_adapter(
    base: Any,
    *,
    start: Start = "pissa",
    rank: int = 16,
    alpha: float | None = None,
    text: Any = None,
    tokenizer: Any = None,
    tokens: int = 16384,
    dtype: str = "float32",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    seed: int = 0,
    workers: int | None = None,
    progress: Listener = silent,
) -> InitialAdapter:
    """An adapter of the base's linear layers from which PEFT begins training at the base's own outputs.

    With W = U Σ Vᵀ, s = alpha/r and the r leading or trailing triplets: *pissa* (Meng et al., NeurIPS 2024, eqs. 2–4) B =
    U_r√(Σ_r/s), A = √(Σ_r/s)V_rᵀ of the leading ones; *milora* (Wang et al., NAACL 2025, §3) the same of the
    trailing ones; *mica* (Rüdiger & Raschka, 2026) B = U_r of the trailing ones, kept fixed by PEFT, A = 0; *olora*
    (Büyükakyüz, 2024, eq. 5) B = Q_r, A = R_r of W = Q R; *corda* (Yang et al., NeurIPS 2024, §3.2) of the SVD of W C, C the
    second moments of the layer's inputs over a text, B = U_r√(Σ_r/s), A = √(Σ_r/s)V_rᵀC⁻¹ of the leading triplets
    ("instruction-previewed"), *corda-kpm* of the trailing ones ("knowledge-preserved").

    All but *mica* leave the base W − s B A, which :meth:`InitialAdapter.save` writes beside the adapter. Both are plain LoRA
    and a plain model: nothing is decomposed again when they are loaded, and any program that reads LoRA reads them. The
    trained adapter, less the one it began with, belongs on the original base: ``adapter merge TRAINED START --weights 1,-1``.

    Args:
        base: a path, a hub id, ``"demo"``, an ``nn.Module``, or a mapping of names to tensors. Never changed.
        start, rank, alpha, dtype, include, exclude, tokens, seed: as :class:`InitOptions`.
        text: of *corda*: text files, or a mapping of names to texts.
        tokenizer: for ``text``, where the base is a live module.
        workers: layers at a time; default: the processors available.
        progress: called after each layer.

    Raises:
        SourceError: the base cannot be opened.
        InputError: no linear layers, a text missing or not wanted, an option out of range, no layer that could be decomposed.
    """
    options = InitOptions(start, rank, alpha, dtype, tuple(include), tuple(exclude), tokens, seed)
    if start.startswith("corda") == (text is None):
        raise InputError(
            f"{start} {'without' if text is None else 'with'} a text", where="init",
            expected="a text for corda and corda-kpm, and for no other start",
        )  # fmt: skip
    if workers is not None and workers < 1:
        raise InputError(f"{workers} workers", expected="at least 1")
    checkpoint = open_checkpoint(base)
    found = _targets(checkpoint, base, options)
    begun, cpu = time.perf_counter(), time.process_time()
    metrics = {} if text is None else input_metrics(base, tokenizer, text, found.targets, tokens, seed)
    done = _each(_Work(checkpoint, options, metrics), found.targets, workers or available_cpus(), progress)
    return _assembled(checkpoint, options, found, done, (time.perf_counter() - begun, time.process_time() - cpu))


def _each(
    work: _Work, targets: Sequence[Target], workers: int, progress: Listener
) -> dict[str, tuple[AdapterLayer | None, Record]]:
    done: dict[str, tuple[AdapterLayer | None, Record]] = {}
    progress(Progress(0, len(targets), ""))
    with threads(workers) as pool:
        for name, made in stream(pool, work, targets, 2 * workers):
            done[name] = made
            progress(Progress(len(done), len(targets), name))
    return done


def _targets(checkpoint: Checkpoint, base: Any, options: InitOptions) -> Targets:
    found = find_targets(checkpoint, checkpoint, model=base, include=options.include, exclude=options.exclude)
    named = bool(options.include)
    chosen = tuple(
        target for target in found.targets
        if target.kind in ("linear", "conv1d_transposed") and (named or target.role.rpartition(".")[2] != "lm_head")
    )  # fmt: skip
    if not chosen:
        raise InputError(
            "no linear layer to adapt", where=checkpoint.source, expected="a model with linear layers",
            remedy="name modules with include" if not named else "",
        )  # fmt: skip
    return replace(found, targets=chosen)


@dataclass(frozen=True)
class _Work:
    """One layer → its factors and its row."""

    checkpoint: Checkpoint
    options: InitOptions
    metrics: Mapping[str, Metric]

    def __call__(self, target: Target) -> tuple[str, tuple[AdapterLayer | None, Record]]:
        facts = _facts(target, self.options.dtype)
        try:
            layer, readings = self._made(target)
        except FAILURES as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            return target.module, (None, Record(target.module, facts | {"status": f"left out: {reason}"}))
        return target.module, (layer, Record(target.module, facts | readings))

    def _made(self, target: Target) -> tuple[AdapterLayer, dict[str, Value]]:
        options = self.options
        stored = self.checkpoint.part([target.base]).read(target.base)
        W = as_map(stored, target.kind)
        rank = min(options.rank, *W.shape)
        scale = 1.0 if options.alpha is None else options.alpha / rank
        digest = hashlib.sha256(f"{options.seed}:{target.module}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        metric = self.metrics.get(target.module)
        if options.start.startswith("corda") and metric is None:
            raise InputError("the text does not reach this layer", where=target.module)
        B, A, residual = _factors(W, rank, scale, options.start, metric, generator)
        dtype = WRITTEN[options.dtype]
        layer = AdapterLayer(
            target.module, target.kind, B.to(dtype).contiguous(), A.to(dtype).contiguous(), scale, None, target.shape
        )
        delta, size = layer.delta(), float(W.double().norm())
        rest = (W.double() - delta).to(W.dtype).double()
        readings: dict[str, Value] = {
            "rank": rank, "parameters": layer.parameters, "bytes": layer.nbytes, "residual": residual,
            "energy": (float(delta.norm()) / size) ** 2 if size else None,
            "start_error": float((rest + delta - W.double()).norm()) / size if size else 0.0, "status": "ok",
        }  # fmt: skip
        if not bool(torch.isfinite(layer.B).all() and torch.isfinite(layer.A).all() and torch.isfinite(rest).all()):
            raise InputError(f"factors beyond the range of {options.dtype}", where=target.module)
        return layer, readings


def _factors(
    W: Tensor, rank: int, scale: float, start: Start, metric: Metric | None, generator: torch.Generator
) -> tuple[Tensor, Tensor, float]:
    """B (m, r), A (r, n), and the largest residual of the triplets relative to ‖M‖_F; of QR ‖W − Q R‖_F/‖W‖_F."""
    if not bool(torch.isfinite(W).all()):
        raise InputError("weights that are not finite", expected="finite numbers")
    wide = W.double()
    if start == "olora":
        Q, R = torch.linalg.qr(wide)
        return Q[:, :rank], R[:rank], float((Q @ R - wide).norm() / wide.norm().clamp(min=1e-300))
    smallest = start in ("milora", "mica", "corda-kpm")
    M, undone = wide, None
    if metric is not None:
        # The moments are C = F Fᵀ, of which the metric knows Fᵀ X and F^−ᵀ X.
        identity = torch.eye(W.shape[1], dtype=torch.float64)
        M = metric.weigh(wide.T).T @ metric.weigh(identity)
        undone = metric.undo(identity)
    found = svd(M, rank, which="smallest" if smallest else "largest", generator=generator)
    if found.left is None or found.right is None or found.residuals is None:
        raise InputError("the decomposition gave no vectors")
    size = float(M.norm())
    residual = float(found.residuals.max()) / size if size else 0.0
    if start == "mica":
        return found.left, torch.zeros(rank, W.shape[1], dtype=torch.float64), residual
    roots = (found.values / scale).sqrt()
    right = found.right if undone is None else undone @ (undone.T @ found.right)
    return found.left * roots, (right * roots).T, residual


def _facts(target: Target, dtype: str) -> dict[str, Value]:
    return {
        "name": target.module, "layer": target.layer, "role": target.role, "kind": target.kind,
        "rows": target.sides[0], "cols": target.sides[1], "dtype": dtype, "rank": 0, "parameters": 0, "bytes": 0,
    }  # fmt: skip


def _assembled(
    checkpoint: Checkpoint, options: InitOptions, found: Targets,
    done: Mapping[str, tuple[AdapterLayer | None, Record]], seconds: tuple[float, float],
) -> InitialAdapter:  # fmt: skip
    made = [done[target.module] for target in found.targets]
    layers = {layer.module: layer for layer, _ in made if layer is not None}
    records = tuple(record for _, record in made)
    if not layers:
        raise InputError(f"no layer is left: {records[0].readings['status']}", where=checkpoint.source)
    config: dict[str, Any] = {"task_type": task_of(checkpoint), "base_model_name_or_path": named_base(checkpoint)}
    if options.start == "mica":
        # PEFT then keeps B fixed. It decomposes the base once more before it reads these factors.
        config["init_lora_weights"] = "mica"
    refused = tuple(
        Coverage(name, checkpoint.tensors[name].shape, checkpoint.tensors[name].dtype, "not readable", reason, 0)
        for name, reason in found.refused.items() if name in checkpoint.tensors
    )  # fmt: skip
    provenance = {
        **versions(), **asdict(options), "notes": "; ".join(found.notes), "wall seconds": round(seconds[0], 3),
        "CPU seconds": round(seconds[1], 3),
    }  # fmt: skip
    run = Run("adapter init", checkpoint.source, records, refused, provenance)
    adapter = InitialAdapter(AdapterFile(layers, config, {}, checkpoint.source), run, found.modules)
    adapter.base, adapter.start = checkpoint, options.start
    return adapter
