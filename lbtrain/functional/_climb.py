"""Ascents in a box and in a ball, monotone, for what is measured at the highest point met."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lbtrain.functional._excursion import Excursion
from lbtrain.functional.vectors import norm


def climb_box_from_all(
    ascent: Excursion, half_width: Tensor, *, num_starts: int, num_steps: int, generator: torch.Generator
) -> float:
    """Climb inside the box ``|y_i| <= half_width_i`` from its centre and from random points in it.

    The first step from the centre leads to the corner that the gradient points to. Where the gradient is zero, as at a
    minimum, nothing leads out of the centre, and the random starts find the rise.

    Args:
        ascent: Remembers the highest point.
        half_width: Shape ``(n,)``.
        num_starts: Number of random starts.
        num_steps: Number of steps from each start, one gradient each.
        generator: Source of the random starts.

    Returns:
        The loss at the corner that the gradient in the centre points to; NaN where that gradient is zero.
    """
    corner = climb_box(ascent, torch.zeros_like(half_width), half_width, num_steps)
    for _ in range(num_starts):
        uniform = torch.rand(len(half_width), generator=generator, device=generator.device, dtype=half_width.dtype)
        climb_box(ascent, (2 * uniform - 1).to(half_width.device) * half_width, half_width, num_steps)
    return corner


def climb_box(ascent: Excursion, y: Tensor, half_width: Tensor, num_steps: int) -> float:
    """Climb from ``y`` inside the box ``|y_i| <= half_width_i``, monotonically.

    Args:
        ascent: Remembers the highest point.
        y: Start, shape ``(n,)``.
        half_width: Shape ``(n,)``.
        num_steps: Number of steps, one gradient each: the first is taken at the start, none at the last point.

    Returns:
        The loss at the corner where the first step leads; NaN where there is none.
    """
    value, gradient = ascent.value_and_gradient(y)
    ascent.note(value, y)
    step, was_refused, first = half_width * gradient.sign() - y, False, math.nan
    for left in range(num_steps - 1, -1, -1):
        if not math.isfinite(value) or not float(gradient @ step) > 0:
            return first
        trial = y + step
        trial_value, trial_gradient = ascent.value_and_gradient(trial) if left else (ascent.value(trial), gradient)
        ascent.note(trial_value, trial)
        first = trial_value if left == num_steps - 1 else first
        if trial_value > value:
            y, value, gradient = trial, trial_value, trial_gradient
            step, was_refused = half_width * gradient.sign() - y, False
        else:
            step, was_refused = _shortened(step, gradient, trial_gradient, was_refused), True
    return first


def climb(ascent: Excursion, dim: int, rho: float, p: float, num_steps: int, *, fallback: Callable[[], Tensor]) -> None:
    """Climb in ``||u||_p <= rho`` from the centre by Frank-Wolfe, monotonically after the first step.

    Each step leads to the point of the ball that the gradient points to, which the first time is the step of SAM; on a
    convex quadratic with p = 2 this is a power iteration. Where that is not uphill, to where the slope falls to zero.

    Args:
        ascent: Remembers the highest point.
        dim: Number of entries of ``u``.
        rho: Radius.
        p: 2 or infinity.
        num_steps: Number of steps, one gradient each: the first is taken at the centre, none at the last point.
        fallback: Returns a vector to take for the gradient where that is exactly zero at the centre.
    """
    u = torch.zeros(dim, dtype=ascent.loss.dtype, device=ascent.loss.device)
    value, gradient = ascent.value_and_gradient(u)
    if not bool(gradient.any()):
        # Nothing says that the first point must be higher: a ridge may lie between.
        value, gradient = -math.inf, fallback()
    step, was_refused = _farthest(gradient, rho, p) - u, False
    for left in range(num_steps - 1, -1, -1):
        if not float(gradient @ step) > 0:
            return
        trial = u + step
        if not left:
            return ascent.note(ascent.value(trial), trial)
        trial_value, trial_gradient = ascent.value_and_gradient(trial)
        ascent.note(trial_value, trial)
        if trial_value > value:
            u, value, gradient = trial, trial_value, trial_gradient
            step, was_refused = _farthest(gradient, rho, p) - u, False
        elif p == 2:
            step = step * _root(float(gradient @ step), float(trial_gradient @ step))
        else:
            step, was_refused = _shortened(step, gradient, trial_gradient, was_refused), True


def _farthest(gradient: Tensor, rho: float, p: float) -> Tensor:
    """Return the point of ``||u||_p <= rho`` that lies farthest along the gradient; NaN for p = 2 and no gradient."""
    return gradient * (rho / norm([gradient])) if p == 2 else rho * gradient.sign()


def _root(start: float, end: float) -> float:
    """Return the share of the way at which the slope, linear between its ends, is zero; half without a zero."""
    return start / (start - end) if end < 0 < start else 0.5


def _shortened(step: Tensor, before: Tensor, after: Tensor, was_refused: bool) -> Tensor:
    """Return the step with each entry cut to where its slope, linear between the two gradients, falls to zero."""
    start, end = before * step, after * step
    if not bool(torch.isfinite(end).all()) or not bool((end < 0).any()):
        return step / 2
    cut = torch.where(end < 0, start / (start - end), 1.0)
    # One cut is exact for a separable quadratic; a second one in a row says that entries act on each other.
    return step * cut / 2 if was_refused else step * cut
