"""What an analysis of curvature is asked for, and what that will cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from eigenscope.errors import InputError
from eigenscope.measures import curvature as judging
from eigenscope.measures import paths
from eigenscope.measures.sharpness import RADIUS
from eigenscope.operators.graphs import free_bytes
from eigenscope.operators.loss_operator import LossOperator
from eigenscope.tasks.landscape import GRID

BUDGET = 400
"""Products at most, unless told."""
SMALL = 64
"""Parameters up to which the whole Hessian is always made."""
STEPS, PROBES, DEFLATE = 40, 4, 30
"""Of the density."""
TRACE_PRODUCTS, METRIC_PRODUCTS, BLOCK_PRODUCTS = 100, 60, 20
VECTORS = 8
"""Vectors of the length of the parameters that are held beside a basis."""
LEAST_STEPS, LEAST_PROBES, LEAST_METRIC, LEAST_BLOCK = 20, 2, 10, 5


@dataclass(frozen=True)
class CurvatureOptions:
    """What is wanted.

    Attributes:
        top, bottom: eigenpairs of each end.
        tol: residual accepted as converged, relative to max |λ|.
        density, trace: whether they are wanted.
        trace_tol: standard error of the trace, relative to it.
        blocks: "" for none, or "layer", "module", "parameter".
        radius: of the ball of the sharpness.
        landscape: "" for none, or "eigenvectors", "random".
        grid: places along each axis of it.
        learning_rate, beta1: of the optimiser that advice is wanted for.
        gradient_tol: relative change of the parameters that does not count, see
            :func:`eigenscope.measures.curvature.gradient_test`.
        budget: products at most.
        memory: bytes for graphs and vectors together; None for half of what is free.
        seed: of everything random.
    """

    top: int = 5
    bottom: int = 5
    tol: float = 1e-3
    density: bool = True
    trace: bool = True
    trace_tol: float = 0.05
    blocks: str = ""
    radius: float = RADIUS
    landscape: str = ""
    grid: int = GRID
    learning_rate: float | None = None
    beta1: float = 0.9
    gradient_tol: float = judging.GRADIENT_TOLERANCE
    budget: int = BUDGET
    memory: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, least in (("top", self.top, 1), ("bottom", self.bottom, 0), ("budget", self.budget, 10)):
            if value < least:
                raise InputError(f"{name} = {value}", where="curvature", expected=f"{least} or more")
        for name, number in (("tol", self.tol), ("trace_tol", self.trace_tol), ("radius", self.radius)):
            if not number > 0.0:
                raise InputError(f"{name} = {number}", where="curvature", expected="a positive number")
        if self.blocks not in ("", "layer", "module", "parameter"):
            raise InputError(f"blocks={self.blocks!r}", where="curvature", expected="layer, module or parameter")
        if self.landscape not in ("", "eigenvectors", "random"):
            raise InputError(f"landscape={self.landscape!r}", where="curvature", expected="eigenvectors or random")
        if self.learning_rate is not None and not self.learning_rate > 0.0:
            raise InputError(f"learning_rate = {self.learning_rate}", where="curvature", expected="a positive number")


@dataclass(frozen=True)
class CurvaturePlan:
    """How an analysis will be made, decided before it begins.

    Attributes:
        options: what is wanted.
        size: parameters.
        complete: whether the whole matrix is made.
        pair_products: most products for the eigenpairs.
        density: (steps, probes, deflate), or None where none is made.
        trace_products: most products for the trace; 0 for none.
        blocks: how many, and most products for each.
        metric: most products for each of the two other metrics.
        basis: columns of a Krylov basis.
        evaluations: of the loss, for lines and landscape; gradients count as three.
        seconds_per_product: measured.
        memory: bytes: graphs, basis and vectors, density's vectors.
        notes: what is left out, and why.
    """

    options: CurvatureOptions
    size: int
    complete: bool
    pair_products: int
    density: tuple[int, int, int] | None
    trace_products: int
    blocks: tuple[int, int]
    metric: int
    basis: int
    evaluations: int
    seconds_per_product: float
    memory: tuple[int, int, int]
    notes: tuple[str, ...]

    @property
    def products(self) -> int:
        """All products at most."""
        steps, probes, deflate = self.density or (0, 0, 0)
        density = steps * probes + (2 * deflate + 20 if deflate else 0)
        return (
            self.pair_products + 1 + density + self.trace_products + self.blocks[0] * self.blocks[1] + 2 * self.metric
        )

    @property
    def peak(self) -> int:
        """Bytes beyond what the model and the data take: graphs, and the larger of the two sets of vectors."""
        return self.memory[0] + max(self.memory[1:])

    def lines(self) -> Mapping[str, str]:
        """The plan in words."""
        seconds = (self.products + self.evaluations / 6.0) * self.seconds_per_product
        parts = [f"{'all eigenvalues' if self.complete else 'eigenpairs'} ≤ {self.pair_products:,}"]
        if self.density:
            parts.append(f"density {self.density[1]}×{self.density[0]} and {self.density[2]} set aside")
        parts += [f"trace ≤ {self.trace_products:,}"] * bool(self.trace_products)
        parts += [f"{self.blocks[0]} blocks ≤ {self.blocks[1]} each"] * bool(self.blocks[0])
        parts += [f"two other metrics ≤ {self.metric} each"] * bool(self.metric)
        graphs, vectors, probes = self.memory
        found = {
            "parameters": f"{self.size:,}",
            "products": f"{self.products:,} at most: {', '.join(parts)}",
            "evaluations": f"{self.evaluations:,} of the loss",
            "seconds": f"about {seconds:,.0f} at most, {self.seconds_per_product:.3g} a product (measured)",
            "memory": f"{_bytes(self.peak)} beyond model and data: graphs {_bytes(graphs)},"
            f" basis {_bytes(vectors)} or probes {_bytes(probes)}",
        }
        return found | ({"left out": "; ".join(self.notes)} if self.notes else {})


def make_plan(H: LossOperator, options: CurvatureOptions) -> CurvaturePlan:
    """Decide what is done, from the size, the memory, the budget, and one product that is timed (two where none was).

    Raises:
        InputError: not even the smallest basis fits in the memory.
    """
    size, each = H.shape[0], H.shape[0] * H.dtype.itemsize
    for _ in range(2):  # the first builds the graphs
        H @ torch.full((size,), size**-0.5, dtype=H.dtype, device=H.device)
        seconds = H.cost.seconds or 0.0
    cost = H.cost
    graphs = min(cost.graph_bytes, cost.budget) if cost.budget else cost.graph_bytes // max(cost.batches, 1)
    room = options.memory - graphs if options.memory is not None else free_bytes(H.device)
    wanted = min(size, options.top + options.bottom)
    complete = size <= max(SMALL, options.budget)
    columns = max(0, room // max(each, 1) - VECTORS)
    basis = min(size, 200, columns - wanted if columns > 3 * wanted else min(columns, 2 * wanted))
    if not complete and basis < min(size, wanted + 3):
        raise InputError(
            f"{_bytes(room)} of memory for vectors of {_bytes(each)}", where="curvature",
            expected=f"room for {wanted + 3 + VECTORS} of them",
            remedy="choose parameters (params, --params), fewer pairs, or more memory",
        )  # fmt: skip
    notes: list[str] = []
    pairs = size if complete else max(wanted + 4, min(options.budget // 3, 100))
    left = options.budget - (0 if complete else pairs) - 1
    # An eighth each for the trace and the two other metrics; the density takes the rest, or what it needs of it.
    share = max(left // 8, 0)
    metric = size if complete else min(METRIC_PRODUCTS, share) if share >= LEAST_METRIC else 0
    trace = min(TRACE_PRODUCTS, max(8, share)) if options.trace and (options.blocks or not complete) else 0
    left -= trace + (0 if complete else 2 * metric)
    density = None
    if options.density and not complete:
        reserved = LEAST_BLOCK * len(H.blocks(options.blocks)) if options.blocks else 0
        density = _density(size, each, room, left - reserved, notes)
        left -= 0 if density is None else density[0] * density[1] + (2 * density[2] + 20 if density[2] else 0)
    blocks = (0, 0)
    if options.blocks:
        count = len(H.blocks(options.blocks))
        each_block = BLOCK_PRODUCTS if complete else min(BLOCK_PRODUCTS, left // count)
        if each_block < LEAST_BLOCK:
            notes.append(
                f"blocks: {count} of them need {LEAST_BLOCK * count} products, of which {max(left, 0)} are left"
            )
        else:
            blocks = (count, each_block)
            left -= count * each_block
    if trace and not complete:
        trace = min(TRACE_PRODUCTS, trace + left)
        if trace < 8:
            notes.append(f"trace: 8 products at least, of which {max(trace, 0)} are left")
            trace = 0
    # The vectors found take the place of a basis that is no more than twice as large: see methods/ends.py.
    copies = wanted if basis > 2 * wanted else 0
    held = (size * size * 24 if complete else (min(basis, pairs) + copies + VECTORS) * each, _probes(density, each))
    scans = 2 * 21 + 60
    area = options.grid**2 + 3 * (3 * paths.STEPS + 5 * paths.NEWTON_STEPS) if options.landscape else 0
    return CurvaturePlan(
        options, size, complete, pairs, density, trace, blocks, metric, basis, scans + area, seconds, (graphs, *held),
        tuple(notes),
    )  # fmt: skip


def _density(size: int, each: int, room: int, left: int, notes: list[str]) -> tuple[int, int, int] | None:
    """Steps, probes and pairs to set aside that the budget and the memory allow."""
    steps, probes = STEPS, PROBES
    # Deflation keeps its basis and as many Ritz vectors; the probes of a short run keep theirs.
    deflate = next((d for d in (DEFLATE, 20, 10) if 2 * (2 * d + 20) * each <= room // 2), 0)
    spent = 2 * deflate + 20 if deflate else 0
    while steps * probes + spent > left:
        if probes > LEAST_PROBES:
            probes -= 1
        elif steps > LEAST_STEPS:
            steps -= 5
        elif deflate:
            deflate = spent = 0
        else:
            notes.append(f"density: {steps * probes} products at least, of which {max(left, 0)} are left")
            return None
    while probes > LEAST_PROBES and _probes((steps, probes, 0), each) > room:
        probes -= 1
    return min(steps, size), probes, min(deflate, size)


def _probes(density: tuple[int, int, int] | None, each: int) -> int:
    """Bytes of the vectors of a density: six blocks of the recurrence, its basis where it is kept, and the deflation's."""
    if density is None:
        return 0
    steps, probes, deflate = density
    kept = steps * probes * each
    basis = kept if kept <= 2**31 else 0
    return max(6 * probes * each + basis + deflate * each, 2 * (2 * deflate + 20) * each if deflate else 0)


def _bytes(number: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if abs(number) < 1024 or (unit == "MiB" and abs(number) < 2048):
            return f"{number:.0f} {unit}" if unit != "MiB" else f"{number:,.0f} MiB"
        number /= 1024
    return f"{number:,.1f} GiB"
