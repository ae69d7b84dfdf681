"""Schedules that count optimizer steps, of which a larger batch leaves fewer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lbtrain._lightning import Trainer, rank_zero_warn
from lbtrain.callbacks._trainer import GlobalBatch, samples_per_epoch, steps_per_epoch
from lbtrain.functional.schedules import horizon, lengths, stretch, unknown

# For which ratio of the batches each schedule counts, and by what its functions of the step are stretched.
Stretched = list[list[float]]


def follow_batch(
    trainer: Trainer, batch: GlobalBatch, base: int, known: Stretched | None, *, stretch_them: bool
) -> Stretched | None:
    """Shorten the schedules that count steps as the steps have become fewer, or warn of them.

    Args:
        trainer: The Trainer, when training starts, with the state of a checkpoint restored.
        batch: The global batch in use.
        base: The one that the rates were tuned at, samples.
        known: What was done to the schedules of the checkpoint; None for nothing.
        stretch_them: Whether to shorten them.

    Returns:
        What has been done to them; None for nothing.
    """
    configs, k = trainer.lr_scheduler_configs, batch.size / base
    _warn_of_strangers([config.scheduler for config in configs])
    before = [known[i] if known is not None and i < len(known) else [1.0, 1.0] for i in range(len(configs))]
    for config, (_, functions) in zip(configs, before, strict=True):
        if functions != 1.0:  # no checkpoint holds them
            stretch(config.scheduler, functions, functions_only=True)
    lengths_of = _Lengths.of(trainer, batch, base)
    if _ends_by_steps(trainer, lengths_of.total):
        return known
    done = []
    for config, (reached, functions) in zip(configs, before, strict=True):
        ratio = 1.0
        if config.interval == "step" and stretch_them:
            ratio = _stretch(config, lengths_of, k, reached, touched=known is not None)
        elif config.interval == "step":
            _warn(config, lengths_of, k, reached)
        done.append([k, functions * ratio])
    return done if stretch_them else known


@dataclass(frozen=True)
class _Lengths:
    """How many optimizer steps the run has, and would have at another batch."""

    total: int | None
    """Steps of the run; None if the training loader or the run has no length."""
    samples: float
    """Of an epoch, over all devices."""
    epochs: int
    base: int

    @classmethod
    def of(cls, trainer: Trainer, batch: GlobalBatch, base: int) -> _Lengths:
        per_epoch, epochs = steps_per_epoch(trainer), trainer.max_epochs or -1
        if per_epoch is None or epochs < 0:
            return cls(None, math.nan, epochs, base)
        samples = samples_per_epoch(trainer, batch)
        return cls(per_epoch * epochs, samples, epochs, base)

    def at(self, k: float) -> set[int]:
        """Return the steps of the run with k times the base batch, with and without a short last batch."""
        if self.total is None:
            return set()
        steps = self.samples / (self.base * k)
        return {math.ceil(steps) * self.epochs, math.floor(steps) * self.epochs}


def _warn_of_strangers(schedulers: list[Any]) -> None:
    strange = unknown(schedulers)
    if strange:
        rank_zero_warn(
            f"LearningRateScaling does not know the scheduler {', '.join(strange)}: it scales the rates in the "
            "parameter groups and the base_lrs that the scheduler has; look whether it reads its rates elsewhere"
        )


def _ends_by_steps(trainer: Trainer, total: int | None) -> bool:
    """Return whether max_steps ends training, which then has the same number of steps whatever the batch."""
    limit = trainer.max_steps
    return limit is not None and limit >= 0 and (total is None or limit <= total)


def _is_made_for(config: Any, total: int | None) -> bool:
    reach = horizon(config.scheduler)
    return reach is not None and reach * config.frequency == total


def _stretch(config: Any, lengths_of: _Lengths, k: float, before: float, *, touched: bool) -> float:
    """Shorten a schedule.

    Returns:
        By what.
    """
    if not touched and _is_made_for(config, lengths_of.total):
        return 1.0
    reach, ratio = (horizon(config.scheduler) or 0) * config.frequency, before / k
    # A schedule as long as the run at its batch becomes as long as this run, which rounding alone would miss.
    if k != before and lengths_of.total is not None and reach in lengths_of.at(before):
        ratio = lengths_of.total / reach
    stretch(config.scheduler, ratio)
    return ratio


def _warn(config: Any, lengths_of: _Lengths, k: float, before: float) -> None:
    if k == before or _is_made_for(config, lengths_of.total):
        return
    counted = ", ".join(f"{name}={value}" for name, value in lengths(config.scheduler).items())
    at_base = f" {max(lengths_of.at(1.0))} optimizer steps at the base batch and" if lengths_of.total else ""
    now = lengths_of.total or f"1/{k:g} of them"
    rank_zero_warn(
        f"the schedule counts optimizer steps ({counted or type(config.scheduler).__name__}), and this run has"
        f"{at_base} {now} at this one: the rate changes later than it was tuned to. Set "
        "LearningRateScaling(stretch_schedule=True), count in epochs (interval='epoch'), or make the schedule from "
        "trainer.estimated_stepping_batches"
    )
