"""Whether the weights swing across the valley at each step, since the rate is near its stable limit."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

from lbtrain.functional._robust import two_digits
from lbtrain.functional._swing import lost_by_swing
from lbtrain.functional.averaging import AveragingGain
from lbtrain.functional.diagnosis import Finding, Remedy
from lbtrain.functional.training_curve import Curve


@dataclass(frozen=True)
class Correlation:
    """How successive numbers go together.

    Attributes:
        value: Lag-1 correlation about zero, -1 to 1 up to the ends' share; NaN where there are no pairs.
        stderr: Its standard error.
        pairs: Products pooled.
    """

    value: float
    stderr: float
    pairs: int


def projection_correlation(windows: Sequence[Sequence[float]]) -> Correlation:
    """Pool the lag-1 products of short windows, each in its own scale: ``r = mean_i (mean p_t p_{t+1} / mean p_t^2)``.

    Gradients shrink by orders of magnitude in a run, and a window in the unit of the others would decide alone. The
    error is the larger one of two: ``s_r / sqrt(K)`` from the spread over K windows, which is right for many; and
    ``sqrt((1 - r^2) / pairs)``, of a first-order autoregression, for few.

    Args:
        windows: Products of successive gradients with one vector; windows with less than two entries, with one that is
            not finite, or of zeros only are left out.

    Returns:
        The correlation; NaN where no window is left.

    References:
        Box and Jenkins (1976), Time Series Analysis, sections 2.1.5 and 6.3 (estimate and error of autocorrelations).
    """
    kept = [w for w in windows if len(w) > 1 and all(map(math.isfinite, w)) and any(w)]
    if not kept:
        return Correlation(math.nan, math.nan, 0)
    pairs = sum(len(w) - 1 for w in kept)
    each = [fmean(a * b for a, b in itertools.pairwise(w)) / fmean(a * a for a in w) for w in kept]
    value = fmean(each)
    error = math.sqrt(max(1 - value * value, 0.0) / pairs)
    if len(kept) > 1:
        error = max(error, stdev(each) / math.sqrt(len(kept)))
    return Correlation(value, error, pairs)


def gradient_correlation(stability: float, momentum: float = 0.0) -> float:
    """Return the lag-1 correlation of batch gradients along an eigenvector of a quadratic, once it is stationary.

    With ``x_{t+1} = (1 + mu - h) x_t - mu x_{t-1} - rate xi_t``, ``g_t = lambda x_t + xi_t``, ``h = rate lambda`` and
    ``s = h / (2 (1 + mu))``: the weights have ``corr(x_t, x_{t+1}) = 1 - 2 s`` and, over the noise, the variance ``A =
    lambda^2 Var(x) / Var(xi) = (1 + mu) s / ((1 - mu) (1 - s))``, so ``r = (A (1 - 2 s) - 2 (1 + mu) s) / (A + 1)``.
    That is ``-s`` without momentum. Without noise it is ``1 - h = 1 - 2 s`` while the weights still move.

    Args:
        stability: ``s``, from 0 to below 1, without unit.
        momentum: ``mu`` of heavy ball without dampening, 0 to below 1.

    Returns:
        The correlation, without unit.

    Raises:
        ValueError: If one of both is outside its range.
    """
    if not (0 <= stability < 1 and 0 <= momentum < 1):
        given = f"stability={stability!r} and momentum={momentum!r}"
        raise ValueError(f"stability and momentum must be from 0 to below 1, got {given}; there is no stationary state")
    share = (1 + momentum) * stability / ((1 - momentum) * (1 - stability))
    return (share * (1 - 2 * stability) - 2 * (1 + momentum) * stability) / (share + 1)


def oscillation_finding(
    curve: Curve,
    *,
    averaging: AveragingGain | None = None,
    momentum: float = 0.0,
    lowest: float = 0.5,
    edge: float = 1.3,
    correlation: float = -0.2,
    errors: float = 2.0,
    share: float = 0.3,
    material: float = 0.01,
    target: float = 0.25,
) -> Finding | None:
    """Find steps that leap over the minimum of the steepest direction: 1 < rate * lambda_max <= 2.

    There successive gradients along the top eigenvector point in opposite directions, `gradient_correlation`. A network
    at the edge of stability does so too and learns all the same; so the loss must have stopped falling, and a
    material part of it must be due to the swing: the loss at the mean of recent iterates tells, or its own swing.

    Args:
        curve: Of the run, with stabilities and projections.
        averaging: From `averaging_gain` at the end; None judges by the swing of the loss.
        momentum: Of the optimizer, without unit; of Adam its first beta.
        lowest: Stability above which the weights change sides at each step: 1/2 exactly, for heavy ball too.
        edge: Stability above which it is not oscillation. The limit is 1; the estimate is of part of the subset, and
            at the edge of stability networks hover a little above it (Cohen et al. 2021, figure 5).
        correlation: Above it the gradients do not alternate. The theory gives at most -0.2 from rate * lambda_max 1.2
            on without noise, and below -0.5 with noise only.
        errors: Standard errors by which the correlation must also be below 0; 2: by chance in about 2.5 % of runs.
        share: Part of the recent loss that must be due to it, without unit. A choice: less is not worth a change.
        material: That part as a share of the first loss, without unit. A choice: 1 % of what was to be learned.
        target: Stability that the remedy's rate has: rate * lambda_max = 0.5, which leaves no swing and room for twice
            the curvature.

    Returns:
        The finding, or None.

    References:
        Cohen et al. (2021), arXiv 2103.00065. LeCun et al. (1998), Efficient BackProp, section 5.1.
    """
    if not curve.finite:
        return None
    # A schedule that ends at the rate 0 has no stability there.
    half = [(step, s) for step, s in curve.known_stabilities(curve.length // 2) if s > 0]
    seen = [(step, s) for step, s in curve.known_stabilities() if s > lowest]
    if not half or not lowest < median(s for _, s in half) <= edge or not curve.projections:
        return None
    at = {step: window for step, window in zip(curve.steps, curve.projections, strict=True)}
    found = projection_correlation([at[step] for step, _ in seen])
    if not found.pairs or not (found.value < correlation and found.value + errors * found.stderr < 0):
        return None
    lost = lost_by_swing(curve, averaging, share, material)
    if lost is None:
        return None
    level = median(s for _, s in half)
    words = (
        f"the gradients along the top eigenvector alternate (correlation of successive ones {found.value:.2f} +- "
        f"{found.stderr:.2f}) at {_rate_words(curve, half[-1], level)}; {lost.words}"
    )
    numbers = {"stability": level, "correlation": found.value, "correlation_stderr": found.stderr, "lost": lost.loss}
    return Finding(
        "oscillations", words, numbers, level / lowest, seen[0][0], _remedies(curve, level, target, momentum)
    )


def _rate_words(curve: Curve, last: tuple[int, float], level: float) -> str:
    """Return how near the rate is to its limit, as lr*lambda_max where the optimizer is plain gradient descent."""
    if curve.is_plain(*last):
        return f"lr*lambda_max = {2 * level:.2g}, of the 2 that it may reach"
    return f"{level:.2g} times the largest stable rate"


def _remedies(curve: Curve, level: float, target: float, momentum: float) -> tuple[Remedy, ...]:
    """Return a rate at which nothing leaps, and momentum where there is little."""
    peak = curve.peak
    if not peak:
        lower = Remedy("lower the rate until lr*lambda_max is 0.5")
    else:
        # The whole schedule is scaled, so that its level in the second half comes to the target.
        rate = two_digits(min(peak * target / level, peak / 2))
        lower = Remedy(f"lower the rate to {rate:g}, {target:g} of the largest stable one", {"lr": rate})
    if momentum >= 0.5:
        return (lower,)
    return lower, Remedy("keep the rate and use momentum, which moves the limit from 2 to 2 + 2 mu")
