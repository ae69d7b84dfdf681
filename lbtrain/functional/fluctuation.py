"""Whether the noise of mini-batches keeps the loss above where it would settle."""

import math
from statistics import median

from lbtrain.functional._robust import two_digits
from lbtrain.functional._swing import lost_by_swing
from lbtrain.functional.averaging import AveragingGain
from lbtrain.functional.diagnosis import Finding, Remedy
from lbtrain.functional.oscillation import oscillation_finding
from lbtrain.functional.training_curve import Curve


def fluctuation_finding(
    curve: Curve,
    *,
    averaging: AveragingGain | None = None,
    batch_size: int | None = None,
    oscillates: bool | None = None,
    noise: float = 0.5,
    share: float = 0.3,
    material: float = 0.02,
) -> Finding | None:
    """Find a loss that gradient noise holds up: at a rate, noise of variance ``s^2 / B`` adds about ``rate s^2 / 4 B``.

    Three things together: the loss on the fixed subset has stopped falling; most of a batch's gradient is noise; and a
    material part of the loss would be gone at the mean of recent iterates, or, where that is not known, the loss
    swings by as much. Steps that leap along the top eigenvector are oscillations and not these.

    Args:
        curve: Of the run.
        averaging: From `averaging_gain` at the end; None judges by the swing of the loss.
        batch_size: Samples of a batch on one device, for the remedy; None leaves that in words.
        oscillates: Whether the steps are known to leap, by `oscillation_finding`; None asks it.
        noise: Share of a batch gradient's squared norm that must be noise at one sample of the second half at least;
            1/2 is where noise and signal are equal, at the critical batch size. Not asked where it was not measured.
        share: Part of the recent loss that must be due to it, without unit. A choice: less is not worth a change.
        material: That part as a share of the first loss, without unit. A choice: 2 % of what was to be learned; the
            last percents always fluctuate.

    Returns:
        The finding, or None.

    References:
        Mandt et al. (2017), arXiv 1704.04289, eq. 11-13 (stationary covariance). McCandlish et al. (2018), arXiv
        1812.06162, section 2.2 (critical batch size).
    """
    if not curve.finite:
        return None
    second = zip(curve.steps, curve.noises, strict=True) if curve.noises else ()
    shares = [v for step, v in second if v is not None and math.isfinite(v) and 2 * step >= curve.length]
    # The largest: a batch whose gradient happens to be small has little noise and little weight in all noise.
    if shares and max(shares) < noise:
        return None
    lost = lost_by_swing(curve, averaging, share, material)
    if lost is None:
        return None
    if oscillation_finding(curve, averaging=averaging) is not None if oscillates is None else oscillates:
        return None
    words, numbers = f"the loss has stopped falling and fluctuates; {lost.words}", {"lost": lost.loss}
    if shares:
        words += f"; up to {100 * max(shares):.0f} % of a batch gradient's square is noise"
        numbers["noise"] = max(shares)
    return Finding("fluctuations", words, numbers, lost.part / share, _settled(curve), _remedies(curve, batch_size))


def _settled(curve: Curve) -> int:
    """Return the first step at which the loss is as low as in the second half."""
    steps, levels = curve.track
    middle = median(levels[len(levels) // 2 :])
    return next(step for step, level in zip(steps, levels, strict=True) if level <= middle)


def _remedies(curve: Curve, batch_size: int | None) -> tuple[Remedy, ...]:
    """Return what lessens the noise, or its share in the result."""
    peak = curve.peak
    lower = {} if peak is None else {"lr": two_digits(peak / 10)}
    to = f" to {lower['lr']:g}" if lower else " tenfold"
    larger = {} if batch_size is None else {"batch_size": 8 * batch_size}
    batch = f"batches of {8 * batch_size} on each device" if batch_size else "batches 8 times as large"
    return (
        Remedy(f"lower the rate{to}, or let it decay to 0 over the run (cosine)", lower),
        Remedy("average the iterates of the last quarter (WeightAveraging)", {"averaging": True}),
        Remedy(f"{batch} at the same rate, with an eighth of the noise", larger),
    )
