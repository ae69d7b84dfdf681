"""Draw heat maps of learning rate x batch size."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, LogFormatterSciNotation, LogLocator, NullFormatter

from lbtrain.study.axes import higher_is_better, words
from lbtrain.study.drawing import legend, panel_title, stacked
from lbtrain.study.estimates import plain
from lbtrain.study.grid import Grid, Square, told

_BEST, _FIT, _LOST = "best swept rate", "fit of the best rates", "diverged"
_COLOURS = "cividis"  # of equal steps to the eye, with every colour vision (Nunez et al. 2018); bright is good
_NO_VALUE = "#eeeeee"


def draw_grids(title: str, grids: Sequence[Grid]) -> Figure:
    """Draw heat maps below each other, all on one scale of colours.

    Args:
        title: Headline.
        grids: At least one; all of one metric.

    Returns:
        The figure.
    """
    metric = grids[0].metric
    fitted, lost = any(g.exponent for g in grids), any(s.num_diverged for g in grids for s in g.squares)
    labels = [_BEST, *([_FIT] if fitted else []), *([_LOST] if lost else [])]
    figure, below = stacked(len(grids), [*labels, _BEST], title, height=2.7)
    norm = _norm([square.value.mean for grid in grids for square in grid.squares if square.value])
    shades = _COLOURS if higher_is_better(metric) else f"{_COLOURS}_r"
    entries: dict[str, Line2D] = {}
    for axes, grid in zip(below, grids, strict=True):
        patches = _heat(axes, grid, norm, shades)
        entries |= _marks(axes, grid)
        panel_title(axes, f"{grid.name}\n{told(grid.exponent)}")
        axes.set_ylabel("learning rate")
    below[-1].set_xlabel("global batch size")
    bar = figure.colorbar(patches, ax=below, location="top", label=words(metric), aspect=24, pad=0.01)
    if isinstance(norm, LogNorm):
        bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        bar.ax.xaxis.set_minor_formatter(NullFormatter())
    legend(figure, {label: entries[label] for label in labels if label in entries})
    return figure


def _norm(values: list[float]) -> Normalize:
    low, high = min(values), max(values)
    if low > 0 and high > 5 * low:
        return LogNorm(low, high)
    return Normalize(low, high if high > low else low + 1.0)


def _heat(axes: Axes, grid: Grid, norm: Normalize, shades: str) -> PatchCollection:
    batches = sorted({square.batch for square in grid.squares})
    rates = sorted({square.rate for square in grid.squares})
    across = _edges(batches)
    rectangles, values = [], []
    for batch in batches:
        column = [square for square in grid.squares if square.batch == batch]
        along = _edges([square.rate for square in column])
        for square in column:
            (left, right), (low, high) = across[batch], along[square.rate]
            rectangles.append(Rectangle((left, low), right - left, high - low))
            values.append(math.nan if square.value is None or _is_lost(square) else square.value.mean)
    colours = colormaps[shades].with_extremes(bad=_NO_VALUE)
    drawn = PatchCollection(rectangles, cmap=colours, norm=norm, edgecolor="white", linewidth=0.6)
    drawn.set_array(np.ma.masked_invalid(values))
    axes.add_collection(drawn)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlim(across[batches[0]][0], across[batches[-1]][1])
    axes.set_ylim(min(rates) / _half(rates), max(rates) * _half(rates))
    axes.xaxis.set_major_locator(FixedLocator(batches))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    axes.minorticks_off()
    decades = math.log10(max(rates) / min(rates))
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 2 else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(
        LogFormatterSciNotation() if min(rates) < 1e-4 else FuncFormatter(lambda value, _: f"{value:g}")
    )
    axes.grid(visible=False)
    return drawn


def _marks(axes: Axes, grid: Grid) -> dict[str, Line2D]:
    (best,) = axes.plot(
        list(grid.best), list(grid.best.values()), "*", color="white", markeredgecolor="black", ms=12, zorder=4
    )
    entries = {_BEST: best}
    lost = [square for square in grid.squares if square.num_diverged]
    if lost:
        x, y = [square.batch for square in lost], [square.rate for square in lost]
        (entries[_LOST],) = axes.plot(x, y, "x", color="black", ms=6, mew=1.4, zorder=3)
    if grid.exponent is not None:
        ends = [min(grid.best), max(grid.best)]
        line = [math.exp(grid.exponent.log_c) * batch**grid.exponent.p.mean for batch in ends]
        # Black within white: seen on bright and dark squares alike.
        axes.plot(ends, line, color="white", linewidth=3.2, zorder=2)
        (entries[_FIT],) = axes.plot(ends, line, color="black", linewidth=1.4, linestyle="--", zorder=2)
    return entries


def _is_lost(square: Square) -> bool:
    return square.num_diverged > 0


def _half(places: list[float]) -> float:
    # Half a step beyond the ends, as a factor.
    return math.sqrt(places[1] / places[0]) if len(places) > 1 else 2.0


def _edges(places: list[float]) -> dict[float, tuple[float, float]]:
    """Return the borders of the squares at each place, half-way between neighbours on a logarithmic axis."""
    ordered = sorted(places)
    inner = [math.sqrt(a * b) for a, b in pairwise(ordered)]
    if not inner:
        return {ordered[0]: (ordered[0] / 2**0.5, ordered[0] * 2**0.5)}
    first, last = ordered[0] ** 2 / inner[0], ordered[-1] ** 2 / inner[-1]
    borders = [first, *inner, last]
    return {place: (borders[i], borders[i + 1]) for i, place in enumerate(ordered)}
