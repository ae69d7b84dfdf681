"""Draw training curves, one panel for each batch size."""

from collections.abc import Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lbtrain.study.axes import words
from lbtrain.study.curves import CurvePanel, curves_range
from lbtrain.study.drawing import COLOURS, MARKERS, legend, panel_title, stacked
from lbtrain.study.estimates import plain
from lbtrain.study.scales import value_axis

_DASHES = ("-", "--", "-.", ":")


def draw_curves(title: str, panels: Sequence[CurvePanel]) -> Figure:
    """Draw the mean over the seeds, and the 95 % interval as a band.

    Args:
        title: Headline.
        panels: At least one; all of one metric.

    Returns:
        The figure; curves that coincide are drawn upon each other, wide below narrow.
    """
    labels = list(dict.fromkeys(curve.label for panel in panels for curve in panel.curves))
    figure, below = stacked(len(panels), labels, title, height=2.1)
    entries: dict[str, Artist] = {}
    for axes, panel in zip(below, panels, strict=True):
        if axes is not below[0]:
            axes.sharex(below[0])
            axes.sharey(below[0])
        for curve in panel.curves:
            look, points = labels.index(curve.label), curve.points
            x, y = list(points), list(points.values())
            shape: dict[str, Any] = {
                "color": COLOURS[look % len(COLOURS)],
                "linestyle": _DASHES[look % len(_DASHES)],
                "marker": MARKERS[look % len(MARKERS)],
                "markevery": (look * max(1, len(x) // 16), max(1, len(x) // 4)),
                # So that all of those that coincide are seen.
                "linewidth": 1.2 + 0.9 * (len(labels) - 1 - look) if len(labels) <= 4 else 1.4,
                "markersize": 4.5,
            }
            (entries[curve.label],) = axes.plot(x, [e.mean for e in y], **shape)
            low, high = ([e.mean if e.low is None else getattr(e, end) for e in y] for end in ("low", "high"))
            axes.fill_between(x, low, high, color=COLOURS[look % len(COLOURS)], alpha=0.15, linewidth=0)
        if panel.batch is not None:
            panel_title(axes, f"batch {plain(panel.batch)}")
        axes.set_ylabel(words(panel.metric))
    value_axis(below[0], curves_range(panels))
    below[0].xaxis.set_major_locator(MaxNLocator(6, integer=True))
    below[-1].set_xlabel("epoch")
    legend(figure, entries)
    return figure
