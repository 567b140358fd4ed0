"""The optimisers on functions whose critical points are known, against SciPy, and as citizens of torch.optim."""

from __future__ import annotations

import copy
import gc
import itertools
import math
import pickle

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor, nn

import eigenscope as es
from eigenscope.errors import InputError
from eigenscope.operators.evaluated import LossHessian
from eigenscope.optim import Newton, NewtonCG, SaddleFreeNewton

BOTH = pytest.mark.parametrize("kind", [NewtonCG, SaddleFreeNewton])
ALL = pytest.mark.parametrize("kind", [Newton, NewtonCG, SaddleFreeNewton])


def bounded_saddle(x: Tensor) -> Tensor:
    return x[0] ** 2 - x[1] ** 2 + x[1] ** 4 / 4  # saddle at 0, minima −1 at (0, ±√2)


def monkey(x: Tensor) -> Tensor:
    return x[0] ** 3 - 3 * x[0] * x[1] ** 2 + x.square().sum() ** 2  # third-order saddle at 0, three minima −27/256


def rosenbrock(x: Tensor) -> Tensor:
    return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2


def himmelblau(x: Tensor) -> Tensor:
    return (x[0] ** 2 + x[1] - 11) ** 2 + (x[0] + x[1] ** 2 - 7) ** 2  # four minima 0, four saddles, one maximum


def minimised(function, start, kind, steps=60, dtype=torch.float64, **options):
    """The point reached, the value there, and the norms of the gradient where the steps began."""
    x = torch.tensor(start, dtype=dtype, requires_grad=True)
    optimizer = kind([x], **options)

    def closure():
        optimizer.zero_grad()
        loss = function(x)
        loss.backward()
        return loss

    norms = []
    for _ in range(steps):
        optimizer.step(closure)
        norms.append(float(torch.linalg.vector_norm(x.grad)))
    point = x.detach()
    return point, float(function(point)), norms, optimizer


def eigenvalues(function, point):
    return torch.linalg.eigvalsh(torch.autograd.functional.hessian(function, point))


@BOTH
@pytest.mark.parametrize("start", [[1.0, 0.0], [0.0, 0.0], [0.5, 1e-9], [-2.0, 1e-3]])
def test_a_saddle_is_left_for_a_minimum(kind, start):
    point, value, _, _ = minimised(bounded_saddle, start, kind, steps=20)
    assert value == pytest.approx(-1.0, abs=1e-12)
    assert abs(float(point[1])) == pytest.approx(math.sqrt(2), abs=1e-6)


@pytest.mark.parametrize("start", [[1.0, 0.0], [0.5, 1e-9], [-2.0, 1e-3]])
def test_newton_goes_to_the_saddle(start):
    point, _, norms, _ = minimised(bounded_saddle, start, Newton, steps=20)
    assert float(torch.linalg.vector_norm(point)) < 1e-6
    assert norms[-1] < 1e-9
    assert eigenvalues(bounded_saddle, point)[0] < -1.0


@BOTH
@pytest.mark.parametrize("start", [[0.3, 0.0], [0.0, 0.0], [0.1, 0.05]])
def test_a_monkey_saddle_is_left_even_from_its_middle(kind, start):
    _, value, _, _ = minimised(monkey, start, kind, steps=40)
    assert value == pytest.approx(-27 / 256, abs=1e-10)


def test_newton_goes_to_the_monkey_saddle():
    point, _, _, _ = minimised(monkey, [0.3, 0.0], Newton, steps=40)
    assert float(torch.linalg.vector_norm(point)) < 1e-6


@BOTH
def test_at_a_point_of_no_gradient_and_no_curvature_that_is_a_minimum_nothing_moves(kind):
    point, _, _, optimizer = minimised(lambda x: x.pow(4).sum(), [0.0, 0.0], kind, steps=3)
    assert point.eq(0.0).all()
    assert optimizer.last.kind == "none"


@BOTH
def test_a_maximum_is_left(kind):
    _, value, _, _ = minimised(lambda x: torch.cos(x[0]) + torch.cos(2 * x[1]), [0.0, 0.0], kind, steps=30)
    assert value == pytest.approx(-2.0, abs=1e-12)


@BOTH
def test_rosenbrock_converges_quadratically_in_no_more_steps_than_scipy(kind):
    start = [-1.2, 1.0]
    oracle = scipy.optimize.minimize(
        scipy.optimize.rosen, start, jac=scipy.optimize.rosen_der, hessp=scipy.optimize.rosen_hess_prod,
        method="trust-ncg", options={"gtol": 1e-10},
    )  # fmt: skip
    point, _, norms, _ = minimised(rosenbrock, start, kind, steps=60)
    needed = next(step for step, norm in enumerate(norms) if norm <= 1e-10)
    assert needed <= 1.5 * oracle.nit
    np.testing.assert_allclose(point, 1.0, atol=1e-10)
    # Quadratic: with the digits to see it, each gradient is of the order of the square of the one before.
    tail = [norm for norm in norms if 1e-9 < norm < 1.0]
    assert tail[-1] < 1e-2 * tail[-2]


SADDLES = [(3.38515, 0.07385), (-3.07303, -0.08135), (0.08668, 2.88426), (-0.12796, -1.95371)]


@pytest.mark.parametrize("saddle", SADDLES)
@pytest.mark.parametrize("offset", [(0.0, 0.0), (0.05, 0.02), (-0.03, 0.05)])
def test_himmelblau_from_near_its_saddles(saddle, offset):
    start = [saddle[0] + offset[0], saddle[1] + offset[1]]
    point, _, norms, _ = minimised(himmelblau, start, Newton, steps=12)
    assert torch.allclose(point, torch.tensor(saddle, dtype=torch.float64), atol=1e-4)
    assert norms[-1] < 1e-9
    assert eigenvalues(himmelblau, point)[0] < 0.0
    for kind in (NewtonCG, SaddleFreeNewton):
        point, value, _, _ = minimised(himmelblau, start, kind, steps=30)
        assert value < 1e-20, kind
        assert eigenvalues(himmelblau, point)[0] > 0.0


def deep_linear_net(depth, dtype=torch.float64):
    """A linear network at zero, its inputs and targets: gradient exactly zero, a saddle of order ``depth``."""
    source = torch.Generator().manual_seed(3)
    inputs = torch.randn(40, 4, generator=source, dtype=dtype)
    targets = inputs @ torch.randn(4, 4, generator=source, dtype=dtype)
    net = nn.Sequential(*(nn.Linear(4, 4, bias=False, dtype=dtype) for _ in range(depth)))
    for layer in net:
        nn.init.zeros_(layer.weight)
    return net, lambda: nn.functional.mse_loss(net(inputs), targets)


@BOTH
@pytest.mark.parametrize("depth", [2, 3])
def test_a_deep_linear_net_at_zero_is_left(kind, depth):
    net, loss = deep_linear_net(depth)
    first = float(loss().detach())
    optimizer = kind(net.parameters(), max_products=40)
    for _ in range(40):
        optimizer.step(loss)
    assert float(loss().detach()) < 1e-12 * first
    assert next(net.parameters()).grad is not None


def test_newton_and_gradient_descent_stay_in_a_deep_linear_net_at_zero():
    net, loss = deep_linear_net(2)
    optimizer = Newton(net.parameters())
    optimizer.step(loss)
    assert all(p.eq(0.0).all() for p in net.parameters())


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_ill_conditioned_quadratic(kind, dtype):
    scales = torch.logspace(0, -6, 30, dtype=dtype)
    start = [1.0] * 30
    _, value, _, _ = minimised(
        lambda x: 0.5 * (scales * x.square()).sum(), start, kind, steps=25, dtype=dtype, max_products=60
    )
    assert value < 1e-8 * float(0.5 * scales.sum())


@BOTH
@pytest.mark.parametrize("function", [himmelblau, rosenbrock, monkey])
@pytest.mark.parametrize("factor", [2.0**30, 2.0**-40])
def test_scaling_the_loss_changes_no_bit(kind, function, factor):
    plain, _, _, _ = minimised(function, [0.2, 0.3], kind, steps=15)
    scaled, _, _, _ = minimised(lambda x: factor * function(x), [0.2, 0.3], kind, steps=15)
    assert torch.equal(plain, scaled)


def little_net(dtype=torch.float64, seed=0):
    source = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=source, dtype=dtype))
    inputs = torch.randn(60, 5, generator=source, dtype=dtype)
    targets = torch.randint(0, 3, (60,), generator=source)
    return net, lambda: nn.functional.cross_entropy(net(inputs), targets)


@BOTH
def test_a_saved_and_restored_state_goes_on_bit_for_bit(kind):
    net, loss = little_net()
    optimizer = kind(net.parameters(), seed=5)
    for _ in range(4):
        optimizer.step(loss)
    other, other_loss = little_net()
    other.load_state_dict(net.state_dict())
    resumed = kind(other.parameters(), radius=7.0, seed=99)
    resumed.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))
    for _ in range(4):
        optimizer.step(loss)
        resumed.step(other_loss)
        assert resumed.last == optimizer.last
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), other.parameters(), strict=True))
    assert resumed.state_dict() == optimizer.state_dict()


@BOTH
def test_a_deep_copy_goes_on_as_well(kind):
    net, loss = little_net()
    optimizer = kind(net.parameters())
    optimizer.step(loss)
    other = copy.deepcopy(optimizer)
    assert other.last is None
    with pytest.raises(InputError, match="radius"):
        other.add_param_group({"params": nn.Parameter(torch.ones(1)), "radius": 3.0})


@BOTH
def test_without_the_state_the_same_steps_are_not_taken(kind):
    net, loss = little_net()
    optimizer = kind(net.parameters())
    for _ in range(4):
        optimizer.step(loss)
    other, other_loss = little_net()
    other.load_state_dict(net.state_dict())
    fresh = kind(other.parameters())
    for _ in range(4):
        optimizer.step(loss)
        fresh.step(other_loss)
    assert not all(torch.equal(p, q) for p, q in zip(net.parameters(), other.parameters(), strict=True))


def closures(optimizer, loss, parts):
    """The forms of closure that are served; ``parts`` are losses that add up to ``loss``."""

    def usual(set_to_none=True):
        optimizer.zero_grad(set_to_none)
        value = loss()
        value.backward()
        return value

    def accumulated():
        optimizer.zero_grad()
        total = 0.0
        for part in parts:
            value = part()
            value.backward()
            total += float(value.detach())
        return total

    def silent():
        optimizer.zero_grad()
        loss().backward()

    return {
        "returns": loss,
        "usual": usual,
        "zeroed": lambda: usual(False),
        "accumulated": accumulated,
        "silent": silent,
    }


@ALL
@pytest.mark.parametrize("form", ["usual", "accumulated", "silent"])
def test_every_form_of_closure_takes_the_same_steps(kind, form):
    points = []
    for name in ("returns", form):
        net, loss = little_net()
        optimizer = kind(net.parameters())
        parts = [lambda f=loss: 0.25 * f(), lambda f=loss: 0.75 * f()]
        closure = closures(optimizer, loss, parts)[name]
        for _ in range(1 if kind is Newton else 3):  # whose second step is already rounding: H is nearly singular
            optimizer.step(closure)
        points.append(nn.utils.parameters_to_vector(net.parameters()).detach())
    assert torch.allclose(*points, rtol=1e-7, atol=1e-9)


@BOTH
@pytest.mark.parametrize("form", ["returns", "usual", "zeroed"])
def test_the_gradient_left_behind_is_that_of_the_start_and_the_loss_returned_its_value(kind, form):
    net, loss = little_net()
    before = loss()
    expected = torch.autograd.grad(before, list(net.parameters()))
    optimizer = kind(net.parameters())
    returned = optimizer.step(closures(optimizer, loss, [])[form])
    assert float(returned) == float(before.detach())
    assert not returned.requires_grad
    for p, gradient in zip(net.parameters(), expected, strict=True):
        assert torch.allclose(p.grad, gradient, rtol=1e-12, atol=1e-15)
        assert not p.grad.requires_grad
    assert float(loss().detach()) < float(before.detach())


@BOTH
def test_no_step_goes_uphill(kind):
    net, loss = little_net()
    optimizer = kind(net.parameters())
    values = [float(optimizer.step(loss)) for _ in range(25)]
    assert all(after <= before * (1 + 1e-14) for before, after in itertools.pairwise(values))
    assert values[-1] < 0.1 * values[0]


@BOTH
def test_groups_have_their_own_weight_decay_and_frozen_parameters_stay(kind):
    net, loss = little_net()
    net[0].bias.requires_grad_(False)
    frozen = net[0].bias.detach().clone()
    unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
    groups = [
        {"params": [*net[0].parameters()], "weight_decay": 0.02},
        {"params": net[2].parameters(), "weight_decay": 0.1},
        {"params": [unused]},
    ]
    optimizer = kind(groups)
    for _ in range(30):
        optimizer.step(loss)
    assert torch.equal(net[0].bias, frozen)
    assert unused.eq(1.0).all()
    assert unused.grad is None
    # At the minimum of loss + ½·decay·‖p‖² the gradient of the loss is −decay·p.
    for decay, parameters in ((0.02, [net[0].weight]), (0.1, list(net[2].parameters()))):
        for p, gradient in zip(parameters, torch.autograd.grad(loss(), parameters), strict=True):
            assert torch.allclose(gradient, -decay * p, atol=1e-5)


def test_groups_may_not_differ_in_what_belongs_to_the_whole_step():
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    with pytest.raises(InputError, match=r"radius is 1\.0 in one group and 2.0 in another"):
        NewtonCG([{"params": [a]}, {"params": [b], "radius": 2.0}])


@BOTH
def test_single_and_double_precision_parameters_side_by_side(kind):
    a = torch.tensor([2.0, -1.0], dtype=torch.float32, requires_grad=True)
    b = torch.tensor([[3.0]], dtype=torch.float64, requires_grad=True)
    optimizer = kind([a, b])
    for _ in range(20):
        optimizer.step(lambda: (a.double().square().sum() - b.square()).square().sum() + (a - 1).square().sum())
    assert a.dtype == torch.float32
    assert b.dtype == torch.float64
    assert torch.allclose(a, torch.ones(2), atol=1e-5)
    assert float(b.detach().abs()) == pytest.approx(math.sqrt(2), abs=1e-5)


@BOTH
def test_no_graph_outlives_the_step(kind):
    net, loss = little_net()
    optimizer = kind(net.parameters())
    optimizer.step(loss)
    gc.collect()

    def graphs():
        return sum(issubclass(type(item), Tensor) and item.grad_fn is not None for item in gc.get_objects())

    before = graphs()
    for _ in range(3):
        optimizer.step(loss)
    assert graphs() == before


@BOTH
def test_dropout_masks_agree_within_a_step_and_differ_between_steps(kind):
    net, _ = little_net()
    inputs = torch.randn(30, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drop, seen = nn.Dropout(0.5), []

    def loss():
        hidden = drop(net[0](inputs))
        seen.append(hidden.eq(0.0))
        return net[2](hidden).square().mean()

    torch.manual_seed(0)
    optimizer = kind(net.parameters())
    optimizer.step(loss)
    inside = list(seen)
    optimizer.step(loss)
    assert len(inside) >= 2
    assert all(torch.equal(mask, inside[0]) for mask in inside)
    assert not torch.equal(seen[-1], inside[0])


@BOTH
def test_a_loss_that_becomes_infinite_on_the_way_only_shortens_the_step(kind):
    point, _, _, _ = minimised(lambda x: -torch.log(x).sum() + x.sum(), [0.01, 50.0], kind, steps=60)
    assert torch.allclose(point, torch.ones(2, dtype=torch.float64), atol=1e-6)


@BOTH
def test_an_interrupted_step_leaves_the_parameters_where_they_were(kind):
    net, loss = little_net()
    calls = []

    def closure():
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return loss()

    before = copy.deepcopy(net.state_dict())
    with pytest.raises(KeyboardInterrupt):
        kind(net.parameters()).step(closure)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_products_are_those_of_the_dense_hessian():
    net, loss = little_net()
    parameters = list(net.parameters())
    operator = LossHessian(loss(), parameters)
    point = nn.utils.parameters_to_vector(parameters).detach()

    def function(vector):
        parts = dict(zip(dict(net.named_parameters()), vector.split([p.numel() for p in parameters]), strict=True))
        return function.loss(parts)

    inputs = torch.randn(60, 5, generator=torch.Generator().manual_seed(9), dtype=torch.float64)

    def functional(parts):
        shaped = {
            name: part.view(p.shape) for (name, p), part in zip(net.named_parameters(), parts.values(), strict=True)
        }
        return torch.func.functional_call(net, shaped, inputs).square().mean()

    function.loss = functional
    operator = LossHessian(net(inputs).square().mean(), parameters)
    dense = torch.autograd.functional.hessian(function, point)
    assert torch.allclose(operator.to_dense(), dense, rtol=1e-10, atol=1e-13)


@ALL
@pytest.mark.parametrize(
    ("closure", "message"),
    [
        (None, "step\\(\\) without a closure"),
        (lambda p: None, "returned NoneType and called no backward"),
        (lambda p: 3.0, "returned float"),
        (lambda p: p * 2, "loss of shape \\(2,\\)"),
        (lambda p: p.detach().sum(), "no graph"),
        (lambda p: torch.ones((), requires_grad=True) * 2, "does not depend on any parameter"),
        (lambda p: (p * math.nan).sum(), "the loss is nan"),
        (lambda p: p.sum().log(), "the loss is -?(inf|nan)"),
        (lambda p: p.sum().backward(gradient=torch.ones(())), "backward\\(\\) with gradient or inputs"),
        (lambda p: [loss := p.square().sum(), torch.autograd.backward(loss)][0], "freed before its second derivatives"),
    ],
)  # fmt: skip
def test_bad_closures_are_refused_in_one_line(kind, closure, message):
    p = nn.Parameter(torch.zeros(2))
    with pytest.raises(InputError, match=message) as caught:
        kind([p]).step(closure and (lambda: closure(p)))
    assert "\n" not in str(caught.value)
    assert p.eq(0.0).all()


class OnceOnly(torch.autograd.Function):
    """A square without a second derivative, as fused kernels are."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


@BOTH
def test_an_operation_without_a_second_derivative_is_named(kind):
    points = nn.Parameter(torch.rand(5, 2, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(InputError, match=r"no second derivative here: .*_cdist_backward"):
        kind([points]).step(lambda: torch.cdist(points, torch.ones(4, 2), p=1.5).square().mean())


@ALL
def test_a_function_differentiable_once_is_not_taken_for_linear(kind):
    p = nn.Parameter(torch.ones(2))
    with pytest.raises(InputError, match="differentiated only once"):
        kind([p]).step(lambda: OnceOnly.apply(p).sum().square())


@ALL
def test_parameters_that_cannot_be_served_are_refused(kind):
    half = nn.Parameter(torch.ones(2, dtype=torch.float16))
    with pytest.raises(InputError, match="float16"):
        kind([half]).step(half.sum)
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    with pytest.raises(InputError, match="no parameter requires a gradient"):
        kind([frozen]).step(lambda: torch.ones((), requires_grad=True) * 1)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (NewtonCG, {"radius": 0.0}), (NewtonCG, {"max_radius": math.nan}), (NewtonCG, {"tolerance": 1.0}),
        (NewtonCG, {"max_products": 0}), (SaddleFreeNewton, {"damping": -1.0}), (NewtonCG, {"weight_decay": -0.1}),
        (Newton, {"lr": 0.0}), (Newton, {"weight_decay": -1.0}),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(kind, options):
    name = next(iter(options))
    with pytest.raises(InputError, match=name):
        kind([nn.Parameter(torch.ones(1))], **options)


def test_newton_refuses_what_it_cannot_form():
    p = nn.Parameter(torch.zeros(5000))
    with pytest.raises(InputError, match="5000 parameters"):
        Newton([p]).step(lambda: p.square().sum())


@BOTH
def test_attention_is_differentiated_twice(kind):
    source = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 8, generator=source)
    weight = nn.Parameter(0.3 * torch.randn(8, 24, generator=source))

    def loss():
        q, k, v = (x @ weight).chunk(3, dim=-1)
        return nn.functional.scaled_dot_product_attention(q, k, v).sub(x).square().mean()

    optimizer = kind([weight])
    values = [float(optimizer.step(loss)) for _ in range(5)]
    assert values[-1] < 0.9 * values[0]


def test_they_are_public_names():
    assert es.optim.NewtonCG is NewtonCG
    assert "optim" in dir(es)
