"""Tell whether the training loss is a mean or a sum over the batch."""

from collections.abc import Sequence
from typing import Any

import torch

from lbtrain._lightning import Callback, LightningModule, MisconfigurationException, Trainer, rank_zero_warn
from lbtrain.callbacks._batch import batch_size, select
from lbtrain.callbacks._objective import TrainingLoss, refuse_manual_optimization
from lbtrain.callbacks._traceless import random_streams, traceless
from lbtrain.callbacks._trainer import publish
from lbtrain.functional.reduction import Reduction, find_reduction

_ADVICE = (
    "the training loss is a sum over the batch (reduction='sum'): it grows with the batch size, and rules that "
    "scale the learning rate with the batch assume a mean. Use reduction='mean' in training_step, or "
    "LossReductionCheck(on_sum='ignore') if the sum is meant; LearningRateScaling then scales with the devices and "
    "the accumulation only"
)
_ON_SUM = ("warn", "error", "ignore")


class LossReductionCheck(Callback):
    """Tell on the first training batch whether the loss averages or sums over its samples, and say so if it sums.

    Compares the loss of the batch with those of its halves and of the batch twice over, in eval mode and without a
    trace: four evaluations, once. The verdict is in `.result.kind`, in the loggers' hyperparameters and in the summary
        as `loss/reduction`:
    `mean`, `sum`, `other` (neither law holds: for example a mean over tokens, or a contrastive loss) or `unknown` (a
    batch of one, or a loss that is zero or not finite).

    Args:
        on_sum: What to do about a sum: `warn`, `error` (before the first step) or `ignore`.
        rtol: Largest relative deviation from a law that counts as obeying it; in reduced precision at least 0.02 is
            used.

    Raises:
        ValueError: If on_sum is none of the three, or rtol is not in (0, 0.2).
    """

    def __init__(self, on_sum: str = "warn", rtol: float = 1e-3) -> None:
        if on_sum not in _ON_SUM:
            raise ValueError(f"on_sum must be one of {list(_ON_SUM)}, got {on_sum!r}")
        if not 0 < rtol < 0.2:
            raise ValueError(f"rtol must be above 0 and below 0.2, got {rtol!r}")
        self.on_sum = on_sum
        self.rtol = rtol
        self.result: Reduction | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse manual optimization, which has no single training loss."""
        if stage == "fit":
            refuse_manual_optimization(pl_module, "LossReductionCheck")
            self.result = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Judge the first batch that this run sees."""
        self.verdict(trainer, pl_module, batch)

    def verdict(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> Reduction:
        """Return the verdict, found on this batch if there is none yet.

        Args:
            trainer: The Trainer, while it trains.
            pl_module: Its module.
            batch: A training batch on the device.

        Returns:
            The verdict of the first batch; the same on every rank.

        Raises:
            MisconfigurationException: If the loss is a sum and `on_sum` is `error`.
        """
        if self.result is None:
            self.result = trainer.strategy.broadcast(reduction_on(trainer, pl_module, batch, rtol=self.rtol))
            publish(trainer, {"loss/reduction": self.result.kind})
            if self.result.kind == "sum" and self.on_sum == "error":
                raise MisconfigurationException(_ADVICE)
            if self.result.kind == "sum" and self.on_sum == "warn":
                rank_zero_warn(_ADVICE)
        return self.result


def reduction_on(trainer: Trainer, pl_module: LightningModule, batch: Any, *, rtol: float = 1e-3) -> Reduction:
    """Tell the reduction of the training loss from one batch, without a trace.

    Args:
        trainer: The Trainer.
        pl_module: Its module.
        batch: A training batch on the device.
        rtol: As in `find_reduction`; at least 0.02 unless the run is in 32 or 64 bit.

    Returns:
        The verdict.
    """
    size = batch_size(batch)
    loss = TrainingLoss(trainer, pl_module, local=True)
    full = trainer.precision in ("32-true", "64-true")
    # bfloat16 keeps 8 bits, a relative spacing of 0.008; a batch of two halves adds two such roundings.
    tolerance = rtol if full else max(rtol, 0.02)
    with traceless(trainer, pl_module, training=False), torch.no_grad():
        streams = random_streams(pl_module.device)

        def loss_of(samples: Sequence[int]) -> float:
            return float(loss(select(batch, samples, size or 0), 0, streams))

        return find_reduction(loss_of, size or 0, rtol=tolerance)
