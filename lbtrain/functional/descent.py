"""What variants of SAM hand to the optimizer, made of the gradient g at w and the gradient g_s at w + e.

Each formula is the same for any positive scale of both gradients, so gradients of a scaled loss may be passed as they
are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lbtrain.functional.space import WHOLE, Space
from lbtrain.functional.vectors import multiplied

# Keeps 0/0 zero; far below any square of a norm that matters.
_TINY = 1e-30
# A difference of two vectors that is below this many units of their rounding is rounding.
_ROUNDING = 32.0


def gsam_gradient(
    gradients: Sequence[Tensor],
    ascended: Sequence[Tensor],
    alpha: float,
    *,
    in_place: bool = False,
    space: Space = WHOLE,
) -> list[Tensor]:
    """Return `g_s - alpha * (g - (<g, g_s> / |g_s|^2) g_s)`: lower the loss at w + e, and the gap to it.

    Args:
        gradients: g, the gradient at w.
        ascended: g_s, the gradient at w + e, same shapes.
        alpha: Weight of the gap, no unit; 0 gives SAM.
        in_place: Turn g_s itself into the result.
        space: How the inner products are taken.

    Returns:
        One tensor per gradient.

    References:
        Zhuang et al. (2022), arXiv 2203.08065, algorithm 1.
    """
    along = space.dot(gradients, ascended) / (space.dot(ascended, ascended) + _TINY)
    result = multiplied(list(ascended) if in_place else [g.clone() for g in ascended], 1.0 + alpha * along)
    if result:
        torch._foreach_add_(result, list(gradients), alpha=-alpha)
    return result


def looksam_direction(gradients: Sequence[Tensor], ascended: Sequence[Tensor], *, space: Space = WHOLE) -> list[Tensor]:
    """Return `g_v = g_s - (<g_s, g> / |g|^2) g`, the part of SAM's gradient that flattens and that changes slowly.

    Args:
        gradients: g, the gradient at w.
        ascended: g_s, the gradient at w + e, same shapes.
        space: How the inner products are taken, over all tensors together.

    Returns:
        One new tensor per gradient, orthogonal to g.

    References:
        Liu et al. (2022), arXiv 2203.02714, algorithm 1, g_v = g_s sin(theta).
    """
    along = space.dot(ascended, gradients) / (space.dot(gradients, gradients) + _TINY)
    result = multiplied([g.clone() for g in gradients], -along)
    if result:
        torch._foreach_add_(result, list(ascended))
    # What rounding leaves of parallel gradients has no direction, and `looksam_gradient` would stretch it.
    length = space.norm(result)
    return multiplied(result, (length > _ROUNDING * _eps(ascended) * space.norm(ascended)).to(length.dtype))


def looksam_gradient(
    gradients: Sequence[Tensor], direction: Sequence[Tensor], alpha: float, *, space: Space = WHOLE
) -> list[Tensor]:
    """Return `g + alpha * (|g| / |g_v|) g_v`, an estimate of SAM's gradient without a second pass.

    Args:
        gradients: g, the gradient at w.
        direction: g_v of an earlier step, `looksam_direction`; any positive scale gives the same.
        alpha: Length of the reused part, in units of |g|.
        space: How the norms are taken, over all tensors together.

    Returns:
        One new tensor per gradient; g where g_v is zero.

    References:
        Liu et al. (2022), arXiv 2203.02714, algorithm 1.
    """
    length = space.norm(direction)
    share = torch.where(length > 0, alpha * space.norm(gradients) / length, torch.zeros_like(length))
    result = multiplied([v.clone() for v in direction], share)
    if result:
        torch._foreach_add_(result, list(gradients))
    return result


def wsam_gradient(
    gradients: Sequence[Tensor], ascended: Sequence[Tensor], gamma: float, *, in_place: bool = False
) -> list[Tensor]:
    """Return `(1 - a) g + a g_s`, a = gamma / (1 - gamma): the gradient of L + a (L_SAM - L).

    Args:
        gradients: g, the gradient at w.
        ascended: g_s, the gradient at w + e, same shapes.
        gamma: Weight of the sharpness, in [0, 1); 0.5 gives SAM, 0 plain training.
        in_place: Turn g_s itself into the result.

    Returns:
        One tensor per gradient.

    References:
        Yue et al. (2023), arXiv 2305.15817, eq. 7.
    """
    weight = sharpness_weight(gamma)
    result = list(ascended) if in_place else [g.clone() for g in ascended]
    if result:
        torch._foreach_mul_(result, weight)
        torch._foreach_add_(result, list(gradients), alpha=1.0 - weight)
    return result


def _eps(tensors: Sequence[Tensor]) -> float:
    return max((torch.finfo(t.dtype).eps for t in tensors), default=0.0)


def sharpness_weight(gamma: float) -> float:
    """Return `a = gamma / (1 - gamma)`, the weight of the sharpness L_SAM - L beside the loss.

    Args:
        gamma: In [0, 1).

    Returns:
        The weight, no unit.

    Raises:
        ValueError: If gamma is not in [0, 1).

    References:
        Yue et al. (2023), arXiv 2305.15817, eq. 5.
    """
    if not 0 <= gamma < 1:
        raise ValueError(f"gamma must be in [0, 1), got {gamma!r}; 0.5 is SAM, larger values weigh sharpness more")
    return gamma / (1.0 - gamma)
