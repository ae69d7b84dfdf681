"""What LearningRateScaling says it did: one line, and the numbers behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

from lbtrain._lightning import Trainer, rank_zero_info
from lbtrain.callbacks._loaders import said_batch_size
from lbtrain.callbacks._scaling_plan import Plan
from lbtrain.callbacks._trainer import GlobalBatch, publish, samples_per_epoch, steps_per_epoch
from lbtrain.functional.optimizers import decay_per_epoch, decay_per_step, terminal_step
from lbtrain.functional.scaling import EXPONENTS, Factors, exponent, scaled_moments

if TYPE_CHECKING:
    from lbtrain.callbacks.lr_scaling import LearningRateScaling

# From this ratio on the square-root law's betas differ so much from the usual ones (0.2 in the place of 0.9) that the
# line says what they would be.
_FAR = 8.0
# More parameter groups than this are not listed one by one.
_LISTED = 4


# One unscaled rate per optimizer and parameter group.
Bases = list[list[float]]


def unscaled_rates(trainer: Trainer, plan: Plan) -> Bases:
    """Read the rates that were tuned, before any schedule and without the scaling.

    Args:
        trainer: The Trainer, at the start of the run.
        plan: What the hyperparameters have been multiplied by so far.

    Returns:
        Learning rates, as floats that a checkpoint takes.
    """
    return [
        [float(_at_full_rate(group)["lr"]) / own.lr for group, own in zip(optimizer.param_groups, factors, strict=True)]
        for optimizer, factors in zip(trainer.optimizers, plan, strict=True)
    ]


def announce(
    trainer: Trainer, batch: GlobalBatch, scaling: LearningRateScaling, plan: Plan, reduction: str, bases: Bases
) -> None:
    """Print the line, and publish the numbers.

    Args:
        trainer: The Trainer.
        batch: The global batch in use.
        scaling: The callback.
        plan: What the hyperparameters have been multiplied by.
        reduction: How the loss treats the samples of a batch.
        bases: As `unscaled_rates` gave them when the run began: a resumed one may come with rates that a
            ReduceLROnPlateau has lowered since.
    """
    groups = _full_groups(trainer, plan, bases)
    factors, group = plan[0][0], groups[0][0]
    scaled = float(group["lr"])
    numbers = {"lr/base": scaled / factors.lr, "lr/scaled": scaled, "lr/factor": factors.lr, "batch/global": batch.size}
    parts = {"per_device": batch.per_device, "accumulate": batch.accumulate, "data_parallel": batch.data_parallel}
    numbers |= {f"batch/{name}": value for name, value in parts.items()}
    steps, decaying = steps_per_epoch(trainer), _decaying(trainer, plan, groups)
    if group.get("momentum"):
        numbers["lr/terminal"] = terminal_step(group)
    if decaying and steps and (share := decay_per_epoch(decaying[0][1], decaying[0][2], steps)) is not None:
        numbers["decay/per_epoch"] = share
    publish(trainer, numbers)
    law = f"{factors.rule}, base {scaling.base_batch_size}{_of_reduction(reduction, batch, scaling, factors)}"
    clauses = [f"global batch {batch}, lr {scaled / factors.lr:.6g} -> {scaled:.6g} ({law})"]
    clauses += [*_of_batch(trainer, scaling), *_others(trainer, plan, groups)]
    if group.get("momentum"):
        clauses.append(f"terminal step lr/(1-momentum) {terminal_step(group):.6g}")
    clauses += _of_moments(group, factors, batch.size / scaling.base_batch_size)
    at_base = max(1.0, math.ceil(samples_per_epoch(trainer, batch) / scaling.base_batch_size)) if steps else None
    clauses += [*_of_decays(decaying, steps, at_base), *_of_warmup(scaling, steps)]
    rank_zero_info("; ".join(clauses))


def _of_batch(trainer: Trainer, scaling: LearningRateScaling) -> list[str]:
    said = said_batch_size(trainer) if scaling.batch_size is not None else None
    if said in (None, scaling.batch_size):
        return []
    return [f"batch_size={scaling.batch_size} as given, where the training loader says {said}"]


def _of_warmup(scaling: LearningRateScaling, per_epoch: int | None) -> list[str]:
    steps = scaling.warmup_steps or (scaling.warmup_epochs * per_epoch if per_epoch else 0)
    return [f"warmup over {steps:g} steps"] if steps else []


def _at_full_rate(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a parameter group with the rate that was tuned, wherever the schedule stands.

    OneCycleLR and CyclicLR keep it as `max_lr`; the others start from `initial_lr`.
    """
    return {**group, "lr": group.get("max_lr", group.get("initial_lr", group["lr"]))}


def _full_groups(trainer: Trainer, plan: Plan, bases: Bases) -> list[list[dict[str, Any]]]:
    """Return copies of all parameter groups with the rates of the run's start, scaled as they are now."""
    found = []
    for i, optimizer in enumerate(trainer.optimizers):
        known = bases[i] if i < len(bases) else []
        groups = [_at_full_rate(group) for group in optimizer.param_groups]
        # A group that came later has its own.
        first = [{**g, "lr": b * f.lr} for g, b, f in zip(groups, known, plan[i], strict=False)]
        found.append([*first, *groups[len(known) :]])
    return found


def _of_reduction(reduction: str, batch: GlobalBatch, scaling: LearningRateScaling, factors: Factors) -> str:
    if reduction == "mean":
        return ""
    if reduction != "sum":
        return f"; loss reduction: {reduction}, taken as a mean over the batch"
    batches = batch.data_parallel * batch.accumulate
    if factors.k != batches / scaling.base_batches:
        return "; the loss is a sum over the batch, to which this optimizer is blind: it divides by the gradient's size"
    over = f" / {scaling.base_batches}" if scaling.base_batches > 1 else ""
    return f"; the loss is a sum over the batch, so k = data-parallel x accumulate{over} = {factors.k:g}"


def _others(trainer: Trainer, plan: Plan, groups: list[list[dict[str, Any]]]) -> list[str]:
    """Return a clause for each parameter group that is scaled otherwise than the first."""
    clauses, first = [], plan[0][0]
    for i, optimizer in enumerate(trainer.optimizers):
        for j, (group, factors) in enumerate(zip(groups[i], plan[i], strict=True)):
            if (factors.rule, factors.lr) != (first.rule, first.lr):
                name = f"group {j}" if len(trainer.optimizers) == 1 else f"{type(optimizer).__name__} {i}, group {j}"
                rate = float(group["lr"])
                clauses.append(f"{name}: lr {rate / factors.lr:.6g} -> {rate:.6g} ({factors.rule})")
    more = [f"and {len(clauses) - _LISTED} more groups"] if len(clauses) > _LISTED else []
    return clauses[:_LISTED] + more


def _of_moments(group: Mapping[str, Any], factors: Factors, k: float) -> list[str]:
    if factors.moments != 1.0:
        return [f"{_moments(group)}, from {_moments(scaled_moments(group, 1.0 / factors.moments))}"]
    if k < _FAR or "betas" not in group or exponent(factors.rule) != EXPONENTS["sqrt"]:
        return []
    try:
        return [f"with adam_moments=True {_moments(scaled_moments(group, k))}"]
    except ValueError:
        end = 1.0 / (1.0 - min(float(beta) for beta in group["betas"] if float(beta) > 0.0))
        return [f"the law's own range ends at k = {end:.4g}, and k is {k:g}"]


def _moments(group: Mapping[str, Any]) -> str:
    betas = [float(beta) for beta in group.get("betas", [group.get("alpha", 0.0)])]
    eps = f", eps {float(group['eps']):.3g}" if isinstance(group.get("eps"), float) else ""
    return f"{'betas' if len(betas) > 1 else 'alpha'} {', '.join(f'{beta:.6g}' for beta in betas)}{eps}"


def _decaying(
    trainer: Trainer, plan: Plan, groups: list[list[dict[str, Any]]]
) -> list[tuple[str, Optimizer, dict[str, Any], Factors]]:
    """Return the parameter groups with weight decay, by name, at their full rate."""
    several = sum(len(optimizer.param_groups) for optimizer in trainer.optimizers) > 1
    found = []
    for i, optimizer in enumerate(trainer.optimizers):
        for j, (group, factors) in enumerate(zip(groups[i], plan[i], strict=True)):
            if float(group.get("weight_decay", 0.0)):
                name = f"group {j}" if len(trainer.optimizers) == 1 else f"{type(optimizer).__name__} {i}, group {j}"
                found.append((f"{name}: " if several else "", optimizer, group, factors))
    return found


def _of_decays(
    decaying: list[tuple[str, Optimizer, dict[str, Any], Factors]], steps: int | None, at_base: float | None
) -> list[str]:
    """Return a clause for each parameter group with weight decay."""
    clauses = []
    for name, optimizer, group, factors in decaying[:_LISTED]:
        decay = float(group["weight_decay"])
        before = {**group, "lr": group["lr"] / factors.lr, "weight_decay": decay / factors.decay}
        said = f"{name}weight decay " + ("" if factors.decay == 1.0 else f"{before['weight_decay']:.6g} -> ")
        share = decay_per_step(optimizer, group)
        if share is None:
            clauses.append(f"{said}{decay:.6g}, within the gradient that {type(optimizer).__name__} normalizes")
        elif steps is None or at_base is None:
            clauses.append(f"{said}{decay:.6g}, {share:.3g} of each weight per step")
        else:
            now, then = decay_per_epoch(optimizer, group, steps), decay_per_epoch(optimizer, before, at_base)
            clauses.append(f"{said}{decay:.6g}, {now:.3g} of each weight per epoch ({then:.3g} at the base batch)")
    more = len(decaying) - _LISTED
    return clauses + ([f"and {more} more groups with weight decay"] if more > 0 else [])
