"""Plots to PNG: legible on a phone, told apart by colour, marker and dash, the same bytes from the same numbers."""

import io
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import matplotlib.style
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from lbtrain.study.axes import words
from lbtrain.study.conditions import Cell, cells, label
from lbtrain.study.estimates import digits, plain
from lbtrain.study.families import objective, ranked
from lbtrain.study.series import Line, Plot, plots

# Okabe and Ito (2008), "Color Universal Design": told apart with every common colour blindness; then wine and grey, so
# that there is one for each of MAX_VARIANTS.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#882255", "#888888")
MARKERS = ("o", "s", "^", "D", "v", "P", "*", "p", "<")
WIDTH = 4.0  # inches: shown 345 px wide on a phone, 11 pt become more than 9 pt
PANEL_HEIGHT = 2.35  # inches
DPI = 200
MAX_RANKED = 20  # rows of the ranking; more are not legible at this width
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#d9d9d9",
    "legend.fontsize": 10.5,
    "lines.markersize": 6,
    "lines.linewidth": 1.6,
}


@dataclass(frozen=True)
class Picture:
    """A drawn figure.

    Args:
        name: Stem of its file.
        title: What is seen.
        alt: The same in words, with the numbers.
        png: The image.
    """

    name: str
    title: str
    alt: str
    png: bytes


def pictures(table: pd.DataFrame) -> list[Picture]:
    """Draw every figure that the runs have data for.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        Figures against batch size; for a sweep over other things, a ranking of its settings.
    """
    drawn = [Picture(plot.name, plot.title, plot.alt, _png(partial(_draw, plot))) for plot in plots(table)]
    if drawn:
        return drawn
    order, metric = ranked(table)[:MAX_RANKED], objective(table)
    if metric is None or len(order) < 2:
        return []
    names = [label(cell.condition, cells(table)) for cell in order]
    title = f"The {len(order)} best settings by {words(metric)}"
    alt = f"{title}. " + "; ".join(f"{n}: {_mean(c, metric)}" for n, c in zip(names, order, strict=True)) + "."
    return [Picture("ranking", title, alt, _png(partial(_draw_ranking, order, names, metric, title)))]


def apart(place: int, number: int) -> float:
    """Move lines a little apart, so that those that coincide are all seen, and each point nearest to its batch size.

    Args:
        place: Which line, from 0.
        number: How many there are.

    Returns:
        What to multiply batch sizes by: less than the root of 2, however many lines.
    """
    return float(2.0 ** (min(0.12, 0.6 / number) * (place - (number - 1) / 2)))


def _png(draw: Callable[[], Figure]) -> bytes:
    # From matplotlib's own defaults, so that a user's matplotlibrc changes nothing.
    with matplotlib.style.context(["default", _STYLE]):
        figure = draw()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw(plot: Plot) -> Figure:
    legend: dict[str, Line2D] = {}
    labels = {line.label for panel in plot.panels for line in panel.lines}
    rows = len(labels) // _columns(labels) + 1  # one to spare: for what diverged, or the second half of an odd number
    size = (WIDTH, PANEL_HEIGHT * len(plot.panels) + 0.7 + 0.24 * rows)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    grid = figure.subplots(len(plot.panels), 1, sharex=True, sharey=True, squeeze=False)
    for axes, panel in zip(grid[:, 0], plot.panels, strict=True):
        if panel.title != plot.title:
            axes.set_title(panel.title)
        axes.set_ylabel(plot.unit)
        if plot.reference is not None:
            axes.axhline(plot.reference, color="#595959", linewidth=1, linestyle=":")
        for i, line in enumerate(panel.lines):
            legend |= _draw_line(axes, line, apart(i, len(panel.lines)))
    _scale(plot, grid[0, 0])
    grid[-1, 0].set_xlabel("global batch size")
    figure.suptitle(textwrap.fill(plot.title, 38), fontsize=11.5, fontweight="bold", x=0.02, ha="left")
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=_columns(legend), frameon=False)
    return figure


def _draw_line(axes: Axes, line: Line, apart: float) -> dict[str, Line2D]:
    # With what the legend needs of it.
    colour, marker = COLOURS[line.colour % len(COLOURS)], MARKERS[line.colour % len(MARKERS)]
    face = "white" if line.dashed else colour
    measured = [(point.batch * apart, point.value) for point in line.points if point.value]
    x, y = [batch for batch, _ in measured], [value.mean for _, value in measured]
    (drawn,) = axes.plot(x, y, "--" if line.dashed else "-", color=colour, marker=marker, markerfacecolor=face)
    for batch, value in measured:
        if value.low is not None and value.high is not None:
            reach = [[value.mean - value.low], [value.high - value.mean]]
            axes.errorbar([batch], [value.mean], reach, fmt="none", ecolor=colour, capsize=3)
    entry = {line.label: drawn}
    lost = [point.batch * apart for point in line.points if point.num_diverged]
    if lost:
        top = axes.get_xaxis_transform()
        axes.plot(lost, [0.95] * len(lost), "x", color=colour, ms=9, mew=2.2, transform=top, clip_on=False)
        entry["diverged"] = Line2D([], [], color="#000000", marker="x", ls="none", ms=9, mew=2.2)
    return entry


def _scale(plot: Plot, axes: Axes) -> None:
    points = [point for panel in plot.panels for line in panel.lines for point in line.points]
    batches = sorted({point.batch for point in points})
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(batches))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    values = [point.value.mean for point in points if point.value]
    if min(values) > 0 and max(values) > 5 * min(values):
        axes.set_yscale("log")
        narrow = max(values) < 100 * min(values)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        # Room above for the crosses of diverged runs; error bars may not stretch the axis beyond reading.
        axes.set_ylim(min(values) / 1.8, max(values) * 2.5)
    else:
        axes.set_ylim(0 if min(values) >= 0 else None, max(*values, plot.reference or 0.0) * 1.2 or None)


def _draw_ranking(order: list[Cell], names: list[str], metric: str, title: str) -> Figure:
    figure = Figure(figsize=(WIDTH, 1.3 + 0.5 * len(order)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    places = range(len(order), 0, -1)
    for place, cell, name in zip(places, order, names, strict=True):
        estimate = cell.estimate(metric)
        if estimate is not None:
            axes.plot(estimate.mean, place, color=COLOURS[0], marker=MARKERS[0])
            if estimate.low is not None and estimate.high is not None:
                axes.plot([estimate.low, estimate.high], [place, place], color=COLOURS[0])
        # Above its point and from the left edge: long names need the whole width.
        text = textwrap.shorten(name, 46, placeholder=" ...")
        axes.text(0.01, place + 0.2, text, transform=axes.get_yaxis_transform(), fontsize=10.5, in_layout=False)
    axes.set_ylim(0.5, len(order) + 0.9)
    axes.yaxis.set_major_locator(NullLocator())
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(words(metric))
    figure.suptitle(textwrap.fill(title, 38), fontsize=11.5, fontweight="bold", x=0.02, ha="left")
    return figure


def _columns(labels: Iterable[str]) -> int:
    return 2 if max(map(len, labels)) <= 16 else 1


def _mean(cell: Cell, metric: str) -> str:
    estimate = cell.estimate(metric)
    return digits(estimate.mean) if estimate else "unknown"
