"""What training costs against the batch size: seconds per epoch and per step, and what a method multiplies them by."""

from dataclasses import replace

import pandas as pd

from lbtrain.study.compare import change, sam_pairs
from lbtrain.study.estimates import Estimate, digits, mean_over_seeds
from lbtrain.study.families import Family, families
from lbtrain.study.methods import Variant
from lbtrain.study.rates import rate_settings
from lbtrain.study.series import Line, Panel, Plot, Point, colours, is_drawn, kept, line_label, with_variant

_SECTION = "Cost"
# A fit of the same number of epochs in all runs says nothing that the time of an epoch does not.
_SAME_LENGTH = 1.2
_TIMES = {
    "time/epoch_s": ("time_epoch", "Seconds per epoch", "s per epoch"),
    "time/step_ms": ("time_step", "Milliseconds per optimizer step", "ms per step"),
    "time/fit_s": ("time_fit", "Seconds of the whole fit", "s"),
}


def cost_plots(table: pd.DataFrame) -> list[Plot]:
    """Collect the figures of time against the global batch size, with each method and without.

    Runs at different rates are put together: a rate changes no time. The whole fit is left out where its length in
    epochs is the same in all runs (within a factor of 1.2), for it then repeats the figure of an epoch.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        Plots with at least one line of two batch sizes; the ratio last.
    """
    groups = families(table)
    wanted = [key for key in _TIMES if key in table and not (key == "time/fit_s" and _same_length(table))]
    found = [_times(groups, metric, rate_settings(table)) for metric in wanted]
    return [plot for plot in [*found, _time_ratio(groups)] if is_drawn(plot)]


def _same_length(table: pd.DataFrame) -> bool:
    if "time/epoch_s" not in table:
        return False
    epochs = (table["time/fit_s"] / table["time/epoch_s"]).dropna()
    return len(epochs) > 0 and bool(epochs.max() <= _SAME_LENGTH * epochs.min())


def _times(groups: list[Family], metric: str, rates: set[str]) -> Plot:
    name, title, unit = _TIMES[metric]
    looks = colours(groups)
    alike: dict[str, list[Family]] = {}
    for family in groups:
        alike.setdefault(_without_rate(family, rates), []).append(family)
    panels = [
        Panel(
            label,
            tuple(
                Line(with_variant("", variant, looks), look, False, points)
                for variant, look in looks.items()
                if (points := _points(same, variant, metric))
            ),
        )
        for label, same in alike.items()
    ]
    return Plot(name, f"{title} against batch size", unit, kept(panels), section=_SECTION)


def _without_rate(family: Family, rates: set[str]) -> str:
    others = next(iter(family.cells)).others
    return ", ".join([family.optimizer or "this model", *(" ".join(pair) for pair in others if pair[0] not in rates)])


def _points(same: list[Family], variant: Variant, metric: str) -> tuple[Point, ...]:
    times: dict[float, dict[object, list[float]]] = {}
    lines = [family.line(rate, variant) for family in same for rate in family.rates]
    for batch, cell in (pair for line in lines for pair in line):
        for seed, value in cell.values(metric).items():
            times.setdefault(batch, {}).setdefault(seed, []).append(value)
    return tuple(Point(batch, _over_seeds(seeds)) for batch, seeds in sorted(times.items()))


def _over_seeds(seeds: dict[object, list[float]]) -> Estimate:
    return mean_over_seeds([mean_over_seeds(values).mean for values in seeds.values()])


def _time_ratio(groups: list[Family]) -> Plot:
    climbing = [variant for variant in colours(groups) if variant.rho]
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
                section=_SECTION,
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
    return kept([Panel("", tuple(lines))])


def _ratios_of_several(groups: list[Family], metric: str) -> tuple[Panel, ...]:
    # As in the other figures, so that a method has one colour.
    looks = colours(groups)
    panels = []
    for family in groups:
        lines = [
            Line(line_label(rate, variant, looks), looks[variant], rate == "fixed", points)
            for rate in family.rates
            for variant in family.variants
            if (points := _ratios(family, rate, variant, metric))
        ]
        panels.append(Panel(family.name, tuple(lines)))
    return kept(panels)


def _ratios(family: Family, rate: str, variant: Variant, metric: str) -> tuple[Point, ...]:
    pairs = [(batch, a, b) for batch, a, b in sam_pairs(family, rate, variant, cost=True) if batch is not None]
    moved = [(batch, change(a, b, metric)) for batch, a, b in pairs]
    return tuple(Point(batch, pair.ratio) for batch, pair in moved if pair is not None)


def _span(lines: list[Line]) -> tuple[str, str]:
    values = [point.value.mean for line in lines for point in line.points if point.value]
    return digits(min(values)), digits(max(values))
