"""Every definition of sharpness in one place: how far the mean loss rises near the weights, and its relatives."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lbtrain.functional._climb import climb
from lbtrain.functional._excursion import Excursion
from lbtrain.functional._keskar import check_starts, keskar_rise
from lbtrain.functional.adaptive_sharpness import adaptive_sharpness
from lbtrain.functional.average_sharpness import adaptive_average_sharpness, average_sharpness, check_order
from lbtrain.functional.hvp import MeanLoss
from lbtrain.functional.keskar_subspace import keskar_subspace_sharpness
from lbtrain.functional.m_sharpness import m_sharpness
from lbtrain.functional.relative_flatness import relative_flatness
from lbtrain.functional.results import SharpnessValue
from lbtrain.functional.scaled_hessian import scaled_spectrum
from lbtrain.functional.sharpness_results import KeskarSharpness
from lbtrain.functional.vectors import flatten

__all__ = [
    "keskar_sharpness",
    "keskar_subspace_sharpness",
    "sam_sharpness",
    "adaptive_sharpness",
    "average_sharpness",
    "adaptive_average_sharpness",
    "m_sharpness",
    "relative_flatness",
    "scaled_spectrum",
]

# p = 2: Foret et al. (2021), section 3.1. p = inf: this package; it is the radius 1 for a million weights, at p = 2.
_RHO = {2.0: 0.05, math.inf: 0.001}


def keskar_sharpness(
    loss: MeanLoss,
    params: Sequence[Tensor],
    *,
    eps: float = 1e-3,
    num_steps: int = 10,
    num_starts: int = 1,
    generator: torch.Generator,
) -> KeskarSharpness:
    """Return ``100 (max_y L(w + y) - L(w)) / (1 + L(w))`` over the box ``|y_i| <= eps (|w_i| + 1)``, in percent.

    Ascent by Frank-Wolfe towards the corner that the gradient points to, the whole way first; where that is not uphill,
    each entry goes as far as its own slope, interpolated, stays uphill. It starts from the weights and from random
    points in the box: at a minimum the gradient is zero, and only the latter find the rise. The largest loss met
    counts, ``L(w)`` included: a lower bound of the maximum, never negative.

    Args:
        loss: Mean loss over all batches of all ranks.
        params: Its parameters, the same tensors in the same order; put back bit for bit, on an error too.
        eps: Half the width of the box for a weight of zero; 1e-3 and 5e-4 in the paper.
        num_steps: Steps from each start, one gradient each; 10 iterations in the paper.
        num_starts: Random starts, beside the weights.
        generator: Source of the random starts; seeded alike on all ranks.

    Returns:
        Percent of ``1 + L(w)``, with the standard error over batches; NaN where the loss is not finite or at most -1.

    Raises:
        ValueError: If ``eps``, ``num_steps`` or ``num_starts`` is not positive, or ``params`` are not those of the
            loss.

    References:
        Keskar et al. (2017), arXiv 1609.04836, metric 2.1 with A the identity. Frank and Wolfe (1956), NRLQ 3.

    Example:
        At the minimum of ``w^2`` over three weights of 1 the box has the half width 0.02.

        >>> w = torch.ones(3, dtype=torch.float64, requires_grad=True)
        >>> loss = MeanLoss([w], [lambda: ((w - 1) ** 2).sum()], [1.0])
        >>> found = keskar_sharpness(loss, [w], eps=0.01, generator=torch.Generator().manual_seed(0))
        >>> round(found.value, 9)  # 100 * 3 * 0.02**2
        0.12
    """  # noqa: DOC502 - the calls raise it
    check_starts(num_starts)
    ascent = Excursion(loss, params, "eps", eps, num_steps)

    def half_width() -> Tensor:
        return flatten([eps * (p.detach().to(loss.dtype).abs() + 1) for p in params]).to(loss.device)

    return keskar_rise(ascent, half_width, num_starts=num_starts, num_steps=num_steps, generator=generator)


def sam_sharpness(
    loss: MeanLoss,
    params: Sequence[Tensor],
    *,
    rho: float | None = None,
    p: float = 2,
    num_steps: int = 10,
    generator: torch.Generator,
) -> SharpnessValue:
    """Return ``max L(w + e) - L(w)`` over ``||e||_p <= rho``, by repeated ascent.

    The first step is that of SAM, ``e = rho g / ||g||_2`` or ``rho sign(g)``; with ``num_steps=1`` the value is the one
    there. The next ones start over with the gradient at ``w + e``: for p = 2 a power iteration on a convex quadratic,
    so that they turn to its top eigenvector. Where one is not uphill, as beside a steep saddle, the step is cut to
    where the slope falls to zero. The largest loss met counts, ``L(w)`` included: a lower bound of the maximum, never
    negative.

    Args:
        loss: Mean loss over all batches of all ranks.
        params: Its parameters, the same tensors in the same order; put back bit for bit, on an error too.
        rho: Radius of the ball, in units of parameter norm (p = inf: of a single weight); None for 0.05 with p = 2 and
            0.001 with p = inf.
        p: 2 or infinity.
        num_steps: Number of ascent steps, one gradient each.
        generator: Source of the direction where the gradient is exactly zero; seeded alike on all ranks.

    Returns:
        In the unit of the loss, with the standard error over batches; NaN when the loss is not finite.

    Raises:
        ValueError: If ``rho`` or ``num_steps`` is not positive, ``p`` is neither 2 nor infinity, or ``params`` are not
            those of the loss.

    References:
        Foret et al. (2021), arXiv 2010.01412, eq. 2. Power iteration: Journee et al. (2010), JMLR 11.
        Cuts: Frank and Wolfe (1956), NRLQ 3.

    Example:
        At a minimum the value is ``rho^2 / 2`` times the largest eigenvalue of the Hessian, here 8.

        >>> w = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        >>> loss = MeanLoss([w], [lambda: 4 * w[0] ** 2 + w[1] ** 2], [1.0])
        >>> found = sam_sharpness(loss, [w], rho=0.1, generator=torch.Generator().manual_seed(0))
        >>> round(found.value, 6), found.num_gradients <= 10
        (0.04, True)
    """  # noqa: DOC502 - the calls raise it
    check_order(p)
    radius = _RHO[p] if rho is None else rho
    ascent = Excursion(loss, params, "rho", radius, num_steps)

    def any_direction() -> Tensor:
        draw = torch.randn(loss.dim, generator=generator, device=generator.device, dtype=loss.dtype)
        return draw.to(loss.device)

    with ascent.restored():
        if math.isfinite(ascent.base):
            climb(ascent, loss.dim, radius, p, num_steps, fallback=any_direction)
        return ascent.result(1.0)
