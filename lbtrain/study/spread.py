"""The spread of final losses over seeds against the runs' own noise: a test, its correction for many, and restarts."""

import math
from collections.abc import Sequence
from statistics import variance

from scipy.special import fdtrc

from lbtrain.study.endings import Ending

CERTAIN = 0.95  # wanted probability that one of the restarts reaches the best level; the usual one of an interval


def spread_chance(endings: Sequence[Ending]) -> float:
    """Test whether final losses differ by more than noise: `F = variance(losses) / sum(d_i s_i^2) * sum(d_i)`.

    Under the null hypothesis that every run ends at the same level plus noise of the size that it had about its own
    trend, F has k - 1 and sum(d_i) degrees of freedom. Unlike a chi-square test it knows that the noise is itself
    estimated, from a few values of each run.

    Args:
        endings: Of k seeds, at least 2.

    Returns:
        Chance of so large a spread, 0 to 1.
    """
    noise, freedom = pooled_noise(endings)
    spread = variance([one.loss for one in endings])
    if noise == 0:
        return 0.0 if spread else 1.0
    return float(fdtrc(len(endings) - 1, freedom, spread / noise**2))


def pooled_noise(endings: Sequence[Ending]) -> tuple[float, int]:
    """Join the noise of several runs: `sqrt(sum(d_i s_i^2) / sum(d_i))`.

    Args:
        endings: At least one.

    Returns:
        Standard deviation, unit of the loss, and its degrees of freedom.
    """
    freedom = sum(one.freedom for one in endings)
    return math.sqrt(math.fsum(one.freedom * one.noise**2 for one in endings) / freedom), freedom


def holm(chances: Sequence[float], tests: int) -> list[float]:
    """Adjust chances for the number of tests: step down, `max over the smaller ones of (tests - rank) * p`.

    Args:
        chances: One for each test that was made.
        tests: How many there are, those that were not worth making among them.

    Returns:
        The adjusted chances, in the same order; to reject where they are at most a level keeps the chance of any
        false alarm below that level.

    References:
        Holm (1979), "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6(2).
    """
    adjusted, highest = [0.0] * len(chances), 0.0
    for rank, place in enumerate(sorted(range(len(chances)), key=chances.__getitem__)):
        highest = max(highest, min(1.0, (tests - rank) * chances[place]))
        adjusted[place] = highest
    return adjusted


def restarts(share: float) -> int:
    """Count the starts of which one reaches the best level with a probability of 95 %: `ln 0.05 / ln(1 - share)`.

    Args:
        share: Of the seeds that reached it, above 0.

    Returns:
        The number, rounded up.
    """
    return 1 if share >= CERTAIN else math.ceil(math.log(1 - CERTAIN) / math.log(1 - share))
