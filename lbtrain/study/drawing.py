"""How figures look: width, colours, markers, dashes; PNG for the page and SVG for a paper, the same bytes each time."""

import io
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib.style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from lbtrain.study.estimates import Estimate

# Okabe and Ito (2008), "Color Universal Design": told apart with every common colour blindness; then wine and grey, so
# that there is one for each of MAX_VARIANTS.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#882255", "#888888")
MARKERS = ("o", "s", "^", "D", "v", "P", "*", "p", "<")
THIN = "#595959"  # of lines to compare with
WIDTH = 4.0  # inches: shown 345 px wide on a phone, 11 pt become more than 9 pt
PANEL_HEIGHT = 2.35  # inches
DPI = 200
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
    # Letters as outlines: the figure looks the same where DejaVu Sans is not installed.
    "svg.fonttype": "path",
    "svg.hashsalt": "lbtrain",  # names of clipping paths are random without it
}


@dataclass(frozen=True)
class Sketch:
    """A figure that can be drawn.

    Args:
        name: Stem of its file.
        title: What is seen.
        alt: The same in words, with the numbers.
        section: Heading of the page below which it stands.
        draw: What draws it.
    """

    name: str
    title: str
    alt: str
    section: str
    draw: Callable[[], Figure]


def images(sketch: Sketch) -> tuple[bytes, bytes]:
    """Draw a figure.

    Args:
        sketch: What to draw.

    Returns:
        PNG, `WIDTH * DPI` pixels wide, of at most 128 colours; and SVG. Neither holds a date or a version.
    """
    # From matplotlib's own defaults, so that a user's matplotlibrc changes nothing.
    with matplotlib.style.context(["default", _STYLE]):
        figure = sketch.draw()
        raw = io.BytesIO()
        figure.savefig(raw, format="raw")
        figure.set_layout_engine("none")  # it has done its work, and would do it once more
        svg = io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    width, height = (int(pixels) for pixels in figure.bbox.size)
    pixels = Image.frombytes("RGBA", (width, height), raw.getvalue()).convert("RGB")
    png = io.BytesIO()
    # A palette takes a quarter of the bytes, and every figure stands inside the page.
    pixels.quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(png, "PNG", optimize=True)
    return png.getvalue(), svg.getvalue()


def apart(place: int, number: int) -> float:
    """Move lines a little apart, so that those that coincide are all seen, and each point nearest to its batch size.

    Args:
        place: Which line, from 0.
        number: How many there are.

    Returns:
        What to multiply batch sizes by: less than the root of 2, however many lines.
    """
    return float(2.0 ** (min(0.12, 0.6 / number) * (place - (number - 1) / 2)))


def stacked(number: int, labels: Iterable[str], title: str, height: float = PANEL_HEIGHT) -> tuple[Figure, list[Axes]]:
    """Lay out panels below each other, with a headline and room for a legend.

    Args:
        number: How many panels.
        labels: Words of the legend.
        title: Headline.
        height: Of a panel, inches.

    Returns:
        The figure and its axes from top to bottom, which share neither axis.
    """
    names = list(labels)
    rows = len(names) // legend_columns(names) + 1 if names else 0  # one to spare, for what diverged
    figure = Figure(figsize=(WIDTH, height * number + 0.7 + 0.24 * rows), dpi=DPI, layout="constrained")
    headline(figure, title)
    return figure, list(figure.subplots(number, 1, squeeze=False)[:, 0])


def headline(figure: Figure, title: str) -> None:
    """Set the title above the panels, in lines that fit.

    Args:
        figure: The figure.
        title: Any text.
    """
    figure.suptitle(textwrap.fill(title, 38), fontsize=11.5, fontweight="bold", x=0.02, ha="left")


def panel_title(axes: Axes, text: str) -> None:
    """Set the title of a panel, in lines that fit.

    Args:
        axes: The panel.
        text: Lines that are kept apart; each takes at most three.
    """
    axes.set_title("\n".join(textwrap.fill(line, 42, max_lines=3, placeholder=" ...") for line in text.splitlines()))


def legend(figure: Figure, entries: Mapping[str, Artist]) -> None:
    """Set the legend below the panels, in two columns where the words are short.

    Args:
        figure: The figure.
        entries: Words to what was drawn.
    """
    if entries:
        columns = legend_columns(entries)
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, frameon=False)


def legend_columns(labels: Iterable[str]) -> int:
    """Count the columns of a legend.

    Args:
        labels: At least one.

    Returns:
        2 where every label is short, else 1.
    """
    return 2 if max(map(len, labels)) <= 16 else 1


def with_bars(
    axes: Axes, x: Sequence[float], values: Sequence[Estimate], look: int, dashed: bool = False, line: bool = True
) -> Line2D:
    """Draw estimates with their 95 % intervals.

    Args:
        axes: Where.
        x: Places.
        values: One for each place.
        look: Index of the colour and of the marker.
        dashed: Whether the line is dashed and the markers are hollow.
        line: Whether the points are joined.

    Returns:
        What the legend shows.
    """
    colour, marker = COLOURS[look % len(COLOURS)], MARKERS[look % len(MARKERS)]
    style = ("--" if dashed else "-") if line else "none"
    means = [value.mean for value in values]
    face = "white" if dashed else colour
    (drawn,) = axes.plot(x, means, linestyle=style, color=colour, marker=marker, markerfacecolor=face)
    for place, value in zip(x, values, strict=True):
        if value.low is not None and value.high is not None:
            reach = [[value.mean - value.low], [value.high - value.mean]]
            axes.errorbar([place], [value.mean], reach, fmt="none", ecolor=colour, capsize=3)
    return drawn
