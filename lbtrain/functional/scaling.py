"""Laws that carry a tuned learning rate over to another batch size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch

Rule = str | float

# Exponent p of lr' = lr * k^p for the named laws.
EXPONENTS = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}

# Where torch keeps a learning rate, or a floor or ceiling of one. Multiplying `lr` alone is undone at the next step by
# every scheduler that computes the rate from its base: LambdaLR, CosineAnnealingLR, OneCycleLR, CyclicLR and others.
_GROUP_KEYS = ("lr", "initial_lr", "max_lr", "min_lr")
_SCHEDULER_LISTS = ("base_lrs", "_last_lr", "max_lrs", "min_lrs")
_SCHEDULER_SCALARS = ("eta_min",)


def exponent(rule: Rule) -> float:
    """Return the exponent p of the scaling law lr' = lr * k^p.

    Args:
        rule: `"linear"` (p = 1), `"sqrt"` (p = 0.5), `"none"` (p = 0), or p itself.

    Returns:
        The exponent, without unit.

    Raises:
        ValueError: If the rule is neither a known name nor a finite number.

    References:
        Goyal et al. (2017), arXiv 1706.02677, section 2.1 (linear); Malladi et al. (2022), arXiv 2205.10287 (square
        root).
    """
    if isinstance(rule, str) and rule in EXPONENTS:
        return EXPONENTS[rule]
    if isinstance(rule, int | float) and not isinstance(rule, bool) and math.isfinite(rule):
        return float(rule)
    raise ValueError(f"rule must be one of {sorted(EXPONENTS)} or a finite exponent, got {rule!r}")


def scaling_factor(k: float, rule: Rule) -> float:
    """Return k^p, by which the learning rate grows when the batch grows k times.

    Args:
        k: Ratio of the new batch size to the one that the rate was tuned for, without unit.
        rule: The law, as in `exponent`.

    Returns:
        The factor on the learning rate, without unit.

    Raises:
        ValueError: If k is not positive and finite, or the rule is unknown.
    """
    if not (math.isfinite(k) and k > 0):
        raise ValueError(f"k must be positive and finite, got {k!r}")
    return float(k ** exponent(rule))


def rescale_rates(optimizers: Iterable[torch.optim.Optimizer], schedulers: Iterable[Any], factor: float) -> None:
    """Multiply every learning rate of the optimizers and schedulers, as if both had been built with the larger one.

    Args:
        optimizers: Their groups' `lr`, `initial_lr`, `max_lr` and `min_lr` are multiplied.
        schedulers: Their base, last, maximal and minimal rates and `eta_min` are multiplied, also inside SequentialLR
            and ChainedScheduler.
        factor: Without unit.
    """
    if factor == 1.0:
        return
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            # A tensor rate (capturable, fused) is replaced, not multiplied in place: `defaults` may share it.
            group.update({key: group[key] * factor for key in _GROUP_KEYS if group.get(key) is not None})
    for scheduler in _with_nested(schedulers):
        for key in _SCHEDULER_LISTS:
            if isinstance(getattr(scheduler, key, None), list):
                setattr(scheduler, key, [rate * factor for rate in getattr(scheduler, key)])
        for key in _SCHEDULER_SCALARS:
            if hasattr(scheduler, key):
                setattr(scheduler, key, getattr(scheduler, key) * factor)


def _with_nested(schedulers: Iterable[Any]) -> Iterator[Any]:
    for scheduler in schedulers:
        yield scheduler
        yield from _with_nested(getattr(scheduler, "_schedulers", ()))
