"""What LearningRateScaling warns of: checkpoints, loaders, verdicts and callbacks that do not fit what it was told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lbtrain._lightning import LightningModule, Trainer, rank_zero_warn
from lbtrain.callbacks._batch import batch_size as samples_in
from lbtrain.callbacks._scaling_plan import Plan
from lbtrain.callbacks._trainer import GlobalBatch
from lbtrain.callbacks.loss_reduction import LossReductionCheck
from lbtrain.functional.rescale import UNSCALED
from lbtrain.functional.scaling import Factors

if TYPE_CHECKING:
    from lbtrain.callbacks.lr_scaling import LearningRateScaling

# Callbacks of Lightning that hold a rate, and where.
_OWN_RATES = {"StochasticWeightAveraging": "_swa_lrs", "BackboneFinetuning": "backbone_initial_lr"}


def warn_of_checkpoint(
    trainer: Trainer, batch: GlobalBatch, base: int, before: Factors, after: Factors, restored: Plan | None
) -> None:
    """Warn if the rates of a checkpoint are those of another global batch, or were never scaled.

    Args:
        trainer: The Trainer.
        batch: The global batch in use.
        base: The one that the rates were tuned at, samples.
        before: What the first parameter group contains.
        after: What it shall contain.
        restored: The callback's state in the checkpoint, if any.
    """
    # BatchSizeFinder restores a checkpoint, too, from before the first step; a second fit has steps, but none.
    resumed = restored is not None or (trainer.ckpt_path is not None and trainer.global_step > 0)
    if not resumed or before.lr == after.lr:
        return
    scaled = before != UNSCALED or restored is not None
    contained = f"contain the factor {before.lr:g}" if scaled else "were never scaled"
    rank_zero_warn(
        f"resumed with global batch {batch} ({after.rule}, base {base}), where the checkpoint's rates {contained}: "
        f"they are multiplied by {after.lr / before.lr:g}, so that the factor is {after.lr:g}"
    )


def warn_of_facts(
    trainer: Trainer, pl_module: LightningModule, batch: Any, scaling: LearningRateScaling, per_device: int
) -> None:
    """Warn if the first batch is larger than the loader says, or its loss is not reduced as the user says.

    Args:
        trainer: The Trainer.
        pl_module: Its module.
        batch: The first batch.
        scaling: The callback.
        per_device: Samples per batch and device, as the scaling counts them.
    """
    found = samples_in(batch)
    if scaling.batch_size is None and found is not None and found > per_device:
        rank_zero_warn(
            f"the training loader says batch size {per_device}, but the first batch holds {found} samples, if its "
            "first dimension counts them: give LearningRateScaling(batch_size=...), the samples per device and batch"
        )
    check = next((c for c in trainer.callbacks if isinstance(c, LossReductionCheck)), None)
    kind = check.verdict(trainer, pl_module, batch).kind if check is not None else "unknown"
    if kind in ("mean", "sum") and scaling.reduction not in ("auto", kind):
        rank_zero_warn(
            f"LearningRateScaling(reduction={scaling.reduction!r}) was given, and LossReductionCheck finds a {kind}: "
            f"the rate follows the first; set reduction='auto' or {kind!r} if it is wrong"
        )


def warn_of_rates_elsewhere(trainer: Trainer, factor: float) -> None:
    """Warn of callbacks that bring a learning rate of their own later on, which nobody has scaled.

    Args:
        trainer: The Trainer.
        factor: By which the others are scaled.
    """
    if factor == 1.0:
        return
    for callback in trainer.callbacks:
        name = _OWN_RATES.get(type(callback).__name__)
        rate = getattr(callback, name, None) if name else None
        if rate is not None:
            rank_zero_warn(
                f"{type(callback).__name__} sets {name.lstrip('_')}={rate} itself later on, which LearningRateScaling "
                f"does not scale: the other rates are multiplied by {factor:g}, so give it one that is, too"
            )
