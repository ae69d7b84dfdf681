"""The mean training loss over the training data, as measurements at the end of training see it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lbtrain._lightning import LightningModule, MisconfigurationException, Trainer
from lbtrain.callbacks._batch import batch_size as samples_in
from lbtrain.callbacks._objective import TrainingLoss
from lbtrain.callbacks._traceless import random_streams, traceless
from lbtrain.callbacks.loss_reduction import LossReductionCheck, reduction_on
from lbtrain.functional.hvp import MeanLoss


@contextmanager
def mean_training_loss(
    trainer: Trainer,
    pl_module: LightningModule,
    *,
    num_samples: int | None,
    batch_size: int | None,
    seed: int,
    graph_memory_mb: float = 0.0,
) -> Iterator[MeanLoss]:
    """Open the mean loss over the training data: eval mode, fixed order, every sample once, no trace.

    A data module or module that has `measure_dataloader()` decides the data itself (to leave augmentation out, say).
    Otherwise the data set of the training loader is read in order, without its shuffling. Each rank reads its own
    share; no sample is repeated to make the shares equal.

    Args:
        trainer: The Trainer, after training.
        pl_module: Its module.
        num_samples: Measure on this many samples, drawn by seed; None for all.
        batch_size: Samples per evaluation and device; None as in training.
        seed: Of the draw.
        graph_memory_mb: Memory for gradient graphs that are kept between Hessian products, in MiB.

    Yields:
        The loss of the trainable parameters, per sample whatever the module's reduction.
    """
    batches = _batches(trainer, pl_module, num_samples, batch_size, seed)
    params = [p for p in pl_module.parameters() if p.requires_grad]
    kind = _reduction(trainer, pl_module, batches)
    with traceless(trainer, pl_module, training=False), torch.enable_grad():
        loss, streams = TrainingLoss(trainer, pl_module, local=True), random_streams(pl_module.device)

        def of_batch(i: int) -> Tensor:
            return loss(_to_device(trainer, pl_module, batches[i]), i, streams)

        sizes = [_size(batch) for batch in batches]
        total = _sum_over_ranks(trainer, torch.tensor(float(sum(sizes)), dtype=torch.float64)).item()
        mean_loss = MeanLoss(
            params,
            [partial(of_batch, i) for i in range(len(batches))],
            [1.0 / total if kind == "sum" else size / total for size in sizes],
            graph_memory_bytes=int(graph_memory_mb * 2**20),
            all_reduce=partial(_sum_over_ranks, trainer) if trainer.world_size > 1 else None,
        )
        try:
            yield mean_loss
        finally:
            mean_loss.release()


def refuse_sharded(trainer: Trainer, what: str) -> None:
    """Refuse strategies under which no rank holds whole parameters.

    Args:
        trainer: The Trainer.
        what: The callback's name, for the message.

    Raises:
        MisconfigurationException: Under FSDP, ModelParallel or DeepSpeed.
    """
    name = type(trainer.strategy).__name__
    if name in ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy"):
        raise MisconfigurationException(
            f"{what} differentiates the gradient again, which the sharded parameters of {name} do not allow: "
            "measure a checkpoint of this run with strategy='ddp' or on a single device"
        )


def check_measurable(trainer: Trainer, pl_module: LightningModule) -> None:
    """Refuse training data that cannot be measured on, before time is spent on training.

    Args:
        trainer: The Trainer, with its loaders set up.
        pl_module: Its module.

    Raises:
        MisconfigurationException: If the training data cannot be read in a fixed order.
    """
    loader = trainer.train_dataloader
    ordered = isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)
    if not ordered and _chooser(trainer, pl_module) is None:
        raise MisconfigurationException(
            f"the training data ({type(loader).__name__}) cannot be read in a fixed order, which measuring needs "
            "when training ends: define measure_dataloader() on the data module or the module, returning the "
            "batches to measure on"
        )


def _chooser(trainer: Trainer, pl_module: LightningModule) -> Any:
    """Return the data module or module that says itself what to measure on, or None."""
    return next((owner for owner in (trainer.datamodule, pl_module) if hasattr(owner, "measure_dataloader")), None)


def check_measure_arguments(num_samples: int | None, batch_size: int | None, seed: int) -> None:
    """Check the arguments that all measurements share.

    Args:
        num_samples: Samples to measure on, or None.
        batch_size: Samples per evaluation, or None.
        seed: Of the random starts.

    Raises:
        ValueError: If one is out of range.
    """
    for name, value in (("num_samples", num_samples), ("batch_size", batch_size)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{name} must be a whole number of samples, at least 1, or None, got {value!r}")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed must be a whole number, at least 0, got {seed!r}")


def _batches(
    trainer: Trainer, pl_module: LightningModule, num_samples: int | None, batch_size: int | None, seed: int
) -> Sequence[Any]:
    """Return this rank's batches, in host memory."""
    check_measurable(trainer, pl_module)
    rank, world = trainer.global_rank, trainer.world_size
    chooser = _chooser(trainer, pl_module)
    if chooser is not None:
        return list(chooser.measure_dataloader())[rank::world]
    loader = trainer.train_dataloader
    count = len(loader.dataset)  # type: ignore[arg-type]
    chosen = list(range(count))
    if num_samples is not None and num_samples < count:
        draw = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        chosen = sorted(draw[:num_samples].tolist())
    size = batch_size or loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 64
    mine = chosen[rank::world]
    parts = [mine[i : i + size] for i in range(0, len(mine), size)]
    return list(
        DataLoader(loader.dataset, batch_sampler=parts, collate_fn=loader.collate_fn, generator=torch.Generator())
    )


def _size(batch: Any) -> int:
    size = samples_in(batch)
    if size is None:
        raise MisconfigurationException(
            "the tensors of a batch to measure on disagree in their first dimension, so its samples cannot be "
            "counted: define measure_dataloader() with batches whose tensors all have the samples in front"
        )
    return size


def _to_device(trainer: Trainer, pl_module: LightningModule, batch: Any) -> Any:
    batch = trainer.precision_plugin.convert_input(batch)
    batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def _reduction(trainer: Trainer, pl_module: LightningModule, batches: Sequence[Any]) -> str:
    """Return the verdict that training reached, or one on the first batch to measure on."""
    for callback in trainer.callbacks:
        if isinstance(callback, LossReductionCheck) and callback.result is not None:
            return callback.result.kind
    verdict = reduction_on(trainer, pl_module, _to_device(trainer, pl_module, batches[0])).kind if batches else "mean"
    return str(trainer.strategy.broadcast(verdict))


def _sum_over_ranks(trainer: Trainer, tensor: Tensor) -> Tensor:
    if trainer.world_size == 1:
        return tensor
    # nccl reduces on the device only.
    on_device = tensor.to(trainer.strategy.root_device)
    return trainer.strategy.reduce(on_device, reduce_op="sum").to(tensor.device)
