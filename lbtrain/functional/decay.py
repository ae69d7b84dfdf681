"""Whether the rate was cut while it still served, or long after it did."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from lbtrain.functional.diagnosis import Change, Finding, Remedy
from lbtrain.functional.training_curve import Curve


@dataclass(frozen=True)
class Cut:
    """A sudden fall of the rate.

    Attributes:
        step: First optimizer step at the lower rate, counted from 0.
        before: Rate of the step before.
        after: Rate of that step.
    """

    step: int
    before: float
    after: float


def rate_cuts(rates: Sequence[float], *, factor: float = 3.0, even: float = 1.2) -> tuple[Cut, ...]:
    """Return the steps at which a schedule of constant pieces cuts the rate.

    A cut from one step to the next, with an even rate on both sides: the steep last steps of a cosine are none.

    Args:
        rates: Learning rate of each optimizer step, not negative.
        factor: Least ratio of the rates, without unit. A choice: schedules cut by 2 to 10, and a cut by 2 leaves the
            pace in the same order.
        even: Largest ratio of rates within the 3 steps before and the 3 from the cut on. A choice.

    Returns:
        The cuts, the first one first.
    """
    cuts = []
    for step in range(1, len(rates)):
        if rates[step - 1] < factor * rates[step] or rates[step - 1] <= 0:
            continue
        sides = rates[max(0, step - 3) : step], rates[step : step + 3]
        if len(sides[1]) == 3 and all(max(side) <= even * min(side) for side in sides):
            cuts.append(Cut(step, rates[step - 1], rates[step]))
    return tuple(cuts)


def decay_findings(
    curve: Curve,
    *,
    steps_per_epoch: int | None = None,
    factor: float = 3.0,
    stall: float = 0.5,
    high: float = 0.2,
    late: float = 0.85,
    even: float = 0.1,
    errors: float = 3.0,
) -> tuple[Finding, ...]:
    """Find a first cut of the rate that stopped a falling loss, or that ended a plateau when the run was almost over.

    Lowering the rate takes away the fluctuation that belongs to it, and with it the pace. Too early: the loss fell
    right up to the cut, changed little after it, and is high. Too late: it had stood for half of the time before, and
    the cut halved it.

    Args:
        curve: Of the run.
        steps_per_epoch: Optimizer steps of an epoch, for remedies in epochs.
        factor: Least ratio of the rates of a cut, without unit.
        stall: Share of the loss at the cut that is left after it, without unit; the pace before must have been about to
            lead below it. A choice: a cut that still halves the loss has not stopped it.
        high: Share of the first loss that is left at the end of a run cut too early, without unit. A choice: below a
            fifth the run has done most of its work.
        late: Share of the run before a cut that is too late, without unit. Usual first cuts are at a
            third to half of the run (Goyal et al. 2017: 1/3; He et al. 2016: 1/2), last ones, after others, at 0.9.
        even: Share by which the loss may fall in the second half of a plateau, without unit. A choice.
        errors: Standard errors by which the loss must fall in the half of the time before the cut, or 30 steps; 3.
            A choice: by chance in 1 of 700 runs.

    Returns:
        One finding or none: on the first cut only, since later ones are judged at a rate that it chose.

    References:
        Goyal et al. (2017), arXiv 1706.02677, 5.1 and He et al. (2016), arXiv 1512.03385, 4.2 (where rates are cut).
    """
    cuts = rate_cuts(curve.rates, factor=factor)
    if not cuts or not curve.finite:
        return ()
    found = _too_early(curve, cuts[0], stall, high, errors, steps_per_epoch)
    found = found or _too_late(curve, cuts[0], late, even, stall, steps_per_epoch)
    return () if found is None else (found,)


def _too_early(
    curve: Curve, cut: Cut, stall: float, high: float, errors: float, steps_per_epoch: int | None
) -> Finding | None:
    """Return the finding of a cut that stopped a falling loss."""
    before, after = curve.losses[max(0, min(cut.step // 2, cut.step - 30)) : cut.step], curve.losses[cut.step :]
    if len(before) < 4 or curve.end < high * curve.start:
        return None
    slope, error = line(before)
    at_cut = fmean(before) + slope * (len(before) - 1) / 2
    # The batches before the cut and those at the end are on the same ruler, which the fixed subset need not be.
    settled = fmean(after[-max(3, len(after) // 4) :])
    led = -slope * len(after)
    if -slope < errors * error or settled < stall * at_cut or led < (1 - stall) * at_cut:
        return None
    words = (
        f"the loss was falling by {-100 * slope / at_cut:.2g} % in a step when the rate was cut from "
        f"{cut.before:.2g} to {cut.after:.2g} at step {cut.step}, and "
        f"{'went' if settled < at_cut else 'did not fall:'} from {at_cut:.3g} to {settled:.3g} "
        f"{'only ' if settled < at_cut else ''}in the {len(after)} steps after it"
    )
    numbers = {"pace": -slope, "left_after": settled / at_cut}
    severity = max(1.0, led / ((1 - stall) * at_cut))
    where, never = max(0.6, 0.5 * (1 + cut.step / curve.length)), Remedy("do not cut it")
    # So late that there is next to no run left after it.
    if where > 0.9:
        return Finding("decay too early", words, numbers, severity, cut.step, (never,))
    later = _moved("cut the rate later", where, _in_epochs(where * curve.length, steps_per_epoch))
    return Finding("decay too early", words, numbers, severity, cut.step, (later, never))


def _too_late(
    curve: Curve, cut: Cut, late: float, even: float, stall: float, steps_per_epoch: int | None
) -> Finding | None:
    """Return the finding of a cut that ended a plateau near the end of the run."""
    before, after = _around(curve, cut)
    if cut.step < late * len(curve.losses) or len(before) < 6 or not after:
        return None
    third, last = before[: len(before) // 2], before[len(before) // 2 :]
    error = math.sqrt(stdev(third) ** 2 / len(third) + stdev(last) ** 2 / len(last))
    stood, low = fmean(before), fmean(after)
    fell = fmean(third) - fmean(last) > max(even * abs(stood), 2 * error)
    if fell or low > stall * stood or stood - low < 0.05 * abs(curve.start):
        return None
    steps, levels = curve.track
    began = next((s for s, v in zip(steps, levels, strict=True) if v <= stood), cut.step // 2)
    where = max(0.5, began / len(curve.losses))
    words = (
        f"the loss stood at {stood:.3g} from step {began} on, and fell to {low:.3g} once the rate was cut from "
        f"{cut.before:.2g} to {cut.after:.2g} at step {cut.step} of {len(curve.losses)}"
    )
    numbers = {"left_after": low / stood, "cut": cut.step / len(curve.losses)}
    earlier = _moved("cut the rate earlier", where, _in_epochs(where * len(curve.losses), steps_per_epoch))
    return Finding("decay too late", words, numbers, max(1.0, stood * stall / low), min(began, cut.step), (earlier,))


def _around(curve: Curve, cut: Cut) -> tuple[Sequence[float], Sequence[float]]:
    """Return the losses of the half of the time before the cut, and those that the run ends with.

    Those on the fixed subset where they are enough, since batches may have noise of their own that no rate removes.
    """
    size = len(curve.losses)
    settled = cut.step + (size - cut.step) // 2
    at = list(zip(curve.steps, curve.levels, strict=True))
    before = [v for s, v in at if cut.step // 2 <= s <= cut.step]
    after = [v for s, v in at[-1:] if s >= settled]
    if len(before) >= 6 and after:
        return before, after
    return curve.losses[cut.step // 2 : cut.step], curve.losses[settled:]


def line(values: Sequence[float]) -> tuple[float, float]:
    """Return the slope of a straight line through equally spaced values, by least squares, and its standard error.

    Args:
        values: At least three.

    Returns:
        Slope and error, in the unit of the values per step.
    """
    middle, mean = (len(values) - 1) / 2, fmean(values)
    spread = math.fsum((i - middle) ** 2 for i in range(len(values)))
    slope = math.fsum((i - middle) * (v - mean) for i, v in enumerate(values)) / spread
    rest = math.fsum((v - mean - slope * (i - middle)) ** 2 for i, v in enumerate(values))
    return slope, math.sqrt(rest / (len(values) - 2) / spread)


def _in_epochs(step: float, steps_per_epoch: int | None) -> int | None:
    """Return the epoch of a step, at least 1; None where its length is not known."""
    return max(1, round(step / steps_per_epoch)) if steps_per_epoch else None


def _moved(words: str, share: float, epoch: int | None) -> Remedy:
    """Return the remedy of a cut at another place."""
    change: dict[str, Change] = {} if epoch is None else {"decay_epoch": epoch}
    place = f", after epoch {epoch}" if epoch is not None else ""
    return Remedy(f"{words}, at about {100 * share:.0f} % of the run{place}", change)
