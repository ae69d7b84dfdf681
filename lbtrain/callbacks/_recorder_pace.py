"""At which optimizer steps the recorder looks: so many times over a run, also where nobody knows how long it gets."""

import math
from typing import Any

from lbtrain._lightning import EarlyStopping, Trainer
from lbtrain.callbacks._trainer import steps_per_epoch
from lbtrain.callbacks.target import TargetReached

# A choice: a curve of so many points shows a level, a rise and where it began. These looks are half of what a diagnosis
# of 3,000 steps at batch 64 costs (docs/diagnostics.md, Cost).
SAMPLES = 14
# Where the end is not known: a choice that gives as many samples within the first 200 steps.
_FIRST_INTERVAL = 10
# Of a sample's interval: weights enter the running mean that many times.
_MEANS = 4


class Pace:
    """Choose the steps to sample at.

    Args:
        every_n_steps: Sample after each n-th optimizer step; None for 14 samples over the run.
        curvature_every: Samples from one with curvature to the next.

    Raises:
        ValueError: If one is out of range.
    """

    def __init__(self, every_n_steps: int | None, curvature_every: int) -> None:
        _check_count("every_n_steps", every_n_steps, "None for 14 samples over the run")
        _check_count("curvature_every", curvature_every, "5 to measure curvature at every fifth sample")
        self._asked, self._curvature_every = every_n_steps, curvature_every
        self.interval, self._grows = every_n_steps or _FIRST_INTERVAL, False

    def begin(self, trainer: Trainer) -> None:
        """Set the interval by the length of the run.

        Args:
            trainer: The Trainer, in `on_train_start` or later.
        """
        if self._asked is not None:
            return
        length = _length(trainer)
        whole = max(1, math.ceil(length / SAMPLES)) if length is not None else None
        self._grows = whole is None or _may_stop_early(trainer)
        if whole is None:
            return
        # A run that may stop at any time is sampled as one of unknown length, but never less often than to its end.
        self.interval = min(self.interval, whole) if self._grows else whole

    def is_due(self, step: int) -> bool:
        """Return whether to sample after this many optimizer steps."""
        return step % self.interval == 0

    def has_curvature(self, step: int) -> bool:
        """Return whether the sample after this many optimizer steps is one with curvature."""
        return step % (self.interval * self._curvature_every) == 0

    def is_mean_due(self, step: int) -> bool:
        """Return whether the weights after this many optimizer steps enter their running mean."""
        return step % self._between_means == 0

    def quiet(self, step: int) -> int:
        """Return how many optimizer steps follow this one before something is due at or behind one."""
        return min(
            self.interval - step % self.interval - 2,  # what stands before the step of a sample is kept, too
            self._between_means - step % self._between_means - 1,
        )

    @property
    def _between_means(self) -> int:
        """Steps from one to the next; odd, so that weights which jump to and fro enter from both sides."""
        return max(1, self.interval // _MEANS) // 2 * 2 + 1 if self.interval >= 2 * _MEANS else 1

    def grow(self, samples: int) -> bool:
        """Double the interval of a run of unknown length that has twice as many samples as it should.

        Args:
            samples: Taken so far.

        Returns:
            Whether it was doubled; the samples between the steps of the new interval are then to be dropped.
        """
        if not self._grows or samples < 2 * SAMPLES:
            return False
        self.interval *= 2
        return True

    def state_dict(self) -> dict[str, int]:
        """Return the interval, which a run of unknown length has come to."""
        return {"interval": self.interval}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on with the interval of a checkpoint, where none was asked for; `begin` sets that of a known length."""
        if self._asked is None:
            self.interval = state["interval"]


def _length(trainer: Trainer) -> int | None:
    """Return the optimizer steps that the run has at the most, None if nothing bounds it."""
    bounds = [trainer.max_steps] if trainer.max_steps >= 0 else []
    per_epoch = steps_per_epoch(trainer)
    if per_epoch is not None and trainer.max_epochs is not None and trainer.max_epochs >= 0:
        bounds.append(per_epoch * trainer.max_epochs)
    return min(bounds) if bounds else None


def _may_stop_early(trainer: Trainer) -> bool:
    return any(isinstance(c, EarlyStopping) or (isinstance(c, TargetReached) and c.stop) for c in trainer.callbacks)


def _check_count(name: str, value: Any, alternative: str) -> None:
    none = value is None and "None" in alternative
    if not none and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError(f"{name} must be a whole number, at least 1, got {value!r}: set {alternative}")
