"""Each batch's own sharpness, averaged: m-sharpness."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lbtrain.functional._excursion import mean_and_stderr
from lbtrain.functional.hvp import MeanLoss
from lbtrain.functional.results import SharpnessValue


def m_sharpness(
    loss: MeanLoss, params: Sequence[Tensor], measure: Callable[..., SharpnessValue], *, generator: torch.Generator
) -> SharpnessValue:
    """Return ``sum_b weight_b S(L_b)``, the mean over batches of a sharpness that each batch has alone.

    m is the size of a batch. For a measure that is a maximum this is at least the maximum of the mean, and larger for
    smaller m. Ranks work on their own batches and meet once, at the end.

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
    """
    # Ranks may hold different numbers of batches, and their generator must leave here in the same state.
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    found = []
    for i, batch_loss in enumerate(loss.losses):
        alone = MeanLoss(params, [batch_loss], [1.0], graph_memory_bytes=loss.graph_memory_bytes)
        found.append(measure(alone, params, generator=torch.Generator(generator.device).manual_seed(seed + i)))
    wide = torch.float32 if loss.device.type == "mps" else torch.float64
    table = torch.tensor([(f.value, f.num_gradients, f.num_values, 1.0) for f in found], dtype=wide, device=loss.device)
    value, stderr = mean_and_stderr(loss, table.reshape(-1, 4)[:, 0])
    gradients, values, batches = loss.total(table.reshape(-1, 4)[:, 1:].sum(dim=0)).tolist()
    passes = [math.ceil(count / max(1.0, batches)) for count in (gradients, values)]
    return SharpnessValue(value, stderr, *passes)
