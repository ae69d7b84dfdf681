"""The training loss on a fixed subset of the data: a training curve without the noise of a fresh batch each time."""

import time
from dataclasses import dataclass
from typing import Any

from lbtrain._lightning import LightningModule, Trainer
from lbtrain.callbacks._measure import check_measure_arguments, mean_training_loss
from lbtrain.callbacks._measurement import Measurement


@dataclass(frozen=True)
class SubsetLoss:
    """The mean training loss on the subset."""

    loss: float
    """Per sample, whatever the module's reduction; eval mode."""
    seconds: float
    """Duration of the measurement."""

    def metrics(self) -> dict[str, float]:
        """Return the number under its metric key.

        Returns:
            `subset/loss`, in the unit of the loss.
        """
        return {"subset/loss": self.loss}


class FixedSubsetLoss(Measurement):
    """Log the mean training loss on the same samples of the data: at the start, at every n-th step and at the end.

    The loss of a batch tells two things at once, how good the weights are and how hard that batch is. On a fixed subset
    the second never changes, so a curve that goes up and down shows weights that do: too high a rate, or gradient
    noise. Forward passes only, in eval mode and without a trace: the training is the same bit for bit. Logs
    `subset/loss`; `.tracks` has all values, and `.result` the last one.

    Args:
        num_samples: Training samples of the subset, drawn by seed; None for all.
        every_n_steps: Measure after each n-th optimizer step; None only at the start and at the end.
        batch_size: Samples per evaluation and device; None as in training. Larger is faster while it fits into memory.
        seed: Of the draw.

    Attributes:
        result: The last measurement, None before the end of training.
        tracks: One dictionary per measurement: `step` (optimizer steps done), `epoch` and `subset/loss`. Saved in
            checkpoints, so that a resumed run goes on with them.

    Raises:
        ValueError: If an argument is out of range.
    """

    serves_shards = True

    def __init__(
        self,
        num_samples: int | None = 256,
        every_n_steps: int | None = 50,
        batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(every_n_steps)
        check_measure_arguments(num_samples, batch_size, seed)
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.result: SubsetLoss | None = None

    @property
    def own_keys(self) -> dict[str, str]:
        """The key, which only one subset can have."""
        return {"subset/loss": "keep one of them"}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Refuse, before the first step of a fit, a loss that is no function of the weights; then measure it."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if not self.tracks:
            self._track(trainer, pl_module, trainer.fit_loop.epoch_loop._batches_that_stepped)

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> SubsetLoss:
        """Return the loss at the current weights; every rank takes part.

        Args:
            trainer: The Trainer, outside its evaluation loops.
            pl_module: Its module.

        Returns:
            The mean over the subset.
        """
        start = time.perf_counter()
        options = {"num_samples": self.num_samples, "batch_size": self.batch_size, "seed": self.seed}
        with mean_training_loss(trainer, pl_module, **options) as loss:
            value = loss.value()
        return SubsetLoss(value, time.perf_counter() - start)
