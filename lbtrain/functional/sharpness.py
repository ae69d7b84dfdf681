"""The largest rise of the mean loss in a neighbourhood of the weights: Keskar's box and SAM's ball."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lbtrain.functional._climb import climb, climb_box
from lbtrain.functional._excursion import Excursion
from lbtrain.functional.hvp import MeanLoss
from lbtrain.functional.results import SharpnessValue
from lbtrain.functional.vectors import flatten


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
            climb_box(ascent, (2 * uniform - 1).to(loss.device) * half_width, half_width, num_steps)
        return ascent.result(100 / (1 + ascent.base))


def sam_sharpness(
    loss: MeanLoss, params: Sequence[Tensor], *, rho: float = 0.05, num_steps: int = 10, generator: torch.Generator
) -> SharpnessValue:
    """Return ``max_{||e|| <= rho} L(w + e) - L(w)``, by repeated ascent ``e <- rho g(w + e) / ||g(w + e)||``.

    The first iterate is the direction of SAM; the next ones are a power iteration on a convex quadratic, so that they
    turn to its top eigenvector. Where one is not uphill, as beside a steep saddle, the step is cut to where the slope
    falls to zero. The largest loss met counts, ``L(w)`` included: a lower bound of the maximum, never negative.

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
        Cuts: Frank and Wolfe (1956), NRLQ 3.
    """  # noqa: DOC502 - Excursion raises it
    ascent = Excursion(loss, params, "rho", rho, num_steps)

    def any_direction() -> Tensor:
        draw = torch.randn(loss.dim, generator=generator, device=generator.device, dtype=loss.dtype)
        return draw.to(loss.device)

    with ascent.restored():
        if math.isfinite(ascent.base):
            climb(ascent, loss.dim, rho, 2, num_steps, fallback=any_direction)
        return ascent.result(1.0)
