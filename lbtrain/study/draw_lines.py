"""Draw metrics against the batch size, and the ranking of settings."""

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from lbtrain.study.drawing import (
    COLOURS,
    DPI,
    MARKERS,
    THIN,
    WIDTH,
    apart,
    headline,
    legend,
    panel_title,
    stacked,
    with_bars,
)
from lbtrain.study.estimates import Estimate
from lbtrain.study.ranges import Range
from lbtrain.study.scales import batch_axis, value_axis
from lbtrain.study.series import Line, Plot


def draw_plot(plot: Plot) -> Figure:
    """Draw a plot: its panels share their axes.

    Args:
        plot: Numbers with their words.

    Returns:
        The figure.
    """
    labels = {line.label for panel in plot.panels for line in panel.lines if line.label}
    figure, below = stacked(len(plot.panels), labels, plot.title)
    entries: dict[str, Line2D] = {}
    points = [point for panel in plot.panels for line in panel.lines for point in line.points]
    for axes, panel in zip(below, plot.panels, strict=True):
        if axes is not below[0]:
            axes.sharex(below[0])
            axes.sharey(below[0])
        if axes is not below[-1]:
            axes.tick_params(labelbottom=False)
        if panel.title != plot.title:
            panel_title(axes, panel.title)
        axes.set_ylabel(plot.unit)
        if plot.reference is not None:
            axes.axhline(plot.reference, color=THIN, linewidth=1, linestyle=":")
        for i, line in enumerate(panel.lines):
            entries |= _draw_line(axes, line, apart(i, len(panel.lines)))
    batch_axis(below[0], [point.batch for point in points])
    value_axis(below[0], plot.range)
    below[-1].set_xlabel("global batch size")
    legend(figure, {label: entry for label, entry in entries.items() if label})
    return figure


def draw_ranking(title: str, names: Sequence[str], values: Sequence[Estimate], metric: str, ends: Range) -> Figure:
    """Draw settings from the best to the worst.

    Args:
        title: Headline.
        names: Words of each setting.
        values: Its metric.
        metric: Words of the metric.
        ends: How far the axis of the metric reaches.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(WIDTH, 1.3 + 0.5 * len(names)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for place, value, name in zip(range(len(names), 0, -1), values, names, strict=True):
        axes.plot(value.mean, place, color=COLOURS[0], marker=MARKERS[0])
        if value.low is not None and value.high is not None:
            axes.plot([value.low, value.high], [place, place], color=COLOURS[0])
        # Above its point and from the left edge: long names need the whole width.
        text = textwrap.shorten(name, 46, placeholder=" ...")
        axes.text(0.01, place + 0.2, text, transform=axes.get_yaxis_transform(), fontsize=10.5, in_layout=False)
    axes.set_ylim(0.5, len(names) + 0.9)
    axes.yaxis.set_major_locator(NullLocator())
    if ends.log:
        axes.set_xscale("log")
    axes.set_xlim(ends.low, ends.high)
    axes.xaxis.set_major_locator(LogLocator(numticks=6) if ends.log else MaxNLocator(5))
    axes.set_xlabel(metric)
    headline(figure, title)
    return figure


def _draw_line(axes: Axes, line: Line, apart: float) -> dict[str, Line2D]:
    # With what the legend needs of it.
    measured = [(point.batch * apart, point.value) for point in line.points if point.value]
    places, values = [batch for batch, _ in measured], [value for _, value in measured]
    entry = {line.label: with_bars(axes, places, values, line.colour, line.dashed)}
    lost = [point.batch * apart for point in line.points if point.num_diverged]
    if lost:
        top = axes.get_xaxis_transform()
        colour = COLOURS[line.colour % len(COLOURS)]
        axes.plot(lost, [0.95] * len(lost), "x", color=colour, ms=9, mew=2.2, transform=top, clip_on=False)
        entry["diverged"] = Line2D([], [], color="#000000", marker="x", ls="none", ms=9, mew=2.2)
    return entry
