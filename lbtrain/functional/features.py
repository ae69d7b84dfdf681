"""The inputs' columns: means far from zero and scales far apart, which make a loss ill-conditioned."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lbtrain.functional.diagnosis import Finding, Remedy

# Fewer samples leave a mean and a spread by chance. A choice.
_MIN_SAMPLES = 16
# A column with one value in more than this share of the samples is sparse, such as a pixel of the border or an
# indicator: its spread tells how often it is used, not in which unit it is written. A choice.
_SPARSE = 0.5
# By that much a column alone makes the loss ill-conditioned: by 1 + (mean / std)^2, some 100, see `feature_scales`; and
# gradient descent takes as many times the steps. A choice: images between 0 and 1 lie at 2, ages at 3.
_OFFSET = 10.0
# Ratio of two spreads, the square of which is the condition number, 1e4. A choice.
_RATIO = 100.0


@dataclass(frozen=True)
class FeatureScales:
    """Where the inputs' columns lie and how far they spread.

    Attributes:
        means: Mean of each column, shape ``(F,)``, float64 on the CPU, in the unit of the inputs.
        stds: Their standard deviations, same shape and unit; 0 for a constant column, NaN for one with values that are
            not finite.
        dense: Whether a column is neither constant nor sparse, booleans of shape ``(F,)``.
        num_samples: Samples.
        kind: What a column is: ``column`` or ``channel``.
    """

    means: Tensor
    stds: Tensor
    dense: Tensor
    num_samples: int
    kind: str


def feature_scales(inputs: Tensor) -> FeatureScales:
    """Measure the columns of the inputs, or the channels of images.

    In a linear model with one column, ``H = mean(x x')`` over ``(x, 1)``; its condition number is at least ``1 + (m /
    s)^2`` for ``m = mean`` and ``s = std``, and with ``F`` independent columns alike and no bias it is ``1 + F (m /
    s)^2``.
    Columns with spreads ``s_1`` and ``s_2`` have the condition number ``(s_1 / s_2)^2``.

    Args:
        inputs: Shape ``(N, ...)``: ``(N, C, H, W)`` or with more dimensions by channel, else flattened to columns. Only
            floating tensors have scales.

    Returns:
        Mean and spread by column.

    Raises:
        ValueError: If the inputs are not floating, or have no sample or column.

    References:
        LeCun, Bottou, Orr and Mueller (1998), Efficient BackProp, section 4.3.
    """
    if not inputs.is_floating_point():
        raise ValueError(
            f"inputs must be floating, got {inputs.dtype}; tokens and indices have no scale: leave them out"
        )
    if inputs.ndim < 2 or inputs.numel() == 0:
        raise ValueError(f"inputs must have samples and columns, got shape {tuple(inputs.shape)}; pass a whole batch")
    images = inputs.ndim >= 4
    x = (inputs.detach().transpose(0, 1).flatten(1).T if images else inputs.detach().flatten(1)).cpu()
    means = x.mean(dim=0, dtype=torch.float64)
    stds = torch.stack([c.double().std(correction=0) for c in x.T]) if images else x.double().std(dim=0, correction=0)
    constant = x.amax(dim=0) == x.amin(dim=0)
    stds[constant & means.isfinite()] = 0.0  # a mean that is rounded leaves a spread
    dense = (stds > 0) & stds.isfinite()
    if not images:
        dense &= (x == x.mode(dim=0).values).double().mean(dim=0) <= _SPARSE
    return FeatureScales(means, stds, dense, len(inputs), "channel" if images else "column")


def feature_finding(
    scales: FeatureScales, *, offset: float = _OFFSET, ratio: float = _RATIO, min_samples: int = _MIN_SAMPLES
) -> Finding | None:
    """Name the columns that are far from zero or in another scale than the rest.

    Args:
        scales: Of `feature_scales`.
        offset: Of ``|mean| / std`` from which a column is a problem, without unit.
        ratio: Of the largest to the smallest spread from which they are, without unit.
        min_samples: Fewer say nothing.

    Returns:
        ``ill-conditioned inputs`` with the columns and their numbers; None where they are fine, constant, or sparse.
    """
    columns = scales.dense.nonzero().flatten().tolist()
    if scales.num_samples < min_samples or not columns:
        return None
    means, stds = scales.means.tolist(), scales.stds.tolist()
    away = sorted((i for i in columns if abs(means[i]) >= offset * stds[i]), key=lambda i: -abs(means[i]) / stds[i])
    wide, narrow = max(columns, key=lambda i: stds[i]), min(columns, key=lambda i: stds[i])
    spread = stds[wide] / stds[narrow]
    words: list[str] = []
    if away:
        words.append(_away(scales, away, len(columns)))
    if spread >= ratio:
        words.append(
            f"the spread of {scales.kind} {wide} is {stds[wide]:.3g} and that of {scales.kind} {narrow} "
            f"{stds[narrow]:.3g}, {spread:.3g} times less"
        )
    if not words:
        return None
    far = max(abs(means[i]) / stds[i] for i in columns)
    condition = max(1 + far**2, spread**2)
    named = away[0] if away else wide
    remedy = Remedy(
        "standardize the inputs: subtract each column's mean and divide by its standard deviation "
        f"({scales.kind} {named}: {means[named]:.4g} and {stds[named]:.3g})",
        {"normalize": True},
    )
    numbers = {"offset": far, "ratio": spread, "condition": condition, "columns": float(len(away))}
    reason = f"; gradient descent needs some {condition:.1g} times the steps"
    severity = max(far / offset, spread / ratio, 1.0)
    evidence = "inputs: " + "; ".join(words) + reason
    return Finding("ill-conditioned inputs", evidence, numbers, severity, since=0, remedies=(remedy,))


def _away(scales: FeatureScales, away: Sequence[int], total: int) -> str:
    """Return which columns are far from zero."""
    shown = ", ".join(f"{i} (mean {scales.means[i]:.4g}, std {scales.stds[i]:.3g})" for i in away[:3])
    more = f" and {len(away) - 3} more" if len(away) > 3 else ""
    verb = "are" if len(away) > 1 else "is"
    return f"{scales.kind}{'s' * (len(away) > 1)} {shown}{more} of {total} {verb} far from zero for the spread"
