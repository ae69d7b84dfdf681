"""Draw spectral densities side by side."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, SymmetricalLogLocator

from lbtrain.study.drawing import COLOURS, MARKERS, legend, panel_title, stacked
from lbtrain.study.estimates import plain
from lbtrain.study.spectra import SpectraPanel

_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
_WIDE = 10.0  # from this ratio of the largest eigenvalues the smallest would be a needle on a linear axis
_DECADES = 1e-6  # below this share of the highest density there is nothing but the tails of the broadening


def draw_spectra(title: str, panels: Sequence[SpectraPanel]) -> Figure:
    """Draw one panel for each optimizer, rate and method; all share their axes.

    Args:
        title: Headline.
        panels: At least one.

    Returns:
        The figure.
    """
    batches = sorted({density.batch for panel in panels for density in panel.densities})
    labels = {batch: f"batch {plain(batch)}" for batch in batches}
    figure, below = stacked(len(panels), labels.values(), title, height=2.0)
    entries: dict[str, Artist] = {}
    peak = max(max(density.density) for panel in panels for density in panel.densities)
    for axes, panel in zip(below, panels, strict=True):
        if axes is not below[0]:
            axes.sharex(below[0])
        for density in panel.densities:
            look = batches.index(density.batch)
            shape: dict[str, Any] = {
                "color": COLOURS[look % len(COLOURS)],
                "linestyle": _DASHES[look % len(_DASHES)],
                "marker": MARKERS[look % len(MARKERS)],
                # Few, and at other places on each line.
                "markevery": (10 * (look + 1), 80),
            }
            seen = [(x, y) for x, y in zip(density.grid, density.density, strict=True) if y > 0]
            (line,) = axes.plot([x for x, _ in seen], [y for _, y in seen], markersize=4.5, linewidth=1.4, **shape)
            entries[labels[density.batch]] = line
        axes.set_yscale("log")
        axes.set_ylim(peak * _DECADES, peak * 3)
        axes.yaxis.set_major_locator(LogLocator(numticks=5))
        axes.yaxis.set_minor_locator(NullLocator())
        panel_title(axes, panel.title)
        axes.set_ylabel("density")
    _eigenvalue_axis(below[0], [d.lambda_max.mean for panel in panels for d in panel.densities if d.lambda_max])
    below[-1].set_xlabel("eigenvalue (loss per squared parameter)")
    legend(figure, {label: entries[label] for label in labels.values()})
    return figure


def _eigenvalue_axis(axes: Axes, tops: Sequence[float]) -> None:
    # Linear about 0 and logarithmic beyond the smallest of them where the largest eigenvalues lie far apart.
    low, high = min(tops, default=0.0), max(tops, default=0.0)
    if low > 0 and high > _WIDE * low:
        threshold = 10.0 ** math.floor(math.log10(low))
        axes.set_xscale("symlog", linthresh=threshold)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=threshold))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))
