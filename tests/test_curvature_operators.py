"""Hessian, Gauss-Newton, Fisher, Jacobian: against dense matrices in double precision; and nothing of the model is touched."""

from __future__ import annotations

import copy
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

import eigenscope as es
from cases import Diagonal
from eigenscope.errors import InputError
from eigenscope.methods.krylov import eigenpairs
from eigenscope.methods.krylov_search import Search
from eigenscope.operators.preconditioned import diagonal_of

Batch = tuple[Tensor, Tensor]


def draws(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(*shape: int, classes: int, seed: int) -> Tensor:
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))


def seeded(model: nn.Module, seed: int) -> nn.Module:
    """The model in double precision with normal weights of standard deviation 0.5."""
    model = model.double()
    with torch.no_grad():
        for place, parameter in enumerate(model.parameters()):
            parameter.copy_(0.5 * draws(*parameter.shape, seed=1000 * seed + place))
    return model


def flat(parts: Any) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


def dense_hessian(value: Tensor, parameters: list[Tensor]) -> Tensor:
    """∇² by differentiating every entry of the gradient, all of them in one batched backward pass."""
    first = flat(torch.autograd.grad(value, parameters, create_graph=True, materialize_grads=True))
    every = torch.eye(len(first), dtype=first.dtype)
    rows = torch.autograd.grad(first, parameters, every, is_grads_batched=True, allow_unused=True)
    filled = [first.new_zeros(len(first), p.numel()) if row is None else row for row, p in zip(rows, parameters)]
    return torch.cat([part.reshape(len(first), -1) for part in filled], dim=1).detach()


def dense_jacobian(outputs: Tensor, parameters: list[Tensor]) -> Tensor:
    """(N, c, p) of (N, c) outputs."""
    rows = [flat(torch.autograd.grad(z, parameters, retain_graph=True)) for z in outputs.reshape(-1)]
    return torch.stack(rows).reshape(*outputs.shape, -1)


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def perceptron(seed: int = 1) -> nn.Module:
    return seeded(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), seed)


def perceptron_batches() -> list[Batch]:
    x, y = draws(12, 4, seed=2), labels(12, classes=3, seed=3)
    return [(x[:7], y[:7]), (x[7:8], y[7:8]), (x[8:], y[8:])]


def joined(batches: list[Batch]) -> Batch:
    x, y = zip(*batches)
    return torch.cat(x), torch.cat(y)


class LastState(nn.Module):
    """An LSTM of two layers; the last state is the output."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 3, num_layers=2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0][:, -1]


class Tied(nn.Module):
    """An embedding whose weight is the decoder's, a frozen layer and one that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.unused = nn.Linear(2, 2)
        self.decoder = nn.Linear(3, 6, bias=False)
        self.decoder.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decoder(torch.tanh(self.frozen(self.embedding(tokens))))


def convolution() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(18, 3)
    )


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=5, dropout=0.0, activation="gelu", batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 3))


def trained_statistics(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(0.1 * draws(2, seed=5))
            module.running_var.copy_(1.0 + draws(2, seed=6).square())
    return model


def image_batches() -> list[Batch]:
    x, y = draws(9, 1, 5, 5, seed=7), labels(9, classes=3, seed=8)
    return [(x[:4], y[:4]), (x[4:], y[4:])]


def sequence_batches() -> list[Batch]:
    x, y = draws(7, 3, 4, seed=9), labels(7, classes=3, seed=10)
    return [(x[:5], y[:5]), (x[5:], y[5:])]


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], list[Batch]]]] = {
    "MLP": (perceptron, perceptron_batches),
    "conv, BatchNorm evaluating": (lambda: trained_statistics(seeded(convolution(), 4)).eval(), image_batches),
    "conv, BatchNorm training": (lambda: trained_statistics(seeded(convolution(), 4)).train(), image_batches),
    "LayerNorm transformer": (lambda: seeded(encoder(), 11).train(), sequence_batches),
    "LSTM": (lambda: seeded(LastState(), 12), lambda: [(x[..., :3], y) for x, y in sequence_batches()]),
}


def oracle_model(model: nn.Module) -> nn.Module:
    """A copy without dropout."""
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return twin


@pytest.mark.parametrize("name", MODELS)
def test_hessian_is_the_dense_one(name: str) -> None:
    make, batches = MODELS[name][0](), MODELS[name][1]()
    twin = oracle_model(make)
    total = sum(len(y) for _, y in batches)
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        value = sum(len(batch[1]) / total * cross_entropy(twin, batch) for batch in batches)
    dense = dense_hessian(value, list(twin.parameters()))
    H = es.hessian(make, cross_entropy, batches)
    assert float((H.to_dense() - dense).abs().max()) <= 1e-10 * float(dense.abs().max())
    assert H.check is not None
    assert H.check.difference is not None
    assert H.check.difference <= 1e-6
    assert H.check.symmetry <= 1e-12
    found, expected = es.eigh(H, 4, which="both", method="krylov", tol=1e-10), torch.linalg.eigvalsh(dense).flip(0)
    ends = torch.cat([expected[:2], expected[-2:]])
    assert float((found.values - ends).abs().max()) <= 1e-9 * float(expected.abs().max())


@pytest.mark.parametrize("name", MODELS)
def test_gauss_newton_is_the_dense_product(name: str) -> None:
    model, batches = MODELS[name][0](), MODELS[name][1]()
    twin = oracle_model(model)
    total, dense = sum(len(y) for _, y in batches), torch.zeros(())
    for x, _ in batches:
        z = twin(x)
        J, p = dense_jacobian(z, list(twin.parameters())), z.softmax(1).detach()
        bend = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        dense = dense + torch.einsum("nap,nab,nbq->pq", J, bend, J) / total
    G = es.gauss_newton(model, cross_entropy, batches)
    assert float((G.to_dense() - dense).abs().max()) <= 1e-10 * float(dense.abs().max())


def test_one_sample_and_batches_without_labels() -> None:
    model, (x, _) = perceptron(), perceptron_batches()[0]

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).square().mean()

    dense = dense_hessian(loss(model, x), list(model.parameters()))
    H = es.hessian(model, loss, [x[:1], x[1:]])
    assert float((H.to_dense() - dense).abs().max()) <= 1e-12
    assert any("samples" in note for note in H.notes)
    one = dense_hessian(loss(model, x[:1]), list(model.parameters()))
    assert float((es.hessian(model, loss, [x[:1]]).to_dense() - one).abs().max()) <= 1e-12


def test_unweighted_batches_would_be_another_matrix() -> None:
    model, batches = perceptron(), perceptron_batches()
    weighted = es.hessian(model, cross_entropy, batches).to_dense()
    alike = es.hessian(model, cross_entropy, batches, count=lambda batch: 1.0).to_dense()
    mean = torch.stack([es.hessian(model, cross_entropy, [batch]).to_dense() for batch in batches]).mean(0)
    assert float((alike - mean).abs().max()) <= 1e-12
    assert float((alike - weighted).norm()) > 0.01 * float(weighted.norm())


def test_ignored_labels_do_not_count() -> None:
    model, (x, y) = perceptron(), joined(perceptron_batches())
    y = y.clone()
    y[[1, 2, 8]] = -100
    split = [(x[:4], y[:4]), (x[4:], y[4:])]
    whole = dense_hessian(cross_entropy(model, (x, y)), list(model.parameters()))
    assert float((es.hessian(model, cross_entropy, split).to_dense() - whole).abs().max()) <= 1e-12


def test_tied_frozen_and_unused_parameters() -> None:
    model = seeded(Tied(), 13)
    batch = (labels(2, 3, classes=6, seed=14), labels(2, 3, classes=6, seed=15))

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())

    parameters = [p for p in model.parameters() if p.requires_grad]
    H = es.hessian(model, loss, [batch])
    dense = dense_hessian(loss(model, batch), parameters)
    assert H.layout.names == ("embedding.weight", "unused.weight", "unused.bias")
    assert float((H.to_dense() - dense).abs().max()) <= 1e-12
    assert not bool(H.to_dense()[18:].any())
    said = " ".join(H.notes)
    assert "2 frozen parameters (12 entries)" in said
    assert "embedding.weight is shared with decoder.weight" in said
    assert "unused.weight" in said
    assert es.hessian(model, loss, [batch], params="decoder").shape == (18, 18)
    with pytest.raises(InputError, match=r"all 2 parameters are frozen.*requires_grad_"):
        es.hessian(model, loss, [batch], params="frozen")


def tiny_language_model(kind: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    small = {
        "vocab_size": 7, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 5,
        "max_position_embeddings": 6, "attn_implementation": "sdpa",
    }  # fmt: skip
    if kind == "Bert":
        return transformers.BertForMaskedLM(
            transformers.BertConfig(**small, type_vocab_size=1, attention_probs_dropout_prob=0.0)
        )
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**small, num_key_value_heads=1))


@pytest.mark.parametrize("kind", ["Bert", "Llama"])
def test_language_models_are_weighted_by_counted_tokens(kind: str) -> None:
    model = seeded(tiny_language_model(kind), 16).train()
    tokens = labels(3, 5, classes=7, seed=17)
    targets = torch.where(draws(3, 5, seed=18) > -0.3, tokens, -100)
    batches = [
        {"input_ids": tokens[:1], "attention_mask": torch.ones(1, 5, dtype=torch.int64), "labels": targets[:1]},
        {"input_ids": tokens[1:], "attention_mask": torch.ones(2, 5, dtype=torch.int64), "labels": targets[1:]},
    ]
    twin = copy.deepcopy(model).eval()
    twin.set_attn_implementation("eager")
    logits = twin(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    shifted = (logits[:, :-1], targets[:, 1:]) if kind == "Llama" else (logits, targets)
    value = functional.cross_entropy(shifted[0].flatten(0, 1), shifted[1].flatten(), ignore_index=-100)
    parameters = [p for p in twin.parameters() if p.requires_grad]
    first = flat(torch.autograd.grad(value, parameters, create_graph=True, materialize_grads=True))
    H = es.hessian(model, None, batches)
    assert H.objective.total == float((shifted[1] != -100).sum())
    V = torch.linalg.qr(draws(H.shape[0], 3, seed=19))[0]
    expected = torch.stack(
        [flat(torch.autograd.grad(first @ v, parameters, retain_graph=True, materialize_grads=True)) for v in V.T], 1
    )
    limit = 1e-10 if kind == "Bert" else 1e-6  # the loss of causal models is computed in single precision
    assert float((H @ V - expected).norm()) <= limit * float(expected.norm())
    G = es.gauss_newton(model, None, batches)
    through = torch.softmax(shifted[0], -1).detach()
    J = dense_jacobian(shifted[0].flatten(0, 1), parameters)[shifted[1].flatten() != -100]
    p = through.flatten(0, 1)[shifted[1].flatten() != -100]
    x = torch.einsum("nap,pk->nak", J, V)
    bent = p[:, :, None] * (x - torch.einsum("na,nak->nk", p, x)[:, None])
    assert float((G @ V - torch.einsum("nap,nak->pk", J, bent) / len(p)).norm()) <= limit * float((G @ V).norm())


def test_single_precision_inside_a_double_model_is_said() -> None:
    class Rounded(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(super().forward(x)).float().exp().double()

    model = seeded(nn.Sequential(Rounded(4, 5), nn.Linear(5, 3)), 38)
    H = es.hessian(model, cross_entropy, perceptron_batches())
    assert any("single precision" in note for note in H.notes)
    assert H.check is not None
    assert 1e-12 < H.check.symmetry < 1e-4


def test_a_loss_with_derivatives_inside() -> None:
    """A physics-informed net: u'' = −u, u(0) = 1."""
    model = seeded(nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)), 20)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        t = batch.clone().requires_grad_()
        u = model(t)
        (slope,) = torch.autograd.grad(u.sum(), t, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), t, create_graph=True)
        return (bend + u).square().mean() + (model(torch.zeros(1, 1, dtype=t.dtype)) - 1.0).square().sum()

    t = draws(6, 1, seed=21)
    dense = dense_hessian(loss(model, t), list(model.parameters()))
    with torch.no_grad():
        H = es.hessian(model, loss, [t])
        assert float((H.to_dense() - dense).abs().max()) <= 1e-10 * float(dense.abs().max())


def test_blocks_share_the_graph_and_are_those_of_the_whole() -> None:
    calls = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        calls.append(1)
        return cross_entropy(model, batch)

    for make in (es.hessian, es.gauss_newton):
        H = make(perceptron(), loss, perceptron_batches())
        dense = H.to_dense()
        calls.clear()
        for by, keys in (
            ("layer", ["0", "2"]), ("module", ["0", "2"]), ("parameter", ["0.weight", "0.bias", "2.weight", "2.bias"])
        ):  # fmt: skip
            blocks = H.blocks(by)
            assert list(blocks) == keys
            start = 0
            for block in blocks.values():
                place = slice(start, start + block.shape[0])
                assert torch.allclose(block.to_dense(), dense[place, place], atol=1e-14)
                start = place.stop
            assert start == H.shape[0]
        assert not calls
        direct = make(perceptron(), loss, perceptron_batches(), params=["2"])
        assert torch.allclose(direct.to_dense(), dense[25:, 25:], atol=1e-14)
        assert torch.equal(
            H.block(["2.bias", "0.bias"]).to_dense()[:5, 5:], H.block(["0.bias", "2.bias"]).to_dense()[:5, 5:]
        )
    with pytest.raises(InputError, match=r"nonsense.*names in its layout"):
        H.block(["nonsense"])
    with pytest.raises(InputError, match="layer, module or parameter"):
        H.blocks("head")


def test_parameters_are_chosen_by_pattern_name_and_predicate() -> None:
    model, batches = perceptron(), perceptron_batches()
    weights = es.hessian(model, cross_entropy, batches, params=r"\.weight$")
    assert weights.layout.names == ("0.weight", "2.weight")
    matrices = es.hessian(model, cross_entropy, batches, params=lambda name, tensor: tensor.ndim == 2)
    assert matrices.layout == weights.layout
    whole = es.hessian(model, cross_entropy, batches).to_dense()
    keep = torch.cat([torch.arange(20), torch.arange(25, 40)])
    assert torch.allclose(weights.to_dense(), whole[keep][:, keep], atol=1e-14)
    for wrong in ("wieght", ["0.wieght"], lambda name, tensor: False, []):
        with pytest.raises(InputError, match=r"selects nothing; expected names such as .*0\.weight"):
            es.hessian(model, cross_entropy, batches, params=wrong)
    with pytest.raises(InputError, match="no regular expression"):
        es.hessian(model, cross_entropy, batches, params="(")


def test_empirical_fisher_is_the_mean_of_outer_products() -> None:
    model, batches = perceptron(), perceptron_batches()
    x, y = joined(batches)
    parameters = list(model.parameters())
    rows = [
        flat(torch.autograd.grad(cross_entropy(model, (x[i : i + 1], y[i : i + 1])), parameters)) for i in range(12)
    ]
    dense = torch.stack(rows).T @ torch.stack(rows) / 12
    F = es.fisher(model, cross_entropy, batches, kind="empirical")
    assert float((F.to_dense() - dense).abs().max()) <= 1e-12
    assert any("labels of the data" in note for note in F.notes)


LIKELIHOODS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Tensor]] = {
    "softmax": (functional.cross_entropy, labels(12, classes=3, seed=3)),
    "gaussian": (functional.mse_loss, draws(12, 3, seed=22)),
    "logistic": (functional.binary_cross_entropy_with_logits, (draws(12, 3, seed=23) > 0).double()),
    "one column": (
        lambda z, y: functional.binary_cross_entropy_with_logits(z[:, 0], y), (draws(12, seed=24) > 0).double(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_sampled_fisher_tends_to_gauss_newton(name: str) -> None:
    of_outputs, y = LIKELIHOODS[name]
    model, x = perceptron(), joined(perceptron_batches())[0]

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return of_outputs(model(batch[0]), batch[1])

    batches = [(x[:5], y[:5]), (x[5:], y[5:])]
    G = es.gauss_newton(model, loss, batches).to_dense()

    def sampled(samples: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return es.fisher(model, loss, batches, samples=samples, generator=generator, check=False).to_dense()

    few, many = (float((sampled(samples, 25) - G).norm() / G.norm()) for samples in (8, 8 * 256))
    assert many <= 0.05
    assert few >= 3.0 * many
    assert torch.equal(sampled(8, 26), sampled(8, 26))
    assert not torch.equal(sampled(8, 26), sampled(8, 27))
    if name == "softmax":  # each factor is a difference p − e_y: its entries sum to 0
        F = es.fisher(model, loss, batches, samples=4)
        assert float(F.graphs.get(0).data.sum(2).abs().max()) <= 1e-12


def test_fisher_of_no_likelihood_and_of_two_calls_is_refused() -> None:
    model, batches = perceptron(), perceptron_batches()
    with pytest.raises(InputError, match=r"no softmax cross-entropy.*empirical"):
        es.fisher(model, lambda model, batch: model(batch[0]).pow(4).mean(), batches)
    with pytest.raises(InputError, match=r"calls the model 2 times.*gauss_newton"):
        es.fisher(model, lambda model, batch: (model(batch[0]) * model(-batch[0])).mean(), batches, kind="empirical")
    with pytest.raises(InputError, match="sampled or empirical"):
        es.fisher(model, cross_entropy, batches, kind="exact")  # type: ignore[arg-type]


def test_gauss_newton_of_several_calls_of_named_outputs_and_of_a_penalty() -> None:
    model, x = perceptron(), joined(perceptron_batches())[0]
    parameters = list(model.parameters())

    def contrast(model: nn.Module, batch: Tensor) -> Tensor:
        return (model(batch) - model(-2.0 * batch)).square().sum(1).mean()

    J = dense_jacobian(model(x) - model(-2.0 * x), parameters).reshape(36, -1)
    expected = 2.0 * J.T @ J / 12
    assert torch.allclose(es.gauss_newton(model, contrast, [x]).to_dense(), expected, atol=1e-12)
    named = es.gauss_newton(
        model,
        lambda z, batch: z.square().sum(1).mean(),
        [x],
        outputs=lambda model, batch: model(batch) - model(-2.0 * batch),
    )
    assert torch.allclose(named.to_dense(), expected, atol=1e-12)
    assert not any("another way" in note for note in named.notes)
    penalised = es.gauss_newton(model, lambda m, b: contrast(m, b) + 0.1 * flat(m.parameters()).square().sum(), [x])
    assert torch.allclose(penalised.to_dense(), expected, atol=1e-12)
    assert any("another way" in note for note in penalised.notes)
    with pytest.raises(InputError, match="does not depend on what the model returns"):
        es.gauss_newton(model, lambda m, b: flat(m.parameters()).square().sum(), [x])


def test_jacobian_of_a_function_and_of_a_model() -> None:
    x = draws(2, 3, seed=28)

    def f(x: Tensor) -> Tensor:
        return torch.cat([x.sin() @ x.T, x[:, :1].exp()], dim=1)

    expected = torch.autograd.functional.jacobian(f, x).reshape(6, 6)
    J = es.jacobian(f, x)
    assert torch.allclose(J.to_dense(), expected, atol=1e-14)
    assert torch.allclose(J.T.to_dense(), expected.T, atol=1e-14)
    assert torch.equal(J.value, f(x))
    assert not x.requires_grad
    model, data = perceptron(), joined(perceptron_batches())[0]
    by_parameters = dense_jacobian(model(data), list(model.parameters())).reshape(36, -1)
    assert torch.allclose(es.jacobian(model, data, params=True).to_dense(), by_parameters, atol=1e-13)
    assert torch.allclose(es.tangent_kernel(model, data).to_dense(), by_parameters @ by_parameters.T, atol=1e-12)
    last = es.tangent_kernel(model, data, params="^2").to_dense()
    assert torch.allclose(last, by_parameters[:, 25:] @ by_parameters[:, 25:].T, atol=1e-12)
    for wrong, point, match in (
        (lambda x: x.detach(), x, "does not depend"), (f, x.long(), "float32 or float64"), (lambda x: None, x, "NoneType")
    ):  # fmt: skip
        with pytest.raises(InputError, match=match):
            es.jacobian(wrong, point)


def history(optimizer: torch.optim.Optimizer, model: nn.Module, steps: int) -> list[Tensor]:
    """Flat gradients of some steps that the optimiser makes."""
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model, joined(perceptron_batches())).backward()
        found.append(flat(p.grad.clone() for p in model.parameters()))
        optimizer.step()
    return found


def moment(gradients: list[Tensor], decay: float) -> Tensor:
    total = torch.zeros_like(gradients[0])
    for gradient in gradients:
        total = decay * total + (1.0 - decay) * gradient.square()
    return total


OPTIMISERS: dict[str, tuple[Callable[[Any], torch.optim.Optimizer], Callable[[list[Tensor]], Tensor]]] = {
    "Adam": (
        lambda p: torch.optim.Adam(p, 1e-2, betas=(0.8, 0.95), eps=1e-4),
        lambda g: (1 - 0.8 ** len(g)) * ((moment(g, 0.95) / (1 - 0.95 ** len(g))).sqrt() + 1e-4),
    ),
    "AdamW": (
        lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1),
        lambda g: (1 - 0.9 ** len(g)) * ((moment(g, 0.999) / (1 - 0.999 ** len(g))).sqrt() + 1e-8),
    ),
    "amsgrad": (
        lambda p: torch.optim.Adam(p, 0.5, betas=(0.9, 0.5), amsgrad=True),
        lambda g: (1 - 0.9 ** len(g)) * (
            (torch.stack([moment(g[: i + 1], 0.5) for i in range(len(g))]).amax(0) / (1 - 0.5 ** len(g))).sqrt() + 1e-8
        ),
    ),
    "RMSprop": (lambda p: torch.optim.RMSprop(p, 1e-2, alpha=0.9, eps=1e-3), lambda g: moment(g, 0.9).sqrt() + 1e-3),
    "Adagrad": (lambda p: torch.optim.Adagrad(p, 1e-2), lambda g: torch.stack(g).square().sum(0).sqrt() + 1e-10),
    "SGD": (lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9), lambda g: torch.ones_like(g[0])),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIMISERS)
def test_preconditioned_by_a_live_optimiser(name: str) -> None:
    model = perceptron()
    optimizer = OPTIMISERS[name][0](model.parameters())
    gradients = history(optimizer, model, 4)
    D = OPTIMISERS[name][1](gradients)
    H = es.hessian(model, cross_entropy, perceptron_batches())
    found = es.preconditioned(H, optimizer)
    expected = H.to_dense() / torch.outer(D, D).sqrt()
    assert float((found.to_dense() - expected).abs().max()) <= 1e-10 * float(expected.abs().max())
    values = torch.linalg.eigvals(H.to_dense() / D[:, None]).real.sort().values
    assert torch.allclose(torch.linalg.eigvalsh(found.to_dense()), values, atol=1e-8 * float(values.abs().max()))
    block = H.block(["2.weight", "2.bias"])
    assert torch.allclose(es.preconditioned(block, optimizer).diagonal, found.diagonal[25:])


def test_preconditioners_that_cannot_be_are_refused() -> None:
    model = perceptron()
    H = es.hessian(model, cross_entropy, perceptron_batches())
    with pytest.raises(InputError, match=r"Adam, 0\.weight: it has no state"):
        es.preconditioned(H, torch.optim.Adam(model.parameters()))
    with pytest.raises(InputError, match=r"2\.weight: it is not among the optimiser"):
        es.preconditioned(H, torch.optim.SGD(model[0].parameters(), 0.1))
    with pytest.raises(InputError, match=r"Adadelta is not known.*tensor"):
        es.preconditioned(H, torch.optim.Adadelta(model.parameters()))
    with pytest.raises(InputError, match="the first, 3, is 0"):
        es.preconditioned(H, torch.ones(43, dtype=torch.float64).index_fill(0, torch.tensor([3]), 0.0))
    with pytest.raises(InputError, match=r"\(43,\)"):
        es.preconditioned(H, torch.ones(5))
    with pytest.raises(InputError, match="knows no parameters"):
        es.preconditioned(-1.0 * H, torch.optim.SGD(model.parameters(), 0.1))


def test_groups_with_other_rates_move_further() -> None:
    model = perceptron()
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters(), "lr": 0.4}]
    H = es.hessian(model, cross_entropy, perceptron_batches())
    D = diagonal_of(torch.optim.SGD(groups, lr=0.1), H)
    assert torch.equal(D, torch.cat([torch.ones(25), torch.full((18,), 0.25)]).double())


def everything(model: nn.Module) -> dict[str, Any]:
    """All that must not change, as bytes."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        "values": [
            (name, id(tensor), tensor.data_ptr(), tensor.detach().numpy().tobytes()) for name, tensor in tensors
        ],
        "versions": [tensor._version for _, tensor in tensors],
        "needs": [p.requires_grad for p in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.numpy().tobytes() for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "hooks": [len(module._forward_hooks) for module in model.modules()],
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": np.random.get_state()[1].tobytes(),
        "python": random.getstate(),
        "gradient mode": torch.is_grad_enabled(),
    }


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_nothing_of_the_model_is_touched(mode: Any) -> None:
    model, batches = seeded(convolution(), 29).train(), image_batches()
    for place, parameter in enumerate(model.parameters()):
        parameter.grad = draws(*parameter.shape, seed=place)
    with mode():
        before = everything(model)
        for make in (es.hessian, es.gauss_newton, es.fisher):
            H = make(model, cross_entropy, batches)
            assert everything(model) == before
            H @ draws(H.shape[0], 2, seed=30)
            H.objective.gradient(draws(H.shape[0], seed=31))
            assert everything(model) == before
        es.jacobian(model, batches[0][0], params=True) @ draws(H.shape[0], seed=32)
        assert everything(model) == before
        with pytest.raises(ZeroDivisionError):
            es.hessian(model, lambda model, batch: model(batch[0]).sum() * (1 / 0), batches)
        with pytest.raises(InputError):
            es.hessian(model, lambda model, batch: model(batch[0]).sum() * float("nan"), batches)
        assert everything(model) == before


def test_value_and_gradient_at_shifted_parameters() -> None:
    model, batches = perceptron(), perceptron_batches()
    H = es.hessian(model, cross_entropy, batches)
    shift = 0.1 * draws(43, seed=33)
    moved = copy.deepcopy(model)
    nn.utils.vector_to_parameters(flat(model.parameters()).detach() + shift, moved.parameters())
    value = cross_entropy(moved, joined(batches))
    assert H.objective.value(shift) == pytest.approx(float(value.detach()), rel=1e-13)
    expected = flat(torch.autograd.grad(value, list(moved.parameters())))
    assert torch.allclose(H.objective.gradient(shift), expected, atol=1e-13)
    assert H.objective.value() == pytest.approx(float(cross_entropy(model, joined(batches)).detach()), rel=1e-13)


def test_streamed_products_are_those_of_kept_graphs() -> None:
    model, batches = perceptron(), perceptron_batches()
    kept, streamed = (es.hessian(model, cross_entropy, batches, memory=memory) for memory in (None, 0))
    X = draws(43, 3, seed=34)
    assert torch.equal(kept @ X, streamed @ X)
    assert (kept.cost.kept, streamed.cost.kept) == (3, 0)
    one = es.hessian(model, cross_entropy, batches, memory=kept.graphs.bytes // 2)
    assert torch.equal(one @ X, kept @ X)
    assert 1 <= one.cost.kept < 3
    assert one.graphs.bytes <= kept.graphs.bytes // 2
    assert kept.cost.seconds is not None
    assert kept.cost.seconds > 0.0
    # Larger batches first: the forecast of the first one is near what all of them take.
    forecast = es.hessian(model, cross_entropy, batches).cost.graph_bytes
    assert 0.3 * kept.graphs.bytes <= forecast <= 3.0 * kept.graphs.bytes


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: 8")]
)
def test_out_of_memory_falls_back_to_streaming_and_says_so(error: RuntimeError) -> None:
    model, batches = perceptron(), perceptron_batches()
    full = {"now": 0}

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        if full["now"] > 0 and len(batch[1]) == 4:
            full["now"] -= 1
            raise error
        return cross_entropy(model, batch)

    H = es.hessian(model, loss, batches)
    x, expected = draws(43, seed=35), es.hessian(model, cross_entropy, batches) @ draws(43, seed=35)
    full["now"] = 1
    assert torch.equal(H @ x, expected)
    assert any("Memory ran out" in note for note in H.notes)
    assert H.cost.kept == 0
    assert torch.equal(H @ x, expected)
    full["now"] = 10
    with pytest.raises(InputError, match=r"batch 2.*smaller"):
        H @ x


def test_parameters_changed_since_are_noticed() -> None:
    model = perceptron()
    H = es.hessian(model, cross_entropy, perceptron_batches())
    x = draws(43, seed=36)
    H @ x
    model[0].weight.data.add_(1e-3)  # raises no version
    with pytest.raises(InputError, match="changed since"):
        H @ x


def test_precision_of_half_weights_and_of_choice() -> None:
    model, batches = perceptron().to(torch.bfloat16), perceptron_batches()
    wide = es.hessian(copy.deepcopy(model).double(), cross_entropy, batches).to_dense()
    single = [(x.to(torch.bfloat16), y) for x, y in batches]
    rounded = es.hessian(copy.deepcopy(model).double(), cross_entropy, [(x.double(), y) for x, y in single]).to_dense()
    H = es.hessian(model, cross_entropy, single)
    assert H.dtype == torch.float32
    assert any("float32 on a copy" in note for note in H.notes)
    assert float((H.to_dense() - rounded).norm()) <= 1e-5 * float(rounded.norm())
    D = es.hessian(model, cross_entropy, batches, dtype=torch.float64)
    assert torch.equal(D.to_dense(), wide)
    assert model[0].weight.dtype == torch.bfloat16
    with pytest.raises(InputError, match="float32 or float64"):
        es.hessian(model, cross_entropy, batches, dtype=torch.float16)


def test_draws_of_the_loss_are_frozen_and_said() -> None:
    model = perceptron()

    def noisy(model: nn.Module, batch: Batch) -> Tensor:
        x = batch[0] + 0.1 * torch.randn_like(batch[0]) + random.random() + np.random.rand()
        return cross_entropy(model, (x, batch[1]))

    H = es.hessian(model, noisy, perceptron_batches())
    torch.rand(7), random.random()
    streamed = es.hessian(model, noisy, perceptron_batches(), memory=0)
    assert torch.equal(H.to_dense(), streamed.to_dense())
    assert any("draws random numbers" in note for note in H.notes)
    quiet = es.hessian(model, cross_entropy, perceptron_batches())
    assert not any("draws" in note for note in quiet.notes)


def test_residuals_of_eigenpairs_cost_no_further_products() -> None:
    H = es.hessian(perceptron(), cross_entropy, perceptron_batches())
    dense = H.to_dense()
    H.products = 0
    found = es.eigh(H, 3, method="krylov", tol=1e-7, generator=torch.Generator().manual_seed(37))
    assert H.products == found.products
    assert found.products <= 30
    true = torch.linalg.vector_norm(dense @ found.right - found.right * found.values, dim=0)
    assert float((true - found.residuals).abs().max()) <= 1e-13
    assert float((found.values - torch.linalg.eigvalsh(dense).flip(0)[:3]).abs().max()) <= 1e-10


@pytest.mark.parametrize("steps", [None, 0])
def test_an_eigenvalue_that_the_start_has_little_of_is_not_passed_over(steps: int | None, monkeypatch: Any) -> None:
    """Otherwise the pair below it is returned in its place, with a residual that looks right."""
    if steps == 0:
        monkeypatch.setattr(Search, "_confirmed", lambda search, ritz, chosen, *_: search._found(ritz, chosen))
    bulk = 0.4 * torch.rand(20_000, generator=torch.Generator().manual_seed(39)).double() ** 8
    values = torch.cat([torch.tensor([2.4, 1.9, 1.8, 1.3, 1.03, 0.96, 0.6], dtype=torch.float64), bulk])
    errors = []
    for seed in range(6):
        start = draws(len(values), seed=seed)
        start[4] *= 1e-3
        found = eigenpairs(Diagonal(values), 5, tol=1e-3, start=start)
        assert found.products <= 30
        errors.append(float((found.values - values[:5]).abs().max()))
    assert max(errors) <= 1e-6 if steps is None else max(errors) >= 0.01


DISTRIBUTED = """
import sys, torch, torch.distributed as dist, eigenscope as es
from eigenscope.errors import InputError
dist.init_process_group("gloo")
rank = dist.get_rank()
sys.path.insert(0, {tests!r})
from test_curvature_operators import cross_entropy, draws, perceptron, perceptron_batches
batches = perceptron_batches()
mine = batches[:1] if rank == 0 else batches[1:]
H = es.hessian(perceptron(), cross_entropy, mine)
G = es.gauss_newton(perceptron(), cross_entropy, mine)
same = dict(generator=torch.Generator().manual_seed(3))
values = es.eigh(H, 3, method="krylov", tol=1e-9, **same).values
other = "not noticed"
try:
    H @ draws(43, seed=rank)
except InputError as error:
    other = str(error)
alone = es.hessian(perceptron(), cross_entropy, mine, distributed=False)
torch.save((H.to_dense(), G.to_dense(), values, H.objective.value(), H.objective.gradient(), other, alone.objective.total,
            H.notes), {folder!r} + f"/{{rank}}.pt")
dist.destroy_process_group()
"""


def test_two_processes_equal_one(tmp_path: Any) -> None:
    from pathlib import Path

    script = tmp_path / "run.py"
    script.write_text(DISTRIBUTED.format(tests=str(Path(__file__).parent), folder=str(tmp_path)))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    batches = perceptron_batches()
    H = es.hessian(perceptron(), cross_entropy, batches)
    G = es.gauss_newton(perceptron(), cross_entropy, batches)
    expected = torch.linalg.eigvalsh(H.to_dense()).flip(0)[:3]
    for rank in range(2):
        dense, newton, values, value, gradient, other, alone, notes = torch.load(
            tmp_path / f"{rank}.pt", weights_only=True
        )
        assert torch.allclose(dense, H.to_dense(), atol=1e-14)
        assert torch.allclose(newton, G.to_dense(), atol=1e-14)
        assert torch.allclose(values, expected, rtol=1e-6)
        assert value == pytest.approx(H.objective.value(), rel=1e-14)
        assert torch.allclose(gradient, H.objective.gradient(), atol=1e-14)
        assert "different vectors" in other
        assert alone == (7.0 if rank == 0 else 5.0)
        assert any("2 processes" in note for note in notes)
