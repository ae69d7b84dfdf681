"""The Lightning module that trains any network as a classifier."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

from lbtrain._lightning import LightningModule
from lbtrain.app.networks import MLP, ConvNet, Linear

__all__ = ["Classifier", "ConvNet", "Linear", "MLP"]

Stage = Literal["train", "val", "test"]


class Classifier(LightningModule):
    """Train a network with cross entropy; batches are pairs of inputs and labels.

    Logs, per epoch: `train/loss`, `val/loss`, `test/loss` (always per sample, whatever the reduction) and
    `train/acc`, `val/acc`, `test/acc` (share of samples classified correctly).

    Args:
        network: Maps inputs of shape (N, ...) to logits of shape (N, num_classes).
        optimizer: Function of the parameters, such as `functools.partial(torch.optim.SGD, lr=0.01)`.
        scheduler: Function of the optimizer; None keeps the learning rate.
        num_classes: Number of classes.
        scheduler_interval: When the scheduler steps: after each "epoch" or optimizer "step".
        monitor: Metric that a ReduceLROnPlateau scheduler follows.
        reduction: How the training loss joins the losses of a batch: "mean" or "sum".

    Raises:
        TypeError: If the optimizer or the scheduler is an object rather than a function that makes one.
        ValueError: If the interval or the reduction is not one of its two words.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], Any] | None = None,
        num_classes: int = 10,
        scheduler_interval: str = "epoch",
        monitor: str = "val/loss",
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        for name, value in (("optimizer", optimizer), ("scheduler", scheduler)):
            if not callable(value) and not (name == "scheduler" and value is None):
                raise TypeError(f"{name} must be a function that makes one (_partial_: true in YAML), got {value!r}")
        for name, value, allowed in (
            ("scheduler_interval", scheduler_interval, ("epoch", "step")),
            ("reduction", reduction, ("mean", "sum")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {value!r}")
        self.network = network
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.scheduler_interval = scheduler_interval
        self.monitor = monitor
        self.reduction = reduction
        self.metrics = nn.ModuleDict()
        for stage in ("train", "val", "test"):
            # Written over itself, a NaN stays: by default it is left out, and a diverged run would look healthy.
            self.metrics[f"{stage}_loss"] = MeanMetric(nan_strategy=float("nan"))
            # Labels out of range are already an error of the cross entropy.
            self.metrics[f"{stage}_acc"] = MulticlassAccuracy(num_classes, average="micro", validate_args=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the network's scores.

        Args:
            inputs: Shape (N, ...).

        Returns:
            Logits of shape (N, num_classes).
        """
        return self.network(inputs)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the training loss of a batch.

        Args:
            batch: Inputs of shape (N, ...) and labels of shape (N,).
            batch_idx: Position of the batch in the epoch.

        Returns:
            Scalar loss: nats per sample with "mean", nats per batch with "sum".
        """
        return self._evaluate("train", batch)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Measure a validation batch.

        Args:
            batch: Inputs of shape (N, ...) and labels of shape (N,).
            batch_idx: Position of the batch.
        """
        self._evaluate("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Measure a test batch.

        Args:
            batch: Inputs of shape (N, ...) and labels of shape (N,).
            batch_idx: Position of the batch.
        """
        self._evaluate("test", batch)

    def configure_optimizers(self) -> dict[str, Any]:
        """Build the optimizer and its schedule.

        Returns:
            Lightning's optimizer description.
        """
        optimizer = self.optimizer(self.parameters())
        if self.scheduler is None:
            return {"optimizer": optimizer}
        schedule = {
            "scheduler": self.scheduler(optimizer),
            "interval": self.scheduler_interval,
            "monitor": self.monitor,
        }
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def _evaluate(self, stage: Stage, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, labels = batch
        logits = self(inputs)
        loss = functional.cross_entropy(logits, labels, reduction=self.reduction)
        samples = len(labels)
        per_sample = loss.detach() / (samples if self.reduction == "sum" else 1)
        for name, values in (("loss", (per_sample, samples)), ("acc", (logits.detach(), labels))):
            metric: Metric = self.metrics[f"{stage}_{name}"]
            metric.update(*values)
            shown = (stage, name) == ("val", "acc")
            self.log(f"{stage}/{name}", metric, on_step=False, on_epoch=True, prog_bar=shown, batch_size=samples)
        return loss
