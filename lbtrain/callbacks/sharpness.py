"""Sharpness of the training loss at the end of training."""

import time
from dataclasses import dataclass

import torch

from lbtrain._lightning import LightningModule, Trainer
from lbtrain.callbacks._end_measurement import EndMeasurement
from lbtrain.callbacks._measure import check_measure_arguments, mean_training_loss
from lbtrain.functional.results import SharpnessValue
from lbtrain.functional.sharpness import keskar_sharpness, sam_sharpness


@dataclass(frozen=True)
class SharpnessResult:
    """Worst-case rise of the training loss near the weights, by two definitions."""

    keskar: SharpnessValue
    """Keskar's epsilon-sharpness, in percent of 1 + loss."""
    sam: SharpnessValue
    """Rise of the loss in an L2 ball, in units of loss."""
    seconds: float
    """Duration of the measurement."""

    def metrics(self) -> dict[str, float]:
        """Return the numbers under their metric keys.

        Returns:
            Values by key, in the units of the key table in the README.
        """
        return {
            "sharpness/keskar": self.keskar.value,
            "sharpness/keskar_stderr": self.keskar.stderr,
            "sharpness/sam": self.sam.value,
            "sharpness/sam_stderr": self.sam.stderr,
        }


class Sharpness(EndMeasurement):
    """Measure how far the training loss can rise near the final weights.

    Keskar's epsilon-sharpness searches the box `|y_i| <= eps * (|w_i| + 1)` from a random start inside it; SAM's
    searches the ball `|e|_2 <= rho` from the weights. Both report the largest rise met on the way, with its standard
    error over batches, on the training data in eval mode. `.result` holds the numbers; they are also in
    `trainer.callback_metrics`, in the loggers and in the summary, under `sharpness/...`.

    Args:
        eps: Half-width of Keskar's box, relative to |w_i| + 1.
        rho: Radius of SAM's ball, in units of parameter norm.
        num_steps: Ascent steps of each search; one costs a gradient over the data.
        num_samples: Measure on this many training samples, drawn by seed; None for all.
        batch_size: Samples per evaluation and device; None as in training. Larger is faster while it fits into memory.
        seed: Of the random start and of the draw of samples.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Keskar et al. (2017), arXiv 1609.04836, metric 2.1; Foret et al. (2021), arXiv 2010.01412, eq. 1.
    """

    def __init__(
        self,
        eps: float = 1e-3,
        rho: float = 0.05,
        num_steps: int = 10,
        num_samples: int | None = None,
        batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        check_measure_arguments(num_samples, batch_size, seed)
        for name, value in (("eps", eps), ("rho", rho)):
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} must be positive and finite, got {value!r}")
        if not isinstance(num_steps, int) or isinstance(num_steps, bool) or num_steps < 1:
            raise ValueError(f"num_steps must be a whole number, at least 1, got {num_steps!r}")
        self.eps = eps
        self.rho = rho
        self.num_steps = num_steps
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.result: SharpnessResult | None = None

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> SharpnessResult:
        """Return the sharpness at the current weights; every rank takes part.

        Args:
            trainer: The Trainer, outside its evaluation loops.
            pl_module: Its module.

        Returns:
            Both values with their standard errors over batches.
        """
        start = time.perf_counter()
        options = {"num_samples": self.num_samples, "batch_size": self.batch_size, "seed": self.seed}
        with mean_training_loss(trainer, pl_module, **options) as loss:
            generator = torch.Generator().manual_seed(self.seed)
            search = {"num_steps": self.num_steps, "generator": generator}
            keskar = keskar_sharpness(loss, loss.params, eps=self.eps, **search)
            sam = sam_sharpness(loss, loss.params, rho=self.rho, **search)
        return SharpnessResult(keskar, sam, time.perf_counter() - start)
