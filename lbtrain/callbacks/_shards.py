"""Parameters that strategies cut into shards: the part held here, and norms over all parts."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor

from lbtrain._lightning import Trainer, strategies
from lbtrain.functional.ascent import shifted
from lbtrain.functional.space import WHOLE, ShardedSpace, Space


def is_sharded(trainer: Trainer) -> bool:
    """Return whether each process holds only parts of the parameters and of their gradients.

    Args:
        trainer: The Trainer.

    Returns:
        True for FSDP and for ModelParallelStrategy (FSDP2, tensor parallelism).
    """
    return isinstance(trainer.strategy, strategies.FSDPStrategy | strategies.ModelParallelStrategy)


def part(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor: writing into it writes into the tensor.

    Args:
        tensor: A DTensor, or a plain tensor, which is returned as it is.

    Returns:
        The local part.
    """
    return tensor.to_local().detach() if _is_dtensor(tensor) else tensor


def gradient(param: Tensor) -> Tensor | None:
    """Return the gradient of a parameter in the parameter's own layout.

    Args:
        param: A parameter; a partial gradient of tensor parallelism is summed up, which all its processes must call
            for.

    Returns:
        The gradient, or None.
    """
    grad: Any = param.grad
    if grad is not None and _is_dtensor(grad) and grad.placements != param.placements:  # type: ignore[attr-defined]
        grad = grad.redistribute(placements=param.placements)  # type: ignore[attr-defined]
    return grad


def space_of(trainer: Trainer, params: Sequence[Tensor]) -> Space:
    """Return the space in which parts of these parameters are measured.

    Args:
        trainer: The Trainer, with its strategy set up.
        params: The parameters, in the order of the parts that will be measured.

    Returns:
        The plain space, or for sharded parameters one that sums over the processes that hold the parts.
    """
    strategy, sizes = trainer.strategy, [part(p).numel() for p in params]
    if isinstance(strategy, strategies.ModelParallelStrategy):
        copies = [_copies(p, trainer.world_size) for p in params]
        return ShardedSpace(copies, _summed_over(None), strategy.root_device, sizes=sizes)
    if isinstance(strategy, strategies.FSDPStrategy):
        group: Any = getattr(strategy.model, "process_group", None)  # of one replica, where replicas are sharded
        if getattr(getattr(strategy.model, "sharding_strategy", None), "name", "") != "NO_SHARD":
            return ShardedSpace([1] * len(params), _summed_over(group), strategy.root_device, sizes=sizes)
    return WHOLE


def held_by_several(trainer: Trainer, named: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Return the names of parameters of which several processes hold the same part.

    Args:
        trainer: The Trainer, with its strategy set up.
        named: Names and parameters.

    Returns:
        Those that tensor parallelism leaves whole, and those that no strategy has cut.
    """
    if not isinstance(trainer.strategy, strategies.ModelParallelStrategy):
        return []
    return [name for name, p in named if _copies(p, trainer.world_size) > 1]


def gather(value: Any) -> list[Any]:
    """Return every process's value, on every process.

    Args:
        value: Anything that pickles.

    Returns:
        The values in the order of the ranks.
    """
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def shard_of(trainer: Trainer) -> int:
    """Return which shard of the parameters this process holds, where each is cut into one per process of a group.

    Args:
        trainer: The Trainer, with its strategy set up.

    Returns:
        Counted from 0; the same for processes with the same parts (FSDP's hybrid sharding).
    """
    group: Any = None
    if isinstance(trainer.strategy, strategies.FSDPStrategy):
        if getattr(getattr(trainer.strategy.model, "sharding_strategy", None), "name", "") == "NO_SHARD":
            return 0
        group = getattr(trainer.strategy.model, "process_group", None)
    return torch.distributed.get_rank(group)


@contextmanager
def elsewhere(
    trainer: Trainer, weights: Sequence[Tensor], steps: Sequence[Tensor], backup: Sequence[Tensor]
) -> Iterator[None]:
    """Move the parts of the parameters held here while the context is open, then put the same bits back.

    Args:
        trainer: The Trainer.
        weights: Parts of the parameters.
        steps: One step per part.
        backup: Memory for copies of the parts.

    Yields:
        Nothing; the model stands at w + e.
    """
    try:
        with shifted(weights, steps, backup=backup):
            reshard(trainer)
            yield
    finally:
        reshard(trainer)


def reshard(trainer: Trainer) -> None:
    """Drop gathered copies of FSDP2's parameters, which would hide a change of the shards.

    Without effect where there are none, and under other strategies.

    Args:
        trainer: The Trainer.
    """
    if isinstance(trainer.strategy, strategies.ModelParallelStrategy):
        for m in trainer.lightning_module.modules():
            if hasattr(m, "set_reshard_after_backward"):  # what FSDP2 adds to a module
                m.reshard()


def _is_dtensor(tensor: Tensor) -> bool:
    # By what it can do: importing its class costs as much as the rest of lbtrain, and releases of torch keep it
    # elsewhere.
    return hasattr(tensor, "placements") and hasattr(tensor, "to_local")


def _copies(param: Tensor, world_size: int) -> int:
    if not _is_dtensor(param):
        return world_size
    mesh, placements = param.device_mesh, param.placements  # type: ignore[attr-defined]
    # Not by `is_shard`, which does not count the strided shards that FSDP2 makes of tensor-parallel parameters.
    return world_size // prod(mesh.size(i) for i, placed in enumerate(placements) if not placed.is_replicate())


def _summed_over(group: Any) -> Any:
    def all_reduce(value: Tensor) -> Tensor:
        torch.distributed.all_reduce(value, group=group)
        return value

    return all_reduce
