"""Stochastic Lanczos quadrature: densities, counts, and sums of functions of eigenvalues or singular values.

A unit vector v splits 1 among the eigenvalues of A by |vᴴuᵢ|². The Lanczos recurrence from v gives the Gauss rule of
that measure, and its mean over random v is the distribution of the eigenvalues (Golub & Meurant, Matrices, Moments
and Quadrature, 2010; Lin, Saad & Yang, SIAM Review 58(1), 2016, §3.2; Ubaru, Chen & Saad, SIAM J. Matrix Anal. Appl.
38(4), 2017). Before that, the pairs at the ends that a first recurrence finds are set aside: they become exact nodes
of weight 1/n, and the probes are kept orthogonal to them, so that they add no variance and the rule spends all of its
nodes on the rest. Singular values come from the bidiagonal form of the taller of A and Aᴴ, without squaring.

The probes are uniform on the sphere, so that each hands out exactly the weight that is left, (n − d)/n, also in the
orthogonal complement of d vectors; the variance of a share F of N values is then 2F(1 − F)/(N + 2), where that of
Gaussian vectors is 2F/N. Vectors of signs have at most (1 + 2/N) times the sphere's, and less where eigenvectors align
with the axes, but projected they keep a random part of their norm, and their weights no longer sum to 1.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, Unpack

import torch
from torch import Tensor

from eigenscope.errors import InputError
from eigenscope.methods import lanczos
from eigenscope.methods.probes import check_count, source, sphere
from eigenscope.operators.arrays import Dense, as_operator
from eigenscope.operators.base import LinearOperator
from eigenscope.results import Density, Estimate

Kind = Literal["singular", "eigen"]
Moments = Callable[[Tensor, float], Tensor]
"""A function of a tensor and of the largest modulus of the spectrum, by which it may be scaled."""


@dataclass(frozen=True)
class Rule:
    """The Gauss rules of p probes for one map, all float64 on the CPU.

    Attributes:
        exact: (d,) values set aside.
        nodes: per probe (k,), ascending.
        weights: per probe (k,), summing to (n − d)/n.
        closed: per probe, whether the rule is exact for that probe.
        halves: the nodes and weights of the same probes from k/2 and k/4 steps, by which the error is judged.
        size: n, how many values there are.
        kind: "singular" or "eigen".
        eps: rounding unit of the arithmetic.
        products: columns multiplied.
    """

    exact: Tensor
    nodes: list[Tensor]
    weights: list[Tensor]
    closed: list[bool]
    halves: tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]
    size: int
    kind: Kind
    eps: float
    products: int

    @property
    def largest(self) -> float:
        """Largest modulus of all nodes: ‖A‖₂ as far as seen."""
        return max(float(part.abs().max()) for part in (self.exact, *self.nodes) if len(part))

    @property
    def noise(self) -> float:
        """What the arithmetic may have moved a node by."""
        return lanczos.BREAKDOWN * self.eps * self.largest


def prepare(A: Any, kind: Kind | None) -> tuple[tuple[LinearOperator, ...], Kind]:
    """The sides of a recurrence, (A,) or (A, Aᴴ) with the taller one first, and what its nodes are.

    Args:
        A: any matrix or operator.
        kind: None for eigenvalues where A says that it is symmetric, and singular values elsewhere.

    Raises:
        InputError: an unknown kind, eigenvalues of a map that is not symmetric, or a map without values.
    """
    operator = as_operator(A)
    if min(operator.shape) == 0:
        raise InputError("the map has no values", where=repr(operator), expected="at least one row and one column")
    if kind is None:
        kind = "eigen" if operator.symmetric else "singular"
    if kind not in ("eigen", "singular"):
        raise InputError(f"unknown kind {kind!r}", expected="'eigen', 'singular' or None")
    if kind == "singular":
        rows, cols = operator.shape
        return ((operator, operator.T) if rows >= cols else (operator.T, operator)), kind
    if isinstance(operator, Dense) and not operator.symmetric and operator.shape[0] == operator.shape[1]:
        operator = Dense(operator.matrix, symmetric=True)  # refuses a matrix that is not
    if not operator.symmetric:
        raise InputError("the map is not symmetric", where=repr(operator), expected="a symmetric one for kind='eigen'")
    return (operator,), kind


def rule(
    sides: Sequence[LinearOperator], kind: Kind, steps: int, probes: int, deflate: int, generator: torch.Generator,
    reuse: bool = False,
) -> Rule:  # fmt: skip
    """Deflate, run all probes as one block, and read their Gauss rules off the recurrences.

    Args:
        sides, kind, steps, probes, deflate, generator: as for :func:`density`.
        reuse: take the start of the deflation, where it can be, for one of the probes; ``halves`` does not have it.

    Raises:
        InputError: steps or probes below 1, deflate below 0, or a product with NaN or infinity.
    """
    for value, name, least in ((steps, "steps", 1), (probes, "probes", 1), (deflate, "deflate", 0)):
        check_count(value, name, least)
    size = sides[0].shape[1]
    aside = lanczos.deflated(sides, deflate, generator)
    exact, locked, products = aside.values, aside.vectors, aside.products
    rest = size - len(exact)
    eps = torch.finfo(sides[0].dtype).eps
    none = torch.empty(0, dtype=torch.float64)
    if rest == 0:
        empty = [(none, none)] * probes
        return Rule(exact, [none] * probes, [none] * probes, [True] * probes, (empty, empty), size, kind, eps, products)
    share = rest / size
    first = [(aside.rule[0], aside.rule[1] * share)] if reuse and aside.rule else []
    if len(first) == probes:
        return Rule(exact, [first[0][0]], [first[0][1]], [aside.closed], ([], []), size, kind, eps, products)
    start = sphere(sides[0], probes - len(first), generator)
    for _ in range(2):
        start = start - locked[0] @ (locked[0].mH @ start)
        start = start / torch.linalg.vector_norm(start, dim=0)
    scale = float(exact.abs().max()) if len(exact) else 0.0
    runs = lanczos.recurrence(sides, start, min(steps, rest), locked, scale)
    rules = [
        [(nodes, weights * share) for nodes, weights in (runs.quadrature(p, length) for p in range(start.shape[1]))]
        for length in (None, max(steps // 2, 1), max(steps // 4, 1))
    ]
    return Rule(
        exact, [part[0] for part in (*first, *rules[0])], [part[1] for part in (*first, *rules[0])],
        [aside.closed] * len(first) + runs.closed,
        (rules[1], rules[2]), size, kind, eps, products + runs.products,
    )  # fmt: skip


def density(
    A: Any,
    *,
    steps: int = 60,
    probes: int = 8,
    deflate: int = 20,
    kind: Kind | None = None,
    generator: torch.Generator | None = None,
    level: float = 2.0,
) -> Density:
    """Distribution of the eigenvalues of a symmetric map, or of the min(m, n) singular values of any map.

    The band has two parts. Standard errors over the probes; and what each Gauss rule leaves open, by the
    Chebyshev-Markov-Stieltjes inequalities (Szegő, Orthogonal Polynomials, §3.41): between two nodes of one
    probe, its distribution function differs from the staircase by no more than the weights of these two nodes. A rule
    that ended in an invariant subspace is exact and leaves nothing open. Deflated values bound the band from
    both sides. With one probe nothing tells the standard error, and the band is 0…1. This band errs on the safe side; that of
    :meth:`Density.cumulative <eigenscope.results.Density.cumulative>`, of the blurred share, covers in 95 of 100 runs.

    Args:
        A: (m, n) tensor, ndarray, SciPy sparse matrix or operator. Never changed.
        steps: nodes of the quadrature of each probe; each costs one product, two for singular values.
        probes: random vectors, multiplied as one block; the first of them is the start of the deflation, if there is one and
            it meets no repeated values.
        deflate: how many converged pairs to set aside at most; 0 for none. Costs 2·deflate + 20 steps.
        kind: "eigen" or "singular"; None: eigenvalues where A says that it is symmetric, else singular values.
        generator: source of randomness; None draws a fresh seed. The seed is in the result.
        level: standard errors in the band.

    Raises:
        InputError: a count out of range, eigenvalues of a map that is not symmetric, products with NaN or infinity.
    """
    if not level >= 0.0:
        raise InputError(f"level = {level}", expected="a number of standard errors ≥ 0")
    generator, seed = source(generator)
    sides, kind = prepare(A, kind)
    found = rule(sides, kind, steps, probes, deflate, generator, reuse=True)
    nodes, weights = _table(found)
    grid, place = torch.unique(nodes, return_inverse=True)
    jumps = torch.zeros(probes, len(grid), dtype=torch.float64).index_add_(1, place, weights)
    shares = torch.cat([torch.zeros(probes, 1, dtype=torch.float64), jumps.cumsum(dim=1)], dim=1).clamp(max=1.0)
    grid = torch.cat([grid[:1], grid])
    below, above = _brackets(found, grid)
    if len(found.exact) == found.size:
        stderr = torch.zeros_like(grid)
    elif probes == 1:
        stderr = torch.full_like(grid, math.inf)
    else:
        stderr = shares.std(dim=0) / math.sqrt(probes)
    mean = shares.mean(dim=0)
    # The first point stands for everything left of it.
    known = (found.exact.unsqueeze(0) <= grid.unsqueeze(1)).sum(dim=1).to(torch.float64) / found.size
    known[0] = 0.0
    ceiling = known + (1.0 - len(found.exact) / found.size)
    spread = torch.where(stderr == 0.0, stderr, level * stderr) if level else torch.zeros_like(stderr)
    return Density(
        grid=grid, mean=mean, low=torch.maximum(mean - below - spread, known).minimum(mean),
        high=torch.minimum(mean + above + spread, ceiling).maximum(mean), bracket=(below + above) / 2, nodes=nodes, weights=weights,
        size=found.size, kind=kind, deflated=len(found.exact), level=level,
        rounding=found.noise, products=found.products, seed=seed,
    )  # fmt: skip


def _table(found: Rule) -> tuple[Tensor, Tensor]:
    """All nodes, ascending (q,), and the weight of each for each probe (p, q)."""
    probes = len(found.nodes)
    columns = torch.cat([found.exact, *found.nodes])
    weights = torch.zeros(probes, len(columns), dtype=torch.float64)
    weights[:, : len(found.exact)] = 1.0 / found.size
    position = len(found.exact)
    for probe, part in enumerate(found.weights):
        weights[probe, position : position + len(part)] = part
        position += len(part)
    order = columns.argsort(stable=True)
    return columns[order], weights[:, order]


def _brackets(found: Rule, grid: Tensor) -> tuple[Tensor, Tensor]:
    """(g,) how far the distribution may lie below, and above, the staircase on each step: means over the probes."""
    below, above = torch.zeros_like(grid), torch.zeros_like(grid)
    for nodes, weights, closed in zip(found.nodes, found.weights, found.closed, strict=True):
        if closed:
            continue
        order = nodes.argsort()
        padded = torch.cat([weights.new_zeros(1), weights[order], weights.new_zeros(1)])
        passed = torch.searchsorted(nodes[order], grid, right=True)
        passed[0] = 0
        below += padded[passed]
        above += padded[passed + 1]
    return below / len(found.nodes), above / len(found.nodes)


class Options(TypedDict, total=False):
    """What every sum takes; see :func:`spectral_sum`."""

    steps: int
    probes: int
    deflate: int
    tol: float | None
    max_products: int
    generator: torch.Generator | None


def spectral_sum(
    A: Any, f: Callable[[Tensor], Tensor], *, kind: Kind | None = None, **options: Unpack[Options]
) -> Estimate:
    """Σᵢ f(λᵢ) over the eigenvalues of a symmetric map, or Σᵢ f(σᵢ) over the min(m, n) singular values of any map.

    The standard error joins, by root of squares, the one over the probes and an estimate of the quadrature's error:
    the sums from k/4, k/2 and k steps of the same probes differ by d₁ and d₂, and a sequence that goes on shrinking by
    r = |d₂/d₁| ≤ 3/4 at each doubling is off by |d₂|·r/(1 − r) (Aitken). The Gauss rule is always off to the same
    side where the even derivatives of f keep one sign, as for logarithm, root and inverse (Golub & Meurant, 2010, §6.2).

    Args:
        A: (m, n) tensor, ndarray, SciPy sparse matrix or operator. Never changed.
        f: of a float64 tensor (q,), entry by entry; it is also called at Ritz values between the eigenvalues.
        kind: "eigen" or "singular"; None: eigenvalues where A says that it is symmetric, else singular values.
        options: ``steps`` (60, at least 4), ``probes`` (8) and ``deflate`` (20) as in :func:`density`; ``tol`` (None):
            standard error to reach, relative to the value, by doubling the probes or the steps, whichever is to
            blame; ``max_products`` (10 000): where doubling stops, with a warning; ``generator``.

    Raises:
        InputError: as :func:`density`, or f is NaN or infinite at a node.
    """
    return _estimate(A, lambda x, _: f(x).unsqueeze(0), lambda sums, _: sums[0], kind, **options)


def log_determinant(A: Any, **options: Unpack[Options]) -> Estimate:
    """log |det A| = Σ log σᵢ of a square map: see :func:`spectral_sum`.

    Raises:
        InputError: A is not square, or singular to working precision.
    """
    operator = as_operator(A)
    rows, cols = operator.shape
    if rows != cols:
        raise InputError(f"determinant of a {rows}×{cols} map", expected="a square one")
    noise = lanczos.BREAKDOWN * torch.finfo(operator.dtype).eps

    def logarithm(x: Tensor, scale: float) -> Tensor:
        return x.abs().masked_fill(x.abs() <= noise * scale, 0.0).log().unsqueeze(0)

    return _estimate(operator, logarithm, lambda sums, _: sums[0], None, **options)


def schatten_norm(A: Any, order: float, **options: Unpack[Options]) -> Estimate:
    """(Σ σᵢᵖ)^(1/p), with the delta method's standard error: see :func:`spectral_sum`.

    Horn & Johnson, Matrix Analysis, 2nd ed., §7.4.7: the nuclear norm is p = 1, the Frobenius norm p = 2.

    Raises:
        InputError: p is not positive and finite.
    """
    if not 0.0 < order < math.inf:
        raise InputError(f"order = {order}", expected="a positive number", remedy="σ_max is the limit of large orders")
    return _estimate(
        A,
        lambda x, scale: (x.abs() / (scale or 1.0)).pow(order).unsqueeze(0),  # scaled: no power leaves float64
        lambda sums, scale: scale * sums[0].pow(1.0 / order),
        None,
        **options,
    )


def nuclear_norm(A: Any, **options: Unpack[Options]) -> Estimate:
    """Σ σᵢ, the Schatten norm of order 1: see :func:`spectral_sum`."""
    return spectral_sum(A, torch.abs, **options)


def effective_rank(A: Any, **options: Unpack[Options]) -> Estimate:
    """exp(−Σ pᵢ log pᵢ), pᵢ = σᵢ/Σσ, from Σσ and Σσ log σ of the same probes: see :func:`spectral_sum`.

    Roy & Vetterli, The effective rank, EUSIPCO 2007, Definition 1. The standard error is the delta method's.

    Raises:
        InputError: A is zero.
    """

    def moments(x: Tensor, scale: float) -> Tensor:
        if scale == 0.0:
            raise InputError("the zero map has no effective rank", where="effective_rank")
        return torch.stack([x.abs() / scale, torch.special.entr(x.abs() / scale)])

    return _estimate(A, moments, lambda sums, _: (sums[1] / sums[0]).exp() * sums[0], None, **options)


def _estimate(
    A: Any, moments: Moments, combine: Moments, kind: Kind | None,
    steps: int = 60, probes: int = 8, deflate: int = 20, tol: float | None = None, max_products: int = 10_000,
    generator: torch.Generator | None = None,
) -> Estimate:  # fmt: skip
    """A smooth function of sums of moments over the spectrum, its error by the delta method."""
    check_count(steps, "steps", 4)
    if tol is not None and not tol > 0.0:
        raise InputError(f"tol = {tol}", expected="a positive number, relative to the value")
    generator, _ = source(generator)
    sides, kind = prepare(A, kind)
    rows: list[Tensor] = []
    scale: float | None = None
    products, closed = 0, True
    while True:
        found = rule(sides, kind, steps, probes, deflate, generator)
        scale = found.largest if scale is None else scale
        rows.append(_moment_rows(found, moments, scale))
        products, closed = products + found.products, closed and all(found.closed)
        value, sampling, bias = _with_error(torch.cat(rows, dim=1), combine, scale, closed)
        if len(found.exact) == found.size:
            sampling = 0.0
        samples = sum(part.shape[1] for part in rows)
        result = Estimate(value, math.hypot(sampling, bias), samples, products)
        if tol is None or result.stderr <= tol * abs(value):
            return result
        if products + 2 * found.products > max_products:
            warnings.warn(
                f"relative standard error {result.stderr / abs(value) if value else math.inf:.1e} after {products} "
                f"products, {tol:.1e} was asked for; raise max_products or tol", RuntimeWarning, stacklevel=3,
            )  # fmt: skip
            return result
        if bias > sampling:
            steps, closed, rows = 2 * steps, True, []
        else:
            probes = samples


def _moment_rows(found: Rule, moments: Moments, scale: float) -> Tensor:
    """(3, p, r): the r sums that each probe gives, from all steps, half of them, and a quarter."""
    exact = moments(found.exact, scale).sum(dim=1)
    levels = [list(zip(found.nodes, found.weights, strict=True)), *found.halves]
    rows = torch.stack([
        torch.stack([exact + found.size * (moments(nodes, scale) * weights).sum(dim=1) for nodes, weights in level])
        for level in levels
    ])  # fmt: skip
    if not bool(rows.isfinite().all()):
        raise InputError(
            "the function is NaN or infinite at a node of the quadrature", where="spectral sum",
            expected="a function that is finite on the whole range of the spectrum",
            remedy="for a logarithm, shift a map that is singular or indefinite",
        )  # fmt: skip
    return rows


def _with_error(rows: Tensor, combine: Moments, scale: float, closed: bool) -> tuple[float, float, float]:
    """Value, standard error over the probes, and estimated error of the quadrature."""
    probes = rows.shape[1]
    with torch.enable_grad():
        means = rows[0].mean(dim=0).requires_grad_()
        value = combine(means, scale)
        (gradient,) = torch.autograd.grad(value, means)
    sampling = float((rows[0] @ gradient).std()) / math.sqrt(probes) if probes > 1 else math.inf
    half, quarter = (float(combine(level.mean(dim=0), scale)) for level in rows[1:])
    last, before = abs(float(value.detach()) - half), abs(half - quarter)
    ratio = min(last / before, 0.75) if before > 0.0 else 0.75
    return float(value.detach()), sampling, 0.0 if closed else last * ratio / (1.0 - ratio)
