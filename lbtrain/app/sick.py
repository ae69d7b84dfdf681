"""What the gallery of sick runs needs beside its networks and data: a squared error, and a single decay of the rate.

Each run of the gallery is a YAML in conf/sick: `python train.py sick=dead_relu`.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from lbtrain._lightning import LightningModule


class SquaredError(LightningModule):
    """Train a network with half the squared error, L = mean over samples of |f(x) - y|^2 / 2.

    Logs, per epoch, `train/loss` and `test/loss`, per sample. The targets of training may be noisy, drawn anew in each
    step as those of a simulation or of reinforcement learning are; in eval mode they are not.

    Args:
        network: Maps inputs of shape (N, ...) to outputs of shape (N, outputs).
        optimizer: Function of the parameters, such as `functools.partial(torch.optim.SGD, lr=0.01)`.
        scheduler: Function of the optimizer; None keeps the learning rate.
        target_noise: Standard deviation of what is added to each target in a step of training.

    Raises:
        ValueError: If target_noise is negative or not finite.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], Any] | None = None,
        target_noise: float = 0.0,
    ) -> None:
        super().__init__()
        if not (math.isfinite(target_noise) and target_noise >= 0):
            raise ValueError(f"target_noise must be at least 0, got {target_noise!r}")
        self.network, self.optimizer, self.scheduler = network, optimizer, scheduler
        self.target_noise = target_noise
        # Written over itself, a NaN stays: by default it is left out, and a diverged run would look healthy.
        stages = ("train", "val", "test")
        self.metrics = nn.ModuleDict({f"{stage}_loss": MeanMetric(nan_strategy=float("nan")) for stage in stages})

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the network's outputs.

        Args:
            inputs: Shape (N, ...).

        Returns:
            Shape (N, outputs).
        """
        return self.network(inputs)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the training loss of a batch.

        Args:
            batch: Inputs of shape (N, ...) and targets of shape (N, outputs).
            batch_idx: Position of the batch in the epoch.

        Returns:
            Scalar loss per sample, in squared units of the targets.
        """
        inputs, targets = batch
        if self.training and self.target_noise:
            targets = targets + self.target_noise * torch.randn_like(targets)
        return self._evaluate("train", inputs, targets)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Measure a validation batch.

        Args:
            batch: Inputs and targets.
            batch_idx: Position of the batch.
        """
        self._evaluate("val", *batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Measure a test batch.

        Args:
            batch: Inputs and targets.
            batch_idx: Position of the batch.
        """
        self._evaluate("test", *batch)

    def configure_optimizers(self) -> dict[str, Any]:
        """Build the optimizer and its schedule, which steps after each epoch.

        Returns:
            Lightning's optimizer description.
        """
        optimizer = self.optimizer(self.parameters())
        schedule = {} if self.scheduler is None else {"lr_scheduler": self.scheduler(optimizer)}
        return {"optimizer": optimizer, **schedule}

    def _evaluate(self, stage: str, inputs: Tensor, targets: Tensor) -> Tensor:
        loss = (self(inputs) - targets).square().flatten(1).sum(1).mean() / 2
        metric: Any = self.metrics[f"{stage}_loss"]
        metric.update(loss.detach(), len(inputs))
        self.log(f"{stage}/loss", metric, on_step=False, on_epoch=True, batch_size=len(inputs))
        return loss


class DecayOnce(LambdaLR):
    """Multiply the rate once, after the given number of epochs.

    Args:
        optimizer: Whose rate.
        decay_epoch: Epochs before the decay, 1 or more.
        factor: Of the rate from then on, above 0.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(self, optimizer: Optimizer, decay_epoch: int = 1, factor: float = 0.01) -> None:
        if not isinstance(decay_epoch, int) or isinstance(decay_epoch, bool) or decay_epoch < 1:
            raise ValueError(f"decay_epoch must be a whole number of at least 1, got {decay_epoch!r}")
        if not (math.isfinite(factor) and factor > 0):
            raise ValueError(f"factor must be above 0, got {factor!r}")
        super().__init__(optimizer, lambda epoch: factor if epoch >= decay_epoch else 1.0)
