"""The mean rise of the loss under random perturbations of the weights, plain or rescaled with the weights."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lbtrain.functional._excursion import mean_and_stderr
from lbtrain.functional._linear_excursion import LinearExcursion
from lbtrain.functional.hvp import MeanLoss
from lbtrain.functional.sharpness_results import AverageSharpness
from lbtrain.functional.weight_scale import checked_scale, weight_scale


def average_sharpness(
    loss: MeanLoss,
    params: Sequence[Tensor],
    *,
    rho: float = 0.05,
    p: float = 2,
    scale: Tensor | None = None,
    num_pairs: int = 10,
    generator: torch.Generator,
) -> AverageSharpness:
    """Return ``E L(w + d) - L(w)`` with ``d_i = rho c_i x_i``, ``x_i`` standard normal (p = 2) or uniform in [-1, 1].

    Drawn in pairs ``w + d``, ``w - d``, so that odd orders of the loss cancel; near the weights the value is
    ``rho^2 / 2 sum_i c_i^2 H_ii`` for p = 2 and a third of it for p = inf. The mean over batches of this measure is the
    measure itself, whatever their size. It grows with the number of parameters at a fixed ``rho``.

    Args:
        loss: Mean loss over all batches of all ranks, ``n`` parameters.
        params: Its parameters, the same tensors in the same order; put back bit for bit, on an error too.
        rho: Standard deviation (p = 2) or half width (p = inf) per unit of ``scale``. 0.05 is the smallest of the
            released runs of the paper for a ResNet-18.
        p: 2 or infinity.
        scale: ``c``, shape ``(n,)``; None for 1 everywhere.
        num_pairs: Pairs of draws, two values of the mean loss each; 10 make the 20 draws of the released runs.
        generator: Source of the draws; seeded alike on all ranks.

    Returns:
        In the unit of the loss, with standard errors over draws and over batches; not finite when a loss is not.

    Raises:
        ValueError: If ``rho`` or ``num_pairs`` is not positive, ``p`` is neither 2 nor infinity, ``scale`` does not
            fit, or ``params`` are not those of the loss.

    References:
        Andriushchenko et al. (2023), arXiv 2302.07011, ``S_avg`` of section 3.

    Example:
        For a quadratic the expected value is ``rho^2 / 2`` times the trace of the Hessian, here 0.05.

        >>> w = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        >>> loss = MeanLoss([w], [lambda: 4 * w[0] ** 2 + w[1] ** 2], [1.0])
        >>> found = average_sharpness(loss, [w], rho=0.1, num_pairs=400, generator=torch.Generator().manual_seed(0))
        >>> abs(found.value - 0.05) < 4 * found.stderr, found.num_pairs, found.num_values
        (True, 400, 801)
    """
    check_order(p)
    if num_pairs < 1:
        raise ValueError(f"num_pairs must be at least 1, got {num_pairs}; 2 or more give a standard error")
    before = loss.num_values
    c = torch.ones(1, dtype=loss.dtype, device=loss.device) if scale is None else checked_scale(scale, loss)
    walk = LinearExcursion(
        loss, params, "rho", rho, num_pairs, forward=lambda u: rho * c * u, adjoint=lambda g: rho * c * g
    )
    with walk.restored():
        rises = [_pair(walk, p, generator) for _ in range(num_pairs)] if math.isfinite(walk.base) else []
    if not rises:
        return AverageSharpness(math.nan, math.nan, math.nan, 0, loss.num_values - before)
    means = torch.tensor([mean for mean, _ in rises], dtype=torch.float64)
    stderr = float(means.std()) / math.sqrt(num_pairs) if num_pairs > 1 else math.nan
    batch_stderr = mean_and_stderr(loss, torch.stack([rise for _, rise in rises]).mean(dim=0))[1]
    return AverageSharpness(float(means.mean()), stderr, batch_stderr, num_pairs, loss.num_values - before)


def adaptive_average_sharpness(
    loss: MeanLoss,
    params: Sequence[Tensor],
    *,
    rho: float = 0.1,
    p: float = 2,
    num_pairs: int = 10,
    generator: torch.Generator,
) -> AverageSharpness:
    """Return the average sharpness with ``c = |w|``, blind to rescalings that leave the function of a ReLU net alone.

    Args:
        loss: Mean loss over all batches of all ranks.
        params: Its parameters, the same tensors in the same order; put back bit for bit, on an error too.
        rho: Relative size of the perturbation, without unit. 0.1 was used in the paper's released runs of both networks
            and both ``p``.
        p: 2 or infinity.
        num_pairs: Pairs of draws.
        generator: Source of the draws; seeded alike on all ranks.

    Returns:
        What ``average_sharpness`` returns.

    References:
        Andriushchenko et al. (2023), arXiv 2302.07011, ``S_avg`` of section 3.

    Example:
        >>> w = torch.tensor([2.0, 0.0], dtype=torch.float64, requires_grad=True)
        >>> loss = MeanLoss([w], [lambda: (w**2).sum()], [1.0])
        >>> source = torch.Generator().manual_seed(0)
        >>> found = adaptive_average_sharpness(loss, [w], num_pairs=400, generator=source)
        >>> abs(found.value - 0.1**2 * 2.0**2) < 4 * found.stderr
        True
    """
    scale = weight_scale(params)
    return average_sharpness(loss, params, rho=rho, p=p, scale=scale, num_pairs=num_pairs, generator=generator)


def check_order(p: float) -> None:
    """Check that the order of the norm is one that has a measure.

    Args:
        p: Order.

    Raises:
        ValueError: If ``p`` is neither 2 nor infinity.
    """
    if p not in {2, math.inf}:
        raise ValueError(f"p must be 2 or infinity, got {p}; pass 2 or math.inf")


def _pair(walk: LinearExcursion, p: float, generator: torch.Generator) -> tuple[float, Tensor]:
    """Return the mean rise over one pair of opposite draws: of all batches, and of each local one, ``(B,)``."""
    draw = torch.randn if p == 2 else torch.rand
    x = draw(walk.loss.dim, generator=generator, device=generator.device, dtype=walk.loss.dtype).to(walk.loss.device)
    x = x if p == 2 else 2 * x - 1
    rise = (walk.batch_values(x) + walk.batch_values(-x)) / 2 - walk.base_values
    return walk.loss.mean_of(rise), rise  # summed at each pair: there ranks learn that one of them failed or stops
