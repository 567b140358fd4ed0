"""The analysis of curvature against dense Hessians by double backward in float64, and what it does when things go wrong."""

from __future__ import annotations

import io
import json
import math
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import nn

import eigenscope as es
from eigenscope.cli import main as cli
from eigenscope.errors import InputError, RunFileError, SourceError
from eigenscope.report import curvature_figures, curvature_page
from eigenscope.report.curvature_text import print_curvature
from eigenscope.tasks import curvature as task
from eigenscope.tasks import curvature_stages
from eigenscope.tasks.curvature_content import content_of, signed_log
from eigenscope.tasks.curvature_options import CurvatureOptions, make_plan
from eigenscope.tasks.curvature_source import TextOptions, open_problem, text_problem
from eigenscope.tasks.landscape import filter_normalised, landscape


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded(module, seed=0):
    """Float64 parameters from the seed."""
    generator = torch.Generator().manual_seed(seed)
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def cross_entropy(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


class Block(nn.Module):
    """Attention and LayerNorm over four places."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.norm(x + self.attention(x, x, x, need_weights=False)[0]).mean(dim=1))


class Recurrent(nn.Module):
    """An LSTM whose last state is classified."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)), (5,)),
    "transformer": (Block, (4, 4)),
    "lstm": (Recurrent, (3, 3)),
}


def problem(name):
    """A model and three batches of unequal size."""
    make, shape = MODELS[name]
    batches = [(drawn(size, *shape, seed=i), torch.arange(size) % 3) for i, size in enumerate((7, 4, 9))]
    return seeded(make()), batches


def dense(model, batches):
    """The Hessian of the mean over all samples, by double backward."""
    parameters = list(model.parameters())
    total = sum(len(labels) for _, labels in batches)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        loss = sum(cross_entropy(model, batch) * (len(batch[1]) / total) for batch in batches)
        gradient = torch.autograd.grad(loss, parameters, create_graph=True)
        flat = torch.cat([part.reshape(-1) for part in gradient])
        rows = [torch.autograd.grad(entry, parameters, retain_graph=True) for entry in flat]
    return torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows]), flat.detach()


@pytest.mark.parametrize("name", MODELS)
def test_everything_against_the_dense_hessian(name):
    model, batches = problem(name)
    H, gradient = dense(model, batches)
    values = torch.linalg.eigvalsh(H)
    size, scale = len(H), float(values.abs().max())
    found = es.curvature(model, cross_entropy, batches, budget=size - 1, tol=1e-6, blocks="parameter", seed=1)
    assert not found.complete
    assert found.point.gradient == pytest.approx(float(torch.linalg.vector_norm(gradient)), rel=1e-10)
    for part, true in (
        (found.top, values.flip(0)[: len(found.top)]),
        (found.bottom, values[: len(found.bottom)].flip(0)),
    ):
        sure = part.converged
        assert sure[:2].all() or sure[-2:].all()
        assert (part.values[sure] - true[sure]).abs().max() <= 1e-5 * scale
    assert found.verdict.index <= int((values < 0).sum())
    assert found.unseen is not None
    assert found.unseen.low <= float(values[0])
    assert found.unseen.high >= float(values[-1])
    density = found.density
    if density is not None:
        assert wasserstein_distance(values, density.nodes, None, density.weights.mean(dim=0)) <= 0.02 * scale
        share = found.negative
        assert share.low <= float((values < 0).double().mean()) <= share.high
    if found.trace is not None:
        assert abs(found.trace.value - float(H.trace())) <= 5.0 * found.trace.stderr
    for block in found.blocks:
        operator = es.hessian(model, cross_entropy, batches, params=[block.name])
        own = torch.linalg.eigvalsh(operator.to_dense())
        assert abs(float(block.top.values[0]) - float(own[-1])) <= float(block.top.bounds[0]) + 1e-6 * scale
        assert abs(float(block.bottom.values[-1]) - float(own[0])) <= 0.05 * scale


@pytest.mark.parametrize("name", MODELS)
def test_the_whole_spectrum_where_the_budget_allows_it(name):
    model, batches = problem(name)
    H, _ = dense(model, batches)
    values = torch.linalg.eigvalsh(H)
    found = es.curvature(model, cross_entropy, batches, budget=1000)
    assert found.complete
    torch.testing.assert_close(found.ends.ritz, values, rtol=0.0, atol=1e-11 * float(values.abs().max()))
    assert found.trace.value == pytest.approx(float(H.trace()), rel=1e-9)
    assert found.trace.stderr == 0.0
    assert found.frobenius.value == pytest.approx(float(torch.linalg.matrix_norm(H)), rel=1e-9)
    assert found.negative.value == pytest.approx(float((values < -found.signs.floor).double().mean()))
    weights = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    scaled = torch.linalg.eigvalsh(weights.abs() * H * weights.abs().unsqueeze(1))
    assert found.sharpness.invariant == pytest.approx(float(scaled[-1]), rel=2e-3)


def test_the_whole_is_off_without_the_weights_of_the_batches():
    model, batches = problem("mlp")
    H, _ = dense(model, batches)
    counted = es.curvature(model, cross_entropy, batches, count=lambda batch: 1.0, budget=1000)
    assert abs(float(counted.ends.ritz[-1]) - float(torch.linalg.eigvalsh(H)[-1])) > 1e-3


def test_traces_of_layers_from_shared_products():
    model, batches = problem("mlp")
    H, _ = dense(model, batches)
    operator = es.hessian(model, cross_entropy, batches)
    found = curvature_stages.traces(operator, "layer", 1e-9, 400, seed=5)
    assert found.total.products == 400
    assert abs(found.total.value - float(H.trace())) <= 4.0 * found.total.stderr
    places = dict(operator.layout.places())
    for name, estimate in found.blocks:
        own = sum(float(H.diagonal()[place].sum()) for key, place in places.items() if key.startswith(f"{name}."))
        assert abs(estimate.value - own) <= 4.0 * estimate.stderr
    assert sum(estimate.value for _, estimate in found.blocks) == pytest.approx(found.total.value)


def test_sharpness_is_between_what_is_known_and_what_is_possible():
    model, batches = problem("mlp")
    H, gradient = dense(model, batches)
    found = es.curvature(model, cross_entropy, batches, radius=0.1, budget=1000).sharpness
    norm, top = float(torch.linalg.vector_norm(gradient)), float(torch.linalg.eigvalsh(H)[-1])
    assert found.first_order == pytest.approx(0.1 * norm)
    assert max(0.1 * norm, 0.005 * top) <= found.second_order <= 0.1 * norm + 0.005 * top
    assert found.measured == pytest.approx(found.second_order, rel=0.2)


def test_scale_invariant_sharpness_does_not_see_a_rescaling_and_the_plain_one_does():
    """Dinh et al. 2017: α W₁ and W₂/α compute the same with ReLU; here with a linear first layer."""
    model = seeded(nn.Sequential(nn.Linear(4, 5, bias=False), nn.Linear(5, 3, bias=False)))
    batches = [(drawn(12, 4), torch.arange(12) % 3)]
    before = es.curvature(model, cross_entropy, batches, budget=1000)
    with torch.no_grad():
        model[0].weight.mul_(7.0)
        model[1].weight.div_(7.0)
    after = es.curvature(model, cross_entropy, batches, budget=1000)
    assert after.point.loss == pytest.approx(before.point.loss)
    assert after.sharpness.invariant == pytest.approx(before.sharpness.invariant, rel=1e-3)
    assert after.largest > 3.0 * before.largest


def test_adams_metric_of_a_live_optimiser():
    model, batches = problem("mlp")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(5):
        optimizer.zero_grad()
        cross_entropy(model, batches[0]).backward()
        optimizer.step()
    optimizer.zero_grad()
    found = es.curvature(model, cross_entropy, batches, optimizer=optimizer, budget=1000)
    D = torch.cat([
        ((1 - 0.9**5) * ((s["exp_avg_sq"] / (1 - 0.999**5)).sqrt() + 1e-8)).reshape(-1)
        for s in (optimizer.state[p] for p in model.parameters())
    ])  # fmt: skip
    H, _ = dense(model, batches)
    values = torch.linalg.eigvalsh(H / D.sqrt() / D.sqrt().unsqueeze(1))
    assert found.metric.largest == pytest.approx(float(values[-1]), rel=1e-9)
    assert found.metric.edge == pytest.approx(38.0 / 3e-3)
    assert found.options["learning_rate"] == 3e-3
    assert any("yours, 0.003" in line for line in found.advice)


def test_the_model_is_left_as_it_was():
    model, batches = problem("lstm")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state, mode = torch.get_rng_state(), model.training
    es.curvature(model, cross_entropy, batches, landscape="random", grid=3, budget=30, density=False)
    assert model.training == mode
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_landscape_holds_the_losses_and_paths_that_go_down():
    model, batches = problem("mlp")
    operator = es.hessian(model, cross_entropy, batches)
    pairs = curvature_stages.all_pairs(operator, 2, 1)
    place, _, _ = curvature_stages.point_at(operator)
    area = landscape(operator, pairs, place.loss, place.size, grid=5)
    assert area.losses[2][2] == pytest.approx(place.loss)
    shift = area.x[4] * pairs.top.right[:, 0] + area.y[1] * pairs.bottom.right[:, -1]
    assert area.losses[1][4] == pytest.approx(operator.objective.value(shift))
    names = [path.name for path in area.paths]
    assert names == ["gradient descent", "momentum", "Adam", "Newton"]
    starts = {(path.x[0], path.y[0]) for path in area.paths}
    assert len(starts) == 1
    for path in area.paths[:3]:
        ends = [x * pairs.top.right[:, 0] + y * pairs.bottom.right[:, -1] for x, y in zip(path.x, path.y)]
        assert operator.objective.value(ends[-1]) < operator.objective.value(ends[0])


def test_random_directions_have_the_norms_of_the_filters():
    model, batches = problem("mlp")
    operator = es.hessian(model, cross_entropy, batches)
    for direction in filter_normalised(operator, 3):
        for part, weight in zip(operator.layout.split(direction), operator.layout.tensors):
            if weight.ndim < 2:
                assert not part.any()
            else:
                torch.testing.assert_close(part.norm(dim=1), weight.detach().norm(dim=1))


def test_a_plan_is_kept_to():
    model, batches = problem("mlp")
    for budget in (30, 60, 120):
        operator = es.hessian(model, cross_entropy, batches)
        plan = make_plan(operator, CurvatureOptions(budget=budget))
        assert plan.products <= budget + 4
        before = operator.products
        found = task.run_plan(operator, plan, "mlp")
        assert operator.products - before <= plan.products
        assert found.verdict.kind == "not a critical point"
        lines = plan.lines()
        assert "products" in lines
        assert "measured" in lines["seconds"]


def test_what_does_not_fit_is_left_out_and_said():
    model, batches = problem("mlp")
    found = es.curvature(model, cross_entropy, batches, budget=20)
    assert found.density is None
    assert any(note.startswith("Left out, density") for note in found.notes)
    with pytest.raises(InputError, match="Choose parameters"):
        es.curvature(model, cross_entropy, batches, budget=20, memory=10)


def test_a_run_file_holds_all_but_the_vectors(tmp_path, monkeypatch):
    model, batches = problem("mlp")
    options = {"budget": 110, "blocks": "layer", "top": 2, "bottom": 1}
    first = es.curvature(model, cross_entropy, batches, output=tmp_path / "run", **options)
    loaded = task.load_curvature(tmp_path / "run")
    kept, again = content_of(first), content_of(loaded)
    for content in (kept, again):
        content.pop("provenance")
    assert json.dumps(again, sort_keys=True) == json.dumps(kept, sort_keys=True)
    assert loaded.top.right is None
    # The same command does no product but those by which the operator is checked and timed.
    monkeypatch.setattr(curvature_stages, "some_pairs", None)
    second = es.curvature(model, cross_entropy, batches, output=tmp_path / "run", **options)
    assert second.verdict == first.verdict
    with torch.no_grad():
        model[0].weight[0, 0] += 1.0
    with pytest.raises(RunFileError, match="holds another run"):
        es.curvature(model, cross_entropy, batches, output=tmp_path / "run", **options)


def test_an_interruption_keeps_what_is_done_and_the_same_call_goes_on(tmp_path):
    model, batches = problem("mlp")
    seen = []

    def interrupt(event):
        seen.append(event.label)
        if event.label == "density":
            raise KeyboardInterrupt

    found = es.curvature(model, cross_entropy, batches, budget=100, output=tmp_path / "run", progress=interrupt)
    assert found.interrupted
    assert found.verdict.kind == "not a critical point"
    assert found.trace is None
    with pytest.raises(RunFileError, match="no finished"):
        task.load_curvature(tmp_path / "run")
    again: list[str] = []
    whole = es.curvature(
        model,
        cross_entropy,
        batches,
        budget=100,
        output=tmp_path / "run",
        progress=lambda event: again.append(event.label),
    )
    assert not whole.interrupted
    assert "eigenpairs" not in again
    assert whole.density is not None


def test_an_interruption_of_the_eigenpairs_gives_those_found_so_far():
    model, batches = problem("mlp")

    def interrupt(event):
        if event.label == "eigenpairs" and event.done >= 14:
            raise KeyboardInterrupt

    found = es.curvature(model, cross_entropy, batches, budget=100, progress=interrupt)
    assert found.interrupted
    assert len(found.top) == 5
    assert found.density is None


@pytest.mark.parametrize(
    ("options", "told"),
    [({"top": 0}, "1 or more"), ({"tol": -1.0}, "positive"), ({"blocks": "rows"}, "layer, module"),
     ({"landscape": "flat"}, "eigenvectors or random"), ({"learning_rate": 0.0}, "positive"), ({"budget": 3}, "10 or more")],
)  # fmt: skip
def test_options_out_of_range(options, told):
    with pytest.raises(InputError, match=told):
        CurvatureOptions(**options)


def test_figures_and_page_of_an_analysis(tmp_path):
    model, batches = problem("mlp")
    found = es.curvature(model, cross_entropy, batches, budget=120, blocks="layer", landscape="random", grid=3)
    content = content_of(found)
    assert set(curvature_figures.available(content)) >= {"density", "blocks", "slices", "escape", "landscape", "valley"}
    for name in curvature_figures.DRAWINGS:
        assert len(found.figure(name).data)
    with pytest.raises(InputError, match="expected density"):
        found.figure("nonsense")
    page = found.report(tmp_path / "page.html").read_text("utf-8")
    assert found.verdict.sentence.split(":")[0] in page
    assert "NaN" not in page.partition('id="data">')[2].partition("</script>")[0]
    assert page == curvature_page.render(content)


def test_the_bins_of_the_density_hold_every_eigenvalue():
    model, batches = problem("mlp")
    for budget in (100, 1000):
        found = es.curvature(model, cross_entropy, batches, budget=budget)
        density = content_of(found)["density"]
        alone = found.density.deflated if budget == 100 else 0
        assert sum(density["count"]) + alone == pytest.approx(found.point.parameters, rel=1e-6)
        assert all(low <= count <= high for low, count, high in zip(density["low"], density["count"], density["high"]))
    assert signed_log(np.array([0.0]), 1.0)[0] == 0.0
    assert signed_log(np.array([-9.0]), 1.0)[0] == pytest.approx(-1.0)


def test_the_demo_and_its_command(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.html"
    monkeypatch.setattr(
        sys,
        "argv",
        ["eigenscope", "curvature", "demo", "--report", str(page), "--json", "--budget", "60", "--no-trace"],
    )
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 0
    content = json.loads(capsys.readouterr().out)
    assert content["verdict"]["kind"] == "not a critical point"
    assert content["point"]["parameters"] == 354
    assert page.exists()


def test_the_gauss_newton_matrix_cannot_show_a_saddle():
    model, batches = problem("mlp")
    found = es.curvature(model, cross_entropy, batches, gauss_newton=True, budget=1000)
    assert found.verdict.index == 0
    assert any("cannot show a saddle" in note for note in found.notes)
    assert not any("cannot show" in note for note in es.curvature(model, cross_entropy, batches, budget=20).notes)


def test_what_is_printed_holds_the_verdict_the_advice_and_every_pair():
    model, batches = problem("mlp")
    content = content_of(es.curvature(model, cross_entropy, batches, budget=1000, blocks="layer"))
    stream = io.StringIO()
    print_curvature(content, file=stream, width=120)
    printed = " ".join(stream.getvalue().split())
    for sentence in (content["verdict"]["sentence"], *content["advice"], *content["notes"]):
        assert sentence in printed
    lines = [line.split() for line in stream.getvalue().splitlines()]
    assert sum(line[:1] == ["top"] for line in lines) == sum(line[:1] == ["bottom"] for line in lines) == 5
    assert [line[0] for line in lines if line[:1] and line[0] in ("0", "2", "4")] == ["0", "2", "4"]


def test_the_page_of_a_run_file_by_command(tmp_path, monkeypatch, capsys):
    model, batches = problem("mlp")
    found = es.curvature(model, cross_entropy, batches, budget=30, density=False, output=tmp_path / "run")
    for arguments, code in ((["report", "run"], 0), (["report", "run", "run"], 2), (["export", "run", "run.csv"], 2)):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["eigenscope", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert left.value.code == code
    assert (tmp_path / "run.html").read_text("utf-8") == curvature_page.render(content_of(found))
    assert "no comparison" in capsys.readouterr().err


ENTRY = """
import torch
from torch import nn

def entry():
    torch.manual_seed(0)
    return nn.Linear(3, 2), lambda m, b: m(b).square().mean(), [torch.ones(4, 3), torch.zeros(2, 3)]

def wrong():
    return 3

def broken():
    return missing
"""


def test_a_function_of_ones_own(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_problem.py").write_text(ENTRY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    found = open_problem("own_problem:entry", TextOptions(()))
    assert len(found.batches) == 2
    assert open_problem(f"{tmp_path / 'own_problem.py'}:entry", TextOptions(())).batches[0].shape == (4, 3)
    for name, told in (("wrong", "returned int"), ("nothing", "no function nothing")):
        with pytest.raises((InputError, SourceError), match=told):
            open_problem(f"own_problem:{name}", TextOptions(()))
    with pytest.raises(SourceError, match="No module named"):
        open_problem("no_such_module:entry", TextOptions(()))
    with pytest.raises(InputError, match="--text"):
        open_problem("some/model", TextOptions(()))
    monkeypatch.setattr(sys, "argv", ["eigenscope", "curvature", "own_problem:entry", "--plan"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 0
    assert "measured" in capsys.readouterr().out


def test_text_becomes_the_loss_of_each_kind_of_model(tmp_path):
    transformers = pytest.importorskip("transformers")
    from eigenscope.models.language import LanguageModel

    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog and the cat sleeps " * 40)
    tokenizer = _tokenizer(tmp_path)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.BertConfig(vocab_size=40, max_position_embeddings=32, **size)
    options = TextOptions((str(text),), tokens=128, length=16, batch=4, seed=0)
    for kind, model in (
        ("masked", transformers.BertForMaskedLM(config)), ("embedding", transformers.BertModel(config)),
        ("causal", transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=40, num_key_value_heads=2, **size))),
    ):  # fmt: skip
        made = text_problem(LanguageModel(model.eval(), tokenizer, kind, kind), options)
        again = text_problem(LanguageModel(model, tokenizer, kind, kind), options)
        assert len(made.batches) == 2
        assert all(torch.equal(one[key], two[key]) for one, two in zip(made.batches, again.batches) for key in one)
        found = es.curvature(
            model, made.loss, made.batches, count=made.count, params="embed|head|norm", budget=30, density=False, top=2,
            bottom=1,
        )  # fmt: skip
        assert math.isfinite(found.point.loss)
        if kind == "masked":
            labels = made.batches[0]["labels"]
            assert 0 < int((labels != -100).sum()) < labels.numel() / 2
    with pytest.raises(InputError, match="pairs"):
        text_problem(LanguageModel(model, tokenizer, "embedding", ""), TextOptions((str(text),), batch=1))


def _tokenizer(folder):
    from transformers import PreTrainedTokenizerFast

    tokenizers = pytest.importorskip("tokenizers")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "and", "cat", "sleeps"],
    ]
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    path = folder / "tokenizer.json"
    made.save(str(path))
    return PreTrainedTokenizerFast(
        tokenizer_file=str(path), pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]",
    )  # fmt: skip


def test_options_are_in_the_provenance():
    model, batches = problem("mlp")
    found = es.curvature(model, cross_entropy, batches, budget=30, seed=7)
    assert found.provenance["seed"] == 7
    assert set(asdict(CurvatureOptions())) <= set(found.provenance)
    assert found.provenance["products"] > 0
