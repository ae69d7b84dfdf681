"""Times of the fit, without the measurements that end it."""

import time

import pytest

from lbtrain._lightning import Callback
from lbtrain.callbacks.step_time import StepTime
from tests.modules import Plain, digits_like, fit


class Sleepy(Plain):
    def training_step(self, batch, batch_idx):
        time.sleep(0.02)
        return super().training_step(batch, batch_idx)


class Measuring(Callback):
    def on_train_end(self, trainer, pl_module):
        time.sleep(0.5)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_steps_are_timed_and_measurements_are_not(accumulate):
    trainer = fit(Sleepy(), digits_like(), [StepTime(), Measuring()], accumulate_grad_batches=accumulate)
    fit_s, step_ms = (trainer.callback_metrics[f"time/{key}"].item() for key in ("fit_s", "step_ms"))
    assert fit_s >= 6 * 0.02
    assert step_ms >= 20 * accumulate
    # The steps lie within the fit; a clock that ran on into the measurement would break the second bound.
    assert step_ms / 1000 * trainer.global_step <= fit_s
    assert fit_s < trainer.callback_metrics["time/step_ms"].item() / 1000 * trainer.global_step + 0.45
