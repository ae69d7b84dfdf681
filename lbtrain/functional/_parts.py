"""A mean loss on half of its data, or as a function of some of its parameters."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from torch import Tensor

from lbtrain.functional._batch_losses import BatchLosses

if TYPE_CHECKING:
    from lbtrain.functional.hvp import MeanLoss

_L = TypeVar("_L", bound="MeanLoss")


def halves_of(loss: _L) -> tuple[_L, _L]:
    """Return the losses of the local batches of even and of odd index, their weights made to sum to 1.

    Args:
        loss: The loss of all batches.

    Returns:
        Two losses.

    Raises:
        ValueError: If one half would be empty on all ranks.
    """
    chosen = [range(start, len(loss.losses), 2) for start in (0, 1)]
    sums = loss.total(loss._wide.new_tensor([sum(loss.weights[i] for i in part) for part in chosen])).tolist()
    if not all(share > 0 for share in sums):
        raise ValueError("halves need two batches or more on some rank; take a smaller batch size to measure with")
    first, second = (_half(loss, part, share) for part, share in zip(chosen, sums, strict=True))
    return first, second


def _half(loss: _L, indices: Sequence[int], share: float) -> _L:
    part = copy.copy(loss)
    batches = BatchLosses(loss.params, [loss.losses[i] for i in indices])
    weights = [loss.weights[i] / share for i in indices]
    part._take(batches, weights)
    part._engine = loss._engine.on_batches(batches, indices, part._tally.add)
    return part


def block_of(loss: _L, params: Sequence[Tensor]) -> _L:
    """Return the loss as a function of some of its parameters.

    Args:
        loss: The loss as a function of all.
        params: Some of them.

    Returns:
        The restricted loss.

    Raises:
        ValueError: If one of them is not among the parameters, or there is none.
    """
    places = {id(p): k for k, p in enumerate(loss.params)}
    unknown = [tuple(p.shape) for p in params if id(p) not in places]
    if unknown or not params:
        raise ValueError(
            f"params must be one or more of the {len(places)} parameters of this loss, got {len(params)} of which "
            f"{len(unknown)} are not among them; pass the same tensors"
        )
    part = copy.copy(loss)
    batches = BatchLosses(params, loss.losses)
    positions = [places[id(p)] for p in params]
    part._take(batches, loss.weights)
    part._engine = loss._engine.on_parameters(batches, positions, part._tally.add)
    return part
