"""Where activations are flat: the outputs or inputs at which their derivative is near zero."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

from torch import Tensor

# Values that an activation tends to at its flat ends; None where it has none.
Ends = tuple[float | None, float | None]
ENDS: dict[str, Ends] = {
    "relu": (0.0, None),
    "relu6": (0.0, 6.0),
    "sigmoid": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "hardtanh": (-1.0, 1.0),
    "elu": (-1.0, None),
    "celu": (-1.0, None),
    "selu": (-1.7580993408473766, None),  # scale * alpha of Klambauer et al. (2017)
}
# Below 0 these lead nowhere: a unit that stays there is dead.
_SILENT = {"relu", "relu6"}
_HARD = {"relu", "relu6", "hardsigmoid", "hardtanh"}


def _cumulative(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _gelu(x: float) -> float:
    return _cumulative(x) + x * math.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _silu(x: float) -> float:
    return _logistic(x) * (1 + x * (1 - _logistic(x)))


def _mish(x: float) -> float:
    soft = math.tanh(math.log1p(math.exp(x)))
    return soft + x * (1 - soft * soft) * _logistic(x)


def _hardswish(x: float) -> float:
    return 0.0 if x <= -3 else (2 * x + 3) / 6


# Derivatives by the input, at most about 1. Each has one minimum below 0, after which it rises to 0 from below.
_SMOOTH: dict[str, tuple[Callable[[float], float], float]] = {
    "gelu": (_gelu, -math.sqrt(2)),
    "silu": (_silu, -2.4),
    "mish": (_mish, -2.27),
    "softplus": (_logistic, 0.0),  # no minimum: it falls to 0 all the way
    "hardswish": (_hardswish, -2.999),
}
KINDS = frozenset(ENDS) | frozenset(_SMOOTH)


def can_die(kind: str) -> bool:
    """Return whether units of this kind have a side on which they say nothing.

    Args:
        kind: Name of the activation.
    """
    return kind in _SILENT or kind in _SMOOTH


def needs_inputs(kind: str) -> bool:
    """Return whether the outputs alone do not tell where the activation is flat.

    Args:
        kind: Name of the activation.
    """
    return kind in _SMOOTH


def silent(kind: str, outputs: Tensor, inputs: Tensor | None, share: float) -> Tensor:
    """Return where units that can die say nothing: output 0, or an input below which the derivative is near 0.

    Args:
        kind: One for which `can_die`.
        outputs: Of the activation.
        inputs: Of the activation, for a kind that `needs_inputs`.
        share: What counts as near 0, of the largest derivative.

    Returns:
        Booleans in the shape of the outputs.

    Raises:
        ValueError: If inputs are needed and missing.
    """
    if kind in _SILENT:
        return outputs <= 0
    if inputs is None:
        raise ValueError(f"inputs must be given for {kind}, whose outputs do not tell where it is flat")
    return inputs < _threshold(kind, share)


def flat(kind: str, outputs: Tensor, share: float, ends: Ends | None) -> Tensor | None:
    """Return where units are at an end of their range.

    ``sigmoid' = s (1 - s)`` is below ``share / 4`` and ``tanh' = 1 - t^2`` below ``share`` within ``(1 - sqrt(1 -
    share)) / 2`` of their range's width from an end; ``elu' = e + alpha`` below ``share * alpha`` within that of
    ``-alpha``. Hard ends are flat at the end itself.

    Args:
        kind: Name of the activation.
        outputs: Of the activation.
        share: What counts as near 0, of the largest derivative.
        ends: Where the range ends, if not at the usual values.

    Returns:
        Booleans in the shape of the outputs; None for a kind without such ends.
    """
    low, high = ends or ENDS.get(kind, (None, None))
    if kind in _SILENT:
        low = None
    if low is None:
        return None if high is None else outputs >= high
    if high is None:
        return outputs <= low * (1 - share)
    margin = 0.0 if kind in _HARD else (high - low) * (1 - math.sqrt(1 - share)) / 2
    return (outputs <= low + margin) | (outputs >= high - margin)


@cache
def _threshold(kind: str, share: float) -> float:
    """Return the input below which the derivative is smaller than a share of 1."""
    derivative, right = _SMOOTH[kind]
    if abs(derivative(right)) < share:
        return right
    left = -40.0  # exp(-40) is 0 beside 1 in any precision
    for _ in range(60):
        middle = 0.5 * (left + right)
        left, right = (middle, right) if abs(derivative(middle)) < share else (left, middle)
    return left
