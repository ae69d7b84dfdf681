"""Learning-rate schedules as data: what they count in steps, where they end, and the same schedule in fewer steps."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from lbtrain.functional._step_functions import stretch_functions
from lbtrain.functional._stretching import adopt, nested, replayed, stretch_plateau

__all__ = ["Length", "horizon", "lengths", "nested", "stretch", "unknown", "warms_up"]

Length = float | list[float] | str

# The attributes that count steps, by class of torch.optim.lr_scheduler (and SWALR); the same from torch 2.4 to 2.13.
_COUNTED = {
    "ChainedScheduler": (),
    "ConstantLR": ("total_iters",),
    "CosineAnnealingLR": ("T_max",),
    "CosineAnnealingWarmRestarts": ("T_0",),
    "CyclicLR": ("step_size_up", "step_size_down"),
    "ExponentialLR": ("gamma",),  # per step
    "LambdaLR": ("lr_lambdas",),
    "LinearLR": ("total_iters",),
    "MultiStepLR": ("milestones",),
    "MultiplicativeLR": ("lr_lambdas",),
    "OneCycleLR": ("total_steps",),
    "PolynomialLR": ("total_iters",),
    "ReduceLROnPlateau": ("patience", "cooldown"),
    "SWALR": ("anneal_epochs",),
    "SequentialLR": ("_milestones",),
    "StepLR": ("step_size",),
}
_MODULES = frozenset({"torch.optim.lr_scheduler", "torch.optim.swa_utils"})
# The attribute at which a schedule has run its course; classes that are neither here nor in `horizon` never end.
_END = {
    "ConstantLR": "total_iters",
    "CosineAnnealingLR": "T_max",
    "LinearLR": "total_iters",
    "OneCycleLR": "total_steps",
    "PolynomialLR": "total_iters",
    "SWALR": "anneal_epochs",
}


def unknown(schedulers: Iterable[Any]) -> list[str]:
    """Name the classes that are not torch's own, of which nothing is known but what they inherit.

    Args:
        schedulers: To look at, with all that they hold.

    Returns:
        Class names, each once, in the order of the schedulers.
    """
    return list(dict.fromkeys(type(part).__name__ for part in nested(schedulers) if not _is_torch(part)))


def lengths(scheduler: Any) -> dict[str, Length]:
    """List every number by which a schedule counts steps, with those of the schedules that it holds.

    Args:
        scheduler: Of torch; other classes, whose numbers nobody knows, have none.

    Returns:
        Name, such as "CosineAnnealingLR.T_max" or "SequentialLR[1].CosineAnnealingLR.T_max", to steps: one number or
        their list; for ExponentialLR the factor per step; for functions the words "a function of the step".
    """
    return dict(_lengths(scheduler, ""))


def horizon(scheduler: Any) -> int | None:
    """Return the step at which a schedule has run its course.

    Args:
        scheduler: Of torch, or like them.

    Returns:
        Steps since the schedule began, after which the rate stays or the schedule is not meant to be stepped; None for
        one that goes on for ever (StepLR, ExponentialLR, functions, restarts, cycles, plateaus) and for other classes.
    """
    name = type(scheduler).__name__ if _is_torch(scheduler) else ""
    if name == "MultiStepLR":
        return max(scheduler.milestones.elements(), default=0)
    if name in {"ChainedScheduler", "SequentialLR"}:
        parts = list(scheduler._schedulers)
        starts = [0] * len(parts) if name == "ChainedScheduler" else [0, *scheduler._milestones]
        last = parts if name == "ChainedScheduler" else parts[-1:]
        ends = [horizon(part) for part in last]
        known = [end + start for end, start in zip(ends, starts[-len(last) :], strict=True) if end is not None]
        return max(known) if len(known) == len(last) else None
    end = getattr(scheduler, _END.get(name, ""), math.inf)
    return math.ceil(end) if math.isfinite(end) else None


def warms_up(scheduler: Any) -> str | None:
    """Tell whether a schedule begins below its own peak and climbs, so that a warmup on top would be the second one.

    Args:
        scheduler: Of torch, or like them; of SequentialLR the schedule counts that comes first.

    Returns:
        The class and the reason, such as "LinearLR climbs from 0.1 to 1 of the rate"; None for one that starts at its
        peak, and for classes that are not torch's own.
    """
    name = type(scheduler).__name__ if _is_torch(scheduler) else ""
    if name == "SequentialLR":
        return warms_up(scheduler._schedulers[bisect_right(scheduler._milestones, 0)])
    if name == "ChainedScheduler":
        return next((reason for part in scheduler._schedulers if (reason := warms_up(part))), None)
    reason = _climb(scheduler, name)
    return f"{name} {reason}" if reason else None


def stretch(scheduler: Any, ratio: float, *, functions_only: bool = False) -> list[str]:
    """Make a schedule run in `ratio` times as many steps: rate'(t) = rate(t / ratio).

    Every length is multiplied, in whole steps and at least 1 where torch needs whole ones (OneCycleLR, which refuses a
    step too many, rounds up); ExponentialLR takes gamma^(1 / ratio) and functions are asked at t / ratio. The position
    is multiplied, too, and the schedule replayed up to there, which costs a few microseconds per step: the rates of
    its optimizer become those of a schedule that was built with these lengths and stepped so often. A rate that
    something else has changed meanwhile (a second scheduler, a plateau) is multiplied by the ratio of the two instead.
    ReduceLROnPlateau, which has no position, multiplies its patience, cooldown and counts.

    Args:
        scheduler: Of torch, with all that it holds; it must be stepped per optimizer step, not per epoch.
        ratio: New number of steps over the old one, without unit: 1 / k for k times the batch.
        functions_only: Only wrap the functions of LambdaLR, MultiplicativeLR and CyclicLR again, which no checkpoint
            holds, after the rest has been restored from one.

    Returns:
        Names of classes that are not torch's own; if there are any, the scheduler is left as it was.

    Raises:
        ValueError: If the ratio is not positive and finite.
    """
    if not (math.isfinite(ratio) and ratio > 0):
        raise ValueError(f"ratio must be positive and finite, got {ratio!r}: give new steps / old steps")
    strangers = unknown([scheduler])
    if strangers or ratio == 1:
        return strangers
    if functions_only:
        for part in nested([scheduler]):
            stretch_functions(part, ratio)
    elif type(scheduler).__name__ == "ReduceLROnPlateau":
        stretch_plateau(scheduler, ratio)
    else:
        adopt(scheduler, replayed(scheduler, 1.0), replayed(scheduler, ratio))
    return []


def _is_torch(scheduler: Any) -> bool:
    return type(scheduler).__module__ in _MODULES and type(scheduler).__name__ in _COUNTED


def _lengths(scheduler: Any, prefix: str) -> Iterator[tuple[str, Length]]:
    name = type(scheduler).__name__
    for attribute in _COUNTED[name] if _is_torch(scheduler) else ():
        yield f"{prefix}{name}.{attribute.lstrip('_')}", _length(scheduler, attribute)
    if name == "CyclicLR" and _is_torch(scheduler) and scheduler.mode == "exp_range":
        yield f"{prefix}{name}.gamma", scheduler.gamma
    for i, part in enumerate(getattr(scheduler, "_schedulers", ())):
        yield from _lengths(part, f"{prefix}{name}[{i}].")


def _length(scheduler: Any, attribute: str) -> Length:
    if attribute == "lr_lambdas":
        return "a function of the step"
    if attribute.startswith("step_size_"):  # CyclicLR keeps their sum and the share of the first
        share = scheduler.step_ratio if attribute.endswith("up") else 1.0 - scheduler.step_ratio
        return float(scheduler.total_size * share)
    value = getattr(scheduler, attribute)
    if isinstance(value, Counter):
        return sorted(value.elements())
    return list(value) if isinstance(value, list | tuple) else value


def _climb(scheduler: Any, name: str) -> str | None:
    if name == "LinearLR" and scheduler.start_factor < scheduler.end_factor:
        return f"climbs from {scheduler.start_factor:g} to {scheduler.end_factor:g} of the rate"
    if name == "ConstantLR" and scheduler.factor < 1:
        return f"holds {scheduler.factor:g} of the rate before it gives it all"
    if name == "OneCycleLR" and any(
        float(g["initial_lr"]) < float(g["max_lr"]) for g in scheduler.optimizer.param_groups
    ):
        return "climbs to max_lr first"
    if name == "CyclicLR" and any(low < high for low, high in zip(scheduler.base_lrs, scheduler.max_lrs, strict=True)):
        return "climbs from base_lr to max_lr in each cycle"
    if name == "LambdaLR" and any(function(0) < function(1) for function in scheduler.lr_lambdas):
        return "has a function that is larger at step 1 than at step 0"
    if name == "MultiplicativeLR" and any(function(1) > 1 for function in scheduler.lr_lambdas):
        return "has a function above 1 at step 1"
    return None
