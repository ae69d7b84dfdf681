"""What ranks that each did their own work agree on: failures, wishes and sums."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from lbtrain._lightning import Trainer
from lbtrain.functional.ranks import RankFailedError

_T = TypeVar("_T")


def together(trainer: Trainer, work: Callable[[], _T]) -> _T:
    """Return what each rank's own work gives, or fail on all ranks where it fails on one.

    Args:
        trainer: The Trainer.
        work: Of this rank alone.

    Returns:
        What this rank's work gives.

    Raises:
        RankFailedError: If another rank failed; this rank's own error is passed on.
    """
    if trainer.world_size == 1:
        return work()
    error: Exception | None = None
    try:
        result = work()
    except Exception as own:
        error = own
    texts = gather_texts("" if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    if failed := "; ".join(f"rank {i}: {text}" for i, text in enumerate(texts) if text):
        raise RankFailedError(failed)
    return result


def agreed(trainer: Trainer, flag: bool) -> bool:
    """Return whether any rank says so; every rank must ask.

    Args:
        trainer: The Trainer.
        flag: What this rank says.

    Returns:
        The same on every rank.
    """
    return flag if trainer.world_size == 1 else bool(sum_over_ranks(trainer, torch.tensor(float(flag))) > 0)


def gather_texts(text: str) -> list[str]:
    """Return the texts of all ranks.

    Args:
        text: Of this rank.

    Returns:
        One of each rank, in order.
    """
    texts = [""] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(texts, text)
    return texts


def sum_over_ranks(trainer: Trainer, tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over all ranks.

    Args:
        trainer: The Trainer.
        tensor: Of this rank, of one shape on all.

    Returns:
        The same on every rank, on the device of the tensor.
    """
    if trainer.world_size == 1:
        return tensor
    # nccl reduces on the device only.
    on_device = tensor.to(trainer.strategy.root_device, copy=True)
    torch.distributed.all_reduce(on_device)  # the strategy's own would let all ranks wait for each other once more
    return on_device.to(tensor.device)
