"""How much of a matrix is noise: the Marchenko-Pastur bulk of its singular values, and what stands above it.

The edge moves with the noise level and the level is read off the bulk, never off ``std(W)``, which the signal inflates:
scaling a matrix changes no verdict, and strong signal hides no weak one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from eigenscope.errors import InputError

Array = NDArray[np.float64]

TRACY_WIDOM_999 = 3.2724
"""99.9 % quantile of the Tracy-Widom law of order 1 (Bejan, Largest eigenvalues and sample covariance matrices, 2005)."""
FEWEST = 16
"""Values below which no bulk is judged: the law is that of large matrices."""
FARTHEST = 0.25
"""Distance beyond which the values are no bulk: a quarter of them lie elsewhere."""
GRID = 1024


@dataclass(frozen=True)
class Noise:
    """The noise that explains the lower part of a spectrum, and what it does not explain.

    Attributes:
        level: σ, the standard deviation of the entries of the noise.
        edge: about the largest singular value of such noise, see :func:`fit_noise`; None where there is no noise bulk.
        rank: singular values above the edge; None likewise.
        signal_energy: share of ‖W‖_F² that they hold; None likewise.
        distance: Kolmogorov-Smirnov distance of the values up to the edge from the Marchenko-Pastur law, 0…1.
        optimal_rank: values above the optimal hard threshold; None where there is no noise bulk.
        verdict: "noise only", "noise bulk", "bulk is not noise: <how far>" or "no noise bulk: <why>".
    """

    level: float
    edge: float | None
    rank: int | None
    signal_energy: float | None
    distance: float
    optimal_rank: int | None
    verdict: str


TOO_FEW = f"not identifiable: fewer than {FEWEST} singular values"
NO_MEDIAN = "no noise bulk: half of the values or more are 0 or rounding"


def fit_noise(values: Array, shape: tuple[int, int], floor: float = 0.0) -> Noise | str:
    """The Marchenko-Pastur bulk of a spectrum, its level from the median, its edge with a Tracy-Widom margin.

    The median of all values fixes the level (Gavish & Donoho, IEEE Trans. Inf. Theory 60(8), 2014, §III-E), and the level
    the edge. With k values above it the bulk is that of an (m−k)×(n−k) noise matrix, whose median is a little lower; that
    is followed until no more values leave, and kept where what remains is noise by its distance. A bulk that is none has no
    such end: its level stays that of the median of all.

    The edge is the 99.9 % quantile for a known level. Here the level comes from the same spectrum, and the law is one of
    large matrices: of pure Gaussian noise a value lies above it in 2.3 % of 16×16 matrices, 1.5 % of 32×32, 1.0 % of 64×64,
    0.4 % of 128×128, and in 0.1 to 0.8 % of matrices with twice as many rows (800 to 6000 seeds).

    Args:
        values: (min(m, n),) singular values, descending, complete.
        shape: (m, n).
        floor: values up to floor·σ₁ are rounding: where the median is one of them, the bulk is not the matrix's own.

    Returns:
        :class:`Noise`, or the reason why none can be fitted.

    Raises:
        InputError: values that are not all min(m, n), finite, descending and ≥ 0.
    """
    short, long = min(shape), max(shape)
    if len(values) != short:
        raise InputError(f"{len(values)} singular values of a {shape[0]}×{shape[1]} matrix", expected=f"all {short}")
    if short and not (np.isfinite(values[0]) and values[-1] >= 0.0 and bool(np.all(values[1:] <= values[:-1]))):
        raise InputError("singular values out of order", expected="finite, descending, ≥ 0")
    if short < FEWEST:
        return TOO_FEW
    if values[short // 2] <= floor * values[0]:
        return NO_MEDIAN
    relative = values / values[0]
    fit = refined = _bulk(relative, (long, short), 0)
    above = fit.above
    while refined.removed < above <= short // 2 and relative[(short + above) // 2] > floor:
        refined = _bulk(relative, (long, short), above)
        above = refined.above
    distance = _distance(relative, refined, (long, short))
    if distance <= allowed_distance(short - refined.removed):
        fit = refined
    elif refined is not fit:
        distance = _distance(relative, fit, (long, short))
    scale = float(values[0])
    if distance > FARTHEST:
        verdict = f"no noise bulk: the values are {100 * distance:.0f} % from the Marchenko-Pastur law"
        return Noise(fit.level * scale, None, None, None, distance, None, verdict)
    energy = relative**2
    return Noise(
        level=fit.level * scale,
        edge=fit.edge * scale,
        rank=fit.above,
        signal_energy=float(energy[: fit.above].sum() / energy.sum()),
        distance=distance,
        optimal_rank=int(np.count_nonzero(relative > fit.level * optimal_threshold((long, short)))),
        verdict=_judge(fit.above, distance, short - fit.removed),
    )


@dataclass(frozen=True)
class _Bulk:
    """The noise of the spectrum without its ``removed`` largest values; ``above`` of all values exceed its edge."""

    removed: int
    level: float
    edge: float
    above: int


def _bulk(relative: Array, shape: tuple[int, int], removed: int) -> _Bulk:
    inner = (shape[0] - removed, shape[1] - removed)
    level = noise_level(relative[removed:], inner)
    edge = level * noise_edge(inner)
    return _Bulk(removed, level, edge, int(np.count_nonzero(relative > edge)))


def _distance(relative: Array, fit: _Bulk, shape: tuple[int, int]) -> float:
    return bulk_distance(relative[fit.above :], fit.level, (shape[0] - fit.removed, shape[1] - fit.removed))


def _judge(rank: int, distance: float, size: int) -> str:
    allowed = allowed_distance(size)
    if distance > allowed:
        return f"bulk is not noise: {100 * distance:.1f} % from its law, noise at most {100 * allowed:.1f} %"
    return "noise bulk" if rank else "noise only"


def allowed_distance(size: int) -> float:
    """The distance from the Marchenko-Pastur law that a bulk of n = ``size`` values of pure noise keeps to: (1 + ln n)/n.

    The eigenvalues of noise repel each other and stay within O(log n/n) of their places (Pillai & Yin, Ann. Appl.
    Probab. 24(3), 2014, Theorem 3.3), not within 1/√n as independent draws would. The constants are those of simulation:
    of 26,000 Gaussian matrices of 16 to 256 columns, and as many or twice as many rows, 1 exceeded it.
    """
    return (1.0 + math.log(size)) / size


def noise_level(bulk: Array, shape: tuple[int, int]) -> float:
    """σ of a noise matrix whose singular values have the median of ``bulk``: median/√(long·μ), μ the law's median.

    Gavish & Donoho 2014, §III-E, eq. (12)-(13).

    Args:
        bulk: (k,) singular values, descending.
        shape: of the noise matrix, either way round.
    """
    middle = 0.5 * float(bulk[(len(bulk) - 1) // 2] + bulk[len(bulk) // 2])
    return middle / math.sqrt(max(shape) * marchenko_pastur_median(min(shape), max(shape)))


def noise_edge(shape: tuple[int, int]) -> float:
    """Singular value that noise of unit variance exceeds with probability 1/1000: √(μ + s·TW₁⁻¹(0.999)).

    Johnstone, Ann. Statist. 29(2), 2001, Theorem 1.1, with the centre μ = (√(m−½) + √(n−½))² and the scale
    s = (√(m−½) + √(n−½))·(1/√(m−½) + 1/√(n−½))^⅓ of second order (Ma, Bernoulli 18(1), 2012, eq. (3)). It holds for
    entries of finite fourth moment (Pillai & Yin, Ann. Appl. Probab. 24(3), 2014, Theorem 1.5, of light tails).

    Args:
        shape: (m, n), either way round.
    """
    first, second = math.sqrt(shape[0] - 0.5), math.sqrt(shape[1] - 0.5)
    centre, scale = (first + second) ** 2, (first + second) * (1.0 / first + 1.0 / second) ** (1.0 / 3.0)
    return math.sqrt(centre + scale * TRACY_WIDOM_999)


def optimal_threshold(shape: tuple[int, int]) -> float:
    """The hard threshold of least asymptotic mean squared error for noise of unit variance: λ*(β)·√long.

    Gavish & Donoho 2014, eq. (11): λ* = √(2(β+1) + 8β/(β+1+√(β²+14β+1))), β = short/long.

    Args:
        shape: (m, n), either way round.
    """
    beta = min(shape) / max(shape)
    root = math.sqrt(beta * beta + 14.0 * beta + 1.0)
    return math.sqrt(max(shape) * (2.0 * (beta + 1.0) + 8.0 * beta / (beta + 1.0 + root)))


def bulk_distance(bulk: Array, level: float, shape: tuple[int, int]) -> float:
    """Kolmogorov-Smirnov distance of the squares of ``bulk`` from the Marchenko-Pastur law of that level and shape.

    Args:
        bulk: (k,) singular values, descending.
        level: σ of the entries.
        shape: (m, n), either way round.
    """
    points, cumulative = marchenko_pastur(min(shape), max(shape))
    law = np.interp((bulk[::-1] / level) ** 2 / max(shape), points, cumulative)
    steps = np.arange(len(bulk) + 1.0) / len(bulk)
    return float(max(np.max(steps[1:] - law), np.max(law - steps[:-1])))


@lru_cache(maxsize=4096)
def marchenko_pastur_median(short: int, long: int) -> float:
    """Half of the eigenvalues of such noise are smaller: see :func:`marchenko_pastur`."""
    points, cumulative = marchenko_pastur(short, long)
    return float(np.interp(0.5, cumulative, points))


@lru_cache(maxsize=256)
def marchenko_pastur(short: int, long: int) -> tuple[Array, Array]:
    """Points x and the distribution function there, of the eigenvalues of noise of unit variance divided by ``long``.

    Marchenko & Pastur, Math. USSR Sb. 1, 1967: the density is √((x−a)(b−x))/(2πβx) on [a, b] = (1 ∓ √β)²,
    β = short/long. In the angle θ of x = a + (b−a)(1−cos θ)/2 it is smooth up to both ends; between the points
    the distribution function is off by less than 2·10⁻⁶.

    Returns:
        Two read-only vectors, ascending, from (a, 0) to (b, 1).
    """
    beta = short / long
    low, high = (1.0 - math.sqrt(beta)) ** 2, (1.0 + math.sqrt(beta)) ** 2
    angle = (np.arange(GRID) + 0.5) * (math.pi / GRID)
    mass = np.sin(angle) ** 2 / (low + (high - low) * np.sin(angle / 2.0) ** 2)
    ends = np.arange(GRID + 1.0) * (math.pi / GRID)
    points = low + (high - low) * np.sin(ends / 2.0) ** 2
    cumulative = np.append(0.0, np.cumsum(mass / mass.sum()))
    for array in (points, cumulative):
        array.flags.writeable = False
    return points, cumulative
