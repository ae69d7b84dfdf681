"""Figures of the loss on a line and on a plane through the weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lbtrain.callbacks._drawing import BLUE, ORANGE, between, empty_figure, house_style, levels_between, new_axes
from lbtrain.functional.landscape import LossLine, LossPlane

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def line_figure(line: LossLine, *, curvature: float, slope: float = 0.0, along: str = "the top eigenvector") -> Figure:
    """Draw the loss along a direction, with its quadratic model.

    Args:
        line: The loss on the line; its band is one standard error over batches of the rise.
        curvature: `v'Hv` along the unit direction, loss per squared parameter.
        slope: `g'v`, loss per unit of parameter norm.
        along: What the direction is.

    Returns:
        The figure.
    """
    points = [(d, y, e) for d, y, e in zip(line.distances, line.values, line.stderr, strict=True) if math.isfinite(y)]
    with house_style():
        if not points or not math.isfinite(line.base):
            return empty_figure(f"no loss is finite along {along}")
        figure, axes = new_axes(_line_words(line, curvature, along), f"Loss along {along}")
        x, y, error = zip(*points, strict=True)
        axes.plot(x, y, color=BLUE, label="training loss")
        if all(map(math.isfinite, error)):
            low, high = ([b + s * e for b, e in zip(y, error, strict=True)] for s in (-1, 1))
            axes.fill_between(x, low, high, color=BLUE, alpha=0.2, linewidth=0, label="its error over batches")
        model = [line.base + slope * d + 0.5 * curvature * d * d for d in line.distances]
        axes.plot(line.distances, model, "--", color=ORANGE, label=f"quadratic, curvature {curvature:.3g}")
        axes.plot([0], [line.base], "o", color="black", markersize=5, label="the weights")
        # By the loss, so that a quadratic that leaves it far behind does not flatten it; room for the legend above.
        room = 0.08 * (max(y) - min(y)) or 0.1 * abs(line.base) or 1.0
        axes.set_ylim(min(y) - room, max(y) + room)
        axes.set_xlabel(f"distance along {along} (parameter norm)")
        axes.set_ylabel("loss")
        axes.legend(loc="upper center")
    return figure


def plane_figure(plane: LossPlane, *, along: tuple[str, str] = ("top eigenvector", "second eigenvector")) -> Figure:
    """Draw the loss on a plane through the weights as filled contours.

    Args:
        plane: The loss on the plane.
        along: What its two directions are.

    Returns:
        The figure; contours are even in the logarithm where the loss spans more than a decade. Between the points that
        were evaluated they are interpolated, where all of these are finite.
    """
    losses = {
        (a, b): y
        for a, row in zip(plane.first, plane.values, strict=True)
        for b, y in zip(plane.second, row, strict=True)
    }
    finite = {place: y for place, y in losses.items() if math.isfinite(y)}
    with house_style():
        if not finite or len(plane.first) < 2 or len(plane.second) < 2:
            return empty_figure("no plane of the loss: fewer than 2 x 2 points, or none is finite")
        figure, axes = new_axes(_plane_words(plane, finite, along), "Loss around the weights")
        _fill(axes, plane, min(finite.values()), max(finite.values()))
        for colour, size, width in (("white", 13, 3.5), ("black", 11, 1.6)):
            axes.plot([0], [0], "+", color=colour, markersize=size, markeredgewidth=width)
        axes.set_xlabel(f"along the {along[0]} (parameter norm)")
        axes.set_ylabel(f"along the {along[1]}")
        axes.grid(False)
    return figure


def _fill(axes: Axes, plane: LossPlane, low: float, high: float) -> None:
    """Draw the contours and the bar that tells their values."""
    from matplotlib import colormaps
    from matplotlib.colors import BoundaryNorm

    levels = levels_between(low, high)
    x, y, rows = _smooth(plane, low, high)
    # One colour for each band, however the levels are spaced.
    colours = colormaps["cividis"]
    norm = BoundaryNorm(levels, colours.N)
    filled = axes.contourf(x, y, rows, levels=levels, norm=norm, cmap=colours)
    axes.contour(x, y, rows, levels=levels[1:-1], colors="white", linewidths=0.4)
    axes.figure.colorbar(filled, ax=axes, label="loss", ticks=levels[::3], format="%.3g")


def _smooth(plane: LossPlane, low: float, high: float) -> tuple[Any, Any, Any]:
    """Return both axes and the losses, a row for each place on the second; interpolated where all are finite."""
    import torch

    losses = torch.tensor(plane.values, dtype=torch.float64).T
    if not losses.isfinite().all():
        return plane.first, plane.second, losses.where(losses.isfinite(), math.nan).numpy()
    (x, across), (y, up) = between(plane.first), between(plane.second)
    log = 0 < 10 * low < high  # as the levels are
    losses = up @ (losses.log() if log else losses) @ across.T
    # A cubic may leave the range of its points, and so the levels.
    return x.numpy(), y.numpy(), (losses.exp() if log else losses).clamp(low, high).numpy()


def _line_words(line: LossLine, curvature: float, along: str) -> str:
    ends = f"{line.values[0]:.3g} at {line.distances[0]:.2g} and {line.values[-1]:.3g} at {line.distances[-1]:.2g}"
    return f"Loss along {along}: {line.base:.3g} at the weights, {ends}; curvature {curvature:.3g} there."


def _plane_words(plane: LossPlane, finite: dict[tuple[float, float], float], along: tuple[str, str]) -> str:
    a, b = min(finite, key=finite.__getitem__)
    span = f"from {finite[a, b]:.3g} at ({a:.2g}, {b:.2g}) to {max(finite.values()):.3g}"
    return f"Loss on the plane of the {along[0]} and the {along[1]}: {plane.base:.3g} at the weights, {span}."
