"""Functions of the step, as schedules call them, asked later or earlier."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

# A quotient of a step and a ratio this near to a whole number is one: what is missing is rounding.
_WHOLE = 1e-6


class Stretched:
    """A function of the step, asked `ratio` times as late.

    It shows the attributes of the function as its own, since torch saves those of callable objects, and loads them.
    """

    __slots__ = ("function", "ratio")

    def __init__(self, function: Callable[[Any], float], ratio: float) -> None:
        # In one layer, also when a schedule is stretched again.
        self.function: Callable[[Any], float] = function
        self.ratio = ratio
        if isinstance(function, Stretched):
            self.function, self.ratio = function.function, function.ratio * ratio

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
        return vars(self.function)

    def __call__(self, step: int) -> float:
        place = step / self.ratio
        if abs(place - round(place)) < _WHOLE:
            return self.function(round(place))
        try:
            return self.function(place)
        except (TypeError, LookupError):  # such as a table, which knows whole steps only
            return self.function(math.floor(place))


class StretchedFactor(Stretched):
    """A factor on the last rate, as MultiplicativeLR takes it: the product over the steps that one step stands for."""

    __slots__ = ()

    def __call__(self, step: int) -> float:
        """Return the product of the function over the old steps after the one of `step - 1`, up to that of `step`."""
        if step <= 0:
            return self.function(step)
        first, last = (math.floor(at / self.ratio + _WHOLE) for at in (step - 1, step))
        return math.prod(self.function(old) for old in range(first + 1, last + 1))


def stretch_functions(part: Any, ratio: float) -> None:
    """Wrap the functions of the step that one scheduler calls.

    Args:
        part: To change; what it holds is left alone.
        ratio: Without unit.
    """
    kind = StretchedFactor if type(part).__name__ == "MultiplicativeLR" else Stretched
    if hasattr(part, "lr_lambdas"):
        part.lr_lambdas = [kind(function, ratio) for function in part.lr_lambdas]
    # CyclicLR's own function, of the step unless it counts cycles.
    if getattr(part, "_scale_fn_custom", None) is not None and part.scale_mode == "iterations":
        part._scale_fn_custom = Stretched(part._scale_fn_custom, ratio)
