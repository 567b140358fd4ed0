"""One weight of two checkpoints → the factors of its change, their error as written, and the least error possible."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eigenscope.errors import EigenscopeError, InputError
from eigenscope.methods import dora, exact
from eigenscope.methods.truncated import EXACT, EXCESS, Truncated, norm_of, residual, truncated
from eigenscope.methods.whitening import Metric
from eigenscope.models.checkpoint import Checkpoint
from eigenscope.models.peft import AdapterLayer, as_map
from eigenscope.results import Record, Value
from eigenscope.tasks.adapter_targets import Target

FAILURES = (EigenscopeError, ArithmeticError, RuntimeError, ValueError, OSError, MemoryError)
WRITTEN = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
RETRIES = 8


@dataclass(frozen=True)
class Wish:
    """What is asked of one layer; one of rank, energy and error is given.

    Attributes:
        rank: r, cut to min(m, n).
        energy: least share of ‖ΔW‖_F² to keep.
        error: largest ‖ΔW − BA‖_F/‖ΔW‖_F.
        dora: fit DoRA's form.
        dtype: of the factors; "" for the tuned checkpoint's.
        seed: of the sketch.
    """

    rank: int | None = None
    energy: float | None = None
    error: float | None = None
    dora: bool = False
    dtype: str = ""
    seed: int = 0


@dataclass(frozen=True)
class Extracted:
    """The factors of one layer, or None where it is left out, and its row."""

    layer: AdapterLayer | None
    record: Record


def extract_layer(base: Checkpoint, tuned: Checkpoint, target: Target, wish: Wish, metric: Metric | None) -> Extracted:
    """The factors of one change. What cannot be read or decomposed gives a row that says why."""
    facts: dict[str, Value] = {
        "name": target.module, "layer": target.layer, "role": target.role, "kind": target.kind,
        "rows": target.sides[0], "cols": target.sides[1], "dtype": written_dtype(target, wish.dtype), "rank": 0,
        "parameters": 0, "bytes": 0,
    }  # fmt: skip
    try:
        layer, readings, values = _extract(base, tuned, target, wish, metric)
    except FAILURES as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        return Extracted(None, Record(target.module, facts | {"status": f"left out: {reason}"}))
    return Extracted(layer, Record(target.module, facts | readings, values))


def written_dtype(target: Target, asked: str) -> str:
    """The format of the factors: as asked, or as the tuned checkpoint stores the weight, but no wider than float32."""
    return asked or (target.dtype if target.dtype in WRITTEN else "float32")


def change_of(base: Checkpoint, tuned: Checkpoint, target: Target) -> tuple[Tensor, Tensor]:
    """(m, n) W and ΔW in float32, formed in the wider of the storage formats.

    Raises:
        InputError: the change is not finite.
    """
    first, second = base.read(target.base), tuned.read(target.tuned)
    if torch.equal(first[:1], second[:1]) and torch.equal(first, second) and bool(torch.isfinite(first).all()):
        return as_map(first, target.kind), torch.zeros(()).expand(target.sides)
    W, T = as_map(first, target.kind), as_map(second, target.kind)
    wide = torch.float64 if torch.float64 in (W.dtype, T.dtype) else torch.float32
    D = (T.to(wide) - W.to(wide)).float()
    # The norm is not finite where an entry is not, and costs less than looking at each.
    if not math.isfinite(norm_of(D)):
        counts = [f"{int((~torch.isfinite(x)).sum()):,} of the {side}'s" for side, x in (("base", W), ("tuned one", T))]
        raise InputError(f"the change is not finite: {' and '.join(counts)} entries are NaN or infinite")
    return W.float(), D


def spectrum_of_change(
    base: Checkpoint, tuned: Checkpoint, target: Target, metric: Metric | None
) -> NDArray[np.float64]:
    """Singular values of ΔW (in the metric of its inputs), descending; none where nothing changed or it is not finite."""
    try:
        D = _weighted(change_of(base, tuned, target)[1], metric)
        return _values(D) if norm_of(D) else np.zeros(0)
    except FAILURES:
        return np.zeros(0)


def _values(D: Tensor) -> NDArray[np.float64]:
    values: NDArray[np.float64] = exact.singular_values(D, tol=exact.DEFAULT_TOLERANCE).values.numpy()
    return values


def _weighted(D: Tensor, metric: Metric | None) -> Tensor:
    return D if metric is None else metric.weigh(D.T.double()).T.float()


def _extract(
    base: Checkpoint, tuned: Checkpoint, target: Target, wish: Wish, metric: Metric | None
) -> tuple[AdapterLayer | None, dict[str, Value], NDArray[np.float64] | None]:
    W, D = change_of(base, tuned, target)
    size = norm_of(D)
    if not size:
        return None, {"status": "unchanged", "relative_change": 0.0}, None
    M = _weighted(D, metric)
    sizes = [norm_of(W), size, size if metric is None else norm_of(M)]
    readings: dict[str, Value] = {"relative_change": sizes[1] / sizes[0] if sizes[0] else float("inf")}
    rank = min(_rank(M, wish), *D.shape)
    if rank == 0:
        return None, readings | {"status": "left out: rank 0 after the cut", "error": 1.0, "energy": 0.0}, None
    generator = torch.Generator().manual_seed(wish.seed)
    for attempt in range(RETRIES):
        found = truncated(M, rank, generator=generator, frobenius=sizes[2])
        layer, measured = _written(W, D, M, found, target, wish, metric, sizes)
        wanted = (
            wish.error if wish.error is not None else (1.0 - wish.energy) ** 0.5 if wish.energy is not None else None
        )
        met = wanted is None or float(measured["output_error" if metric else "error"] or 0.0) <= wanted
        if met or attempt == RETRIES - 1 or rank == min(D.shape):
            break
        rank = min(rank + max(1, rank // 50), *D.shape)
    status = _status(found, met)
    plain = measured.get("lora_error")
    if isinstance(plain, float) and float(measured["error"] or 0.0) > plain + EXACT and status == "ok":
        status = "DoRA's form is no better than a plain LoRA here: its magnitudes are rounded"
    return layer, readings | measured | {"method": found.method, "status": status}, found.values.numpy()


def _rank(M: Tensor, wish: Wish) -> int:
    """The least rank that keeps the energy, or leaves no more than the error."""
    if wish.rank is not None:
        return wish.rank
    allowed = wish.error**2 if wish.error is not None else 1.0 - (wish.energy or 0.0)
    squares = (_values(M) / float(M.abs().max())) ** 2
    tails = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
    return int(np.argmax(tails <= allowed * tails[0]))


def _written(
    W: Tensor,
    D: Tensor,
    M: Tensor,
    found: Truncated,
    target: Target,
    wish: Wish,
    metric: Metric | None,
    sizes: list[float],
) -> tuple[AdapterLayer, dict[str, Value]]:
    """The layer in its format, and what it leaves out, measured from the rounded factors."""
    dtype = WRITTEN[written_dtype(target, wish.dtype)]
    rank = found.left.shape[1]
    left, right, magnitude = found.left, found.right, None
    if metric is not None:
        right = metric.undo(right.double())
    readings: dict[str, Value] = {"optimal_error": found.least / sizes[2]}
    if wish.dora:
        fitted = dora.fit_direction(W, W + D, found, rank, generator=torch.Generator().manual_seed(wish.seed))
        left, right = fitted.left, fitted.right
    B, A = left.to(dtype), right.to(dtype).T.contiguous()
    _check_rounded(B, A, str(dtype))
    if wish.dora:
        magnitude = dora.magnitudes(W, W + D, B.float(), A.float().T).to(dtype)
        error = dora.error_of(W, W + D, B.float(), A.float().T, magnitude) / sizes[1]
        plain = residual(D, found.left.to(dtype), found.right.to(dtype), sizes[1]) / sizes[1]
        readings["lora_error"] = plain
    elif metric is None and dtype == torch.float32:
        error = found.error / sizes[1]  # of these very factors
    else:
        error = residual(D, B, A.T, sizes[1]) / sizes[1]
    if metric is not None:
        readings["output_error"] = residual(M, B, metric.weigh(A.T.double()), sizes[2]) / sizes[2]
    layer = AdapterLayer(target.module, target.kind, B.contiguous(), A, 1.0, magnitude, target.shape)
    return layer, readings | {
        "rank": rank, "error": error, "energy": max(0.0, 1.0 - error**2), "parameters": layer.parameters,
        "bytes": layer.nbytes,
    }  # fmt: skip


def _check_rounded(B: Tensor, A: Tensor, dtype: str) -> None:
    if not bool(torch.isfinite(B).all() and torch.isfinite(A).all()):
        raise InputError(
            f"the factors overflow {dtype}", expected="factors within its range", remedy="use --dtype float32"
        )


def _status(found: Truncated, met: bool) -> str:
    if not met:
        return "the target is not met: the format of the factors is too coarse; use --dtype float32"
    if found.certified or found.error <= EXACT * found.frobenius:
        return "ok"
    excess = (found.error - found.least) / found.frobenius
    return f"not certified to {EXCESS:.0e}: the error is at most {excess:.1e}·‖ΔW‖ above the least"
