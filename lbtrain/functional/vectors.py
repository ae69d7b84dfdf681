"""Many tensors as one vector: flatten, unflatten, norm, dot."""

from collections.abc import Sequence

import torch
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)


def _wide(t: Tensor) -> Tensor:
    return t.float() if t.dtype in _HALF else t


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Return the entries of all tensors as one vector, in order.

    Args:
        tensors: Any shapes, ``n`` entries together, on one device.

    Returns:
        New vector of shape ``(n,)``, in the unit of the tensors; empty for no tensors.
    """
    if not tensors:
        return torch.zeros(0)
    return torch.cat([t.reshape(-1) for t in tensors])


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Cut a vector into views with the shapes of ``like``, the inverse of ``flatten``.

    Args:
        vector: Contiguous, shape ``(n,)``.
        like: Tensors with ``n`` entries together; only their shapes are read.

    Returns:
        Views of ``vector``: writing into one writes into the vector.

    Raises:
        ValueError: If the vector is not of shape ``(n,)``.
    """
    sizes = [t.numel() for t in like]
    if vector.shape != (sum(sizes),):
        raise ValueError(
            f"vector must have shape ({sum(sizes)},), the entries of `like`, got {tuple(vector.shape)}; "
            "build it with flatten() from tensors of the same shapes"
        )
    return [piece.view(t.shape) for piece, t in zip(torch.split(vector, sizes), like, strict=True)]


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm over all entries, ``sqrt(sum_i |t_i|^2)``, without waiting for the device.

    Half-precision tensors are squared in float32, where the sum cannot overflow.

    Args:
        tensors: Any shapes; may lie on several devices, the result lies on the first.

    Returns:
        0-dim tensor, in the unit of the tensors; zero for no tensors.
    """
    if not tensors:
        return torch.zeros(())
    parts = torch._foreach_norm([_wide(t) for t in tensors], 2.0)
    total: Tensor = torch.linalg.vector_norm(torch.stack([p.to(parts[0]) for p in parts]))
    return total


def dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Return the inner product over all entries, ``sum_i <l_i, r_i>``, without waiting for the device.

    Args:
        left: Any shapes.
        right: As many tensors of the same shapes.

    Returns:
        0-dim tensor, in the product of the two units; zero for no tensors.

    Raises:
        ValueError: If the shapes differ.
    """
    if [t.shape for t in left] != [t.shape for t in right]:
        raise ValueError(
            f"left and right must have equal shapes, got {[tuple(t.shape) for t in left]} and "
            f"{[tuple(t.shape) for t in right]}; pass the tensors in the same order"
        )
    if not left:
        return torch.zeros(())
    parts = [torch.dot(_wide(a).reshape(-1), _wide(b).reshape(-1)) for a, b in zip(left, right, strict=True)]
    return torch.stack([p.to(parts[0]) for p in parts]).sum()


def multiplied(tensors: list[Tensor], factor: Tensor) -> list[Tensor]:
    """Multiply all tensors in place by one number that lies on a device, without waiting for it.

    Args:
        tensors: Any shapes, changed in place; may lie on several devices.
        factor: 0-dim tensor.

    Returns:
        The same tensors.
    """
    if not tensors:
        return tensors
    if len({t.device for t in tensors}) == 1 and not any(t.dtype in _HALF for t in tensors):
        torch._foreach_mul_(tensors, factor.to(tensors[0].device))
        return tensors
    for t in tensors:
        # A factor that half precision cannot hold is not to be rounded to it.
        t.copy_(_wide(t) * factor.to(t.device))
    return tensors
