"""Measurements during training: when they run, what they leave, and that training does not notice them."""

import time
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lbtrain import SAM, HessianSpectrum, LearningRateScaling, Sharpness, StepTime
from lbtrain._lightning import Callback, DummyLogger, LightningModule, ModelCheckpoint
from lbtrain.callbacks._measurement import Measurement
from tests.modules import Everything, Plain, Quadratic, digits_like, fit, same
from tests.problems import generator, matrix_with

QUIET = {"trace_probes": 0, "split_check": False, "figures": ()}


@dataclass(frozen=True)
class Number:
    value: float
    seconds: float = 0.0
    interrupted: bool = False

    def metrics(self):
        return {"test/number": self.value}


class Counting(Measurement):
    """Measures how often it has measured."""

    def __init__(self, *args, seconds=0.0, **options):
        super().__init__(*args, **options)
        self.count, self.seconds = 0, seconds

    def measure(self, trainer, pl_module):
        self.count += 1
        time.sleep(self.seconds)
        return Number(float(self.count), self.seconds)


class Kept(DummyLogger):
    """Keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step):
        self.rows.append((step, dict(metrics)))


def steps_of(callback):
    return [point["step"] for point in callback.tracks]


@pytest.mark.parametrize(
    ("when", "options", "expected"),
    [
        ({}, {}, [12]),
        ({"every_n_steps": 5}, {}, [5, 10, 12]),
        ({"every_n_steps": 4}, {}, [4, 8, 12]),  # the final one takes the place of the tracked one
        ({"every_n_epochs": 1}, {}, [6, 12]),
        ({"every_n_epochs": 2}, {"max_epochs": 3}, [12, 18]),
        ({"every_n_steps": 3, "every_n_epochs": 1}, {}, [3, 6, 9, 12]),
        ({"every_n_steps": 1}, {"accumulate_grad_batches": 4}, [1, 2, 3, 4]),  # 4 + 2 batches in each epoch
        ({"every_n_steps": 2}, {"max_steps": 5, "max_epochs": -1}, [2, 4, 5]),
    ],
)
def test_measures_after_the_optimizer_steps_and_epochs_asked_for(when, options, expected):
    counting = Counting(**when)
    fit(Plain(), digits_like(), [counting], **{"max_epochs": 2, **options})
    assert steps_of(counting) == expected
    assert counting.result.value == counting.count


def test_sanity_checks_and_validation_are_not_measured_in():
    class Validated(Plain):
        def val_dataloader(self):
            return digits_like(8)

        def validation_step(self, batch, batch_idx):
            assert not torch.is_grad_enabled()

    class InTraining(Counting):
        def measure(self, trainer, pl_module):
            assert trainer.training
            assert not trainer.sanity_checking
            assert torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
            return super().measure(trainer, pl_module)

    counting = InTraining(every_n_steps=1, every_n_epochs=1)
    fit(Validated(), digits_like(), [counting], val_check_interval=2, num_sanity_val_steps=2)
    assert steps_of(counting) == [1, 2, 3, 4, 5, 6]


def test_each_point_reaches_the_loggers_at_its_step_and_the_trainer_has_the_last():
    logger, counting = Kept(), Counting(every_n_steps=2, every_n_epochs=1)
    trainer = fit(Plain(), digits_like(40), [counting], logger=logger)
    assert [(step, row["test/number"]) for step, row in logger.rows if "test/number" in row] == [
        (2, 1.0), (4, 2.0), (5, 3.0), (5, 4.0),
    ]  # fmt: skip
    assert trainer.callback_metrics["test/number"] == 4.0
    assert [point["test/number"] for point in counting.tracks] == [1.0, 2.0, 4.0]
    assert [point["epoch"] for point in counting.tracks] == [0, 0, 1]


@pytest.mark.parametrize("first", [True, False])
def test_the_time_spent_measuring_is_not_part_of_the_fit(first):
    class Clock(Callback):
        def on_train_start(self, *_):
            self.start = time.perf_counter()

        def on_train_end(self, *_):
            self.seconds = time.perf_counter() - self.start

    # No bound depends on how busy the machine is: the first clock starts before StepTime's, the second stops after it.
    before, after = Clock(), Clock()
    counting, times = Counting(every_n_steps=1, seconds=0.05), StepTime()
    inner = [times, counting] if first else [counting, times]
    trainer = fit(Plain(), digits_like(), [before, *inner, after])
    metrics, total = trainer.callback_metrics, after.seconds + after.start - before.start
    assert metrics["time/measure_s"] == pytest.approx(7 * 0.05)
    assert 0 < metrics["time/fit_s"] <= total - 7 * 0.05
    assert 6 * metrics["time/step_ms"] / 1000 <= metrics["time/fit_s"]


class Quartic(LightningModule):
    """L = sum c_i w_i^4 / 4: the Hessian is diag(3 c w^2), so it follows the weights."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, -0.8, 0.6, 0.3], dtype=torch.float64))

    def training_step(self, batch, batch_idx):
        return (torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64) * self.w**4).sum() / 4

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)

    def spectrum(self):
        return (
            (3 * torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64) * self.w.detach() ** 2).sort().values.flip(0)
        )


class Truth(Callback):
    """Keeps the true spectrum after each step."""

    def __init__(self):
        self.found = {}

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.found[trainer.global_step] = pl_module.spectrum()


def test_tracked_eigenvalues_follow_the_true_ones():
    truth, tracked = Truth(), HessianSpectrum(top_k=2, tol=1e-8, every_n_steps=1, **QUIET)
    fit(Quartic(), digits_like(), [truth, tracked])
    assert steps_of(tracked) == list(range(1, 7))
    for point in tracked.tracks:
        expected = truth.found[point["step"]]
        assert [point["hessian/lambda_1"], point["hessian/lambda_2"]] == pytest.approx(expected[:2].tolist(), rel=1e-7)
        assert point["hessian/lambda_max"] == point["hessian/lambda_1"]
        assert point["hessian/stability"] == pytest.approx(0.05 * expected[0].item() / 2)
    assert tracked.tracks[0]["hessian/lambda_max"] > 1.2 * tracked.tracks[-1]["hessian/lambda_max"]


def test_a_warm_start_tracks_the_top_eigenvalue_in_a_handful_of_products():
    # Few outliers over a bulk, as in trained networks; the weights move and the matrix with them.
    spectrum = [10.0, 9.0, 8.0, 7.0, *torch.linspace(3, -0.1, 96).tolist()]
    drift = matrix_with(torch.linspace(-1, 1, 100).tolist(), seed=5)

    class Drifting(Quadratic):
        def training_step(self, batch, batch_idx):
            self.matrix.add_(0.1 * drift * self.training)  # by 1 % of its norm
            return super().training_step(batch, batch_idx)

    start = torch.randn(100, generator=generator(2), dtype=torch.float64)
    module = Drifting(matrix_with(spectrum), start, lr=0.01)
    data = DataLoader(TensorDataset(torch.zeros(8, 100, dtype=torch.float64)), batch_size=1)
    tracked = HessianSpectrum(top_k=1, every_n_steps=1, **QUIET)
    fit(module, data, [tracked])
    products = [point["hessian/num_matvecs"] for point in tracked.tracks[:-1]]
    assert products[0] >= 8
    assert max(products[1:]) <= 6
    assert all(point["hessian/converged"] for point in tracked.tracks)


class Unfreezing(Callback):
    """Trains the last layer, and from the second epoch on the first one too."""

    def setup(self, trainer, pl_module, stage):
        pl_module.net[0].requires_grad_(False)

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            pl_module.net[0].requires_grad_(True)
            trainer.optimizers[0].add_param_group({"params": list(pl_module.net[0].parameters())})


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_layers_that_are_unfrozen_during_training_are_measured_from_then_on(optimizer):
    def training(params):
        return optimizer([p for p in params if p.requires_grad], lr=0.001)

    tracked = HessianSpectrum(top_k=1, every_n_epochs=1, **QUIET)
    fit(Plain(optimizer=training), digits_like(), [Unfreezing(), tracked], max_epochs=3)
    assert steps_of(tracked) == [6, 12, 18]
    last_layer, whole, _ = (point["hessian/lambda_max"] for point in tracked.tracks)
    assert whole > 1.01 * last_layer  # a block has no larger eigenvalue than the whole; the weights hardly move
    assert all(point["hessian/converged"] for point in tracked.tracks)


def everything(callbacks, **options):
    """Return what a fit with all that can be disturbed leaves: weights, optimizer, modes, random numbers."""

    def with_schedule(params):
        optimizer = torch.optim.AdamW(params, lr=0.01)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2)}}

    torch.manual_seed(0)
    module = Everything(optimizer=with_schedule)
    options = {"max_epochs": 2, "accumulate_grad_batches": 2, "logger": Kept(), "log_every_n_steps": 1, **options}
    trainer = fit(module, digits_like(50, shuffle=True), callbacks, **options)
    optimizer = trainer.optimizers[0].state_dict()["state"]
    logged = [(step, {k: v for k, v in row.items() if k.startswith("train")}) for step, row in trainer.logger.rows]
    return {
        "weights": {k: v for k, v in module.state_dict().items() if "accuracy" not in k},
        "optimizer": {f"{i}{k}": v for i, state in optimizer.items() for k, v in state.items()},
        "plain": (module.calls, module.losses, torch.get_rng_state().tolist(), [row for row in logged if row[1]]),
    }


@pytest.mark.parametrize("beside", [[], [SAM], [lambda: LearningRateScaling(base_batch_size=4, rule="sqrt")]])
def test_training_is_the_same_bit_for_bit(beside):
    plain = everything([build() for build in beside])
    measuring = [
        HessianSpectrum(top_k=2, tol=0.5, max_matvecs=6, every_n_steps=1, every_n_epochs=1, **QUIET),
        Sharpness(["sam_one_step"], every_n_epochs=1),
        HessianSpectrum(top_k=1, tol=0.5, max_matvecs=6, matrix="ggn", every_n_epochs=1, **QUIET),
    ]
    tracked = everything([measuring[0], *(build() for build in beside), *measuring[1:]])
    assert len(measuring[0].tracks) == 8
    for key in ("weights", "optimizer"):
        assert same(plain[key], tracked[key]), key
    assert plain["plain"] == tracked["plain"]


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_resumed_run_goes_on_with_its_tracks(tmp_path):
    def run(folder, ckpt_path=None):
        tracked = HessianSpectrum(top_k=2, every_n_epochs=1, **QUIET)
        checkpoint = ModelCheckpoint(tmp_path / folder, filename="{epoch}", save_top_k=-1)
        options = {"max_epochs": 4, "enable_checkpointing": True, "default_root_dir": tmp_path}
        fit(Plain(), digits_like(), [tracked, checkpoint], ckpt_path=ckpt_path, **options)
        return tracked

    whole = run("whole")
    resumed = run("resumed", str(tmp_path / "whole" / "epoch=1.ckpt"))
    assert steps_of(resumed) == steps_of(whole) == [6, 12, 18, 24]
    state = torch.load(tmp_path / "whole" / "epoch=1.ckpt", weights_only=True)["callbacks"]
    (tracks,) = [value["tracks"] for key, value in state.items() if key.startswith("HessianSpectrum")]
    assert tracks == whole.tracks[:2] == resumed.tracks[:2]
    assert resumed.tracks[-1]["hessian/lambda_max"] == pytest.approx(whole.tracks[-1]["hessian/lambda_max"])


def test_two_callbacks_of_one_class_keep_their_tracks_apart():
    class Apart(Counting):
        own_keys = {}  # noqa: RUF012 - shares its number with the other one on purpose

    fast, slow = Apart(every_n_steps=1), Apart(every_n_steps=3)
    fit(Plain(), digits_like(), [fast, slow])
    assert fast.state_key != slow.state_key
    assert (len(fast.tracks), len(slow.tracks)) == (6, 2)


def test_a_new_fit_forgets_the_last_one():
    counting = Counting(every_n_steps=3)
    for _ in range(2):
        fit(Plain(), digits_like(), [counting])
        assert steps_of(counting) == [3, 6]


@pytest.mark.parametrize("name", ["every_n_steps", "every_n_epochs"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3"])
def test_wrong_intervals_are_refused(name, value):
    with pytest.raises(
        ValueError, match=rf"{name} must be a whole number of \w+, at least 1, or None .* got {value!r}"
    ):
        Counting(**{name: value})
