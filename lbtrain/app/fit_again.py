"""Lightning's fit, taken up where a checkpoint was saved, so that no hook and no batch is missed or seen twice."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lbtrain._lightning import Trainer


def go_on(trainer: Trainer, *, stopped: bool, row: Mapping[str, float]) -> None:
    """Prepare a Trainer that has loaded a checkpoint.

    Lightning itself returns at once when no step is left, without the hooks of the start and the end; starts an epoch
    that was half done with its first batch; forgets the hooks of an epoch's end when its last step was saved before
    them; and leaves out the step of a ReduceLROnPlateau that follows the checkpoint of an epoch.

    Args:
        trainer: The Trainer, before its fit loop runs.
        stopped: Whether the run had been asked to stop.
        row: What the epoch has to log of itself, if its last step is done and it has yet to be ended.
    """
    loop = trainer.fit_loop
    again = _Again(trainer, row, loop.run, loop.on_run_start)

    def run() -> None:
        trainer.should_stop = trainer.should_stop or stopped
        again.run()

    loop.run, loop.on_run_start = run, again.begin


def leave(trainer: Trainer) -> None:
    """Put the loop back to Lightning's own.

    Args:
        trainer: The Trainer, after its fit.
    """
    for name in ("run", "on_run_start"):
        vars(trainer.fit_loop).pop(name, None)


def is_within_epoch(trainer: Trainer) -> bool:
    """Tell whether an epoch has begun whose end has not.

    Args:
        trainer: The Trainer, in a fit or with a checkpoint loaded.

    Returns:
        False where a checkpoint of the end of an epoch is saved.
    """
    progress = trainer.fit_loop.epoch_progress.current
    return progress.processed < progress.started


@dataclass
class _Again:
    """A fit that goes on."""

    trainer: Trainer
    row: Mapping[str, float]
    own_run: Callable[[], None]
    own_begin: Callable[[], None]

    def run(self) -> None:
        """Run what is left, and begin and end the fit also if that is nothing."""
        loop, batches = self.trainer.fit_loop, self.trainer.fit_loop.epoch_loop
        self.within, self.steps_plateau = is_within_epoch(self.trainer), False
        if not self.within:
            _complete(loop)
        loop.setup_data()
        if not (loop.max_batches and self.trainer.limit_train_batches and self.trainer.global_step):
            self.own_run()
            return
        self.steps_plateau = not self.within and batches._num_ready_batches_reached()
        if self.within and not self.row:
            _skip_seen(loop, batches.batch_progress.current.ready)
        if self.row:
            _settle(loop)
        if loop.done:
            torch.set_grad_enabled(True)
            self.begin()
            loop.on_run_end()
        else:
            self.own_run()

    def begin(self) -> None:
        """Call the hooks of the start, then do what was to follow the checkpoint."""
        self.own_begin()
        if self.row:
            self._end_epoch()
        if self.steps_plateau:
            self.trainer.fit_loop.epoch_loop.update_lr_schedulers("epoch", update_plateau_schedulers=True)

    def _end_epoch(self) -> None:
        """End an epoch whose steps are done: validate if that is due, and call the hooks."""
        trainer, loop, batches = self.trainer, self.trainer.fit_loop, self.trainer.fit_loop.epoch_loop
        if batches._num_ready_batches_reached() and batches._should_check_val_epoch():
            trainer.validating = True
            batches.val_loop.run()
            trainer.training = True
        trainer._logger_connector.epoch_end_reached()
        trainer.callback_metrics.update({key: torch.tensor(value) for key, value in self.row.items()})
        trainer._logger_connector.log_metrics(dict(self.row))
        batches._batches_that_stepped += 1
        loop.on_advance_end()


def _complete(loop: Any) -> None:
    """Do what follows the checkpoint of an epoch's end: the epoch counts as done, and the next one begins as any."""
    for progress in (loop.epoch_progress.current, loop.epoch_progress.total):
        progress.completed = progress.processed
    _settle(loop)


def _settle(loop: Any) -> None:
    """Take the marks of a restart off: there is no half-done epoch to find one's way through."""
    for part in (loop, loop.epoch_loop, loop.epoch_loop.val_loop):
        part._restarting = part._loaded_from_state_dict = part._resuming_from_checkpoint = False


def _skip_seen(loop: Any, seen: int) -> None:
    """Draw the batches that the epoch has seen before the checkpoint; loaders that keep a state have done it."""
    loaders = loop._combined_loader.flattened
    if all(hasattr(loader, "load_state_dict") for loader in loaders):
        return
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
    for _ in range(seen):
        next(loop._data_fetcher)
    loop._data_fetcher.fetched -= seen  # Lightning adds them
