"""What LearningRateScaling refuses: arguments out of range, and trainings in which it would count something twice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lbtrain._lightning import LearningRateFinder, LightningModule, MisconfigurationException, Trainer
from lbtrain.functional.scaling import exponent

if TYPE_CHECKING:
    from lbtrain.callbacks.lr_scaling import LearningRateScaling

_CHOICES = {"reduction": ("auto", "mean", "sum"), "weight_decay": ("keep", "scale")}
_SWITCHES = ("adam_moments", "scale_floor", "stretch_schedule")


def check_arguments(scaling: LearningRateScaling) -> None:
    """Refuse arguments out of range.

    Args:
        scaling: The callback, with its arguments as attributes.

    Raises:
        ValueError: If one is out of range; the message names it, the rule and the value.
    """
    for name, unit in (("base_batch_size", "samples"), ("batch_size", "samples"), ("base_batches", "batches")):
        value = getattr(scaling, name)
        if not (value is None and name == "batch_size") and not _is_count(value, 1):
            raise ValueError(f"{name} must be a whole number of {unit}, at least 1, got {value!r}")
    _check_warmup(scaling.warmup_epochs, scaling.warmup_steps)
    for name, choices in _CHOICES.items():
        if getattr(scaling, name) not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(scaling, name)!r}")
    for name in _SWITCHES:
        if not isinstance(getattr(scaling, name), bool):
            raise ValueError(f"{name} must be True or False, got {getattr(scaling, name)!r}")
    _check_rules(rules_of(scaling.rule))


def rules_of(rule: Any) -> list[Any]:
    """Return the rules of an argument that is one rule, or one for each optimizer.

    Args:
        rule: The argument.

    Returns:
        The rules.
    """
    return list(rule) if isinstance(rule, Sequence) and not isinstance(rule, str) else [rule]


def refuse_at_setup(scaling: LearningRateScaling, trainer: Trainer, pl_module: LightningModule) -> None:
    """Refuse what would scale twice, and manual optimization without the facts that only its author knows.

    Args:
        scaling: The callback.
        trainer: The Trainer, in `setup`.
        pl_module: Its module.

    Raises:
        MisconfigurationException: If it must be refused.
    """
    if any(isinstance(c, LearningRateFinder) for c in trainer.callbacks):
        raise MisconfigurationException(
            "LearningRateFinder finds a rate for the batch in use, so scaling it again would count the batch "
            "twice: use either LearningRateFinder or LearningRateScaling"
        )
    if len(_scalings(trainer)) > 1:
        raise MisconfigurationException("two LearningRateScaling callbacks would scale the rate twice: keep one")
    if not pl_module.automatic_optimization and (scaling.batch_size is None or scaling.reduction == "auto"):
        raise MisconfigurationException(
            f"{type(pl_module).__name__} has manual optimization, so it alone knows how many samples make a step and "
            "how its loss treats them: give LearningRateScaling(batch_size=<samples per device and optimizer step>, "
            "reduction='mean' or 'sum')"
        )


def refuse_rules(scaling: LearningRateScaling, trainer: Trainer) -> None:
    """Refuse a list of rules that does not match the optimizers, and moments that no optimizer has.

    Args:
        scaling: The callback.
        trainer: The Trainer, when training starts.

    Raises:
        MisconfigurationException: If their numbers differ, no group has betas, or there is no optimizer.
    """
    rules, names = rules_of(scaling.rule), [type(optimizer).__name__ for optimizer in trainer.optimizers]
    # The Trainer puts an optimizer without parameters in the place of None.
    if not any(optimizer.param_groups for optimizer in trainer.optimizers):
        raise MisconfigurationException(
            "LearningRateScaling scales the rates of optimizers, and configure_optimizers gives none: return one, or "
            "drop LearningRateScaling"
        )
    if rules != [scaling.rule] and len(rules) != len(names):
        raise MisconfigurationException(
            f"LearningRateScaling: rule lists {len(rules)} rules ({', '.join(map(str, rules))}) for {len(names)} "
            f"optimizers ({', '.join(names)}): give one for each, in the order of configure_optimizers, or a single one"
        )
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    if scaling.adam_moments and not any("betas" in group or "alpha" in group for group in groups):
        raise MisconfigurationException(
            f"LearningRateScaling(adam_moments=True) scales betas and eps, which {', '.join(names)} does not have: use "
            "Adam or RMSprop, or adam_moments=False"
        )


def _check_warmup(epochs: Any, steps: Any) -> None:
    """Refuse what is no length of a warmup.

    Raises:
        ValueError: If one is out of range, or both are given.
    """
    if isinstance(epochs, bool) or not isinstance(epochs, int | float) or not (math.isfinite(epochs) and epochs >= 0):
        raise ValueError(f"warmup_epochs must be at least 0 and finite, got {epochs!r}")
    if not _is_count(steps, 0):
        raise ValueError(f"warmup_steps must be a whole number of optimizer steps, at least 0, got {steps!r}")
    if epochs and steps:
        raise ValueError(f"give warmup_epochs or warmup_steps, not both; got {epochs!r} and {steps!r}")


def _check_rules(rules: Sequence[Any]) -> None:
    """Refuse what is no rule.

    Raises:
        ValueError: If there is none, or one is unknown.
    """
    if not rules:
        raise ValueError("rule must be a rule, or a list with one for each optimizer, got an empty list")
    for rule in rules:
        if rule != "auto":
            exponent(rule)


def _scalings(trainer: Trainer) -> list[Any]:
    from lbtrain.callbacks.lr_scaling import LearningRateScaling

    return [c for c in trainer.callbacks if isinstance(c, LearningRateScaling)]


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
