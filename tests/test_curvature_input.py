"""What cannot be differentiated twice, is not a mean loss, or is no data: named, with what to do."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import eigenscope as es
from eigenscope.errors import InputError
from test_curvature_operators import cross_entropy, draws, flat, joined, labels, perceptron, perceptron_batches, seeded

Batch = tuple[Tensor, Tensor]


class Cube(torch.autograd.Function):
    """x³ whose backward cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 3 * ctx.saved_tensors[0] ** 2


class Constant(torch.autograd.Function):
    """x³ whose backward hides from the second one that it depends on x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.x = x.detach()
        return x**3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 3 * ctx.x**2


class Lopsided(torch.autograd.Function):
    """The identity of x and y, whose backward adds a part that is no gradient of anything."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient + 0.1 * x.roll(1)


def of_outputs(f: Callable[[Tensor, Tensor], Tensor]) -> Callable[[nn.Module, Batch], Tensor]:
    return lambda model, batch: f(model(batch[0]), batch[1])


def overwritten(z: Tensor, y: Tensor) -> Tensor:
    z = z.tanh()
    z.mul_(2.0)
    return z.square().mean()


def differentiated(model: nn.Module, batch: Batch) -> Tensor:
    loss = cross_entropy(model, batch)
    torch.autograd.grad(loss, list(model.parameters()))
    return loss


def checkpointed(z: Tensor, y: Tensor) -> Tensor:
    from torch.utils.checkpoint import checkpoint

    return checkpoint(lambda z: z.tanh().square().mean(), z, use_reentrant=True)


def sequence_loss(z: Tensor, y: Tensor) -> Tensor:
    ones = torch.ones(1, dtype=torch.int64)
    return functional.ctc_loss(z.log_softmax(1)[:, None], ones[None], ones * len(z), ones)


LOSSES: dict[str, tuple[Any, str]] = {
    "vector": (of_outputs(lambda z, y: z.sum(1)), r"loss of batch 0: a torch.float64 tensor of shape \(7,\).*real scalar.*mean"),
    "number": (lambda model, batch: 3.0, r"loss of batch 0: a float; expected a scalar tensor"),
    "NaN": (of_outputs(lambda z, y: z.sum() * float("nan")), r"loss of batch 0: it is nan.*finite"),
    "detached": (of_outputs(lambda z, y: z.detach().sum()), r"it has no gradient.*without detach"),
    "in place": (of_outputs(overwritten), r"overwritten in place.*x = x \+ y"),
    "once": (of_outputs(lambda z, y: Cube.apply(z).mean().square()), r"100.* away from the finite difference.*once_differentiable"),
    "hidden": (of_outputs(lambda z, y: Constant.apply(z).mean()), r"away from the finite difference.*wrong second derivative"),
    "lopsided": (lambda m, b: Lopsided.apply(flat(m.parameters())).square().sum(), r"not symmetric.*custom operation"),
    "no double backward": (of_outputs(sequence_loss), r"ctc_loss has no second derivative.*Replace it.*fisher"),
    "distance": (
        of_outputs(lambda z, y: torch.cdist(z, torch.ones(4, 3, dtype=z.dtype)).mean()), r"cdist has no second derivative"
    ),
    "checkpoint": (of_outputs(checkpointed), r"reentrant checkpointing.*use_reentrant=False"),
    "infinite": (lambda m, b: (m(b[0]) * 0.0).sum().square().sqrt() + m(b[0]).mean(), r"not finite.*norm of 0"),
    "not the model": (lambda model, batch: perceptron()(batch[0]).mean(), r"does not depend on any of the 4 parameters"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*checkpoint.*:UserWarning")
@pytest.mark.parametrize("name", LOSSES)
def test_losses_that_have_no_hessian_are_named(name: str) -> None:
    loss, match = LOSSES[name]
    model = perceptron()
    with pytest.raises(InputError, match=match):
        es.hessian(model, loss, perceptron_batches())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_backward_inside_the_loss_is_refused() -> None:
    with pytest.raises(InputError, match=r"freed by a backward inside.*without calling backward"):
        es.hessian(perceptron(), differentiated, perceptron_batches())


def test_a_loss_that_differs_when_evaluated_again_is_named() -> None:
    calls = itertools.count()
    with pytest.raises(InputError, match=r"evaluated again.*the same number.*deterministic"):
        es.hessian(perceptron(), of_outputs(lambda z, y: z.mean() * (1.0 + 0.01 * next(calls))), perceptron_batches())


def test_data_that_are_none() -> None:
    model, batches = perceptron(), perceptron_batches()
    generator = iter(batches)
    H = es.hessian(model, cross_entropy, generator)
    assert torch.equal(H.to_dense(), es.hessian(model, cross_entropy, batches).to_dense())
    for wrong, match in (
        (generator, "generator is used up.*make it anew"), ([], "no data"), (batches[0][0], r"a Tensor.*pass \[batch\]"),
        ({"x": batches[0][0]}, r"a dict.*pass \[batch\]"), (5, "a int"), ([None], "pass count="),
        ([(batches[0][0], torch.full((7,), -100))], "batch 0: its weight is 0"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"(?i){match}"):
            es.hessian(model, cross_entropy, wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="batch 1: its weight is nan"):
        es.hessian(model, cross_entropy, batches, count=lambda batch: float("nan") if len(batch[1]) == 1 else 1.0)
    with pytest.raises(InputError, match="without parameters"):
        es.hessian(nn.Tanh(), cross_entropy, batches)
    with pytest.raises(InputError, match=r"not initialised.*torchrun"):
        es.hessian(model, cross_entropy, batches, distributed=True)


def test_a_model_without_a_loss_of_its_own() -> None:
    with pytest.raises(InputError, match=r"output has no loss.*pass loss\(model, batch\)"):
        es.hessian(perceptron(), None, [{"input": draws(3, 4, seed=1)}])
    with pytest.raises(InputError, match=r"loss=None: a batch is a tuple"):
        es.hessian(perceptron(), None, perceptron_batches())


def test_kinks_and_lines_are_said() -> None:
    """Of a piecewise linear net the Hessian is that of one piece; a loss linear in the parameters has none."""
    model = seeded(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), 2)
    H = es.hessian(model, cross_entropy, perceptron_batches())
    assert any("Relu is piecewise linear" in note for note in H.notes)
    one_layer = H.block(["0.weight"]).to_dense()
    newton = es.gauss_newton(model, cross_entropy, perceptron_batches()).block(["0.weight"]).to_dense()
    assert torch.allclose(one_layer, newton, atol=1e-14)  # the outputs are linear in the weights of a layer
    line = es.hessian(perceptron(), lambda m, b: m[2].weight.sum() * b[0].mean(), perceptron_batches())
    assert not bool(line.to_dense().any())
    smooth = es.hessian(perceptron(), cross_entropy, perceptron_batches())
    assert not any("piecewise" in note for note in smooth.notes)


def test_a_finite_difference_across_kinks_refuses_nothing() -> None:
    """In single precision every step crosses kinks."""
    model = nn.Sequential(nn.Linear(4, 200), nn.ReLU(), nn.Linear(200, 3))
    seeded(model, 3).float()
    x, y = joined(perceptron_batches())
    H = es.hessian(model, cross_entropy, [(x.float(), y)])
    assert H.check is not None
    assert H.check.symmetry <= 1e-5


class Bag(nn.Module):
    """Sums of embeddings: an operation whose backward has no derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(6, 3, mode="sum")
        self.head = nn.Linear(3, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.bag(tokens)))


@pytest.mark.parametrize("kind", ["empirical", "sampled"])
def test_fisher_does_with_first_derivatives(kind: Any) -> None:
    model = seeded(Bag(), 4)
    tokens, y = labels(7, 4, classes=6, seed=5), labels(7, classes=3, seed=6)
    batches = [(tokens[:3], y[:3]), (tokens[3:], y[3:])]
    for make in (es.hessian, es.gauss_newton):
        with pytest.raises(InputError, match=r"embedding_bag has no second derivative.*es\.fisher"):
            make(model, cross_entropy, batches)
    F = es.fisher(model, cross_entropy, batches, kind=kind, samples=3, generator=torch.Generator().manual_seed(7))
    assert any("embedding_bag has no second derivative" in note for note in F.notes)
    assert F.check is not None
    assert F.check.difference is not None
    assert F.check.difference < 1e-4
    plain = nn.Module()
    plain.embedding = nn.Embedding(6, 3, _weight=model.bag.weight.detach().clone())
    plain.head = model.head
    plain.forward = lambda tokens: plain.head(torch.tanh(plain.embedding(tokens).sum(1)))
    twin = es.fisher(plain, cross_entropy, batches, kind=kind, samples=3, generator=torch.Generator().manual_seed(7))
    assert not twin.by_rows
    assert torch.allclose(F.to_dense(), twin.to_dense(), atol=1e-13)
    head = F.block(["head.weight", "head.bias"])
    assert torch.allclose(head.to_dense(), F.to_dense()[18:, 18:], atol=1e-14)
    with pytest.raises(InputError, match=r"gradients of its 3 rows need"):
        es.fisher(model, cross_entropy, batches, kind="empirical", memory=8)
