"""How a schedule is carried over to another number of steps: longer copies, replayed on rates of their own."""

from __future__ import annotations

import copy
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from lbtrain.functional._step_functions import stretch_functions

# What is missing to a whole number of steps, or too much, by rounding.
_WHOLE = 1e-6
# A rate that agrees with the replayed one to this share was set by the schedule alone; above the rounding of float32.
_ALONE = 1e-6
# Where OneCycleLR divides by the last step of its first phase, 0 becomes this many steps.
_ONE_CYCLE_END = 1e-9


def nested(schedulers: Iterable[Any]) -> Iterator[Any]:
    """Yield each scheduler and all that SequentialLR and ChainedScheduler hold, from the outside in.

    Args:
        schedulers: Of torch, or like them.

    Yields:
        The schedulers.
    """
    for scheduler in schedulers:
        yield scheduler
        yield from nested(getattr(scheduler, "_schedulers", ()))


class _Rates:
    """What a scheduler sees of an optimizer: groups without parameters, at the rates from which schedules start."""

    def __init__(self, optimizer: Any) -> None:
        self.defaults = optimizer.defaults
        self.param_groups = [
            {key: _copied(value) for key, value in group.items() if key != "params"} for group in optimizer.param_groups
        ]
        for group in self.param_groups:
            group["lr"] = _copied(group.get("initial_lr", group["lr"]))

    def step(self) -> None:
        """Exist, since schedulers look whether it has been called."""


def replayed(scheduler: Any, ratio: float) -> Any:
    """Build a copy of a schedule with other lengths, on rates of its own, and step it up to the same share.

    Args:
        scheduler: One of torch's classes, or SequentialLR or ChainedScheduler of them; not ReduceLROnPlateau.
        ratio: On the lengths and on the position, without unit.

    Returns:
        The copy; its `optimizer` holds the rates.
    """
    twin = _twin(scheduler, _Rates(scheduler.optimizer))
    steps = round(_position(scheduler) * ratio)
    with warnings.catch_warnings():
        # Of schedulers that step before their optimizer, which has no step here; torch 2.4, of its own SequentialLR.
        warnings.simplefilter("ignore")
        if ratio != 1:
            _lengthen(twin, ratio)
        _begin(twin)
        for _ in range(steps):
            twin.step()
    return twin


def adopt(scheduler: Any, before: Any, after: Any) -> None:
    """Give a scheduler the state of its stretched copy, and its optimizer the rates of that.

    Args:
        scheduler: To change.
        before: Its copy, replayed as it is.
        after: Its copy, replayed with the new lengths.
    """
    for own, other in zip(nested([scheduler]), nested([after]), strict=True):
        vars(own).update({k: v for k, v in vars(other).items() if k not in {"optimizer", "_schedulers"}})
    cycles = any(getattr(part, "cycle_momentum", False) for part in nested([scheduler]))
    groups = (scheduler.optimizer, before.optimizer, after.optimizer)
    for group, old, new in zip(*(optimizer.param_groups for optimizer in groups), strict=True):
        if float(old["lr"]) != float(new["lr"]):
            _set_rate(group, old["lr"], new["lr"])
        if cycles:
            group.update({key: new[key] for key in ("momentum", "betas") if key in new})
    scheduler._last_lr = [_copied(group["lr"]) for group in scheduler.optimizer.param_groups]


def stretch_plateau(scheduler: Any, ratio: float) -> None:
    """Multiply the patience and the cooldown of ReduceLROnPlateau, and what it has counted so far.

    Args:
        scheduler: To change.
        ratio: Without unit.
    """
    for name in ("patience", "cooldown"):
        setattr(scheduler, name, _whole(getattr(scheduler, name), ratio))
    for name in ("num_bad_epochs", "cooldown_counter", "last_epoch"):
        setattr(scheduler, name, round(getattr(scheduler, name) * ratio))


def _lengthen(twin: Any, ratio: float) -> None:
    for part in nested([twin]):
        stretch_functions(part, ratio)
        for name in ("T_max", "T_0", "step_size", "total_iters", "anneal_epochs"):
            if hasattr(part, name):
                setattr(part, name, _whole(getattr(part, name), ratio))
        if hasattr(part, "milestones"):
            part.milestones = Counter(_whole(step, ratio) for step in part.milestones.elements())
        if hasattr(part, "_milestones"):
            part._milestones = [_whole(step, ratio) for step in part._milestones]
        if hasattr(part, "gamma") and type(part).__name__ in {"ExponentialLR", "CyclicLR"}:
            part.gamma **= 1.0 / ratio
        if hasattr(part, "total_size"):
            part.total_size *= ratio
            part._init_scale_fn()  # which holds gamma
        if hasattr(part, "total_steps"):
            _lengthen_one_cycle(part, ratio)


def _lengthen_one_cycle(part: Any, ratio: float) -> None:
    phases = [dict(phase) for phase in part._schedule_phases]
    share = (phases[0]["end_step"] + 1) / part.total_steps  # pct_start, which torch does not keep
    # Rounded up: one step after the last raises an error.
    part.total_steps = max(1, math.ceil(part.total_steps * ratio - _WHOLE))
    phases[0]["end_step"] = share * part.total_steps - 1 or _ONE_CYCLE_END
    if len(phases) == 3:
        phases[1]["end_step"] = 2 * share * part.total_steps - 2
    phases[-1]["end_step"] = part.total_steps - 1
    part._schedule_phases = phases


def _begin(twin: Any) -> None:
    """Put a schedule at its first step, as its constructor leaves it."""
    members = getattr(twin, "_schedulers", ())
    for part in members:
        _begin(part)
    if hasattr(twin, "_milestones"):
        type(twin).__init__(twin, twin.optimizer, members, twin._milestones)
    elif members:
        type(twin).__init__(twin, members)
    else:
        twin.last_epoch = -1
        twin._initial_step()


def _set_rate(group: dict[str, Any], old: Any, new: Any) -> None:
    rate = float(group["lr"])
    if not math.isclose(rate, float(old), rel_tol=_ALONE) and float(old) != 0:
        new = rate * (float(new) / float(old))
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(float(new))  # in place, as torch's schedulers do: a CUDA graph reads this tensor
    else:
        group["lr"] = new


def _whole(steps: float, ratio: float) -> float:
    return max(1, round(steps * ratio)) if 0 < steps < math.inf else steps


def _position(scheduler: Any) -> int:
    # ChainedScheduler keeps none: all that it holds step together.
    return int(scheduler.last_epoch) if hasattr(scheduler, "last_epoch") else _position(scheduler._schedulers[0])


def _twin(scheduler: Any, rates: _Rates) -> Any:
    twin = copy.copy(scheduler)
    twin.optimizer = rates
    if hasattr(scheduler, "_schedulers"):
        twin._schedulers = [_twin(part, rates) for part in scheduler._schedulers]
    return twin


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value
