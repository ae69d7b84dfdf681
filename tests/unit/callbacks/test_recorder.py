"""Recorder: losses and rates of all steps, samples against dense references, and that training does not notice it."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lbtrain import SAM, StepTime
from lbtrain._lightning import Callback, EarlyStopping, ModelCheckpoint
from lbtrain.callbacks import _recorder_curvature
from lbtrain.callbacks._recorder import Recorder
from lbtrain.callbacks._recorder_pace import SAMPLES
from tests.modules import Everything, Plain, Quadratic, digits_like, fit, same
from tests.problems import generator, matrix_with
from tests.unit.callbacks.recorded import Recording, Truth
from tests.unit.callbacks.test_sam_precision import scaled
from tests.unit.callbacks.test_tracking import Kept

ALL = {"num_samples": 48, "batch_size": 48}


class Listing(Plain):
    """Keeps what training_step returned in training."""

    def __init__(self, **options):
        super().__init__(**options)
        self.returned = []

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.training:
            self.returned.append(loss.item())
        return loss


def windows(values, size):
    return [sum(values[i : i + size]) / len(values[i : i + size]) for i in range(0, len(values), size)]


@pytest.mark.parametrize("accumulate", [1, 4])
def test_every_step_leaves_the_mean_loss_of_its_batches_and_its_rate(accumulate):
    class Scheduled(Listing):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    module, recording, truth = Scheduled(), Recording(**ALL), Truth()
    fit(module, digits_like(), [recording, truth], max_epochs=2, accumulate_grad_batches=accumulate)
    # 6 batches an epoch: with windows of 4 the second one is cut short
    expected = [mean for epoch in (0, 6) for mean in windows(module.returned[epoch : epoch + 6], accumulate)]
    assert recording.recorder.evidence.losses == pytest.approx(expected, rel=1e-6)
    assert recording.recorder.evidence.rates == truth.rates
    assert truth.rates == pytest.approx([0.1 * 0.9**k for k in range(len(expected))])


def test_more_steps_than_are_kept_loose_come_back_in_order():
    module, recording = Listing(lr=0.01), Recording(every_n_steps=600)
    fit(module, digits_like(4, 1), [recording], max_epochs=150)
    assert recording.recorder.evidence.losses == pytest.approx(module.returned, rel=1e-6)
    assert recording.steps == [0, 600]


@pytest.mark.parametrize(
    ("options", "training", "expected"),
    [
        ({}, {"max_epochs": 1}, list(range(7))),
        ({}, {"max_epochs": 10}, list(range(0, 61, 5))),
        ({}, {"max_epochs": 10, "max_steps": 41}, [*range(0, 41, 3), 41]),
        ({"every_n_steps": 4}, {"max_epochs": 2}, [0, 4, 8, 12]),
        ({"every_n_steps": 5}, {"max_epochs": 2, "accumulate_grad_batches": 4}, [0, 4]),
        ({}, {"fast_dev_run": True}, [0, 1]),
        ({}, {"max_steps": 1}, [0, 1]),
    ],
)
def test_a_run_of_known_length_has_14_samples_and_its_last_weights(options, training, expected):
    recording = Recording(**options)
    fit(Plain(), digits_like(), [recording], **training)
    assert recording.steps == expected
    assert len(recording.steps) <= 15


@pytest.mark.parametrize("stopper", ["steps", "early"])
def test_a_run_of_unknown_length_is_sampled_ever_more_rarely(stopper):
    class Stop(Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = trainer.global_step >= 430

    recording, extra = Recording(num_samples=2), []
    if stopper == "early":
        extra = [EarlyStopping("loss", patience=10**6)]
        Stop.on_train_epoch_end = lambda self, trainer, _: trainer.callback_metrics.update(loss=torch.tensor(1.0))
    epochs = -1 if stopper == "steps" else 10**4
    fit(Plain(), digits_like(40, 2), [recording, Stop(), *extra], max_epochs=epochs)
    # 28 samples of every 10th step, of which every second stays, and every 20th from there on
    assert recording.steps == [*range(0, 421, 20), recording.steps[-1]]
    assert 430 <= recording.steps[-1] < 460
    # and none at the end, where little of the loss is left
    assert recording.points[-1].loss < 0.25 * recording.points[0].loss
    assert [point.step for point in recording.points if point.lambda_max is not None] == [0, 100, 200, 300, 400]
    assert len(recording.recorder.evidence.losses) == recording.steps[-1]


def dense(module, loader, weights):
    """Return loss, gradient and Hessian on all data."""
    x, y = loader.dataset.tensors
    named = [(name.removeprefix("net."), p) for name, p in module.named_parameters()]
    flat = torch.cat([w.reshape(-1) for w in weights])

    def loss(vector):
        parts = torch.split(vector, [p.numel() for _, p in named])
        values = {name: part.view(p.shape) for (name, p), part in zip(named, parts, strict=True)}
        return cross_entropy(functional_call(module.net, values, (x,)), y)

    return loss(flat).item(), torch.func.grad(loss)(flat), hessian(loss)(flat)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_samples_agree_with_dense_references(reduction):
    loader, truth = digits_like(dtype=torch.float64), Truth()
    module = Plain(dtype=torch.float64, reduction=reduction, lr=0.2 if reduction == "mean" else 0.02)
    recording = Recording(every_n_steps=2, curvature_every=1, **ALL)
    fit(module, loader, [recording, truth], max_epochs=2)
    assert [(point.step, point.epoch) for point in recording.points] == [
        (0, 0), (2, 0), (4, 0), (6, 0), (8, 1), (10, 1), (12, 1),
    ]  # fmt: skip
    rate = truth.rates[0]
    for point in recording.points:
        value, gradient, matrix = dense(module, loader, truth.weights[point.step])
        assert point.loss == pytest.approx(value, rel=1e-10)
        assert point.gradient_norm == pytest.approx(gradient.norm().item(), rel=1e-8)
        top = torch.linalg.eigvalsh(matrix)[-1].item()
        assert point.lambda_max <= top * (1 + 1e-9)
        assert point.lambda_max == pytest.approx(top, rel=0.1)
        assert point.stability == pytest.approx(rate * point.lambda_max / 2)
        assert point.rate == rate
        of_layer = dict(zip(("net.0", "net.2"), gradient.split([35, 18]), strict=True))
        assert list(point.flow) == list(of_layer)
        for name, part in of_layer.items():
            assert point.flow[name].gradient == pytest.approx(part.square().mean().sqrt().item(), rel=1e-8)


def test_the_flow_has_the_last_update_beside_the_weights():
    truth, recording = Truth(), Recording(every_n_steps=3, **ALL)
    fit(Plain(optimizer=lambda p: torch.optim.Adam(p, lr=0.01)), digits_like(), [recording, truth], max_epochs=1)
    assert [point.flow["net.0"].update is None for point in recording.points] == [True, False, False]
    for point in recording.points[1:]:
        before, after = truth.weights[point.step - 1][:2], truth.weights[point.step][:2]
        change = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(after, before, strict=True)))
        size = math.sqrt(sum(float(a.square().sum()) for a in after))
        assert point.flow["net.0"].update == pytest.approx(change / size, rel=1e-4)
        assert point.flow["net.0"].weight == pytest.approx(size / math.sqrt(35), rel=1e-5)


def test_units_of_a_dead_layer_are_seen():
    class Dead(Plain):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
            nn.init.constant_(self.net[0].bias, -100.0)

    recording = Recording(**ALL)
    fit(Dead(), digits_like(), [recording])
    units = recording.points[0].units["net.0"]
    assert (units.kind, units.units, units.dead) == ("relu", 5, 5)


def test_batch_gradients_along_the_top_direction_follow_the_closed_form_of_a_quadratic(monkeypatch):
    monkeypatch.setattr(_recorder_curvature, "_TOL", 1e-7)  # in three dimensions three products are exact
    # Gradient descent multiplies the coordinate along the top eigenvector by 1 - lr lambda in each step.
    matrix = matrix_with([4.0, 1.0, 0.5])
    start = 2 * torch.linalg.eigh(matrix)[1][:, -1]
    data = DataLoader(TensorDataset(torch.zeros(12, 3, dtype=torch.float64)), batch_size=1)
    recording = Recording(every_n_steps=4, curvature_every=3)
    fit(Quadratic(matrix, start, lr=1.6 / 4), data, [recording])
    first, *_, last = recording.points
    assert len(first.projections) == 12
    ratios = [b / a for a, b in zip(first.projections[:-1], first.projections[1:], strict=True)]
    assert ratios == pytest.approx([1 - 1.6] * 11)
    assert first.stability == pytest.approx(0.8)
    assert recording.points[1].projections == ()
    assert last.projections == ()


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_products_are_of_the_gradient_of_the_mean_loss_whatever_the_accumulation(accumulate):
    matrix, start = matrix_with([4.0, 1.0]), torch.tensor([1.0, 2.0], dtype=torch.float64)
    data = DataLoader(TensorDataset(torch.zeros(6, 2, dtype=torch.float64)), batch_size=1)  # a window cut short
    recording = Recording(every_n_steps=2, curvature_every=2)
    fit(Quadratic(matrix, start, lr=0.0), data, [recording], max_epochs=2, accumulate_grad_batches=accumulate)
    products = recording.points[0].projections
    assert len(products) == {1: 12, 2: 6, 4: 4}[accumulate]
    direction = torch.linalg.eigh(matrix)[1][:, -1]
    assert [abs(p) for p in products] == pytest.approx([abs(float(direction @ matrix @ start))] * len(products))


def test_the_noise_share_is_0_for_the_gradient_itself_and_unbiased_for_batches():
    loader = digits_like(48, 48, dtype=torch.float64)
    recording = Recording(every_n_steps=1, **ALL)
    fit(Plain(dtype=torch.float64), loader, [recording], max_epochs=3)
    assert [point.noise for point in recording.points[:-1]] == pytest.approx([0.0] * 3, abs=1e-12)
    assert recording.points[-1].noise is None
    squares = [point.gradient_norm**2 for point in recording.points[:-1]]
    assert [point.product for point in recording.points[:-1]] == pytest.approx(squares)
    assert recording.points[-1].product is None
    # f = mean of (w'w/2 - x'w): the gradient of a batch of B is w - mean x, with variance 1/B in each of 50 directions.
    x, w = torch.randn(512, 50, generator=generator(3), dtype=torch.float64), torch.full((50,), 0.5).double()
    noisy = Recording(num_samples=256, every_n_steps=1, curvature_every=200, seed=1, batch_size=256)
    module = Quadratic(torch.eye(50, dtype=torch.float64), w, lr=0.0)
    fit(module, DataLoader(TensorDataset(x), batch_size=4), [noisy])
    found = [point.noise for point in noisy.points[:-1]]
    assert len(found) == 128
    assert sum(found) / len(found) == pytest.approx(50 / 4 / (50 / 4 + 12.5), abs=0.03)


def test_products_with_batches_have_the_slope_without_the_noise_of_the_subset():
    # As above, with a slope that is small beside the noise of a subset of 16: |g|^2 is larger than its square by
    # 50 (1/16 - 1/512) = 3 in the mean. Over an epoch at the same weights the batch gradients have the mean w - mean x.
    x, w = torch.randn(512, 50, generator=generator(3), dtype=torch.float64), torch.full((50,), 0.1).double()
    recording = Recording(num_samples=16, every_n_steps=1, curvature_every=200, seed=1, batch_size=16)
    fit(
        Quadratic(torch.eye(50, dtype=torch.float64), w, lr=0.0),
        DataLoader(TensorDataset(x), batch_size=4),
        [recording],
    )
    truth, points = float((w - x.mean(dim=0)).square().sum()), recording.points[:-1]
    error = math.sqrt(truth * (1 / 16 - 1 / 512))  # of the subset's gradient along the slope
    assert sum(point.product for point in points) / len(points) == pytest.approx(truth, abs=4 * error)
    assert points[0].gradient_norm ** 2 > truth + 4 * error


@pytest.mark.parametrize("kind", ["sum", "sam"])
def test_gradients_that_are_not_of_a_batchs_mean_loss_have_no_noise_share(kind):
    recording = Recording(every_n_steps=1, **ALL)
    module = Plain(reduction="sum" if kind == "sum" else "mean", lr=0.001)
    fit(module, digits_like(), [SAM(), recording] if kind == "sam" else [recording])
    assert [point.noise for point in recording.points] == [None] * 7


def test_the_mean_of_the_weights_is_the_one_of_its_formula_and_its_loss_the_dense_one():
    loader, truth, recording = digits_like(dtype=torch.float64), Truth(), Recording(every_n_steps=12, **ALL)
    module = Plain(dtype=torch.float64, lr=0.5)
    fit(module, loader, [recording, truth], max_epochs=4)
    steps = [3, 6, 9, 12, 15, 18, 21, 24]  # a quarter of 12, and odd
    shares = [(k**7 - (k - 3) ** 7) / 24**7 for k in steps]
    assert sum(shares) == pytest.approx(1)
    mean = [sum(share * truth.weights[k][i] for share, k in zip(shares, steps, strict=True)) for i in range(4)]
    assert recording.at_mean == pytest.approx(dense(module, loader, mean)[0], rel=1e-10)
    assert recording.at_mean != pytest.approx(dense(module, loader, truth.weights[-1])[0], rel=1e-6)
    assert recording.recorder.evidence.recent == (recording.points[-1].loss,)
    for p, w in zip(module.parameters(), truth.weights[-1], strict=True):
        assert torch.equal(p, w)


def test_weights_that_jump_to_and_fro_enter_their_mean_from_both_sides():
    # At lr lambda = 2 the weight flips its sign in each step; at the mean the loss is lower than at any iterate.
    # Of 32 steps from one sample to the next a quarter is even: weights at every 8th step would all have one sign.
    data = DataLoader(TensorDataset(torch.zeros(32 * SAMPLES, 1, dtype=torch.float64)), batch_size=1)
    recording = Recording(num_samples=2)
    fit(Quadratic(torch.eye(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64), lr=2.0), data, [recording])
    assert recording.recorder.evidence.recent == pytest.approx([0.5] * (SAMPLES - math.ceil(0.75 * SAMPLES) + 1))
    assert recording.at_mean < 0.01


@pytest.mark.parametrize(
    ("optimizer", "callbacks", "training"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), [], {}),
        (lambda p: torch.optim.Adam(p, lr=0.01), [], {}),
        (lambda p: torch.optim.SGD(p, lr=0.05), [SAM()], {}),
        (lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), [], {"accumulate_grad_batches": 4}),
        (lambda p: torch.optim.AdamW(p, lr=0.01), [], {"gradient_clip_val": 0.1}),
    ],
)
def test_training_is_the_same_bit_for_bit(optimizer, callbacks, training):
    states = []
    for recording in ([], [Recording(every_n_steps=1, curvature_every=2, num_samples=20)]):
        torch.manual_seed(0)
        module = Everything(optimizer=optimizer)
        trainer = fit(module, digits_like(shuffle=True), [*callbacks, *recording], max_epochs=2, **training)
        moments = trainer.optimizers[0].state_dict()["state"].values()
        kept = {f"{i} {k}": v for i, m in enumerate(moments) for k, v in m.items() if isinstance(v, torch.Tensor)}
        more = {"stream": torch.get_rng_state(), "losses": torch.tensor(module.losses)}
        states.append(module.state_dict() | kept | more)
    assert same(*states)


def tensors_in(state):
    """Return the tensors of a nested state."""
    if isinstance(state, torch.Tensor):
        return [state]
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else []
    return [t for part in parts for t in tensors_in(part)]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_resumed_run_goes_on_with_the_record(tmp_path):
    def record():
        return Recording(every_n_steps=4, curvature_every=2, num_samples=20)

    def module():
        torch.manual_seed(0)
        return Plain(optimizer=lambda p: torch.optim.Adam(p, lr=0.05))

    whole, truth = record(), Truth()
    fit(module(), digits_like(), [whole, truth], max_epochs=2)
    saving = ModelCheckpoint(tmp_path, filename="last", save_on_train_epoch_end=True)
    fit(module(), digits_like(), [record(), saving], max_epochs=1, enable_checkpointing=True)
    path = tmp_path / "last.ckpt"
    state = torch.load(path, weights_only=True)["callbacks"]["Recording"]
    assert len(state["evidence"]["losses"]) == 4
    assert len(state["losses"]["values"]) == 2  # they wait for the next sample
    resumed = record()
    fit(module(), digits_like(), [resumed], max_epochs=2, ckpt_path=path)
    ours, theirs = resumed.recorder.evidence, whole.recorder.evidence
    assert (ours.losses, ours.rates) == (theirs.losses, theirs.rates)
    assert resumed.steps == whole.steps == [0, 4, 8, 12]
    for a, b in zip(resumed.points, whole.points, strict=True):
        assert (a.loss, a.gradient_norm) == (b.loss, b.gradient_norm)
        assert (a.lambda_max is None) == (b.lambda_max is None)
        if a.lambda_max is not None:  # from a random start again: eigenvectors are not saved
            assert a.lambda_max == pytest.approx(b.lambda_max, rel=0.2)
    assert resumed.at_mean == whole.at_mean
    held = [t.numel() for t in tensors_in(state)]
    assert sum(held) <= sum(p.numel() for p in Plain().parameters())  # one mean of the weights, and nothing like it


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_run_that_goes_on_from_a_checkpoint_without_a_record_keeps_its_steps_apart(tmp_path):
    saving = ModelCheckpoint(tmp_path, filename="last", save_on_train_epoch_end=True)
    fit(Plain(), digits_like(), [saving], enable_checkpointing=True)
    module, recording = Listing(), Recording(every_n_steps=4, **ALL)
    fit(module, digits_like(), [recording], max_epochs=2, ckpt_path=tmp_path / "last.ckpt")
    assert recording.steps == [8, 12]
    losses = recording.recorder.evidence.losses
    assert losses[6:] == pytest.approx(module.returned, rel=1e-6)
    assert losses[:6] == [losses[6]] * 6


@pytest.mark.filterwarnings("ignore:.*returned `None`")  # Lightning says so once in a process
def test_a_step_without_a_loss_repeats_the_one_before():
    class Skipping(Listing):
        def training_step(self, batch, batch_idx):
            return None if self.training and batch_idx in {0, 3} else super().training_step(batch, batch_idx)

    module, recording = Skipping(), Recording(every_n_steps=3, **ALL)
    fit(module, digits_like(), [recording])
    a, b, c, d = module.returned
    assert recording.recorder.evidence.losses == pytest.approx([a, a, b, b, c, d], rel=1e-6)


def test_a_step_that_the_scaler_leaves_out_is_no_step():
    # The scale overflows float16 at first; the scaler halves it until a step comes through.
    recording, truth = Recording(every_n_steps=1, curvature_every=1, **ALL), Truth()
    fit(Plain(), digits_like(), [recording, truth], plugins=[scaled(2.0**18)], max_epochs=2)
    moved = [
        any(not torch.equal(a, b) for a, b in zip(*pair, strict=True))
        for pair in zip(truth.weights[:-1], truth.weights[1:], strict=True)
    ]
    assert 0 < sum(moved) < len(moved)
    losses = recording.recorder.evidence.losses
    assert len(losses) == len(moved) == 12
    assert all(map(math.isfinite, losses))
    for k, point in enumerate(recording.points[1:]):
        assert (point.flow["net.0"].update is not None) == moved[k]
    first = moved.index(True)
    assert losses[:first] == [losses[first]] * first
    assert all(math.isfinite(p) for point in recording.points for p in point.projections)
    assert recording.points[first].noise is not None


def test_weights_that_are_not_finite_are_recorded_without_curvature():
    class Breaking(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step == 3:
                with torch.no_grad():
                    pl_module.net[0].weight.fill_(torch.nan)

    recording = Recording(every_n_steps=1, curvature_every=1, **ALL)
    fit(Plain(), digits_like(), [Breaking(), recording])
    assert [math.isnan(point.loss) for point in recording.points] == [False] * 3 + [True] * 4
    assert [point.lambda_max is None for point in recording.points] == [False] * 3 + [True] * 4
    assert recording.recorder.sampler.left_out == {}
    assert [math.isnan(loss) for loss in recording.recorder.evidence.losses] == [False] * 3 + [True] * 3


def test_a_sample_that_fails_is_left_out_with_its_reason_and_training_goes_on():
    class Fragile(Listing):
        def training_step(self, batch, batch_idx):
            if not self.training and len(self.returned) > 2:
                raise RuntimeError("no evaluation after two steps")
            return super().training_step(batch, batch_idx)

    module, recording = Fragile(), Recording(every_n_steps=1, **ALL)
    with pytest.warns(UserWarning, match="goes on without samples: RuntimeError: no evaluation after two steps"):
        trainer = fit(module, digits_like(), [recording])
    assert trainer.global_step == len(recording.recorder.evidence.losses) == 6
    assert recording.steps == [0, 1, 2]
    # The words of a foreign error are for the screen, not for files.
    assert recording.recorder.sampler.left_out["samples"] == "it failed with RuntimeError"
    assert recording.at_mean is None


def test_manual_optimization_is_recorded_without_samples():
    class Manual(Plain):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            self.optimizers().step()

    recording = Recording()
    fit(Manual(), digits_like(), [recording])
    assert (
        "manual" in recording.recorder.sampler.left_out["samples"]
        or "automatic" in recording.recorder.sampler.left_out["samples"]
    )
    assert recording.points == []


def test_the_time_is_that_of_measuring_and_the_loss_reaches_the_loggers():
    logger, recording, times = Kept(), Recording(every_n_steps=2, **ALL), StepTime()
    trainer = fit(Plain(), digits_like(), [times, recording], logger=logger)
    assert [(step, row["subset/loss"]) for step, row in logger.rows if "subset/loss" in row] == [
        (point.step, point.loss) for point in recording.points
    ]
    assert 0 < recording.recorder.sampler.seconds == pytest.approx(trainer.callback_metrics["time/measure_s"].item())


@pytest.mark.parametrize(
    ("loader", "module", "expected"),
    [
        (digits_like(96, 8), Plain(), (8, 32)),
        (digits_like(96, 8, features=20_000), Plain(features=20_000), (8, 13)),  # 2^18 numbers
        (digits_like(96, 8, features=50_000), Plain(features=50_000), (8, 8)),
    ],
)
def test_small_samples_are_evaluated_together_behind_the_first_time(loader, module, expected, monkeypatch):
    sizes, step = [], module.training_step

    def counting(batch, batch_idx):
        if not module.training and torch.is_grad_enabled():
            sizes.append(len(batch[0]))
        return step(batch, batch_idx)

    monkeypatch.setattr(module, "training_step", counting)
    fit(module, loader, [Recording(num_samples=32)], max_steps=1)
    assert (sizes[0], max(sizes)) == expected


def test_only_what_is_asked_for_is_evaluated():
    recording = Recording(every_n_steps=2, curvature_every=10, **ALL)
    fit(Plain(), digits_like(), [recording])
    # 4 gradients, up to 7 products at the start, and the loss at the mean
    assert [point.step for point in recording.points if point.lambda_max is not None] == [0]
    assert 4 + 1 < recording.recorder.sampler.num_evaluations <= 4 + 7 + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "num_samples must be"),
        ({"every_n_steps": 0}, "every_n_steps must be a whole number, at least 1, got 0: set None for 14 samples"),
        ({"curvature_every": None}, "curvature_every must be a whole number, at least 1, got None: set 5"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Recorder(**options)


def test_a_mean_is_put_back_bit_for_bit_when_the_evaluation_fails():
    module, recording = Plain(), Recording(**ALL)
    fit(module, digits_like(), [recording])
    before = {k: v.clone() for k, v in module.state_dict().items()}
    with pytest.raises(RuntimeError, match="stop"), recording.recorder._mean.placed(module):
        raise RuntimeError("stop")
    assert same(before, module.state_dict())


def test_a_mean_of_infinite_buffers_is_the_buffer_and_of_finite_ones_their_mean():
    class Masked(Plain):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
            self.register_buffer("running", torch.zeros(2))

        def on_train_batch_end(self, *_):
            self.running.fill_(self.trainer.global_step)

    module, recording = Masked(), Recording(every_n_steps=3, **ALL)
    fit(module, digits_like(), [recording])
    mean = recording.recorder._mean._mean
    assert torch.equal(mean["mask"], module.mask)
    assert 3 < mean["running"][0] < 6
    assert math.isfinite(recording.at_mean)
