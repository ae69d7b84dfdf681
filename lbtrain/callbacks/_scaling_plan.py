"""What the hyperparameters of all optimizers contain, what they shall contain, and the way from one to the other."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch.optim import Optimizer

from lbtrain._lightning import MisconfigurationException, Trainer, rank_zero_warn
from lbtrain.functional.rescale import UNSCALED, mark, marked, rescale_others, rescale_rates
from lbtrain.functional.scaling import Factors, Law, factors, scaled_moments

# One entry per optimizer and parameter group.
Plan = list[list[Factors]]


def planned(trainer: Trainer, laws: Sequence[Law]) -> Plan:
    """Return what the hyperparameters shall have been multiplied by.

    Args:
        trainer: The Trainer.
        laws: One per optimizer.

    Returns:
        The factors; a law that does not apply to a parameter group is refused.
    """
    plan: Plan = []
    for optimizer, law in zip(trainer.optimizers, laws, strict=True):
        plan.append([])
        for i, group in enumerate(optimizer.param_groups):
            with _naming(optimizer, i):
                plan[-1].append(factors(optimizer, group, law))
    return plan


def contained(trainer: Trainer, known: Plan | None, *, running: bool) -> Plan:
    """Return what the hyperparameters have been multiplied by.

    The marks in the parameter groups say so also where a checkpoint has gone through a run without the callback; the
    callback's own state where an optimizer does not keep unknown keys.

    Args:
        trainer: The Trainer.
        known: From this run or its checkpoint.
        running: Whether it is from this run: a group that came later (BackboneFinetuning adds some) then has a rate
            that was taken from those of the others.

    Returns:
        The factors.
    """
    plan: Plan = []
    for i, optimizer in enumerate(trainer.optimizers):
        own = known[i] if known is not None and i < len(known) else []
        rest = own[0] if own and running else UNSCALED
        plan.append(
            [marked(g) or (own[j] if j < len(own) else rest) for j, g in enumerate(optimizer.param_groups)],
        )
    return plan


def carry_out(trainer: Trainer, before: Plan, after: Plan, *, scale_floor: bool) -> None:
    """Bring all parameter groups and schedulers from one plan to another; it is refused whole, if one cannot follow.

    Args:
        trainer: The Trainer.
        before: What the hyperparameters contain.
        after: What they shall contain.
        scale_floor: Whether the schedulers' lowest rates follow.
    """
    for optimizer, old, new in zip(trainer.optimizers, before, after, strict=True):
        for i, (group, b, a) in enumerate(zip(optimizer.param_groups, old, new, strict=True)):
            with _naming(optimizer, i):
                scaled_moments(group, a.moments / b.moments)
    for optimizer, old, new in zip(trainer.optimizers, before, after, strict=True):
        ratios = [a.lr / b.lr for a, b in zip(new, old, strict=True)]
        schedulers = _schedulers(trainer, optimizer)
        left = rescale_rates(optimizer, schedulers, ratios, scale_floor=scale_floor)
        if left:
            rank_zero_warn(
                f"{', '.join(left)}: one number for parameter groups with different factors, so it was not scaled; "
                "give the groups optimizers of their own, or set LearningRateScaling(scale_floor=False)"
            )
        for group, b, a in zip(optimizer.param_groups, old, new, strict=True):
            rescale_others(group, b, a)
            mark(group, a)


def _schedulers(trainer: Trainer, optimizer: Optimizer) -> list[Any]:
    found = [config.scheduler for config in trainer.lr_scheduler_configs]
    # A scheduler of another library may not say whose it is.
    alone = len(trainer.optimizers) == 1
    return [s for s in found if alone or getattr(s, "optimizer", None) is optimizer]


@contextmanager
def _naming(optimizer: Optimizer, group: int) -> Iterator[None]:
    """Say which parameter group a law does not apply to.

    Raises:
        MisconfigurationException: In the place of a ValueError.
    """
    try:
        yield
    except ValueError as error:
        place = f"LearningRateScaling, parameter group {group} of {type(optimizer).__name__}"
        raise MisconfigurationException(f"{place}: {error}") from error
