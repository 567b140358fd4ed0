"""What an analysis of curvature found, and what follows from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from eigenscope.errors import InputError
from eigenscope.measures import advice as advising
from eigenscope.measures import curvature as judging
from eigenscope.measures import valley as valleys
from eigenscope.measures.advice import Metric
from eigenscope.measures.curvature import Signs, Unseen, Verdict
from eigenscope.measures.sharpness import CAVEAT
from eigenscope.measures.slices import Escape, Slice
from eigenscope.measures.valley import Valley
from eigenscope.methods.ends import Ends
from eigenscope.results import Density, Estimate, Share, Spectrum
from eigenscope.tasks.curvature_stages import Point, Sharpness, Traces, as_array, moments
from eigenscope.tasks.landscape import Landscape

if TYPE_CHECKING:
    import plotly.graph_objects as go

BLOCK = "block:"
"""What the names of the stages of blocks begin with."""


@dataclass(frozen=True)
class Block:
    """Both ends of the spectrum of one diagonal block.

    Attributes:
        name: of the layer, module or parameter.
        size: parameters.
        top, bottom: eigenpairs, without vectors.
        trace: of the block, or None.
    """

    name: str
    size: int
    top: Spectrum
    bottom: Spectrum
    trace: Estimate | None


@dataclass(frozen=True)
class Curvature:
    """The shape of a loss around the parameters of a model.

    Attributes:
        source: what the model is called.
        stages: name of each stage → its result.
        options: name → value, of :class:`CurvatureOptions`.
        eps: rounding unit of the products.
        provenance: how it was made.
        notes: what a reader should know about the operator, and what was left out.
        interrupted: whether it was ended before its time; what is missing is None.
        gauss_newton: whether the operator is the Gauss-Newton matrix, which has no negative eigenvalues.
    """

    source: str
    stages: Mapping[str, Any]
    options: Mapping[str, Any]
    eps: float
    provenance: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    interrupted: bool = False
    gauss_newton: bool = False

    @property
    def point(self) -> Point:
        """Loss, gradient, sizes."""
        found: Point = self._stage("point")
        return found

    @property
    def ends(self) -> Ends:
        """Both ends of the spectrum, and all Ritz values."""
        found: Ends = self._stage("ends")
        return found

    @property
    def top(self) -> Spectrum:
        """The largest eigenpairs, descending, with residuals; vectors unless they come from a run file."""
        return self.ends.top

    @property
    def bottom(self) -> Spectrum:
        """The smallest eigenpairs; the last is the smallest."""
        return self.ends.bottom

    @property
    def density(self) -> Density | None:
        """Distribution of the eigenvalues, with its band."""
        if self.complete:
            return _exact_density(self.ends)
        return self.stages.get("density")

    @property
    def complete(self) -> bool:
        """Whether all eigenvalues are known."""
        return len(self.ends.ritz) == self.point.parameters and self.ends.top.method == "lapack"

    @property
    def trace(self) -> Estimate | None:
        """Tr H: exact, or the better of the estimates from the density and from vectors of signs."""
        found: list[Estimate] = []
        if (density := self.density) is not None:
            found.append(moments(density)[0])
        traces: Traces | None = self.stages.get("trace")
        if traces is not None:
            found.append(traces.total)
        return min(found, key=lambda estimate: estimate.stderr, default=None)

    @property
    def frobenius(self) -> Estimate | None:
        """‖H‖_F from the density, its error by the delta method."""
        if (density := self.density) is None:
            return None
        square = moments(density)[1]
        root = math.sqrt(square.value)
        return Estimate(root, square.stderr / (2.0 * root) if root else 0.0, square.samples, square.products)

    @property
    def negative(self) -> Share | None:
        """Share of the eigenvalues that are negative, and the interval it lies in."""
        density = self.density
        if density is None:
            return None
        return density.below(-self.signs.floor if self.complete else 0.0)

    @property
    def largest(self) -> float:
        """Max |λ| as far as found."""
        return float(self.ends.ritz.abs().max())

    @cached_property
    def signs(self) -> Signs:
        """How many eigenvalues are certainly of each sign."""
        floor = judging.rounding_floor(self.largest, self.point.parameters, self.eps)
        return judging.signs(as_array(self.ends.ritz), floor, self.complete)

    @cached_property
    def unseen(self) -> Unseen | None:
        """What the iterations may have missed."""
        if self.complete:
            return None
        found, size = [], self.point.parameters
        low, high = float(self.ends.ritz.min()), float(self.ends.ritz.max())
        found.append(judging.unseen(low, high, size, self.ends.steps, 1))
        density: Density | None = self.stages.get("density")
        if density is not None:
            low, high = min(low, float(density.nodes.min())), max(high, float(density.nodes.max()))
            probes = len(density.weights)
            steps = int(((density.weights > 0.0) & (density.weights != 1.0 / density.size)).sum(dim=1).min())
            found.append(judging.unseen(low, high, size - density.deflated, steps, probes))
        known = [entry for entry in found if entry is not None]
        return min(known, key=lambda entry: entry.high - entry.low, default=None)

    @cached_property
    def verdict(self) -> Verdict:
        """What kind of point this is, and what that rests on."""
        place = self.point
        test = judging.gradient_test(
            place.gradient, self.largest, place.size, place.noise, self.eps, float(self.options["gradient_tol"])
        )
        ritz = self.ends.ritz
        return judging.judge(test, self.signs, float(ritz.min()), float(ritz.max()), self.unseen)

    @cached_property
    def valley(self) -> Valley | None:
        """Condition and rates of the positive part."""
        return _valley(self.ends, self.stages.get("density"), self.signs.floor, self.complete)

    @cached_property
    def metric(self) -> Metric | None:
        """The Hessian as Adam sees it."""
        found = self.stages.get("metric")
        if found is None:
            return None
        ends: Ends = found["ends"]
        floor = judging.rounding_floor(float(ends.ritz.abs().max()), self.point.parameters, self.eps)
        complete = ends.top.method == "lapack"
        residual = 0.0 if ends.top.residuals is None else float(ends.top.residuals[0])
        return advising.adam_metric(
            str(found["source"]), float(ends.ritz.max()), residual, float(ends.ritz.min()),
            _valley(ends, None, floor, complete), self.options["learning_rate"], float(self.options["beta1"]),
        )  # fmt: skip

    @property
    def sharpness(self) -> Sharpness | None:
        """Worst case in a ball, and the scale-invariant λ_max."""
        return self.stages.get("sharpness")

    @property
    def slices(self) -> tuple[Slice, ...]:
        """The loss along eigenvectors."""
        return tuple(self.stages.get("slices") or ())

    @property
    def escape(self) -> Escape | None:
        """The way down along negative curvature."""
        return self.stages.get("escape")

    @property
    def landscape(self) -> Landscape | None:
        """The loss over a plane."""
        return self.stages.get("landscape")

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks, in the order of the model."""
        traces: Traces | None = self.stages.get("trace")
        known = dict(traces.blocks) if traces is not None else {}
        rows = [(name.removeprefix(BLOCK), part) for name, part in self.stages.items() if name.startswith(BLOCK)]
        return tuple(
            Block(name, int(part["size"]), part["ends"].top, part["ends"].bottom, known.get(name))
            for name, part in rows
        )

    @property
    def advice(self) -> tuple[str, ...]:
        """Sentences to act on."""
        rate, place = self.options["learning_rate"], self.point
        bound = float(self.top.bounds[0]) if len(self.top) else 0.0
        lines = advising.on_steps(float(self.ends.ritz.max()), bound, rate)
        lines += advising.on_momentum(self.valley, self.signs.positive)
        lines += advising.on_metric(self.metric, self.valley, rate)
        lines += advising.on_escape(self.escape, place.loss)
        lines += advising.on_negative(self.negative, place.parameters, self.signs.negative)
        sharp = self.sharpness
        if sharp is not None:
            lines += advising.on_sharpness(
                sharp.radius, sharp.first_order, sharp.second_order, sharp.measured, sharp.invariant
            )
            lines.append(CAVEAT)
        return tuple(lines)

    def figure(self, what: str = "density") -> go.Figure:
        """A Plotly figure: "density", "blocks", "slices", "landscape", "escape" or "valley".

        Raises:
            InputError: another name, or what was not computed.
        """
        from eigenscope.report import curvature_figures
        from eigenscope.tasks.curvature_content import content_of

        return curvature_figures.figure(content_of(self), what)

    def report(self, path: str | Path) -> Path:
        """Write the page.

        Raises:
            OSError: the file cannot be written.
        """
        from eigenscope.report import curvature_page
        from eigenscope.tasks.curvature_content import content_of

        curvature_page.write_page(content_of(self), path)
        return Path(path)

    def __repr__(self) -> str:
        return f"Curvature({self.source!r}, {self.point.parameters:,} parameters, {self.verdict.kind})"

    def _stage(self, name: str) -> Any:
        if name not in self.stages:
            raise InputError(
                f"no {name}", where=self.source, remedy="the analysis was interrupted before it: run it again"
            )
        return self.stages[name]


def _valley(ends: Ends, density: Density | None, floor: float, complete: bool) -> Valley | None:
    values = as_array(ends.ritz)
    if complete:
        positive = values[values > floor]
        return valleys.valley(positive, float(positive.min()), True) if len(positive) else None
    rules = [values]
    if density is not None:
        own = 1.0 / density.size
        rules += [as_array(density.nodes[(w > 0.0) & (w != own)]) for w in density.weights]
    smallest = valleys.smallest_positive(rules, floor)
    if smallest is None:
        return None
    seen = np.concatenate([values, *rules[1:2]])
    return valleys.valley(seen, smallest, False)


def _exact_density(ends: Ends) -> Density:
    values = ends.ritz
    size = len(values)
    grid = torch.cat([values[:1], values])
    mean = torch.arange(size + 1, dtype=torch.float64) / size
    return Density(
        grid=grid, mean=mean, low=mean, high=mean, bracket=torch.zeros_like(mean), nodes=values,
        weights=torch.full((1, size), 1.0 / size, dtype=torch.float64), size=size, kind="eigen", deflated=size, level=2.0,
        rounding=0.0, products=ends.top.products, seed=None,
    )  # fmt: skip
