"""Whether the spectrum explains why a run is slow; the checks of its inputs, labels and values stand beside."""

import math
from collections.abc import Sequence

from torch import Tensor

from lbtrain.functional._pace import falls_at_end, has_risen, is_noise
from lbtrain.functional.diagnosis import Finding, Remedy
from lbtrain.functional.features import FeatureScales as FeatureScales
from lbtrain.functional.features import feature_finding as feature_finding
from lbtrain.functional.features import feature_scales as feature_scales
from lbtrain.functional.invalid_data import InvalidValues as InvalidValues
from lbtrain.functional.invalid_data import invalid_values as invalid_values
from lbtrain.functional.invalid_data import named_tensors as named_tensors
from lbtrain.functional.labels import LabelBalance as LabelBalance
from lbtrain.functional.labels import balance_finding as balance_finding
from lbtrain.functional.labels import label_balance as label_balance
from lbtrain.functional.training_curve import Curve

# Condition number from which gradient descent is slow. A choice: so many steps at its best rate take the error along
# the median direction to 1 / e; some epochs of a small run.
_CONDITION = 1000.0
# Loss at the end over loss at the start above which a run has been slow. A choice: it has not even been halved.
_SLOW = 0.5
# Eigenvalues below this share of the largest are zero: what float32 products leave, eps = 1.2e-7 times up to a hundred
# for sums; measured up to 1.4e-6 on a network of dead units.
_ZERO = 1e-5
# Loss at the end over loss at the start from which a run has diverged, and is not slow. As for instability.
_RISEN = 2.0
# Share of noise, and standard errors of the line at the end. Choices: the latter as for slow progress, the former below
# it, since an autoencoder near its floor has 0.5 and a wide spectrum, and nothing is wrong with it.
_NOISE, _ERRORS = 0.4, 3.0


def conditioning_finding(
    eigenvalues: Sequence[float] | Tensor,
    progress: float,
    *,
    weights: Sequence[float] | Tensor | None = None,
    curve: Curve | None = None,
    condition: float = _CONDITION,
    slow: float = _SLOW,
    risen: float = _RISEN,
    zero: float = _ZERO,
    noise: float = _NOISE,
    errors: float = _ERRORS,
) -> Finding | None:
    """Blame slow progress on the spectrum where ``lambda_max / lambda`` is large for half of the curved directions.

    At the rate ``1 / lambda_max`` an error along an eigenvector shrinks by ``1 - lambda / lambda_max`` in each step: to
    ``1 / e`` in ``lambda_max / lambda`` steps. A loss that has come to its floor, such as the entropy of its labels, or
    that has jumped up on its way, is not held by the spectrum.

    Args:
        eigenvalues: Of the whole Hessian, or the nodes of its density: a few largest ones alone have another median.
        progress: Loss at the end over loss at the start, without unit. Networks that train well are ill-conditioned,
            too, so this decides.
        weights: Share of the spectrum at each node; None: the same for each.
        curve: Of the run, whose loss must still fall; None where that is known.
        condition: Of ``lambda_max`` over the median positive eigenvalue, without unit.
        slow: Progress above which the run was slow, without unit.
        risen: Progress above which it has diverged, which is no question of conditioning, without unit; and the factor
            over its lowest level before, to which it must never have risen.
        zero: Share of ``lambda_max`` up to which an eigenvalue is zero.
        noise: Share of a batch gradient's squared norm that may be noise, median over the second half, without unit.
        errors: Standard errors by which the loss must fall at the end, as in `slow_finding`.

    Returns:
        ``ill-conditioning`` with both ends; None where progress was good, the spectrum narrow, or a number not finite.

    Raises:
        ValueError: If there are not as many weights as eigenvalues, or a threshold is not positive.

    References:
        Nocedal and Wright (2006), Numerical Optimization, section 3.3 (steepest descent).
    """
    values, shares = _floats(eigenvalues), [1.0] * len(eigenvalues) if weights is None else _floats(weights)
    if len(values) != len(shares):
        raise ValueError(f"eigenvalues and weights must be as many, got {len(values)} and {len(shares)}; pass both")
    if min(condition, slow, risen, zero) <= 0:
        given = f"condition={condition}, slow={slow}, risen={risen}, zero={zero}"
        raise ValueError(f"thresholds must be positive, got {given}; leave them out for the defaults")
    finite = all(map(math.isfinite, [*values, *shares, progress]))
    top = max(values, default=0.0) if finite else 0.0
    if top <= 0 or not slow < progress <= risen or not (curve is None or _creeps(curve, risen, noise, errors)):
        return None
    middle = _median([(v, s) for v, s in zip(values, shares, strict=True) if v > zero * top])
    ratio = top / middle
    if ratio < condition:
        return None
    words = (
        f"lambda_max is {top:.3g} and the median positive eigenvalue {middle:.2g}, {ratio:.2g} times less: along half "
        f"of the curved directions gradient descent needs that many steps, and the loss is at {progress:.0%} of its "
        "start"
    )
    remedies = (
        Remedy(
            "standardize inputs that are measurements, or normalize inside the network (BatchNorm, LayerNorm)",
            {"normalize": True},
        ),
        Remedy("momentum 0.9 or more, which needs the square root of these steps", {"momentum": 0.9}),
        Remedy("Adam, which rescales each weight, or a second-order method"),
    )
    numbers = {"lambda_max": top, "median": middle, "condition": ratio, "progress": progress}
    return Finding("ill-conditioning", words, numbers, ratio / condition, remedies=remedies)


def _creeps(curve: Curve, risen: float, noise: float, errors: float) -> bool:
    """Return whether the loss is on its way down and had nothing but a slow way behind it."""
    if not curve.finite or has_risen(curve, risen) or is_noise(curve, noise):
        return False
    return falls_at_end(curve, errors)


def _median(pairs: Sequence[tuple[float, float]]) -> float:
    """Return the value at half of the weight."""
    half, passed = sum(share for _, share in pairs) / 2, 0.0
    for value, share in sorted(pairs):
        passed += share
        if passed >= half:
            return value
    return max(value for value, _ in pairs)


def _floats(values: Sequence[float] | Tensor) -> list[float]:
    return [float(v) for v in values]
