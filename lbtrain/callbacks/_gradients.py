"""Gradients of parameters: taken away, given back, and averaged over ranks as DDP does."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from lbtrain._lightning import MisconfigurationException, Trainer, prepare_for_backward
from lbtrain.callbacks._shards import gradient, part


def take(params: Iterable[Tensor]) -> list[Tensor | None]:
    """Take the gradients away from the parameters.

    Args:
        params: The parameters; their `.grad` is None afterwards.

    Returns:
        The part of each gradient that this process holds, None where there was none.

    Raises:
        MisconfigurationException: If a gradient is sparse.
    """
    taken = []
    for p in params:
        grad = gradient(p)
        if grad is not None and grad.is_sparse:
            raise MisconfigurationException(
                f"a parameter of shape {tuple(p.shape)} has a sparse gradient, which cannot take part in an ascent "
                "over all parameters: build its layer, as a rule an Embedding, with sparse=False"
            )
        taken.append(None if grad is None else part(grad))
        p.grad = None
    return taken


def give(params: Sequence[Tensor], values: Sequence[Tensor | None]) -> None:
    """Make these the gradients of the parameters.

    Args:
        params: The parameters, without a gradient or with one that may be overwritten.
        values: Parts as `take` returns them; None leaves a parameter without a gradient.
    """
    for p, value in zip(params, values, strict=True):
        if value is None or part(p) is p:
            p.grad = value
            continue
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        part(p.grad).copy_(value)


def paired(
    first: Sequence[Tensor | None], second: Sequence[Tensor | None]
) -> tuple[list[int], list[Tensor], list[Tensor]]:
    """Put gradients of two passes side by side, a missing one as zeros.

    Args:
        first: Gradients, None where there is none.
        second: As many of another pass.

    Returns:
        The positions at which either pass has a gradient, and both passes' gradients there.
    """
    where = [i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a is not None or b is not None]
    sides = [], []  # type: tuple[list[Tensor], list[Tensor]]
    for i in where:
        a, b = first[i], second[i]
        sides[0].append(a if a is not None else torch.zeros_like(b))  # type: ignore[arg-type]
        sides[1].append(b if b is not None else torch.zeros_like(a))  # type: ignore[arg-type]
    return where, *sides


def unreduced(trainer: Trainer) -> AbstractContextManager[None]:
    """Return a context in which DDP leaves each rank its own gradient; forward and backward both belong into it.

    Args:
        trainer: The Trainer.

    Returns:
        The context, without effect on one device and where gradients are sharded.
    """
    block: Any = getattr(trainer.strategy, "block_backward_sync", None)
    return block() if block is not None and trainer.world_size > 1 else nullcontext()


def reduce_over_ranks(trainer: Trainer) -> None:
    """Average the gradients that the parameters have over the ranks, through DDP's own buckets and hooks.

    Backward from the parameters themselves hands each gradient to the reducer as a real backward pass does, so a
    communication hook that the user has registered applies, and the ranks talk as often as in plain training.

    Args:
        trainer: The Trainer; without effect unless its strategy is DDP.
    """
    ddp = trainer.strategy.model
    if not isinstance(ddp, DistributedDataParallel):
        return
    graded = [(p, p.grad) for p in ddp.parameters() if p.grad is not None]
    if not graded:
        return
    for p, _ in graded:
        p.grad = None
    with torch.enable_grad():
        ends = [p.view_as(p) for p, _ in graded]
        prepare_for_backward(ddp, ends)
        torch.autograd.backward(ends, [g for _, g in graded])
