"""Each batch's own sharpness, averaged: m-sharpness."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from lbtrain.functional.curvature_along import batch_sums, mean_of_batches
from lbtrain.functional.hvp import MeanLoss
from lbtrain.functional.results import SharpnessValue


def m_sharpness(
    loss: MeanLoss, params: Sequence[Tensor], measure: Callable[..., SharpnessValue], *, generator: torch.Generator
) -> SharpnessValue:
    """Return ``sum_b weight_b S(L_b)``, the mean over batches of a sharpness that each batch has alone.

    m is the size of a batch. For a measure that is a maximum this is at least the maximum of the mean, and larger for
    smaller m. Ranks work on their own batches and meet once per batch.

    Args:
        loss: Mean loss over all batches of all ranks. Its own counters are not touched.
        params: Its parameters, the same tensors in the same order; put back bit for bit.
        measure: Called with a loss of one batch, ``params`` and ``generator=``; for example ``sam_sharpness``, or
            ``functools.partial(adaptive_sharpness, rho=0.5)``.
        generator: Source of one seed, from which each batch gets a generator of its own; seeded alike on all ranks.

    Returns:
        In the unit of the measure, with the standard error over batches. The cost is in passes over all the data,
        rounded up.

    References:
        Foret et al. (2021), arXiv 2010.01412, section 4.1, for m-sharpness. Andriushchenko et al. (2023), arXiv
        2302.07011, for its use as a measure.

    Example:
        Two batches that pull to opposite sides: their mean is flat, each alone is not.

        >>> from lbtrain.functional.sharpness import sam_sharpness
        >>> w = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        >>> loss = MeanLoss([w], [lambda: 3 * w.sum(), lambda: -3 * w.sum()], [0.5, 0.5])
        >>> source = torch.Generator().manual_seed(0)
        >>> sam_sharpness(loss, [w], generator=source).value
        0.0
        >>> round(m_sharpness(loss, [w], sam_sharpness, generator=source).value, 6)
        0.15
    """
    # Ranks may hold different numbers of batches, and their generator must leave here in the same state.
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    wide = torch.zeros(0, dtype=torch.float32 if loss.device.type == "mps" else torch.float64, device=loss.device)
    sums, is_left, i = wide.new_zeros(8), True, 0
    while is_left:
        # A sum for each batch: there ranks learn that one of them failed, wants to stop or still has a batch.
        add = partial(_add_batch, loss, params, measure, torch.Generator(generator.device).manual_seed(seed + i), i)
        found = loss._ranks.sum(add, wide, 8)
        sums, is_left, i = sums + found, bool(found[-1]), i + 1
    rise = mean_of_batches(sums[:5])
    passes = [math.ceil(count / max(1, rise.num_batches)) for count in sums[5:7].tolist()]
    return SharpnessValue(rise.value, rise.stderr, *passes)


def _add_batch(
    loss: MeanLoss,
    params: Sequence[Tensor],
    measure: Callable[..., SharpnessValue],
    generator: torch.Generator,
    i: int,
    sums: Tensor,
) -> None:
    """Add what batch ``i`` of this rank, if there is one, gives: sums over batches, cost, and whether one is left."""
    if i < len(loss.losses):
        alone = MeanLoss(params, [loss.losses[i]], [1.0], graph_memory_bytes=loss.graph_memory_bytes)
        found = measure(alone, params, generator=generator)
        sums[:5] += batch_sums(sums.new_tensor([found.value]), sums.new_tensor([loss.weights[i]]))
        sums[5:] += sums.new_tensor([found.num_gradients, found.num_values, float(i + 1 < len(loss.losses))])
