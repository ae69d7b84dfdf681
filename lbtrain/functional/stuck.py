"""Whether a run stands still where it should not: on a plateau or at a saddle."""

import math

from lbtrain.functional._robust import two_digits
from lbtrain.functional.convexity import Convexity
from lbtrain.functional.diagnosis import Change, Finding, Remedy
from lbtrain.functional.training_curve import Curve, share_left

# Levels in the second half of a run, of which the highest and the lowest may be left out: a choice, as many as the
# default sampling has, so that at least five are judged.
_MANY = 7


def plateau_finding(
    curve: Curve,
    *,
    verdict: str | None = None,
    lambda_min: float | None = None,
    lambda_max: float | None = None,
    convexity: Convexity | None = None,
    left: float = 0.9,
    moved: float = 0.01,
    negative: float = 0.1,
) -> Finding | None:
    """Find a run that still has its first loss where the gradient is 0, or so small that nothing near changes the loss.

    Such are hard thresholds, whose derivative is 0, and units in the flat ends of their range. A loss that is convex
    has no plateau but its minimum; curvature that is clearly negative makes a saddle of it, and where ``lambda_max sum
    rate >= 1`` the run has settled in a valley with a floor.

    Args:
        curve: Of the run, with gradient norms.
        verdict: Kind of the last point by `critical_point`; None where it was not asked, which leaves gradients of 0.
        lambda_min: Smallest Hessian eigenvalue at the end, loss per squared parameter; None where not measured.
        lambda_max: Largest one, same unit.
        convexity: Evidence from `convexity_evidence`; None without.
        left: Share of the first loss that must be left, without unit. A choice: less has learned something.
        moved: Share of the first loss by which the second half of the run may change it, without unit. The same 1 % as
            in `critical_point`: less is not seen on a loss curve.
        negative: Share of the larger end of the spectrum that a negative eigenvalue may have, as in `saddle_finding`.

    Returns:
        The finding, or None.
    """
    if not _stands(curve, left, moved) or not curve.gradient_norms:
        return None
    zero = not any(curve.gradient_norms)
    # A gradient of exactly 0 at every sample needs no spectrum; one that fades is asked for the end's verdict.
    if not zero and (verdict != "plateau" or (convexity is not None and convexity.convex)):
        return None
    if _clearly_negative(lambda_min, lambda_max, 0.0, negative) or _settled(curve, lambda_max):
        return None
    first = max(curve.gradient_norms)
    small = next((i for i, g in enumerate(curve.gradient_norms) if g <= 1e-3 * first), len(curve.steps) - 1)
    how = (
        "is exactly 0 at all samples"
        if zero
        else f"is {curve.gradient_norms[-1]:.2g} and nothing near changes the loss"
    )
    words = (
        f"the loss is {curve.end:.3g} after {curve.length} steps, {100 * share_left(curve):.3g} % of the first, and "
        f"the gradient {how}"
    )
    if convexity is not None and convexity.convex is not None:
        words += f"; {convexity.words}"
    numbers = {"gradient_norm": curve.gradient_norms[-1], "left": share_left(curve)}
    remedies = (
        Remedy("use a smooth activation: relu, or sigmoid in place of a hard threshold", {"activation": "relu"}),
        Remedy("other initial weights: the usual scale, and a normalization layer", {"init_scale": 1.0}),
    )
    since = 0 if zero else curve.steps[small]
    return Finding("plateau", words, numbers, max(1.0, share_left(curve) / left), since, remedies)


def saddle_finding(
    curve: Curve,
    *,
    lambda_min: float,
    lambda_max: float,
    residual: float = 0.0,
    convexity: Convexity | None = None,
    left: float = 0.8,
    moved: float = 0.02,
    negative: float = 0.1,
    promise: float = 0.01,
) -> Finding | None:
    """Find a run that stands at a saddle with most of its first loss: a small gradient and clearly negative curvature.

    Near it ``|g|^2 / (2 lambda)``, what a step promises in any direction that has a slope, is small, while along the
    lowest eigenvector the distance grows by ``1 + rate |lambda_min|`` in a step: ``1 / (rate |lambda_min|)`` steps for
    a factor e.

    Args:
        curve: Of the run, with gradient norms; with products, these tell the slope without noise.
        lambda_min: Smallest Hessian eigenvalue at the end, loss per squared parameter.
        lambda_max: Largest one, same unit.
        residual: Bound on the error of lambda_min, same unit.
        convexity: Evidence from `convexity_evidence`; None without.
        left: Share of the first loss that must be left, without unit. A choice: less has learned something.
        moved: Share of the first loss by which the second half of the run may change it, without unit. A choice.
        negative: Share of the larger end of the spectrum that ``-lambda_min`` must have, without unit. A choice: where
            networks have done their work, it is some hundredths (Sagun et al. 2018, arXiv 1706.04454).
        promise: Share of the loss that a step down the gradient may promise, without unit; the 1 % of `critical_point`.
            Where it promises more, a larger rate leads down and no saddle is in the way.

    Returns:
        The finding, or None: also where lambda_min is not finite.

    References:
        Dauphin et al. (2014), arXiv 1406.2572. Saxe et al. (2014), arXiv 1312.6120 (linear networks near zero).
    """
    if not _stands(curve, left, moved) or not curve.gradient_norms or (convexity is not None and convexity.proven):
        return None
    slope, size = curve.slope, max(abs(lambda_min), abs(lambda_max))
    if not _clearly_negative(lambda_min, lambda_max, residual, negative):
        return None
    if slope * slope / (2 * size) > promise * abs(curve.end):
        return None
    words = (
        f"the loss is {curve.end:.3g} after {curve.length} steps, {100 * share_left(curve):.3g} % of the first; the "
        f"gradient is {slope:.2g} and lambda_min {lambda_min:.2g} with lambda_max {lambda_max:.2g}"
    )
    rate = curve.rate_at(curve.length)
    if rate:
        words += f": the way out grows e-fold in {math.ceil(1 / (rate * -lambda_min))} steps"
    numbers = {"gradient_norm": slope, "lambda_min": lambda_min, "lambda_max": lambda_max, "left": share_left(curve)}
    severity = max(1.0, -lambda_min / (negative * size))
    return Finding("saddle", words, numbers, severity, _since(curve), _ways_out(curve, size))


def _stands(curve: Curve, left: float, moved: float) -> bool:
    """Return whether most of the first loss is left and the second half of the run changed it by next to nothing.

    Where there are many levels the highest and the lowest are left out: a noisy step or two is no way out.
    """
    levels = curve.track[1]
    if not curve.finite or curve.start <= 0 or not left <= share_left(curve) <= 2 - left:
        return False
    half = sorted(levels[len(levels) // 2 :])
    half = half[1:-1] if len(half) >= _MANY else half
    return half[-1] - half[0] <= moved * curve.start


def _clearly_negative(low: float | None, top: float | None, residual: float, share: float) -> bool:
    """Return whether the smallest eigenvalue is below 0 by its error and by its share of the largest size."""
    if low is None or top is None or not (math.isfinite(low) and math.isfinite(top)):
        return False
    return low < 0 and low + residual < 0 and -low >= share * max(-low, top)


def _settled(curve: Curve, lambda_max: float | None) -> bool:
    """Return whether the steps sufficed to settle along the top eigenvector, by e^-1 or more: a valley, no plateau."""
    return lambda_max is not None and lambda_max * math.fsum(curve.rates) >= 1


def _since(curve: Curve) -> int:
    """Return the first sample from which the loss stays within 5 % of its end."""
    steps, levels = curve.track
    far = [i for i, level in enumerate(levels) if abs(level - curve.end) > 0.05 * abs(curve.end)]
    return steps[min(far[-1] + 1, len(steps) - 1)] if far else 0


def _ways_out(curve: Curve, size: float) -> tuple[Remedy, ...]:
    """Return larger weights at the start, a push, and the largest rate that holds here."""
    change: dict[str, Change] = {}
    words = "a larger rate, up to lr*lambda = 1 with the larger end of the spectrum"
    rate = two_digits(1 / size)
    if curve.peak is not None and rate > 2 * curve.peak:
        change, words = {"lr": rate}, f"a larger rate, up to {rate:g} where lr*lambda is 1"
    return (
        Remedy("start from larger weights: the usual initial scale", {"init_scale": 1.0}),
        Remedy("disturb the weights by a little noise, so that they leave it sooner"),
        Remedy(words, change),
    )
