"""Multiply the hyperparameters of optimizers and schedulers, as if both had been built with the scaled ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from lbtrain.functional.scaling import Factors, scaled_moments
from lbtrain.functional.schedules import nested

# Where torch keeps a learning rate, or a floor or ceiling of one. Multiplying `lr` alone is undone at the next step by
# every scheduler that computes the rate from its base: LambdaLR, CosineAnnealingLR, OneCycleLR, CyclicLR and others.
_GROUP_KEYS = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")
_SCHEDULER_LISTS = ("base_lrs", "_last_lr", "max_lrs")
_FLOOR_LISTS = ("min_lrs",)
_FLOOR_SCALARS = ("eta_min", "default_min_lr")
# Kept in the parameter groups, so they travel with the optimizer's state also through runs without the callback.
_MARKS = {"lr": "lbtrain_lr", "moments": "lbtrain_moments", "decay": "lbtrain_decay"}

# What a parameter group contains that has never been scaled.
UNSCALED = Factors(rule="none", k=1.0, lr=1.0, moments=1.0, decay=1.0)


def rescale_rates(
    optimizer: torch.optim.Optimizer, schedulers: Iterable[Any], ratios: Sequence[float], *, scale_floor: bool = True
) -> list[str]:
    """Multiply every learning rate of an optimizer and of its schedulers, also of schedulers within schedulers.

    Args:
        optimizer: Its groups' `lr`, `initial_lr`, `max_lr` and `min_lr` are multiplied.
        schedulers: Of this optimizer; their base, last, maximal and minimal rates and `eta_min` are multiplied.
        ratios: One per parameter group, without unit.
        scale_floor: Whether the lowest rates (`eta_min`, plateau's `min_lrs`) are rates like the others, or stay.

    Returns:
        Names of floors that cannot follow: one number for all groups, whose ratios differ.
    """
    if all(ratio == 1.0 for ratio in ratios):
        return []
    for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
        # A tensor rate (capturable, fused) is replaced, not multiplied in place: `defaults` may share it.
        group.update({key: group[key] * ratio for key in _GROUP_KEYS if group.get(key) is not None})
    left = []
    for scheduler in nested(schedulers):
        for key in _SCHEDULER_LISTS + (_FLOOR_LISTS if scale_floor else ()):
            rates = getattr(scheduler, key, None)
            if isinstance(rates, list):
                # Shorter where parameter groups were added after the scheduler was built, at the end.
                setattr(scheduler, key, [rate * ratio for rate, ratio in zip(rates, ratios, strict=False)])
        for key in _FLOOR_SCALARS if scale_floor else ():
            floor = getattr(scheduler, key, None)
            if not floor:
                continue
            if len(set(ratios)) == 1:
                setattr(scheduler, key, floor * ratios[0])
            elif key == "eta_min":
                left.append(f"{type(scheduler).__name__}.{key}={float(floor):g}")
    return left


def rescale_others(group: dict[str, Any], before: Factors, after: Factors) -> None:
    """Bring betas, eps and weight decay of a parameter group from one set of factors to another.

    Args:
        group: Parameter group, changed in place.
        before: What it has been multiplied by so far.
        after: What it shall have been multiplied by.
    """
    if after.moments != before.moments:
        group.update(scaled_moments(group, after.moments / before.moments))
    if after.decay != before.decay:
        group["weight_decay"] = group["weight_decay"] * (after.decay / before.decay)


def mark(group: dict[str, Any], contained: Factors) -> None:
    """Write into a parameter group what its hyperparameters have been multiplied by.

    Args:
        group: Parameter group, changed in place.
        contained: The factors.
    """
    group.update({key: getattr(contained, name) for name, key in _MARKS.items()})


def marked(group: Mapping[str, Any]) -> Factors | None:
    """Return what the hyperparameters of a parameter group have been multiplied by.

    Args:
        group: Parameter group.

    Returns:
        The factors; None if it was never marked.
    """
    if not all(key in group for key in _MARKS.values()):
        return None
    return replace(UNSCALED, **{name: float(group[key]) for name, key in _MARKS.items()})
