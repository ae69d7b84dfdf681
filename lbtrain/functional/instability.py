"""Whether a run became unstable, when, and which rate would have held."""

import math

from lbtrain.functional._rises import Rise, fatal_spike, lasting_rise, loss_of_number, rise_above_start, undone
from lbtrain.functional._robust import two_digits
from lbtrain.functional.diagnosis import Finding, Remedy
from lbtrain.functional.training_curve import Curve


def instability_finding(
    curve: Curve,
    *,
    invalid_data: bool = False,
    momentum: float = 0.0,
    factor: float = 2.0,
    material: float = 0.1,
    spike: float = 1.5,
    recovered: float = 0.8,
    learned: float = 0.2,
    outlier: float = 8.0,
    target: float = 0.5,
    warmable: float = 3.0,
) -> Finding | None:
    """Find a rise of the loss that does not come back, and the step at which it began.

    Gradient descent multiplies the eigen-coordinate i by ``1 - rate * lambda_i``, so beyond ``rate * lambda_max / 2 =
    1`` the top one grows by ``rate * lambda_max - 1`` in a step, while the others may still fall. A rise is one of:

    - the batch losses leave their lowest level for one that is ``factor`` times higher and do not return to it;
    - the loss on the fixed subset ends at ``factor`` times its start or more;
    - a spike of ``spike`` times the start, early or to undo what was learned, after which ``recovered`` of it is left;
    - such spikes in a run beyond its largest stable rate, which had learned ``learned`` of the loss and ends without;
    - a loss that is no finite number.

    Bumps that recover and the noise of small batches are none.

    Args:
        curve: Of the run, of one value or more.
        invalid_data: Whether the data hold values that are not finite: then they, not the rate, made the loss so.
        momentum: Of the optimizer, without unit; of Adam its first beta.
        factor: Ratio of two losses, without unit. A choice: less happens in noise and at changes of the data.
        material: Least rise as a share of the first loss, without unit. A choice: a tenth of what was to be learned.
        spike: Height of such a spike over the start, without unit. A choice: less than ``factor``, since a run that
            learned nothing after it bears it out.
        recovered: Share of the first loss that is left where a spike has ended learning, without unit. A choice.
        learned: Share of the first loss that had gone before it came back, without unit. A choice: more than the first
            steps of any network bring, which learn how frequent the labels are.
        outlier: Height of such a spike in 0.9-quantiles of the batches' distances from their running median. A choice:
            13 standard deviations if these are Gaussian, and above the tails of losses that are exponential.
        target: Stability that the remedy's rate has, without unit. At 0.5, where rate * lambda_max = 1, the top
            eigen-coordinate of a quadratic vanishes in one step, and the curvature may double before it oscillates.
            From a momentum of 1/2 on it shrinks as ``2 (1 - mu)``, to 0.1 at 0.9. A choice: steps add up to
            ``lr / (1 - mu)``, and a convnet on digits that dies at 0.5 with momentum 0.9 trains at 0.1.
        warmable: Stability up to which a warmup is advised, without unit. A choice: curvature falls by some factor
            while the rate warms up (Gilmer et al. 2021, arXiv 2110.04369), and not by tens.

    Returns:
        The finding, ``since`` the first step whose loss had left the level before; None for a run that is stable.

    References:
        Cohen et al. (2021), arXiv 2103.00065, section 2 (2/rate). Goyal et al. (2017), arXiv 1706.02677, 2.2 (warmup).
    """
    rise = None if invalid_data else loss_of_number(curve)
    if rise is None and curve.finite:
        rise = (
            rise_above_start(curve, factor)
            or lasting_rise(curve, factor, material)
            or fatal_spike(curve, spike, recovered, material, outlier)
            or undone(curve, spike, recovered, learned)
        )
    if rise is None:
        return None
    if rise.kind == "starts without a number":
        return _without_number(rise)
    known = [p for p in curve.known_stabilities() if p[0] <= rise.step]
    words, numbers = _words(rise), {"low": rise.low, "high": rise.high}
    if known:
        words += f", when {_stability_words(curve, *known[-1], rise.step)}"
        numbers["stability"] = known[-1][1]
    return Finding(
        "instability",
        words,
        numbers,
        max(rise.severity, 1.0),
        rise.step,
        _remedies(curve, rise, target * min(1.0, 2 * (1 - momentum)), warmable),
    )


def _without_number(rise: Rise) -> Finding:
    """Return the finding of a run whose very first loss is no number, which no rate can help."""
    words = f"the loss is {rise.high:g} before the first step, so that no rate is to blame"
    remedy = Remedy("look at the initial weights, the loss function and the precision: no step had been taken")
    return Finding("instability", words, {"high": rise.high}, math.inf, 0, (remedy,))


def _words(rise: Rise) -> str:
    """Return what happened to the loss, and when."""
    if rise.kind == "is lost":
        return f"the loss left {rise.low:.3g} at step {rise.step} and became {rise.high:g}"
    grown = rise.high / rise.low if rise.low > 0 else math.nan
    rose = f"the loss rose {_times(grown)}x" if math.isfinite(grown) else "the loss rose"
    if rise.kind == "ends above its start":
        when = f"from step {rise.step} on" if rise.step else "from the first step on"
        return f"{rose} above its start {when}, from {rise.low:.3g} to {rise.high:.3g}"
    levels = f"{_at(rise.step)}, from {rise.low:.3g} to {rise.high:.3g}"
    end = {"never recovers": "never recovered", "undid": "undid the learning"}
    return f"{rose} {levels}, and {end.get(rise.kind, 'stayed up')}"


def _at(step: int) -> str:
    """Return when it was."""
    return f"at step {step}" if step else "from the first step on"


def _times(ratio: float) -> str:
    """Return a ratio with as many digits as can be read."""
    return f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:.0f}" if ratio < 1e4 else f"{ratio:.0e}"


def _stability_words(curve: Curve, step: int, stability: float, rise: int) -> str:
    """Return the stability at the last sample before the rise, as lr*lambda_max/2 where it is just that."""
    place = f" at step {step}" if step != rise else ""
    if curve.is_plain(step, stability):
        return f"lr*lambda_max/2 was {stability:.2g}{place}"
    return f"the rate was {stability:.2g} times the largest stable one{place}"


def _remedies(curve: Curve, rise: Rise, target: float, warmable: float) -> tuple[Remedy, ...]:
    """Return a rate that holds, and warming up where the rise came early."""
    rate = curve.rate_at(rise.step)
    if not rate:
        return (Remedy("lower the rate tenfold, or warm it up over the first steps"),)
    # The rate may have changed since the sample; a stability that was harmless there explains nothing.
    scaled = [
        s * rate / before
        for step, s in curve.known_stabilities()
        if step <= rise.step and s > 0 and (before := curve.rate_at(step))
    ]
    known = bool(scaled) and scaled[-1] >= 1
    lower = two_digits(rate * target / scaled[-1] if known else rate / 10)
    part = "half" if target == 0.5 else f"{target:.2g} of"
    why = f"{part} the largest stable rate" if known else "a tenth"
    found = [Remedy(f"lower the rate from {rate:.2g} to {lower:g}, {why}", {"lr": lower})]
    if (10 * rise.step < curve.length or rise.step < 10) and not (scaled and scaled[-1] > warmable):
        steps = max(10, curve.length // 10)
        # A network that has died has next to no curvature, and a rate that is stable there is right nowhere.
        later = [s for step, s in curve.known_stabilities(rise.step + 1) if 0.01 < s < 1]
        words = f"warm the rate up over the first {steps} steps, if it is right later"
        found.append(Remedy(words, {"warmup_steps": steps} if later else {}))
    return tuple(found)
