"""The power-law tail of one matrix, as columns of the table."""

from __future__ import annotations

from typing import Any

from eigenscope.measures import tail
from eigenscope.results import Value


def tail_readings(
    W: Any, values: Any, *, floor: float, tests: int, stability: int, fixed_aspect: float, generator: Any
) -> dict[str, Value]:
    """The columns of the tail and of the decay."""
    found = tail.fit_tail(values, floor)
    if found is None:
        return {"alpha_verdict": tail.NO_TAIL}
    d = tail.decay(values, floor)
    return {
        "alpha": found.alpha,
        "alpha_stderr": found.stderr,
        "alpha_tail": found.size,
        "alpha_cutoff": found.cutoff,
        "alpha_ks": found.ks,
        "alpha_verdict": found.verdict,
        "decay": d and d[0],
        "decay_r2": d and d[1],
    }
