"""How the training of a run ends: the level of its loss, its noise, and the pace at which it still falls."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

import pandas as pd

from lbtrain.study.histories import history
from lbtrain.study.methods import is_number
from lbtrain.study.settings import Row

LAST = 0.25  # of the run: late enough to be at its level, long enough to show noise
MIN_VALUES = 4  # in the last quarter: a line takes two of them
_SUBSET = "subset/loss"  # of a fixed subset, as FixedSubsetLoss logs it


@dataclass(frozen=True)
class Ending:
    """The end of one run; everything in the unit of its loss.

    Args:
        loss: Final training loss.
        level: Median of the last quarter.
        noise: Standard deviation about the straight line through the last quarter.
        freedom: Degrees of freedom of the noise.
        drop: By how much that line falls over a quarter of the run, less its standard error; 0 where it rises.
        first: The first loss that was logged, at least that of guessing where the number of classes is known.
    """

    loss: float
    level: float
    noise: float
    freedom: int
    drop: float
    first: float


def ending(run: Row) -> Ending | None:
    """Read how a run ends.

    The noise is that of the loss on a fixed subset, where it was logged. Otherwise it is that of the training loss by
    epoch or of the validation loss, whichever is larger: a mean over an epoch hides how far the loss moves within it.

    Args:
        run: Its row, with its folder.

    Returns:
        The ending; None where fewer than eight losses were logged, or where one of the last quarter is not finite.
    """
    log = history(run["folder"])
    if log is None:
        return None
    steps, values = logged(log, _SUBSET)
    of_subset = len(values) >= 2 * MIN_VALUES
    if not of_subset:
        steps, values = logged(log, "train/loss", within=True)
    final = run.get("train/loss")
    found = ending_of(steps, values, final if is_number(final) else None)
    if found is None:
        return None
    first = max(found.first, math.log(run["classes"])) if run["classes"] else found.first
    other = None if of_subset else ending_of(*logged(log, "val/loss"))
    louder = max([found, *([other] if other else [])], key=lambda one: one.noise)
    return Ending(found.loss, found.level, louder.noise, louder.freedom, found.drop, first)


def ending_of(steps: Sequence[float], values: Sequence[float], final: float | None = None) -> Ending | None:
    """Describe the end of a curve: a least squares line through its last quarter.

    Args:
        steps: Where the values are, growing.
        values: Losses.
        final: The final loss, where it is known better than by the last value.

    Returns:
        The ending; None with fewer than eight values, or where one of the last quarter is not finite.
    """
    tail = max(MIN_VALUES, math.ceil(LAST * len(values)))
    if len(values) < 2 * MIN_VALUES or not all(map(math.isfinite, values[-tail:])):
        return None
    x, y = steps[-tail:], values[-tail:]
    centre, mean = fmean(x), fmean(y)
    across = math.fsum((a - centre) ** 2 for a in x)
    slope = math.fsum((a - centre) * (b - mean) for a, b in zip(x, y, strict=True)) / across
    rest = math.fsum((b - mean - slope * (a - centre)) ** 2 for a, b in zip(x, y, strict=True))
    noise = math.sqrt(rest / (tail - 2))
    # Less its standard error, or noise alone would look like a fall.
    drop = max(0.0, (-slope - noise / math.sqrt(across)) * LAST * (steps[-1] - steps[0]))
    return Ending(values[-1] if final is None else final, median(y), noise, tail - 2, drop, values[0])


def logged(log: pd.DataFrame, metric: str, within: bool = False) -> tuple[list[float], list[float]]:
    """Take the values of a metric out of a log.

    Args:
        log: As `histories.history` gives it.
        metric: Column.
        within: Whether only what was logged within an epoch counts: after the last one stands the loss as evaluated,
            without dropout, which is no part of the curve.

    Returns:
        Steps, each greater than the one before, and values; of two at one step the later. Empty when the metric was
        not logged as numbers.
    """
    needed = [metric, "step", *(["epoch"] if within else [])]
    if any(name not in log for name in needed):
        return [], []
    columns = {name: pd.to_numeric(log[name], errors="coerce") for name in needed}
    there = columns["step"].notna() & columns[metric].notna()
    if within:
        there &= columns["epoch"].notna()
    pairs = zip(columns["step"][there].tolist(), columns[metric][there].tolist(), strict=True)
    ordered = sorted({float(step): float(value) for step, value in pairs}.items())
    return [step for step, _ in ordered], [value for _, value in ordered]
