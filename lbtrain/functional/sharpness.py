"""The largest rise of the mean loss in a neighbourhood of the weights: Keskar's box and SAM's ball."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lbtrain.functional._excursion import Excursion
from lbtrain.functional.hvp import MeanLoss
from lbtrain.functional.results import SharpnessValue
from lbtrain.functional.vectors import flatten, norm


def keskar_sharpness(
    loss: MeanLoss, params: Sequence[Tensor], *, eps: float = 1e-3, num_steps: int = 10, generator: torch.Generator
) -> SharpnessValue:
    """Return ``100 (max_y L(w + y) - L(w)) / (1 + L(w))`` over the box ``|y_i| <= eps (|w_i| + 1)``, in percent.

    Ascent by Frank-Wolfe: from a random point inside the box towards the corner that the gradient points to, the whole
    way first; where that is not uphill, each entry goes as far as its own slope, interpolated, stays uphill. Never from
    ``y = 0``, where the gradient of a minimum is zero. The largest loss met counts, ``L(w)`` included: a lower bound of
    the maximum, never negative.

    Args:
        loss: Mean loss over all batches of all ranks.
        params: Its parameters, the same tensors in the same order; put back bit for bit, on an error too.
        eps: Half the width of the box for a weight of zero.
        num_steps: Gradients after the first one.
        generator: Source of the first point; seeded alike on all ranks.

    Returns:
        Percent of ``1 + L(w)``, with the standard error over batches; NaN when the loss is not finite.

    Raises:
        ValueError: If ``eps`` or ``num_steps`` is not positive, or ``params`` are not those of the loss.

    References:
        Keskar et al. (2017), arXiv 1609.04836, metric 2.1 with A the identity. Frank and Wolfe (1956), NRLQ 3.
    """  # noqa: DOC502 - Excursion raises it
    ascent = Excursion(loss, params, "eps", eps, num_steps)
    with ascent.restored():
        if math.isfinite(ascent.base):
            half_width = flatten([eps * (p.detach().abs() + 1) for p in params]).to(loss.device, loss.dtype)
            uniform = torch.rand(loss.dim, generator=generator, device=generator.device, dtype=loss.dtype)
            _climb_box(ascent, (2 * uniform - 1).to(loss.device) * half_width, half_width, num_steps)
        return ascent.result(100 / (1 + ascent.base))


def sam_sharpness(
    loss: MeanLoss, params: Sequence[Tensor], *, rho: float = 0.05, num_steps: int = 10, generator: torch.Generator
) -> SharpnessValue:
    """Return ``max_{||e|| <= rho} L(w + e) - L(w)``, by repeated ascent ``e <- rho g(w + e) / ||g(w + e)||``.

    The first iterate is the direction of SAM; the next ones are a power iteration on a quadratic, so that they turn to
    its top eigenvector. The largest loss met counts, ``L(w)`` included: a lower bound of the maximum, never negative.

    Args:
        loss: Mean loss over all batches of all ranks.
        params: Its parameters, the same tensors in the same order; put back bit for bit, on an error too.
        rho: Radius of the ball, in units of parameter norm.
        num_steps: Number of ascent steps, one gradient each.
        generator: Source of the direction where the gradient is exactly zero; seeded alike on all ranks.

    Returns:
        In the unit of the loss, with the standard error over batches; NaN when the loss is not finite.

    Raises:
        ValueError: If ``rho`` or ``num_steps`` is not positive, or ``params`` are not those of the loss.

    References:
        Foret et al. (2021), arXiv 2010.01412, eq. 2 with p = 2. Power iteration: Journee et al. (2010), JMLR 11.
    """  # noqa: DOC502 - Excursion raises it
    ascent = Excursion(loss, params, "rho", rho, num_steps)
    with ascent.restored():
        gradient = loss.gradient() if math.isfinite(ascent.base) else loss.params[0].new_full((1,), math.nan)
        for step in range(num_steps):
            if not bool(torch.isfinite(gradient).all()):
                break
            if not bool(gradient.any()):
                draw = torch.randn(loss.dim, generator=generator, device=generator.device, dtype=loss.dtype)
                gradient = draw.to(loss.device)
            offset = gradient * (rho / norm([gradient]))
            if step + 1 < num_steps:
                value, gradient = ascent.value_and_gradient(offset)
                ascent.note(value, offset)
            else:
                ascent.note(ascent.value(offset), offset)
        return ascent.result(1.0)


def _climb_box(ascent: Excursion, y: Tensor, half_width: Tensor, num_steps: int) -> None:
    """Climb from ``y`` inside the box ``|y_i| <= half_width_i``, monotonically."""
    value, gradient = ascent.value_and_gradient(y)
    ascent.note(value, y)
    step, was_refused = half_width * gradient.sign() - y, False
    for _ in range(num_steps):
        if not math.isfinite(value) or not float(gradient @ step) > 0:
            return
        trial = y + step
        trial_value, trial_gradient = ascent.value_and_gradient(trial)
        ascent.note(trial_value, trial)
        if trial_value > value:
            y, value, gradient = trial, trial_value, trial_gradient
            step, was_refused = half_width * gradient.sign() - y, False
        else:
            step, was_refused = _shortened(step, gradient, trial_gradient, was_refused), True


def _shortened(step: Tensor, before: Tensor, after: Tensor, was_refused: bool) -> Tensor:
    """Return the step with each entry cut to where its slope, linear between the two gradients, falls to zero."""
    start, end = before * step, after * step
    if not bool(torch.isfinite(end).all()) or not bool((end < 0).any()):
        return step / 2
    cut = torch.where(end < 0, start / (start - end), 1.0)
    # One cut is exact for a separable quadratic; a second one in a row says that entries act on each other.
    return step * cut / 2 if was_refused else step * cut
