"""Draw steps and seconds to a target against the batch size."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from lbtrain.study.critical import Critical
from lbtrain.study.drawing import COLOURS, THIN, legend, panel_title, stacked, with_bars
from lbtrain.study.estimates import digits
from lbtrain.study.scales import batch_axis, log_ticks
from lbtrain.study.targets import TARGETS, ToTarget

_PERFECT, _FIT, _NOISE = "perfect scaling (slope -1)", "fit, s_min (1 + b / batch)", "gradient noise scale"
# Regimes from the left: light enough for what is drawn upon them.
_REGIMES = (("perfect scaling", "#e5f3ec"), ("diminishing returns", "#fdf3dc"), ("no gain", "#f7e3e3"))


def draw_targets(title: str, lines: Sequence[ToTarget]) -> Figure:
    """Draw one panel for each optimizer and method; all share their axes.

    Args:
        title: Headline.
        lines: At least one; all of one metric.

    Returns:
        The figure.
    """
    fits, bands = any(line.fit for line in lines), any(line.noise for line in lines)
    labels = ["best rate of each batch size", _PERFECT]
    labels += [_FIT] if fits else []
    labels += [name for name, _ in _REGIMES] if fits else []
    labels += [_NOISE] if bands else []
    figure, below = stacked(len(lines), labels, title)
    entries: dict[str, Artist] = {}
    batches = [point.batch for line in lines for point in line.points]
    ends = min(batches) / 2**0.5, max(batches) * 2**0.5
    for look, (axes, line) in enumerate(zip(below, lines, strict=True)):
        entries |= _draw(axes, line, look, ends, labels[0])
        axes.set_ylabel(TARGETS[line.metric][2])
    values = [point.value.mean for line in lines for point in line.points]
    for axes in below:
        batch_axis(axes, batches)
        axes.set_xlim(ends)
        log_ticks(axes, narrow=max(values) < 30 * min(values))
        axes.set_ylim(min(values) / 2, max(values) * 2)
    below[-1].set_xlabel("global batch size")
    legend(figure, {label: entries[label] for label in labels if label in entries})
    return figure


def _draw(axes: Axes, line: ToTarget, look: int, ends: tuple[float, float], label: str) -> dict[str, Artist]:
    x, y = [point.batch for point in line.points], [point.value for point in line.points]
    along = np.geomspace(*ends, 64)
    entries: dict[str, Artist] = _regimes(axes, line.fit, ends) if line.fit else {}
    (entries[_PERFECT],) = axes.plot(along, y[0].mean * x[0] / along, color=THIN, linewidth=1, linestyle=":")
    name = line.name
    if line.fit:
        curve = line.fit.least * (1 + line.fit.batch.mean / along)
        (entries[_FIT],) = axes.plot(along, curve, color="black", linewidth=1.1, linestyle="--")
        b = line.fit.batch
        name += f"\ncritical batch {digits(b.mean, significant=2)}"
        if b.low is not None and b.high is not None:
            name += f" ({digits(b.low, significant=2)} to {digits(b.high, significant=2)})"
    if line.noise:
        low, high = (float(np.clip(edge, *ends)) for edge in line.noise)
        axes.axvspan(low, high, color=COLOURS[3], alpha=0.25, lw=0)
        for edge in {low, high}:
            axes.axvline(edge, color=COLOURS[3], linewidth=1.4)
        entries[_NOISE] = Patch(facecolor=COLOURS[3], alpha=0.5)
    entries[label] = with_bars(axes, x, y, look)
    panel_title(axes, name)
    return entries


def _regimes(axes: Axes, fit: Critical, ends: tuple[float, float]) -> dict[str, Artist]:
    first, last = fit.borders
    places = [ends[0], *(float(np.clip(border, *ends)) for border in (first, last)), ends[1]]
    for (left, right), (_, colour) in zip(pairwise(places), _REGIMES, strict=True):
        if right > left:
            axes.axvspan(left, right, color=colour, lw=0, zorder=0)
    return {name: Patch(facecolor=colour, edgecolor="#bbbbbb") for name, colour in _REGIMES}
