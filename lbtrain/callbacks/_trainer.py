"""Facts read off a Trainer, and the one way in which a callback's numbers leave."""

import math
from collections.abc import Mapping, Sized
from dataclasses import dataclass

import torch

from lbtrain._lightning import (
    GradientAccumulationScheduler,
    MisconfigurationException,
    Trainer,
    rank_zero_only,
)
from lbtrain.callbacks._loaders import loader_batch_size


@dataclass(frozen=True)
class GlobalBatch:
    """How many samples one optimizer step sees."""

    per_device: int
    """Samples per batch of one device."""
    data_parallel: int
    """Devices that see different data."""
    accumulate: int
    """Batches per optimizer step."""

    @property
    def size(self) -> int:
        """Samples per optimizer step."""
        return self.per_device * self.data_parallel * self.accumulate

    def __str__(self) -> str:
        return f"{self.size} = {self.per_device} x {self.data_parallel} x {self.accumulate}"


def global_batch(trainer: Trainer, per_device: int | None = None) -> GlobalBatch:
    """Read the global batch off a Trainer whose loaders are set up.

    Args:
        trainer: The Trainer, in `on_train_start` or later.
        per_device: Batch size per device; None reads it off the training loader.

    Returns:
        Per-device batch x data-parallel size x accumulation; a batch size that cannot be read off the loaders is an
        error.

    Raises:
        MisconfigurationException: If no batch makes a step.
    """
    accumulate = accumulation(trainer)
    if accumulate < 1:
        raise MisconfigurationException(
            f"accumulate_grad_batches must be at least 1 batch per optimizer step, got {accumulate}: set it to 1"
        )
    return GlobalBatch(per_device or loader_batch_size(trainer), data_parallel(trainer), accumulate)


def accumulation(trainer: Trainer) -> int:
    """Return the batches per optimizer step in the current epoch.

    Args:
        trainer: The Trainer.

    Returns:
        The count; a GradientAccumulationScheduler is asked itself, since it sets the Trainer's value only later in the
        epoch.
    """
    for callback in trainer.callbacks:
        if isinstance(callback, GradientAccumulationScheduler):
            return int(callback.get_accumulate_grad_batches(trainer.current_epoch))
    return int(trainer.accumulate_grad_batches)


def steps_per_epoch(trainer: Trainer) -> int | None:
    """Return the optimizer steps of an epoch, at the current accumulation.

    Args:
        trainer: The Trainer, in `on_train_start` or later.

    Returns:
        The count; None if the training loader has no length.
    """
    batches = trainer.num_training_batches
    return math.ceil(batches / accumulation(trainer)) if math.isfinite(batches) else None


def samples_per_epoch(trainer: Trainer, batch: GlobalBatch) -> float:
    """Return the samples of an epoch, over all devices.

    Args:
        trainer: The Trainer, in `on_train_start` or later.
        batch: The global batch in use.

    Returns:
        The count; where the sampler does not say it, as if all batches were full; infinity if the loader has no length.
    """
    batches = trainer.num_training_batches
    sampler = getattr(trainer.train_dataloader, "sampler", None)
    here = len(sampler) if isinstance(sampler, Sized) else math.inf
    # What limit_train_batches cuts off, or a data set that makes the batches itself, is not counted by the sampler.
    told = (batches - 1) * batch.per_device < here < (batches + 1) * batch.per_device
    return (here if told else batches * batch.per_device) * batch.data_parallel


def is_optimizer_step(trainer: Trainer) -> bool:
    """Return whether the current batch closes its accumulation window.

    Args:
        trainer: The Trainer, between `on_train_batch_start` and `on_train_batch_end`.

    Returns:
        Whether the optimizer steps with this batch.
    """
    return trainer.accumulate_grad_batches == 1 or not trainer.fit_loop._should_accumulate()


def steps_to_log(trainer: Trainer) -> float:
    """Return after how many optimizer steps comes one that the Trainer logs.

    Args:
        trainer: The Trainer, in a training batch.

    Returns:
        0 for the step that the current batch belongs to; infinity if `log_every_n_steps` is 0.
    """
    every = trainer.log_every_n_steps
    return -(trainer.fit_loop.epoch_loop._batches_that_stepped + 1) % every if every > 0 else math.inf


def has_scaler(trainer: Trainer) -> bool:
    """Return whether a gradient scaler multiplies losses and gradients."""
    return getattr(trainer.strategy.precision_plugin, "scaler", None) is not None


def loss_scale(trainer: Trainer) -> float:
    """Return what a gradient scaler multiplies losses and gradients by at the moment.

    Args:
        trainer: The Trainer.

    Returns:
        The factor; 1 without a scaler. Reading it waits for the device, as each step with a scaler does.
    """
    scaler = getattr(trainer.strategy.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale())


def data_parallel(trainer: Trainer) -> int:
    """Return the number of devices that see different data.

    Args:
        trainer: The Trainer.

    Returns:
        The count; less than the world size with tensor parallelism, where several devices share the same data.
    """
    return int((trainer.distributed_sampler_kwargs or {}).get("num_replicas", 1))


def publish(trainer: Trainer, metrics: Mapping[str, float | str], step: int | None = None) -> None:
    """Give numbers to `trainer.callback_metrics` on every rank and to the loggers on rank zero.

    Lightning forbids `self.log` where training ends; texts (a verdict) go to the loggers' hyperparameters.

    Args:
        trainer: The Trainer.
        metrics: Values by key, in the units of the key table in the README.
        step: Optimizer steps that the weights have seen; None for those that the loggers have counted.
    """
    numbers = {key: float(value) for key, value in metrics.items() if not isinstance(value, str)}
    trainer.callback_metrics.update({key: torch.tensor(value, dtype=torch.float64) for key, value in numbers.items()})
    if step is None:
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
    _log(trainer, numbers, {key: value for key, value in metrics.items() if isinstance(value, str)}, step)


@rank_zero_only
def _log(trainer: Trainer, numbers: dict[str, float], texts: dict[str, str], step: int) -> None:
    for logger in trainer.loggers:
        if numbers:
            logger.log_metrics(numbers, step=step)
        if texts:
            logger.log_hyperparams(texts)
        logger.save()
