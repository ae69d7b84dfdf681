"""What each figure shows, as numbers: plots of panels of lines of points."""

from dataclasses import dataclass, replace

import pandas as pd

from lbtrain.study.compare import change, sam_pairs
from lbtrain.study.conditions import Cell
from lbtrain.study.estimates import Estimate, digits, plain
from lbtrain.study.families import Family, families
from lbtrain.study.methods import Variant


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
        label: Words of the legend.
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
    """

    name: str
    title: str
    unit: str
    panels: tuple[Panel, ...]
    reference: float | None = None

    @property
    def alt(self) -> str:
        """The figure in words, for those who do not see it."""
        parts = [
            f"{panel.title.splitlines()[0]}, {line.label}: {', '.join(map(str, line.points))}"
            for panel in self.panels
            for line in panel.lines
        ]
        return f"{self.title} ({self.unit}). {'. '.join(parts)}."


def plots(table: pd.DataFrame) -> list[Plot]:
    """Collect the figures that the runs have data for, all against the global batch size.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        Plots with at least one line of two batch sizes.
    """
    groups = families(table)
    unit = "loss per sample"
    found = [
        _by_rate(groups, "hessian/lambda_max", "lambda_max", "lambda_max", "lambda_max"),
        Plot("loss_fixed", "Loss at the fixed rate", unit, _losses(groups, scaled=False)),
        Plot("loss_scaled", "Loss at the scaled rate", unit, _losses(groups, scaled=True)),
        _by_rate(groups, "sharpness/keskar", "sharpness_keskar", "Keskar's sharpness", "sharpness (%)"),
        _by_rate(groups, "sharpness/sam", "sharpness_sam", "SAM sharpness", "rise of the loss"),
        _time_ratio(groups),
    ]
    return [plot for plot in found if any(len(line.points) > 1 for panel in plot.panels for line in panel.lines)]


def _by_rate(groups: list[Family], metric: str, name: str, title: str, unit: str) -> Plot:
    panels, colours = [], _colours(groups)
    for family in groups:
        lines = [
            _line(_label(rate, variant), colours[variant], rate == "fixed", points, metric)
            for rate in family.rates
            for variant in family.variants
            if (points := family.line(rate, variant))
        ]
        panels.append(_panel(family.name, lines, colours[family.variants[0]]))
    return Plot(name, f"{title} against batch size", unit, _kept(panels))


def _losses(groups: list[Family], scaled: bool) -> tuple[Panel, ...]:
    panels, colours = [], _colours(groups)
    for family in groups:
        for rate in family.rates:
            if (rate != "fixed") is scaled:
                lines = [
                    _line(f"{stage}, {variant.legend}", colours[variant], stage == "train", points, f"{stage}/loss")
                    for stage in ("train", "test")
                    for variant in family.variants
                    if (points := family.line(rate, variant))
                ]
                name = f"{family.name}, {rate} rate" if scaled else family.name
                panels.append(_panel(name, lines, colours[family.variants[0]]))
    return _kept(panels)


def _time_ratio(groups: list[Family]) -> Plot:
    climbing = [variant for variant in _colours(groups) if variant.rho]
    for metric, thing in (("time/step_ms", "step"), ("time/fit_s", "fit")):
        panels = _ratios_of_one(groups, metric) if len(climbing) == 1 else _ratios_of_several(groups, metric)
        lines = [line for panel in panels for line in panel.lines]
        if lines:
            low, high = _span(lines)
            method = climbing[0].method if len({variant.method for variant in climbing}) == 1 else ""
            who = method or "SAM or a relative"
            span = f"{low} to {high}" if low != high else low
            title = f"A {thing} with {who} takes {span} times as long"
            panels = tuple(replace(panel, title=panel.title or title) for panel in panels)
            return Plot(
                "time_ratio",
                title,
                f"{thing} time, {method} / plain" if method else f"{thing} time / plain",
                panels,
                reference=2.0,
            )
    return Plot("time_ratio", "", "", ())


def _ratios_of_one(groups: list[Family], metric: str) -> tuple[Panel, ...]:
    # All families in one panel.
    lines = [
        Line(f"{family.name}, {rate} rate", i, rate == "fixed", points)
        for i, family in enumerate(groups)
        for rate in family.rates
        for variant in family.variants
        if (points := _ratios(family, rate, variant, metric))
    ]
    return _kept([Panel("", tuple(lines))])


def _ratios_of_several(groups: list[Family], metric: str) -> tuple[Panel, ...]:
    # As in the other figures, so that a method has one colour.
    colours = _colours(groups)
    panels = []
    for family in groups:
        lines = [
            Line(_label(rate, variant), colours[variant], rate == "fixed", points)
            for rate in family.rates
            for variant in family.variants
            if (points := _ratios(family, rate, variant, metric))
        ]
        panels.append(Panel(family.name, tuple(lines)))
    return _kept(panels)


def _ratios(family: Family, rate: str, variant: Variant, metric: str) -> tuple[Point, ...]:
    pairs = [(batch, a, b) for batch, a, b in sam_pairs(family, rate, variant, cost=True) if batch is not None]
    moved = [(batch, change(a, b, metric)) for batch, a, b in pairs]
    return tuple(Point(batch, pair.ratio) for batch, pair in moved if pair is not None)


def _colours(groups: list[Family]) -> dict[Variant, int]:
    # One for each variant in all panels: they share a legend.
    everything = {variant for family in groups for variant in family.variants}
    return {variant: i for i, variant in enumerate(sorted(everything, key=Variant.order))}


def _label(rate: str, variant: Variant) -> str:
    return f"{'scaled' if rate != 'fixed' else 'fixed'} rate, {variant.legend}"


def _line(label: str, colour: int, dashed: bool, cells: list[tuple[float, Cell]], metric: str) -> Line:
    points = [Point(batch, cell.estimate(metric), cell.num_diverged) for batch, cell in cells]
    # A run that did not measure is no point; one that diverged is.
    kept = tuple(point for point in points if point.value or point.num_diverged)
    return Line(label, colour, dashed, kept if any(point.value for point in kept) else ())


def _panel(name: str, lines: list[Line], base: int) -> Panel:
    # Its title gives both ends of the lines that train plainly, short enough for the width of a phone.
    ends = []
    for line in lines:
        values = [point.value.mean for point in line.points if point.value]
        if line.colour == base and len(values) > 1 and not line.label.startswith("train"):
            first, last = (digits(value, significant=2) for value in (values[0], values[-1]))
            ends.append(f"{line.label.split(',')[0].removesuffix(' rate')} {first}\N{RIGHTWARDS ARROW}{last}")
    return Panel("\n".join([name, ", ".join(ends)]).strip(), tuple(line for line in lines if line.points))


def _kept(panels: list[Panel]) -> tuple[Panel, ...]:
    return tuple(panel for panel in panels if panel.lines)


def _span(lines: list[Line]) -> tuple[str, str]:
    values = [point.value.mean for line in lines for point in line.points if point.value]
    return digits(min(values)), digits(max(values))
