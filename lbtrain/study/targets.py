"""Steps and seconds to a target against the batch size (Shallue et al. 2018, arXiv 1811.03600).

For each batch size the rate counts that reaches the target first, among those with which every seed does; batch sizes
without such a rate are left out and named. Perfect scaling is a slope of -1 on logarithmic axes: twice the batch, half
the steps.
"""

from dataclasses import dataclass

import pandas as pd

from lbtrain.study.conditions import Cell
from lbtrain.study.critical import Critical, critical_words, fit_critical
from lbtrain.study.estimates import Estimate, digits, plain
from lbtrain.study.methods import is_number
from lbtrain.study.rates import RateGroup, rate_groups

REACHED = "target/reached"
TARGETS = {
    "target/steps": ("steps_to_target", "Optimizer steps to the target", "optimizer steps"),
    "target/s": ("seconds_to_target", "Seconds to the target", "seconds of training"),
}
NOISE = "noise/b_simple"


@dataclass(frozen=True)
class Reached:
    """What one batch size needs.

    Args:
        batch: Global batch size, samples.
        rate: Learning rate that needs the least.
        value: Steps or seconds, over the seeds.
        at_edge: Whether it is the lowest or the highest of several swept rates.
    """

    batch: float
    rate: float
    value: Estimate
    at_edge: bool = False


@dataclass(frozen=True)
class ToTarget:
    """One optimizer and method.

    Args:
        name: Words for what the runs share.
        metric: A key of `TARGETS`.
        points: From the smallest batch to the largest.
        missed: Batch sizes with no rate that reaches the target with every seed.
        fit: The curve; None with fewer than 3 batch sizes, where they do not determine it, or for seconds.
        noise: Gradient noise scales measured in the runs, samples, the lowest and the highest; None without.
    """

    name: str
    metric: str
    points: tuple[Reached, ...]
    missed: tuple[float, ...]
    fit: Critical | None
    noise: tuple[float, float] | None


def to_target(table: pd.DataFrame, metric: str) -> list[ToTarget]:
    """Collect what each batch size needs to reach the target.

    Args:
        table: As `load_sweep` gives it.
        metric: A key of `TARGETS`.

    Returns:
        One for each optimizer and method with two batch sizes that reach it.
    """
    if metric not in table or REACHED not in table:
        return []
    found = [_of_group(group, metric) for group in rate_groups(table)]
    return [line for line in found if len(line.points) > 1]


def target_words(table: pd.DataFrame) -> str:
    """Name the target.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        Such as "0.97"; an empty text when the runs had several.
    """
    values = set(table["target/value"].dropna()) if "target/value" in table else set()
    return f"{values.pop():g}" if len(values) == 1 else ""


def target_alt(title: str, found: list[ToTarget]) -> str:
    """Put the figure into words.

    Args:
        title: Headline of the figure.
        found: At least one line.

    Returns:
        What each batch size needs and at which rate, the critical batch size and the noise scale.
    """
    parts = []
    for line in found:
        points = ", ".join(f"{digits(p.value.mean)} at {plain(p.batch)} (rate {p.rate:.3g})" for p in line.points)
        text = f"{line.name}: {points}"
        if line.missed:
            text += f"; not reached at {', '.join(map(plain, line.missed))}"
        if line.fit:
            text += f"; critical batch size {critical_words(line.fit)}"
        if line.noise:
            text += f"; gradient noise scale {noise_words(line.noise)}"
        parts.append(text)
    return f"{title}. {'. '.join(parts)}."


def noise_words(noise: tuple[float, float]) -> str:
    """Write the noise scales of some runs.

    Args:
        noise: Lowest and highest.

    Returns:
        Such as "80.1 to 203".
    """
    low, high = map(digits, noise)
    return low if low == high else f"{low} to {high}"


def _of_group(group: RateGroup, metric: str) -> ToTarget:
    points, missed, noise = [], [], []
    for batch in group.batches:
        rates = group.at(batch)
        needs = {rate: need for rate, cell in rates.items() if (need := _need(cell, metric)) is not None}
        if not needs:
            missed.append(batch)
            continue
        best = min(needs, key=lambda rate: (needs[rate].mean, rate))
        edge = len(rates) > 2 and best in {min(rates), max(rates)}
        points.append(Reached(batch, best, needs[best], edge))
        scale = rates[best].estimate(NOISE)
        noise += [scale.mean] if scale is not None and scale.mean > 0 else []
    fit = fit_critical({p.batch: p.value.mean for p in points}) if metric == "target/steps" else None
    band = (min(noise), max(noise)) if noise else None
    return ToTarget(group.name, metric, tuple(points), tuple(missed), fit, band)


def _need(cell: Cell, metric: str) -> Estimate | None:
    # A rate with which one seed never arrives is no way to the target.
    reached = [run.get(REACHED) for run in cell.runs]
    if not all(is_number(value) and value > 0 for value in reached):
        return None
    found = cell.estimate(metric)
    return found if found is not None and found.mean > 0 and found.n == len(cell.runs) else None
