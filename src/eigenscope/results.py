"""Frozen results. Each carries its own doubt: residuals, bounds, standard errors, and how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # the report and the run file use this module without loading torch
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

Value = float | int | str | None
"""A cell of a table. None where the reading is not defined; never a made-up number."""


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
    """A stochastic figure: mean, standard error of the mean, and the number of samples behind it."""

    value: float
    stderr: float
    samples: int


@dataclass(frozen=True)
class Density:
    """The distribution of the eigenvalues (or singular values) of a map, estimated from random probes.

    Attributes:
        grid: (g,) ascending points of the axis.
        mean: (g,) distribution function there, 0…1: the share of eigenvalues at or below each point.
        low, high: (g,) band around it, by default ± 2 standard errors over the probes.
        nodes: (q,) every quadrature node, ascending: deflated eigenvalues and Ritz values of all probes.
        weights: (p, q) what each of p probes gives to each node; a row sums to 1.
        size: number of eigenvalues.
        kind: "eigen" or "singular".
        deflated: how many eigenvalues were found one by one, and so carry no sampling error.
        products: columns multiplied by the operator.
        seed: seed of the generator.
    """

    grid: Tensor
    mean: Tensor
    low: Tensor
    high: Tensor
    nodes: Tensor
    weights: Tensor
    size: int
    kind: Literal["singular", "eigen"]
    deflated: int
    products: int
    seed: int | None

    def count(self, a: float, b: float) -> Estimate:
        """How many eigenvalues lie in (a, b]: mean over the probes, and its standard error."""
        inside = (self.nodes > a) & (self.nodes <= b)
        shares = self.weights[:, inside].sum(dim=1) * self.size
        probes = len(shares)
        stderr = float(shares.std()) / probes**0.5 if probes > 1 else float("inf")
        return Estimate(float(shares.mean()), stderr, probes)


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
        outcome: "read", "not a matrix" or "not readable".
        reason: why, in words; for a read tensor, how it was seen (split, unfolded, scaled).
        matrices: how many rows of the table come from it.
    """

    tensor: str
    shape: tuple[int, ...]
    dtype: str
    outcome: Literal["read", "not a matrix", "not readable"]
    reason: str
    matrices: int


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
    """

    verb: str
    source: str
    records: tuple[Record, ...]
    coverage: tuple[Coverage, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
