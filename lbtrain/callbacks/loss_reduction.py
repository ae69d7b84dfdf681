"""Tell whether the training loss is a mean or a sum over the batch, and what follows from that in this run."""

from collections.abc import Mapping
from typing import Any

import torch

from lbtrain._lightning import (
    Callback,
    LightningModule,
    MisconfigurationException,
    Trainer,
    rank_zero_info,
    rank_zero_warn,
)
from lbtrain.callbacks._loss_problems import actions, problems_of
from lbtrain.callbacks._objective import refuse_manual_optimization
from lbtrain.callbacks._partial_window import PartialWindow, refuse_own_accumulation
from lbtrain.callbacks._reduction import NO_LOSS, reduction_on
from lbtrain.callbacks._trainer import is_optimizer_step, publish
from lbtrain.functional.reduction import Reduction

__all__ = ["LossReductionCheck", "reduction_on"]


class LossReductionCheck(Callback):
    """Tell on the first training batch what the loss makes of its samples, and point out what follows.

    Compares the loss of the batch with those of its halves and of the batch twice over, in eval mode and without a
    trace: four evaluations, once, and two more where these show neither a mean nor a sum. The verdict is in `.result`,
    in one line of the log, in the loggers' hyperparameters and in the summary as `loss/reduction`: `mean`, `sum`,
    `mean over other units` (tokens, pixels, valid labels), `batch-coupled` (contrastive losses, mined triplets) or
    `unknown` (a batch that cannot be split, a loss that is zero or not finite). A first batch for which `training_step`
    gives no loss leaves the verdict to the next one.

    Args:
        on_problem: What to do about a problem: `warn`, `error` (before the first step, with all such problems in one
            message) or `ignore`; or a mapping from some of these problems to one of the three, where the others warn:
            `sum`, the loss is one; `averaged_sum`, devices or accumulation average it; `decay_beside_sum`, with weight
            decay in its gradient; `other_units` and `batch_coupled`, in steps of several batches; `partial_window`, the
            last step of an epoch has fewer batches than it is divided by; `short_batch`, samples of the last batch
            weigh at least twice as much (with shuffling a line without a warning, unless the mapping names it);
            `unknown`.
        rtol: Largest deviation from a law that counts as obeying it, relative to the largest of the losses; None is
            1e-5 in 32 bit, or 1e-3 where TF32 rounds it, and 1e-8 in 64 bit. In reduced precision at least 0.02 is
            used.
        fix_partial_window: Rescale the gradient of the last step of an epoch, where its window has fewer batches, to
            the mean over these batches, before clipping. Put SAM and its relatives before this callback.

    Raises:
        ValueError: If on_problem has an unknown problem or action, or rtol is not in (0, 0.2).
    """

    def __init__(
        self,
        on_problem: str | Mapping[str, str] = "warn",
        rtol: float | None = None,
        fix_partial_window: bool = False,
    ) -> None:
        if rtol is not None and not 0 < rtol < 0.2:
            raise ValueError(
                f"rtol must be above 0 and below 0.2, got {rtol!r}: a mean and a sum over two halves differ by a "
                "factor of two; None takes what the precision allows"
            )
        self._actions = actions(on_problem)
        self._asked_for = frozenset(on_problem if isinstance(on_problem, Mapping) else ())
        self.on_problem, self.rtol, self.fix_partial_window = on_problem, rtol, fix_partial_window
        self.result: Reduction | None = None
        self.judged = False
        self._window = PartialWindow()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse manual optimization, which has no single training loss; forget the last fit."""
        if stage == "fit":
            refuse_manual_optimization(pl_module, "LossReductionCheck")
            if self.fix_partial_window:
                refuse_own_accumulation(trainer)
            self.result, self.judged = None, False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with an empty window."""
        self._window.batches = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Judge the first batch that this run sees."""
        self._window.batches += 1
        self.verdict(trainer, pl_module, batch)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Rescale the gradient of a partial window."""
        if self.fix_partial_window:
            self._window.rescale(trainer, optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Begin the next window after a step."""
        if is_optimizer_step(trainer):
            self._window.batches = 0

    def verdict(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> Reduction:
        """Return the verdict, found on this batch if there is none yet, and act on the problems.

        Args:
            trainer: The Trainer, while it trains.
            pl_module: Its module.
            batch: A training batch on the device.

        Returns:
            The verdict of the first batch with a loss, the same on every rank; `unknown` until then.
        """
        if not self.judged:
            self.result = trainer.strategy.broadcast(reduction_on(trainer, pl_module, batch, rtol=self.rtol))
            self.judged = self.result.reason != NO_LOSS
            if self.judged:
                self._tell(trainer, self.result, batch)
        return self.result

    def _tell(self, trainer: Trainer, found: Reduction, batch: Any) -> None:
        publish(trainer, {"loss/reduction": found.kind})
        rank_zero_info(f"loss reduction {found.kind}: {found.reason}{_in_training(found)}")
        problems = problems_of(trainer, found, batch, window_fixed=self.fix_partial_window)
        problems = trainer.strategy.broadcast(problems)
        for name, problem in problems.items():
            if self._actions[name] == "warn":
                tell = rank_zero_info if problem.mild and name not in self._asked_for else rank_zero_warn
                tell(problem.message)
        errors = [problem.message for name, problem in problems.items() if self._actions[name] == "error"]
        if errors:
            raise MisconfigurationException("\n".join(errors))


def _in_training(found: Reduction) -> str:
    """Return what batch normalization adds, which the loss in eval mode does not show."""
    if found.batch_norms == 0:
        return ""
    layers = f"{found.batch_norms} BatchNorm layer{'s' if found.batch_norms > 1 else ''}"
    return f"; batch-coupled in training by {layers} over {found.num_samples} samples per device"
