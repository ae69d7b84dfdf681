"""Tell from values of the loss whether a module averages or sums over its batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Reduction:
    """What a training loss does with the samples of a batch."""

    kind: str
    """`mean`, `sum`, `other` (for example a mean over tokens, or samples that see each other) or `unknown`."""
    deviation: float
    """Relative distance of the measured losses from the named law, without unit; nan when unknown."""
    num_losses: int
    """Evaluations of the loss that it took."""


def find_reduction(loss: Callable[[Sequence[int]], float], num_samples: int, *, rtol: float = 1e-3) -> Reduction:
    """Tell a mean over the batch from a sum.

    With per-sample losses l_i, the batch S, its halves A and B and the batch twice over, 2S:
    a mean has L(S) = (|A| L(A) + |B| L(B)) / |S| and L(2S) = L(S); a sum has L(S) = L(A) + L(B) and L(2S) = 2 L(S).

    Args:
        loss: Maps sample numbers in [0, num_samples), repeats allowed, to the training loss of those samples. Must give
            the same value when asked twice: no dropout, no batch statistics.
        num_samples: Size of the batch; below 2 nothing can be told.
        rtol: Largest relative deviation from a law that still counts as obeying it, without unit.

    Returns:
        The verdict, with its deviation from the law.

    Raises:
        ValueError: If rtol is not in (0, 0.2): a mean and a sum over two halves differ by a factor of two, so a
            larger tolerance could not tell them apart.
    """
    if not 0 < rtol < 0.2:
        raise ValueError(f"rtol must be above 0 and below 0.2, got {rtol!r}")
    if num_samples < 2:
        return Reduction("unknown", math.nan, 0)
    everyone = list(range(num_samples))
    half = num_samples // 2
    whole, first, second, doubled = (loss(part) for part in (everyone, everyone[:half], everyone[half:], everyone * 2))
    if not all(map(math.isfinite, (whole, first, second, doubled))) or whole == 0:
        return Reduction("unknown", math.nan, 4)
    averaged = (half * first + (num_samples - half) * second) / num_samples
    deviations = {
        "mean": max(abs(averaged - whole), abs(doubled - whole)) / abs(whole),
        "sum": max(abs(first + second - whole), abs(doubled - 2 * whole)) / abs(whole),
    }
    kind = min(deviations, key=lambda name: deviations[name])
    return Reduction(kind if deviations[kind] <= rtol else "other", deviations[kind], 4)
