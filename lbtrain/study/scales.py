"""Axes that people read: batch sizes in powers of 2, values linear or logarithmic."""

from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from lbtrain.study.estimates import plain


def batch_axis(axes: Axes, batches: Iterable[float]) -> None:
    """Make the horizontal axis one of batch sizes: powers of 2, a tick at each size.

    Args:
        axes: Where.
        batches: The sizes, samples.
    """
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted(set(batches))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))


def value_axis(axes: Axes, values: Sequence[float], reference: float = 0.0, room: float = 2.5) -> None:
    """Choose the vertical axis: logarithmic where positive values span more than a factor of 5.

    Args:
        axes: Where.
        values: What is drawn, without the ends of its error bars: they may not stretch the axis beyond reading.
        reference: Height of a line to keep in view on a linear axis.
        room: Factor left above the highest value on a logarithmic axis, for the marks of diverged runs.
    """
    low, high = min(values), max(values)
    if low > 0 and high > 5 * low:
        log_ticks(axes, narrow=high < 100 * low)
        axes.set_ylim(low / 1.8, high * room)
    elif low > 0.5 * high > 0 and reference == 0:
        # Values that lie close together, such as accuracies, are not read from zero.
        axes.set_ylim(low - 0.15 * (high - low) - 0.002 * high, high + 0.25 * (high - low) + 0.002 * high)
    elif low < 0:
        span = high - low or -low
        axes.set_ylim(low - 0.15 * span, high + 0.25 * span)
    else:
        axes.set_ylim(0, max(high, reference) * 1.2 or None)


def log_ticks(axes: Axes, narrow: bool) -> None:
    """Make the vertical axis logarithmic, with ticks that people read.

    Args:
        axes: Where.
        narrow: Whether it spans less than two decades.
    """
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
