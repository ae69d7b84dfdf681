"""What a figure against the batch size shows, as numbers: plots of panels of lines of points."""

from collections.abc import Collection
from dataclasses import dataclass

from lbtrain.study.estimates import Estimate, digits, plain
from lbtrain.study.families import Family
from lbtrain.study.methods import Variant
from lbtrain.study.ranges import CUT, Range, value_range


@dataclass(frozen=True)
class Point:
    """A metric at one batch size.

    Args:
        batch: Global batch size, samples.
        value: Mean over the seeds that did not diverge, None when all did.
        num_diverged: Number of runs that did.
    """

    batch: float
    value: Estimate | None
    num_diverged: int = 0

    def __str__(self) -> str:
        value = f"{digits(self.value.mean)} at {plain(self.batch)}" if self.value else f"at {plain(self.batch)}"
        return value + (f" ({self.num_diverged} diverged)" if self.num_diverged else "")


@dataclass(frozen=True)
class Line:
    """A metric along the batch axis.

    Args:
        label: Words of the legend; empty where there is nothing to tell.
        colour: Index of the colour and of the marker.
        dashed: Whether the line is dashed.
        points: From the smallest batch to the largest.
    """

    label: str
    colour: int
    dashed: bool
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Args:
        title: What is shown, with the numbers at both ends.
        lines: What is drawn.
    """

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Plot:
    """One figure: panels that share their axes.

    Args:
        name: Stem of its file.
        title: What is compared.
        unit: Label of the vertical axis.
        panels: From top to bottom.
        reference: Height of a thin line to compare with, None without.
        section: Heading of the page below which it stands.
        bounds: Lowest and highest value that the metric can have, None for any.
    """

    name: str
    title: str
    unit: str
    panels: tuple[Panel, ...]
    reference: float | None = None
    section: str = "Batch size"
    bounds: tuple[float, float] | None = None

    @property
    def values(self) -> list[Estimate]:
        """All that is drawn."""
        points = [point for panel in self.panels for line in panel.lines for point in line.points]
        return [point.value for point in points if point.value]

    @property
    def range(self) -> Range:
        """How far the vertical axis reaches."""
        return value_range(self.values, self.reference or 0.0, bounds=self.bounds)

    @property
    def alt(self) -> str:
        """The figure in words, for those who do not see it."""
        parts = [
            f"{', '.join([panel.title.splitlines()[0], line.label][: 1 + bool(line.label)])}: "
            f"{', '.join(map(str, line.points))}"
            for panel in self.panels
            for line in panel.lines
        ]
        cut = f" {CUT}." if self.values and self.range.cuts(self.values) else ""
        return f"{self.title} ({self.unit}). {'. '.join(parts)}.{cut}"


def is_drawn(plot: Plot) -> bool:
    """Tell whether a plot holds more than single points.

    Args:
        plot: Any plot.

    Returns:
        Whether one of its lines has two batch sizes.
    """
    return any(len(line.points) > 1 for panel in plot.panels for line in panel.lines)


def colours(groups: list[Family]) -> dict[Variant, int]:
    """Give each variant one colour in all panels, for they share a legend.

    Args:
        groups: As `families` gives them.

    Returns:
        Variant to index of its colour.
    """
    everything = {variant for family in groups for variant in family.variants}
    return {variant: i for i, variant in enumerate(sorted(everything, key=Variant.order))}


def line_label(rate: str, variant: Variant, of: Collection[Variant]) -> str:
    """Name a line in the legend.

    Args:
        rate: As in `Family.rates`.
        variant: As in `Family.variants`.
        of: All variants of the figure; where none has a method, no word is lost on that.

    Returns:
        Such as "scaled rate, SAM 0.05".
    """
    return with_variant(f"{'scaled' if rate != 'fixed' else 'fixed'} rate", variant, of)


def with_variant(words: str, variant: Variant, of: Collection[Variant]) -> str:
    """Add a variant to the words of a line.

    Args:
        words: Such as "train"; may be empty.
        variant: Of the line.
        of: All variants of the figure.

    Returns:
        Such as "train, no SAM"; the words alone where no variant has a method.
    """
    named = any(other.method for other in of)
    return ", ".join([*([words] if words else []), *([variant.legend] if named else [])])


def kept(panels: list[Panel]) -> tuple[Panel, ...]:
    """Leave out the panels that have nothing to show.

    Args:
        panels: Any panels.

    Returns:
        Those with a line.
    """
    return tuple(panel for panel in panels if panel.lines)
