"""What wandb shows of each metric: optimizer steps on the x axis, and in the summary the best value beside the last."""

import re
from collections.abc import Mapping
from typing import Any, Literal

from lbtrain._lightning import WandbLogger, rank_zero_only

STEP = "trainer/global_step"  # Lightning's name, under which it logs the optimizer step beside each value
# Words of a metric's name that say which end is the better one.
_LOSSES = frozenset({"loss", "nll", "perplexity", "error", "err", "mse", "mae", "rmse"})
_SCORES = frozenset({"acc", "accuracy", "score", "f1", "auc", "auroc", "precision", "recall", "map", "iou", "r2"})
_VALIDATION = frozenset({"val", "valid", "validation"})


def best_of(key: str) -> Literal["max", "min"] | None:
    """Say which value of a metric is the best one of a training.

    Args:
        key: Of the metric, such as `val/acc`.

    Returns:
        `max` for a validation score, `min` for a validation loss, None for all others: those are measured once, or
        have no better end, and their last value is what counts.
    """
    split, *words = re.split(r"[^a-z0-9]+", key.lower())
    if split not in _VALIDATION:
        return None
    if _LOSSES & set(words):
        return "min"
    return "max" if _SCORES & set(words) or any(re.fullmatch(r"top\d+", word) for word in words) else None


class DeclaringLogger(WandbLogger):
    """Lightning's wandb logger, which also declares each metric to wandb before its first value.

    Args:
        arguments: Those of WandbLogger.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._declared: set[str] = set()
        self._declare_axis()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Declare what is new, then log.

        Args:
            metrics: Values by key; also images and tables.
            step: Optimizer step.
        """
        # wandb keeps to a summary only for values that come after its declaration.
        for key in metrics.keys() - self._declared:
            self._declare(key)
        super().log_metrics(metrics, step)

    def _declare_axis(self) -> None:
        # Lightning declares it only for runs that it has opened itself.
        self.experiment.define_metric(STEP)
        self.experiment.define_metric("*", step_metric=STEP, step_sync=True)

    def _declare(self, key: str) -> None:
        # By its exact name: of two patterns that match, wandb takes one at random. A value that is declared becomes
        # a block such as {max, last}; all others stay plain numbers, the last ones, which panels can plot.
        self._declared.add(key)
        best = best_of(key)
        if best is not None:
            self.experiment.define_metric(key, step_metric=STEP, step_sync=True, summary=f"{best},last")
