"""Verdicts on points of which the truth is known: functions of two variables, a deep linear network, quadratics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import eigenscope as es
from eigenscope.errors import InputError
from eigenscope.measures import curvature as judging
from eigenscope.measures import rates, sharpness, slices, valley
from eigenscope.methods.ends import ends
from eigenscope.methods.lanczos import recurrence
from eigenscope.methods.probes import sphere
from eigenscope.operators.arrays import Dense


class At(nn.Module):
    """A function of its one parameter, at a point."""

    def __init__(self, function, point):
        super().__init__()
        self.function = function
        self.x = nn.Parameter(torch.tensor(point, dtype=torch.float64))

    def forward(self):
        return self.function(self.x)


def looked_at(function, point, **options):
    return es.curvature(At(function, point), lambda model, batch: model(), [torch.ones(1)], **options)


def himmelblau(x):
    return (x[0] ** 2 + x[1] - 11.0) ** 2 + (x[0] + x[1] ** 2 - 7.0) ** 2


def rosenbrock(x):
    return 100.0 * (x[1] - x[0] ** 2) ** 2 + (1.0 - x[0]) ** 2


def polished(function, point):
    """The critical point near a rounded one, by Newton in float64."""
    x = torch.tensor(point, dtype=torch.float64)
    for _ in range(20):
        gradient = torch.autograd.functional.jacobian(function, x)
        x = x - torch.linalg.solve(torch.autograd.functional.hessian(function, x), gradient)
    return x.tolist()


HIMMELBLAU = {
    (3.0, 2.0): "minimum", (-2.805118, 3.131312): "minimum", (-3.779310, -3.283186): "minimum",
    (3.584428, -1.848126): "minimum", (-0.270845, -0.923039): "maximum", (0.086678, 2.884255): "saddle",
    (3.385154, 0.073852): "saddle", (-0.127961, -1.953715): "saddle", (-3.073026, -0.081353): "saddle",
}  # fmt: skip


@pytest.mark.parametrize(("point", "kind"), HIMMELBLAU.items())
def test_himmelblaus_nine_critical_points(point, kind):
    exact = polished(himmelblau, point)
    found = looked_at(himmelblau, exact)
    assert found.verdict.kind == kind
    dense = torch.linalg.eigvalsh(
        torch.autograd.functional.hessian(himmelblau, torch.tensor(exact, dtype=torch.float64))
    )
    assert found.verdict.index == int((dense < 0).sum())
    assert found.verdict.exact_index
    torch.testing.assert_close(found.ends.ritz, dense, rtol=1e-12, atol=0.0)


def test_a_saddle_and_the_way_down_from_it():
    found = looked_at(lambda x: x[0] ** 2 - x[1] ** 2, [0.0, 0.0])
    assert (found.verdict.kind, found.verdict.index) == ("saddle", 1)
    assert found.escape is not None
    assert found.escape.eigenvalue == pytest.approx(-2.0)
    # The function is its own quadratic model: every promise is kept.
    assert found.escape.measured == pytest.approx(found.escape.promised)
    assert found.escape.reach == found.escape.distances[-1]


def test_an_escape_knows_how_far_its_promise_holds():
    found = looked_at(lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4, [0.0, 0.0])
    way = found.escape
    assert way is not None
    # −y² + y⁴ is at least half of −y² up to |y| = 1/√2, and lowest, −1/4, there; the steps double.
    assert way.reach <= 1 / math.sqrt(2.0) < 2.0 * way.reach
    assert 0.15 < way.best <= 0.25


def test_the_monkey_saddle_is_degenerate():
    found = looked_at(lambda x: x[0] ** 3 - 3.0 * x[0] * x[1] ** 2, [0.0, 0.0])
    assert found.verdict.kind == "degenerate"
    assert found.verdict.signs.zero == 2
    assert found.valley is None


def test_a_valley_floor_is_degenerate_though_nothing_is_negative():
    found = looked_at(lambda x: (x[0] + x[1]) ** 2, [1.0, -1.0])
    assert found.verdict.kind == "degenerate"
    assert (found.verdict.signs.positive, found.verdict.signs.zero) == (1, 1)


def test_rosenbrocks_minimum_and_a_point_beside_it():
    found = looked_at(rosenbrock, [1.0, 1.0])
    assert found.verdict.kind == "minimum"
    assert found.valley is not None
    assert found.valley.exact
    assert found.valley.rates.condition == pytest.approx(2508.0, rel=1e-3)
    beside = looked_at(rosenbrock, [1.01, 1.0201])
    assert beside.verdict.kind == "not a critical point"
    assert "‖∇L‖" in beside.verdict.sentence


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_no_unit_changes_a_verdict(scale, unit):
    for point, kind in (
        ((3.0, 2.0), "minimum"),
        ((0.086678, 2.884255), "saddle"),
        ((1.0, 1.0), "not a critical point"),
    ):
        exact = polished(himmelblau, point) if kind != "not a critical point" else list(point)
        found = looked_at(lambda x: scale * himmelblau(x / unit), [unit * entry for entry in exact])
        assert found.verdict.kind == kind


class DeepLinear(nn.Module):
    """A product of matrices, and its squared error."""

    def __init__(self, depth, width=3):
        super().__init__()
        self.layers = nn.ParameterList(torch.zeros(width, width, dtype=torch.float64) for _ in range(depth))

    def forward(self, x):
        for layer in self.layers:
            x = x @ layer.mT
        return x


@pytest.mark.parametrize(("depth", "kind"), [(2, "saddle"), (3, "degenerate")])
def test_a_deep_linear_network_at_zero(depth, kind):
    """Kawaguchi, Deep Learning without Poor Local Minima, NeurIPS 2016, §3: from three layers on H is zero at zero."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(10, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    found = es.curvature(DeepLinear(depth), lambda m, b: (m(b[0]) - b[1]).square().mean(), [(x, y)])
    assert found.verdict.kind == kind
    if depth == 2:
        assert found.verdict.index == found.verdict.signs.positive == 9


def quadratic(values, seed=0):
    """½ xᵀHx at 0 for a dense H of these eigenvalues, in more dimensions than products are allowed."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))[0]
    H = (basis * torch.as_tensor(values, dtype=torch.float64)) @ basis.mT
    return lambda x: 0.5 * x @ H @ x


@pytest.mark.parametrize(
    ("low", "kind"), [(0.9, "minimum"), (1e-9, "undecided"), (-0.3, "saddle")]
)  # fmt: skip
def test_verdicts_by_products_alone(low, kind):
    values = np.linspace(max(low, 0.0), 1.0, 600)
    values[0] = low
    found = looked_at(quadratic(values), [0.0] * 600, budget=120, density=False, trace=False)
    assert not found.complete
    assert found.verdict.kind == kind
    if kind == "undecided":
        assert found.unseen is not None
        assert found.unseen.low < 0.0 < found.verdict.certainty < 1.0
    # The claim is about what was not seen: it holds of the truth.
    assert found.unseen is not None
    assert found.unseen.low <= values.min()
    assert found.unseen.high >= values.max()


def test_gradient_noise_over_batches_makes_a_point_possible():
    """At the mean of the data the loss of one half of them has a gradient, of the size that the halves' scatter explains."""
    generator = torch.Generator().manual_seed(4)
    data = torch.randn(64, 3, generator=generator, dtype=torch.float64) + 10.0
    model = At(lambda x: x.sum(), data.mean(dim=0).add(0.01).tolist())
    found = es.curvature(model, lambda m, b: 0.5 * (b - m.x).square().sum(dim=1).mean(), list(data.split(8)))
    assert found.verdict.kind == "not a critical point"
    assert found.verdict.gradient.within_noise
    assert found.verdict.gradient.norm == pytest.approx(0.01 * math.sqrt(3.0), rel=1e-6)
    # Variance of the mean of 64 standard normal vectors of length 3.
    assert found.verdict.gradient.noise == pytest.approx(math.sqrt(3.0 / 64.0), rel=0.35)
    assert "noise" in found.verdict.sentence
    alone = es.curvature(model, lambda m, b: 0.5 * (b - m.x).square().sum(dim=1).mean(), [data])
    assert alone.verdict.gradient.noise is None


def test_gradient_noise_is_the_standard_error_in_the_mean():
    generator = np.random.default_rng(1)
    squares = []
    for _ in range(400):
        gradients = generator.standard_normal((6, 20))
        mean = gradients.mean(axis=0)
        noise = judging.gradient_noise(((gradients - mean) ** 2).sum(axis=1), np.full(6, 1 / 6))
        assert noise is not None
        squares.append(noise**2)
    assert np.mean(squares) == pytest.approx(20.0 / 6.0, rel=0.05)


@pytest.mark.parametrize("shape", ["outlier", "edge", "flat"])
def test_the_bound_on_missed_eigenvalues_holds_in_simulation(shape):
    """Kuczyński & Woźniakowski 1992: of 400 random starts no more miss by ε than the bound allows; with seed 0."""
    size, steps, trials = 300, 14, 400
    values = torch.linspace(-1.0, 1.0, size, dtype=torch.float64)
    if shape == "outlier":
        values[-1] = 1.03
    if shape == "edge":
        values = torch.cos(torch.linspace(math.pi, 0.0, size, dtype=torch.float64))
    A = Dense(torch.diag(values), symmetric=True)
    runs = recurrence((A,), sphere(A, trials, torch.Generator().manual_seed(0)), steps)
    found = np.array([float(runs.quadrature(trial)[0].max()) for trial in range(trials)])
    gaps = (float(values.max()) - found) / float(values.max() - values.min())
    missed = 0
    for share in np.linspace(1e-4, 0.24, 60):
        chance = judging.missed_probability(float(share), size, steps)
        missed += int((gaps > share).sum())
        assert (gaps > share).mean() <= chance + 3.0 * math.sqrt(chance / trials)
    assert missed, "a test in which nothing is ever missed says nothing"
    reach = judging.unseen(-1.0, float(np.quantile(found, 0.01)), size, steps, 1)
    assert reach is None or reach.high >= float(values.max())


def test_more_starts_and_steps_narrow_what_may_be_missed():
    one = judging.unseen(-1.0, 1.0, 10_000, 60, 1)
    eight = judging.unseen(-1.0, 1.0, 10_000, 60, 8)
    longer = judging.unseen(-1.0, 1.0, 10_000, 120, 1)
    assert one is not None
    assert eight is not None
    assert longer is not None
    assert one.high > eight.high > 1.0
    assert one.high > longer.high > 1.0
    assert judging.unseen(-1.0, 1.0, 10_000, 5, 1) is None
    whole = judging.unseen(-1.0, 1.0, 10, 10, 1)
    assert whole is not None
    assert (whole.low, whole.high, whole.certainty) == (-1.0, 1.0, 1.0)


@pytest.mark.parametrize("condition", [10.0, 1000.0, 1e5])
@pytest.mark.parametrize("method", ["gradient descent", "momentum"])
def test_predicted_rates_are_the_measured_ones(condition, method):
    values = np.geomspace(1.0, condition, 12)
    if method == "gradient descent" and condition > 1e4:
        values = np.array([1.0, 40.0, condition])  # the same 600,000 steps, quicker with fewer values
    best = rates.best(1.0, condition)
    found = rates.measured(values, best, method)
    assert found is not None
    assert rates.steps_per_digit(found) == pytest.approx(best.steps_per_digit(method), rel=0.05)


def test_rates_by_products_with_the_operator_itself():
    """Gradient descent and heavy ball on the operator of a network's loss, step by step, not on its spectrum."""
    values = np.geomspace(0.1, 1.0, 12)
    H = es.hessian(At(quadratic(values), [0.0] * 12), lambda m, b: m(), [torch.ones(1)])
    best = rates.best(0.1, 1.0)
    for method, step, momentum, count in (
        ("gradient descent", best.gradient_step, 0.0, 200), ("momentum", best.momentum_step, best.momentum, 150),
    ):  # fmt: skip
        x = before = torch.ones(12, dtype=torch.float64)
        norms = []
        for _ in range(count):
            x, before = x - step * (H @ x) + momentum * (x - before), x
            norms.append(float(torch.linalg.vector_norm(torch.cat([x, before]))))
        seen = (norms[-1] / norms[count // 2 - 1]) ** (1.0 / (count - count // 2))
        assert rates.steps_per_digit(seen) == pytest.approx(best.steps_per_digit(method), rel=0.05)


def test_a_step_beyond_the_bound_diverges_and_one_below_does_not():
    values = np.geomspace(1.0, 100.0, 5)
    best = rates.best(1.0, 100.0)
    for factor, ratio in ((0.99, -1), (1.01, 1)):
        grown = np.abs(1.0 - factor * best.step_bound * values).max()
        assert math.copysign(1.0, math.log(grown)) == ratio


def test_rates_refuse_what_is_no_valley():
    with pytest.raises(InputError, match="0 < μ ≤ L"):
        rates.best(-1.0, 1.0)
    with pytest.raises(InputError, match="positive"):
        rates.measured(np.array([-1.0, 1.0]), rates.best(1.0, 1.0), "momentum")
    assert rates.measured(np.array([1.0, 1e12]), rates.best(1.0, 1e12), "gradient descent") is None
    assert rates.measured(np.ones(3), rates.best(1.0, 1.0), "momentum") == 0.0


def test_adams_bound_by_running_adam_with_a_frozen_preconditioner():
    """x ← x − η m̂/√v with v held fixed: stable a little below (2 + 2β₁)/((1 − β₁)η), not a little above."""
    for factor, stable in ((0.98, True), (1.02, False)):
        curvature = factor * rates.adam_bound(1e-2, 0.9)
        x, mean = 1.0, 0.0
        for _ in range(2000):
            mean = 0.9 * mean + 0.1 * curvature * x
            x -= 1e-2 * mean
        assert (abs(x) < 1.0) == stable
    assert rates.adam_learning_rate(rates.adam_bound(1e-3)) == pytest.approx(1e-3)
    with pytest.raises(InputError, match="β₁"):
        rates.adam_bound(1e-3, 1.0)


@pytest.mark.parametrize("seed", range(20))
def test_the_worst_case_in_a_ball_is_the_largest_value_there(seed):
    generator = np.random.default_rng(seed)
    size = int(generator.integers(1, 4))
    H = generator.standard_normal((size, size))
    H = (H + H.T) * 10.0 ** generator.integers(-2, 3)
    g = generator.standard_normal(size) * (seed % 4 > 0)
    if seed % 5 == 0:
        H -= 3.0 * np.abs(np.linalg.eigvalsh(H)).max() * np.eye(size)
    radius = 10.0 ** generator.integers(-1, 2)
    value, step = sharpness.worst_in_ball(g, H, radius)
    assert np.linalg.norm(step) <= radius * (1.0 + 1e-9)
    assert value == pytest.approx(g @ step + 0.5 * step @ H @ step)
    tried = generator.standard_normal((size, 4000))
    tried *= radius * generator.random(4000) ** (1.0 / size) / np.linalg.norm(tried, axis=0)
    assert value >= (g @ tried + 0.5 * (tried * (H @ tried)).sum(axis=0)).max() - 1e-9 * abs(value)


def test_the_smallest_positive_eigenvalue_is_never_above_the_bound_on_it():
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        values = torch.randn(60, generator=generator, dtype=torch.float64)
        A = Dense(torch.diag(values), symmetric=True)
        rule = recurrence((A,), sphere(A, 1, generator), 9).quadrature(0)[0].numpy()
        bound = valley.smallest_positive([rule], 0.0)
        assert bound is not None
        assert float(values[values > 0.0].min()) <= bound
    assert valley.smallest_positive([np.array([-1.0, 2.0])], 0.0) is None


@pytest.mark.parametrize("basis", [None, 11])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_ends_with_residuals_that_are_true(basis, dtype):
    generator = torch.Generator().manual_seed(2)
    Q = torch.linalg.qr(torch.randn(200, 200, generator=generator, dtype=torch.float64))[0]
    values = torch.cat(
        [torch.tensor([-3.0, -1.0, -0.6]), 0.2 * torch.rand(192, generator=generator), torch.arange(2.0, 7.0)]
    )
    A = Dense(((Q * values.double()) @ Q.mT).to(dtype), symmetric=True)
    found = ends(A, 5, 3, tol=1e-4, basis=basis, generator=generator)
    assert found.finished
    assert found.top.values.tolist() == pytest.approx([6.0, 5.0, 4.0, 3.0, 2.0], abs=1e-4)
    assert found.bottom.values.tolist() == pytest.approx([-0.6, -1.0, -3.0], abs=1e-4)
    for part in (found.top, found.bottom):
        true = torch.linalg.vector_norm(
            A.matrix.double() @ part.right.double() - part.right.double() * part.values, dim=0
        )
        assert (true <= part.bounds).all()


def test_of_two_near_values_none_is_passed_over():
    """The second of two near values is seen late, and the third takes its place until then: seeds 0 to 29."""
    values = torch.cat([torch.tensor([10.0, 9.9, 6.0]).double(), torch.linspace(-0.5, 0.5, 400, dtype=torch.float64)])
    A = Dense(torch.diag(values), symmetric=True)
    for seed in range(30):
        found = ends(A, 2, 0, tol=1e-2, generator=torch.Generator().manual_seed(seed))
        assert found.top.values.tolist() == pytest.approx([10.0, 9.9], abs=1e-3)


def test_ends_of_an_invariant_space_and_of_a_spent_budget():
    zero = ends(Dense(torch.zeros(9, 9), symmetric=True), 2, 2)
    assert zero.finished
    assert zero.top.values.tolist() == zero.bottom.values.tolist() == [0.0, 0.0]
    A = Dense(torch.diag(torch.linspace(-1.0, 1.0, 300, dtype=torch.float64)), symmetric=True)
    short = ends(A, 3, 3, tol=1e-8, max_products=12, generator=torch.Generator().manual_seed(0))
    assert not short.finished
    assert not short.top.converged.all()
    assert short.top.products == 12
    for count, told in ((0, "1 to 300"), (301, "1 to 300")):
        with pytest.raises(InputError, match=told):
            ends(A, count, 0)
    with pytest.raises(InputError, match="at least 9"):
        ends(A, 3, 3, basis=8)


def test_a_slice_of_a_quadratic_is_its_model():
    part = slices.slice_along("top", lambda t: 2.0 + 0.5 * t + 3.0 * t * t, 6.0, 0.5, 0.7)
    assert part.losses == pytest.approx(part.model)
    assert part.distances[0] == -part.distances[-1] == -0.7
    assert slices.reach_of(0.0, 1.0, 0.0) == 1.0
    assert slices.reach_of(2.0, 1.0, 100.0) == pytest.approx(2.0)
