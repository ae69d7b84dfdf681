"""The mean training loss over the training data, as measurements at the end of training see it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch

from lbtrain._lightning import LightningModule, MisconfigurationException, Trainer
from lbtrain.callbacks._agreement import gather_texts, sum_over_ranks, together
from lbtrain.callbacks._batch import batch_size as samples_in
from lbtrain.callbacks._frozen_data import seed_streams
from lbtrain.callbacks._interruption import stop_wanted
from lbtrain.callbacks._measured_data import kept_for, measured_batches
from lbtrain.callbacks._objective import TrainingLoss
from lbtrain.callbacks._random_loss import check_repeatable, own_generators
from lbtrain.callbacks._sharded_loss import ShardedLoss
from lbtrain.callbacks._sharded_measure import even_batches, sharded_training_loss
from lbtrain.callbacks._shards import is_sharded, reshard
from lbtrain.callbacks._traceless import random_streams, set_random_streams, traceless
from lbtrain.callbacks.loss_reduction import LossReductionCheck, reduction_on
from lbtrain.functional.operator import HessianOperator


@contextmanager
def mean_training_loss(
    trainer: Trainer,
    pl_module: LightningModule,
    *,
    num_samples: int | None,
    batch_size: int | None,
    seed: int,
    graph_memory_mb: float = 0.0,
    matrix: str = "hessian",
    engine: str = "auto",
    around: Callable[[int], AbstractContextManager[Any]] = nullcontext,
) -> Iterator[HessianOperator]:
    """Open the mean loss over the training data: eval mode, fixed order, every sample once, no trace.

    A data module or module that has `measure_dataloader()` decides the data itself (to leave augmentation out, say).
    Otherwise the data set of the training loader is read in order, without its shuffling. Each rank reads its own
    share; no sample is repeated to make the shares equal. The data are read once and kept for the whole fit. Inside
    `stoppable`, an interruption by the user raises `Interrupted` out of the next evaluation, on every rank.

    Args:
        trainer: The Trainer, outside its evaluation loops.
        pl_module: Its module.
        num_samples: Measure on this many samples, drawn by seed; None for all.
        batch_size: Samples per evaluation and device; None as in training.
        seed: Of the draw.
        graph_memory_mb: Memory for gradient graphs that are kept between Hessian products, in MiB.
        matrix: `hessian` or `ggn`, what products are with.
        engine: `auto`, `autograd` or `differences`, how they are made.
        around: What a batch of this number is evaluated inside of; not for shards.

    Yields:
        The loss of the trainable parameters, per sample whatever the module's reduction; a `ShardedLoss` under
        strategies that cut parameters into shards, with products by differences of the Hessian only.
    """

    def read() -> tuple[Sequence[Any], list[int]]:
        found = measured_batches(trainer, pl_module, num_samples, batch_size, seed)
        sizes = [_size(batch) for batch in found]
        first = partial(_to_device, trainer, pl_module, found[0]) if found else None
        check_repeatable(trainer, pl_module, first, seed)
        return found, sizes

    batches, sizes = together(trainer, read)
    if is_sharded(trainer):
        with _sharded_loss(trainer, pl_module, batches, sizes) as sharded:
            yield sharded  # type: ignore[misc] - it stands in for one
        return
    kind = str(trainer.strategy.broadcast(together(trainer, lambda: _reduction(trainer, pl_module, batches))))
    params = [p for p in pl_module.parameters() if p.requires_grad]
    several = trainer.world_size > 1
    with traceless(trainer, pl_module, training=False), torch.enable_grad(), own_generators(pl_module, seed) as restart:
        seed_streams(seed, pl_module.device)  # so that a random training_step is the same function each time
        loss, streams = TrainingLoss(trainer, pl_module, local=True), random_streams(pl_module.device)
        evaluate = loss.with_outputs if matrix == "ggn" else loss

        def of_batch(numbered: tuple[int, Any]) -> Any:
            i, batch = numbered
            set_random_streams(streams, pl_module.device)  # the transfer to the device may augment
            restart()
            on_device = _to_device(trainer, pl_module, batch)
            with around(i):
                return evaluate(on_device, i, streams)

        mean_loss = HessianOperator(
            of_batch,
            params,
            list(enumerate(batches)),
            sizes=sizes,
            reduction="sum" if kind == "sum" else "mean",
            matrix=matrix,
            engine=engine,
            graph_memory_bytes=int(graph_memory_mb * 2**20),
            all_reduce=partial(sum_over_ranks, trainer) if several else None,
            gather=gather_texts if several else None,
            should_stop=stop_wanted,
        )
        try:
            yield mean_loss
        finally:
            mean_loss.release()


@contextmanager
def _sharded_loss(
    trainer: Trainer, pl_module: LightningModule, batches: Sequence[Any], sizes: Sequence[int]
) -> Iterator[ShardedLoss]:
    """Open the mean loss of sharded parameters, whose passes all ranks make together.

    Yields:
        The loss.
    """
    batches, total = even_batches(batches), sum_over_ranks(trainer, torch.tensor(float(sum(sizes)))).item()
    kind = str(trainer.strategy.broadcast(_reduction(trainer, pl_module, batches)))
    sizes = [*sizes, *[0] * (len(batches) - len(sizes))]
    weights = [size / total for size in sizes]
    divisors = [size if kind == "sum" and size else 1 for size in sizes]
    reshard(trainer)
    with traceless(trainer, pl_module, training=False), torch.enable_grad(), own_generators(pl_module, None):
        load = partial(_to_device, trainer, pl_module)
        yield sharded_training_loss(
            trainer, pl_module, batches, weights, load, divisors=divisors, should_stop=stop_wanted
        )


def refuse_sharded(trainer: Trainer, what: str) -> None:
    """Refuse strategies under which no rank holds whole parameters.

    Args:
        trainer: The Trainer.
        what: The callback's name, for the message.

    Raises:
        MisconfigurationException: Under FSDP, ModelParallel or DeepSpeed.
    """
    name = type(trainer.strategy).__name__
    if is_sharded(trainer) or "DeepSpeed" in name:
        raise MisconfigurationException(
            f"{what} measures whole parameters, which no process holds under {name}: measure a checkpoint of this run "
            "with strategy='ddp' or on a single device"
        )


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


def _size(batch: Any) -> int:
    size = samples_in(batch)
    if size == 0:
        raise MisconfigurationException(
            "a batch to measure on has no samples: leave empty batches out of what measure_dataloader() returns, or, "
            "where there is none, out of what the training loader's collate_fn makes"
        )
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
    """Return the verdict that training reached, or one on this rank's first batch to measure on."""
    for callback in trainer.callbacks:
        if isinstance(callback, LossReductionCheck) and callback.result is not None:
            return callback.result.kind
    kept = kept_for(trainer)
    if kept.reduction is None and batches:
        streams = random_streams(pl_module.device)
        with own_generators(pl_module, None):
            try:
                batch = _to_device(trainer, pl_module, batches[0])  # which may augment
            finally:
                set_random_streams(streams, pl_module.device)
            kept.reduction = reduction_on(trainer, pl_module, batch).kind
    return kept.reduction or "mean"
