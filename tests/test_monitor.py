"""The monitor: its figures against dense ones, its silence towards the training, its warnings, files and callbacks."""

from __future__ import annotations

import copy
import logging
import math
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import eigenscope as es
from eigenscope.columns import columns_of
from eigenscope.engine import export
from eigenscope.engine.runfile import RunFile
from eigenscope.errors import InputError, RunFileError
from eigenscope.monitor import EdgeOfStability, Monitor, edge, lightning_callback, trainer_callback


def batch(seed=0, rows=32):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 6, generator=source), torch.randint(0, 3, (rows,), generator=source)


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3), nn.LayerNorm(3)
    )


def smooth(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def loss(model, data):
    return nn.functional.cross_entropy(model(data[0]), data[1])


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
}


def trained(kind, steps=12, seed=0, **options):
    """Everything a training leaves behind, with a monitor where ``options`` are given."""
    model = net(seed)
    optimizer = OPTIMIZERS[kind](model.parameters())
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    monitor = Monitor(model, loss, [batch(1), batch(2, 17)], optimizer, **options) if options else None
    for step in range(steps):
        optimizer.zero_grad()
        loss(model, batch(step)).backward()
        optimizer.step()
        if monitor is not None:
            monitor.step()
    left = {
        "state": model.state_dict(), "optimizer": optimizer.state_dict(), "gradients": [p.grad for p in model.parameters()],
        "modes": [module.training for module in model.modules()], "flags": [p.requires_grad for p in model.parameters()],
        "draws": (torch.rand(3), np.random.rand(3).tolist(), random.random()),
    }  # fmt: skip
    return left, monitor


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.filterwarnings("ignore::eigenscope.monitor.EdgeOfStability")
def test_the_training_is_the_same_bit_for_bit(kind):
    plain, _ = trained(kind)
    watched, monitor = trained(kind, every=3)
    assert len(monitor.readings) == 4
    assert same(plain, watched)
    assert not same(plain, trained(kind, seed=1)[0])


def test_figures_are_those_of_the_dense_hessian():
    model, data = smooth(), batch(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(model, loss, [data], optimizer, samples=200)
    found = monitor.measure()
    dense = es.hessian(model, loss, [data]).to_dense().double()
    values = torch.linalg.eigvalsh(dense)
    assert found.lambda_max == pytest.approx(float(values[-1]), rel=1e-3)
    assert abs(found.lambda_max - float(values[-1])) <= found.lambda_max_bound
    assert abs(found.trace - float(dense.trace())) < 5 * found.trace_stderr
    gradients = torch.autograd.grad(loss(model, data), list(model.parameters()))
    assert found.gradient_norm == pytest.approx(math.sqrt(sum(float(g.square().sum()) for g in gradients)), rel=1e-5)
    assert found.edge == pytest.approx(20.0)
    assert found.stability == pytest.approx(found.lambda_max / 20.0)
    assert found.preconditioned is None


def test_adams_preconditioned_figure_is_that_of_the_dense_matrix():
    model, data, beta, eps, steps = smooth(), batch(3), 0.9, 1e-8, 5
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(beta, 0.99), eps=eps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, data).backward()
        optimizer.step()
    found = Monitor(model, loss, [data], optimizer, samples=0).measure()
    second = torch.cat([optimizer.state[p]["exp_avg_sq"].reshape(-1) for p in model.parameters()]).double()
    scale = (1 - beta**steps) * ((second / (1 - 0.99**steps)).sqrt() + eps)
    dense = es.hessian(model, loss, [data]).to_dense().double() / (scale.sqrt()[:, None] * scale.sqrt())
    highest = float(torch.linalg.eigvalsh(dense)[-1])
    assert found.preconditioned == pytest.approx(highest, rel=1e-3)
    assert found.edge == pytest.approx(38.0 / 1e-3)
    assert found.stability == pytest.approx(found.preconditioned / found.edge)
    assert found.trace is None


def test_later_measurements_start_where_the_last_one_ended_and_cost_less():
    model = smooth()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    monitor = Monitor(model, loss, [batch(3)], optimizer, samples=0, every=1)
    for _ in range(4):
        optimizer.zero_grad()
        loss(model, batch(3)).backward()
        optimizer.step()
        monitor.step()
    products = [reading.products for reading in monitor.readings]
    assert max(products[1:]) < products[0]


class Axes(nn.Module):
    """½ Σ cᵢxᵢ², whose eigenvectors stay while its eigenvalues change."""

    def __init__(self):
        super().__init__()
        self.curvatures = torch.linspace(0.0, 1.0, 500)
        self.x = nn.Parameter(torch.ones(500))

    def forward(self):
        return 0.5 * (self.curvatures * self.x.square()).sum()


@pytest.mark.parametrize("seed", range(5))
def test_an_eigenvalue_that_overtakes_the_last_one_is_not_missed(seed):
    model = Axes()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(model, quadratic_loss, [torch.zeros(1)], optimizer, samples=0, seed=seed)
    model.curvatures[7] = 2.0
    assert monitor.measure().lambda_max == pytest.approx(2.0, rel=1e-3)
    model.curvatures[100] = 2.5
    monitor.measure()  # by chance it may be missed once
    assert monitor.measure().lambda_max == pytest.approx(2.5, rel=1e-3)


def test_batches_may_come_from_a_generator():
    model = smooth()
    monitor = Monitor(model, loss, (batch(i) for i in range(2)), torch.optim.SGD(model.parameters(), lr=0.1))
    assert monitor.measure().gradient_norm == pytest.approx(monitor.measure().gradient_norm)


class Quadratic(nn.Module):
    """½·λ·x², so that the curvature is known."""

    def __init__(self, curvature):
        super().__init__()
        self.curvature = curvature
        self.x = nn.Parameter(torch.ones(2))

    def forward(self):
        return 0.5 * self.curvature * self.x.square().sum()


def quadratic_loss(model, _data):
    return model()


def test_the_edge_is_warned_of_once_for_each_crossing():
    model = Quadratic(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(model, quadratic_loss, [torch.zeros(1)], optimizer, every=1, samples=0)
    warned = []
    for curvature in (10.0, 18.9, 19.2, 21.0, 18.5, 19.5, 10.0, 25.0):
        model.curvature = curvature
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            monitor.step()
        warned.append([str(item.message) for item in caught if item.category is EdgeOfStability])
    assert [len(item) for item in warned] == [0, 0, 1, 0, 0, 0, 0, 1]
    assert "λ_max is 0.96 of the 20 that the learning rate 0.1 bears" in warned[2][0]


@pytest.mark.parametrize(("beta", "nesterov"), [(0.0, False), (0.5, False), (0.9, False), (0.5, True), (0.9, True)])
def test_bounds_of_gradient_descent_and_momentum_are_where_a_quadratic_diverges(beta, nesterov):
    def grows(factor):
        x = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = torch.optim.SGD([x], lr=0.1, momentum=beta, nesterov=nesterov)
        curvature = factor * edge(optimizer).value
        for _ in range(4000):
            x.grad = curvature * x.detach()
            optimizer.step()
        return not abs(float(x.detach())) < 1.0

    assert grows(1.01)
    assert not grows(0.99)


@pytest.mark.parametrize("beta", [0.5, 0.9])
def test_adams_bound_is_where_its_momentum_diverges_under_a_frozen_preconditioner(beta):
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(1))], lr=0.1, betas=(beta, 0.999))
    bound = edge(optimizer)
    assert bound.preconditioned

    def grows(factor):
        x, m = 1.0, 0.0
        for _ in range(4000):
            m = beta * m + (1 - beta) * factor * bound.value * x
            x -= 0.1 * m
        return not abs(x) < 1.0

    assert grows(1.01)
    assert not grows(0.99)


def test_where_no_bound_is_known_none_is_given():
    p = [nn.Parameter(torch.ones(1))]
    assert edge(torch.optim.LBFGS(p)) is None
    assert edge(torch.optim.SGD(p, lr=0.1, maximize=True)) is None
    groups = [{"params": p, "betas": (0.9, 0.99)}, {"params": [nn.Parameter(torch.ones(1))], "betas": (0.8, 0.99)}]
    assert edge(torch.optim.Adam(groups)) is None
    model = smooth()
    reading = Monitor(model, loss, [batch(1)], torch.optim.LBFGS(model.parameters())).measure()
    assert reading.stability is None
    assert reading.lambda_max > 0.0


def test_learning_rates_that_differ_are_part_of_the_metric():
    model = smooth()
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters(), "lr": 0.3}]
    optimizer = torch.optim.SGD(groups)
    found = Monitor(model, loss, [batch(1)], optimizer, samples=0).measure()
    rates = torch.cat([
        torch.full((p.numel(),), g["lr"], dtype=torch.float64) for g in optimizer.param_groups for p in g["params"]
    ])  # fmt: skip
    dense = es.hessian(model, loss, [batch(1)]).to_dense().double()
    # Gradient descent with rates R is unstable where λ_max(R^½ H R^½) > 2.
    highest = float(torch.linalg.eigvalsh(dense * rates.sqrt()[:, None] * rates.sqrt())[-1])
    assert found.stability == pytest.approx(highest / 2.0, rel=1e-3)


def test_a_loss_that_is_not_finite_costs_a_reading_and_not_the_training():
    model = smooth()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(model, loss, [batch(1)], optimizer, every=1)
    assert monitor.step() is not None
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
    with pytest.warns(UserWarning, match="step 2: no reading"):
        assert monitor.step() is None
    with pytest.raises(InputError):
        monitor.measure()


def test_a_parameter_without_state_costs_the_preconditioned_figure_only():
    model = smooth()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    monitor = Monitor(model, loss, [batch(1)], optimizer, every=1)
    with pytest.warns(UserWarning, match=r"no preconditioned λ_max: .*not been stepped"):
        reading = monitor.step()
    assert reading.preconditioned is None
    assert reading.lambda_max > 0.0
    assert monitor.step().stability is None  # and no second warning, which would be an error


class Clock:
    """Time that passes only when told."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize("cost", [0.5, 20.0, 300.0])
def test_measurements_stay_within_their_share_of_the_time(cost, monkeypatch):
    clock = Clock()
    monkeypatch.setattr("eigenscope.monitor.loop.time.perf_counter", clock)
    model = smooth()
    monitor = Monitor(model, loss, [batch(1)], torch.optim.SGD(model.parameters(), lr=0.1), overhead=0.1)

    class Slow:
        def measure(self, step):
            clock.now += cost
            reading = copy.copy(first)
            object.__setattr__(reading, "seconds", cost)
            return reading

    first = monitor.measure()
    monitor.readings.clear()
    monitor._meter, monitor._spent, monitor._begun = Slow(), 0.0, clock.now
    shares = []
    for _ in range(5000):
        clock.now += 1.0
        monitor.step()
        shares.append(monitor._spent / (clock.now - monitor._begun - monitor._spent))
    taken = len(monitor.readings)
    assert cost * taken + cost >= 0.9 * 0.1 * 5000
    # A first measurement that costs more than was guessed is paid for before the next one.
    late = shares[-1]
    assert late <= 0.1 + 1e-9
    assert taken >= 1


@pytest.mark.filterwarnings("ignore::eigenscope.monitor.EdgeOfStability")
def test_readings_go_to_tensorboard_and_to_a_run_file(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = smooth()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Monitor(
        model, loss, [batch(1)], optimizer, every=2, writer=tmp_path / "board", run=tmp_path / "run.es"
    ) as monitor:
        for _ in range(4):
            monitor.step()
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    shown = events.Scalars("eigenscope/lambda_max")
    assert [event.step for event in shown] == [2, 4]
    assert shown[0].value == pytest.approx(monitor.readings[0].lambda_max, rel=1e-6)
    with RunFile(tmp_path / "run.es") as file:
        run = file.load()
    assert [record.name for record in run.records] == ["step 2", "step 4"]
    assert run.records[1].readings["trace"] == monitor.readings[1].trace
    assert run.verb == "monitor"
    export.write(run, tmp_path / "run.csv")
    lines = (tmp_path / "run.csv").read_text("utf-8").splitlines()
    assert lines[0].startswith('"name","step","lambda_max","lambda_max_bound","preconditioned"')
    assert lines[2].startswith(f'"step 4",4,{monitor.readings[1].lambda_max}'[:20])
    assert set(run.records[0].readings) == {column.name for column in columns_of("monitor")}


def test_an_interrupted_run_goes_on_in_its_file_and_another_models_is_refused(tmp_path):
    model = smooth()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    path = tmp_path / "run.es"
    Monitor(model, loss, [batch(1)], optimizer, run=path).measure(10)  # never closed
    with Monitor(model, loss, [batch(1)], optimizer, run=path) as monitor:
        monitor.measure(20)
    with RunFile(path) as file:
        assert [record.name for record in file.load().records] == ["step 10", "step 20"]
    other = net()
    with pytest.raises(RunFileError, match="holds another run"):
        Monitor(other, loss, [batch(1)], torch.optim.SGD(other.parameters(), lr=0.1), run=path)


def test_a_given_writer_stays_open(tmp_path):
    class Writer:
        def __init__(self):
            self.scalars, self.closed = {}, False

        def add_scalar(self, name, value, step):
            self.scalars[name, step] = value

        def flush(self):
            pass

        def close(self):
            self.closed = True

    model, writer = smooth(), Writer()
    with Monitor(model, loss, [batch(1)], torch.optim.SGD(model.parameters(), lr=0.1), writer=writer) as monitor:
        monitor.measure(3)
    assert not writer.closed
    assert writer.scalars["eigenscope/lambda_max", 3] == monitor.readings[0].lambda_max
    assert ("eigenscope/preconditioned", 3) not in writer.scalars


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every = 0"), ({"every": 2.5}, r"every = 2\.5"), ({"overhead": 0.0}, r"overhead = 0\.0"),
        ({"samples": -1}, "samples = -1"), ({"writer": 3}, "writer is a int"), ({"batches": []}, "no batches"),
    ],
)  # fmt: skip
def test_bad_options_are_refused(options, message):
    model = smooth()
    batches = options.pop("batches", [batch(1)])
    with pytest.raises(InputError, match=message):
        Monitor(model, loss, batches, torch.optim.SGD(model.parameters(), lr=0.1), **options)


class Labelled(nn.Module):
    """A model as transformers has them: its output holds the loss."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x, labels=None):
        logits = self.net(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def labelled_loss(model, data):
    return model(**data)["loss"]


def trained_by_transformers(folder, callbacks):
    import transformers

    transformers.set_seed(0)
    model = Labelled()
    rows = [{"x": x, "labels": y} for x, y in zip(*batch(1, 64), strict=True)]
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=6, per_device_train_batch_size=8, report_to=[], save_strategy="no",
        use_cpu=True, disable_tqdm=True, learning_rate=1e-2, logging_strategy="no",
    )  # fmt: skip
    transformers.Trainer(model, arguments, train_dataset=rows, callbacks=callbacks).train()
    return model.state_dict()


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_of_transformers(tmp_path):
    x, labels = batch(5)
    callback = trainer_callback([{"x": x, "labels": labels}], labelled_loss, every=2, run=tmp_path / "run.es")
    plain = trained_by_transformers(tmp_path, [])
    watched = trained_by_transformers(tmp_path, [callback])
    assert same(dict(plain), dict(watched))
    readings = callback.monitor.readings
    assert [reading.step for reading in readings] == [2, 4, 6]
    assert all(reading.preconditioned > 0.0 for reading in readings)
    assert all(reading.edge > 0.0 for reading in readings[:2])
    assert readings[2].edge is None  # the schedule has come to a learning rate of 0


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_of_lightning(tmp_path):
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net()

        def training_step(self, data, index):
            return loss(self.net, data)

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-2)

    class Log(lightning.pytorch.loggers.logger.DummyLogger):
        def __init__(self):
            super().__init__()
            self.seen = []

        def log_metrics(self, metrics, step=None):
            self.seen.append((step, metrics))

    def fitted(callbacks):
        log = Log()
        lightning.seed_everything(0)
        module = Module()
        data = torch.utils.data.DataLoader(list(zip(*batch(1, 64), strict=True)), batch_size=8, shuffle=True)
        lightning.Trainer(
            max_steps=8, accumulate_grad_batches=2, logger=log, callbacks=callbacks, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, accelerator="cpu", default_root_dir=tmp_path,
        ).fit(module, data)  # fmt: skip
        return module.state_dict(), log

    callback = lightning_callback([batch(5)], lambda module, data: loss(module.net, data), every=4)
    plain, _ = fitted([])
    watched, log = fitted([callback])
    assert same(dict(plain), dict(watched))
    assert [reading.step for reading in callback.monitor.readings] == [4, 8]
    shown = [(step, figures) for step, figures in log.seen if "eigenscope/lambda_max" in figures]
    assert [step for step, _ in shown] == [4, 8]


def test_it_is_a_public_name():
    assert es.monitor.Monitor is Monitor
