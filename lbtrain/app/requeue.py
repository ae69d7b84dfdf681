"""Slurm puts a job back into its queue: when its state is saved, and how the run goes on."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from lbtrain._lightning import Callback, LightningModule, Trainer, rank_zero_info
from lbtrain.app.leftovers import last_checkpoint
from lbtrain.app.sweep.refusals import started_by

# Lightning's name for what it saves on Slurm's signal; the number grows with each.
_KEPT = "hpc_ckpt_*.ckpt"


def kept(directory: Path) -> str | None:
    """Find the checkpoint with which a job that Slurm has put back into its queue goes on.

    Args:
        directory: Of the run.

    Returns:
        Path of what was saved on Slurm's signal; else, if Slurm has started the job again, of the run's last
        checkpoint. None outside of Slurm, and if there is neither.
    """
    if started_by()[0] != "srun":
        return None
    found: Path | None = max(directory.glob(_KEPT), key=_number, default=None)
    # Slurm counts the attempts after the first: after preemption, or the failure of a node.
    if found is None and int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0:
        found = last_checkpoint(directory)
    if found is None:
        return None
    rank_zero_info(f"requeued: going on from {found}")
    return str(found)


def forget(trainer: Trainer, directory: Path) -> None:
    """Remove what was saved on Slurm's signal, after `fit`: Lightning would load it again to test the final weights.

    Args:
        trainer: The Trainer; all ranks wait for each other.
        directory: Of the run.
    """
    if trainer.is_global_zero:
        for path in directory.glob(_KEPT):
            path.unlink(missing_ok=True)
    trainer.strategy.barrier()


def at_step_end() -> list[Callback]:
    """Return the callback that waits for the end of a step, where Slurm may send its signal.

    Returns:
        Empty outside of Slurm.
    """
    return [AtStepEnd()] if started_by()[0] == "srun" else []


class AtStepEnd(Callback):
    """Put off what Lightning does on Slurm's signal, saving and requeueing, to the end of the step.

    The signal comes at any time: within SAM's second pass, when the weights are shifted, and on each rank at another
    moment, while saving takes all ranks at once.
    """

    def __init__(self) -> None:
        self._act: Callable[[int, FrameType | None], Any] | None = None
        self._number, self._came, self._steps = 0, False, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the place of Lightning's answer to the signal, if it has one."""
        environment = trainer._accelerator_connector.cluster_environment
        if not getattr(environment, "auto_requeue", False):
            return  # not Slurm's, or switched off
        self._number, answer = int(environment.requeue_signal), signal.getsignal(environment.requeue_signal)
        if callable(answer):
            self._act, self._steps = answer, trainer.global_step
            signal.signal(self._number, self._note)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Answer now, unless the batch is one of several that make up a step."""
        if trainer.global_step != self._steps:
            self._steps = trainer.global_step
            self._answer(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Answer now."""
        self._answer(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Answer now: to a signal that came while the final weights were measured."""
        self._answer(trainer)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came = True

    def _answer(self, trainer: Trainer) -> None:
        if self._act is not None and trainer.strategy.reduce_boolean_decision(self._came, all=False):
            self._came = False
            self._act(self._number, None)


def _number(path: Path) -> int:
    digits = path.stem.rpartition("_")[2]
    return int(digits) if digits.isdigit() else -1
