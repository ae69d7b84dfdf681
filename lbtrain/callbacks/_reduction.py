"""The reduction of the training loss, found on one batch."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lbtrain._lightning import LightningModule, MisconfigurationException, Trainer
from lbtrain.callbacks._batch import batch_size, describe, select
from lbtrain.callbacks._objective import TrainingLoss
from lbtrain.callbacks._shards import is_sharded
from lbtrain.callbacks._traceless import random_streams, same_streams, traceless
from lbtrain.functional.reduction import Reduction, find_reduction

NO_LOSS = "training_step gave no loss for this batch"
# float32 rounds a loss by about 1e-7; kernels for other batch sizes add in another order, which makes it 1e-6.
_SINGLE = 1e-5
# The network in 64 bit, though not always all that a training_step adds to its loss.
_DOUBLE = 1e-8
# TF32 keeps 11 bits of each factor, a relative spacing of 0.0005, and some kernels of a batch size use it, others not.
_TF32 = 1e-3
# bfloat16 keeps 8 bits, a relative spacing of 0.008; a batch of two halves adds two such roundings.
_REDUCED = 0.02


class _NoLossError(Exception):
    """A batch or a part of it has no loss; the message says why."""


def reduction_on(trainer: Trainer, pl_module: LightningModule, batch: Any, *, rtol: float | None = None) -> Reduction:
    """Tell the reduction of the training loss from one batch, without a trace.

    Args:
        trainer: The Trainer.
        pl_module: Its module.
        batch: A training batch on the device.
        rtol: As in `find_reduction`; None takes what the precision allows, and at least 0.02 is used unless the run is
            in 32 or 64 bit.

    Returns:
        The verdict; `unknown` with the reason `NO_LOSS` if `training_step` gives no loss for this batch.
    """
    norms, synchronized = _batch_norms(pl_module)
    # Where the forward pass gathers shards all ranks must make as many: what the first one finds decides for all.
    sharded = is_sharded(trainer)
    agreed: Callable[[Any], Any] = trainer.strategy.broadcast if sharded else lambda value: value
    size = batch_size(batch)
    samples = agreed(size)
    if samples is None:
        return Reduction("unknown", float("nan"), f"the batch cannot be split into samples ({describe(batch)})")
    tolerance = _tolerance(trainer, pl_module, rtol)
    with traceless(trainer, pl_module, training=False), torch.no_grad():
        loss_of = _Losses(trainer, pl_module, batch, size, agreed, sharded=sharded)
        try:
            found = find_reduction(loss_of, samples, rtol=tolerance, redrawn=loss_of.redrawn)
        except _NoLossError as error:
            found = Reduction("unknown", float("nan"), str(error), num_samples=samples)
        # Four losses at the same random numbers that obey a law: the loss repeats itself.
        steady = found.num_losses == 4 and found.kind in {"mean", "sum"} and tolerance <= _SINGLE
        steady = steady and not loss_of.has_drawn
    return replace(found, batch_norms=norms, sync_batch_norms=synchronized, steady=steady)


class _Losses:
    """The training loss of some samples of a batch, all with the same random numbers."""

    def __init__(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        size: int | None,
        agreed: Callable[[Any], Any],
        *,
        sharded: bool,
    ) -> None:
        self._loss = TrainingLoss(trainer, pl_module, local=True)
        self._batch, self._size, self._agreed, self._sharded = batch, size, agreed, sharded
        self._device = pl_module.device
        self._streams = random_streams(self._device)
        self._whole = True

    def __call__(self, samples: Sequence[int]) -> float:
        said, self._whole = self._agreed(self._evaluated(samples, self._streams)), False
        if isinstance(said, str):
            raise _NoLossError(said)
        return float(said)

    @property
    def has_drawn(self) -> bool:
        """Whether the last loss has drawn random numbers."""
        return not same_streams(random_streams(self._device), self._streams)

    def redrawn(self, samples: Sequence[int]) -> float | None:
        """Return the loss with the random numbers that come next; None if the last one has drawn none."""
        if not self._agreed(self.has_drawn):
            return None
        said = self._agreed(self._evaluated(samples, None))
        return float("nan") if isinstance(said, str) else float(said)

    def _evaluated(self, samples: Sequence[int], streams: dict[str, Any] | None) -> float | str:
        """Return the loss, or why there is none: a check should not end a run that trains."""
        # Sample numbers count those of the first rank, and this one may have fewer.
        own = [i % self._size for i in samples] if self._size else []
        batch = select(self._batch, own, self._size) if self._size else self._batch
        part = "the batch" if self._whole else f"{len(samples)} samples of the batch"
        try:
            return float(self._loss(batch, 0, streams))
        except MisconfigurationException:
            return NO_LOSS if self._whole else f"training_step gave no loss for {part}"
        except Exception as error:
            if self._sharded:
                raise  # a forward pass that ends half-way leaves shards gathered
            first_line = str(error).partition("\n")[0]
            return f"training_step failed on {part} in eval mode ({type(error).__name__}: {first_line})"


def _tolerance(trainer: Trainer, pl_module: LightningModule, rtol: float | None) -> float:
    if trainer.precision not in ("32-true", "64-true"):
        return max(rtol or 0.0, _REDUCED)
    if rtol is not None:
        return rtol
    if trainer.precision == "64-true":
        return _DOUBLE
    return _TF32 if pl_module.device.type == "cuda" and _uses_tf32(pl_module) else _SINGLE


def _uses_tf32(pl_module: LightningModule) -> bool:
    if torch.get_float32_matmul_precision() != "highest":
        return True
    convolves = any(isinstance(m, nn.modules.conv._ConvNd | nn.RNNBase) for m in pl_module.modules())
    return torch.backends.cudnn.allow_tf32 and convolves


def _batch_norms(pl_module: LightningModule) -> tuple[int, int]:
    """Return how many layers normalize over the batch in training: of each device, and of all devices."""
    layers = [m for m in pl_module.modules() if isinstance(m, _BatchNorm) and m.training]
    synchronized = sum(isinstance(m, nn.SyncBatchNorm) for m in layers)
    return len(layers) - synchronized, synchronized
