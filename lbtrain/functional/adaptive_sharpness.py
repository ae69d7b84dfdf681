"""The largest rise of the mean loss in a ball that rescales with the weights."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lbtrain.functional._climb import climb
from lbtrain.functional._linear_excursion import LinearExcursion
from lbtrain.functional.average_sharpness import check_order
from lbtrain.functional.hvp import MeanLoss
from lbtrain.functional.results import SharpnessValue
from lbtrain.functional.weight_scale import checked_scale, weight_scale

# p = 2: Kwon et al. (2021) for CIFAR-10; also in the grids of Andriushchenko et al. (2023) for both of their networks.
# p = inf: the example of the latter's released code, in both grids too.
_RHO = {2.0: 0.5, math.inf: 0.001}


def adaptive_sharpness(
    loss: MeanLoss,
    params: Sequence[Tensor],
    *,
    rho: float | None = None,
    p: float = 2,
    scale: Tensor | None = None,
    num_steps: int = 20,
    generator: torch.Generator,
) -> SharpnessValue:
    """Return ``max L(w + e) - L(w)`` over ``||e / c||_p <= rho``, by ascent in ``u = e / c``.

    The first step, ``e = rho c^2 g / ||c g||_2`` or ``rho c sign(g)``, is that of adaptive SAM. The largest loss met
    counts, ``L(w)`` included: a lower bound of the maximum, never negative. At a minimum and p = 2 the maximum is near
    ``rho^2 / 2 lambda_max(C H C)``, see ``scaled_spectrum``.

    Args:
        loss: Mean loss over all batches of all ranks, ``n`` parameters. For the mean over batches of each one's own
            maximum, as Andriushchenko et al. measure it, pass this function to ``m_sharpness``.
        params: Its parameters, the same tensors in the same order; put back bit for bit, on an error too.
        rho: Radius in units of ``e / c``; None for 0.5 with p = 2 and 0.001 with p = inf.
        p: 2 or infinity.
        scale: ``c``, shape ``(n,)``; an entry of zero does not move. None for ``|w|``; Kwon's is ``weight_scale(params,
            eta=0.01, adapted=...)``; ones give the plain worst case, as SAM's.
        num_steps: Ascent steps, one gradient each; 20 as in the released code of Andriushchenko et al.
        generator: Source of the direction where the gradient is exactly zero; seeded alike on all ranks.

    Returns:
        In the unit of the loss, with the standard error over batches; NaN when the loss is not finite.

    Raises:
        ValueError: If ``rho`` or ``num_steps`` is not positive, ``p`` is neither 2 nor infinity, ``scale`` does not
            fit, or ``params`` are not those of the loss.

    References:
        Kwon et al. (2021), arXiv 2102.11600, definition 2. Andriushchenko et al. (2023), arXiv 2302.07011, ``S_max``
        of section 3. Frank and Wolfe (1956), NRLQ 3.

    Example:
        Halving one weight and doubling the other changes neither their product nor the value.

        >>> generator = torch.Generator().manual_seed(0)
        >>> for first, second in ((1.0, 4.0), (2.0, 2.0)):
        ...     w = torch.tensor([first, second], dtype=torch.float64, requires_grad=True)
        ...     loss = MeanLoss([w], [lambda w=w: w.prod() ** 2], [1.0])
        ...     print(round(adaptive_sharpness(loss, [w], rho=0.1, generator=generator).value, 6))
        5.028511
        5.028511
    """  # noqa: DOC502 - the calls raise it
    check_order(p)
    radius = _RHO[p] if rho is None else rho
    c = checked_scale(weight_scale(params) if scale is None else scale, loss)
    ascent = LinearExcursion(loss, params, "rho", radius, num_steps, forward=lambda u: c * u, adjoint=lambda g: c * g)

    def any_direction() -> Tensor:
        draw = torch.randn(loss.dim, generator=generator, device=generator.device, dtype=loss.dtype)
        return draw.to(loss.device) * (c > 0)

    with ascent.restored():
        if math.isfinite(ascent.base):
            climb(ascent, loss.dim, radius, p, num_steps, fallback=any_direction)
        return ascent.result(1.0)
