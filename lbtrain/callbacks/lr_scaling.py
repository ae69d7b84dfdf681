"""Scale the learning rate with the global batch."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lbtrain._lightning import Callback, LightningModule, MisconfigurationException, Trainer
from lbtrain.callbacks._reduction import NO_LOSS, reduction_on
from lbtrain.callbacks._scaling_checks import check_arguments, refuse_at_setup, refuse_rules
from lbtrain.callbacks._scaling_line import Bases, announce, unscaled_rates
from lbtrain.callbacks._scaling_plan import Plan, carry_out, contained, planned
from lbtrain.callbacks._scaling_warnings import warn_of_checkpoint, warn_of_facts, warn_of_rates_elsewhere
from lbtrain.callbacks._step_schedules import Stretched, follow_batch
from lbtrain.callbacks._trainer import GlobalBatch, global_batch
from lbtrain.callbacks._warmup import Warmup, share, warmup_length
from lbtrain.callbacks.loss_reduction import LossReductionCheck
from lbtrain.functional.rescale import UNSCALED
from lbtrain.functional.scaling import Factors, Law, Rule


class LearningRateScaling(Callback):
    """Scale every learning rate from the batch size it was tuned for to the one in use, `lr' = lr * k^p`.

    With a loss that averages over the batch, `k = global batch / base_batch_size`, where the global batch is per-device
    batch x data-parallel size x accumulation. With a loss that sums, the gradient grows with the per-device batch by
    itself, and `k = data-parallel size x accumulation / base_batches` keeps the update per sample. The rate, the
    schedulers' base rates, floors and ceilings are set in `on_train_start`, as if both had been built with the scaled
    rate. What was done is kept in the optimizer's state and in the checkpoint: a resumed run is not scaled twice, and
    one that resumes with another global batch is rescaled by the ratio, with a warning.

    No momentum correction is needed: torch's SGD multiplies the rate into the step, `v = mu v + g; w -= lr v`, and not
    into the momentum, so old gradients are never left with an old rate.

    Args:
        base_batch_size: Global batch size that the rate in the optimizer was tuned for, in samples.
        rule: `auto` (linear for SGD and LARS; square root for Adam, AdamW, NAdam, RAdam, Adamax, Adafactor, RMSprop and
            LAMB), `linear` (p = 1), `sqrt` (p = 0.5), `none` (p = 0) or the exponent p itself; a list gives each
            optimizer its own, and `scaling_rule` in a parameter group that group.
        batch_size: Samples per batch and device; None reads it off the training loader.
        warmup_epochs: Epochs over which the rate grows from the unscaled to the scaled one, linearly per optimizer step
            and on top of any scheduler.
        warmup_steps: The same in optimizer steps.
        reduction: `mean` or `sum`; `auto` takes LossReductionCheck's verdict on the first batch, or finds it in the
            same way if that callback is absent.
        base_batches: Batches per optimizer step that the rate was tuned for, over devices and accumulation. It counts
            only for a sum.
        adam_moments: Scale betas and eps with the square-root law, too.
        weight_decay: `keep`, or `scale` by k / (lr'/lr), with which as much decays per epoch as at the base batch.
        scale_floor: Whether the schedulers' lowest rates (`eta_min`, `min_lr`) are scaled, too.
        stretch_schedule: Whether schedules counted in optimizer steps are shortened as the number of steps is; if not,
            they get a warning.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Goyal et al. (2017), arXiv 1706.02677, sections 2.1 to 2.3 (linear rule, gradual warmup, momentum correction);
        Malladi et al. (2022), arXiv 2205.10287, Definition 5.2 (square root, betas and eps).
    """

    def __init__(
        self,
        base_batch_size: int,
        rule: Rule | Sequence[Rule] = "auto",
        batch_size: int | None = None,
        warmup_epochs: float = 0.0,
        *,
        warmup_steps: int = 0,
        reduction: str = "auto",
        base_batches: int = 1,
        adam_moments: bool = False,
        weight_decay: str = "keep",
        scale_floor: bool = True,
        stretch_schedule: bool = False,
    ) -> None:
        self.base_batch_size = base_batch_size
        self.rule = rule
        self.batch_size = batch_size
        self.warmup_epochs = warmup_epochs
        self.warmup_steps = warmup_steps
        self.reduction = reduction
        self.base_batches = base_batches
        self.adam_moments = adam_moments
        self.weight_decay = weight_decay
        self.scale_floor = scale_floor
        self.stretch_schedule = stretch_schedule
        check_arguments(self)
        self._forget()

    def _forget(self) -> None:
        self._reduction = "mean" if self.reduction == "auto" else self.reduction
        self._restored: Plan | None = None
        self._bases: Bases = []  # rates at the run's start, unscaled
        self._stretched: Stretched | None = None
        self._applied: Plan | None = None
        self._begun = False
        self._warmup_length = 0.0
        self._warmups: list[Warmup] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a second callback that also sets the rate; forget the last fit."""
        if stage == "fit":
            refuse_at_setup(self, trainer, pl_module)
            self._forget()

    def state_dict(self) -> dict[str, Any]:
        """Return what the optimizers' hyperparameters have been multiplied by, and the first rates, in plain Python."""
        groups = None if self._applied is None else [[asdict(f) for f in groups] for groups in self._applied]
        return {"groups": groups, "reduction": self._reduction, "stretched": self._stretched, "bases": self._bases}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what the checkpoint's rates contain already; nothing, if it was saved before training."""
        if state_dict["groups"] is not None:
            self._restored = [[Factors(**f) for f in groups] for groups in state_dict["groups"]]
            self._stretched = state_dict["stretched"]
            self._bases = state_dict.get("bases", [])  # of a checkpoint that lacks them: as the rates are now
            if self.reduction == "auto":
                self._reduction = state_dict["reduction"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scale the rates; wait with the line while the first batch can still change the law."""
        refuse_rules(self, trainer)
        batch = global_batch(trainer, self.batch_size)
        self._stop_warmup()
        self._warmup_length = warmup_length(trainer, self.warmup_epochs, self.warmup_steps)
        self._scale(trainer, batch)
        self._stretched = follow_batch(
            trainer, batch, self.base_batch_size, self._stretched, stretch_them=self.stretch_schedule
        )
        if self._warmup_length:
            self._warmups = [Warmup(o, lambda: self._shares(trainer)) for o in trainer.optimizers]
        if self.reduction != "auto":
            announce(trainer, batch, self, self._applied or [], self._reduction, self._bases)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follow an accumulation that changes from epoch to epoch."""
        batch, before = global_batch(trainer, self.batch_size), self._applied
        self._scale(trainer, batch)
        if self._begun and before and self._applied and before[0][0] != self._applied[0][0]:
            announce(trainer, batch, self, self._applied, self._reduction, self._bases)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Take the law that the loss reduction of the first batch asks for."""
        if self._begun:
            return
        used = global_batch(trainer, self.batch_size)
        if self.reduction == "auto":
            found = self._found_reduction(trainer, pl_module, batch)
            if found is None:
                return  # a batch without a loss
            self._reduction = found
            self._scale(trainer, used)
            announce(trainer, used, self, self._applied or [], self._reduction, self._bases)
        warn_of_facts(trainer, pl_module, batch, self, used.per_device)
        warn_of_rates_elsewhere(trainer, self._applied[0][0].lr if self._applied else 1.0)
        self._begun = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the warmup off the optimizers."""
        self._stop_warmup()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the warmup off the optimizers."""
        self._stop_warmup()

    def _scale(self, trainer: Trainer, batch: GlobalBatch) -> None:
        plan = planned(trainer, [self._law(batch, i) for i in range(len(trainer.optimizers))])
        if plan == self._applied:
            return
        running = self._applied is not None
        before = contained(trainer, self._applied if running else self._restored, running=running)
        if not running:
            warn_of_checkpoint(trainer, batch, self.base_batch_size, before[0][0], plan[0][0], self._restored)
            self._bases = self._bases or unscaled_rates(trainer, before)
        carry_out(trainer, before, plan, scale_floor=self.scale_floor)
        self._applied = plan

    def _law(self, batch: GlobalBatch, optimizer: int) -> Law:
        each = isinstance(self.rule, Sequence) and not isinstance(self.rule, str)
        return Law(
            samples=batch.size / self.base_batch_size,
            batches=batch.data_parallel * batch.accumulate / self.base_batches,
            summed=self._reduction == "sum",
            rule=self.rule[optimizer] if each else self.rule,
            adam_moments=self.adam_moments,
            scale_decay=self.weight_decay == "scale",
        )

    def _found_reduction(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> str | None:
        """Return the verdict, None if this batch has no loss to judge by.

        Raises:
            MisconfigurationException: If the loss cannot be evaluated on a batch.
        """
        check = next((c for c in trainer.callbacks if isinstance(c, LossReductionCheck)), None)
        if check is not None:
            verdict = check.verdict(trainer, pl_module, batch)
            return verdict.kind if check.judged else None
        try:
            verdict = trainer.strategy.broadcast(reduction_on(trainer, pl_module, batch))
        except MisconfigurationException as error:
            way_out = "or tell LearningRateScaling how the loss treats a batch: reduction='mean' or 'sum'"
            raise MisconfigurationException(f"{error}; {way_out}") from error
        return verdict.kind if verdict.reason != NO_LOSS else None

    def _shares(self, trainer: Trainer) -> list[float]:
        own = (self._applied or [[UNSCALED]])[0]
        # A group that was added in this epoch is not in the plan yet; its rate was derived from the others'.
        factors = [own[min(i, len(own) - 1)] for i in range(len(trainer.optimizers[0].param_groups))]
        return [share(trainer.global_step / self._warmup_length, f.lr) for f in factors]

    def warmup_share(self, trainer: Trainer, group: int = 0) -> float:
        """Return by what the warmup multiplies the rate of a parameter group in the optimizer's next step.

        Args:
            trainer: The Trainer, while it trains.
            group: Number of the parameter group.

        Returns:
            The share, up to 1; 1 without a warmup.
        """
        return self._shares(trainer)[group] if self._warmups else 1.0

    def _stop_warmup(self) -> None:
        for warmup in self._warmups:
            warmup.remove()
        self._warmups = []
