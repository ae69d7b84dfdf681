"""Axes that people read: batch sizes in powers of 2, values linear or logarithmic."""

from collections.abc import Iterable

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from lbtrain.study.estimates import plain
from lbtrain.study.ranges import Range


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


def value_axis(axes: Axes, ends: Range) -> None:
    """Set the vertical axis.

    Args:
        axes: Where.
        ends: How far it reaches.
    """
    if ends.log:
        log_ticks(axes, narrow=ends.high < 450 * ends.low)  # less than two decades, and the room around the values
    axes.set_ylim(ends.low, ends.high)


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
