"""What the callbacks that measure when training ends have in common."""

from abc import ABC, abstractmethod
from typing import Any

from lbtrain._lightning import Callback, LightningModule, Trainer
from lbtrain.callbacks._measure import check_measurable, refuse_sharded
from lbtrain.callbacks._objective import refuse_manual_optimization
from lbtrain.callbacks._trainer import count_measuring, publish


class EndMeasurement(Callback, ABC):
    """Measure once, when training ends: refuse early, measure on every rank, then publish.

    A subclass says what to measure; its result has `metrics()`, numbers by key, and `seconds`.
    """

    result: Any = None

    @abstractmethod
    def measure(self, trainer: Trainer, pl_module: LightningModule) -> Any:
        """Return the result at the current weights; every rank takes part."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what has no training loss or no whole parameters."""
        if stage == "fit":
            refuse_manual_optimization(pl_module, type(self).__name__)
            refuse_sharded(trainer, type(self).__name__)
            self.result = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse data that could not be measured on when training ends."""
        check_measurable(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure on every rank, then publish."""
        self.result = self.measure(trainer, pl_module)
        publish(trainer, self.result.metrics())
        count_measuring(trainer, self.result.seconds)
