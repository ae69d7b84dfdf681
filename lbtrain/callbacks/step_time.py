"""How long training takes, measurements aside."""

import math
import time
from typing import Any

import torch

from lbtrain._lightning import Callback, LightningModule, Trainer
from lbtrain.callbacks._trainer import publish


class StepTime(Callback):
    """Time the fit: `time/fit_s` without measurements, `time/step_ms` per optimizer step and `time/epoch_s` per epoch.

    Put it before the measuring callbacks: its clock then stops before they start. A step is the time from the start of
    a training batch to its end, summed over its accumulation window and averaged over the run; loading and validation
    are not in it. An epoch is a pass over the training batches with all that belongs to the fit, its share of loading
    and validation included; an epoch that was not finished counts as the share of its batches.
    """

    def __init__(self) -> None:
        self._start = self._batch_start = time.perf_counter()
        self._in_batches = 0.0
        self._first_step = 0
        self._batches = self._epochs = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        _finish(pl_module.device)
        self._start, self._in_batches, self._first_step = time.perf_counter(), 0.0, trainer.global_step
        self._batches = self._epochs = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note when the batch starts."""
        self._batch_start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the batch's time; on a GPU work may still be queued, which the end of the fit waits for."""
        self._in_batches += time.perf_counter() - self._batch_start
        self._batches += 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the epoch, for data that cannot say how many batches make one."""
        # What share of it was done before a limit of steps is not known there, so then there is no count.
        self._epochs = self._epochs + 1 if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch else 0

    def leave_out(self, seconds: float) -> None:
        """Skip time that was not spent on training.

        Args:
            seconds: Just past, in or between batches.
        """
        self._start += seconds
        self._batch_start += seconds

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Publish the times of this fit."""
        _finish(pl_module.device)
        steps = max(trainer.global_step - self._first_step, 1)
        elapsed = time.perf_counter() - self._start
        times = {"time/fit_s": elapsed, "time/step_ms": 1000 * self._in_batches / steps}
        epochs = self._passes(trainer)
        publish(trainer, {**times, "time/epoch_s": elapsed / epochs} if epochs else times)

    def _passes(self, trainer: Trainer) -> float:
        """Return the epochs of this fit; a share for one that was cut short, where the loader knows its length."""
        per_epoch = trainer.num_training_batches
        return self._batches / per_epoch if per_epoch and math.isfinite(per_epoch) else self._epochs


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
