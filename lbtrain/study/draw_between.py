"""Draw loss and accuracy on the line between two solutions."""

from collections.abc import Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lbtrain.study.between import Between
from lbtrain.study.drawing import COLOURS, MARKERS, THIN, legend, panel_title, stacked
from lbtrain.study.scales import value_axis

_LOOKS = {"train": ("-", 0), "test": ("--", 1)}


def draw_between(title: str, lines: Sequence[Between]) -> Figure:
    """Draw a panel of the loss and one of the accuracy for each network.

    Args:
        title: Headline.
        lines: At least one.

    Returns:
        The figure; the band is the 95 % interval over the seeds.
    """
    figure, below = stacked(2 * len(lines), _LOOKS, title, height=2.0)
    entries: dict[str, Artist] = {}
    for i, line in enumerate(lines):
        top, bottom = below[2 * i : 2 * i + 2]
        entries |= _draw(top, line, "loss")
        _draw(bottom, line, "acc")
        bottom.sharex(top)
        top.tick_params(labelbottom=False)
        panel_title(top, f"{line.network}\n0: {line.ends[0]}, 1: {line.ends[1]}")
        top.set_ylabel("loss")
        bottom.set_ylabel("accuracy")
        for axes, kind in ((top, "loss"), (bottom, "acc")):
            ends = line.range(kind)
            if ends is not None:
                value_axis(axes, ends)
    below[-1].set_xlabel("place on the line")
    legend(figure, entries)
    return figure


def _draw(axes: Axes, line: Between, kind: str) -> dict[str, Artist]:
    entries: dict[str, Artist] = {}
    for end in (0, 1):
        axes.axvline(end, color=THIN, linewidth=1, linestyle=":")
    for stage, (dash, look) in _LOOKS.items():
        known = [(a, e) for a, e in zip(line.alpha, line.curves[f"{stage}_{kind}"], strict=True) if e]
        x = [a for a, _ in known]
        shape: dict[str, Any] = {
            "color": COLOURS[look],
            "linestyle": dash,
            "marker": MARKERS[look],
            "markersize": 4.5,
            "markevery": 3,
        }
        (entries[stage],) = axes.plot(x, [e.mean for _, e in known], **shape)
        low = [e.mean if e.low is None else e.low for _, e in known]
        high = [e.mean if e.high is None else e.high for _, e in known]
        axes.fill_between(x, low, high, color=COLOURS[look], alpha=0.18, linewidth=0)
    return entries
