"""A job's sign of life: how far it is, for the live view of the sweep that it is part of."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from lbtrain._lightning import Callback, LightningModule, Trainer

VARIABLE = "LBTRAIN_PULSE"
# Seconds between two beats: reading the loss waits for the device.
_INTERVAL = 1.0


class Pulse(Callback):
    """Write how far training is to a file, at most once a second.

    The file holds one JSON object: `epoch` passes over the data so far, with a fraction, `epochs` passes in all, `step`
    and `steps` the same in optimizer steps (None where there is no limit), `loss` of the latest batch, `time` in
    seconds since 1970, and `phase`, `training` or `measuring`.

    Args:
        path: File to write, in a directory that exists.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._next = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that training begins."""
        self._beat(trainer, None, "training")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Say how far it is, if a second has passed."""
        if trainer.is_global_zero and time.monotonic() >= self._next:
            self._beat(trainer, outputs, "training")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that the measurements at the end begin."""
        self._beat(trainer, None, "measuring")

    def _beat(self, trainer: Trainer, outputs: Any, phase: str) -> None:
        if not trainer.is_global_zero:
            return
        self._next = time.monotonic() + _INTERVAL
        fields = {
            "epoch": _passes(trainer),
            "epochs": None if trainer.max_epochs in (None, -1) else trainer.max_epochs,
            "step": trainer.global_step,
            "steps": None if trainer.max_steps == -1 else trainer.max_steps,
            "loss": _loss(outputs, trainer.accumulate_grad_batches),
            "time": time.time(),
            "phase": phase,
        }
        # Not the record's way of writing, which waits for the disk: nothing is lost with this file.
        draft = self.path.with_name(f"{self.path.name}.tmp")
        draft.write_text(json.dumps(fields))
        os.replace(draft, self.path)


def pulses() -> list[Callback]:
    """Return the callback that tells the sweep how far this job is, where one wants to know.

    Returns:
        One callback, or none without the variable LBTRAIN_PULSE.
    """
    path = os.environ.get(VARIABLE)
    return [Pulse(path)] if path else []


def _passes(trainer: Trainer) -> float:
    batches, done = trainer.num_training_batches, trainer.fit_loop.epoch_loop.batch_progress.current.processed
    known = isinstance(batches, int) and batches > 0  # infinite for a stream
    epochs = trainer.fit_loop.epoch_progress.current.completed
    within = trainer.fit_loop.epoch_progress.current.started > epochs
    return epochs + (min(1.0, done / batches) if known and within else 0.0)


def _loss(outputs: Any, windows: int) -> float | None:
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
    if loss is None or getattr(loss, "numel", lambda: 0)() != 1:
        return None
    # Lightning has divided it by the batches of the accumulation window.
    value = float(loss) * windows
    return value if math.isfinite(value) else None
