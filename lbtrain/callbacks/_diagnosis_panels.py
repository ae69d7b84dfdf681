"""What the figures of a diagnosis share: panels over one axis of steps, a colour for each layer, marks of findings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lbtrain.callbacks._drawing import DPI, GREY, WIDTH, log_if_wide
from lbtrain.functional.diagnosis import Finding

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Line = list[tuple[float, float]]

_MOST_LAYERS = 8  # lines of one panel; more are not told apart
_LONGEST = 22  # letters of a layer's name, of which the end tells most
_LETTER = 0.012  # width of a letter of a mark, as a share of the panel's
_FIRST, _BELOW = 2.6, 1.5  # inches: heights of the first panel and of the others


def finite(points: Iterable[tuple[float, float]]) -> Line:
    """Return the points whose value is finite.

    Args:
        points: Step and value.
    """
    return [(x, y) for x, y in points if math.isfinite(y)]


def panels(words: str, titles: Sequence[str], *, first: float = _FIRST) -> tuple[Figure, list[Axes]]:
    """Start a figure with panels below each other, over one axis of steps.

    Args:
        words: What is seen; the label of the figure.
        titles: Of the panels.
        first: Height of the first one, in inches.

    Returns:
        The figure and its panels.
    """
    from matplotlib.figure import Figure

    heights = [first, *[_BELOW] * (len(titles) - 1)]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.5), dpi=DPI, layout="constrained", label=words)
    axes = figure.subplots(len(titles), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for panel, title in zip(axes, titles, strict=True):
        panel.set_title(title)
    return figure, list(axes)


def steps_below(axes: Sequence[Axes]) -> None:
    """Name the axis of steps, below the last panel.

    Args:
        axes: The panels.
    """
    axes[-1].xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes[-1].set_xlabel("optimizer step")


def mark_findings(top: Axes, below: Sequence[Axes], findings: Iterable[Finding]) -> None:
    """Draw a line where findings began, named in the first panel; those from the start need none.

    Args:
        top: The first panel.
        below: The others.
        findings: Of the run.
    """
    begun: dict[int, list[str]] = {}
    for finding in findings:
        if finding.since:
            begun.setdefault(finding.since, []).append(finding.problem)
    left, right = top.get_xlim()
    free: list[float] = []  # for each row of names, from below: where it is free
    for step, problems in sorted(begun.items()):
        for panel in (top, *below):
            panel.axvline(step, color=GREY, linewidth=1, linestyle=":")
        text = ", ".join(problems)
        wide = _LETTER * len(text) * (right - left)
        start = min(step, right - wide)
        row = next((i for i, end in enumerate(free) if end <= start), len(free))
        free[row : row + 1] = [start + wide]
        place: dict[str, Any] = {"xycoords": top.get_xaxis_transform(), "textcoords": "offset points", "va": "bottom"}
        behind = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 0.5}
        top.annotate(text, (start, 0.02), (3, 11 * row), color=GREY, fontsize=8, bbox=behind, **place)


def shown_layers(layers: Sequence[str], notable: Sequence[str] = ()) -> dict[str, Any]:
    """Choose the layers to draw and their colours, from dark at the input to light.

    Args:
        layers: All of them, in the order of the network.
        notable: Those that must be seen, the most important first.

    Returns:
        Colours by layer, at most 8: notable ones, and others at even distances, the first and the last among them.
    """
    import matplotlib

    kept = set(notable[: _MOST_LAYERS // 2])
    rest = [layer for layer in layers if layer not in kept]
    count = min(len(rest), _MOST_LAYERS - len(kept))
    kept |= {rest[round(i * (len(rest) - 1) / max(count - 1, 1))] for i in range(count)}
    chosen = [layer for layer in layers if layer in kept]
    ramp = matplotlib.colormaps["viridis"]  # even in lightness, and told apart with every common colour blindness
    return {layer: ramp(0.9 * i / max(len(chosen) - 1, 1)) for i, layer in enumerate(chosen)}


def draw_lines(
    axes: Axes, lines: Mapping[str, Line], colours: Mapping[str, Any], *, unit: str, wide: bool = True
) -> None:
    """Draw one line for each layer.

    Args:
        axes: To draw on.
        lines: By layer.
        colours: By layer; a layer without one is left out.
        unit: Name of the vertical axis.
        wide: Whether the axis becomes logarithmic where they span more than a decade.
    """
    for layer, colour in colours.items():
        if lines.get(layer):
            axes.plot(*zip(*lines[layer], strict=True), "o-", color=colour, label=short(layer))
    values = [y for layer in colours for _, y in lines.get(layer, [])]
    positive = [y for y in values if y > 0]
    if positive and wide:
        log_if_wide(axes, positive)
    axes.set_ylabel(unit)


def short(layer: str) -> str:
    """Return the end of a long name.

    Args:
        layer: Name of a layer.
    """
    return layer if len(layer) <= _LONGEST else f"...{layer[3 - _LONGEST :]}"
