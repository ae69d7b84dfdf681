"""Ascent steps of sharpness-aware minimization, and the context that takes one and undoes it bit for bit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from lbtrain.functional.space import WHOLE, Space
from lbtrain.functional.vectors import multiplied

# Keeps 0/0 a zero step; any value far below |g| gives the same step. As in the authors' PyTorch port of the method.
_TINY = 1e-12
# eta of ASAM: keeps weights that are zero movable. Kwon et al. (2021), section 5, and their released code.
ETA = 0.01


def sam_ascent(
    gradients: Sequence[Tensor],
    rho: float | Sequence[float],
    *,
    p: float = 2.0,
    in_place: bool = False,
    space: Space = WHOLE,
) -> list[Tensor]:
    """Return the first-order worst case in a ball: `e = rho * g / |g|_2` for p = 2, `rho * sign(g)` for p = inf.

    Args:
        gradients: Tensors of any shapes, together one vector g; any positive scale gives the same step.
        rho: Radius of the ball, in units of parameter norm (p = inf: of a single weight); a sequence stretches each
            tensor's part of the step by its own.
        p: 2 or inf, the norm of the ball.
        in_place: Turn the gradients themselves into the step, which saves their size in fresh memory.
        space: How the norm is taken; a `ShardedSpace` if the gradients are parts of a whole.

    Returns:
        The step, one tensor per gradient, of length rho together (zero where g is zero); NaN if a gradient is not
        finite.

    Raises:
        ValueError: If there are no gradients, or p is neither 2 nor inf.

    References:
        Foret et al. (2021), arXiv 2010.01412, eq. 2.
    """  # noqa: DOC502 - _check raises it
    _check(gradients, p, space)
    step = list(gradients) if in_place else [g.clone() for g in gradients]
    length = space.norm(step)
    return _times(_signs_(step), rho, _one(length)) if p == math.inf else _times(step, rho, length + _TINY)


def asam_ascent(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    rho: float | Sequence[float],
    *,
    adapted: Sequence[bool],
    eta: float = ETA,
    p: float = 2.0,
    in_place: bool = False,
    scratch: Sequence[Tensor] | None = None,
    space: Space = WHOLE,
) -> list[Tensor]:
    """Return the worst case in a ball that rescales with the weights, T = |w| + eta.

    `e = rho * T^2 g / |T g|_2` for p = 2, `rho * T sign(g)` for p = inf.

    Args:
        weights: Tensors w of any shapes.
        gradients: One gradient per weight, same shapes; any positive scale gives the same step.
        rho: Radius of the ball, in units of relative change of the weights; a sequence stretches each tensor's part of
            the step by its own.
        adapted: Per tensor, whether T is |w| + eta (weights) or the identity (biases).
        eta: Added to |w|, in units of the weights.
        p: 2 or inf, the norm of the ball.
        in_place: Turn the gradients themselves into the step.
        scratch: Memory like the weights, overwritten; None takes fresh memory.
        space: How the norm is taken; a `ShardedSpace` if the tensors are parts of a whole.

    Returns:
        The step, one tensor per gradient; |T^-1 e|_p = rho together.

    Raises:
        ValueError: If there are no gradients, or p is neither 2 nor inf.

    References:
        Kwon et al. (2021), arXiv 2102.11600, eq. 3.
    """  # noqa: DOC502 - _check raises it
    _check(gradients, p, space)
    step = list(gradients) if in_place else [g.clone() for g in gradients]
    rescaled = [i for i, on in enumerate(adapted) if on]
    scales = _scales([weights[i] for i in rescaled], eta, None if scratch is None else [scratch[i] for i in rescaled])
    chosen = [step[i] for i in rescaled]
    if p == math.inf:
        length = _one(space.norm(step))
        _signs_(step)
    else:
        _multiply_(chosen, scales)
        length = space.norm(step) + _TINY
    step = _times(step, rho, length)  # before the second T, which in half precision could leave too little
    _multiply_(chosen, scales)
    return step


def momentum_ascent(momenta: Sequence[Tensor], rho: float | Sequence[float], *, space: Space = WHOLE) -> list[Tensor]:
    """Return `e = -rho * v / |v|_2`, a step along the momentum, which no extra gradient is needed for.

    Args:
        momenta: The optimizer's averages of past gradients, together one vector v; any positive scale gives the same
            step.
        rho: Radius, in units of parameter norm; a sequence has one radius per tensor.
        space: How the norm is taken; a `ShardedSpace` if the tensors are parts of a whole.

    Returns:
        The step, one tensor per momentum; the way that the optimizer is going, where the loss rises behind a valley's
        floor.

    Raises:
        ValueError: If there are no momenta.

    References:
        Becker et al. (2024), arXiv 2401.12033, algorithm 1.
    """  # noqa: DOC502 - _check raises it
    _check(momenta, 2.0, space)
    length = space.norm(momenta) + _TINY
    return _times([v.clone() for v in momenta], [-r for r in rho] if isinstance(rho, Sequence) else -rho, length)


def friendly_direction(gradients: Sequence[Tensor], average: Sequence[Tensor], sigma: float = 1.0) -> list[Tensor]:
    """Return `d = g - sigma * m`, the part of the gradient that is this batch's own; climb with `sam_ascent(d, rho)`.

    Args:
        gradients: The batch's gradient g.
        average: Moving average m of gradients before this one, same shapes and scale.
        sigma: Share of the average that is taken off, no unit; 0 gives SAM.

    Returns:
        One new tensor per gradient.

    References:
        Li et al. (2024), arXiv 2403.12350, algorithm 1. With sigma = 1 the average before and after this batch give the
        same direction; the authors' code, as here, takes the one before.
    """
    if not gradients:
        return []
    return list(torch._foreach_add(list(gradients), list(average), alpha=-sigma))


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
    if not targets:
        yield
        return
    torch._foreach_copy_(saved, targets)
    try:
        torch._foreach_add_(targets, list(steps))
        yield
    finally:
        torch._foreach_copy_(targets, saved)


def _check(vectors: Sequence[Tensor], p: float, space: Space) -> None:
    # A process may hold nothing of a sharded model, and must still take part in the sum over all.
    if not vectors and space is WHOLE:
        raise ValueError("no gradients or momenta: run backward before the ascent step")
    if p not in (2, math.inf):
        raise ValueError(f"p must be 2 or inf, got {p!r}: the ascent has a closed form for these two norms")


def _scales(weights: Sequence[Tensor], eta: float, scratch: Sequence[Tensor] | None) -> list[Tensor]:
    scales = [torch.empty_like(w) for w in weights] if scratch is None else list(scratch)
    if scales:
        torch._foreach_copy_(scales, [w.detach() for w in weights])
        torch._foreach_abs_(scales)
        torch._foreach_add_(scales, eta)
    return scales


def _multiply_(tensors: list[Tensor], factors: list[Tensor]) -> None:
    if tensors:
        torch._foreach_mul_(tensors, factors)


def _signs_(step: list[Tensor]) -> list[Tensor]:
    if step:
        torch._foreach_sign_(step)
    return step


def _one(length: Tensor) -> Tensor:
    """Return 1, or NaN where the length is not finite: signs would hide an overflow from a gradient scaler.

    Returns:
        0-dim tensor.
    """
    return 1.0 + 0.0 * length


def _times(step: list[Tensor], rho: float | Sequence[float], length: Tensor) -> list[Tensor]:
    """Scale the step in place by rho / length.

    Returns:
        The same tensors.
    """
    if not isinstance(rho, Sequence):
        return multiplied(step, rho / length)
    multiplied(step, 1.0 / length)
    if step:
        torch._foreach_mul_(step, list(rho))
    return step
