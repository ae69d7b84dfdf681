"""The step of finite differences of a Gauss-Newton matrix, which are differences of the loss's slope in the outputs."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lbtrain.functional._difference_step import StepSearch
from lbtrain.functional._matrices import Matrix
from lbtrain.functional.ranks import Ranks
from lbtrain.functional.space import WHOLE
from lbtrain.functional.vectors import norm, unflatten


def relative(error: float, size: float) -> float:
    """Return an error in units of a size; infinite where there is nothing to compare with."""
    return error / size if size else math.inf


def choose_output_step(
    matrix: Matrix, direction: Tensor, ranks: Ranks, like: Tensor, spend: Callable[[int], None]
) -> tuple[float, float]:
    """Choose the step of a Gauss-Newton matrix along a direction, on one batch of each rank; all ranks call it.

    Args:
        matrix: The matrix.
        direction: Such as the gradient, shape ``(n,)``.
        ranks: Agree on failures and on norms.
        like: Gives type and device of the sums.
        spend: Takes the number of gradients.

    Returns:
        The step, in units of parameter norm, and the relative error there.
    """
    params = matrix.batches.params
    indices = range(min(1, len(matrix.batches)))

    def sides(unit: Tensor, step: float) -> tuple[Tensor, Tensor]:
        found: list[Tensor] = []
        spend(matrix.gradients_per_difference)
        ranks.sum(lambda _: found.extend(matrix.sides(indices, unflatten(unit, params), step)), like, 0)
        return found[0], found[1]

    def measure(v: Tensor) -> float:
        return math.sqrt(float(ranks.total(torch.linalg.vector_norm(v).to(like) ** 2)))

    length = float(norm([direction]))
    if not length:
        direction = torch.randn(direction.shape, generator=torch.Generator().manual_seed(0)).to(direction)
        length = float(norm([direction]))
    search = StepSearch(sides, params, direction / length, WHOLE, measure)
    step, error = search.best() if math.isfinite(length) else (search.first(), math.nan)
    return step, relative(error, search.size(step)) if math.isfinite(error) else error
