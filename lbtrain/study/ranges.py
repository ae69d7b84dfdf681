"""How far an axis reaches: the means first, then error bars as far as they leave the means legible."""

from collections.abc import Sequence
from dataclasses import dataclass

from lbtrain.study.estimates import Estimate

# Two seeds have intervals of 12.7 standard errors: an axis that held them all would show nothing else.
CUT = "Error bars that end outside of the figure are cut off at its edge"
BANDS_CUT = CUT.replace("Error bars", "Bands")


@dataclass(frozen=True)
class Range:
    """The ends of an axis.

    Args:
        low: Lower end.
        high: Upper end.
        log: Whether it is logarithmic.
    """

    low: float
    high: float
    log: bool = False

    def cuts(self, values: Sequence[Estimate]) -> bool:
        """Tell whether an error bar ends outside.

        Args:
            values: What is drawn.

        Returns:
            Whether one does.
        """
        return any(
            e.low is not None and e.high is not None and (e.low < self.low or e.high > self.high) for e in values
        )


def value_range(
    values: Sequence[Estimate],
    reference: float = 0.0,
    room: float = 2.5,
    bounds: tuple[float, float] | None = None,
) -> Range:
    """Choose an axis for estimates: logarithmic where positive means span more than a factor of 5.

    A linear one gives the error bars room up to the span of the means, above and below, so that the means keep a third
    of it; where all means are equal, up to the shortest bar.

    Args:
        values: What is drawn; at least one.
        reference: Height of a line to keep in view on a linear axis.
        room: Factor left above the highest mean on a logarithmic axis, for the marks of diverged runs.
        bounds: Lowest and highest value that the metric can have; the axis ends there, but for the width of a marker.

    Returns:
        The ends.
    """
    low, high = min(e.mean for e in values), max(e.mean for e in values)
    if low > 0 and high > 5 * low:
        return Range(low / 1.8, high * room, log=True)
    span, (below, above) = high - low, _reach(values, low, high)
    if low > 0.5 * high > 0 and reference == 0:
        # Values that lie close together, such as accuracies, are not read from zero.
        ends = low - 0.15 * span - 0.002 * high - below, high + 0.25 * span + 0.002 * high + above
    elif low < 0:
        span = span or -low
        ends = low - 0.15 * span - below, high + 0.25 * span + above
    else:
        ends = 0.0, max(high + above, reference) * 1.2 or 1.0
    return Range(*_within(ends, bounds))


def _reach(values: Sequence[Estimate], low: float, high: float) -> tuple[float, float]:
    """Return how far the axis goes beyond the means for the error bars, below and above."""
    bars = [(e.mean, e.low, e.high) for e in values if e.low is not None and e.high is not None]
    if not bars:
        return 0.0, 0.0
    most = high - low or min(top - mean for mean, _, top in bars)
    below, above = low - min(bottom for _, bottom, _ in bars), max(top for _, _, top in bars) - high
    return min(max(below, 0.0), most), min(max(above, 0.0), most)


def _within(ends: tuple[float, float], bounds: tuple[float, float] | None) -> tuple[float, float]:
    if bounds is None:
        return ends
    # A marker at the bound is seen whole.
    margin = 0.04 * (min(ends[1], bounds[1]) - max(ends[0], bounds[0]))
    return max(ends[0], bounds[0] - margin), min(ends[1], bounds[1] + margin)
