"""Whether a loss is on its way down where the run ends, seen through the noise of its batches."""

import math
from collections.abc import Sequence
from itertools import accumulate
from statistics import fmean, median

from lbtrain.functional._robust import running_median
from lbtrain.functional.training_curve import Curve

# Part of the whole fall that the second half must have. A choice: of an exponential it has this where 4 % are to come,
# and that is its floor.
_WAY = 0.1


def falls_at_end(curve: Curve, errors: float) -> bool:
    """Return whether the loss falls over the second half of the way, in a line that stands out from its error.

    A line is fitted to the samples against the sum of the rates, in which warmup and decay do not bend it; it must fall
    by so many standard errors. It must be a tenth of
    the whole fall. The batch losses must not contradict: at half its slope or more, within one error.
    """
    steps, levels = curve.track
    ways = [0.0, *accumulate(curve.rates or [1.0] * curve.length)]
    places = [ways[min(step, len(ways) - 1)] for step in steps]
    half = 0.5 * (places[0] + places[-1])
    late = [(place, level) for place, level in zip(places, levels, strict=True) if place >= half]
    fitted = _line(late)
    if fitted is None or not fitted[0] < -errors * fitted[1]:
        return False
    if -fitted[0] * (places[-1] - half) < _WAY * (levels[0] - levels[-1]):
        return False
    batches = _line([(way, loss) for way, loss in zip(ways, curve.losses, strict=False) if way >= half])
    return len(curve.levels) <= 3 or batches is None or batches[0] <= 0.5 * fitted[0] + batches[1]


def is_noise(curve: Curve, noise: float) -> bool:
    """Return whether more than this share of a batch gradient's square is noise, in the second half's median."""
    seen = zip(curve.steps, curve.noises, strict=True) if curve.noises else ()
    shares = [v for step, v in seen if v is not None and math.isfinite(v) and 2 * step >= curve.length]
    return bool(shares) and median(shares) > noise


def has_risen(curve: Curve, factor: float) -> bool:
    """Return whether the loss came to this factor times its lowest level before, on the subset or in the batches."""
    return any(
        after >= factor * before > 0
        for levels in (curve.levels, running_median(curve.losses, 5))
        for before, after in _with_lowest(levels)
    )


def _with_lowest(levels: Sequence[float]) -> list[tuple[float, float]]:
    """Return each level but the first with the lowest one before it."""
    return list(zip(accumulate(levels, min), levels[1:], strict=False))


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """Return slope and standard error of a line by least squares; None for less than 3 places."""
    if len(points) < 3:
        return None
    middle, mean = fmean(x for x, _ in points), fmean(y for _, y in points)
    spread = math.fsum((x - middle) ** 2 for x, _ in points)
    if spread <= 0:
        return None
    slope = math.fsum((x - middle) * (y - mean) for x, y in points) / spread
    rest = math.fsum((y - mean - slope * (x - middle)) ** 2 for x, y in points)
    return slope, math.sqrt(rest / (len(points) - 2) / spread)
