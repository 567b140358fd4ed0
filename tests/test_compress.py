"""Compression end to end on small networks, and the optimality it rests on."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from eigenscope.errors import InputError
from eigenscope.methods.whitening import held_out_losses, interpolate, metric, scaling, weighted_svd
from eigenscope.models import lowrank
from eigenscope.models.demo import demo_folder
from eigenscope.models.statistics import collect_moments
from eigenscope.models.text import Domain
from eigenscope.tasks.calibration import MomentFiles, calibrate, passes
from eigenscope.tasks.compressed import compress, shared_copy
from eigenscope.tasks.recover import recover

WORDS = "the spectrum of a matrix tells how far it stretches the sphere and a layer that is sick says so in one line of numbers"
TEXT = {
    "prose": " ".join(WORDS.split()[(7 * i + i // 3) % 24] for i in range(2400)),
    "code": "\n".join(f"def f{i}(x):\n    return x * {i % 17} + g(x, {i % 5})" for i in range(500)),
}


def spd(n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(3 * n, n, generator=generator, dtype=torch.float64) * torch.linspace(
        0.1, 2.0, n, dtype=torch.float64
    )
    return A.T @ A / (3 * n)


def weighted_error(W, G, X):
    return float(torch.trace(G @ W @ X @ W.T))


@pytest.mark.parametrize("rank", [1, 4, 7])
@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (9, 9)])
def test_cut_is_the_best_in_both_metrics(rank, shape):
    rows, cols = shape
    generator = torch.Generator().manual_seed(rank)
    W = torch.randn(rows, cols, generator=generator, dtype=torch.float64)
    G, X = spd(rows, 1), spd(cols, 2)
    found = weighted_svd(W, metric(G, 1e-12), metric(X, 1e-12))
    left, right = found.left[:, :rank] * found.values[:rank], found.right[:rank]
    best = weighted_error(W - left @ right, G, X)
    assert best == pytest.approx(float((found.values[rank:] ** 2).sum()), rel=1e-6)
    for size in (1e-3, 1e-2, 0.1):
        for _ in range(20):
            other = (left + size * torch.randn(left.shape, generator=generator, dtype=torch.float64)) @ (
                right + size * torch.randn(right.shape, generator=generator, dtype=torch.float64)
            )
            assert weighted_error(W - other, G, X) >= best
    U, s, V = torch.linalg.svd(W)
    assert weighted_error(W - (U[:, :rank] * s[:rank]) @ V[:rank], G, X) > best


def test_full_rank_is_exact_and_every_rank_predicted_on_other_moments():
    W = torch.randn(10, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = weighted_svd(W, metric(spd(10, 3), 1e-3), metric(spd(6, 4), 1e-4))
    torch.testing.assert_close((found.left * found.values) @ found.right, W, rtol=1e-10, atol=1e-10)
    G, X = spd(10, 5), spd(6, 6)
    losses = held_out_losses(found, G, X)
    for rank in range(7):
        cut = W - (found.left[:, :rank] * found.values[:rank]) @ found.right[:rank]
        assert float(losses[rank]) == pytest.approx(0.5 * weighted_error(cut, G, X), rel=1e-9, abs=1e-12)


def test_interpolation_is_the_product_and_its_coefficients_stay_small():
    generator = torch.Generator().manual_seed(1)
    left = torch.randn(40, 9, generator=generator, dtype=torch.float64) * torch.logspace(0, -6, 9, dtype=torch.float64)
    right = torch.randn(9, 30, generator=generator, dtype=torch.float64)
    down, up, order, growth = interpolate(left, right)
    torch.testing.assert_close(torch.cat([down, up @ down])[order], left @ right, rtol=1e-9, atol=1e-12)
    assert growth < 10.0
    assert down.shape == (9, 30)
    assert up.shape == (31, 9)


def test_metrics_of_bad_moments_are_refused():
    with pytest.raises(InputError, match="not finite"):
        metric(torch.full((3, 3), torch.nan), 1e-3)
    with pytest.raises(InputError, match="zero"):
        metric(torch.zeros(3, 3), 1e-3)
    assert bool((scaling(torch.zeros(3, 3), 0.5).factor > 0).all())


def small_network() -> nn.Sequential:
    torch.manual_seed(11)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(inplace=True), nn.Conv2d(12, 12, 3, padding=1), nn.Tanh(),
        nn.Flatten(), nn.Dropout(0.5), nn.Linear(12 * 36, 24), nn.Tanh(), nn.Linear(24, 5),
    )  # fmt: skip


def image_batches(count: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(16, 1, 6, 6, generator=generator), torch.randint(5, (16,), generator=generator))
        for _ in range(count)
    ]


def test_moments_are_those_of_the_inputs_and_the_output_gradients():
    model = small_network().eval()
    batches = image_batches(2)
    given, gradients = [], []

    def objective(network, batch):
        return [network(batch[0]).square().sum()]

    moments = collect_moments(model, ["3", "9"], batches, objective)
    for x, _ in batches:
        hidden = model[:3](x)
        patches = nn.functional.unfold(hidden, 3, padding=1).movedim(1, -1).reshape(-1, 108)
        given.append(patches)
        out = model[3](hidden).detach().requires_grad_()
        model[4:](out).square().sum().backward()
        gradients.append(out.grad.movedim(1, -1).reshape(-1, 12))
    rows, gradients = torch.cat(given), torch.cat(gradients)
    torch.testing.assert_close(moments.inputs["3"], rows.T @ rows / len(rows), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(moments.outputs["3"], gradients.T @ gradients / len(gradients), rtol=1e-4, atol=1e-6)
    assert moments.positions == {"3": 2 * 16 * 36, "9": 32}


def test_moments_in_several_passes_are_those_in_one_and_the_model_is_left_alone(tmp_path):
    model = small_network().train()
    for parameter in list(model.parameters())[:1]:
        parameter.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names = ["0", "3", "7", "9"]
    whole = calibrate(model, [names], lambda: image_batches(3), "fitted", tmp_path, likelihood="classes", seed=5)
    (tmp_path / "parts").mkdir()
    groups = passes(model, names, 4.0 * (108**2 + 12**2))
    assert len(groups) > 1
    parts = calibrate(
        model, groups, lambda: image_batches(3), "fitted", tmp_path / "parts", likelihood="classes", seed=5
    )
    for name in names:
        torch.testing.assert_close(whole.inputs(name), parts.inputs(name), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(whole.outputs(name), parts.outputs(name), rtol=1e-5, atol=1e-9)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert [p.requires_grad for p in model.parameters()][:2] == [False, True]
    assert all(p.grad is None for p in model.parameters())
    damaged = tmp_path / "fitted-000.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert not MomentFiles(tmp_path, "fitted").add(damaged)


def test_network_is_compressed_with_its_loss_predicted():
    model, batches = small_network(), image_batches(40)
    made = compress(model, None, batches, keep=0.6, seed=1)
    assert made.keep <= 0.6
    assert isinstance(compress(model, None, batches[:4], ranks={"3": 4}).model[3], lowrank.LowRankConv)
    assert type(model[3]) is nn.Conv2d
    parameters = sum(
        p.numel() for layer in made.model for p in layer.parameters() if isinstance(layer, lowrank._LowRank)
    )
    assert parameters <= sum(layer.parameters + layer.rows for layer in made.layers)
    near = compress(model, None, batches, keep=0.9, seed=1, ranks="global")
    measured = near.measured["held-out text"]
    assert near.predicted < made.predicted
    assert abs(measured.value) < 4 * measured.stderr + 4 * near.predicted


def test_loss_budget_and_given_ranks():
    model, batches = small_network(), image_batches(12)
    made = compress(model, None, batches, loss_budget=1e-3)
    assert made.predicted <= 1e-3
    same = compress(model, None, batches, ranks={"7": 3})
    assert {layer.name: layer.rank for layer in same.layers if layer.share < 1.0} == {"7": 3}
    with pytest.raises(InputError, match="ranks for 'nowhere'"):
        compress(model, None, batches, ranks={"nowhere": 3})
    with pytest.raises(InputError, match="rank 99"):
        compress(model, None, batches, ranks={"9": 99})


def test_rank_deficient_weights_are_found_at_no_loss():
    model = small_network()
    with torch.no_grad():
        U, s, V = torch.linalg.svd(model[7].weight, full_matrices=False)
        model[7].weight.copy_((U[:, :4] * s[:4]) @ V[:4])
    made = compress(model, None, image_batches(12), loss_budget=0.0)
    assert {layer.name: layer.rank for layer in made.layers}["7"] == 4
    x = image_batches(1, 9)[0][0]
    torch.testing.assert_close(made.model.eval()(x), model.eval()(x), rtol=1e-4, atol=1e-5)


def test_layers_that_nothing_reaches_and_weights_that_are_not_finite_stay_dense():
    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused, self.idle, self.sick = (nn.Linear(6, 6) for _ in range(4))
            self.head = nn.Linear(6, 3)

        def forward(self, x):
            self.idle(x)
            return self.head(torch.tanh(self.used(x)))

    torch.manual_seed(2)
    model = Routed()
    batches = [torch.randn(8, 6) for _ in range(4)]
    made = compress(model, None, batches, keep=0.95, likelihood="embedding")
    notes = {layer.name: layer.note for layer in made.layers}
    assert notes["unused"] == "no calibration token reached it"
    assert notes["idle"] == "the loss does not depend on it"
    assert notes["used"] == ""
    assert type(made.model.unused) is nn.Linear


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(demo_folder())


def small_llama(tokenizer, **options) -> LlamaForCausalLM:
    torch.manual_seed(12)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, initializer_range=0.2,
        **options,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


OPTIONS = {"tokens": 1280, "length": 32, "batch": 8}


def test_language_model_saved_and_loaded_by_a_fresh_process(tokenizer, tmp_path):
    model = small_llama(tokenizer)
    made = compress(
        model, tokenizer, TEXT, keep=0.7, evaluate=[Domain("other", TEXT["prose"])], sweep=(0.9, 0.5), **OPTIONS
    )
    assert set(made.measured) == {"held-out text", "other"}
    assert [point.keep for point in made.trade_off] == [0.9, 0.5]
    assert made.trade_off[0].predicted < made.trade_off[1].predicted
    assert "lm_head" not in {layer.name for layer in made.layers}
    made.save(tmp_path / "out", shard=40_000)
    report = json.loads((tmp_path / "out" / "eigenscope.json").read_text())
    assert report["keep"] <= 0.7
    ids = torch.arange(3, 19).reshape(2, 8)
    with torch.no_grad():
        wanted = made.model(ids).logits
    torch.save(ids, tmp_path / "ids.pt")
    torch.save(wanted, tmp_path / "wanted.pt")
    code = (
        "import sys, torch, eigenscope\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "folder = sys.argv[1]\nmodel = AutoModelForCausalLM.from_pretrained(folder + '/out').eval()\n"
        "AutoTokenizer.from_pretrained(folder + '/out')\n"
        "with torch.no_grad():\n    found = model(torch.load(folder + '/ids.pt', weights_only=True)).logits\n"
        "print(float((found - torch.load(folder + '/wanted.pt', weights_only=True)).abs().max()))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert float(done.stdout) <= 1e-5
    with pytest.raises(InputError, match="not empty"):
        made.save(tmp_path / "out")
    made.save(tmp_path / "dense", dense=True)
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert type(dense.model.layers[0].mlp.up_proj) is nn.Linear
    with torch.no_grad():
        torch.testing.assert_close(dense(ids).logits, wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="low rank already"):
        compress(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), tokenizer, TEXT, keep=0.5, **OPTIONS)


def test_interrupted_work_is_taken_up_and_other_work_refused(tokenizer, tmp_path):
    model = small_llama(tokenizer)
    seen = []

    class Stop(Exception):
        pass

    def interrupt(event):
        seen.append(event.label)
        if event.label == "layers":
            raise Stop

    with pytest.raises(Stop):
        compress(model, tokenizer, TEXT, keep=0.7, prior=0.3, folder=tmp_path, progress=interrupt, **OPTIONS)
    labels = []
    made = compress(
        model,
        tokenizer,
        TEXT,
        keep=0.7,
        prior=0.3,
        folder=tmp_path,
        progress=lambda event: labels.append(event.label),
        **OPTIONS,
    )
    assert set(labels) == {"layers"}, "the moments are not measured again"
    fresh = compress(model, tokenizer, TEXT, keep=0.7, prior=0.3, **OPTIONS)
    assert made.ranks == fresh.ranks
    with pytest.raises(InputError, match="another model, text or options"):
        compress(model, tokenizer, TEXT, keep=0.7, prior=0.1, folder=tmp_path, **OPTIONS)


@pytest.mark.parametrize("objective", ["two-sided", "one-sided", "scaled", "plain"])
def test_objectives_share_one_path(tokenizer, objective):
    made = compress(small_llama(tokenizer), tokenizer, TEXT, keep=0.6, objective=objective, **OPTIONS)
    assert made.keep <= 0.6
    assert made.made_by["objective"] == objective
    assert np.isfinite(made.measured["held-out text"].value)


def test_training_the_factors_brings_the_model_nearer_and_goes_on_where_it_stopped(tokenizer, tmp_path):
    dense = small_llama(tokenizer)
    made = compress(dense, tokenizer, TEXT, keep=0.4, prior=0.0, **OPTIONS)
    generator = torch.Generator().manual_seed(3)
    batches = [{"input_ids": torch.randint(5, 900, (4, 16), generator=generator)} for _ in range(4)]
    batches = [batch | {"attention_mask": torch.ones_like(batch["input_ids"])} for batch in batches]

    def copied():
        student = shared_copy(made.model)
        for name, module in list(student.named_modules()):
            if isinstance(module, lowrank.LowRankLinear):
                twin = lowrank.LowRankLinear(
                    module.in_features, module.out_features, module.rank, module.bias is not None, dtype=torch.float32
                )
                twin.load(module.factors, module.bias)
                lowrank.replace(student, {name: twin})
        return student

    student = copied()
    done = recover(student, dense, batches, "causal", steps=24, learning_rate=1e-2)
    assert sum(done.losses[-4:]) < 0.8 * sum(done.losses[:4])
    assert all(p.grad is None for p in dense.parameters())

    class Stop(Exception):
        pass

    def interrupt(event):
        if event.done == 13:
            raise Stop

    second = copied()
    with pytest.raises(Stop):
        recover(
            second, dense, batches, "causal", steps=24, learning_rate=1e-2, state=tmp_path / "s.pt", progress=interrupt
        )
    third = copied()
    rest = recover(third, dense, batches, "causal", steps=24, learning_rate=1e-2, state=tmp_path / "s.pt")
    assert len(rest.losses) == 14, "ten steps had been kept"
    torch.testing.assert_close(rest.losses[-1], done.losses[-1], rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match="another training"):
        recover(copied(), dense, batches, "causal", steps=25, learning_rate=1e-2, state=tmp_path / "s.pt")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "no target"), ({"keep": 0.5, "loss_budget": 0.1}, "keep and loss_budget"), ({"keep": 0.0}, "keep = 0.0"),
        ({"keep": 1.0}, "keep = 1.0"), ({"loss_budget": -1.0}, "loss budget"), ({"keep": 0.5, "prior": 1.5}, "prior"),
        ({"keep": 0.5, "tokens": 0}, "tokens"), ({"loss_budget": 0.1, "ranks": "uniform"}, "without a share"), ({"keep_bytes": 0.01}, "of the model's bytes"),
        ({"keep": 0.5, "include": ("nothing",)}, "no layer to compress"),
    ],
)  # fmt: skip
def test_bad_options_are_named(tokenizer, options, words):
    with pytest.raises(InputError, match=words):
        compress(small_llama(tokenizer), tokenizer, TEXT, **({"prior": 0.0} | OPTIONS | options))


def test_bad_texts_are_named(tokenizer):
    model = small_llama(tokenizer)
    with pytest.raises(InputError, match="shorter than one window"):
        compress(model, tokenizer, {"short": "a few words"}, keep=0.5, **OPTIONS)
    with pytest.raises(InputError, match="no text"):
        compress(model, tokenizer, None, keep=0.5)
    smaller = LlamaForCausalLM(
        LlamaConfig(vocab_size=50, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    )
    with pytest.raises(InputError, match="the model's own tokenizer"):
        compress(smaller, tokenizer, TEXT, keep=0.5, **OPTIONS)
