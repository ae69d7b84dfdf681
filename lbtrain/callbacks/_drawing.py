"""How this package's figures look: one style, one size, no pyplot, and a label that says in words what is seen."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

# Okabe and Ito (2008), "Color Universal Design": told apart with every common colour blindness.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#595959"
MATRIX = {"ggn": "Gauss-Newton "}  # what a title calls a matrix that is not the Hessian
CURVATURE = "eigenvalue (loss per squared parameter)"
WIDTH, HEIGHT = 6.0, 3.6  # inches: a column of text
DPI = 150  # 900 pixels wide: sharp on a screen that shows two pixels for one
_STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.5,
}


@contextmanager
def house_style() -> Iterator[None]:
    """Draw from matplotlib's own defaults, so that a user's matplotlibrc changes nothing, and put his back.

    Yields:
        Nothing.
    """
    import matplotlib.style  # here and below: importing matplotlib takes longer than all of lbtrain

    with matplotlib.style.context(["default", _STYLE]):
        yield


def new_axes(words: str, title: str, *, height: float = HEIGHT) -> tuple[Figure, Axes]:
    """Start a figure with one pair of axes, within `house_style`.

    Args:
        words: What is seen, for who cannot see it; the label of the figure.
        title: Of the axes.
        height: In inches.

    Returns:
        The figure and its axes.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained", label=words)
    axes = figure.subplots()
    axes.set_title(title)
    return figure, axes


def empty_figure(words: str) -> Figure:
    """Return a figure that says why there is nothing to see.

    Args:
        words: The reason.

    Returns:
        The figure, small.
    """
    figure, axes = new_axes(words, "", height=HEIGHT / 3)
    axes.set_axis_off()
    axes.text(0.5, 0.5, words, ha="center", va="center")
    return figure


def log_if_wide(axes: Axes, values: Sequence[float]) -> None:
    """Make the vertical axis logarithmic where the values are positive and span more than a decade.

    Args:
        axes: To scale.
        values: All that is drawn against it, at least one.
    """
    if min(values) <= 0 or max(values) <= 10 * min(values):
        return
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    narrow = max(values) < 300 * min(values)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def levels_between(low: float, high: float, count: int = 13) -> list[float]:
    """Return where to draw contours, evenly or, where more than a decade is spanned, evenly in the logarithm.

    Args:
        low: The smallest value.
        high: The largest, which may be the same.
        count: Number of levels, both ends included.

    Returns:
        The levels, ascending.
    """
    scale = max(abs(low), abs(high))
    if high - low <= 1e-9 * scale:  # nothing between them but rounding
        margin = 1e-3 * scale or 1e-3
        low, high = low - margin, high + margin
    shares = [i / (count - 1) for i in range(count)]
    if 0 < 10 * low < high:
        inner = [math.exp(math.log(low) + s * (math.log(high) - math.log(low))) for s in shares[1:-1]]
    else:
        inner = [low + s * (high - low) for s in shares[1:-1]]
    return [low, *inner, high]


def between(places: Sequence[float], count: int = 101) -> tuple[Tensor, Tensor]:
    """Return evenly spaced points between measured ones, and what interpolates values there.

    Through the four nearest measured points runs a cubic (Lagrange), so that a quadratic stays what it is.

    Args:
        places: Where values are known, ascending, at least two.
        count: Number of points.

    Returns:
        The points, shape ``(count,)``, and the matrix ``(count, len(places))`` that maps values to values at them.
    """
    import torch

    known = torch.tensor(places, dtype=torch.float64)
    points = torch.linspace(float(known[0]), float(known[-1]), count, dtype=torch.float64)
    width = min(4, len(known))
    first = (torch.searchsorted(known, points) - width // 2).clamp(0, len(known) - width)
    weights = torch.zeros(count, len(known), dtype=torch.float64)
    for i in range(width):
        rest = [j for j in range(width) if j != i]
        factors = [(points - known[first + j]) / (known[first + i] - known[first + j]) for j in rest]
        weights[torch.arange(count), first + i] = torch.stack(factors).prod(0)
    return points, weights


def png_of(figure: Figure) -> bytes:
    """Render a figure as a PNG, with its label as the description.

    Args:
        figure: As `new_axes` starts one.

    Returns:
        The file; the same bytes whenever the same numbers are drawn anew.
    """
    words, buffer = figure.get_label(), io.BytesIO()
    told = {"Description": words} if words else {}
    with house_style():
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None, **told})
    return buffer.getvalue()
