"""Learning rate x batch size as numbers: what each pair reached, the best rate of each batch, and how it grows."""

import math
from dataclasses import dataclass

import pandas as pd

from lbtrain.study.axes import higher_is_better, words
from lbtrain.study.conditions import Cell
from lbtrain.study.estimates import Estimate, digits, plain
from lbtrain.study.exponents import Exponent, fit_exponent
from lbtrain.study.families import objective
from lbtrain.study.phrases import count
from lbtrain.study.rates import RateGroup, rate_groups

# An accuracy no longer tells rates apart where three of them come within half a percent of the best: one of the 180
# validation images of the digits is 0.56 %.
_SATURATED, _TIED = 0.005, 3
_STEPS = "target/steps"
_LOSSES = ("train/loss", "val/loss", "test/loss")


@dataclass(frozen=True)
class Square:
    """One pair of batch size and learning rate.

    Args:
        batch: Global batch size, samples.
        rate: Learning rate as used.
        value: Metric over the seeds, None when it is not known.
        num_diverged: Number of runs that diverged.
    """

    batch: float
    rate: float
    value: Estimate | None
    num_diverged: int


@dataclass(frozen=True)
class Grid:
    """All pairs of one optimizer and method.

    Args:
        name: Words for what the runs share.
        metric: Key of what is shown.
        squares: The pairs, small batches and rates first.
        best: Batch size to the swept rate with the best mean, among those of which no run diverged.
        exponent: How the best rate grows; None when too few batch sizes have it inside the swept rates.
    """

    name: str
    metric: str
    squares: tuple[Square, ...]
    best: dict[float, float]
    exponent: Exponent | None


def grids(table: pd.DataFrame) -> list[Grid]:
    """Collect the runs that swept learning rate and batch size.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        Grids with at least 3 rates at 2 batch sizes or more; all show the same metric.
    """
    groups = [group for group in rate_groups(table) if _is_grid(group)]
    metric = shown_metric(table, groups)
    return [_grid(group, metric) for group in groups] if metric else []


def shown_metric(table: pd.DataFrame, groups: list[RateGroup]) -> str | None:
    """Choose what tells learning rates apart.

    Args:
        table: As `load_sweep` gives it.
        groups: Its grids.

    Returns:
        The steps to a target where the runs had one, else the objective; the final training loss (else another loss)
        where the objective is an accuracy that saturates: at more than half of the batch sizes, three rates come
        within 0.005 of the best.
    """
    if _STEPS in table and table[_STEPS].notna().any():
        return _STEPS
    metric = objective(table)
    if metric is None or not higher_is_better(metric):
        return metric
    tied = [_tied(group, batch, metric) >= _TIED for group in groups for batch in group.batches]
    if sum(tied) <= len(tied) / 2:
        return metric
    return next((key for key in _LOSSES if key in table and table[key].notna().any()), metric)


def told(exponent: Exponent | None) -> str:
    """Write an exponent for the title of a panel.

    Args:
        exponent: The fit, or None.

    Returns:
        Such as "best rate ~ batch^0.93 (0.81 to 1.05)".
    """
    if exponent is None:
        return "best rate mostly at the edge"
    p = exponent.p
    bar = "" if p.low is None or p.high is None else f" ({p.low:.2f} to {p.high:.2f})"
    return f"best rate ~ batch^{p.mean:.2f}{bar}"


def grid_alt(title: str, found: list[Grid]) -> str:
    """Put the heat maps into words.

    Args:
        title: Headline of the figure.
        found: At least one grid.

    Returns:
        The best rate of each batch size with its value, the exponents, and how many pairs diverged.
    """
    parts = []
    for grid in found:
        values = {(square.batch, square.rate): square.value for square in grid.squares}
        best = [
            f"{plain(rate)} at batch {plain(batch)} ({digits(value.mean)})"
            for batch, rate in grid.best.items()
            if (value := values[batch, rate]) is not None
        ]
        lost = sum(square.num_diverged > 0 for square in grid.squares)
        tail = f"; {count(lost, 'pair')} of {len(grid.squares)} with diverged runs" if lost else ""
        parts.append(f"{grid.name}: {told(grid.exponent)}; best swept rate {', '.join(best)}{tail}")
    return f"{title} ({words(found[0].metric)}). {'. '.join(parts)}."


def _is_grid(group: RateGroup) -> bool:
    return sum(len(group.at(batch)) >= 3 for batch in group.batches) >= 2


def _tied(group: RateGroup, batch: float, metric: str) -> int:
    means = [e.mean for cell in group.at(batch).values() if (e := cell.estimate(metric)) is not None]
    return sum(mean >= max(means) - _SATURATED for mean in means)


def _grid(group: RateGroup, metric: str) -> Grid:
    squares = tuple(
        Square(batch, rate, cell.estimate(metric), cell.num_diverged) for (batch, rate), cell in group.cells.items()
    )
    sign = -1.0 if higher_is_better(metric) else 1.0
    best = {}
    for batch in group.batches:
        means = {s.rate: sign * s.value.mean for s in squares if s.batch == batch and s.value and not s.num_diverged}
        if means:
            best[batch] = min(means, key=lambda rate: (means[rate], rate))
    lows = {b: {r: _low(cell, metric, sign) for r, cell in group.at(b).items()} for b in group.batches}
    return Grid(group.name, metric, squares, best, fit_exponent(lows))


def _low(cell: Cell, metric: str, sign: float) -> dict[object, float] | None:
    # What is to be low; of a loss its logarithm, in which it is nearer to a parabola.
    values = cell.values(metric)
    if cell.num_diverged or not values:
        return None
    if sign > 0 and min(values.values()) > 0:
        return {seed: math.log(value) for seed, value in values.items()}
    return {seed: sign * value for seed, value in values.items()}
