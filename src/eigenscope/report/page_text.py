"""A run → the sentences and lists of its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eigenscope.report import compare
from eigenscope.report.cells import MISSING, significant, visible
from eigenscope.report.layouts import layout_of
from eigenscope.report.series import medians
from eigenscope.report.summary import OUTCOMES, change_of, counted, duration, summarize
from eigenscope.results import Run


def outcomes(run: Run) -> list[dict[str, Any]]:
    """The tensors of the source by outcome and reason."""
    summary = summarize(run)
    return [
        {
            "outcome": outcome, "tensors": summary.outcomes[outcome],
            "groups": [
                {"reason": visible(group.reason), "matrices": group.matrices,
                 "changes": any(map(change_of, group.tensors)), "tensors": [
                    {"name": visible(entry.tensor), "shape": "×".join(map(str, entry.shape)) or "scalar",
                     "dtype": visible(entry.dtype), "matrices": entry.matrices, "change": change_of(entry)}
                    for entry in group.tensors
                ]}
                for group in summary.groups if group.outcome == outcome
            ],
        }
        for outcome in OUTCOMES if summary.outcomes[outcome]
    ]  # fmt: skip


def sentences(run: Run) -> list[str]:
    """The run in a paragraph."""
    summary, layout = summarize(run), layout_of(run)
    lines = [
        f"{counted(summary.measured, layout.matrix, layout.matrices)} with {summary.share} "
        f"{'was' if summary.measured == 1 else 'were'} {layout.done}"
        + (f" in {duration(summary.seconds)}." if summary.seconds is not None else ".")
    ]
    if summary.worst is not None:
        bound = significant(summary.worst[0], 2).replace("-", "\u2011")  # no line may end inside 6e-9
        lines.append(f"No singular value is off by more than {bound} of its matrix’s largest.")
    left = summary.outcomes["not readable"]
    missed = summary.matrices - summary.measured
    if left:
        lines.append(f"{counted(left, 'tensor')} could not be read; the reasons are under Coverage.")
    if missed:
        lines.append(f"{counted(missed, 'matrix', 'matrices')} could not be measured.")
    if not left and not missed:
        lines.append("Every matrix could be read.")
    return lines


def provenance(run: Run) -> list[tuple[str, str]]:
    """How the run was made, as pairs of text."""
    lines = [(visible(key), _plain(value)) for key, value in run.provenance.items()]
    worst = summarize(run).worst
    if worst is not None:
        bound = f"every singular value within {significant(worst[0], 2)} · σ max; the worst is {visible(worst[1])}"
        lines.append(("error bounds", bound))
    return lines


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        value = [f"{key}: {item}" for key, item in value.items()]
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    return visible(value) if value not in ("", None) else MISSING


def comparison(run: Run, others: Sequence[Run], steps: Sequence[Run] = ()) -> dict[str, Any] | None:
    """Which runs are compared, what differs between them, and which matrices each has alone."""
    if not others:
        return None
    runs = (run, *others)
    names = compare.letters(len(runs))
    pairings = [compare.pair(run, other) for other in others]
    return {
        "runs": [{"letter": name, "title": compare.title(each), "source": visible(each.source),
                  "made": f"eigenscope {compare.version(each)}", "matrices": len(each.records), "verdict": visible(each.verdict)}
                 for name, each in zip(names, runs, strict=True)],
        "warnings": compare.differences(runs),
        "medians": [_medians("Since the first checkpoint" if steps else "Medians over the runs", names, runs)] + (
            [_medians("Step by step", [compare.title(step) for step in steps], steps)] if len(steps) > 1 else []
        ),
        "pairings": [
            {
                "letter": name, "matched": pairing.matched,
                "lists": [(f"only in {letter}", [visible(each) for each in found]) for letter, found in (
                    (names[0], pairing.only_first), (name, pairing.only_second)
                )] + [("of different shape", [visible(each) for each in pairing.reshaped])],
            }
            for name, pairing in zip(names[1:], pairings, strict=True)
        ],
    }  # fmt: skip


def _medians(title: str, heads: Sequence[str], runs: Sequence[Run]) -> dict[str, Any]:
    found = medians(runs)
    rows = list(zip(found.labels, found.cells, strict=True))
    verdicts = [(head, visible(run.verdict)) for head, run in zip(heads, runs, strict=True) if run.verdict]
    return {"title": title, "heads": list(heads), "rows": rows, "matrices": len(found.names), "verdicts": verdicts}
