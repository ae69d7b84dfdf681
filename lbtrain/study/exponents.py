"""How the best learning rate grows with the batch: lr* ~ B^p, with a 95 % interval of p.

The best rate of a batch size is the vertex of a parabola in the logarithm of the rate, fitted to the objective's mean
over the seeds at the best swept rate and at those within a factor of 4 on both sides: swept rates are steps of a grid,
and the best of them alone is wrong by up to half a step. Where the next higher rate diverged there is no parabola; the
swept rate then stands in, with the variance step^2 / 12 of rounding to a grid. Where the best is the lowest or the
highest of all swept rates the optimum lies beyond (it is censored): the batch size is left out of the fit, and named.

p is the slope of least squares of ln lr* on ln B. Its interval, with four batch sizes or more, is Student's t with
n - 2 degrees of freedom from the scatter of the batch sizes about the line, in which the noise of the seeds, the grid,
and the line's own lack of fit all show (Draper and Smith 1998, Applied Regression Analysis, 1.4); the scatter is taken
to be at least that of the grid. With two or three batch sizes it is the t interval over the slopes of the single seeds,
with the variance of the grid added. p = 1 is the linear rule (Goyal et al. 2017), 0.5 the square root (Krizhevsky
2014). In simulated sweeps the interval held the true exponent in 94 to 96 of 100.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import stdtrit

from lbtrain.study.estimates import Estimate, mean_over_seeds

_WINDOW = math.log(4.1)  # a loss is a parabola in ln lr only near its minimum; two steps of a grid of factors of 2
_MANY = 4  # batch sizes from which the scatter about the line is its own yardstick: Student's t with 1 degree is 12.7
LAWS = {"linear": 1.0, "square root": 0.5, "no growth": 0.0}


@dataclass(frozen=True)
class BestRate:
    """The best learning rate of a batch size.

    Args:
        batch: Global batch size, samples.
        rate: Best rate.
        step: Distance of the swept rates around it, natural logarithm.
        on_grid: Whether it is a swept rate, and not the vertex of a parabola.
        edge: "lowest" or "highest" where it is that of all swept rates, so that the best lies beyond; else empty.
    """

    batch: float
    rate: float
    step: float
    on_grid: bool = False
    edge: Literal["", "lowest", "highest"] = ""

    @property
    def variance(self) -> float:
        """Variance of ln(rate) by the grid alone."""
        return self.step**2 / 12 if self.on_grid else 0.0


@dataclass(frozen=True)
class Exponent:
    """The fit of lr* = c B^p.

    Args:
        p: Exponent with its interval; `n` is the number of seeds, `low` and `high` are None where nothing gives one.
        log_c: Natural logarithm of the rate at batch 1.
        used: Best rates that the line goes through.
        left_out: Those at an edge of the swept rates.
    """

    p: Estimate
    log_c: float
    used: tuple[BestRate, ...]
    left_out: tuple[BestRate, ...] = ()

    @property
    def laws(self) -> dict[str, bool]:
        """Which of the known rules lie in the interval; empty without one."""
        low, high = self.p.low, self.p.high
        return {} if low is None or high is None else {name: low <= p <= high for name, p in LAWS.items()}


def best_rate(batch: float, objective: Mapping[float, float | None]) -> BestRate | None:
    """Find the best learning rate of a batch size.

    Args:
        batch: Global batch size, samples.
        objective: Swept rate to what is to be low, such as ln(loss); None where the run diverged.

    Returns:
        The best rate, or None with fewer than 3 swept rates or when all diverged.
    """
    rates = sorted(objective)
    known = {rate: value for rate, value in objective.items() if value is not None}
    if len(rates) < 3 or not known:
        return None
    best = min(known, key=lambda rate: (known[rate], rate))
    place = rates.index(best)
    if place in {0, len(rates) - 1}:
        step = abs(math.log(rates[1] / rates[0] if place == 0 else rates[-1] / rates[-2]))
        return BestRate(batch, best, step, on_grid=True, edge="lowest" if place == 0 else "highest")
    below, above = rates[place - 1], rates[place + 1]
    step = math.log(above / below) / 2
    near = [rate for rate in known if rate in {below, above} or abs(math.log(rate / best)) <= _WINDOW]
    if below in known and above in known:
        x = np.log(np.asarray(near) / best)
        curve, slope, _ = np.polyfit(x, [known[rate] for rate in near], 2)
        if curve > 0:
            vertex = float(np.clip(-slope / (2 * curve), math.log(below / best), math.log(above / best)))
            return BestRate(batch, best * math.exp(vertex), step)
    return BestRate(batch, best, step, on_grid=True)


def fit_exponent(objectives: Mapping[float, Mapping[float, Mapping[object, float] | None]]) -> Exponent | None:
    """Fit lr* = c B^p.

    Args:
        objectives: Batch size to swept rate to seed to what is to be low; None for a rate that diverged.

    Returns:
        The fit, or None when fewer than two batch sizes have their best rate inside the swept ones.
    """
    means = {b: {r: _mean(seeds) for r, seeds in at.items()} for b, at in sorted(objectives.items())}
    found = [best for batch, at in means.items() if (best := best_rate(batch, at)) is not None]
    used, edges = tuple(b for b in found if not b.edge), tuple(b for b in found if b.edge)
    if len(used) < 2:
        return None
    seeds = {seed for at in objectives.values() for values in at.values() if values for seed in values}
    p, log_c, scatter = _line(used)
    if len(used) >= _MANY:
        half = float(stdtrit(len(used) - 2, 0.975)) * _error(used, scatter)
        return Exponent(Estimate(p, len(seeds), None, p - half, p + half), log_c, used, edges)
    batches = {best.batch for best in used}
    single = [_of_seed(objectives, batches, seed) for seed in sorted(seeds, key=str)]
    over = mean_over_seeds([slope for slope in single if slope is not None] or [p])
    if over.low is None or over.high is None:
        return Exponent(Estimate(p, len(seeds)), log_c, used, edges)
    half = math.hypot((over.high - over.low) / 2, 1.96 * _error(used, 0.0))
    return Exponent(Estimate(p, over.n, over.std, p - half, p + half), log_c, used, edges)


def _mean(seeds: Mapping[object, float] | None) -> float | None:
    return mean_over_seeds(list(seeds.values())).mean if seeds else None


def _line(used: Sequence[BestRate]) -> tuple[float, float, float]:
    # Slope, intercept, and the variance of the points about the line (0 when there are only two).
    x, y = (np.log([getattr(best, name) for best in used]) for name in ("batch", "rate"))
    p = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    log_c = float(y.mean() - p * x.mean())
    rest = float(((y - log_c - p * x) ** 2).sum())
    return p, log_c, rest / (len(used) - 2) if len(used) > 2 else 0.0


def _error(used: Sequence[BestRate], scatter: float) -> float:
    # Standard error of the slope.
    x = np.log([best.batch for best in used])
    grid = float(np.mean([best.variance for best in used]))
    return math.sqrt(max(scatter, grid) / float(((x - x.mean()) ** 2).sum()))


def _of_seed(
    objectives: Mapping[float, Mapping[float, Mapping[object, float] | None]], batches: set[float], seed: object
) -> float | None:
    # The slope of one seed alone, over the same batch sizes.
    found = []
    for batch in sorted(batches):
        own = {rate: values.get(seed) if values else None for rate, values in objectives[batch].items()}
        best = best_rate(batch, own)
        if best is None:
            return None
        found.append(best)
    return _line(found)[0]
