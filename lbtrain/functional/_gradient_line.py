"""The derivative of a loss along a line, from its values alone, held against the one that autograd gives."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Roundings that the error of a loss amounts to: a random walk of 64, sums over samples and layers.
_ROUNDINGS = 8.0
# After the step itself and twice it, each is a tenth of the one before: a kink at some distance then drops out.
_STEPS = (1.0, 2.0, 0.1, 0.01, 0.001)
# Shorter steps end where the rounding of the loss could explain this share of the disagreement. A choice.
_EXPLAINED = 1 / 8
# The differences at several steps agree with each other if they do so this many times better than with autograd. A
# choice: a gradient that is wrong by a share leaves them alike to many digits, noise does not.
_ALIKE = 4.0
# A gap has four values where a central difference has two, and that of two steps three times as many.
_GAP_ROUNDINGS = 6.0
# A slope that is another on the two sides, by more than this share of the disagreement, is a kink. A choice: smooth
# losses leave 1e-5, and 1e6 units that stand at their kinks with random signs still leave 1e-3 of what they hide.
_KINK = 1e-3


@dataclass(frozen=True)
class Slope:
    """The derivative along one line.

    Attributes:
        autograd: What autograd says, loss per unit of the line.
        difference: The central difference, same unit.
        error: ``|autograd - difference|`` over the larger of the two, without unit; 0 where both are 0.
        expected: The same for a right gradient: what rounding of the loss may leave.
        kind: ``ok``, ``error``, ``kink`` or ``unknown``.
    """

    autograd: float
    difference: float
    error: float
    expected: float
    kind: str


@dataclass(frozen=True)
class _Step:
    """Two values beside a point, a step ahead and a step behind."""

    central: float
    gap: float  # from the difference behind to the one ahead
    floor: float  # of the central difference, by rounding


def judge(
    value: Callable[[float], float],
    here: float,
    autograd: float,
    *,
    eps: float,
    step: float,
    tolerance: float,
    size: float = 0.0,
    generic: bool = False,
) -> Slope:
    """Compare autograd's slope of ``value`` at 0 with ``(value(h) - value(-h)) / (2 h)``, for as many ``h`` as needed.

    They agree where they do at one step. An error needs more: the differences at all steps agree with each other, and
    those to both sides as well.

    Args:
        value: The loss at a distance along the line.
        here: The loss at distance 0.
        autograd: Its slope there.
        eps: Relative rounding of the loss.
        step: First and longest but one step, in units of the line.
        tolerance: Relative error that is still right.
        size: Of the slope along another line like this one: a slope that happens to be small is measured by it.
        generic: Whether the point was drawn at random: no kinks meet there, so a gap of the size of roundings is none.

    Returns:
        Both numbers and the verdict.
    """
    if not math.isfinite(autograd) and math.isfinite(here):
        return Slope(autograd, math.nan, 1.0, 0.0, "error")
    seen: list[_Step] = []
    for share in _STEPS:
        length = share * step
        floor = _ROUNDINGS * eps * abs(here) / length
        if len(seen) > 1 and floor > _EXPLAINED * abs(seen[0].central - autograd):
            break
        ahead, behind = value(length), value(-length)
        central = (ahead - behind) / (2 * length)
        if not math.isfinite(central + here):
            return Slope(autograd, central, math.nan, math.nan, "unknown")
        seen.append(_Step(central, (ahead - 2 * here + behind) / length, floor))
        if abs(central - autograd) <= tolerance * max(abs(central), abs(autograd), size) + floor:
            return _slope(autograd, seen[-1], "ok")
    return _slope(autograd, seen[0], _kind(seen, autograd, generic))


def _kind(seen: Sequence[_Step], autograd: float, generic: bool) -> str:
    """Return what a disagreement at every step is."""
    differences = [s.central for s in seen]
    if 0.0 in differences and any(differences):  # too short a step moves nothing, where the loss is rounded inside
        return "unknown"
    off = min(abs(d - autograd) for d in differences)
    # A curvature makes the gap grow with the step, which the first two steps, one twice the other, take out.
    gap = min(abs(2 * seen[0].gap - seen[1].gap), *(abs(s.gap) for s in seen))
    if gap > _KINK * off + (_GAP_ROUNDINGS * seen[0].floor if generic else 0.0):
        return "kink"
    # The last ones: a kink beside the point is in reach of the first only.
    spread = max(differences[-3:]) - min(differences[-3:])
    return "error" if off > _ALIKE * spread else "unknown"


def _slope(autograd: float, step: _Step, kind: str) -> Slope:
    largest = max(abs(autograd), abs(step.central))
    if largest == 0:
        return Slope(autograd, step.central, 0.0, 0.0, kind)
    return Slope(autograd, step.central, abs(autograd - step.central) / largest, step.floor / largest, kind)
