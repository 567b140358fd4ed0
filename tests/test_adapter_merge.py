"""Adapters resized and merged: against LAPACK on ΔW itself, and PEFT where its definitions are the same."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import eigenscope as es
from eigenscope.cli.main import main
from eigenscope.errors import InputError, SourceError
from eigenscope.methods.factored import Factors
from eigenscope.methods.merging import aligned, merged_entries
from eigenscope.models.peft import AdapterFile, AdapterLayer, read_adapter

peft = pytest.importorskip("peft")

SHAPES = {"model.a": (20, 14), "model.b": (9, 26), "model.c": (16, 16)}


def layer(
    module="model.a", shape=(20, 14), rank=4, *, seed=0, scale=2.0, dtype=torch.float32, kind="linear", magnitude=False, stored=None
) -> AdapterLayer:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    m, n = shape
    B = torch.randn(m, rank, generator=generator) * 0.8 ** torch.arange(rank)
    A = torch.randn(rank, n, generator=generator)
    length = torch.rand(m, generator=generator) + 0.5 if magnitude else None
    return AdapterLayer(module, kind, B.to(dtype), A.to(dtype), scale, length, stored or shape)


def adapter(*layers: AdapterLayer, source="memory", **config) -> es.Adapter:
    return es.Adapter(AdapterFile({one.module: one for one in layers}, config, {}, source))


def family(seed: int, rank: int, modules=tuple(SHAPES), **options) -> es.Adapter:
    return adapter(*(layer(m, SHAPES[m], rank, seed=seed * 10 + i, **options) for i, m in enumerate(modules)))


def readings(made: es.Adapter, module: str) -> dict:
    return next(dict(record.readings) for record in made.run.records if record.name == module)


def best(W: torch.Tensor, rank: int) -> torch.Tensor:
    U, values, Vh = torch.linalg.svd(W.double())
    return (U[:, :rank] * values[:rank]) @ Vh[:rank]


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


# --- resize ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [2.0, 0.125, -1.0])
def test_resized_to_a_rank_it_is_the_best_of_that_rank_and_the_error_is_the_true_one(dtype, scale):
    before = family(1, 6, dtype=dtype, scale=scale)
    after = before.resize(rank=3)
    for module in SHAPES:
        W, found = before.layers[module].delta(), after.layers[module]
        assert found.rank == 3
        assert found.scale == scale
        assert found.B.dtype == dtype
        assert relative(found.delta(), best(W, 3)) < 4.0 * torch.finfo(dtype).eps
        row = readings(after, module)
        assert row["error"] == pytest.approx(relative(found.delta(), W), rel=1e-6)
        assert row["optimal_error"] == pytest.approx(float((W - best(W, 3)).norm() / W.norm()), rel=1e-9)
        assert (row["rank_before"], row["rank"]) == (6, 3)
        assert row["frobenius"] == pytest.approx(float(W.norm()), rel=1e-12)
    assert before.layers["model.a"].rank == 6, "the first adapter is as it was"


@pytest.mark.parametrize("stabilised", [False, True])
def test_alpha_follows_the_rank_so_that_the_scale_stays(tmp_path, stabilised):
    before = family(2, 8, scale=16 / (8**0.5 if stabilised else 8))
    before.file.config["use_rslora"] = stabilised
    before.resize(rank=4).save(tmp_path / "small")
    config = json.loads((tmp_path / "small" / "adapter_config.json").read_text())
    assert config["r"] == 4
    assert config["use_rslora"] is stabilised
    assert config["lora_alpha"] == pytest.approx(16 / 2 ** (0.5 if stabilised else 1.0))
    read = read_adapter(tmp_path / "small")
    assert read.layers["model.a"].scale == pytest.approx(before.layers["model.a"].scale, rel=1e-12)
    assert relative(read.layers["model.a"].delta(), best(before.layers["model.a"].delta(), 4)) < 1e-6


@pytest.mark.parametrize(("wish", "limit"), [({"energy": 0.9}, 0.1**0.5), ({"error": 0.25}, 0.25)])
def test_an_energy_or_an_error_is_met_with_the_least_rank(wish, limit):
    before = family(3, 8)
    after = before.resize(**wish)
    ranks = set()
    for module, found in after.layers.items():
        W = before.layers[module].delta()
        assert relative(found.delta(), W) <= limit
        assert relative(best(W, found.rank - 1), W) > limit
        ranks.add(found.rank)
    assert 0 < min(ranks) < 8


def test_a_target_beyond_the_format_is_said_to_be_missed_and_met_in_a_finer_one():
    before = family(4, 5, dtype=torch.bfloat16)
    after = before.resize(error=1e-4)
    row = readings(after, "model.a")
    assert "too coarse" in row["status"]
    assert row["error"] > 1e-4
    finer = before.resize(error=1e-4, dtype="float32")
    assert readings(finer, "model.a")["status"] == "ok"
    assert readings(finer, "model.a")["error"] <= 1e-4


def test_a_budget_is_kept_and_beats_uniform_ranks_of_the_same_size():
    before = adapter(*(
        layer(f"model.{i}", (30, 20), 8, seed=i, scale=10.0**-i) for i in range(3)
    ))  # fmt: skip
    uniform = before.resize(rank=3)

    def left_out(made):
        return sum(
            float((one.delta() - (made.layers[name].delta() if name in made.layers else 0.0)).square().sum())
            for name, one in before.layers.items()
        )

    spread = before.resize(budget=uniform.parameters)
    assert spread.parameters <= uniform.parameters
    assert left_out(spread) < 0.8 * left_out(uniform)
    assert len({one.rank for one in spread.layers.values()}) > 1
    small = before.resize(budget="6kB")
    assert sum(one.nbytes for one in small.layers.values()) <= 6000
    with pytest.raises(InputError, match="budget 1kB"):
        before.resize(budget="1kB")


def test_a_layer_of_smaller_true_rank_gets_no_more():
    B = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    A = torch.randn(3, 12, generator=torch.Generator().manual_seed(1))
    doubled = AdapterLayer("model.a", "linear", torch.cat([B, B], 1), torch.cat([A, A], 0), 1.0, None, (12, 12))
    after = adapter(doubled).resize(rank=5)
    assert after.layers["model.a"].rank == 3
    assert relative(after.layers["model.a"].delta(), doubled.delta()) < 1e-6


def test_untrained_layers_are_left_out_and_an_adapter_of_nothing_else_is_refused():
    empty = layer("model.b", (9, 26))
    empty = AdapterLayer("model.b", "linear", torch.zeros_like(empty.B), empty.A, 2.0, None, (9, 26))
    after = adapter(layer(), empty).resize(rank=2)
    assert set(after.layers) == {"model.a"}
    assert readings(after, "model.b")["status"] == "left out: nothing above rounding"
    with pytest.raises(InputError, match="rank 0 is left of every layer"):
        adapter(empty).resize(energy=0.5)
    with pytest.raises(InputError, match="rank 0 is left of every layer"):
        adapter(layer(scale=0.0)).resize(rank=2)


def test_kinds_and_stored_shapes_survive(tmp_path):
    kinds = adapter(
        layer("emb", (6, 30), 4, kind="embedding", stored=(30, 6)),
        layer("conv", (8, 27), 4, kind="conv", stored=(8, 3, 3, 3)),
    )
    kinds.resize(rank=2).save(tmp_path / "out")
    read = read_adapter(tmp_path / "out")
    for name, one in read.layers.items():
        assert (one.kind, one.shape) == (kinds.layers[name].kind, kinds.layers[name].shape)
        assert relative(one.delta(), best(kinds.layers[name].delta(), 2)) < 1e-6


def test_dora_keeps_its_magnitude_and_even_a_layer_of_no_direction(tmp_path):
    before = family(5, 4, magnitude=True)
    dead = before.layers["model.b"]
    before = adapter(
        before.layers["model.a"],
        AdapterLayer("model.b", "linear", torch.zeros_like(dead.B), dead.A, 2.0, dead.magnitude, (9, 26)),
    )
    after = before.resize(rank=2)
    assert torch.equal(after.layers["model.a"].magnitude, before.layers["model.a"].magnitude)
    assert after.layers["model.b"].rank == 1
    assert not after.layers["model.b"].delta().any()
    assert relative(after.layers["model.a"].delta(), best(before.layers["model.a"].delta(), 2)) < 1e-6
    after.save(tmp_path / "dora")
    assert json.loads((tmp_path / "dora" / "adapter_config.json").read_text())["use_dora"] is True
    model = torch.nn.ModuleDict(
        {"model": torch.nn.ModuleDict({"a": torch.nn.Linear(14, 20, bias=False), "b": torch.nn.Linear(26, 9)})}
    )
    W = model["model"]["a"].weight.detach().clone()
    loaded = peft.PeftModel.from_pretrained(model, str(tmp_path / "dora"))
    x = torch.randn(5, 14, generator=torch.Generator().manual_seed(0))
    adapted = W + after.layers["model.a"].delta(torch.float32)
    expected = x @ (adapted * (after.layers["model.a"].magnitude / adapted.norm(dim=1)).unsqueeze(1)).T
    assert torch.allclose(loaded.base_model.model["model"]["a"](x), expected, atol=1e-5)


@pytest.mark.parametrize(
    "wish", [{}, {"rank": 0}, {"energy": 1.0}, {"error": -0.1}, {"rank": 2, "energy": 0.5}, {"budget": "much"}, {"rank": 2, "dtype": "int8"}]
)  # fmt: skip
def test_sizes_that_make_no_sense_are_refused(wish):
    with pytest.raises(InputError):
        family(0, 3).resize(**wish)


# --- merge ----------------------------------------------------------------------------------------------------------


def test_four_adapters_of_different_ranks_scales_formats_and_layers_equal_the_dense_sum(tmp_path):
    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.float32)
    modules = (tuple(SHAPES), ("model.a", "model.b"), ("model.b", "model.c"), ("model.c",))
    parts = []
    for i, (rank, dtype, some, stabilised) in enumerate(zip((1, 3, 2, 4), dtypes, modules, (0, 1, 0, 1), strict=True)):
        one = family(i, rank, some, dtype=dtype, scale=(i + 1.0) / (rank**0.5 if stabilised else rank))
        one.file.config["use_rslora"] = bool(stabilised)
        one.save(tmp_path / str(i))
        parts.append(es.Adapter.load(tmp_path / str(i)))
    weights = [1.0, -0.5, 2.0, 0.25]
    exact = es.merge_adapters(parts, weights)
    cut = es.merge_adapters(parts, weights, rank=3)
    exact.save(tmp_path / "exact")
    read = read_adapter(tmp_path / "exact").layers
    assert list(exact.layers) == list(SHAPES)
    for module in SHAPES:
        W = sum(w * p.layers[module].delta() for w, p in zip(weights, parts, strict=True) if module in p.layers)
        assert relative(exact.layers[module].delta(), W) < 1e-6
        assert relative(read[module].delta(), W) < 1e-6
        assert exact.layers[module].B.dtype == torch.float32, "the widest of the formats"
        assert relative(cut.layers[module].delta(), best(W, 3)) < 1e-5
        row = readings(cut, module)
        assert row["error"] == pytest.approx(relative(cut.layers[module].delta(), W), rel=1e-6)
        assert row["method"] == "factored"
    assert exact.layers["model.a"].rank == 1 + 3
    assert readings(exact, "model.a")["method"] == "stacked"
    assert readings(exact, "model.a")["error"] < 1e-6
    assert "zero there" in exact.run.provenance["notes"]


def test_ranks_that_add_beyond_the_matrix_are_cut_to_it():
    parts = [family(i, 7) for i in range(3)]
    made = es.merge_adapters(parts)
    assert made.layers["model.b"].rank == 9
    assert relative(made.layers["model.b"].delta(), sum(p.layers["model.b"].delta() for p in parts)) < 1e-6


def test_plus_and_minus():
    first, second = family(1, 2), family(2, 3, ("model.a",))
    for made, sign in ((first + second, 1.0), (first - second, -1.0)):
        expected = first.layers["model.a"].delta() + sign * second.layers["model.a"].delta()
        assert relative(made.layers["model.a"].delta(), expected) < 1e-6
        assert set(made.layers) == set(SHAPES)
    with pytest.raises(InputError, match="rank 0 is left"):
        first - first
    with pytest.raises(TypeError):
        first + 1


class Peft:
    """PEFT on three linear layers, and the same adapters here."""

    def __init__(self, ranks=(2, 4), alphas=(4, 2)) -> None:
        layers = {name[6:]: torch.nn.Linear(n, m, bias=False) for name, (m, n) in SHAPES.items()}
        model = torch.nn.ModuleDict({"model": torch.nn.ModuleDict(layers)})
        self.names = [f"x{i}" for i in range(len(ranks))]
        configs = [
            peft.LoraConfig(r=r, lora_alpha=alpha, target_modules=["a", "b", "c"])
            for r, alpha in zip(ranks, alphas, strict=True)
        ]
        self.model = peft.get_peft_model(model, configs[0], adapter_name=self.names[0])
        for name, config in zip(self.names[1:], configs[1:], strict=True):
            self.model.add_adapter(name, config)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.ours = [adapter(*(self._layer(name, module) for module in SHAPES)) for name in self.names]

    def module(self, name):
        return self.model.base_model.model["model"][name[6:]]

    def _layer(self, name, module):
        found = self.module(module)
        A, B = found.lora_A[name].weight.detach(), found.lora_B[name].weight.detach()
        return AdapterLayer(module, "linear", B, A, found.scaling[name], None, SHAPES[module])

    def merged(self, kind, **options):
        self.model.add_weighted_adapter(self.names, [0.7, 0.4], "new", combination_type=kind, **options)
        return {module: self.module(module).get_delta_weight("new").detach() for module in SHAPES}


@pytest.mark.parametrize(
    ("kind", "theirs", "ours"),
    [
        ("cat", {}, {}), ("svd", {"svd_rank": 3}, {"rank": 3}),
        ("ties_svd", {"svd_rank": 3, "density": 0.5}, {"rule": "ties", "density": 0.5, "rank": 3}),
        ("ties_svd", {"svd_rank": 5, "density": 0.2}, {"rule": "ties", "density": 0.2, "rank": 5}),
    ],
)  # fmt: skip
def test_the_same_as_peft_where_the_definitions_are_the_same(kind, theirs, ours):
    pair = Peft()
    made = es.merge_adapters(pair.ours, [0.7, 0.4], **ours)
    for module, delta in pair.merged(kind, **theirs).items():
        assert relative(made.layers[module].delta(), delta) < 1e-5, module


def test_pefts_linear_is_another_thing_than_the_sum():
    """It adds the factors: (√w₁B₁ + √w₂B₂)(√w₁A₁ + √w₂A₂) has products of one adapter's B with the other's A."""
    pair = Peft(ranks=(3, 3), alphas=(3, 3))
    made = es.merge_adapters(pair.ours, [0.7, 0.4])
    expected = sum(w * one.layers["model.a"].delta() for w, one in zip([0.7, 0.4], pair.ours, strict=True))
    assert relative(made.layers["model.a"].delta(), expected) < 1e-6
    assert relative(pair.merged("linear")["model.a"], expected) > 0.3


def parts_of(module="model.a", count=3, rank=2) -> list[Factors]:
    ones = [layer(module, SHAPES[module], rank + i, seed=i, scale=1.0 + i) for i in range(count)]
    return [Factors(one.B, one.A, one.scale) for one in ones]


def ties_by_hand(dense: list[np.ndarray], weights, density) -> np.ndarray:
    kept = []
    for W in dense:
        least = np.sort(np.abs(W).ravel())[::-1][int(density * W.size) - 1]
        kept.append(np.where(np.abs(W) >= least, W, 0.0))
    out = np.zeros_like(dense[0])
    for place in np.ndindex(*out.shape):
        values = np.array([W[place] for W in kept])
        sign = 1.0 if values.sum() >= 0.0 else -1.0
        agree = np.sign(values) == sign
        if agree.any():
            out[place] = (values * np.array(weights))[agree].mean()
    return out


def test_ties_entry_by_entry_by_hand_also_over_several_blocks(monkeypatch):
    parts, weights = parts_of(), [1.0, 0.5, 2.0]
    dense = [(p.scale * p.B @ p.A).numpy() for p in parts]
    expected = ties_by_hand(dense, weights, 0.3)
    for block in (2**22, 40):
        monkeypatch.setattr("eigenscope.methods.merging.BLOCK", block)
        found = merged_entries(parts, weights, "ties", 0.3, torch.Generator().manual_seed(0))
        assert np.allclose(found.numpy(), expected, atol=1e-5)
    assert not np.allclose(expected, sum(w * W for w, W in zip(weights, dense, strict=True)), atol=0.1)


def test_dare_drops_a_share_rescales_the_rest_and_depends_on_the_seed_alone():
    part = parts_of(count=1, rank=3)[0]
    big = Factors(part.B.repeat(20, 1), part.A.repeat(1, 20), part.scale)
    dense = big.scale * big.B @ big.A
    draws = [merged_entries([big], [1.0], "dare", 0.25, torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    kept = draws[0] != 0.0
    assert float(kept.double().mean()) == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / kept.numel()) ** 0.5)
    assert torch.allclose(draws[0][kept], 4.0 * dense[kept], rtol=1e-5)
    assert torch.allclose(
        merged_entries([big], [0.5], "dare", 1.0, torch.Generator().manual_seed(0)), 0.5 * dense, rtol=1e-5
    )


def test_dare_is_right_on_average():
    """Unbiased: the mean over 200 seeds is the sum, within four standard errors nearly everywhere."""
    parts, weights = parts_of(count=2), [1.0, -2.0]
    draws = torch.stack(
        [merged_entries(parts, weights, "dare", 0.5, torch.Generator().manual_seed(s)) for s in range(200)]
    )
    expected = sum(w * p.scale * p.B @ p.A for w, p in zip(weights, parts, strict=True))
    z = (draws.mean(dim=0) - expected) / (draws.std(dim=0) / 200**0.5)
    assert float(z.abs().max()) < 5.0
    assert 0.7 < float(z.std()) < 1.3


def test_the_shared_basis_of_knots_is_that_of_the_dense_svd():
    parts = parts_of()
    dense = [p.scale * (p.B.double() @ p.A.double()) for p in parts]
    basis, coordinates = aligned(parts)
    assert basis.shape[1] == 2 + 3 + 4
    for W, V in zip(dense, coordinates, strict=True):
        rows = V.B.double() @ V.A.double()
        assert relative(basis @ rows.T, W) < 1e-12
    _, values, Vh = torch.linalg.svd(torch.cat(dense, 1), full_matrices=False)
    assert torch.allclose(basis.norm(dim=0), values[:9], rtol=1e-10)
    stacked = torch.cat([V.B.double() @ V.A.double() for V in coordinates])
    assert torch.allclose((stacked.T @ Vh[:9].T).abs(), torch.eye(9).double(), atol=1e-8)
    twice = aligned([parts[0], parts[0]])
    assert twice[0].shape[1] == parts[0].rank, "directions of value 0 are left out"


def test_knots_with_ties_is_ties_on_the_dense_coordinates():
    parts = [family(i, 2 + i) for i in range(3)]
    weights = [1.0, 0.5, 2.0]
    made = es.merge_adapters(parts, weights, rule="ties", align=True, density=0.4)
    plain = es.merge_adapters(parts, weights, rule="ties", density=0.4, rank=9)
    for module, (_, n) in SHAPES.items():
        dense = [p.layers[module].delta() for p in parts]
        U, values, Vh = torch.linalg.svd(torch.cat(dense, 1), full_matrices=False)
        k = min(9, len(values))
        coordinates = [v.T.numpy() for v in torch.split(Vh[:k], n, dim=1)]
        expected = (U[:, :k] * values[:k]) @ torch.from_numpy(ties_by_hand(coordinates, weights, 0.4)).T
        assert relative(made.layers[module].delta(), expected) < 1e-5
        assert relative(plain.layers[module].delta(), expected) > 0.1, "the alignment changes what ties does"
        assert readings(made, module)["error"] < 1e-6


@pytest.mark.parametrize("rule", ["ties", "dare", "dare-ties"])
def test_a_rule_on_entries_is_cut_with_the_true_error(rule):
    parts = [family(i, 2 + i) for i in range(2)]
    made = es.merge_adapters(parts, rule=rule, density=0.5, seed=3)
    exact = es.merge_adapters(parts, rule=rule, density=0.5, seed=3, rank=16)
    for module in SHAPES:
        W, found = exact.layers[module].delta(), made.layers[module]
        assert found.rank == 3, "the largest rank among the adapters"
        row = readings(made, module)
        assert row["error"] == pytest.approx(relative(found.delta(), W), rel=1e-3)
        assert relative(found.delta(), best(W, 3)) < 1e-3
        assert row["method"].startswith("dense")
    again = es.merge_adapters(parts, rule=rule, density=0.5, seed=3)
    assert torch.equal(again.layers["model.a"].B, made.layers["model.a"].B)
    energy = es.merge_adapters(parts, rule=rule, density=0.5, seed=3, energy=0.9)
    W = exact.layers["model.a"].delta()
    assert relative(energy.layers["model.a"].delta(), W) <= 0.1**0.5 * (1 + 1e-5)
    assert relative(best(W, energy.layers["model.a"].rank - 1), W) > 0.1**0.5


@pytest.mark.parametrize(
    "wish", [{}, {"rank": 1}, {"rule": "ties"}, {"rule": "dare", "energy": 0.5}, {"rule": "ties", "align": True}]
)
def test_a_merge_of_nothing_is_refused(wish):
    one = layer()
    empty = adapter(AdapterLayer("model.a", "linear", torch.zeros_like(one.B), one.A, 2.0, None, (20, 14)))
    with pytest.raises(InputError, match="rank 0 is left of every layer"):
        es.merge_adapters([empty, empty], **wish)


def test_adapters_that_do_not_go_together_are_refused_by_name():
    first = family(1, 2)
    with pytest.raises(
        InputError, match=r"other: model.b is linear of shape \(5, 5\) here and linear of shape \(9, 26\) in memory"
    ):
        first + adapter(layer("model.b", (5, 5)), source="other")
    with pytest.raises(InputError, match=r"model.a is DoRA"):
        es.merge_adapters([first, adapter(layer(magnitude=True))])
    with pytest.raises(InputError, match="2 weights for 1 adapters"):
        es.merge_adapters([first], [1.0, 2.0])
    with pytest.raises(InputError, match="weight nan"):
        es.merge_adapters([first], [float("nan")])
    with pytest.raises(InputError, match="no adapters"):
        es.merge_adapters([])
    with pytest.raises(InputError, match=r"unknown rule 'tie'.*ties"):
        es.merge_adapters([first], rule="tie")
    with pytest.raises(InputError, match="density 0"):
        es.merge_adapters([first], rule="ties", density=0.0)
    with pytest.raises(InputError, match="same in any basis"):
        es.merge_adapters([first], align=True)


def test_parameters_saved_whole_must_agree():
    value = torch.ones(3)
    first, second = (
        es.Adapter(AdapterFile({"model.a": layer()}, {}, {"norm.weight": v}, s))
        for v, s in ((value, "x"), (value + 1, "y"))
    )
    assert torch.equal((first + first).file.saved["norm.weight"], value)
    with pytest.raises(InputError, match=r"y: norm.weight is saved whole"):
        first + second


def run(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["eigenscope", "adapter", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        main()
    out = capsys.readouterr()
    return int(left.value.code or 0), out.out, out.err


def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    for i in range(2):
        family(i, 3 + i).save(tmp_path / f"in{i}")
    code, out, _ = run(monkeypatch, capsys, "resize", tmp_path / "in1", "-o", tmp_path / "small", "--rank", 2, "--json")
    assert code == 0
    assert {row["rank"] for row in json.loads(out)["records"]} == {2}
    assert read_adapter(tmp_path / "small").layers["model.a"].rank == 2
    merge = ("merge", tmp_path / "in0", tmp_path / "in1", "-o", tmp_path / "sum", "--weights", "1,-0.5")
    code, out, _ = run(monkeypatch, capsys, *merge)
    assert code == 0
    assert "stacked" in out
    expected = family(0, 3).layers["model.c"].delta() - 0.5 * family(1, 4).layers["model.c"].delta()
    assert relative(read_adapter(tmp_path / "sum").layers["model.c"].delta(), expected) < 1e-6
    code, _, err = run(monkeypatch, capsys, *merge)
    assert code == 2
    assert "exists and is not empty" in err
    assert run(monkeypatch, capsys, *merge, "--force")[0] == 0
    code, _, err = run(monkeypatch, capsys, *merge[:-1], "1;2", "--force")
    assert code == 2
    assert "numbers with commas" in err
    code, _, err = run(monkeypatch, capsys, "resize", tmp_path / "in0", "-o", tmp_path / "none")
    assert code == 2
    assert "one of rank, energy, error, budget" in err
    assert not (tmp_path / "none").exists()
    (tmp_path / "in0" / "adapter_config.json").unlink()
    code, _, err = run(monkeypatch, capsys, "resize", tmp_path / "in0", "-o", tmp_path / "none", "--rank", 1)
    assert code == 2
    assert "adapter_config.json" in err
    assert (
        run(monkeypatch, capsys, "resize", tmp_path / "in0", "-o", tmp_path / "none", "--rank", 1, "--alpha", 6)[0] == 0
    )


def test_factors_that_are_not_finite_are_refused(tmp_path):
    bad = family(0, 2)
    bad.layers["model.a"].B[0, 0] = float("nan")
    bad.save(tmp_path / "nan")
    with pytest.raises(SourceError, match="not finite"):
        es.Adapter.load(tmp_path / "nan")
    with pytest.raises(InputError, match="not finite"):
        bad.resize(rank=1)
