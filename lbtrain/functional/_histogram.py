"""Histograms that many batches fill: a fixed number of bins, whose range doubles where a value lies outside."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# A choice: fine enough to see the ends of a range apart from its middle, few enough to keep for each sampled step.
BINS = 40
# Values counted of one tensor. A choice: a bin that holds 1 % is then known within a sixth of itself, and counting
# takes less time than a layer does.
_MOST_VALUES = 2**12


@dataclass(frozen=True)
class Histogram:
    """How often values fall between edges.

    Attributes:
        edges: Ascending, one more than the counts, in the unit of the values.
        counts: Finite values in each bin; the last bin holds its upper edge too.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]


def histogram(
    values: Tensor, before: Histogram | None = None, *, limits: tuple[float, float] | None = None
) -> Histogram:
    """Count values in 40 bins of one width; of more than 4,096 values at most so many, spread evenly over all.

    The first call fixes the range: the limits, or else from the smallest to the largest value. A later value outside
    doubles the width of the bins, ``[l, h]`` to ``[l, 2 h - l]`` or ``[2 l - h, h]``, as often as needed; what was
    counted stays counted.

    Args:
        values: Any shape; NaN and infinite ones are left out.
        before: What earlier batches gave.
        limits: The range of the first call, where it is known.

    Returns:
        The counts of all calls together.
    """
    stride = max(1, math.ceil(values.numel() / _MOST_VALUES))
    while math.gcd(stride, values.numel()) > 1 < stride:  # else it would meet the same units again and again
        stride += 1
    part = values.detach().flatten()[::stride].float()
    found = _ends(part)
    if found is None:
        part = part[part.isfinite()]
        found = _ends(part)
    if found is None:  # not one value is finite
        return before or _empty(limits or (0.0, 1.0))
    if before is None:
        before = _empty(limits or found)
    widened = _widened(before, *found)
    counts = torch.histc(part, len(widened.counts), widened.edges[0], widened.edges[-1]).long().tolist()
    return Histogram(widened.edges, tuple(a + b for a, b in zip(widened.counts, counts, strict=True)))


def _ends(values: Tensor) -> tuple[float, float] | None:
    """Return the smallest and the largest value; None if there is none, or one is not finite."""
    if not values.numel():
        return None
    low, high = torch.stack(values.aminmax()).tolist()
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def _empty(limits: tuple[float, float]) -> Histogram:
    low, high = limits
    if not high - low > 1e-6 * max(abs(low), abs(high)):  # one value, which edges in float32 must hold apart
        reach = 0.5 * max(abs(low), abs(high)) or 0.5
        low, high = low - reach, high + reach
    return Histogram(_edges(low, high), (0,) * BINS)


def _edges(low: float, high: float) -> tuple[float, ...]:
    return tuple(low + (high - low) * i / BINS for i in range(BINS + 1))


def _widened(kept: Histogram, low: float, high: float) -> Histogram:
    """Return the counts in bins that reach from `low` to `high` at least."""
    start, end, counts = kept.edges[0], kept.edges[-1], kept.counts
    if start <= low and high <= end:
        return kept
    while low < start or high > end:
        pairs = tuple(counts[i] + counts[i + 1] for i in range(0, BINS, 2))
        spare = (0,) * (BINS // 2)
        if high > end:
            end, counts = 2 * end - start, pairs + spare
        else:
            start, counts = 2 * start - end, spare + pairs
    return Histogram(_edges(start, end), counts)
