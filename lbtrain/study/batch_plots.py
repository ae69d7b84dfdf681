"""Accuracy, loss, gap and sharpness against the batch size, as numbers."""

import re

import pandas as pd

from lbtrain.study.axes import bounds, capital, words
from lbtrain.study.conditions import Cell
from lbtrain.study.estimates import digits
from lbtrain.study.families import Family, families
from lbtrain.study.series import Line, Panel, Plot, Point, colours, is_drawn, kept, line_label, with_variant

# Of metrics that measures have beside their value; callbacks/_sharpness_choice.py has them, too.
_BESIDE = ("_stderr", "_batch_stderr", "_corner", "_residual")
_TITLES = {"sharpness/keskar": "Keskar's sharpness", "sharpness/sam": "SAM sharpness"}
_RISES = ("sam", "average", "adaptive")  # measures in the unit of the loss


def plots(table: pd.DataFrame) -> list[Plot]:
    """Collect the figures of accuracy, loss, gap and sharpness against the global batch size.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        Plots with at least one line of two batch sizes.
    """
    groups = families(table)
    unit = "loss per sample"
    accuracy = next((key for key in ("test/acc", "val/acc") if key in table and table[key].notna().any()), "test/acc")
    found = [
        _by_rate(groups, "hessian/lambda_max", "lambda_max", "lambda_max", "lambda_max"),
        Plot("loss_fixed", "Loss at the fixed rate", unit, _losses(groups, scaled=False)),
        Plot("loss_scaled", "Loss at the scaled rate", unit, _losses(groups, scaled=True)),
        _by_rate(groups, accuracy, "accuracy", capital(words(accuracy)), "accuracy"),
        _by_rate(groups, "gap/loss", "gap_loss", "Gap of the loss", "test minus train loss"),
        _by_rate(groups, "gap/acc", "gap_acc", "Gap of the accuracy", "test minus train"),
        _by_rate(groups, "hessian/trace", "trace", "Trace of the Hessian", "trace"),
        *(_by_rate(groups, metric, *_named(metric)) for metric in sharpness_measures(table)),
    ]
    return [plot for plot in found if is_drawn(plot)]


def sharpness_measures(table: pd.DataFrame) -> list[str]:
    """List the measures of sharpness that the runs have, without their error bars.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        Metric keys below `sharpness/`; Keskar's and SAM's first, as the measures of the paper.
    """
    keys = [key for key in table.columns if key.startswith("sharpness/") and key != "sharpness/interrupted"]
    kept = [key for key in keys if not key.endswith(_BESIDE)]
    return sorted(kept, key=lambda key: (key != "sharpness/keskar", key != "sharpness/sam", key))


def _named(metric: str) -> tuple[str, str, str]:
    # Stem of the file, title, label of the axis.
    name = metric.rpartition("/")[2]
    title = _TITLES.get(metric) or (capital(words(metric)) if words(metric) != metric else f"Sharpness {name}")
    unit = "sharpness (%)" if name.startswith("keskar") else "rise of the loss" if name in _RISES else "sharpness"
    return "sharpness_" + re.sub(r"[^A-Za-z0-9.-]+", "_", name), title, unit


def _by_rate(groups: list[Family], metric: str, name: str, title: str, unit: str) -> Plot:
    panels, looks = [], colours(groups)
    for family in groups:
        lines = [
            _line(line_label(rate, variant, looks), looks[variant], rate == "fixed", points, metric)
            for rate in family.rates
            for variant in family.variants
            if (points := family.line(rate, variant))
        ]
        panels.append(_panel(family.name, lines, looks[family.variants[0]]))
    return Plot(name, f"{title} against batch size", unit, kept(panels), bounds=bounds(metric))


def _losses(groups: list[Family], scaled: bool) -> tuple[Panel, ...]:
    panels, looks = [], colours(groups)
    for family in groups:
        for rate in family.rates:
            if (rate != "fixed") is scaled:
                lines = [
                    _line(
                        with_variant(stage, variant, looks), looks[variant], stage == "train", points, f"{stage}/loss"
                    )
                    for stage in ("train", "test")
                    for variant in family.variants
                    if (points := family.line(rate, variant))
                ]
                name = f"{family.name}, {rate} rate" if scaled else family.name
                panels.append(_panel(name, lines, looks[family.variants[0]]))
    return kept(panels)


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
