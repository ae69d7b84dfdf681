"""What follows from the way in which a run reduces its loss: problems by name, with numbers and the way out."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch.utils.data import DataLoader, SequentialSampler

from lbtrain._lightning import GradientAccumulationScheduler, Trainer
from lbtrain.callbacks._batch import describe
from lbtrain.callbacks._trainer import GlobalBatch, accumulation, data_parallel
from lbtrain.functional.reduction import Reduction

PROBLEMS = (
    "sum",
    "averaged_sum",
    "decay_beside_sum",
    "other_units",
    "batch_coupled",
    "partial_window",
    "short_batch",
    "unknown",
)
ACTIONS = ("warn", "error", "ignore")
# Drawing as many samples with replacement, each is drawn 0, 1, 2, ... times with a standard deviation of 1: a sample
# that weighs less than twice as much as the others deviates by less than that.
_HEAVY = 2.0
# Optimizers of torch that add weight_decay * w to the gradient.
_COUPLED_DECAY = tuple(
    getattr(torch.optim, name)
    for name in ["SGD", "Adam", "Adamax", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta", "ASGD"]
)


def actions(on_problem: str | Mapping[str, str]) -> dict[str, str]:
    """Return what to do about each problem.

    Args:
        on_problem: One of `ACTIONS` for all, or a mapping from some problems to one each; the others warn.

    Returns:
        The action for each of `PROBLEMS`.

    Raises:
        ValueError: If a problem or an action is unknown.
    """
    chosen = dict(on_problem) if isinstance(on_problem, Mapping) else dict.fromkeys(PROBLEMS, on_problem)
    for name, action in chosen.items():
        if name not in PROBLEMS:
            near = get_close_matches(str(name), PROBLEMS, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"on_problem has {name!r}, which is no problem: did you mean {near!r}? All are {list(PROBLEMS)}"
            )
        if action not in ACTIONS:
            where = f"on_problem[{name!r}]" if isinstance(on_problem, Mapping) else "on_problem"
            raise ValueError(f"{where} must be one of {list(ACTIONS)}, got {action!r}")
    return {**dict.fromkeys(PROBLEMS, "warn"), **chosen}


@dataclass(frozen=True)
class Problem:
    """What is wrong in a run."""

    message: str
    mild: bool = False
    """Whether it is told without a warning, unless an action is asked for."""


def problems_of(trainer: Trainer, reduction: Reduction, batch: Any, *, window_fixed: bool) -> dict[str, Problem]:
    """Return what is wrong with this reduction in this run.

    Args:
        trainer: The Trainer, in `on_train_batch_start`.
        reduction: The verdict.
        batch: The batch that it was reached on.
        window_fixed: Whether the gradient of a partial accumulation window is rescaled.

    Returns:
        What is wrong by name, in the order of `PROBLEMS`.
    """
    windows = _windows(trainer)
    step = GlobalBatch(reduction.num_samples, data_parallel(trainer), max(windows))
    short, mild = (None, False) if reduction.kind in ("sum", "unknown") else _short_batch(trainer, max(windows))
    found: dict[str, str | None] = {
        **_of_sum(trainer, reduction, step),
        "other_units": _other_units(reduction, step),
        "batch_coupled": _batch_coupled(reduction, step),
        "partial_window": None if window_fixed else _partial_window(trainer, windows),
        "short_batch": short,
    }
    if reduction.kind == "unknown":
        found["unknown"] = (
            f"the reduction of the training loss is unknown: {reduction.reason}. The batch is {describe(batch)}. Tell "
            "LearningRateScaling what it is, reduction='mean' or 'sum'"
        )
    meant = ". If this is meant: LossReductionCheck(on_problem={'%s': 'ignore'})"
    told = {name: text + meant % name for name, text in found.items() if text is not None}
    return {name: Problem(text, mild and name == "short_batch") for name, text in told.items()}


def _windows(trainer: Trainer) -> list[int]:
    """Return the batches per step, now and in the epochs that a GradientAccumulationScheduler changes it."""
    last = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
    later = (
        int(n)
        for callback in trainer.callbacks
        if isinstance(callback, GradientAccumulationScheduler)
        for epoch, n in sorted(callback.scheduling.items())
        if trainer.current_epoch < epoch < last
    )
    return [accumulation(trainer), *later]


def _of_sum(trainer: Trainer, reduction: Reduction, step: GlobalBatch) -> dict[str, str | None]:
    if reduction.kind != "sum":
        return {}
    averaged, others = None, step.data_parallel * step.accumulate
    if others > 1:
        averaged = (
            f"devices and accumulation average what the loss sums: the optimizer's gradient is 1/{others} of the sum "
            f"over the global batch {step}, so a larger batch per device makes longer steps, and more devices or a "
            "longer accumulation do not. Use reduction='mean', or LearningRateScaling, which counts both for a sum"
        )
    return {
        "sum": (
            f"the training loss is a sum over the batch ({reduction.reason}): it grows with the batch size, and rules "
            "that scale the learning rate with the batch assume a mean. Use reduction='mean' in training_step; with a "
            "sum, LearningRateScaling scales with the devices and the accumulation only"
        ),
        "averaged_sum": averaged,
        "decay_beside_sum": _decay(trainer, step.per_device),
    }


def _decay(trainer: Trainer, samples: int) -> str | None:
    decay, name = max(_coupled_decays(trainer), default=(0.0, ""))
    if decay == 0:
        return None
    return (
        f"{name} adds weight_decay={decay:g} to a gradient that is a sum over {samples} samples: it weighs as "
        f"{decay / samples:.3g} would beside a mean, and less the larger the batch. Use reduction='mean', or an "
        "optimizer with decoupled weight decay, such as AdamW"
    )


def _coupled_decays(trainer: Trainer) -> Iterator[tuple[float, str]]:
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups if isinstance(optimizer, _COUPLED_DECAY) else ():
            if not group.get("decoupled_weight_decay", isinstance(optimizer, torch.optim.AdamW)):
                yield float(group.get("weight_decay", 0.0)), type(optimizer).__name__


def _other_units(reduction: Reduction, step: GlobalBatch) -> str | None:
    others = step.data_parallel * step.accumulate
    if reduction.kind != "mean over other units" or others == 1:
        return None
    ratio = f"{reduction.units_ratio:.2g}"
    return (
        "the training loss is a mean over units other than samples (tokens, pixels, valid labels): one half of the "
        f"first batch holds {ratio} times the units of the other. A step averages {others} such means ({step}), each "
        "with the same weight whatever its batch holds, which is not the mean over all units: between batches like "
        f"these halves a unit of the emptier weighs {ratio} times one of the fuller. Divide the sum over units by a "
        f"constant, or by the units of all {others} batches of the step, and multiply by {others}"
    )


def _batch_coupled(reduction: Reduction, step: GlobalBatch) -> str | None:
    others = step.data_parallel * step.accumulate
    if reduction.kind != "batch-coupled" or others == 1:
        return None
    return (
        f"the loss of a sample depends on the others of its batch, and a step is made of {others} batches ({step}): "
        f"each sample sees {step.per_device - 1} others, not {step.size - 1}. Make the batch per device larger, or "
        "gather the embeddings of all devices in training_step"
    )


def _partial_window(trainer: Trainer, windows: list[int]) -> str | None:
    batches = trainer.num_training_batches
    if not math.isfinite(batches) or trainer.strategy.handles_gradient_accumulation:
        return None
    for window in windows:
        left = int(batches) % window
        if left and _reaches_end(trainer, window):
            return (
                f"an epoch has {batches} batches, {window} to a step: the last step has {left}, and its gradient is "
                f"divided by {window} all the same, so it is {left / window:.3g} of the mean over its batches. "
                "LossReductionCheck(fix_partial_window=True) rescales it; or take an accumulation that divides "
                f"{batches}"
            )
    return None


def _reaches_end(trainer: Trainer, window: int) -> bool:
    """Return whether an epoch's last batch is trained on, and not cut off by max_steps."""
    return trainer.max_steps == -1 or trainer.max_steps >= math.ceil(trainer.num_training_batches / window)


def _short_batch(trainer: Trainer, window: int) -> tuple[str | None, bool]:
    """Look for a short last batch.

    Returns:
        What to say of it, or None, and whether shuffling makes noise of it.
    """
    loaders = trainer.fit_loop._combined_loader.flattened
    loader = loaders[0] if len(loaders) == 1 and isinstance(loaders[0], DataLoader) else None
    batches: Any = getattr(loader, "batch_sampler", None)
    size, sampler = getattr(batches, "batch_size", None), getattr(batches, "sampler", None)
    if not size or not hasattr(sampler, "__len__") or getattr(batches, "drop_last", True):
        return None, False
    samples = len(sampler)
    last = samples % size
    whole_epoch = trainer.num_training_batches == math.ceil(samples / size) and _reaches_end(trainer, window)
    if not whole_epoch or last == 0 or samples < size or size < _HEAVY * last:
        return None, False
    fixed = isinstance(sampler, SequentialSampler) or getattr(sampler, "shuffle", None) is False
    consequence = (
        "The order is the same in every epoch, so it is always these samples: a bias"
        if fixed
        else "With shuffling these are others in every epoch: noise, without a bias"
    )
    message = (
        f"the last batch of an epoch has {last} samples per device, the others {size}: each of its samples weighs "
        f"{size / last:.2g} times one of theirs. {consequence}. Set drop_last=True in the loader"
    )
    return message, not fixed
