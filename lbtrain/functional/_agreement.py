"""Whether double backward tells the truth about operations whose backward is not torch's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lbtrain.functional._difference_step import StepSearch
from lbtrain.functional._double_backward import NoSecondDerivativeError
from lbtrain.functional._kept_graphs import Graph
from lbtrain.functional._matrices import Matrix
from lbtrain.functional.space import WHOLE
from lbtrain.functional.vectors import flatten, norm, unflatten

# Share of the product by which the two may always disagree. More than that and twice Richardson's bound of the
# difference is a lie: kinks, which differences average over, show in that bound too. On 72 ReLU networks (8 and 64
# wide, 10 to 1000 samples, float32 and float64, trained and not), where the two disagreed by up to 1, the disagreement
# stayed below half of that; a square without its second derivative was off by 0.17.
_SHARE = 0.02


def check_custom_functions(
    matrix: Matrix, i: int, graph: Graph, names: Sequence[str], spend: Callable[[int], None]
) -> None:
    """Compare double backward with differences of gradients along the gradient of one batch.

    Costs two gradients of the batch, and a search for the best step only where they disagree, as at kinks. Where those
    are many, a lie can hide among them.

    Args:
        matrix: What products are taken with.
        i: The batch.
        graph: Its graph.
        names: The operations in question, for the message.
        spend: Takes the number of gradients.

    Raises:
        NoSecondDerivativeError: If they disagree by more than kinks and roundings explain.
    """
    params = matrix.batches.params
    pairs = zip(matrix.gradient(graph), params, strict=True)
    gradient = [torch.zeros_like(p) if g is None else g.detach() for g, p in pairs]
    length = float(norm(gradient))
    if length == 0 or not math.isfinite(length):
        return
    wide = torch.float64 if any(p.dtype == torch.float64 for p in params) else torch.float32
    unit = [g.to(wide) / length for g in gradient]
    exact = matrix.exact(graph, unit)
    taken = 0

    def sides(vector: Tensor, step: float) -> tuple[Tensor, Tensor]:
        nonlocal taken
        taken += matrix.gradients_per_difference
        return matrix.sides([i], unflatten(vector, params), step)

    search = StepSearch(sides, params, flatten(unit), WHOLE, measure=lambda v: float(torch.linalg.vector_norm(v)))
    try:
        off, share = _disagreement(search, exact, search.first())
        if not off <= share:
            step, error = search.best()
            off, share = _disagreement(search, exact, step)
            share += 2 * error
    finally:
        spend(taken)
    if off > share:
        raise NoSecondDerivativeError(
            f"differences of the gradient disagree with the backward of {', '.join(names)}, which torch cannot check"
        )


def _disagreement(search: StepSearch, exact: Tensor, step: float) -> tuple[float, float]:
    """Return how far the difference at a step lies from the exact product, and how far it may."""
    found = search.difference(step)
    off = float(torch.linalg.vector_norm(found - exact))
    return off, _SHARE * max(search.size(step), float(torch.linalg.vector_norm(exact)))
