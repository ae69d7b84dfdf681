"""What is known of an optimizer by its class and its hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch


def decay_per_step(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> float | None:
    """Return the share of the weights that decays per optimizer step: `lr * decay`, and `/ (1 - momentum)` for SGD.

    Args:
        optimizer: That the group belongs to.
        group: Parameter group.

    Returns:
        The share, without unit; None where the decay is part of a gradient that is then normalized (Adam, RMSprop,
        LARS), or the optimizer is unknown.
    """
    decay, names = float(group.get("weight_decay", 0.0)), names_of(optimizer)
    decoupled = group.get("decoupled_weight_decay", group.get("weight_decouple", "adamw" in names))
    if decay == 0.0:
        return 0.0
    if "sgd" in names and "lars" not in names:
        return terminal_step(group) * decay
    return float(group["lr"]) * decay if decoupled or "adafactor" in names else None


def terminal_step(group: Mapping[str, Any]) -> float:
    """Return how far a constant gradient moves the weights per step in the end, `lr (1 - dampening) / (1 - momentum)`.

    Args:
        group: Parameter group; without `momentum` it is the rate itself.

    Returns:
        In units of the rate; infinite at momentum 1, which forgets nothing.
    """
    momentum, dampening = float(group.get("momentum", 0.0)), float(group.get("dampening", 0.0))
    rate = float(group["lr"])
    if momentum >= 1.0:
        return math.inf
    return rate * (1.0 - dampening) / (1.0 - momentum) if momentum > 0.0 else rate


def decay_per_epoch(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], steps: float) -> float | None:
    """Return the share of each weight that decays in an epoch, `1 - (1 - share per step)^steps`.

    Args:
        optimizer: That the group belongs to.
        group: Parameter group.
        steps: Optimizer steps of an epoch.

    Returns:
        The share, without unit, 0 to 1; None as in `decay_per_step`.
    """
    share = decay_per_step(optimizer, group)
    return None if share is None else 1.0 - (1.0 - min(share, 1.0)) ** steps


def names_of(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """Return the names of an optimizer's class and of all that it derives from.

    Args:
        optimizer: One that ZeroRedundancyOptimizer wraps is looked through.

    Returns:
        The names in lower case, the class's own first.
    """
    inner = getattr(optimizer, "optim", None)
    real = inner if isinstance(inner, torch.optim.Optimizer) else optimizer
    return tuple(kind.__name__.lower() for kind in type(real).__mro__)
