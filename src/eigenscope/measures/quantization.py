"""Whether the entries of a matrix take a few levels only, and what that rounding adds to its singular values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

BLOCK = 32
"""Entries along a row that share a scale in every common 4-bit format, or divide those that do."""
LEVELS = 16
ROWS = 64
BLOCKS = 512
"""About how many blocks the step is measured on: enough for a standard error of a per cent."""
MOSTLY = 0.95
FEWEST_ENTRIES = 24
"""Entries of a block that are not 0: a block of zeros has few levels, too, and is not quantised."""


@dataclass(frozen=True)
class Quantization:
    """Rounding to a few levels, estimated from sampled blocks.

    Attributes:
        step: root mean square distance between neighbouring levels, over the entries.
        error: standard deviation of the rounding error of an entry: step/√12.
        stderr: standard error of ``error`` over the blocks.
        floor: about the largest singular value of a matrix of such errors: error·(√m + √n).
        levels: most levels seen in a block.
    """

    step: float
    error: float
    stderr: float
    floor: float
    levels: int


def find_levels(W: Tensor) -> Quantization | None:
    """The quantisation of a matrix whose blocks of 32 entries along a row take at most 16 values; None of others.

    The rounding error of an entry between equidistant levels is taken as uniform over one step, hence of variance
    step²/12, and independent of the others (Bennett, Bell Syst. Tech. J. 27, 1948; Widrow & Kollár, Quantization Noise,
    2008, ch. 4). A matrix of such errors has a norm of about √m + √n standard deviations (Davidson & Szarek, Handbook of
    the Geometry of Banach Spaces 1, 2001, Theorem II.13; for entries with four moments, Latała, Proc. AMS 133, 2005).

    Args:
        W: (m, n), any floating dtype of more than 8 bits; a sample of rows is read.
    """
    rows, cols = W.shape
    width = cols - cols % BLOCK
    if width == 0 or W.is_complex() or W.element_size() == 1:
        return None
    chosen = np.linspace(0, rows - 1, min(rows, ROWS)).round().astype(int)
    # A quick look at a few rows spares the rest of them for almost every matrix.
    if not _is_coarse(_blocks(W, chosen[:: max(1, len(chosen) // 4)], width)):
        return None
    blocks = _blocks(W, chosen, width)
    if not _is_coarse(blocks):
        return None
    variance = np.mean(_cell_widths(blocks) ** 2, axis=1) / 12.0
    error = math.sqrt(float(variance.mean()))
    spread = float(variance.std(ddof=1)) / math.sqrt(len(variance)) if len(variance) > 1 else math.inf
    return Quantization(
        step=error * math.sqrt(12.0),
        error=error,
        stderr=spread / (2.0 * error) if error else 0.0,
        floor=error * (math.sqrt(rows) + math.sqrt(cols)),
        levels=int(_levels(blocks).max()),
    )


def _blocks(W: Tensor, rows: NDArray[np.int_], width: int) -> Array:
    """(b, 32) blocks of few zeros, each sorted, float64; no more than about :data:`BLOCKS`, evenly spread."""
    blocks: Array = W[rows.tolist(), :width].double().cpu().numpy().reshape(-1, BLOCK)
    blocks = blocks[np.count_nonzero(blocks, axis=1) >= FEWEST_ENTRIES]
    return np.sort(blocks[:: max(1, len(blocks) // BLOCKS)], axis=1)


def _levels(blocks: Array) -> NDArray[np.int_]:
    levels: NDArray[np.int_] = np.count_nonzero(blocks[:, 1:] > blocks[:, :-1], axis=1) + 1
    return levels


def _is_coarse(blocks: Array) -> bool:
    # A constant block has one level; a matrix of constant blocks is a pattern, not a rounding.
    if not len(blocks):
        return False
    levels = _levels(blocks)
    return float(np.mean(levels <= LEVELS)) >= MOSTLY and float(np.mean(levels > 1)) >= MOSTLY


def _cell_widths(blocks: Array) -> Array:
    """(b, 32) width of the interval that each entry was rounded from.

    Where all gaps of a block are multiples of the smallest, that is the step and the others are unused levels. Else
    (levels placed by quantiles) it is half the distance between the two neighbouring levels.
    """
    gaps = np.diff(blocks, axis=1)
    step = np.where(gaps > 0.0, gaps, np.inf).min(axis=1, keepdims=True)
    multiples = gaps / step  # 0 within a level, and throughout a constant block
    even = np.all(np.abs(multiples - multiples.round()) <= 0.02 * multiples, axis=1) & np.isfinite(step[:, 0])
    widths = np.where(even[:, None], step, 0.0) * np.ones_like(blocks)
    for row in np.flatnonzero(~even):
        levels, places = np.unique(blocks[row], return_inverse=True)
        between = np.diff(levels)
        if len(between):
            widths[row] = np.concatenate([between[:1], (between[1:] + between[:-1]) / 2.0, between[-1:]])[places]
    return widths
