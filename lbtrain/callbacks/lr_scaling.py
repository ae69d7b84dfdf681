"""Scale the learning rate with the global batch."""

import math
from collections.abc import Callable
from typing import Any

import torch

from lbtrain._lightning import (
    Callback,
    LearningRateFinder,
    LightningModule,
    MisconfigurationException,
    Trainer,
    rank_zero_info,
    rank_zero_warn,
)
from lbtrain.callbacks._trainer import GlobalBatch, global_batch, publish
from lbtrain.callbacks.loss_reduction import LossReductionCheck
from lbtrain.functional.scaling import Rule, exponent, rescale_rates, scaling_factor


class LearningRateScaling(Callback):
    """Scale every learning rate from the batch size it was tuned for to the one in use, `lr' = lr * k^p`.

    With a loss that averages over the batch, `k = global batch / base_batch_size`, where the global batch is per-device
    batch x data-parallel size x accumulation. With a loss that sums (told by LossReductionCheck, where that callback is
    present) the gradient grows with the per-device batch by itself, and `k = data-parallel size x accumulation` keeps
    the update per sample. The rate, the schedulers' base rates, floors and ceilings are set in `on_train_start`, as if
    both had been built with the scaled rate. The factor is kept in the checkpoint: a resumed run is not scaled twice,
    and one that resumes with another global batch is rescaled by the ratio, with a warning.

    Args:
        base_batch_size: Global batch size that the rate in the optimizer was tuned for, in samples.
        rule: `linear` (p = 1), `sqrt` (p = 0.5), `none` (p = 0) or the exponent p itself.
        batch_size: Samples per batch and device; None reads it off the training loader.
        warmup_epochs: Epochs over which the rate grows from the unscaled to the scaled one, linearly per optimizer step
            and on top of any scheduler.

    Raises:
        ValueError: If a batch size is below 1, the rule is unknown or warmup_epochs is negative.

    References:
        Goyal et al. (2017), arXiv 1706.02677, sections 2.1 and 2.2 (linear rule, gradual warmup).
    """

    def __init__(
        self, base_batch_size: int, rule: Rule = "linear", batch_size: int | None = None, warmup_epochs: float = 0.0
    ) -> None:
        for name, value in (("base_batch_size", base_batch_size), ("batch_size", batch_size)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"{name} must be a whole number of samples, at least 1, got {value!r}")
        if not (math.isfinite(warmup_epochs) and warmup_epochs >= 0):
            raise ValueError(f"warmup_epochs must be at least 0 and finite, got {warmup_epochs!r}")
        exponent(rule)
        self.base_batch_size = base_batch_size
        self.rule = rule
        self.batch_size = batch_size
        self.warmup_epochs = warmup_epochs
        self._factor: float | None = None
        self._resumed = False
        self._reduction = "mean"
        self._hooks: list[Any] = []
        self._announced = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a second callback that also sets the rate; forget the last fit."""
        if stage == "fit":
            _refuse_others(trainer)
            self._factor, self._resumed, self._reduction, self._announced = None, False, "mean", False

    def state_dict(self) -> dict[str, Any]:
        """Return what the optimizer's rates have been multiplied by, in plain Python."""
        return {"factor": self._factor, "reduction": self._reduction}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the factor that the checkpoint's rates contain already."""
        self._factor, self._reduction = state_dict["factor"], state_dict["reduction"]
        self._resumed = self._factor is not None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scale the rates; wait with the line when the first batch can still change the law."""
        batch = global_batch(trainer, self.batch_size)
        self._scale(trainer, batch)
        self._start_warmup(trainer)
        if _check(trainer) is None:
            self._announce(trainer, batch)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follow an accumulation that changes from epoch to epoch."""
        self._scale(trainer, global_batch(trainer, self.batch_size))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Take the law that the loss reduction of the first batch asks for."""
        if not self._announced:
            check = _check(trainer)
            if check is not None:
                self._reduction = check.verdict(trainer, pl_module, batch).kind
            used = global_batch(trainer, self.batch_size)
            self._scale(trainer, used)
            self._announce(trainer, used)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the warmup off the optimizers."""
        self._stop_warmup()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the warmup off the optimizers."""
        self._stop_warmup()

    def _target(self, batch: GlobalBatch) -> float:
        if self._reduction == "sum":
            return scaling_factor(batch.data_parallel * batch.accumulate, self.rule)
        return scaling_factor(batch.size / self.base_batch_size, self.rule)

    def _scale(self, trainer: Trainer, batch: GlobalBatch) -> None:
        target, before = self._target(batch), self._factor
        if self._resumed and before != target:
            rank_zero_warn(
                f"resumed with global batch {batch} ({self.rule}, base {self.base_batch_size}), where the "
                f"checkpoint's rates contain the factor {before:g}: they are multiplied by {target / before:g}, so "
                f"that the factor is {target:g}"
            )
        self._resumed = False
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        rescale_rates(trainer.optimizers, schedulers, target / (before or 1.0))
        self._factor = target

    def _announce(self, trainer: Trainer, batch: GlobalBatch) -> None:
        self._announced = True
        factor = self._factor or 1.0
        group = trainer.optimizers[0].param_groups[0]
        # OneCycleLR and CyclicLR keep the rate that was tuned as `max_lr`; the others start from `initial_lr`.
        scaled = float(group.get("max_lr", group.get("initial_lr", group["lr"])))
        numbers = {"lr/base": scaled / factor, "lr/scaled": scaled, "lr/factor": factor, "batch/global": batch.size}
        parts = {"per_device": batch.per_device, "accumulate": batch.accumulate, "data_parallel": batch.data_parallel}
        publish(trainer, {**numbers, **{f"batch/{name}": value for name, value in parts.items()}})
        law = f"{self.rule}, base {self.base_batch_size}"
        if self._reduction == "sum":
            k = batch.data_parallel * batch.accumulate
            law += f"; the loss is a sum over the batch, so k = data-parallel x accumulate = {k}"
        elif self._reduction != "mean":
            law += f"; loss reduction {self._reduction}, taken as a mean over the batch"
        rank_zero_info(f"global batch {batch}, lr {scaled / factor:.6g} -> {scaled:.6g} ({law})")

    def _start_warmup(self, trainer: Trainer) -> None:
        self._stop_warmup()
        if self.warmup_epochs == 0:
            return
        if not math.isfinite(trainer.num_training_batches):
            raise MisconfigurationException(
                f"warmup_epochs={self.warmup_epochs:g} needs a training loader with a length, and this one has "
                "none: set warmup_epochs=0 and warm up with a scheduler, or give the data set a length"
            )
        self._warmup_steps = self.warmup_epochs * math.ceil(
            trainer.num_training_batches / global_batch(trainer, self.batch_size).accumulate
        )
        for optimizer in trainer.optimizers:
            self._hooks.append(_Warmup(optimizer, lambda: self.warmup_share(trainer)))

    def warmup_share(self, trainer: Trainer) -> float:
        """Return by what the warmup multiplies the rates in the optimizer's next step.

        Args:
            trainer: The Trainer, while it trains.

        Returns:
            The share, up to 1; 1 without a warmup.
        """
        return self._warmup_share(trainer.global_step / self._warmup_steps) if self._hooks else 1.0

    def _warmup_share(self, progress: float) -> float:
        """Return what the scaled rate is multiplied by: from 1 / factor at the first step to 1."""
        start = 1.0 / (self._factor or 1.0)
        return start + (1.0 - start) * min(progress, 1.0)

    def _stop_warmup(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


class _Warmup:
    """Lower an optimizer's rates during each step only, so schedulers and checkpoints see them unchanged.

    Pre- and post-step hooks come in pairs also where a gradient scaler skips a step, which a pair of Trainer hooks does
    not.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, share: Callable[[], float]) -> None:
        self._optimizer, self._share = optimizer, share
        self._full: list[Any] | None = None
        self._handles = [
            optimizer.register_step_pre_hook(lambda *_: self._lower()),
            optimizer.register_step_post_hook(lambda *_: self._restore()),
        ]

    def _lower(self) -> None:
        share = self._share()
        if share != 1.0:
            self._full = [group["lr"] for group in self._optimizer.param_groups]
            for group in self._optimizer.param_groups:
                group["lr"] = group["lr"] * share

    def _restore(self) -> None:
        if self._full is not None:
            for group, rate in zip(self._optimizer.param_groups, self._full, strict=True):
                group["lr"] = rate
            self._full = None

    def remove(self) -> None:
        """Put the rates back, also in the middle of a step, and let go of the optimizer."""
        self._restore()
        for handle in self._handles:
            handle.remove()


def _check(trainer: Trainer) -> LossReductionCheck | None:
    return next((c for c in trainer.callbacks if isinstance(c, LossReductionCheck)), None)


def _refuse_others(trainer: Trainer) -> None:
    if any(isinstance(c, LearningRateFinder) for c in trainer.callbacks):
        raise MisconfigurationException(
            "LearningRateFinder finds a rate for the batch in use, so scaling it again would count the batch "
            "twice: use either LearningRateFinder or LearningRateScaling"
        )
    if sum(isinstance(c, LearningRateScaling) for c in trainer.callbacks) > 1:
        raise MisconfigurationException("two LearningRateScaling callbacks would scale the rate twice: keep one")
