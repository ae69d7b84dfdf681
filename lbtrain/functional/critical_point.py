"""What kind of point the weights are: a minimum, a saddle, a plateau, or not yet critical."""

import math
from dataclasses import dataclass

from lbtrain.functional.layers import layer_shares as layer_shares
from lbtrain.functional.results import Spectrum


@dataclass(frozen=True)
class CriticalPoint:
    """A verdict on the weights, by gradient and curvature.

    Attributes:
        kind: ``minimum``, ``saddle``, ``plateau``, ``not critical``, or ``unknown`` where the numbers do not decide.
        words: The verdict and its reason, one sentence with the numbers.
        negative_ratio: ``max(0, -lambda_min) / lambda_max``, without unit; infinity where no eigenvalue is positive
            and one is negative, NaN where one of the two is not finite.
    """

    kind: str
    words: str
    negative_ratio: float


def critical_point(
    spectrum: Spectrum,
    gradient_norm: float,
    loss: float,
    weight_norm: float,
    *,
    share: float = 0.01,
    negative: float = 0.01,
    reach: float = 0.1,
) -> CriticalPoint:
    """Say what kind of point the weights are, by the quadratic model within ``r = reach * weight_norm`` of them.

    In this order:

    - plateau: nothing within ``r`` changes the loss by more than ``share`` of it, ``r |g| + r^2 lambda / 2 <= share *
      |loss|`` with the larger of ``|lambda_max|`` and ``|lambda_min|``;
    - not critical: the best step along ``-g`` within ``r`` promises more than ``share``. It has the length ``t = min(r,
      |g| / lambda_max)`` and promises ``t |g| - t^2 lambda_max / 2``, which is ``|g|^2 / (2 lambda_max)`` where ``r``
      does not bind: a lower bound, since no direction curves up more than ``lambda_max``;
    - saddle: ``lambda_min + residual < -negative * lambda_max``;
    - minimum: ``lambda_min - residual >= -negative * lambda_max``; between these two the kind is unknown.

    Args:
        spectrum: Of the Hessian, both ends.
        gradient_norm: ``|g|`` of the same loss, loss per unit of parameter norm.
        loss: The mean loss there. Its size is the scale of changes, as fits a loss whose floor is 0.
        weight_norm: ``|w|`` of the same parameters, which gives the unit of length; at 0 nothing bounds the step.
        share: Of the loss, what counts as a change, without unit. A choice: less than 1 % is not seen on a loss curve.
        negative: Share of ``lambda_max`` that a negative eigenvalue must exceed, without unit. At the largest stable
            rate, ``2 / lambda_max``, gradient descent grows along it by ``1 + 2 negative`` in a step: by ``e`` in 50
            steps at 1 %, which leads out in the course of a training; a smaller one holds the weights that long.
        reach: Share of the weight norm within which the quadratic model is asked, without unit. A choice: a tenth
            leaves the signs and the order of most weights as they are, and with them most of the network.

    Returns:
        The verdict; ``unknown`` also where a number is not finite, as after divergence.

    Raises:
        ValueError: If a threshold is not positive, or a norm is negative.

    References:
        Conn, Gould and Toint (2000), Trust-Region Methods, section 6.3 (the step along ``-g``: the Cauchy point).
    """
    if not (share > 0 and negative > 0 and reach > 0):
        given = f"share = {share}, negative = {negative} and reach = {reach}"
        raise ValueError(f"need share, negative and reach above 0, got {given}; 0.01, 0.01 and 0.1 are the defaults")
    if gradient_norm < 0 or weight_norm < 0:
        given = f"gradient_norm = {gradient_norm} and weight_norm = {weight_norm}"
        raise ValueError(f"norms cannot be negative, got {given}; pass Euclidean norms")
    top, low, error = spectrum.lambda_max, spectrum.lambda_min, spectrum.lambda_min_residual
    ratio = _ratio(top, low)
    numbers = {
        "the loss": loss,
        "the gradient norm": gradient_norm,
        "the weight norm": weight_norm,
        "lambda_max": top,
        "lambda_min": low,
        "the residual of lambda_min": error,
    }
    lost = [f"{name} is {value:g}" for name, value in numbers.items() if not math.isfinite(value)]
    if lost:
        return CriticalPoint("unknown", f"unknown: {lost[0]}", ratio)
    r = reach * weight_norm if weight_norm else math.inf
    kind, words = (
        _plateau(top, low, gradient_norm, loss, r, share)
        or _not_critical(top, gradient_norm, loss, r, share)
        or _by_sign(top, low, error, negative)
    )
    open_end = "" if spectrum.converged else "; the eigenvalues have not converged"
    return CriticalPoint(kind, f"{kind}: {words}{open_end}", ratio)


def _ratio(top: float, low: float) -> float:
    """Return ``max(0, -low) / top``."""
    if not (math.isfinite(top) and math.isfinite(low)):
        return math.nan
    if low >= 0:
        return 0.0
    return -low / top if top > 0 else math.inf


def _plateau(top: float, low: float, slope: float, loss: float, r: float, share: float) -> tuple[str, str] | None:
    """Return the verdict where nothing within ``r`` changes the loss by more than its share."""
    curvature = max(abs(top), abs(low))
    # An infinite distance times a zero is no number.
    change = (r * slope if slope else 0.0) + (0.5 * r * r * curvature if curvature else 0.0)
    if change > share * abs(loss):
        return None
    within = f"within {r:.2g} of the weights" if math.isfinite(r) else "at any distance"
    reason = f"|g| {slope:.2g}, lambda_max {top:.3g}, lambda_min {low:.2g}"
    return (
        "plateau",
        f"neither slope nor curvature changes the loss {loss:.3g} by more than {change:.2g} {within} ({reason})",
    )


def _not_critical(top: float, slope: float, loss: float, r: float, share: float) -> tuple[str, str] | None:
    """Return the verdict where a step along the negative gradient promises more than its share."""
    t = min(r, slope / top) if top > 0 else r
    promise = (t * slope - 0.5 * t * t * top if math.isfinite(t) else math.inf) if slope else 0.0
    if promise <= share * abs(loss):
        return None
    much = f"{promise:.2g}, {100 * promise / abs(loss):.2g} %" if loss else f"{promise:.2g}"
    reason = f"|g| {slope:.2g}, lambda_max {top:.3g}"
    return (
        "not critical",
        f"a step of length {t:.2g} down the gradient promises to lower the loss {loss:.3g} by {much} ({reason})",
    )


def _by_sign(top: float, low: float, error: float, negative: float) -> tuple[str, str]:
    """Return the verdict by the sign of the smallest eigenvalue."""
    smallest, edge = f"lambda_min {low:.2g} +- {error:.1g}", -negative * max(top, 0.0)
    of_top = f"{-low / top:.2g} times lambda_max {top:.3g}" if top > 0 else f"and lambda_max {top:.3g} is not positive"
    if low + error < edge:
        if top < 0:
            return "saddle", f"a maximum even, {smallest} and lambda_max {top:.3g} are both negative"
        return "saddle", f"{smallest} is negative, {of_top}"
    if low - error < edge:
        return "unknown", f"{smallest} does not tell a saddle from a minimum; lower tol, or raise max_matvecs"
    if low > error:
        return "minimum", f"the smallest eigenvalue found is positive, {smallest}, with lambda_max {top:.3g}"
    if low >= -error:
        return "minimum", f"{smallest} is 0 within its error, so some directions are flat; lambda_max {top:.3g}"
    return "minimum", f"but for a slight downward curvature, {smallest}, {of_top}"
