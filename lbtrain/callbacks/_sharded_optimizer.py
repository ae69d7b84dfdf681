"""The optimizer of a sharded model as it is to the parts of the parameters that this process holds."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lbtrain.callbacks._shards import gather, part


def local_optimizer(
    optimizer: torch.optim.Optimizer, params: Sequence[Tensor], parts: Sequence[Tensor]
) -> torch.optim.Optimizer:
    """Return a twin whose groups and state name the parts held here, for laws that look parameters up in it.

    All processes call. Where one holds nothing of a parameter, FSDP leaves the optimizer without a state for it; the
    twin has one, empty as the part is, so that a law comes to the same kind of answer on every process.

    Args:
        optimizer: Of the sharded parameters, as it stands; its state is cut as they are.
        params: The parameters.
        parts: The part of each that is held here.

    Returns:
        An object of the same class that shares its numbers; it is to be read, not stepped.
    """
    known = {id(p): piece for p, piece in zip(params, parts, strict=True)}
    twin: torch.optim.Optimizer = object.__new__(type(optimizer))
    twin.defaults = dict(optimizer.defaults)
    twin.param_groups = [
        {**group, "params": [known.get(id(p), p) for p in group["params"]]} for group in optimizer.param_groups
    ]
    state: dict[Any, Any] = {}
    for p, entry in optimizer.state.items():
        if entry:
            state[known.get(id(p), p)] = {k: part(v) if isinstance(v, Tensor) else v for k, v in entry.items()}
    patterns = [pattern for pattern in gather(_pattern(state)) if pattern]
    for piece in parts:
        if patterns and piece.numel() == 0 and piece not in state:
            state[piece] = {k: piece.clone() if v is None else torch.tensor(v) for k, v in patterns[0].items()}
    twin.state = state  # type: ignore[assignment] - a defaultdict would grow where it is asked
    return twin


def _pattern(state: dict[Any, Any]) -> dict[str, float | None]:
    """Return the numbers of one parameter's state, and None for what has its shape; empty without any state."""
    entry = next(iter(state.values()), {})
    return {k: None if isinstance(v, Tensor) and v.dim() else float(v) for k, v in entry.items() if v is not None}
