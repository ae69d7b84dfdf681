"""How long training takes, measurements aside."""

import time
from typing import Any

import torch

from lbtrain._lightning import Callback, LightningModule, Trainer
from lbtrain.callbacks._trainer import publish


class StepTime(Callback):
    """Time the fit and its optimizer steps: `time/fit_s` without the measurements that end it, and `time/step_ms`.

    Put it before the measuring callbacks: its clock then stops before they start. A step is the time from the start of
    a training batch to its end, summed over its accumulation window and averaged over the run; loading and validation
    are not in it.
    """

    def __init__(self) -> None:
        self._start = self._batch_start = time.perf_counter()
        self._in_batches = 0.0
        self._first_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        _finish(pl_module.device)
        self._start, self._in_batches, self._first_step = time.perf_counter(), 0.0, trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note when the batch starts."""
        self._batch_start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the batch's time; on a GPU work may still be queued, which the end of the fit waits for."""
        self._in_batches += time.perf_counter() - self._batch_start

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
        publish(trainer, {"time/fit_s": elapsed, "time/step_ms": 1000 * self._in_batches / steps})


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
