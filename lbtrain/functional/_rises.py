"""Where a loss left its level for good."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from lbtrain.functional._robust import quantile, running_median, scatter
from lbtrain.functional.training_curve import Curve


@dataclass(frozen=True)
class Rise:
    """A rise of the loss: where it began, from which level to which, what it ended in, and how sure that is."""

    step: int
    low: float
    high: float
    kind: str
    severity: float


def lasting_rise(curve: Curve, factor: float, material: float) -> Rise | None:
    """Return the rise after which the batch losses stayed above all that had been around before it."""
    losses, size = curve.losses, len(curve.losses)
    window = 5 if size >= 30 else 3
    if size < 2 * window:
        return None
    smooth = running_median(losses, window)
    # The first and the last values have no median of a full window; by chance they are very low.
    low, place = min((smooth[i], -i) for i in range(window // 2, size - window // 2))
    high = median(losses[-max(window, size // 10) :])
    needed = max((factor - 1) * abs(low), material * abs(curve.start))
    if high - low < needed or high <= low:
        return None
    step = _leaving(losses, smooth, -place, max(window, size // 20))
    before, after = losses[max(0, step - max(window, size // 20)) : step], losses[step:]
    # Noise goes up and down across the level that it had; a run that left it does not come back.
    apart = len(after) >= 3 and quantile(after, 0.1) > quantile(before, 0.9) if before else True
    if not apart or not _subset_agrees(curve, low, high) or _returns(smooth[:step], low, high):
        return None
    return Rise(step, low, high, "stays up", (high - low) / needed if needed else math.inf)


def _leaving(losses: Sequence[float], smooth: Sequence[float], place: int, width: int) -> int:
    """Return the first index from which the smooth loss stays above the level up to its lowest place."""
    around = losses[max(0, place - width + 1) : place + 1]
    level = max(smooth[place] + 0.2 * abs(smooth[place]), quantile(around, 0.9) if len(around) > 4 else -math.inf)
    return rise_start(smooth, level, len(smooth))


def rise_start(values: Sequence[float], level: float, end: int) -> int:
    """Return the index after the last one before `end` whose value is at the level or below."""
    return next((i + 1 for i in range(end - 1, -1, -1) if values[i] <= level), 0)


def _subset_agrees(curve: Curve, low: float, high: float) -> bool:
    """Return whether the loss on the fixed subset ended at least half as high; True where it was not recorded."""
    return len(curve.levels) < 2 or curve.levels[-1] - low >= 0.5 * (high - low)


def _returns(smooth: Sequence[float], low: float, high: float) -> bool:
    """Return whether the loss had come back from as high at least twice before: that is fluctuation."""
    upper, lower, was_low, times = low + 0.7 * (high - low), low + 0.3 * (high - low), False, 0
    was_up = False
    for value in smooth:
        if value <= lower:
            times += was_low and was_up
            was_low, was_up = True, False
        was_up = was_up or value >= upper
    return times >= 2


def rise_above_start(curve: Curve, factor: float) -> Rise | None:
    """Return the rise of a run that ends above its start on the fixed subset, whatever its batches show."""
    if len(curve.levels) < 2 or curve.steps[0] != 0:
        return None
    start = curve.levels[0]
    # The last quarter, so that a loss which comes back again and again is not taken at a bad moment.
    high = median(curve.levels[-max(1, len(curve.levels) // 4) :])
    needed = (factor - 1) * abs(start)
    if start == 0 or high - start < needed:
        return None
    bad = min(rise_start(curve.levels, start + 0.1 * abs(start), len(curve.levels)), len(curve.levels) - 1)
    first, last = curve.steps[bad - 1], curve.steps[bad]
    between = running_median(curve.losses[first : last + 1], 3)
    step = min(first + rise_start(between, start + 0.1 * abs(start), len(between)), last)
    return Rise(step, start, high, "ends above its start", (high - start) / needed)


def fatal_spike(curve: Curve, factor: float, recovered: float, material: float, outlier: float) -> Rise | None:
    """Return the spike after which nothing was learned any more: at the start, or one that undid what had been."""
    start, losses = curve.start, curve.losses
    if len(losses) < 6 or start <= 0 or curve.end < recovered * start:
        return None
    peak = max(range(len(losses)), key=losses.__getitem__)
    # A spike of a few steps is not in the 0.9-quantile; batches that differ much are.
    noise = scatter(losses)
    needed = max((factor - 1) * start, outlier * noise)
    # Five noisy batches do not tell where the run started.
    high = losses[peak] - start
    # What stays up is no spike, and is judged as a lasting rise.
    if high < needed or curve.end - start > 0.5 * high or (not curve.levels and noise > 0.25 * start):
        return None
    step = rise_start(losses, 1.2 * start, peak)
    early = step <= max(10, len(losses) // 10)
    if not early and curve.end - median(losses[step // 2 : step]) < material * start:
        return None
    return Rise(step, start, losses[peak], "never recovers", (losses[peak] - start) / needed)


def undone(curve: Curve, spike: float, recovered: float, learned: float) -> Rise | None:
    """Return the spike around which a run beyond its largest stable rate lost again what it had learned."""
    start, losses, levels = curve.start, curve.losses, curve.levels
    known = [s for _, s in curve.known_stabilities()]
    if len(losses) < 6 or len(levels) < 4 or start <= 0 or max(known, default=0.0) < 1:
        return None
    # The last quarter, so that a loss which comes back again and again is not taken at a bad moment.
    end, peak = median(levels[-max(1, len(levels) // 4) :]), max(range(len(losses)), key=losses.__getitem__)
    if end < recovered * start or min(levels) > (1 - learned) * start or losses[peak] < spike * start:
        return None
    needed = (spike - 1) * start
    return Rise(rise_start(losses, 1.2 * start, peak), start, losses[peak], "undid", (losses[peak] - start) / needed)


def loss_of_number(curve: Curve) -> Rise | None:
    """Return the rise that ends in a loss that is no finite number."""
    lost = next((i for i, v in enumerate(curve.losses) if not math.isfinite(v)), None)
    if lost is None:
        lost = next((s for s, v in zip(curve.steps, curve.levels, strict=True) if not math.isfinite(v)), None)
    if lost is None:
        return None
    before = list(curve.losses[:lost])
    if not before:
        value = curve.losses[0] if curve.losses and not math.isfinite(curve.losses[0]) else curve.levels[0]
        return Rise(0, value, value, "starts without a number", math.inf)
    smooth = running_median(before, 3)
    low = min(smooth)
    step = rise_start(smooth, low + max(0.1 * abs(low), scatter(before)), len(before))
    value = curve.losses[lost] if lost < len(curve.losses) else math.nan
    return Rise(min(step, lost), low, value, "is lost", math.inf)
