"""What Lightning's checkpoints leave out, so that a killed run ends as if it had never been killed."""

from collections.abc import Mapping
from typing import Any

from torchmetrics import Metric

from lbtrain._lightning import Callback, LightningModule, Trainer
from lbtrain.app.evaluate import found
from lbtrain.app.fit_again import go_on, is_within_epoch, leave
from lbtrain.app.metrics_file import MetricsFile

# In the checkpoint, beside Lightning's own keys.
_KEY = "lbtrain_continuation"


class Continuation(Callback):
    """Keep in each checkpoint how far the run is told: its numbers, its curves, its running means, and its end.

    Lightning restores none of these: without them a resumed run lacks the numbers that only earlier epochs have
    published, forgets that early stopping has ended it, starts the means of a half-done epoch anew, and, where it was
    killed after its last step, skips the measurements at the end of training. Here they are made up for, without
    another step.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Any] | None = None
        self.words: dict[str, str] = {}
        """What earlier sessions have found in words, such as the verdict on the loss reduction."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what is known so far, as plain Python and tensors, which `torch.load(weights_only=True)` takes."""
        row = _last_row(trainer)
        checkpoint[_KEY] = {
            "stopped": trainer.should_stop,
            "callbacks": sorted(checkpoint.get("callbacks", {})),
            "words": self.words | {key: value for key, value in found(trainer).items() if isinstance(value, str)},
            "metrics": {key: value.detach().cpu() for key, value in trainer.callback_metrics.items()},
            "means": _means(pl_module) if is_within_epoch(trainer) and not row else {},
            "rows": {place: logger.kept() for place, logger in _files(trainer)},
            "pending": _pending(trainer),
            "row": row,
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take it up; a checkpoint that is not of such a run is resumed as Lightning does."""
        self._kept = checkpoint.get(_KEY)
        if self._kept is None:
            return
        self.words = self._kept["words"]
        for place, logger in _files(trainer):
            logger.go_on(self._kept["rows"].get(place), self._kept["pending"])
        # Whoever takes the callback away that has ended the run wants it to go on.
        gone = set(self._kept["callbacks"]) - {callback.state_key for callback in trainer.callbacks}
        go_on(trainer, stopped=self._kept["stopped"] and not gone, row=self._kept["row"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the numbers and the running means back, before the other callbacks publish theirs."""
        if self._kept is not None:
            trainer.callback_metrics.update(self._kept["metrics"])
            if trainer.world_size == 1:  # rank zero wrote the checkpoint, and its means are not those of the others
                _set_means(pl_module, self._kept["means"])
            self._kept = None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the loop as it was."""
        leave(trainer)


def _pending(trainer: Trainer) -> dict[str, Any] | None:
    """Return the row that Lightning writes to the loggers right after the checkpoint: of the step, or of the epoch."""
    connector, batches = trainer._logger_connector, trainer.fit_loop.epoch_loop
    within = is_within_epoch(trainer)
    if not trainer.training or within == (connector._first_loop_iter is None):
        return None
    seen = batches.batch_progress.current
    # A checkpoint that an exception has caused may be of half a step.
    at_step_end = seen.completed < seen.processed == seen.ready and not batches._should_accumulate()
    if within and not (at_step_end and connector.should_update_logs):
        return None
    row = {key: float(value) for key, value in connector.metrics["log"].items()}
    step = batches._batches_that_stepped - (not within)
    return {**row, "epoch": trainer.current_epoch, "step": step} if row else None


def _last_row(trainer: Trainer) -> dict[str, float]:
    """Return what the epoch will log of itself, when its last step is done and it has yet to be ended."""
    if not (trainer.training and is_within_epoch(trainer) and trainer.fit_loop.epoch_loop._is_training_done):
        return {}
    return {key: float(value) for key, value in trainer._results.metrics(on_step=False)["log"].items()}


def _files(trainer: Trainer) -> list[tuple[str, MetricsFile]]:
    """Return the loggers that keep a file that a resumed run goes on with, by their place among the loggers."""
    return [(str(place), each) for place, each in enumerate(trainer.loggers) if isinstance(each, MetricsFile)]


def _means(module: LightningModule) -> dict[str, dict[str, Any]]:
    """Return the running states of the module's metrics, by name; those that have seen nothing are left out."""
    metrics = {name: part for name, part in module.named_modules() if isinstance(part, Metric) and part.update_called}
    return {name: {"count": part._update_count, "states": _copied(part.metric_state)} for name, part in metrics.items()}


def _set_means(module: LightningModule, means: Mapping[str, Mapping[str, Any]]) -> None:
    for name, kept in means.items():
        metric = module.get_submodule(name)
        for state, value in _copied(kept["states"], metric.device).items():
            setattr(metric, state, value)
        metric._update_count, metric._computed = kept["count"], None


def _copied(states: Mapping[str, Any], device: Any = "cpu") -> dict[str, Any]:
    return {
        name: [part.detach().to(device, copy=True) for part in value]
        if isinstance(value, list)
        else value.detach().to(device, copy=True)
        for name, value in states.items()
    }
