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

    A run that goes on from a checkpoint adds to what the checkpoint has: the times are those of all its sessions. What
    a killed session did after its last checkpoint is done again, and counted only once: its time is not in them.
    """

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._start: float | None = None  # of the clock, while it runs
        self._batch_start = 0.0
        self._first_step = 0
        # Of the sessions before this one, and of this one once it has ended.
        self._seconds, self._steps = 0.0, 0
        self._in_batches = 0.0
        # None: data that cannot say how many batches make an epoch were left within one.
        self._epochs: float | None = 0.0
        self._now = 0  # the step that training has come to

    def state_dict(self) -> dict[str, Any]:
        """Return what has been counted so far, in plain Python."""
        seconds, steps = self._so_far()
        return {"seconds": seconds, "in_batches": self._in_batches, "steps": steps, "epochs": self._epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting from a checkpoint."""
        self._seconds, self._steps = state_dict["seconds"], state_dict["steps"]
        self._in_batches, self._epochs = state_dict["in_batches"], state_dict["epochs"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the last fit."""
        if stage == "fit":
            self._forget()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        _finish(pl_module.device)
        self._start, self._first_step = time.perf_counter(), trainer.global_step
        self._now = self._first_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note when the batch starts."""
        self._batch_start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the batch's time; on a GPU work may still be queued, which the end of the fit waits for."""
        self._in_batches += time.perf_counter() - self._batch_start
        self._now = trainer.global_step
        if self._epochs is not None and math.isfinite(trainer.num_training_batches):
            self._epochs += 1 / trainer.num_training_batches

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the epoch, for data that cannot say how many batches make one."""
        if math.isfinite(trainer.num_training_batches):
            return
        # What share of it was done before a limit of steps is not known there, so then there is no count.
        whole = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        self._epochs = self._epochs + 1 if whole and self._epochs is not None else None

    def leave_out(self, seconds: float) -> None:
        """Skip time that was not spent on training.

        Args:
            seconds: Just past, in or between batches.
        """
        if self._start is not None:
            self._start += seconds
            self._batch_start += seconds

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock and publish the times of the run."""
        _finish(pl_module.device)
        self._seconds, self._steps = self._so_far()
        self._start = None
        times = {"time/fit_s": self._seconds, "time/step_ms": 1000 * self._in_batches / max(self._steps, 1)}
        publish(trainer, {**times, "time/epoch_s": self._seconds / self._epochs} if self._epochs else times)

    def _so_far(self) -> tuple[float, int]:
        """Return the seconds and the optimizer steps of the run, those before its checkpoint included."""
        if self._start is None:
            return self._seconds, self._steps
        return self._seconds + time.perf_counter() - self._start, self._steps + self._now - self._first_step


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
