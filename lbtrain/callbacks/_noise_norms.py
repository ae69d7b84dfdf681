"""Squared norms of gradients of any kind, in a precision that holds their sums, and their sums over ranks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lbtrain._lightning import Trainer


def length(gradient: Tensor) -> Tensor:
    """Return the norm of one gradient; half precision is squared in float32.

    Args:
        gradient: Dense or sparse.

    Returns:
        0-dim tensor on its device, in its unit.
    """
    g = gradient.detach() if gradient.requires_grad else gradient
    g = g.coalesce().values() if g.is_sparse else g
    return torch.linalg.vector_norm(g, dtype=torch.float32 if g.itemsize < 4 else None)


def square(gradients: list[Tensor]) -> Tensor:
    """Return the squared norm over all gradients.

    Args:
        gradients: Of any kinds, on any devices.

    Returns:
        0-dim tensor on the first one's device, in their squared unit; zero for none.
    """
    if any(g.is_sparse or g.itemsize < 4 for g in gradients):
        lengths = [length(g) for g in gradients]
    else:
        lengths = torch._foreach_norm(gradients) if gradients else []
    return sum_of_squares(lengths, lengths[0].device if lengths else torch.device("cpu"))


def sum_of_squares(lengths: Sequence[Tensor], device: torch.device, factors: Sequence[float] | None = None) -> Tensor:
    """Return the sum of the squares of norms.

    Args:
        lengths: 0-dim tensors on any devices.
        device: Where to sum.
        factors: Of each square; None for 1.

    Returns:
        0-dim tensor; zero for none.
    """
    if not lengths:
        return torch.zeros((), device=device, dtype=wide(device))
    norms = torch.stack([n if n.device == device else n.to(device) for n in lengths])
    if factors is None:
        return torch.linalg.vector_norm(norms, dtype=wide(device)).square()
    squares = norms.to(wide(device)).square()
    return squares @ squares.new_tensor(factors)


def wide(device: torch.device) -> torch.dtype:
    """Return the precision to sum in: squares of scaled gradients can exceed what float32 holds.

    Args:
        device: Where the sum is made.

    Returns:
        float64, or float32 on a device that has no other.
    """
    return torch.float32 if device.type == "mps" else torch.float64


def summed_over_ranks(trainer: Trainer, values: Tensor) -> Tensor:
    """Return the sums over all ranks, by one reduction.

    Args:
        trainer: The Trainer.
        values: On the device, changed in place.

    Returns:
        The same tensor.
    """
    if trainer.world_size > 1:
        torch.distributed.all_reduce(values)  # the strategy's `reduce` would wait at a barrier first
    return values
