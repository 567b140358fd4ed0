"""The verb ``svd``: plan, decompose, solve, write, print."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from eigenscope.cli.files import check_page
from eigenscope.columns import BY_NAME, Column
from eigenscope.engine.export import plain
from eigenscope.errors import ConvergenceWarning, InputError
from eigenscope.models.matrix_file import MatrixFile, open_matrix
from eigenscope.operators.arrays import as_operator
from eigenscope.report import text
from eigenscope.report.cells import format_value, significant
from eigenscope.tasks.decompose import DecomposeOptions, Decomposition, check_save, make_plan, run_plan
from eigenscope.tasks.matrix_readings import real_format
from eigenscope.tasks.pca import Components
from eigenscope.tasks.solve import Solution, solve

SHOWN = 20
"""Singular values printed; JSON and the saved factors hold all."""
PICTURED = 1024
"""Small side up to which all vectors are computed for the sake of the picture."""
TABLE = (
    Column("i", "i", "count", "Index."), Column("σ", "σ", "number", "Singular value."),
    Column("error ≤", "error ≤", "number", "Residual of the triplet, or bound on the error of the value."),
    Column("energy", "energy", "share", "Share of ‖A‖F² that the values up to this one keep."),
)  # fmt: skip


@dataclass(frozen=True)
class SvdWanted:
    """What the command line asks for besides the decomposition.

    Attributes:
        save: file of the factors.
        right_hand_side: matrix file of B, to solve A X ≈ B.
        ridge, target_condition: of that, at most one of them.
        picture: page with the picture alone.
        report: the page.
        json: print JSON.
        plan: print the plan and stop.
        quiet: no progress.
    """

    save: Path | None
    right_hand_side: str | None
    ridge: float | None
    target_condition: float | None
    picture: Path | None
    report: Path | None
    json: bool
    plan: bool
    quiet: bool


def run_svd(source: str, options: DecomposeOptions, wanted: SvdWanted) -> None:
    """Do what the command line asked for. What would fail at the end is found out before the work.

    Raises:
        InputError, SourceError: as for :func:`eigenscope.tasks.decompose.decompose`.
    """
    pictured = wanted.picture is not None or wanted.report is not None
    solving = wanted.right_hand_side is not None
    _check_solving(options, wanted)
    asked = options.k is not None or options.share is not None
    options = replace(options, vectors=solving or (not asked and (wanted.save is not None or options.vectors)))
    plan = make_plan(source, options)
    if pictured and not asked and plan.matrix.shape is not None and min(plan.matrix.shape) <= PICTURED:
        plan = replace(plan, options=replace(options, vectors=True))
    for page in (wanted.picture, wanted.report):
        if page is not None:
            check_page(page, None)
    if wanted.save is not None:
        check_save(wanted.save, complex_factors=plan.matrix.dtype.startswith("complex"))
    if wanted.plan:
        lines = plan.lines() | ({"solve": f"with {wanted.right_hand_side}"} if solving else {})
        _print_json(lines) if wanted.json else text.print_plan(lines)
        return
    if solving and plan.streamed:
        raise InputError("--solve of a matrix that is read in blocks", where=source, expected="one that fits in memory")
    b = open_matrix(wanted.right_hand_side, vector=True) if wanted.right_hand_side is not None else None
    with text.ProgressBar(quiet=wanted.quiet) as bar, warnings.catch_warnings():
        # The text and the JSON both say how many values did not converge.
        warnings.simplefilter("ignore", ConvergenceWarning)
        result = run_plan(plan, lambda event: bar.update(event.done, event.total, event.label))
    solution = None if b is None else _solved(result, b, plan.matrix.dtype, wanted, options.seed)
    if wanted.save is not None:
        result.save(wanted.save, solution)
    if pictured:
        from eigenscope.report import svd_page

        if wanted.picture is not None:
            svd_page.write_picture(result.figure(), wanted.picture, result.source)
        if wanted.report is not None:
            svd_page.write_page(
                result.record, result.figure(), facts(result, solution), result.provenance, wanted.report
            )
    if wanted.json:
        _print_json(content(result, solution))
        return
    _print(result, solution)
    for path in (wanted.save, wanted.picture, wanted.report):
        if path is not None:
            print(path)


def _check_solving(options: DecomposeOptions, wanted: SvdWanted) -> None:
    if wanted.right_hand_side is None:
        if wanted.ridge is not None:
            raise InputError("--ridge without --solve", expected="--solve B, the right-hand side")
        return
    if wanted.ridge is not None and wanted.target_condition is not None:
        raise InputError("--ridge and --target-condition", expected="one of them")
    if options.pca:
        raise InputError("--solve with --pca", expected="one of them")
    if options.k is not None or options.share is not None:
        raise InputError("--solve with -k, --energy or --error", expected="all singular values", remedy="leave it out")


def _solved(result: Decomposition, b: MatrixFile, dtype: str, wanted: SvdWanted, seed: int) -> Solution:
    if result.matrix is None:
        raise InputError("the matrix was not kept in memory", where=result.source)
    try:
        right_hand_side = as_operator(b.load()).to_dense()
        return solve(
            result.matrix, result.spectrum, right_hand_side, ridge=wanted.ridge, target_condition=wanted.target_condition,
            dtype=real_format(dtype), seed=seed,
        )  # fmt: skip
    except InputError as error:
        where = b.source if error.where in ("", "matrix") else error.where
        raise InputError(error.what, where=where, expected=error.expected, remedy=error.remedy) from error


def facts(result: Decomposition, solution: Solution | None = None) -> dict[str, str]:
    """Everything but the list of values, in words, in the order in which it is read."""
    r, spectrum = result.readings, result.spectrum
    rows, cols = spectrum.shape
    lines = {"matrix": f"{result.source}: {rows}×{cols}, {r['dtype']}"}
    if r.get("density") is not None:
        lines["not 0"] = f"{_shown('density', r['density'])} of the entries"
    lines |= {"note" if i == 0 else f"note {i + 1}": note for i, note in enumerate(result.notes)}
    lines["method"] = f"{spectrum.method}: {spectrum.reason}"
    errors = spectrum.bounds if spectrum.residuals is None else spectrum.residuals
    largest = float(spectrum.values[0])
    kind = "error bound" if spectrum.residuals is None else "residual"
    if largest > 0.0:
        missed = int((~spectrum.converged).sum())
        lines["accuracy"] = f"{kind} ≤ {significant(float(errors.max()) / largest, 2)}·σ max" + (
            f"; {missed} of {len(spectrum)} values not within the tolerance" if missed else ""
        )
    for name in ("sigma_max", "sigma_min", "frobenius"):
        if r.get(name) is not None:
            lines["‖A‖F" if name == "frobenius" else BY_NAME[name].label] = _shown(name, r[name])
    if r.get("condition") is not None:
        lost = f", {_shown('digits_lost', r['digits_lost'])} digits lost in solving"
        lines["κ"] = _shown("condition", r["condition"]) + (lost if r["condition"] != float("inf") else "")
    if r.get("numerical_rank") is not None:
        threshold = _shown("sigma_max", r["rank_threshold"])
        lines["numerical rank"] = f"{r['numerical_rank']} of {min(rows, cols)}: values above {threshold}"
    for name in ("stable_rank", "effective_rank", "participation"):
        if r.get(name) is not None:
            lines[BY_NAME[name].label] = _shown(name, r[name])
    if r.get("rank_90") is not None:
        lines["rank 90/95/99 %"] = " / ".join(str(r[f"rank_{share}"]) for share in (90, 95, 99))
    if r.get("ridge"):
        lines["ridge λ"] = f"{_shown('ridge', r['ridge'])} brings κ to the target"
    if r.get("noise_verdict") and result.components is None:
        above = (
            f"; {r['noise_rank']} values above its edge {_shown('sigma_max', r['noise_edge'])}"
            if r.get("noise_edge")
            else ""
        )
        lines["noise"] = f"{r['noise_verdict']}{above}"
    if result.error is not None:
        lines["low-rank error"] = f"{significant(result.error)}·‖A‖F with {len(spectrum)} values"
    if r.get("status") not in ("ok", None):
        lines["look at"] = str(r["status"])
    return lines | _of_components(result.components) | _of_solution(solution)


def _of_components(found: Components | None) -> dict[str, str]:
    if found is None:
        return {}
    shares = [f"{significant(100 * float(share), 3)} %" for share in found.explained_variance_ratio[:8]]
    lines = {"variance explained": ", ".join(shares) + (", …" if len(found.explained_variance_ratio) > 8 else "")}
    if found.needed:
        lines["components for"] = ", ".join(f"{share} %: {count}" for share, count in found.needed.items())
    count = "not told by the spectrum" if found.suggested is None else str(found.suggested)
    lines["components to keep"] = f"{count} ({found.method})"
    return lines


def _of_solution(found: Solution | None) -> dict[str, str]:
    if found is None:
        return {}
    worst = [
        float(part.max(initial=0.0))
        for part in (found.residual, found.outside, found.predicted, found.worst, found.seen)
    ]
    residual, outside, predicted, for_b, seen = (significant(value, 3) for value in worst)
    columns = "" if len(found.residual) == 1 else f" (largest of {len(found.residual)} columns)"
    ridge = f", ridge λ = {significant(found.ridge)}" if found.ridge else ""
    return {
        "solution": f"{found.x.shape[0]}×{found.x.shape[1]} from {found.rank} singular values{ridge}",
        "residual": f"‖Ax − b‖ = {residual}·‖b‖{columns}, of which no x reaches {outside}",
        "amplification": f"errors of b grow at most {predicted}-fold by κ = {significant(found.condition, 3)}, {for_b}-fold for this "
                         f"b; seen {seen}-fold, the worst of {found.probes} random errors",
    }  # fmt: skip


def _shown(name: str, value: Any) -> str:
    column = BY_NAME.get(name) or Column(name, name, "share", "Share of the entries.")
    return format_value(column, value)


def _print(result: Decomposition, solution: Solution | None) -> None:
    spectrum = result.spectrum
    values = spectrum.values.numpy()
    errors = (spectrum.bounds if spectrum.residuals is None else spectrum.residuals).numpy()
    total = spectrum.frobenius or 0.0
    energy = np.cumsum((values / total) ** 2) if total else np.ones(len(values))
    rows = [(i + 1, float(values[i]), float(errors[i]), float(energy[i])) for i in range(min(SHOWN, len(values)))]
    text.print_plan(facts(result, solution))
    print()
    text.print_rows(TABLE, rows)
    if len(values) > SHOWN:
        print(f"… and {len(values) - SHOWN:,} more")


def content(result: Decomposition, solution: Solution | None) -> dict[str, Any]:
    """The whole result as plain values."""
    spectrum = result.spectrum
    found: dict[str, Any] = {
        "verb": "svd", "source": result.source, "readings": dict(result.readings), "notes": list(result.notes),
        "values": spectrum.values.tolist(), "bounds": spectrum.bounds.tolist(),
        "residuals": None if spectrum.residuals is None else spectrum.residuals.tolist(),
        "converged": spectrum.converged.tolist(), "relative_error": result.error, "provenance": dict(result.provenance),
    }  # fmt: skip
    if (c := result.components) is not None:
        found["pca"] = {
            "explained_variance": c.explained_variance.tolist(), "total_variance": c.total_variance,
            "explained_variance_ratio": c.explained_variance_ratio.tolist(), "suggested": c.suggested, "method": c.method,
            "needed": {str(share): count for share, count in c.needed.items()}, "noise_edge": c.noise_edge,
        }  # fmt: skip
    if solution is not None:
        found["solve"] = {
            "ridge": solution.ridge, "rank": solution.rank, "condition": solution.condition, "probes": solution.probes,
            **{name: getattr(solution, name).tolist() for name in ("residual", "outside", "predicted", "worst", "seen")},
        }  # fmt: skip
    return found


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(plain(value), indent=1, allow_nan=False, default=str) + "\n")
