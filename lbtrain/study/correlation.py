"""Kendall's rank correlation of sharpness with the generalization gap, with its interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from lbtrain.study.axes import words
from lbtrain.study.conditions import cells
from lbtrain.study.estimates import digits
from lbtrain.study.methods import is_number
from lbtrain.study.phrases import count
from lbtrain.study.sheets import Entry, Sheet, number

Matrix = npt.NDArray[np.float64]

TITLE = "Sharpness and generalization"
GAPS = ("gap/loss", "gap/acc")
RESAMPLES = 2000  # a percentile at 2.5 % then rests on 50 of them; Efron and Tibshirani (1993), 14.2, ask for 1000
# The interval held the true value in 91 to 98 % of simulated sweeps of 6 to 24 settings with 1 or 5 seeds each, and in
# 73 to 93 % of those with 4; a test repeats a part of that.
MIN_SETTINGS = 6
_SEED = 0
# Numbers beside the measures themselves: error bounds, counts, and parts of them.
_NOT_MEASURES = ("stderr", "residual", "interrupted", "corner", "num_matvecs")
_CURVATURE = ("lambda_max", "trace", "frobenius", "condition", "stability")


@dataclass(frozen=True)
class Correlation:
    """Kendall's tau-b of a measure with a gap over runs.

    Args:
        measure: Key of the sharpness.
        gap: Key of the gap.
        tau: tau-b, from -1 to 1.
        low: Lower end of its 95 % interval; None with too few settings.
        high: Upper end.
        num_runs: Number of runs.
        num_settings: Number of settings that they are of.
    """

    measure: str
    gap: str
    tau: float
    low: float | None
    high: float | None
    num_runs: int
    num_settings: int

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def tau_b(groups: Sequence[Sequence[tuple[float, float]]]) -> tuple[float, float, float] | None:
    """Correlate ranks, `tau_b = (C - D) / sqrt((n0 - n1) (n0 - n2))`, with a bootstrap over groups.

    C and D are the pairs of points in the same and in the opposite order, n0 all pairs, n1 and n2 those tied in the
    first and in the second number (Kendall 1945, "The treatment of ties in ranking problems"). The interval is that of
    the percentiles when whole groups are drawn with replacement (Field and Welsh 2007, "Bootstrapping clustered data"),
    always with the same random numbers; pairs between copies of one group, which no new data would have, do not count.

    Args:
        groups: The points of each group, such as the seeds of one setting.

    Returns:
        tau-b and both ends of its 95 % interval, NaN with fewer than `MIN_SETTINGS` groups; None where either number is
        the same in all points.
    """
    ordered = sorted(sorted(group) for group in groups)  # so that the order of the runs changes no digit
    same, first, second = _pairs(ordered)
    each = np.ones((1, len(ordered)))
    tau = float(_tau(same, first, second, each)[0])
    if math.isnan(tau):
        return None
    if len(ordered) < MIN_SETTINGS:
        return tau, math.nan, math.nan
    drawn = np.random.default_rng(_SEED).multinomial(len(ordered), [1 / len(ordered)] * len(ordered), RESAMPLES)
    resampled = _tau(same, first, second, drawn.astype(float))
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    return tau, float(low), float(high)


def correlations(table: pd.DataFrame) -> list[Correlation]:
    """Correlate every measure of sharpness with the gaps, over the runs that did not diverge.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        One for each measure and gap that vary over at least three runs.
    """
    everything = list(cells(table).values())
    found = []
    for gap in GAPS:
        for measure in measures(table):
            groups = []
            for cell in everything:
                sharp, gaps = cell.values(measure), cell.values(gap)
                groups.append([(sharp[seed], gaps[seed]) for seed in sharp if seed in gaps])
            groups = [group for group in groups if group]
            runs = sum(map(len, groups))
            result = tau_b(groups) if runs >= 3 else None  # of two points, tau is 1 or -1 whatever they are
            if result is not None:
                tau, low, high = result
                ends = (None, None) if math.isnan(low) else (low, high)
                found.append(Correlation(measure, gap, tau, ends[0], ends[1], runs, len(groups)))
    return found


def measures(table: pd.DataFrame) -> list[str]:
    """List the measures of sharpness that runs have.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        Keys: of both matrices the largest eigenvalue, trace, Frobenius norm, condition and stability, then all of
        `sharpness/`, without their error bars.
    """
    wanted = [f"{matrix}/{name}" for matrix in ("hessian", "ggn") for name in _CURVATURE]
    wanted += sorted(key for key in table.columns if key.startswith("sharpness/") and not key.endswith(_NOT_MEASURES))
    return [key for key in wanted if key in table and any(is_number(value) for value in table[key])]


def correlation_sheet(table: pd.DataFrame) -> Sheet | None:
    """Lay out the rank correlations, the strongest first.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        The table with what it says; None when no run has both a sharpness and a gap.
    """
    found = sorted(correlations(table), key=lambda c: (GAPS.index(c.gap), -abs(c.tau), c.measure))
    if not found:
        return None
    body = tuple(
        (
            Entry(words(c.measure)),
            Entry(words(c.gap)),
            number(c.tau, digits(c.tau, signed=True, significant=2))._replace(bar=_bar(c), strong=c.clear),
            Entry("no interval" if c.low is None else "excluded" if c.clear else "inside"),
            number(float(c.num_runs), str(c.num_runs)),
            number(float(c.num_settings), str(c.num_settings)),
        )
        for c in found
    )
    header = ("sharpness", "gap", "Kendall's tau-b", "zero", "runs", "settings")
    return Sheet(TITLE, header, body, tuple(_told(found)))


def _told(found: list[Correlation]) -> list[str]:
    texts = []
    for gap in GAPS:
        here = [c for c in found if c.gap == gap]
        clear = [c for c in here if c.clear]
        if not here:
            continue
        if not clear:
            why = (
                f"fewer than {MIN_SETTINGS} settings give no interval"
                if all(c.low is None for c in here)
                else "every interval includes zero"
            )
            texts.append(f"No sharpness is shown to go with the {words(gap)}: {why}.")
            continue
        text = f"The {words(gap)} goes most closely with {_named(clear[0])}"
        text += f", least closely with {_named(clear[-1])}" if len(clear) > 1 else ""
        unclear = [words(c.measure) for c in here if not c.clear]
        text += f"; for {', '.join(unclear)}, zero is not excluded" if unclear else ""
        texts.append(f"{text} ({count(clear[0].num_runs, 'run')} of {count(clear[0].num_settings, 'setting')}).")
    judged = sum(c.low is not None for c in found)
    texts.append(
        "A gap is test minus train: a positive tau with the loss gap, and a negative one with the accuracy gap, mean "
        "that sharper runs generalize worse. What moves both, such as the batch size, is in it: no proof of a cause."
    )
    if judged > 1:
        texts.append(
            f"Of {judged} intervals, about {digits(0.05 * judged, significant=2)} would exclude zero by chance alone "
            "if nothing were correlated; the measures are not independent of each other."
        )
    return texts


def _named(c: Correlation) -> str:
    return f"{words(c.measure)}: tau {digits(c.tau, signed=True, significant=2)} ({_bar(c)})"


def _bar(c: Correlation) -> str:
    if c.low is None or c.high is None:
        return ""
    return " to ".join(digits(end, signed=True, significant=2) for end in (c.low, c.high))


def _pairs(groups: Sequence[Sequence[tuple[float, float]]]) -> tuple[Matrix, Matrix, Matrix]:
    """Sum over the pairs of points of each two groups.

    Returns:
        Whether they are in the same (1) or in the opposite order (-1); untied in the first number; in the second.
    """
    points = np.array([point for group in groups for point in group], dtype=float)
    of = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    x, y = (np.sign(column[:, None] - column[None, :]) for column in points.T)
    member = (of[:, None] == np.arange(len(groups))[None, :]).astype(float)
    same, first, second = (member.T @ matrix @ member for matrix in (x * y, x * x, y * y))
    return same, first, second


def _tau(same: Matrix, first: Matrix, second: Matrix, drawn: Matrix) -> Matrix:
    """Return tau-b for each row of `drawn`, which says how often each group counts; NaN where a number is constant."""
    order, one, two = (
        np.einsum("ri,ij,rj->r", drawn, between, drawn, optimize=True) + drawn @ np.diag(sums)
        for sums in (same, first, second)
        for between in [sums - np.diag(np.diag(sums))]
    )
    untied = one * two
    found: Matrix = np.divide(order, np.sqrt(untied), out=np.full(len(drawn), math.nan), where=untied > 0)
    return found
