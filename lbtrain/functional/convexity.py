"""Evidence that a loss is convex, so that no local optimum can be in the way."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Convexity:
    """Whether the Hessian was positive semidefinite wherever it was measured.

    Attributes:
        convex: True if no negative curvature was seen beyond its error, False if one was, None if nothing finite was
            measured, or only zeros.
        proven: Whether convexity holds everywhere, since the model is linear in its parameters, and nothing measured
            speaks against it.
        lowest: Smallest eigenvalue seen, loss per squared parameter; NaN if none.
        words: The verdict, a clause with the numbers.
    """

    convex: bool | None
    proven: bool
    lowest: float
    words: str


def convexity_evidence(
    lambda_mins: Sequence[float],
    residuals: Sequence[float],
    lambda_maxs: Sequence[float],
    *,
    linear: bool = False,
    tolerance: float = 1e-5,
) -> Convexity:
    """Judge by ``lambda_min + residual >= -tolerance * lambda_max`` at all points where both ends were measured.

    A convex loss has no negative curvature anywhere; one point with it disproves convexity. Points without it are
    evidence only, but where outputs are linear in the parameters, cross-entropy and squared error are convex in them.

    Args:
        lambda_mins: Smallest Hessian eigenvalue at each point, loss per squared parameter.
        residuals: Bounds on their errors, same unit.
        lambda_maxs: Largest eigenvalue at each point, same unit.
        linear: Whether the model's outputs are linear in its parameters (softmax regression, least squares).
        tolerance: Share of lambda_max, without unit; products in float32 have errors of 1e-7 lambda_max times some tens
            for the sums in them.

    Returns:
        The verdict with its words.

    Raises:
        ValueError: If the three sequences differ in length.

    References:
        Boyd and Vandenberghe (2004), Convex Optimization, 3.1.4 (second-order condition), 3.2.2 (affine maps).
    """
    if not len(lambda_mins) == len(residuals) == len(lambda_maxs):
        raise ValueError(
            f"lambda_mins, residuals and lambda_maxs must be equally long, got {len(lambda_mins)}, {len(residuals)} "
            f"and {len(lambda_maxs)}; give one of each per point"
        )
    seen = [p for p in zip(lambda_mins, residuals, lambda_maxs, strict=True) if all(map(math.isfinite, p))]
    if not seen:
        return Convexity(None, False, math.nan, "no curvature was measured, so convexity is not known")
    lowest, error, top = min(seen)
    if not any(low or peak for low, _, peak in seen):
        # Hard thresholds: all products vanish, and so tell nothing of the loss between the steps.
        return Convexity(None, False, 0.0, "all curvature measured is exactly 0, which says nothing of convexity")
    against = [low for low, residual, peak in seen if low + residual < -tolerance * max(peak, 0.0)]
    points = f"{len(seen)} point" + ("s" if len(seen) > 1 else "")
    if against:
        words = f"the loss is not convex: lambda_min is {lowest:.2g} with lambda_max {top:.2g}"
        return Convexity(False, False, lowest, words)
    numbers = f"lambda_min is {lowest:.2g} +- {error:.1g} or more at {points}"
    if linear:
        words = f"the loss is convex, since the model is linear in its parameters ({numbers}): no local optimum exists"
    else:
        words = f"the loss looks convex here ({numbers}): no local optimum is in the way"
    return Convexity(True, linear, lowest, words)
