"""The curvature along one direction, with its sampling error over the data."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CurvatureAlong:
    """The mean of ``v' H_b v`` over batches.

    Attributes:
        value: ``v' H v``, loss per squared parameter for a unit vector ``v``.
        stderr: Its standard error over batches, same unit; NaN with fewer than 2 batches.
        num_batches: Batches on all ranks together.
    """

    value: float
    stderr: float
    num_batches: int


def batch_sums(values: Tensor, weights: Tensor) -> Tensor:
    """Sum over the local batches what the mean over all ranks and its standard error are made of.

    Args:
        values: One number ``c_b`` per local batch, shape ``(B,)``.
        weights: Share ``w_b`` of each batch, shape ``(B,)``.

    Returns:
        Sums over b of ``w c``, ``w^2 c^2``, ``w^2 c``, ``w^2`` and 1, shape ``(5,)``.
    """
    squares = weights**2
    terms = [weights * values, squares * values**2, squares * values, squares, torch.ones_like(values)]
    return torch.stack([term.sum() for term in terms])


def mean_of_batches(sums: Tensor) -> CurvatureAlong:
    """Return ``m = sum_b w_b c_b`` and ``sqrt(B / (B - 1) sum_b w_b^2 (c_b - m)^2)``.

    Args:
        sums: What ``batch_sums`` returns, summed over ranks; shape ``(5,)``.

    Returns:
        The mean, its standard error and the number of batches, in the unit of the values.
    """
    mean, second, first, zeroth, count = sums.tolist()
    if count < 2:
        return CurvatureAlong(mean, math.nan, round(count))
    spread = max(0.0, second - 2 * mean * first + mean**2 * zeroth)  # below zero only by rounding
    return CurvatureAlong(mean, math.sqrt(count / (count - 1) * spread), round(count))
