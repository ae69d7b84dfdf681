"""When a run first reaches a target: optimizer steps, epochs and seconds until then."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from lbtrain._lightning import Callback, LightningModule, MisconfigurationException, Trainer, rank_zero_info
from lbtrain.callbacks._trainer import publish

_MODES = ("min", "max")


class TargetReached(Callback):
    """Note when a metric first reaches a target, and stop there: steps to a target (Shallue et al. 2019).

    Publishes `target/value` (the target, in the unit of the metric), `target/reached` (1 or 0) and, once it is reached,
    `target/steps` (optimizer steps), `target/epochs` (passes over the training data) and `target/s` (seconds of the
    fit until then, validation included, measurements left out). It looks after each validation and at the end of each
    training epoch; a metric must be logged before the end of the epoch. A run that goes on from a checkpoint adds to
    its seconds; those of a killed session after its last checkpoint do not count.

    Args:
        monitor: Metric to follow, a key of `trainer.callback_metrics`.
        target: Value that is good enough, in the unit of the metric.
        mode: Whether the metric should rise to the target ("max") or fall to it ("min").
        stop: Whether the run ends there.

    Attributes:
        found: What was published about reaching the target, by key; None before.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, monitor: str = "val/acc", target: float = 0.97, mode: str = "max", stop: bool = True) -> None:
        if not isinstance(monitor, str) or not monitor:
            raise ValueError(f"monitor must be the key of a metric, such as 'val/acc', got {monitor!r}")
        if isinstance(target, bool) or not isinstance(target, (int, float)) or not math.isfinite(target):
            raise ValueError(f"target must be a finite number in the unit of {monitor}, such as 0.97, got {target!r}")
        if mode not in _MODES:
            raise ValueError(f"mode must be one of {_MODES}, got {mode!r}: max for an accuracy, min for a loss")
        if not isinstance(stop, bool):
            raise ValueError(f"stop must be true or false, got {stop!r}")
        self.monitor, self.target, self.mode, self.stop = monitor, float(target), mode, stop
        self.found: dict[str, float] | None = None
        self._before = 0.0  # seconds of the fit that this one goes on from
        self._clock: Callable[[], float] | None = None  # seconds of this fit so far
        self._validated = False

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds so far and what was found, in plain Python."""
        return {"seconds": self._seconds(), "found": None if self.found is None else dict(self.found)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint; what an earlier part of the run found holds for the same target only."""
        self._before, self.found = state_dict["seconds"], state_dict["found"]
        if self.found is not None and self.found["target/value"] != self.target:
            self.found = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the last fit."""
        if stage == "fit":
            self.found, self._before, self._clock, self._validated = None, 0.0, None, False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; a run that goes on from beyond the target has nothing left to do."""
        self._clock = _clock(trainer)
        self._stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the metric after a validation within training."""
        if trainer.training or trainer.validating:
            self._validated = self._validated or not trainer.sanity_checking
        if self._clock is not None and self.monitor in trainer.callback_metrics:
            self._look(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the metric at the end of an epoch, where it must be there once validation has run.

        Raises:
            MisconfigurationException: If no part of the run logs it.
        """
        if self.monitor in trainer.callback_metrics:
            self._look(trainer, pl_module)
        elif self._validated or not trainer.enable_validation:
            raise MisconfigurationException(self._missing(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock and publish."""
        self._before, self._clock = self._seconds(), None
        publish(trainer, self.found or {"target/value": self.target, "target/reached": 0.0})

    def _look(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the first time that the metric is good enough, on every rank."""
        if self.found is not None:
            return
        value = trainer.callback_metrics[self.monitor]
        # In the precision of the metric: an accuracy of 0.9 in 32 bits is a little less than 0.9 in 64.
        target = torch.tensor(self.target, dtype=value.dtype, device=value.device)
        enough = bool(value >= target if self.mode == "max" else value <= target)
        # A metric that is not reduced over the ranks differs between them; they have to stop together.
        if not trainer.strategy.reduce_boolean_decision(enough, all=True):
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self.found = {
            "target/value": self.target,
            "target/reached": 1.0,
            "target/steps": float(trainer.global_step),
            "target/epochs": _epochs(trainer),
            "target/s": self._seconds(),
        }
        publish(trainer, self.found)
        self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        if self.found is not None and self.stop:
            trainer.should_stop = True
            rank_zero_info(f"{self.monitor} has reached {self.target:g} after {self.found['target/steps']:.0f} steps")

    def _seconds(self) -> float:
        """Return the seconds of the run so far, those before its checkpoint included."""
        return self._before + (self._clock() if self._clock is not None else 0.0)

    def _missing(self, trainer: Trainer) -> str:
        there = ", ".join(sorted(trainer.callback_metrics)) or "none"
        return (
            f"monitor={self.monitor!r} of TargetReached is logged nowhere: name one of the metrics that are ({there})"
        )


def _clock(trainer: Trainer) -> Callable[[], float]:
    """Return what tells the seconds from now on, those of measurements left out."""
    start = time.perf_counter() - _measuring(trainer)
    return lambda: time.perf_counter() - _measuring(trainer) - start


def _measuring(trainer: Trainer) -> float:
    """Return the seconds that measurements have taken so far."""
    return float(trainer.callback_metrics.get("time/measure_s", 0.0))


def _epochs(trainer: Trainer) -> float:
    """Return the passes over the training data so far; validations within an epoch see a share of one."""
    batches = trainer.num_training_batches
    within = trainer.fit_loop.epoch_loop.batch_progress.current.ready / batches if math.isfinite(batches) else 1.0
    return trainer.current_epoch + within
