"""Forward and backward passes that the processes of a sharded model make together, and what they say if one fails."""

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lbtrain._lightning import LightningModule, Trainer
from lbtrain.callbacks._gradients import take
from lbtrain.callbacks._objective import TrainingLoss
from lbtrain.callbacks._shards import gather, reshard
from lbtrain.callbacks._traceless import random_streams, set_random_streams
from lbtrain.callbacks._trainer import loss_scale
from lbtrain.functional.ranks import RankFailedError, Ranks

# Seconds for the message of a process that failed to arrive; it is sent before the connection breaks.
_PATIENCE = 2.0
_numbers = itertools.count()


class Passes:
    """Gradients of weighted batches through the strategy's wrapped module, batch by batch on all ranks at once.

    Before each pass the ranks agree, by one small sum, that each has its batch and that nobody asked to stop; if one
    has failed, all raise. Inside a pass there is no agreeing: a rank that fails there raises at once and leaves its
    message in the store of the process group, and the others are told so by the breaking connection. With nccl nothing
    breaks: there the others wait until the launcher ends them or the group's timeout.

    Args:
        trainer: The Trainer, inside `traceless`, with a strategy that shards.
        pl_module: Its module.
        batches: As many on every rank, in host memory.
        weights: One share per batch, zero for one that is only there to keep step; over all ranks they sum to 1.
        params: The parameters that are measured.
        load: Brings a batch to the device.
        divisors: What the loss of each batch is divided by: its samples where the module sums over them, else 1.
        should_stop: Whether the user of this rank asked to stop; None: never.

    Attributes:
        num_passes: Passes made so far.
    """

    def __init__(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batches: Sequence[Any],
        weights: Sequence[float],
        params: Sequence[Tensor],
        load: Callable[[Any], Any],
        divisors: Sequence[float],
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        self.batches, self.weights, self.params = list(batches), list(weights), list(params)
        self.divisors, self.num_passes = list(divisors), 0
        self._trainer, self._module, self._load = trainer, pl_module, load
        self._like = torch.zeros(0, device=trainer.strategy.root_device)
        self._ranks = Ranks(_sum_over_ranks, gather, should_stop)
        self._loss = TrainingLoss(trainer, pl_module)
        self._streams = random_streams(pl_module.device)
        self._key = f"lbtrain/failed/{next(_numbers)}"

    def run(self, indices: Sequence[int], each: Callable[[int, float, list[Tensor | None]], None]) -> None:
        """Make the passes of these batches, the same ones on every rank.

        Args:
            indices: Of the batches, in order.
            each: Told, after each pass, the index, this rank's loss of the batch, and the parts held here of the
                gradient of the weighted sum of all ranks' losses, None where there is none.

        Raises:
            RankFailedError: If another rank failed.
            Interrupted: If the user of any rank asked to stop.
        """  # noqa: DOC502 - the passes raise them
        reshard(self._trainer)
        try:
            for i in indices:
                each(i, *self._pass(i))
        finally:
            reshard(self._trainer)

    def _pass(self, i: int) -> tuple[float, list[Tensor | None]]:
        batch = self._agreed(i)
        self.num_passes += 1
        # Sharding strategies average gradients over ranks, where the shares ask for the sum.
        scale = loss_scale(self._trainer)
        factor = self.weights[i] * self._trainer.world_size * scale
        try:
            with torch.enable_grad():
                loss = self._loss(batch, i, self._streams) / self.divisors[i]
                (loss * factor).backward()
        except Exception as error:
            raise self._told(error) from error
        gradients = take(self.params)
        if scale != 1:
            gradients = [None if g is None else g / scale for g in gradients]
        return float(loss.detach()), gradients

    def _agreed(self, i: int) -> Any:
        """Return the batch on the device, once every rank has its own.

        Raises:
            RankFailedError: If another rank has none; a rank that failed itself raises its own error.
            Interrupted: If the user of any rank asked to stop.
        """  # noqa: DOC502 - the sum over ranks raises them
        found: list[Any] = []

        def load(_: Tensor) -> None:
            set_random_streams(self._streams, self._module.device)  # the transfer to the device may augment
            found.append(self._load(self.batches[i]))

        self._ranks.sum(load, self._like, 0)
        return found[0]

    def _told(self, error: Exception) -> Exception:
        """Return what to raise after an error inside a pass: the error itself if it is this rank's own."""
        theirs = self._heard(patient=_is_of_connection(error))
        if theirs is not None:
            return RankFailedError(theirs)
        if _is_of_connection(error):
            return RankFailedError(
                f"another rank failed or was lost during a pass, as the connection to it was: {error}"
            )
        self._say(self._words(error))
        return error

    def _words(self, error: Exception) -> str:
        return f"rank {self._trainer.global_rank}: {type(error).__name__}: {error}"

    def _say(self, words: str) -> None:
        try:
            torch.distributed.distributed_c10d._get_default_store().set(self._key, words)
        except Exception:  # the error itself is what matters
            return

    def _heard(self, *, patient: bool) -> str | None:
        """Return the message of another rank that failed in a pass, if there is one."""
        until = time.monotonic() + (_PATIENCE if patient else 0.0)
        try:
            store = torch.distributed.distributed_c10d._get_default_store()
            while not store.check([self._key]):
                if time.monotonic() >= until:
                    return None
                time.sleep(0.02)
            return str(store.get(self._key).decode())
        except Exception:  # the store may have ended with the rank that kept it
            return None


def _is_of_connection(error: Exception) -> bool:
    """Return whether an error comes from talking to other processes, and not from this one's own work."""
    words = ("gloo", "nccl", "connection", "peer", "timed out", "process group")
    return isinstance(error, torch.distributed.DistError) or any(word in str(error).lower() for word in words)


def _sum_over_ranks(tensor: Tensor) -> Tensor:
    torch.distributed.all_reduce(tensor)
    return tensor
