"""Whether a run is slow because its rate is too small."""

import math
from statistics import median

from lbtrain.functional._pace import falls_at_end, is_noise
from lbtrain.functional._robust import two_digits
from lbtrain.functional.convexity import Convexity
from lbtrain.functional.diagnosis import Finding, Remedy
from lbtrain.functional.training_curve import Curve, share_left


def slow_finding(
    curve: Curve,
    *,
    momentum: float = 0.0,
    rescales: bool = False,
    convexity: Convexity | None = None,
    left: float = 0.5,
    straight: float = 0.3,
    stability: float = 0.05,
    match: float = 2.0,
    noise: float = 0.7,
    errors: float = 3.0,
    target: float = 0.25,
    largest: float = 100.0,
) -> Finding | None:
    """Find a loss that falls slowly along a nearly straight line at a rate far below the largest stable one.

    Gradient descent at a small rate follows ``dL = -rate / (1 - mu) |g|^2`` per step; as long as little of the loss is
    gone, ``|g|`` stays and the line is straight. Where the stability is not known, that the loss falls by just this
    sum shows that the rate is what limits it: neither noise nor curvature takes its part. A loss that has come to its
    floor, be it that of the noise in its labels, is not slow: it must fall at the end, in the batches as on the fixed
    subset, and noise must not rule the gradient.

    Args:
        curve: Of the run.
        momentum: Of the optimizer, without unit, for the terminal step ``lr / (1 - mu)``; of Adam its first beta.
        rescales: Whether the optimizer divides the gradient, as Adam and RMSprop do: then ``lr`` is no step per
            gradient, and neither that sum nor the terminal step says anything.
        convexity: Evidence to be told with it; None without.
        left: Share of the first loss that must be left at the end, without unit. A choice: a run that halves its loss
            is not called slow.
        straight: Slope over the second half of the way in the sum of rates, against that over the first, without unit.
            A single exponential that has come down to 0.3 of its slope has a third of its way left; the loss of a
            network, a sum of them, has more.
        stability: Largest stability of a slow run, without unit: the rate could be 20 times as large.
        match: Factor by which the fall may differ from that sum, without unit. A choice: between two samples the
            squared norm changes by less.
        noise: Share of a batch gradient's squared norm that may be noise, median over the second half, without unit. A
            choice: slow runs on digits have 0.1 to 0.4, runs at the floor of noisy labels 0.8 to 1.
        errors: Standard errors by which the line through the second half must fall; 3: by chance in 1 of 300 runs, at
            10 samples and independent errors.
        target: Stability that the remedy's rate aims at: rate * lambda_max = 0.5.
        largest: Largest factor of the remedy, without unit. A choice: curvature is known where the run is, not where a
            larger rate leads.

    Returns:
        The finding, or None.

    References:
        Cohen et al. (2021), arXiv 2103.00065, section 2. Goh (2017), Why Momentum Really Works (terminal step).
    """
    if not curve.finite or share_left(curve) < left or len(curve.track[1]) < 4 or not any(curve.gradient_norms or [1]):
        return None
    bend = straightness(curve)
    if bend is None or bend < straight or is_noise(curve, noise) or not falls_at_end(curve, errors):
        return None
    known = [s for _, s in curve.known_stabilities()]
    ratio = None if rescales else _against_flow(curve, momentum)
    limited = max(known) <= stability if known else ratio is not None and 1 / match <= ratio <= match
    if not limited:
        return None
    gone = 1 - share_left(curve)
    words = (
        f"in {curve.length} steps the loss fell by {100 * gone:.2g} % only, from {curve.start:.3g} to {curve.end:.3g} "
        f"in a nearly straight line"
    )
    numbers = {"gone": gone, "straightness": bend}
    if known:
        words += f", at a rate of {max(known):.2g} of the largest stable one"
        numbers["stability"] = max(known)
    elif ratio is not None:
        words += f", {ratio:.2g} times what its gradient and rate predict"
        numbers["against_flow"] = ratio
    words += ("" if rescales else _terminal_words(curve, momentum)) + (
        f"; {convexity.words}" if convexity is not None else ""
    )
    severity = stability / max(known) if known and max(known) > 0 else share_left(curve) / left
    return Finding(
        "slow progress", words, numbers, max(severity, 1.0), 0, _remedies(curve, known, momentum, target, largest)
    )


def straightness(curve: Curve) -> float | None:
    """Return the slope of the loss over the second half of the run over that of the first half.

    The halves are equally long in the sum of the rates, so that warmup and decay do not bend the line; where rates are
    not known, in steps.

    Args:
        curve: Of the run; finite, with 2 losses or more.

    Returns:
        The ratio, without unit: 1 for a straight line; None where the loss did not fall in both halves.
    """
    steps, levels = curve.track
    way, ways = 0.0, [0.0]
    for rate in curve.rates or [1.0] * curve.length:
        way += rate
        ways.append(way)
    places = [ways[min(step, len(ways) - 1)] for step in steps]
    half = 0.5 * (places[0] + places[-1])
    middle = min(range(len(places)), key=lambda i: abs(places[i] - half))
    lengths = places[middle] - places[0], places[-1] - places[middle]
    first, second = levels[0] - levels[middle], levels[middle] - levels[-1]
    if min(lengths) <= 0 or first <= 0 or second <= 0:
        return None
    return (second / lengths[1]) / (first / lengths[0])


def _against_flow(curve: Curve, momentum: float) -> float | None:
    """Return the fall of the loss over ``sum rate |g|^2 / (1 - mu)`` by the trapezoidal rule; None where not known."""
    if not curve.rates or len(curve.gradient_norms) < 4:
        return None
    squares, total = [g * g for g in curve.gradient_norms], 0.0
    for i in range(len(squares) - 1):
        between = curve.rates[curve.steps[i] : curve.steps[i + 1]]
        total += math.fsum(between) * 0.5 * (squares[i] + squares[i + 1])
    return (curve.levels[0] - curve.levels[-1]) * (1 - momentum) / total if total > 0 else None


def _terminal_words(curve: Curve, momentum: float) -> str:
    """Return the terminal step against the limit ``2 / lambda_max``; nothing where one is not known."""
    tops = [c for c in curve.curvatures if c is not None and math.isfinite(c) and c > 0]
    if not tops or curve.peak is None:
        return ""
    name = "lr/(1-momentum)" if momentum else "the rate"
    return f"; {name} is {curve.peak / (1 - momentum):.2g}, 2/lambda_max {2 / median(tops):.2g}"


def _remedies(curve: Curve, known: list[float], momentum: float, target: float, largest: float) -> tuple[Remedy, ...]:
    """Return a rate as large as is known to be stable, and momentum."""
    tops = [c for c in curve.curvatures if c is not None and math.isfinite(c) and c > 0]
    peak = curve.peak
    if known and max(known) > 0:
        factor = min(largest, target / max(known))
    elif peak is not None and tops:
        factor = min(largest, 2 * target / max(tops) / peak)
    else:
        factor = 10.0
    found = []
    if peak is not None and factor > 1:
        rate = two_digits(peak * factor)
        found.append(Remedy(f"raise the rate {factor:.0f} times, to {rate:g}", {"lr": rate}))
    if momentum < 0.5:
        found.append(Remedy("momentum 0.9, which makes the steps 10 times as long", {"momentum": 0.9}))
    return tuple(found) or (Remedy("raise the rate until lr*lambda_max is 0.5, or train longer"),)
