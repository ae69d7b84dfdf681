"""A warmup on top of any scheduler: rates lowered inside each optimizer step only."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lbtrain._lightning import MisconfigurationException, Trainer
from lbtrain.callbacks._trainer import steps_per_epoch
from lbtrain.functional.schedules import warms_up


class Warmup:
    """Lower an optimizer's rates during each step only, so schedulers and checkpoints see them unchanged.

    Pre- and post-step hooks come in pairs also where a gradient scaler skips a step, which a pair of Trainer hooks does
    not.

    Args:
        optimizer: The optimizer.
        shares: Returns by what each parameter group's rate is multiplied in the next step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, shares: Callable[[], Sequence[float]]) -> None:
        self._optimizer, self._shares = optimizer, shares
        self._full: list[Any] | None = None
        self._handles = [
            optimizer.register_step_pre_hook(lambda *_: self._lower()),
            optimizer.register_step_post_hook(lambda *_: self._restore()),
        ]

    def _lower(self) -> None:
        shares = self._shares()
        if any(share != 1.0 for share in shares):
            self._full = [group["lr"] for group in self._optimizer.param_groups]
            for group, share in zip(self._optimizer.param_groups, shares, strict=True):
                group["lr"] = group["lr"] * share

    def _restore(self) -> None:
        if self._full is not None:
            for group, rate in zip(self._optimizer.param_groups, self._full, strict=True):
                group["lr"] = rate
            self._full = None

    def remove(self) -> None:
        """Put the rates back, also in the middle of a step, and let go of the optimizer."""
        self._restore()
        for handle in self._handles:
            handle.remove()


def share(progress: float, factor: float) -> float:
    """Return what a scaled rate is multiplied by: from 1 / factor at the first step, linearly, to 1.

    Args:
        progress: Steps done over steps of the warmup.
        factor: By which the rate was scaled; a rate that was lowered needs no warmup.

    Returns:
        The share, without unit.

    References:
        Goyal et al. (2017), arXiv 1706.02677, section 2.2 (gradual warmup).
    """
    if factor <= 1.0 or progress >= 1.0:
        return 1.0
    return 1.0 / factor + (1.0 - 1.0 / factor) * progress


def warmup_length(trainer: Trainer, epochs: float, steps: int) -> float:
    """Return the length of a warmup.

    Args:
        trainer: The Trainer, when training starts.
        epochs: Its length in epochs, or 0.
        steps: Its length in optimizer steps, or 0.

    Returns:
        Optimizer steps, also a share of one.

    Raises:
        MisconfigurationException: If a schedule warms up already, the steps of several optimizers are counted together,
            or an epoch has no length.
    """
    if not epochs and not steps:
        return 0.0
    for config in trainer.lr_scheduler_configs:
        reason = warms_up(config.scheduler)
        if reason:
            raise MisconfigurationException(
                f"LearningRateScaling was given a warmup, but the schedule has one already ({reason}), and two would "
                "multiply: drop warmup_epochs and warmup_steps, or the warmup of the schedule"
            )
    if len(trainer.optimizers) > 1:
        raise MisconfigurationException(
            f"LearningRateScaling was given a warmup, but with {len(trainer.optimizers)} optimizers the Trainer counts "
            "their steps together: warm up with a scheduler for each, and drop warmup_epochs and warmup_steps"
        )
    if steps:
        return float(steps)
    per_epoch = steps_per_epoch(trainer)
    if per_epoch is None:
        raise MisconfigurationException(
            f"warmup_epochs={epochs:g} needs a training loader with a length, and this one has none: set warmup_steps "
            "instead"
        )
    return epochs * per_epoch
