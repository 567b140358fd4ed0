"""The second pass, the rivals and the memory of a compression, against what they are by definition."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from eigenscope.models import lowrank
from eigenscope.results import Estimate
from eigenscope.tasks.compress import factorise, sharing
from eigenscope.tasks.compress_measure import HELD_OUT, LossProbe, bytes_of, loss_added, peak_memory
from eigenscope.tasks.compress_options import CompressOptions
from eigenscope.tasks.compress_rivals import RIVALS, rival_curves
from eigenscope.tasks.compress_second import fit_again, shifts, try_second_pass
from eigenscope.tasks.compress_subject import of_network
from eigenscope.tasks.compressed import compress, shared_copy


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(12, 30), nn.Tanh(), nn.Linear(30, 30), nn.Tanh(), nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 6)
    )


def batches(count: int = 16, seed: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(64, 12, generator=generator), torch.randint(6, (64,), generator=generator)) for _ in range(count)
    ]


@pytest.fixture
def fitted(tmp_path):
    options = CompressOptions(keep=0.5, seed=2)
    subject = of_network(network(), batches(), "embedding", options)
    return factorise(subject, options, tmp_path, workers=1)


def compressed(factored, share: float) -> nn.Module:
    ranks = factored.uniform(share)
    model = shared_copy(factored.subject.model)
    lowrank.replace(model, factored.low_rank_layers(ranks)[0])
    return model


def test_shifts_are_the_moments_of_both_models_inputs(fitted):
    dense, cut = fitted.subject.model, compressed(fitted, 0.5)
    data = fitted.subject.fitted[:3]
    seen = []
    found = shifts(dense, cut, ["2", "4"], data, lambda: seen.append(1))
    with torch.no_grad():
        for name, place in (("2", 2), ("4", 4)):
            x = torch.cat([dense[:place](batch[0]) for batch in data]).double()
            z = torch.cat([cut[:place](batch[0]) for batch in data]).double()
            torch.testing.assert_close(found[name].inputs, z.T @ z / len(z), rtol=1e-5, atol=1e-7)
            torch.testing.assert_close(found[name].cross, x.T @ z / len(z), rtol=1e-5, atol=1e-7)
            assert found[name].positions == len(x)
    assert len(seen) == 3


def test_layer_fitted_again_is_the_best_of_its_rank_on_its_new_inputs(fitted):
    dense, cut = fitted.subject.model, compressed(fitted, 0.5)
    data = fitted.subject.fitted
    before, cut = cut, copy.deepcopy(cut)
    fit_again(dense, before, {1.0: cut}, fitted.fitting, [["4"]], data)
    with torch.no_grad():
        x = torch.cat([dense[:4](batch[0]) for batch in data]).double()
        z = torch.cat([before[:4](batch[0]) for batch in data]).double()
    F = fitted.fitting.output_metric("4")
    target = x @ dense[4].weight.detach().double().T

    def lost(W: torch.Tensor) -> float:
        return float(F.weigh((target - z @ W.T).T).square().sum() / len(x))

    best = lost(cut[4].weight.detach().double())
    first = lost(compressed(fitted, 0.5)[4].weight.detach().double())
    assert best < first
    U, s, V = torch.linalg.svd(cut[4].weight.detach().double(), full_matrices=False)
    rank = cut[4].rank
    assert s[rank] < 1e-6 * s[0]
    generator = torch.Generator().manual_seed(3)
    for size in (1e-3, 1e-2, 0.1):
        for _ in range(10):
            left = U[:, :rank] * s[:rank] + size * torch.randn(20, rank, generator=generator, dtype=torch.float64)
            right = V[:rank] + size * torch.randn(rank, 30, generator=generator, dtype=torch.float64)
            # The damping of the inputs, 1e-4 of their mean eigenvalue, moves the optimum by as little.
            assert lost(left @ right) > (1.0 - 2e-4) * best


def test_layers_in_several_passes_are_those_in_one(fitted):
    cut, seen = compressed(fitted, 0.5), []
    groups = sharing(fitted.subject.layers, fitted.fitting.fitted)
    copies = [copy.deepcopy(cut) for _ in range(3)]
    for place, memory in enumerate((1e9, 16.0 * 30**2)):
        again = {0.3: copies[place]} | ({0.8: copies[2]} if place else {})
        fit_again(
            fitted.subject.model, cut, again, fitted.fitting, groups, fitted.subject.fitted, memory=memory, progress=seen.append
        )  # fmt: skip
    assert len(seen) == (1 + 4) * len(fitted.subject.fitted)
    for name in ("0", "2", "4", "6"):
        one, several, other = (model.get_submodule(name).weight for model in copies)
        torch.testing.assert_close(several, one, rtol=1e-4, atol=1e-6)
        if name != "0":  # whose inputs are not shifted
            assert not torch.allclose(other, one, rtol=1e-2)


def test_without_a_share_of_shifted_inputs_it_is_the_first_pass(fitted):
    cut, again = compressed(fitted, 0.5), compressed(fitted, 0.5)
    groups = sharing(fitted.subject.layers, fitted.fitting.fitted)
    (growths,) = fit_again(
        fitted.subject.model, cut, {0.0: again}, fitted.fitting, groups, fitted.subject.fitted
    ).values()
    assert set(growths) == {"0", "2", "4", "6"}
    for name in growths:
        torch.testing.assert_close(
            again.get_submodule(name).weight, cut.get_submodule(name).weight, rtol=1e-3, atol=1e-5
        )


def test_second_pass_is_kept_where_it_helps_and_the_first_model_is_left_alone(fitted):
    cut = compressed(fitted, 0.35)
    before = {name: value.clone() for name, value in cut.state_dict().items()}
    measured = fitted.measure_model(cut)
    growths: dict[str, float] = {}
    model, losses, seen = try_second_pass(fitted, cut, measured, [], growths)
    assert losses[HELD_OUT].value < measured[HELD_OUT].value, "there are samples enough: it helps here"
    assert fitted.measure_model(model)[HELD_OUT] == losses[HELD_OUT]
    assert "the second pass is kept" in seen
    assert f"{losses[HELD_OUT].value:.4g}" in seen
    assert f"{measured[HELD_OUT].value:.4g}" in seen
    assert growths
    assert all(torch.equal(value, before[name]) for name, value in cut.state_dict().items())
    assert model.get_submodule("4").bias is not None


def test_second_pass_is_dropped_where_it_does_not_help(fitted):
    cut = compressed(fitted, 0.5)
    ours = {HELD_OUT: Estimate(0.0, 0.0, 2)}  # nothing can lose less
    model, losses, seen = try_second_pass(fitted, cut, ours, [], {})
    assert model is cut
    assert losses is ours
    assert "the first pass is kept" in seen


def test_second_pass_of_a_whole_run_is_said_and_never_worse():
    first = compress(network(), None, batches(), keep=0.4, likelihood="embedding", ranks="uniform")
    second = compress(network(), None, batches(), keep=0.4, likelihood="embedding", ranks="uniform", second_pass=True)
    assert second.measured[HELD_OUT].value <= first.measured[HELD_OUT].value
    assert any("by a second" in note for note in second.notes)
    assert second.made_by["second_pass"] is True


def test_rivals_are_uniform_in_two_factors_and_the_plain_one_is_the_svd(fitted):
    found = rival_curves(fitted, (0.8, 0.5), [])
    assert [rival.name for rival in found] == list(RIVALS)
    model = fitted.subject.model
    probe = fitted.subject.probe(HELD_OUT, fitted.subject.held_out, 2)
    reference = probe.reference(model)
    for place, share in enumerate((0.8, 0.5)):
        cut, cost = shared_copy(model), 0
        for name in ("0", "2", "4", "6"):
            dense = model.get_submodule(name)
            rows, cols = dense.weight.shape
            rank = int(share * rows * cols / (rows + cols))
            cost += rank * (rows + cols)
            U, s, V = torch.linalg.svd(dense.weight.detach().double(), full_matrices=False)
            twin = nn.Linear(cols, rows)
            twin.load_state_dict({"weight": ((U[:, :rank] * s[:rank]) @ V[:rank]).float(), "bias": dense.bias.detach()})
            lowrank.replace(cut, {name: twin})
        point = found[0].points[place]
        assert point.keep == pytest.approx(cost / fitted.dense_parameters)
        assert point.keep <= share
        wanted = loss_added(probe.losses(model, reference), probe.losses(cut, reference))
        assert point.measured[HELD_OUT].value == pytest.approx(wanted.value, rel=1e-3)
        assert point.predicted == pytest.approx(point.measured[HELD_OUT].value, rel=1.0)
    plain, scaled, whitened = (rival.points[1].measured[HELD_OUT].value for rival in found)
    assert whitened < plain
    assert scaled != plain


def test_losses_are_of_windows_and_their_error_is_over_them():
    model = network().eval()
    data = batches(3)
    probe = LossProbe("text", "classes", tuple(data))
    losses = probe.losses(model)
    assert losses.shape == (192,)
    with torch.no_grad():
        wanted = torch.cat([nn.functional.cross_entropy(model(x), y, reduction="none") for x, y in data]).double()
    torch.testing.assert_close(losses, wanted)
    added = loss_added(losses, losses + torch.arange(192) / 192.0)
    assert added.value == pytest.approx(95.5 / 192.0)
    assert added.stderr == pytest.approx(float((torch.arange(192) / 192.0).std()) / 192**0.5, rel=1e-6)
    assert loss_added(losses[:1], losses[:1]).stderr == float("inf")


class Ladder(nn.Module):
    """Makes and drops tensors of known sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(10))
        self.tied = self.weight
        self.register_buffer("view", torch.zeros(100)[:3])

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> torch.Tensor:
        first = torch.zeros(1000)
        second = first.view(10, 100)[1:]  # no bytes of its own
        third = second + 1.0  # 900
        del first, second
        fourth = torch.zeros(1100)
        del third
        return fourth


def test_peak_memory_is_of_the_tensors_held_at_once_and_shared_bytes_count_once():
    model = Ladder()
    assert bytes_of(model) == 4 * (10 + 100)
    assert peak_memory(model, torch.zeros(1, 3, dtype=torch.int64)) == 4 * (10 + 100) + 4 * (900 + 1100)
