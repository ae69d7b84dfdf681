"""When an ascent happens, and how far it goes: parts of training, intervals, schedules of the radius."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lbtrain._lightning import MisconfigurationException, Trainer
from lbtrain.functional.radius import KINDS, radius


@dataclass(frozen=True)
class Span:
    """A part of training, from `start` up to `stop`: epochs if integers, shares of training if floats."""

    start: float
    stop: float | None

    def __post_init__(self) -> None:
        for name, value in (("start", self.start), ("stop", self.stop)):
            whole = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (whole and value >= 0) and not (isinstance(value, float) and 0 <= value <= 1):
                raise ValueError(
                    f"{name} must be an epoch (an integer from 0) or a share of training (a float from 0.0 to 1.0), "
                    f"got {value!r}"
                )
        if self.stop is not None and type(self.start) is type(self.stop) and self.start >= self.stop:
            raise ValueError(f"start must be before stop, got start={self.start!r} and stop={self.stop!r}")

    def contains_now(self, trainer: Trainer) -> bool:
        """Return whether training is in this part.

        Args:
            trainer: The Trainer, in a training batch.

        Returns:
            Whether it is at or after the start, and before the stop.
        """
        return _reached(self.start, trainer) and (self.stop is None or not _reached(self.stop, trainer))

    @property
    def needs_length(self) -> bool:
        """Whether the length of training must be known."""
        return any(_is_share(value) and 0 < value < 1 for value in (self.start, self.stop) if value is not None)


@dataclass(frozen=True)
class Radius:
    """The radius of the ascent over training: `lbtrain.functional.radius.radius`, times `factor`."""

    rho: float
    schedule: str
    rho_end: float | None
    factor: float = 1.0

    def __post_init__(self) -> None:
        check_number("rho", self.rho, "0.05 is the usual start, 0 trains without SAM")
        if self.schedule not in KINDS:
            raise ValueError(f"rho_schedule must be one of {', '.join(KINDS)}, got {self.schedule!r}")
        if self.rho_end is not None:
            check_number("rho_end", self.rho_end, "it is the radius at the end of the schedule")
            if self.schedule == "constant":
                raise ValueError(
                    f"rho_end={self.rho_end!r} needs a schedule: set rho_schedule to linear, cosine or lr, or leave "
                    "rho_end out"
                )

    def now(self, trainer: Trainer, group: Mapping[str, Any], rate: float) -> float:
        """Return the radius for a parameter group, at this moment of training.

        Args:
            trainer: The Trainer, in a training batch.
            group: Parameter group; its own `sam_rho` stands in for `rho`.
            rate: Learning rate of the group as a share of its highest.

        Returns:
            The radius, in units of parameter norm.
        """
        rho = group.get("sam_rho", self.rho)
        if self.schedule == "constant":
            return rho * self.factor
        progress = 0.0 if self.schedule == "lr" else progress_of(trainer)
        return self.factor * radius(self.schedule, rho, self.rho_end or 0.0, progress=progress, rate=rate)

    @property
    def needs_length(self) -> bool:
        """Whether the length of training must be known."""
        return self.schedule in {"linear", "cosine"}


def check_number(name: str, value: float, advice: str, *, above: bool = False) -> None:
    """Refuse what is no finite number of at least 0.

    Args:
        name: Of the argument, for the message.
        value: What was given.
        advice: End of the message.
        above: Whether 0 is refused, too.

    Raises:
        ValueError: If the value is negative or not finite.
    """
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or value < 0 or (above and value == 0):
        raise ValueError(f"{name} must be {'above' if above else 'at least'} 0 and finite, got {value!r}; {advice}")


def check_count(name: str, value: int) -> None:
    """Refuse what is no whole number of at least 1.

    Args:
        name: Of the argument, for the message.
        value: What was given.

    Raises:
        ValueError: If it is less than 1 or no integer.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}; 1 means every one")


def check_length(trainer: Trainer, what: str) -> None:
    """Refuse a training of unknown length.

    Args:
        trainer: The Trainer.
        what: What needs the length, for the message.

    Raises:
        MisconfigurationException: If neither epochs nor steps are bounded.
    """
    if trainer.max_steps < 0 and (trainer.max_epochs is None or trainer.max_epochs < 0):
        raise MisconfigurationException(
            f"{what} is counted in shares of training, but its length is unknown (max_epochs=-1, no max_steps): set "
            "one of the two, or give start and stop in epochs, as integers"
        )


def progress_of(trainer: Trainer) -> float:
    """Return the share of training that is done, by whichever of `max_steps` and `max_epochs` ends it first.

    Args:
        trainer: The Trainer, in a training batch.

    Returns:
        0.0 to 1.0.
    """
    done = trainer.global_step / trainer.max_steps if trainer.max_steps > 0 else 0.0
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        batches = trainer.num_training_batches
        inside = trainer.fit_loop.epoch_loop.batch_idx / batches if math.isfinite(batches) and batches else 0.0
        done = max(done, (trainer.current_epoch + inside) / trainer.max_epochs)
    return min(done, 1.0)


def _is_share(value: Any) -> bool:
    return isinstance(value, float)


def _reached(moment: float, trainer: Trainer) -> bool:
    return progress_of(trainer) >= moment if _is_share(moment) else trainer.current_epoch >= moment


def rate_share(group: Mapping[str, Any], highest: float) -> float:
    """Return the learning rate of a parameter group as a share of its highest.

    Args:
        group: Parameter group. OneCycleLR and CyclicLR keep the highest rate as `max_lr`, other schedulers start from
            `initial_lr`.
        highest: Highest rate seen, for a group without a scheduler.

    Returns:
        0.0 to 1.0.
    """
    peak = float(group.get("max_lr", group.get("initial_lr", highest)))
    return min(float(group["lr"]) / peak, 1.0) if peak > 0 else 1.0
