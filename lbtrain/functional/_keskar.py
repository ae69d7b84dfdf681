"""What both measures of Keskar et al. have in common: the search in a box, in percent of ``1 + loss``."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lbtrain.functional._climb import climb_box_from_all
from lbtrain.functional._excursion import Excursion
from lbtrain.functional.sharpness_results import KeskarSharpness


def keskar_rise(
    ascent: Excursion,
    half_width: Callable[[], Tensor],
    *,
    num_starts: int,
    num_steps: int,
    generator: torch.Generator,
) -> KeskarSharpness:
    """Climb inside a box and return the highest rise met, the weights put back.

    Args:
        ascent: At the weights.
        half_width: Returns the half width of the box, shape ``(n,)``; called where the loss is finite.
        num_starts: Number of random starts.
        num_steps: Steps from each start.
        generator: Source of the random starts.

    Returns:
        Percent of ``1 + L(w)``; NaN where the loss is not finite, or not above -1.
    """
    corner = math.nan
    factor = 100 / (1 + ascent.base) if -1 < ascent.base < math.inf else math.nan
    with ascent.restored():
        if math.isfinite(factor):
            limits = {"num_starts": num_starts, "num_steps": num_steps}
            corner = climb_box_from_all(ascent, half_width(), generator=generator, **limits)
        found = ascent.result(factor)
    return KeskarSharpness(
        found.value,
        found.stderr,
        found.num_gradients,
        found.num_values,
        corner=factor * (corner - ascent.base),
        num_starts=num_starts,
    )


def check_starts(num_starts: int) -> None:
    """Check the number of random starts.

    Args:
        num_starts: Number of them.

    Raises:
        ValueError: If it is not positive: at a minimum nothing else leads away from the weights.
    """
    if num_starts < 1:
        raise ValueError(f"num_starts must be at least 1, got {num_starts}; at a minimum nothing else finds a rise")
