"""Where estimates of the gradient noise come from: the micro-batches of an optimizer step, or halves of a batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lbtrain._lightning import LightningModule, MisconfigurationException, Trainer
from lbtrain.callbacks._batch import batch_size, describe, select
from lbtrain.callbacks._climber import optimized
from lbtrain.callbacks._gradients import paired
from lbtrain.callbacks._noise_norms import length, square, sum_of_squares, summed_over_ranks, wide
from lbtrain.callbacks._objective import TrainingLoss
from lbtrain.callbacks._traceless import traceless
from lbtrain.callbacks._trainer import data_parallel, loss_scale
from lbtrain.functional.noise import (
    NoiseEstimate,
    halves_estimate,
    micro_batch_estimate,
    micro_batch_share,
)

OVERFLOW = "gradients that were not finite"
PIECES = "a gradient that came in pieces (reentrant checkpointing of shared layers)"
UNSPLIT = "batches that could not be split into halves"
NO_LOSS = "batches for which training_step gave no loss"
SINGLE = "batches of one sample, which have no halves"


@dataclass(frozen=True)
class Measured:
    """Numbers of one step, still on the device, so that no step waits for it."""

    values: Tensor
    read: Callable[[list[float]], NoiseEstimate]
    """Makes the estimate of the values."""
    problem: str = OVERFLOW
    """What it was if a value is not finite."""


class MicroBatches:
    """The squared gradient norms of the micro-batches of one optimizer step, and of their mean.

    Hooks on the parameters see the gradient of one backward pass on one rank: after the hooks of the user, before it is
    added to `.grad` and reduced. They keep its norm and let go of it, so autograd can still move it into `.grad`.

    Args:
        params: The parameters that are trained.
        summed: Whether the loss sums over samples.
    """

    def __init__(self, params: Sequence[Tensor], *, summed: bool) -> None:
        self._params, self._summed = params, summed
        self.count = 0
        self._norms: dict[int, Tensor] = {}  # of the present backward pass, by parameter
        self._found: list[Tensor] = []
        self._factors: list[float] = []
        self._sizes = 0.0
        self._problem = ""
        self._handles = [p.register_hook(self._hook(i)) for i, p in enumerate(params) if p.requires_grad]

    def _hook(self, position: int) -> Callable[[Tensor], None]:
        norms, norm = self._norms, torch.linalg.vector_norm  # looked up here and not in every pass
        plain = self._params[position].itemsize >= 4

        def see(gradient: Tensor) -> None:
            if position in norms:
                self._problem = PIECES
            easy = plain and not (gradient.is_sparse or gradient.requires_grad)
            norms[position] = norm(gradient) if easy else length(gradient)

        return see

    def begin(self) -> None:
        """Forget the gradients that `training_step` took for itself; those of its backward pass come next."""
        self._norms.clear()

    def end(self, size: int) -> None:
        """Take in the backward pass that has ended.

        Args:
            size: Samples in its micro-batch.
        """
        factor, of_size = micro_batch_share(size, summed=self._summed)
        self._found.extend(self._norms.values())
        self._factors.extend([factor] * len(self._norms))
        self._sizes += of_size
        self._norms.clear()
        self.count += 1

    def close(self) -> None:
        """Take the hooks off the parameters."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def measured(self, trainer: Trainer, device: torch.device) -> Measured:
        """Compare the micro-batches of all ranks with the gradient that all of them make: one reduction of two scalars.

        Args:
            trainer: The Trainer, in `on_after_backward` of the step's last batch, with the gradient reduced but not
                yet clipped.
            device: Where to reduce.

        Returns:
            Sums over all micro-batches and ranks, and the squared norm of the gradient.
        """
        total = sum_of_squares(self._found, device, self._factors if self._summed else None)
        if self._problem:
            total = total * torch.nan
        sums = [total]
        if trainer.world_size > 1:
            # One reduction of two scalars; on a single device the second one need not go there.
            sums = summed_over_ranks(trainer, torch.stack([total, torch.full_like(total, self._sizes)])).unbind()
        big, own = square([p.grad for p in self._params if p.grad is not None]), self._sizes
        # Backward saw each loss divided by the accumulation and multiplied by the scale.
        accumulate, scale = trainer.accumulate_grad_batches, loss_scale(trainer)
        count, summed = self.count * data_parallel(trainer), self._summed

        def read(numbers: list[float]) -> NoiseEstimate:
            squares, *sizes, of_mean = numbers
            total_size = sizes[0] if sizes else own
            return micro_batch_estimate(
                squares * (accumulate / scale) ** 2, total_size, of_mean / scale**2, count, summed=summed
            )

        return Measured(torch.stack([*sums, big.to(total)]), read, self._problem or OVERFLOW)


def measured_halves(
    trainer: Trainer,
    pl_module: LightningModule,
    params: Sequence[Tensor],
    batch: Any,
    batch_idx: int,
    size: int,
    *,
    summed: bool,
) -> Measured:
    """Take the gradients of both halves of a batch, without a trace.

    Args:
        trainer: The Trainer, at the start of a batch.
        pl_module: Its module, in the modes that it trains in.
        params: The parameters that are trained.
        batch: On the device.
        batch_idx: Its index.
        size: Samples in it.
        summed: Whether the loss sums over samples.

    Returns:
        The estimate, averaged over the ranks; not finite where a rank has a batch without halves.
    """
    scale, ranks, device = loss_scale(trainer), data_parallel(trainer), pl_module.device
    values = torch.full((2,), torch.nan, device=device, dtype=wide(device))
    parts = [list(range(size // 2)), list(range(size // 2, size))]
    halves = [select(batch, part, size) for part in parts] if size > 1 else []
    problem = SINGLE if not halves else "" if _is_split(batch, halves[0], size) else UNSPLIT
    if not problem:
        sides = _gradients(trainer, pl_module, params, halves, batch_idx, scale)
        if sides:
            found = halves_estimate(*sides, (len(parts[0]), len(parts[1])), summed=summed)
            values = torch.stack([v.to(values) for v in found])
        problem = "" if sides else NO_LOSS
    factor = scale**2 * ranks
    return Measured(
        summed_over_ranks(trainer, values), lambda v: NoiseEstimate(v[0] / factor, v[1] / factor), problem or OVERFLOW
    )


def _gradients(
    trainer: Trainer,
    pl_module: LightningModule,
    params: Sequence[Tensor],
    halves: Sequence[Any],
    batch_idx: int,
    scale: float,
) -> Sequence[list[Tensor]]:
    """Return the gradients of both halves, apart from those that training has; none if a half has no loss."""
    loss, free = TrainingLoss(trainer, pl_module, local=True), [p for p in params if p.requires_grad]
    found = []
    with traceless(trainer, pl_module), torch.enable_grad():
        for half in halves:
            try:
                value = loss(half, batch_idx) * scale
            except MisconfigurationException:  # `training_step` returned None, which is no error on one device
                return []
            # Not by `backward`, which would set off what acts on `.grad`: reducers, and optimizers in backward.
            grads = torch.autograd.grad(value, free, allow_unused=True)
            found.append([g.to_dense() if g is not None and g.is_sparse else g for g in grads])
    return paired(*found)[1:]


class TrainedParameters:
    """The parameters of the module that the optimizer has: no others are reduced and stepped."""

    def __init__(self) -> None:
        self._optimized: list[int] = []
        self._found: list[Tensor] = []

    def now(self, trainer: Trainer, pl_module: LightningModule) -> list[Tensor]:
        """Return them; the module is walked only when the optimizer has others than before.

        Args:
            trainer: The Trainer.
            pl_module: Its module.

        Returns:
            The parameters, each once, some of them perhaps frozen.
        """
        params = optimized(trainer)
        key = [id(p) for p in params]
        if key != self._optimized:
            known = {id(p) for p in pl_module.parameters()}
            self._optimized, self._found = key, list({id(p): p for p in params if id(p) in known}.values())
        return self._found


def _is_split(batch: Any, half: Any, size: int) -> bool:
    # A size that was given need not be one that the batch has.
    return batch_size(batch) == size or describe(half, depth=6) != describe(batch, depth=6)
