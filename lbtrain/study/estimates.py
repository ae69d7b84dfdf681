"""Means over seeds with their error bars, and numbers in words."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev

from scipy.special import stdtrit


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` seeds; with one seed there is no spread, and none is invented.

    Args:
        mean: Mean (geometric, for a ratio), unit of the values.
        n: Number of seeds.
        std: Standard deviation over the seeds, same unit; None with one seed. For a ratio: of its logarithm.
        low: Lower end of the 95 % interval of the mean; None with one seed.
        high: Upper end.
    """

    mean: float
    n: int
    std: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Change:
    """A quantity before and after one setting changed, over the seeds that both sides have.

    Args:
        before: Geometric mean before.
        after: Geometric mean after; `after / before` is the ratio's mean exactly.
        ratio: after / before, paired by seed.
    """

    before: float
    after: float
    ratio: Estimate


def mean_over_seeds(values: Sequence[float]) -> Estimate:
    """Average over seeds: `mean +- t(0.975, n - 1) * std / sqrt(n)`.

    Args:
        values: One number for each seed; at least one, all finite.

    Returns:
        Mean, standard deviation and 95 % interval (Student's t), unit of the values.

    Raises:
        ValueError: If there is no value.
    """
    n = len(values)
    if n == 0:
        raise ValueError("values must hold at least one number, got none: leave out the setting that has no runs")
    # fsum is exact, so the order of the runs cannot change a digit.
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, 1)
    std = stdev(values)  # exact as well: equal values have a spread of 0 and not of a rounding error
    half = float(stdtrit(n - 1, 0.975)) * std / math.sqrt(n)
    return Estimate(mean, n, std, mean - half, mean + half)


def ratio(before: Mapping[object, float], after: Mapping[object, float]) -> Change | None:
    """Compare two settings seed by seed: the geometric mean of `after / before`.

    Args:
        before: Seed to value, before.
        after: Seed to value, after, same unit.

    Returns:
        The change, or None when no seed has a positive value on both sides.
    """
    seeds = [seed for seed in before if seed in after and before[seed] > 0 and after[seed] > 0]
    if not seeds:
        return None
    old, new = ([math.log(side[seed]) for seed in seeds] for side in (before, after))
    logs = mean_over_seeds([b - a for a, b in zip(old, new, strict=True)])
    level = math.exp(math.fsum(old) / len(seeds))
    factor = math.exp(logs.mean)
    if logs.low is None or logs.high is None:
        return Change(level, level * factor, Estimate(factor, 1))
    bounds = math.exp(logs.low), math.exp(logs.high)
    return Change(level, level * factor, Estimate(factor, len(seeds), logs.std, *bounds))


def difference(before: Mapping[object, float], after: Mapping[object, float]) -> Estimate | None:
    """Compare two settings seed by seed: the mean of `after - before`.

    Args:
        before: Seed to value, before.
        after: Seed to value, after, same unit.

    Returns:
        The mean difference, unit of the values, or None when no seed is on both sides.
    """
    seeds = [seed for seed in before if seed in after]
    return mean_over_seeds([after[seed] - before[seed] for seed in seeds]) if seeds else None


def digits(value: float, signed: bool = False, significant: int = 3) -> str:
    """Write a number with three significant digits, without an exponent where people read none.

    Args:
        value: Any float.
        signed: Whether a positive number carries its sign.
        significant: Number of significant digits, when not three.

    Returns:
        The text, such as "0.0712", "14.3" or "1024".
    """
    if not math.isfinite(value) or value == 0:
        return str(value) if value else "0"
    sign = "+" if signed else ""
    power = math.floor(math.log10(abs(float(f"{value:.{significant - 1}e}"))))
    places = max(0, significant - 1 - power)
    return f"{value:{sign}.{places}f}" if -5 < power < 6 else f"{value:{sign}.{significant - 1}e}"


def plain(value: float) -> str:
    """Write a number that a person has chosen, such as a batch size, as they would.

    Args:
        value: Any float.

    Returns:
        Such as "16" or "0.05".
    """
    return str(int(value)) if math.isfinite(value) and value == int(value) else f"{value:g}"


def interval(estimate: Estimate, inverse: bool = False, brief: bool = False) -> str:
    """Write the error bar of an estimate.

    Args:
        estimate: The estimate.
        inverse: Whether the text speaks of `1 / estimate` (a shrinking ratio).
        brief: Whether the sentence says elsewhere what the numbers are.

    Returns:
        "95 % interval a to b over n seeds", or briefly "a to b"; an empty text with one seed.
    """
    if estimate.low is None or estimate.high is None:
        return ""
    low, high = (1 / estimate.high, 1 / estimate.low) if inverse else (estimate.low, estimate.high)
    span = f"{digits(low)} to {digits(high)}"
    return span if brief else f"95 % interval {span} over {estimate.n} seeds"
