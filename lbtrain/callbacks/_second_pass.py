"""From the gradient at w to the one that the optimizer gets: the ascent, and the same batches again at w + e."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lbtrain._lightning import LightningModule, Trainer
from lbtrain.callbacks._batch import batch_size
from lbtrain.callbacks._climber import Climbers, optimized
from lbtrain.callbacks._gradients import give, paired, reduce_over_ranks, take, unreduced
from lbtrain.callbacks._objective import TrainingLoss
from lbtrain.callbacks._shards import elsewhere, space_of
from lbtrain.callbacks._traceless import traceless

if TYPE_CHECKING:
    from lbtrain.callbacks.sam import SAM

# A batch, its index, and the random-number streams that its first pass began with.
Recorded = tuple[Any, int, dict[str, Any]]


class SecondPass:
    """Replace the gradient of a window of batches.

    Args:
        sam: The callback: whose gradient it climbs along, how far, and what it makes of both gradients.
        trainer: The Trainer, when training starts.
        pl_module: Its module.
    """

    def __init__(self, sam: SAM, trainer: Trainer, pl_module: LightningModule) -> None:
        self._sam, self._trainer, self._module = sam, trainer, pl_module
        self._loss = TrainingLoss(trainer, pl_module)
        # Taken now: between forward and backward FSDP2 has gathered copies in the place of its parameters.
        self._params = list(pl_module.parameters())
        self.forget()

    def forget(self) -> None:
        """Let go of what belongs to the current step."""
        self._aside: list[tuple[Tensor, Tensor]] = []
        self._total: list[Tensor | None] = []

    def put_aside(self) -> None:
        """Put away the gradient of the step's batches so far, so that the next one comes by itself."""
        self._aside = [(p, p.grad) for p in self._parameters() if p.grad is not None]
        for p, _ in self._aside:
            p.grad = None

    def _parameters(self) -> list[Tensor]:
        known = {id(p) for p in self._params}
        return self._params + [p for p in optimized(self._trainer) if id(p) not in known]

    def replace_gradient(self, window: list[Recorded], *, last: bool) -> None:
        """Climb along the gradient that the parameters have, and replace it by the one at w + e.

        Args:
            window: The batches that the gradient is of.
            last: Whether the optimizer steps next.
        """
        params = optimized(self._trainer)
        known = {id(p) for p in params}
        others = [(p, p.grad) for p in self._params if id(p) not in known and p.grad is not None]
        # Is the second gradient wanted by itself, apart from those of earlier batches and of other ranks?
        alone = self._sam.combines == "ascent" and self._sam.scope != "global"
        with torch.no_grad():
            climbers, steps, kept = self._ascend(params, window)
            take(p for p, _ in others)
        try:
            with (
                traceless(self._trainer, self._module, keep_gradients=True),
                elsewhere(self._trainer, climbers.weights, steps, self._sam._backup(climbers)),
            ):
                steps.clear()  # so that the second pass's gradients take over their memory
                if not alone:
                    self._take_back(lambda p: id(p) in known)
                self._evaluate(window, reduced=last and not alone)
        finally:
            # Nobody steps or clears the gradients of parameters outside the optimizer: leave them as plain training
            # does.
            for p, grad in others:
                p.grad = grad
        with torch.no_grad():
            self._finish(params, kept, last=last)
            self._take_back(lambda _: True)
            if alone and last:
                reduce_over_ranks(self._trainer)

    def conclude(self) -> None:
        """Make the gradient of a step whose last batch gave none of what the batches before it left."""
        with torch.no_grad():
            if self._sam.combines == "step" and self._total:
                self._combine_step(optimized(self._trainer))

    def _ascend(
        self, params: Sequence[Tensor], window: list[Recorded]
    ) -> tuple[Climbers, list[Tensor], list[Tensor | None]]:
        """Take the gradients, and turn them into steps.

        Returns:
            Who climbs, the steps, and the gradients where they are needed later.
        """
        sam, first = self._sam, take(params)
        climbers = sam._climbers(self._trainer, first)
        if sam.log_of_ascent.due:
            sizes = [batch_size(batch) for batch, _, _ in window]
            samples = None if None in sizes else sum(size or 0 for size in sizes)
            # The gradient of one batch of a window is divided by their number.
            batches = self._trainer.accumulate_grad_batches if sam.scope == "micro_batch" else 1
            sam.log_of_ascent.climbed(climbers.space.norm(climbers.gradients) * batches, sam._radii[0], samples)
        kept = self._owned(first) if sam.combines != "never" else []
        direction = sam._direction(self._trainer, first)
        if direction is not first:
            climbers.gradients = [direction[i] for i in climbers.where]  # type: ignore[misc]
        steps = sam._steps(climbers, in_place=direction is not first or sam.combines == "never")
        climbers.gradients = []
        return climbers, steps, kept

    def _evaluate(self, window: list[Recorded], *, reduced: bool) -> None:
        trainer, precision = self._trainer, self._trainer.strategy.precision_plugin
        scaler = getattr(precision, "scaler", None)
        for i, (batch, batch_idx, streams) in enumerate(window):
            # As in the Trainer's own loop, all but the last backward stay on the rank.
            together = reduced and i == len(window) - 1
            with torch.enable_grad(), nullcontext() if together else unreduced(trainer):
                loss = self._loss(batch, batch_idx, streams) / trainer.accumulate_grad_batches
                scaled = loss if scaler is None else scaler.scale(loss)
                self._sam.log_of_ascent.after(scaled)
                # The precision's own backward: the hooks around a backward have run for this step already.
                precision.backward(scaled, self._module, trainer.optimizers[0])

    def _finish(self, params: Sequence[Tensor], kept: list[Tensor | None], *, last: bool) -> None:
        """Make the optimizer's gradient of both, where it is not the second one as it is."""
        if self._sam.combines == "ascent":
            self._combine(params, kept, take(params))
        elif self._sam.combines == "step":
            self._total = _sum(self._total, kept) if self._total else kept
            if last:
                self._combine_step(params)

    def _combine_step(self, params: Sequence[Tensor]) -> None:
        second = self._owned(take(params))
        total, self._total = self._total, []
        self._combine(params, self._averaged(params, total), second)

    def _owned(self, gradients: list[Tensor | None]) -> list[Tensor | None]:
        """Copy gradients that lie in DDP's buckets, which its next reduction overwrites.

        Returns:
            The copies; the gradients themselves where they have memory of their own.
        """
        if not getattr(self._trainer.strategy.model, "gradient_as_bucket_view", False):
            return gradients
        return [None if g is None else g.clone() for g in gradients]

    def _averaged(self, params: Sequence[Tensor], gradients: list[Tensor | None]) -> list[Tensor | None]:
        if self._sam.scope == "global":
            return gradients
        give(params, gradients)
        reduce_over_ranks(self._trainer)
        return take(params)

    def _combine(
        self, params: Sequence[Tensor], first: Sequence[Tensor | None], second: Sequence[Tensor | None]
    ) -> None:
        where, a, b = paired(first, second)
        combined = self._sam._combined(a, b, where, space_of(self._trainer, [params[i] for i in where]))
        values: list[Tensor | None] = [None] * len(params)
        for i, value in zip(where, combined, strict=True):
            values[i] = value
        give(params, values)

    def _take_back(self, chosen: Callable[[Tensor], bool]) -> None:
        """Add to the gradients what was put aside."""
        for p, grad in self._aside:
            if chosen(p):
                p.grad = grad if p.grad is None else p.grad.add_(grad)
        self._aside = [(p, grad) for p, grad in self._aside if not chosen(p)]


def _sum(left: Sequence[Tensor | None], right: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [b if a is None else a if b is None else a + b for a, b in zip(left, right, strict=True)]
