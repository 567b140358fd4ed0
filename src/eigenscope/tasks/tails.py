"""The power-law tail of one matrix, as columns of the table."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eigenscope.measures import tail, tail_tests
from eigenscope.methods import exact
from eigenscope.results import Value

SHARE = 10
"""Each copy of ``alpha_stability`` lacks one vector in this many."""
BLOCKS = 8
"""Blocks of ``alpha_fixed_aspect``, at most."""
LAWS = {"log-normal": "lr_lognormal", "exponential": "lr_exponential", "truncated power law": "lr_truncated"}


def tail_readings(
    W: Tensor,
    values: NDArray[np.float64],
    *,
    floor: float,
    tests: int,
    stability: int,
    fixed_aspect: float,
    generator: np.random.Generator,
) -> dict[str, Value]:
    """The columns of the tail and of the decay; what is not asked for, or not defined, is absent or None.

    ``alpha_stability``: plain standard deviation of α over copies of the matrix that each lack a random tenth of the
    vectors of its longer side: columns of a wide or square matrix, rows of a tall one. The shorter side stays whole, so
    that every copy has as many singular values as the matrix, and one that is transposed reads the same. Ten copies leave
    every vector out once. It says how far α hangs on a few vectors, the choice of the cut-off included. It is no
    standard error: the copies share nine tenths of the entries. (The delete-a-group jackknife of Kott, J. Official
    Statistics 17(4), 2001, would multiply it by (G − 1)/√G = 2.8, for vectors drawn from a population; rows of a
    trained matrix are not.)

    ``alpha_fixed_aspect``: mean and standard deviation of α over blocks of one aspect ratio; see
    :func:`eigenscope.measures.tail.fixed_aspect_blocks`. As many as cover the matrix with least overlap, at most
    :data:`BLOCKS`, evenly spread; one block is the matrix itself, and has no spread.

    Args:
        W: (m, n), of any format that ``exact.singular_values`` takes.
        values: (min(m, n),) its singular values, descending.
        floor: eigenvalues up to floor·λ_max count as rounding; also in the copies and blocks.
        tests: synthetic spectra for ``alpha_p``; with more than 0 the likelihood ratios are given too.
        stability: copies for ``alpha_stability``; fewer than 2 give none.
        fixed_aspect: aspect ratio of the blocks, 0 for none. Blocks lie as the matrix does: Q and 1/Q are the same.
        generator: chooses synthetic spectra and the vectors left out; its state is advanced.

    Raises:
        InputError: values that are no spectrum, or a floor outside [0, 1).
    """
    law = tail.decay(values, floor)
    readings: dict[str, Value] = {"decay": law and law[0], "decay_r2": law and law[1]}
    found = tail.fit_tail(values, floor)
    if found is None:
        return readings | {"alpha": None, "alpha_verdict": tail.NO_TAIL}
    readings |= {
        "alpha": found.alpha,
        "alpha_stderr": found.stderr,
        "alpha_tail": found.size,
        "alpha_cutoff": found.cutoff,
        "alpha_ks": found.ks,
        "alpha_verdict": found.verdict,
    }
    if tests > 0:
        readings |= _tests(values, found, tests, generator, floor)
    if stability > 1:
        spread = tail.aggregate([_tail_of(copy, floor) for copy in thinned_copies(W, stability, generator)])
        readings["alpha_stability"] = spread.spread if spread else None
    if fixed_aspect > 0.0:
        spread = tail.aggregate([_tail_of(block, floor) for block in _blocks(W, fixed_aspect)])
        readings["alpha_fixed_aspect"] = spread.mean if spread else None
        readings["alpha_fixed_aspect_spread"] = spread.spread if spread else None
    return readings


def _tests(
    values: NDArray[np.float64], found: tail.Tail, samples: int, generator: np.random.Generator, floor: float
) -> dict[str, Value]:
    estimate = tail_tests.p_value(values, samples, generator, floor)
    readings: dict[str, Value] = {}
    if estimate is not None:
        readings = {"alpha_p": estimate.value, "alpha_p_stderr": estimate.stderr}
    for law, result in tail_tests.compare(values, found).items():
        readings |= {LAWS[law]: result.normalized, f"{LAWS[law]}_p": result.p}
    return readings


def thinned_copies(W: Tensor, copies: int, generator: np.random.Generator) -> Iterator[Tensor]:
    """Copies of W that each lack a random tenth of its longer side, every ten of them another tenth.

    Args:
        W: (m, n).
        copies: how many. A side of fewer than ten vectors gives copies that lack one vector each.
        generator: shuffles the vectors, once for every ten copies.
    """
    side = 0 if W.shape[0] > W.shape[1] else 1
    long = W.shape[side]
    groups: list[NDArray[np.intp]] = []
    for _ in range(copies):
        if not groups:
            groups = np.array_split(generator.permutation(long), min(SHARE, long))
        kept = np.setdiff1d(np.arange(long), groups.pop())
        yield W.index_select(side, torch.from_numpy(kept).to(W.device))


def _blocks(W: Tensor, aspect: float) -> Iterator[Tensor]:
    rows, cols = W.shape
    aspect = max(aspect, 1.0 / aspect)
    long, short = max(rows, cols), min(rows, cols)
    cover = math.ceil(max(long / (short * aspect), short * aspect / long))
    for down, across in tail.fixed_aspect_blocks((rows, cols), aspect, min(cover, BLOCKS)):
        yield W[down, across]


def _tail_of(W: Tensor, floor: float) -> tail.Tail | None:
    return tail.fit_tail(exact.singular_values(W).values.numpy(), floor)
