"""Times of the fit, without the measurements that end it."""

import time

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from lbtrain._lightning import Callback, ModelCheckpoint
from lbtrain.callbacks.step_time import StepTime
from tests.modules import Plain, digits_like, fit


class Sleepy(Plain):
    def training_step(self, batch, batch_idx):
        time.sleep(0.02)
        return super().training_step(batch, batch_idx)


class Before(Callback):
    """Its clock starts before StepTime's."""

    def on_train_start(self, trainer, pl_module):
        self.start = time.perf_counter()


class Measuring(Callback):
    """Its clock stops after StepTime's; what follows is no part of the fit."""

    def on_train_end(self, trainer, pl_module):
        self.end = time.perf_counter()
        time.sleep(0.1)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_steps_are_timed_and_measurements_are_not(accumulate):
    before, measuring = Before(), Measuring()
    trainer = fit(Sleepy(), digits_like(), [before, StepTime(), measuring], accumulate_grad_batches=accumulate)
    fit_s, step_ms = (trainer.callback_metrics[f"time/{key}"].item() for key in ("fit_s", "step_ms"))
    # No bound depends on how busy the machine is: each clock lies within the next.
    assert 6 * 0.02 <= step_ms / 1000 * trainer.global_step <= fit_s <= measuring.end - before.start
    assert step_ms >= 20 * accumulate


@pytest.mark.parametrize(("options", "epochs"), [({"max_epochs": 3}, 3), ({"max_steps": 9, "max_epochs": 9}, 1.5)])
def test_an_epoch_that_was_cut_short_counts_its_share(options, epochs):
    metrics = fit(Sleepy(), digits_like(), [StepTime()], **options).callback_metrics
    assert metrics["time/epoch_s"].item() == pytest.approx(metrics["time/fit_s"].item() / epochs)


class Endless(IterableDataset):
    """Data that do not say how many there are."""

    def __iter__(self):
        yield from digits_like().dataset


def test_data_of_unknown_length_count_their_finished_epochs():
    whole, cut = (
        fit(Plain(), DataLoader(Endless(), 8), [StepTime()], **options).callback_metrics
        for options in ({"max_epochs": 2}, {"max_steps": 2})
    )
    assert whole["time/epoch_s"].item() == pytest.approx(whole["time/fit_s"].item() / 2)
    assert "time/epoch_s" not in cut


def resumed(tmp_path, module, data, *, first=1, epochs=3):
    """Train in two sessions; return what the checkpoint between them has, and the Trainer of the second."""
    options = {"enable_checkpointing": True, "default_root_dir": tmp_path}
    path = str(tmp_path / "kept.ckpt")
    fit(module(), data(), [StepTime(), ModelCheckpoint(tmp_path, filename="kept")], max_epochs=first, **options)
    kept = torch.load(path, weights_only=True)["callbacks"]["StepTime"]
    return kept, fit(module(), data(), [StepTime()], max_epochs=epochs, ckpt_path=path)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_resumed_run_adds_to_the_times_of_its_checkpoint(tmp_path):
    start = time.perf_counter()
    kept, trainer = resumed(tmp_path, Sleepy, digits_like)
    whole = time.perf_counter() - start
    metrics = {key: value.item() for key, value in trainer.callback_metrics.items()}
    assert (kept["steps"], kept["epochs"]) == (6, pytest.approx(1))
    assert 6 * 0.02 <= kept["in_batches"] <= kept["seconds"]
    assert kept["seconds"] + 12 * 0.02 <= metrics["time/fit_s"] <= whole
    assert 18 * 0.02 <= metrics["time/step_ms"] / 1000 * 18 <= metrics["time/fit_s"]
    assert metrics["time/epoch_s"] == pytest.approx(metrics["time/fit_s"] / 3)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_resumed_run_counts_the_epochs_of_data_of_unknown_length(tmp_path):
    kept, trainer = resumed(tmp_path, Plain, lambda: DataLoader(Endless(), 8))
    assert kept["epochs"] == 1
    metrics = trainer.callback_metrics
    assert metrics["time/epoch_s"].item() == pytest.approx(metrics["time/fit_s"].item() / 3)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_checkpoint_without_times_leaves_those_of_the_session(tmp_path):
    options = {"enable_checkpointing": True, "default_root_dir": tmp_path}
    fit(Plain(), digits_like(), [ModelCheckpoint(tmp_path, filename="kept")], **options)
    times = StepTime()
    trainer = fit(Sleepy(), digits_like(), [times], max_epochs=2, ckpt_path=str(tmp_path / "kept.ckpt"))
    assert times.state_dict()["steps"] == 6
    assert trainer.callback_metrics["time/step_ms"].item() >= 20


def test_what_comes_after_the_fit_is_not_counted():
    times = StepTime()
    trainer = fit(Plain(), digits_like(), [times])
    state = times.state_dict()
    times.leave_out(1.0)  # as a measurement at the end of training does
    time.sleep(0.02)
    assert times.state_dict() == state
    assert state["seconds"] == trainer.callback_metrics["time/fit_s"].item()


def test_a_second_fit_starts_from_nothing():
    times = StepTime()
    fit(Sleepy(), digits_like(), [times], max_epochs=2)
    first = times.state_dict()
    fit(Plain(), digits_like(), [times])
    assert times.state_dict()["steps"] == 6
    assert times.state_dict()["seconds"] < first["seconds"]
