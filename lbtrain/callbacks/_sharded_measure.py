"""Measuring where strategies cut parameters into shards: whom it serves, and batches that keep all ranks in step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lbtrain._lightning import LightningModule, MisconfigurationException, Trainer, strategies
from lbtrain.callbacks._sharded_loss import ShardedLoss
from lbtrain.callbacks._sharded_optimizer import local_optimizer
from lbtrain.callbacks._sharded_passes import Passes
from lbtrain.callbacks._shards import gather, held_by_several, is_sharded, part, reshard, space_of
from lbtrain.functional.layers import layer_shares, layers
from lbtrain.functional.vectors import unflatten


def sharded_training_loss(
    trainer: Trainer,
    pl_module: LightningModule,
    batches: Sequence[Any],
    weights: Sequence[float],
    load: Callable[[Any], Any],
    *,
    divisors: Sequence[float],
    should_stop: Callable[[], bool] | None = None,
) -> ShardedLoss:
    """Return the mean loss over these batches as a function of the parts of the parameters held here.

    Args:
        trainer: The Trainer, inside `traceless`, with a strategy that shards.
        pl_module: Its module.
        batches: From `even_batches`, in host memory.
        weights: This rank's share of each batch; over all ranks they sum to 1.
        load: Brings a batch to the device.
        divisors: What the loss of each batch is divided by: its samples where the module sums over them, else 1.
        should_stop: Whether the user of this rank asked to stop; None: never.

    Returns:
        The loss; all ranks call its methods together.
    """
    reshard(trainer)
    params = [p for p in pl_module.parameters() if p.requires_grad]
    loss = ShardedLoss(trainer, Passes(trainer, pl_module, batches, weights, params, load, divisors, should_stop))
    if isinstance(trainer.strategy, strategies.FSDPStrategy):
        # An evaluation without backward may have left the outermost module gathered, and its copy would be used on.
        loss.value()
    return loss


def even_batches(batches: Sequence[Any]) -> list[Any]:
    """Give every rank as many batches as the one with the most: a pass in which one takes no part would hang.

    Args:
        batches: Of this rank, in host memory.

    Returns:
        The same, and behind them repetitions of the last one, or of another rank's where this one has none: they are
        to weigh nothing.
    """
    counts = gather(len(batches))
    filler = batches[-1] if batches else None
    if min(counts) == 0 < max(counts):
        giver = next(rank for rank, count in enumerate(counts) if count)
        given = [filler]
        torch.distributed.broadcast_object_list(given, src=giver)
        filler = filler if batches else given[0]
    return [*batches, *[filler] * (max(counts) - len(batches))]


def count_parameters(trainer: Trainer, pl_module: LightningModule) -> int:
    """Return the number of entries of all trainable parameters; every rank must ask.

    Args:
        trainer: The Trainer, with its model set up.
        pl_module: Its module.

    Returns:
        The same on every rank.
    """
    params = [p for p in pl_module.parameters() if p.requires_grad]
    if not is_sharded(trainer):
        return sum(p.numel() for p in params)
    return space_of(trainer, params).dimension(sum(part(p).numel() for p in params))


def shares_by_layer(loss: Any, vector: Tensor, named: Sequence[tuple[str, Tensor]]) -> tuple[tuple[str, float], ...]:
    """Return which part of a vector lies in which layer, as `layer_shares` does for a vector held whole.

    Args:
        loss: The loss whose parameters the vector belongs to.
        vector: The part held here, shape `(dim,)`.
        named: Names and parameters, in the order of the loss.

    Returns:
        Name and share of each layer, the largest first.
    """
    if not isinstance(loss, ShardedLoss):
        return layer_shares(vector, named)
    square, found = float(loss.space.norm_of(vector)) ** 2, {}
    for name, members in layers(named):
        inside, known = torch.zeros_like(vector), {id(p) for p in members}
        pairs = zip(unflatten(inside, loss.params), unflatten(vector.contiguous(), loss.params), strict=True)
        for (_, p), (target, piece) in zip(named, pairs, strict=True):
            if id(p) in known:
                target.copy_(piece)
        found[name] = float(loss.space.norm_of(inside)) ** 2 / square
    return tuple(sorted(found.items(), key=lambda item: -item[1]))


def optimizer_of(loss: Any, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the optimizer whose groups and state name the parameters of the loss.

    Args:
        loss: The loss.
        optimizer: Of the module's parameters.

    Returns:
        The optimizer itself, or its twin for the parts held here.
    """
    if not isinstance(loss, ShardedLoss):
        return optimizer
    return local_optimizer(optimizer, loss.originals, loss.params)


def refuse_engine(trainer: Trainer, what: str, matrix: str, engine: str) -> None:
    """Refuse what cannot be had of sharded parameters.

    Args:
        trainer: The Trainer.
        what: The callback's name, for the message.
        matrix: `hessian` or `ggn`.
        engine: `auto`, `autograd` or `differences`.

    Raises:
        MisconfigurationException: With the reason and the way out; under DeepSpeed whatever is asked for.
    """
    kind = type(trainer.strategy).__name__
    if "DeepSpeed" in kind:
        raise MisconfigurationException(
            f"{what} takes gradients between the steps of training, but {kind} runs backward and step in an engine of "
            "its own: measure a checkpoint of this run with strategy='ddp' or 'fsdp'"
        )
    if not is_sharded(trainer) or (matrix == "hessian" and engine != "autograd"):
        return
    wish = f"matrix={matrix!r}" if matrix != "hessian" else f"engine={engine!r}"
    raise MisconfigurationException(
        f"{what}({wish}) differentiates twice, and gradients reach the shards of {kind} only through an ordinary "
        "backward: set matrix='hessian' and engine='auto', or measure a checkpoint of this run on a single device"
    )


def refuse_shards(trainer: Trainer, pl_module: LightningModule, what: str) -> None:
    """Refuse parameters of which several processes hold the same part, or a process none of all.

    Args:
        trainer: The Trainer, with its model set up.
        pl_module: Its module.
        what: The callback's name, for the message.

    Raises:
        MisconfigurationException: With the reason and the way out.
    """
    if not is_sharded(trainer):
        return
    strategy = trainer.strategy
    if {"ignored_modules", "ignored_states", "ignored_parameters"} & set(getattr(strategy, "kwargs", {})):
        raise MisconfigurationException(
            f"{what} measures vectors over all shards, and the parameters that {type(strategy).__name__} is told to "
            f"ignore are not sharded: leave ignored_modules and ignored_states out, or drop {what}"
        )
    reshard(trainer)
    named = [(n, p) for n, p in pl_module.named_parameters() if p.requires_grad]
    shared = held_by_several(trainer, named)
    if shared:
        raise MisconfigurationException(
            f"{what} draws random vectors shard by shard, and {len(shared)} of {len(named)} parameters, {shared[0]} "
            "among them, lie on several processes each (tensor parallelism, or a module that is not sharded): shard "
            "every parameter with fully_shard over all processes, or measure a checkpoint of the run on one device"
        )
