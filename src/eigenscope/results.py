"""Frozen results. Each carries its own doubt: residuals, bounds, standard errors, and how it was made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from eigenscope.errors import InputError

if TYPE_CHECKING:  # the report and the run file use this module without loading torch
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

Value = float | int | str | None
"""A cell of a table. None where the reading is not defined; never a made-up number."""
Outcome = Literal["read", "compared", "not a matrix", "not compared", "only in base", "only in tuned", "not readable"]
_GAUSSIAN = 1.0 / (2.0 * math.sqrt(2.0 * math.log(1.25)))
"""Width of a Gaussian that falls by 1.25 at half a unit."""


@dataclass(frozen=True)
class Spectrum:
    """Singular values or eigenvalues of one linear map, with what bounds their error.

    Attributes:
        values: (k,) descending; singular values ≥ 0, or eigenvalues, signed.
        left: (m, k) orthonormal columns, or None.
        right: (n, k) orthonormal columns, or None.
        residuals: (k,) measured from products, None without vectors. Singular triplets:
            max(‖A v − σ u‖, ‖Aᴴ u − σ v‖); eigenpairs: ‖A v − λ v‖. Some singular value (eigenvalue)
            lies within the residual of each value (Parlett, The Symmetric Eigenvalue Problem, Thm 4.5.1).
        bounds: (k,) bound on the absolute error of each value, from the method's backward error.
        converged: (k,) bool: bound or residual within the tolerance, relative to ‖A‖₂.
        kind: "singular" or "eigen".
        shape: (m, n) of the map.
        complete: whether all min(m, n) values are here, or only the leading ones.
        frobenius: ‖A‖_F when known: the energy that a partial spectrum leaves out.
        method: the method's name.
        reason: why that method, in a sentence.
        products: columns multiplied by an operator; 0 where the entries themselves were decomposed.
        seed: seed of the generator, or None where nothing is random.
    """

    values: Tensor
    left: Tensor | None
    right: Tensor | None
    residuals: Tensor | None
    bounds: Tensor
    converged: Tensor
    kind: Literal["singular", "eigen"]
    shape: tuple[int, int]
    complete: bool
    frobenius: float | None
    method: str
    reason: str
    products: int = 0
    seed: int | None = None

    def __len__(self) -> int:
        return int(self.values.shape[0])


@dataclass(frozen=True)
class Estimate:
    """A stochastic figure: mean, standard error of the mean, the samples behind it, and what they cost.

    Attributes:
        value: the estimate.
        stderr: its standard error; infinite where nothing tells it, as with one sample.
        samples: how many.
        products: columns multiplied by an operator or its adjoint; 0 where nothing was multiplied.
    """

    value: float
    stderr: float
    samples: int
    products: int = 0


@dataclass(frozen=True)
class DiagonalEstimate:
    """A stochastic estimate of a diagonal.

    Attributes:
        values: (n,) estimate of each diagonal entry.
        stderr: (n,) standard error of each.
        samples: how many samples are behind it.
        products: columns multiplied by the operator or its adjoint.
    """

    values: Tensor
    stderr: Tensor
    samples: int
    products: int


@dataclass(frozen=True)
class Share:
    """A share of the eigenvalues, 0…1, and the interval that it lies in."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Density:
    """The distribution of the eigenvalues (or singular values) of a map, estimated from random probes.

    Attributes:
        grid: (g,) ascending points of the axis: the places where ``mean`` jumps, the first of them twice.
        mean: (g,) distribution function there, 0…1: the share of eigenvalues at or below each point, constant from
            each point to the next. ``mean[0]`` is 0, the share left of the first point.
        low, high: (g,) band around it: ``level`` standard errors over the probes, beyond what the quadrature leaves
            open on either side. It nearly always covers; :meth:`cumulative` has the 95 % band of what is resolved.
        bracket: (g,) half the width of what the quadrature leaves open, without the standard errors.
        nodes: (q,) every quadrature node, ascending: deflated eigenvalues and Ritz values of all probes.
        weights: (p, q) what each of p probes gives to each node; a row sums to 1.
        size: number of eigenvalues.
        kind: "eigen" or "singular".
        deflated: how many eigenvalues were found one by one, and so carry no sampling error.
        level: standard errors in the band.
        rounding: what the arithmetic may have moved a node by; points closer than that are the same.
        products: columns multiplied by the operator or its adjoint.
        seed: seed of the generator.
    """

    grid: Tensor
    mean: Tensor
    low: Tensor
    high: Tensor
    bracket: Tensor
    nodes: Tensor
    weights: Tensor
    size: int
    kind: Literal["singular", "eigen"]
    deflated: int
    level: float
    rounding: float
    products: int
    seed: int | None

    def count(self, a: float, b: float) -> Estimate:
        """How many eigenvalues lie in (a, b], and the standard error of that count.

        The error over the probes, and at each end the one of the quadrature: a share of ±``bracket`` at most, taken as
        uniform, of standard deviation bracket/√3.
        """
        inside = (self.nodes > a + self.rounding) & (self.nodes <= b + self.rounding)
        shares = self.weights[:, inside].sum(dim=1)
        probes = len(shares)
        variance = sum(float(self.bracket[self._step(end + self.rounding, True)]) ** 2 / 3.0 for end in (a, b))
        if self.deflated < self.size:
            variance += float(shares.var()) / probes if probes > 1 else float("inf")
        return Estimate(float(shares.mean()) * self.size, variance**0.5 * self.size, probes, self.products)

    def below(self, x: float) -> Share:
        """Share of the eigenvalues that are less than x, with the band there: ``below(0.0)`` is the negative share."""
        step = self._step(x - self.rounding, False)
        return Share(float(self.mean[step]), float(self.low[step]), float(self.high[step]))

    def smoothed(self, points: Tensor, width: float | None = None) -> tuple[Tensor, Tensor]:
        """Density at (g,) points, as a sum of Gaussians at the nodes, and its standard error over the probes: (g,) each.

        Lin, Saad & Yang, Approximating spectral densities of large matrices, SIAM Review 58(1), 2016, §3.2: what a
        quadrature of k nodes resolves is their spacing h, so the default width is h/(2√(2 ln κ)), with which a
        Gaussian has fallen by κ = 1.25 halfway to the next node. Nodes lie like Chebyshev points, in the middle
        h = π/2 times their mean distance. It integrates to 1; the bias of smoothing is not in
        the error.

        Args:
            points: (g,) float64 places on the axis.
            width: standard deviation of the Gaussians, in units of the eigenvalues.

        Raises:
            InputError: the width is not positive, or there is a single node, which has no spacing.
        """
        width = self._width(width, "smoothed")
        bells = (-0.5 * ((points.unsqueeze(1) - self.nodes) / width) ** 2).exp() / (width * (2.0 * math.pi) ** 0.5)
        curves = bells @ self.weights.T
        probes = curves.shape[1]
        if self.deflated == self.size:
            stderr = curves.new_zeros(len(points))
        elif probes == 1:
            stderr = curves.new_full((len(points),), math.inf)
        else:
            stderr = curves.std(dim=1) / probes**0.5
        return curves.mean(dim=1), stderr

    def cumulative(self, points: Tensor, width: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Share of the eigenvalues below each of (g,) points, every eigenvalue blurred by a Gaussian, with a 95 % band: (g,) each.

        The integral of :meth:`smoothed`. At the default width the quadrature is as good as exact for what is blurred, and what is
        left is the error of the probes: Student's t over them covers the blurred share in about 95 of 100 runs. The other band,
        ``low`` and ``high``, is of the share itself: it bounds what the quadrature does not resolve, and so nearly always covers.
        With one probe the band is 0…1.

        Args:
            points: (g,) float64 places on the axis.
            width: standard deviation of the Gaussians, in units of the eigenvalues.

        Returns:
            The share 0…1, and the lower and the upper end of its band.

        Raises:
            InputError: as :meth:`smoothed`.
        """
        from scipy.special import stdtrit

        width = self._width(width, "cumulative")
        shares = (0.5 + 0.5 * ((points.unsqueeze(1) - self.nodes) / (width * 2.0**0.5)).erf()) @ self.weights.T
        mean, probes = shares.mean(dim=1), shares.shape[1]
        if self.deflated == self.size:
            return mean, mean, mean
        if probes == 1:
            return mean, mean.new_zeros(len(points)), mean.new_ones(len(points))
        half = float(stdtrit(probes - 1, 0.975)) * shares.std(dim=1) / probes**0.5
        return mean, (mean - half).clamp(min=0.0), (mean + half).clamp(max=1.0)

    def _width(self, width: float | None, where: str) -> float:
        width = self._spacing() * _GAUSSIAN if width is None else width
        if not width > 0.0:
            raise InputError(
                f"width {width}", where=where, expected="a positive width", remedy="pass width=, all mass is at one point"
            )  # fmt: skip
        return width

    def _step(self, x: float, inclusive: bool) -> int:
        """Index of the step of ``mean`` that holds at x, or just left of it."""
        jumps = self.grid[1:]
        return int((jumps <= x).sum() if inclusive else (jumps < x).sum())

    def _spacing(self) -> float:
        """Widest usual distance of the Ritz values of a probe, the deflated eigenvalues apart."""
        # Every probe gives 1/n to a deflated eigenvalue, and 0 to the Ritz values of the others.
        ritz = self.nodes[((self.weights - 1.0 / self.size).abs() > 1e-12).any(dim=0)]
        if len(ritz) < 2:
            ritz = self.nodes
        steps = len(ritz) / len(self.weights) if self.deflated < self.size else len(ritz)
        return math.pi / 2.0 * float(ritz[-1] - ritz[0]) / max(steps - 1.0, 1.0)


@dataclass(frozen=True)
class Record:
    """One row of a run: a matrix, its readings, and its values.

    Attributes:
        name: as in the checkpoint; a fused part adds ``:q``, ``:k``, …
        readings: column → value, in the order of the table.
        values: (k,) float64 singular values, descending; None where the matrix could not be read.
        eigenvalues: (n,) complex128, only where they were asked for and the map is square.
        sample: (p,) float64 entries at places that depend on the shape alone, by which equal matrices are found.
    """

    name: str
    readings: Mapping[str, Value]
    values: NDArray[np.float64] | None = None
    eigenvalues: NDArray[np.complex128] | None = None
    sample: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Finding:
    """Something in a run that a person should look at.

    Attributes:
        names: the matrices it is about; the first stands for them.
        sentence: what was found, in words, the figures it rests on included.
        severity: how far from its peers, comparable between findings; the largest is shown first.
        reading: the column that shows it best, or "".
    """

    names: tuple[str, ...]
    sentence: str
    severity: float
    reading: str = ""


@dataclass(frozen=True)
class Coverage:
    """What became of one tensor of a checkpoint.

    Attributes:
        tensor: its name.
        shape: its shape as stored.
        dtype: its storage format ("float32", "bfloat16", "Q4_1", …).
        outcome: "read", "not a matrix" or "not readable"; of a comparison also "compared", "not compared", "only in base" or
            "only in tuned".
        reason: why, in words; for a read tensor, how it was seen (split, unfolded, scaled).
        matrices: how many rows of the table come from it.
    """

    tensor: str
    shape: tuple[int, ...]
    dtype: str
    outcome: Outcome
    reason: str
    matrices: int


@dataclass(frozen=True)
class Compared(Coverage):
    """What became of one tensor of a comparison of two checkpoints.

    Attributes:
        base: name of the tensor it was compared with, or "".
        relative_change: ‖Δ‖/‖base‖ of a vector (bias, norm); 0 also where it is within rounding; None where nothing was
            compared, and of matrices, whose change is in their rows.
    """

    base: str = ""
    relative_change: float | None = None


@dataclass(frozen=True)
class Run:
    """Everything a report needs: the rows, what was covered, and how it was made.

    Attributes:
        verb: "scan", …
        source: what the user named.
        records: the rows, in the order of the checkpoint.
        coverage: one entry per tensor.
        provenance: versions, options, seed, machine, times: plain values, shown as they stand.
        findings: what stands out, most severe first; empty also where nobody has looked yet.
        verdict: what the run amounts to, in a sentence, where its verb has one.
    """

    verb: str
    source: str
    records: tuple[Record, ...]
    coverage: tuple[Coverage, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    verdict: str = ""
