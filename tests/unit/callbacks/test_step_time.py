"""Times of the fit, without the measurements that end it."""

import time

import pytest
from torch.utils.data import DataLoader, IterableDataset

from lbtrain._lightning import Callback
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
