"""Numbers of a noisy sequence that a few outliers do not move."""

import itertools
import math
from collections.abc import Sequence
from statistics import median


def quantile(values: Sequence[float], q: float) -> float:
    """Return the q-quantile of at least one value, interpolated between the two nearest."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    # Equal neighbours first: between two infinities there is nothing to interpolate.
    if ordered[below] == ordered[above]:
        return ordered[below]
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def running_median(values: Sequence[float], window: int) -> list[float]:
    """Return the median of the window around each value, cut at the ends so that it stays centred."""
    half = window // 2
    last = len(values) - 1
    reach = (min(half, i, last - i) for i in range(len(values)))
    return [median(values[i - r : i + r + 1]) for i, r in enumerate(reach)]


def scatter(values: Sequence[float], window: int = 5) -> float:
    """Return the 0.9-quantile of the distances from the running median, 0 for no values."""
    if not values:
        return 0.0
    middle = running_median(values, window)
    return quantile([abs(v - m) for v, m in zip(values, middle, strict=True)], 0.9)


def blocks(values: Sequence[float], count: int) -> list[tuple[int, Sequence[float]]]:
    """Return the parts of a sequence cut into about equally long ones, each with its first index."""
    count = min(count, len(values))
    edges = [round(i * len(values) / count) for i in range(count + 1)] if count else []
    return [(a, values[a:b]) for a, b in itertools.pairwise(edges)]


def two_digits(value: float) -> float:
    """Return the value rounded down to two significant digits, as a rate that is typed by hand."""
    if value <= 0 or not math.isfinite(value):
        return value
    digits = 1 - math.floor(math.log10(value))
    # The shift by a part in 10^9 keeps 0.02 from becoming 0.019 by the rounding of the product.
    return round(math.floor(value * 10.0**digits * (1 + 1e-9)) / 10.0**digits, max(digits, 0))
