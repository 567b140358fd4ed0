"""The power-law tail of the eigenvalues λ = σ² of a weight matrix: exponent, error, and whether there is one.

Everything is computed on log(λ/λ_max), so that multiplying a matrix by a number changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eigenscope.errors import InputError

Array = NDArray[np.float64]

NO_TAIL = "not identifiable: fewer than 3 values above rounding that differ"
"""The verdict where ``fit_tail`` returns None."""
MINIMUM_SIZE = 50
"""Values in a tail that can be judged: below about 50 exponents are unreliable (Clauset et al. 2009, §3)."""
MINIMUM_SPAN = 2.0
"""λ_max/x_min of a tail that can be judged: over less than an octave a power law and an exponential coincide."""
CV_CRITICAL = 1.6
"""Bound on √(n−1)·|ln CV|: see :func:`judge`."""
KS_CRITICAL = 0.86
"""Bound on √n·KS: see :func:`judge`."""
THINNED = 64
"""Points, at most, of each tail at which its distance is bounded before any is measured."""
SMALLEST = 1e-200
"""Least floor: λ_max/x_min and its mean stay within double precision."""


@dataclass(frozen=True)
class Tail:
    """A power law p(λ) ∝ λ^−α fitted to the eigenvalues λ = σ² at and above a cut-off x_min.

    Attributes:
        alpha: exponent α > 1 of the density of λ. The density of σ then falls as σ^−(2α−1).
        stderr: standard error of ``alpha``, the choice of the cut-off included; infinite for 3 values.
        cutoff: the singular value √x_min at which the tail begins.
        size: n, the eigenvalues at or above the cut-off.
        total: N, the eigenvalues above rounding, in the tail or not.
        dropped: values left out because they are 0 or rounding.
        ks: Kolmogorov-Smirnov distance of the tail from the fitted law, 0…1.
        span: λ_max/x_min.
        cv: coefficient of variation of ln(λ/x_min) above the cut-off: 1 for a power law, less where the tail is
            cut off or log-normal, more where there are outliers beyond it.
        verdict: "power law", "not a power law: <why>" or "not identifiable: <why>".
    """

    alpha: float
    stderr: float
    cutoff: float
    size: int
    total: int
    dropped: int
    ks: float
    span: float
    cv: float
    verdict: str


def fit_tail(values: Array, floor: float | None = None) -> Tail | None:
    """The tail whose cut-off has the smallest Kolmogorov-Smirnov distance, with its maximum-likelihood exponent.

    Clauset, Shalizi & Newman, Power-law distributions in empirical data, SIAM Review 51(4), 2009: α = 1 + n/Σ ln(λ/x_min)
    (eq. 3.1), the cut-off by eq. 3.9. Every distinct eigenvalue with two or more above it is a candidate. The distance is
    the true supremum, on both sides of every step of the empirical distribution; programs that look at one side only, as
    the authors' own, may choose another cut-off. The standard error is that of
    :func:`standard_error`, the verdict that of :func:`judge`.

    Args:
        values: (k,) singular values, descending.
        floor: eigenvalues up to floor·λ_max count as rounding. None: k·2⁻⁵², the backward error of the eigenvalues
            of a k×k Gram matrix in float64 (LAPACK Users' Guide, §4.7), which bounds that of a float64 SVD as well.
            Pass more for values of matrices stored, or decomposed, in fewer digits.

    Returns:
        None where fewer than 3 values above rounding differ; the verdict then is :data:`NO_TAIL`.

    Raises:
        InputError: values that are not finite, not descending, negative, or not a vector; a floor outside [0, 1).
    """
    logs = log_eigenvalues(values, floor)
    found = smallest_distance(logs, resolution(values, floor))
    if found is None:
        return None
    size, distance = found
    excess = logs[:size] - logs[size - 1]
    exponent = size / float(np.sum(excess))
    # The cut-off is itself one of the values: the other n − 1 excesses are the exponentials of the null hypothesis.
    others = excess[: size - 1]
    cv = float(np.std(others) / np.mean(others))
    return Tail(
        alpha=1.0 + exponent,
        stderr=standard_error(exponent, size, len(logs)),
        cutoff=float(values[size - 1]),
        size=size,
        total=len(logs),
        dropped=len(values) - len(logs),
        ks=distance,
        span=math.exp(float(excess[0])),
        cv=cv,
        verdict=judge(excess, distance, cv),
    )


def standard_error(exponent: float, size: int, total: int) -> float:
    """Standard error of α̂, the choice of the cut-off included: (α̂ − 1)·√[(1 + ln(N/n)) / (n − 3)].

    *Small samples.* With the cut-off on an order statistic, (α−1)Σ ln(λ/x_min) is a Gamma(n − 1) variable, so that
    α̂ − 1 = n/Σ has mean (α−1)·n/(n−2) and standard deviation mean/√(n−3). Clauset et al. (eq. 3.2) keep the
    leading term (α̂−1)/√n.

    *Choice of the cut-off.* For a Pareto law the excesses sum up, cut-off by cut-off, like independent exponentials
    (Rényi, Acta Math. Hung. 4, 1953): the standardised error √n(α̂_n − α) is a Wiener process W(n)/√n, which as a
    function of ln n is stationary with correlation exp(−|Δ ln n|/2). A search that stops at n has passed over a stretch
    ln(N/n) of it and rejected that as a worse fit, so that what remains is no fair sample; its variance grows with that
    length. Neither α nor N enter otherwise, as (α−1)·ln λ is a standard exponential for every α. The factor
    1 + ln(N/n) is what simulation gives (``oracles/tail.py coverage``). Share of seeds in which ±2 standard errors
    hold the truth, pure Pareto, 2000 seeds (1000 for N = 4096), all and those with n < 0.6 N:

    ======  ==================  ==================
    N       (α̂−1)/√n            this
    ======  ==================  ==================
    96      0.923, 0.831        0.962, 0.973
    192     0.924, 0.855        0.953, 0.960
    384     0.926, 0.843        0.956, 0.963
    1024    0.920, 0.797        0.953, 0.938
    4096    0.932, 0.812        0.959, 0.940
    ======  ==================  ==================

    Where the values below the cut-off follow another law with a sharp break, it is cautious: 0.98 to 1.00.
    Where the other law joins smoothly, no error of this kind holds the bias of a cut-off chosen too low.

    Args:
        exponent: α̂ − 1.
        size: n, values in the tail.
        total: N, values that could have been in it.
    """
    return exponent * math.sqrt((1.0 + math.log(total / size)) / (size - 3)) if size > 3 else math.inf


def judge(excess: Array, distance: float, cv: float) -> str:
    """Whether a fitted tail is a power law: "power law", "not a power law: <why>" or "not identifiable: <why>".

    Not identifiable: fewer than :data:`MINIMUM_SIZE` values, a span below :data:`MINIMUM_SPAN`, or an exponential in
    λ, which has one parameter too, at least as likely (Clauset et al. 2009, §5.1). Not a power law, at 2.5 % each:

    * √(n−1)·ln CV < −1.6 or > 1.6. The coefficient of variation of ln(λ/x_min) is the uniformly most powerful unbiased
      statistic against the log-normal (Malevergne, Pisarenko & Sornette, Phys. Rev. E 83, 036111, 2011; del Castillo &
      Puig, JASA 94, 1999), and √n(CV − 1) → N(0, 1) at a given cut-off. The edge of a noise bulk has CV = 0.65, as
      λ there is distributed like Beta(1, 3/2) below the edge; outliers beyond a bulk have CV > 1.
    * √n·KS > 0.86: a bulk and spikes may have CV = 1 by chance, but have √n·KS of 1.0 to 2.1.

    The critical values are the 2.5 % quantiles *after* the search for the smallest distance, which makes them smaller
    than those of a given cut-off. For 6000 Pareto samples of N = 128, 384, 1024 (1500 of 4096) these are −1.51, −1.57,
    −1.53, −1.50; 1.48, 1.56, 1.62, 1.61; and 0.85, 0.86, 0.85, 0.87 (``oracles/tail.py levels``). "power law" means that
    none of this speaks against one: of log-normal samples of 384 values, half pass; ``tail_tests.compare`` then says how
    much better another law fits, ``tail_tests.p_value`` how often a true power law fits worse.

    Args:
        excess: (n,) ln(λ/x_min), descending; the last is 0.
        distance: Kolmogorov-Smirnov distance of the tail.
        cv: coefficient of variation of the first n − 1.
    """
    size, span = len(excess), math.exp(float(excess[0]))
    if size < MINIMUM_SIZE:
        return f"not identifiable: tail of {size} values"
    if span < MINIMUM_SPAN:
        return f"not identifiable: the tail spans a factor of {span:.2g} only"
    z = math.sqrt(size - 1) * math.log(cv) if cv > 0.0 else -math.inf
    if z < -CV_CRITICAL:
        return f"not a power law: the largest values are too small (CV of the logarithms {cv:.2f}, not 1)"
    if z > CV_CRITICAL:
        return f"not a power law: outliers beyond it (CV of the logarithms {cv:.2f}, not 1)"
    allowed = KS_CRITICAL / math.sqrt(size)
    if distance > allowed:
        return f"not a power law: distance {distance:.3f}, at most {allowed:.3f} expected of one"
    if exponential_is_likelier(excess):
        return "not identifiable: an exponential is at least as likely"
    return "power law"


def exponential_is_likelier(excess: Array) -> bool:
    """Whether λ − x_min is better described by an exponential: both maximum likelihoods in closed form."""
    mean_log = float(np.mean(excess))
    mean_size = float(np.mean(np.expm1(excess)))
    # Per value, as densities of ln λ: −ln(mean) − 1 for the power law, ln(rate) − 1 + mean for the exponential.
    return -math.log(mean_log) <= -math.log(mean_size) + mean_log


def log_eigenvalues(values: Array, floor: float | None = None) -> Array:
    """ln(λ/λ_max) of the eigenvalues λ = σ² above rounding, descending from 0; empty for a zero matrix.

    Args:
        values: (k,) singular values, descending.
        floor: see :func:`fit_tail`.
    """
    if values.ndim != 1:
        raise InputError(f"singular values of shape {values.shape}", expected="a vector")
    if not len(values):
        return np.zeros(0)
    largest, smallest = float(values[0]), float(values[-1])
    if not (math.isfinite(largest) and smallest >= 0.0 and bool(np.all(values[1:] <= values[:-1]))):
        raise InputError("singular values out of order", expected="finite, descending, ≥ 0")
    if largest == 0.0:
        return np.zeros(0)
    relative = values / largest
    kept = relative[relative > math.sqrt(resolution(values, floor))]
    logs: Array = 2.0 * np.log(kept)
    return logs


def resolution(values: Array, floor: float | None) -> float:
    """The relative size, of λ_max, at which an eigenvalue or a difference of two is rounding."""
    if floor is None:
        return len(values) * 2.0**-52
    if not 0.0 <= floor < 1.0:
        raise InputError(f"floor = {floor}", expected="a share of λ_max, 0 ≤ floor < 1")
    return max(floor, SMALLEST)


def smallest_distance(logs: Array, resolved: float = 0.0) -> tuple[int, float] | None:
    """The tail of smallest Kolmogorov-Smirnov distance: its size n, and that distance; None if no cut-off will do.

    A maximum over some of a tail's points bounds its distance from below: that is computed for all cut-offs at once.
    In the order of the bounds, tails are then measured exactly until the next bound exceeds the best. The minimum is
    exact.

    Args:
        logs: (N,) ln λ, descending.
        resolved: a tail that spans less than this is a constant.
    """
    sizes = np.append(np.flatnonzero(logs[1:] < logs[:-1]) + 1, len(logs))  # a cut-off takes all that equal it
    above = np.append(0, sizes[:-1])
    sizes = sizes[(above >= 2) & (logs[0] - logs[sizes - 1] > resolved)] if len(logs) else sizes[:0]
    if not len(sizes):
        return None
    ends = logs[sizes - 1]
    exponents = sizes / (np.cumsum(logs)[sizes - 1] - sizes * ends)
    # The step at the i-th largest (from 0) spans i/n … (i+1)/n of the survival: the larger of the two deviations is
    # that from the middle of the step plus 1/(2n).
    middles = np.arange(len(logs)) + 0.5
    count = min(THINNED, math.isqrt(len(logs)) + 8)
    points = (sizes[:, None] * ((np.arange(count) + 0.5) / count)).astype(np.intp)
    model = np.exp(exponents[:, None] * (ends[:, None] - logs[points]))
    bounds = np.abs(model - middles[points] / sizes[:, None]).max(axis=1) + 0.5 / sizes
    best_size, best = 0, math.inf
    for candidate in np.lexsort((-sizes, bounds)):
        if bounds[candidate] > best * (1.0 + 1e-12):
            break
        size = int(sizes[candidate])
        model = np.exp(exponents[candidate] * (ends[candidate] - logs[:size]))
        distance = float(np.abs(model - middles[:size] / size).max()) + 0.5 / size
        if distance < best:
            best_size, best = size, distance
    return best_size, best


def decay(values: Array, floor: float | None = None) -> tuple[float, float] | None:
    """(β, R²) of σ_i ∝ i^−β: least squares of ln σ on ln i over the values above rounding.

    None for fewer than 3 such values, or where they are all alike. Unlike the tail's exponent it describes the whole
    spectrum, and carries no error: the values of one matrix are not independent samples. If all σ_i = c·i^−β exactly,
    the λ are spaced like a Pareto sample of exponent α = 1 + 1/(2β).

    Args:
        values: (k,) singular values, descending.
        floor: see :func:`fit_tail`.
    """
    logs = log_eigenvalues(values, floor)
    if len(logs) < 3 or logs[0] - logs[-1] <= resolution(values, floor):
        return None
    x = np.log(np.arange(1.0, len(logs) + 1.0))
    x -= np.mean(x)
    y = 0.5 * (logs - np.mean(logs))
    slope = float(x @ y) / float(x @ x)
    return -slope, slope**2 * float(x @ x) / float(y @ y)


@dataclass(frozen=True)
class TailSpread:
    """Exponents of several spectra that should agree: submatrices of one matrix, or layers of one role.

    Attributes:
        mean: of the exponents.
        spread: their standard deviation (n − 1), None for one. It holds what moves the exponent between them, but
            understates the error of the mean where they share entries.
        tails: how many had a tail.
        missing: how many had none.
        power_laws: how many had the verdict "power law".
    """

    mean: float
    spread: float | None
    tails: int
    missing: int
    power_laws: int


def aggregate(tails: Sequence[Tail | None]) -> TailSpread | None:
    """Mean and spread of the exponents of several tails; None where none has one."""
    found = [tail for tail in tails if tail is not None]
    if not found:
        return None
    alphas = np.array([tail.alpha for tail in found])
    return TailSpread(
        mean=float(np.mean(alphas)),
        spread=float(np.std(alphas, ddof=1)) if len(alphas) > 1 else None,
        tails=len(found),
        missing=len(tails) - len(found),
        power_laws=sum(tail.verdict == "power law" for tail in found),
    )


def fixed_aspect_blocks(shape: tuple[int, int], aspect: float, windows: int) -> list[tuple[slice, slice]]:
    """The largest blocks of a given aspect ratio, spread evenly over a matrix: rows and columns of each.

    The spectrum of noise, and with it any exponent fitted to its bulk, depends on the aspect ratio; matrices of
    different shapes are comparable through blocks of one ratio (FARMS: Hu, Goel, Killiakov & Yang, Eigenspectrum analysis
    of neural networks without aspect ratio bias, ICML 2025). What differs from their published program: it slides a
    small window over rows and columns and fits one exponent to the pooled eigenvalues of all windows of a linear layer
    (for convolutions, as here, the mean of one exponent a window); here one side of a block is taken whole, as larger
    blocks keep more of the tail, and each block is fitted by itself, which gives a spread.

    Args:
        shape: (m, n), both ≥ 1.
        aspect: longer over shorter side of a block, ≥ 1; a block lies as the matrix does.
        windows: how many blocks; fewer where there are fewer positions.

    Raises:
        InputError: any of these outside its range.
    """
    if min(shape) < 1 or not aspect >= 1.0 or windows < 1 or not math.isfinite(aspect):
        raise InputError(
            f"{windows} blocks of aspect {aspect} in {shape}", expected="shape ≥ 1, aspect ≥ 1, windows ≥ 1"
        )
    long, short = max(shape), min(shape)
    height = min(long, max(1, round(short * aspect)))
    width = short if height < long else min(short, max(1, round(long / aspect)))
    # One side is taken whole: the block slides along the other.
    slack = (long - height) + (short - width)
    starts = [slack // 2] if windows == 1 else sorted({round(i * slack / (windows - 1)) for i in range(windows)})
    blocks = []
    for start in starts:
        down, across = (start, 0) if height < long else (0, start)
        pair = slice(down, down + height), slice(across, across + width)
        blocks.append(pair if shape[0] >= shape[1] else (pair[1], pair[0]))
    return blocks
