"""The largest eigenvalue without the bias of choosing its direction on the data that it is measured on."""

import math

import torch
from torch import Tensor

from lbtrain.functional.interruption import Interrupted
from lbtrain.functional.lanczos import lanczos
from lbtrain.functional.operator import HessianOperator
from lbtrain.functional.space import WHOLE, Space

# The start knows both halves. With a residual r relative to the gap below, the direction keeps r of it at the most, and
# the curvature along it is off by r^2.
_TOL = 0.01
_MATVECS = 30


def split_estimate(
    loss: HessianOperator, start: Tensor, generator: torch.Generator, space: Space = WHOLE
) -> tuple[float, float]:
    """Measure the curvature on one half of the batches along the top eigenvector of the other half, both ways.

    The largest eigenvalue of a sample is biased upwards, since a maximum is convex (Jensen's inequality); here the
    direction is independent of the data that judge it, so that the mean lies at or below the true one.

    Args:
        loss: Of all batches; its halves are those of even and odd index.
        start: Top eigenvector of all, shape `(n,)`.
        generator: As for `lanczos`.
        space: How inner products are taken.

    Returns:
        The mean of both ways, in loss per squared parameter, NaN where there are no two halves; and the products it
        took, one on half of the data counted half.
    """
    try:
        first, second = loss.halves()
    except ValueError:  # on every rank: none has two batches
        return math.nan, 0.0
    values = [_quotient(a, b, start, generator, space) for a, b in ((first, second), (second, first))]
    return sum(values) / 2, (first.num_matvecs + second.num_matvecs) / 2


def _quotient(
    chosen: HessianOperator, judged: HessianOperator, start: Tensor, generator: torch.Generator, space: Space
) -> float:
    """Return the curvature on one half along the top direction of the other.

    Raises:
        Interrupted: If the user stopped it.
    """
    found = lanczos(
        chosen.hvp, chosen.dim, tol=_TOL, max_matvecs=_MATVECS, start=start, smallest=False, keep_vectors=True,
        repeated=False, generator=generator, dtype=chosen.dtype, device=chosen.device, space=space,
    )  # fmt: skip
    chosen.release()
    if found.interrupted:
        raise Interrupted
    value = judged.curvature(found.vectors[:, 0].contiguous()).value if found.vectors is not None else math.nan
    judged.release()
    return value
