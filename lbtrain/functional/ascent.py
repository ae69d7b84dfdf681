"""Ascent steps of sharpness-aware minimization, and the context that takes one and undoes it bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from lbtrain.functional.vectors import norm

# Keeps 0/0 a zero step; any value far below |g| gives the same step. As in the authors' PyTorch port of the method.
_TINY = 1e-12
# eta of ASAM: keeps weights that are zero movable. Kwon et al. (2021), section 5, and their released code.
_ETA = 0.01


def sam_ascent(gradients: Sequence[Tensor], rho: float, *, in_place: bool = False) -> list[Tensor]:
    """Return e = rho * g / |g|_2, the first-order worst case in an L2 ball.

    Args:
        gradients: Tensors of any shapes, together one vector g; any positive scale gives the same step.
        rho: Radius of the ball, in units of parameter norm.
        in_place: Turn the gradients themselves into the step, which saves their size in fresh memory.

    Returns:
        The step, one tensor per gradient, of length rho together (zero where g is zero).

    Raises:
        ValueError: If there are no gradients.

    References:
        Foret et al. (2021), arXiv 2010.01412, eq. 2 with p = 2.
    """
    if not gradients:
        raise ValueError("no gradients: run backward before the ascent step")
    step = list(gradients)
    scale = rho / (norm(gradients) + _TINY)
    if not in_place:
        return list(torch._foreach_mul(step, scale))
    torch._foreach_mul_(step, scale)
    return step


def asam_ascent(
    weights: Sequence[Tensor], gradients: Sequence[Tensor], rho: float, *, adapted: Sequence[bool], eta: float = _ETA
) -> list[Tensor]:
    """Return e = rho * T^2 g / |T g|_2 with T = |w| + eta, the worst case in a ball that rescales with the weights.

    Args:
        weights: Tensors w of any shapes.
        gradients: One gradient per weight, same shapes.
        rho: Radius of the ball, in units of relative change of the weights.
        adapted: Per tensor, whether T is |w| + eta (weights) or the identity (biases).
        eta: Added to |w|, in units of the weights.

    Returns:
        The step, one tensor per gradient; |T^-1 e|_2 = rho together.

    Raises:
        ValueError: If there are no gradients.

    References:
        Kwon et al. (2021), arXiv 2102.11600, eq. 3 with p = 2.
    """
    if not gradients:
        raise ValueError("no gradients: run backward before the ascent step")
    scales = [w.detach().abs() + eta if on else torch.ones_like(w) for w, on in zip(weights, adapted, strict=True)]
    scaled = torch._foreach_mul(list(gradients), scales)
    step = torch._foreach_mul(scaled, scales)
    return list(torch._foreach_mul(step, rho / (norm(scaled) + _TINY)))


@contextmanager
def shifted(
    params: Sequence[Tensor], steps: Sequence[Tensor], *, backup: Sequence[Tensor] | None = None
) -> Iterator[None]:
    """Move the parameters by the steps while the context is open, then put the very same bits back.

    The values return from copies, since `w + e - e` rounds. They return in place, so views, flat buffers and graphs
    that alias the storage stay valid, and they return whatever happens inside.

    Args:
        params: Tensors to move, in place.
        steps: One step per parameter, same shapes.
        backup: Memory for the copies, like the parameters; None takes fresh memory each time, which is slower for large
            models.

    Yields:
        Nothing; the parameters stand at w + e.
    """
    targets = [p.detach() for p in params]
    saved = [torch.empty_like(t) for t in targets] if backup is None else list(backup)
    torch._foreach_copy_(saved, targets)
    try:
        torch._foreach_add_(targets, list(steps))
        yield
    finally:
        torch._foreach_copy_(targets, saved)
