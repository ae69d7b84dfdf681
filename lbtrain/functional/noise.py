"""How much of a mini-batch gradient is signal and how much noise, from squared norms at two batch sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NoiseEstimate:
    """One unbiased estimate; its error is seen in the spread of many, `RunningNoise`.

    Attributes:
        gradient_sq: ``|G|^2``, squared norm of the expected gradient, squared loss per squared parameter. May come out
            negative.
        trace_sigma: ``tr(Sigma)``, trace of the covariance of per-sample gradients: the same unit times samples.
    """

    gradient_sq: float
    trace_sigma: float


def two_batch_estimate(small_sq: float, big_sq: float, small: float, big: float) -> NoiseEstimate:
    """Solve ``E|G_B|^2 = |G|^2 + tr(Sigma) / B`` at two batch sizes for both unknowns.

    ``|G|^2 = (B |G_B|^2 - b |G_b|^2) / (B - b)``, ``tr(Sigma) = (|G_b|^2 - |G_B|^2) / (1/b - 1/B)``.

    Args:
        small_sq: Squared norm of a gradient at batch size b (a mean over several of them serves better), squared loss
            per squared parameter.
        big_sq: Squared norm of a gradient at batch size B, same unit.
        small: b, samples.
        big: B, samples.

    Returns:
        Both unknowns; unbiased, whatever the dependence between the two gradients.

    Raises:
        ValueError: If not 0 < b < B.

    References:
        McCandlish et al. (2018), arXiv 1812.06162, appendix A.1.
    """
    if not 0 < small < big:
        raise ValueError(
            f"small and big must be batch sizes with 0 < small < big, got small={small!r} and big={big!r}; "
            "the variance of the gradient is seen between two different sizes"
        )
    gradient_sq = (big * big_sq - small * small_sq) / (big - small)
    return NoiseEstimate(gradient_sq, (small_sq - big_sq) / (1 / small - 1 / big))


def micro_batch_share(size: float, *, summed: bool = False) -> tuple[float, float]:
    """Return what a micro-batch adds to the two sums of `micro_batch_estimate`.

    Args:
        size: Samples b in the micro-batch.
        summed: Whether the loss sums over samples; otherwise it averages.

    Returns:
        Factor of ``|g|^2``, and the term of the size: ``1`` and ``1/b`` for a mean, ``1/b`` and ``b`` for a sum.

    Raises:
        ValueError: If the size is not positive.
    """
    if not size > 0:
        raise ValueError(f"size must be above 0 samples, got {size!r}; leave out a micro-batch without samples")
    return (1 / size, size) if summed else (1.0, 1 / size)


def micro_batch_estimate(
    squares: float, sizes: float, big_sq: float, count: int, *, summed: bool = False
) -> NoiseEstimate:
    """Estimate from K micro-batches and the mean of their gradients, exactly also where their sizes differ.

    With g_i the gradient of the loss of b_i samples and ``G = sum_i g_i / K``: for a mean,
    ``E|g_i|^2 = |G0|^2 + t/b_i`` and ``E|G|^2 = |G0|^2 + mean(1/b_i) t/K``, two equations at the harmonic mean b and at
    K b. For a sum, ``E|g_i|^2 / b_i = b_i |G0|^2 + t`` and ``E|G|^2 = m^2 |G0|^2 + m t/K`` with the arithmetic mean m.

    Args:
        squares: Sum of ``|g_i|^2``, each times its factor from `micro_batch_share`; squared loss per squared parameter.
        sizes: Sum of the terms of the sizes from `micro_batch_share`.
        big_sq: ``|G|^2`` of the mean over micro-batches, squared loss per squared parameter.
        count: K, at least 2.
        summed: Whether the loss sums over samples; the estimate is of the mean loss all the same.

    Returns:
        The estimate per sample of the mean loss.

    Raises:
        ValueError: If K is below 2, or the sizes are not positive.
    """
    if count < 2 or not sizes > 0:
        raise ValueError(
            f"count must be at least 2 micro-batches and sizes above 0, got count={count!r} and sizes={sizes!r}; one "
            "micro-batch shows no variance: split it, or accumulate"
        )
    if summed:
        mean = sizes / count
        return two_batch_estimate(squares / count / mean, big_sq / mean**2, mean, count * mean)
    harmonic = count / sizes
    return two_batch_estimate(squares / count, big_sq, harmonic, count * harmonic)


def halves_estimate(
    first: Sequence[Tensor], second: Sequence[Tensor], sizes: tuple[int, int], *, summed: bool = False
) -> tuple[Tensor, Tensor]:
    """Estimate from the gradients of two parts of a batch: ``<g_A, g_B>`` and ``|g_A - g_B|^2 / (1/a + 1/b)``.

    The two-batch estimator for K = 2, in a form that does not subtract two large numbers.

    Args:
        first: Gradient of the first part, several tensors of any precision.
        second: Gradient of the second part, the same shapes.
        sizes: Samples a and b of the parts.
        summed: Whether the loss sums over samples; each gradient is then divided by its size.

    Returns:
        ``|G|^2`` and ``tr(Sigma)``, 0-dim and on the device: squared loss per squared parameter, and that times
        samples; zero for no tensors.

    Raises:
        ValueError: If there are not as many tensors of both.
    """
    if len(first) != len(second):
        raise ValueError(
            f"first and second must hold equally many tensors, got {len(first)} and {len(second)}; give a parameter "
            "without a gradient zeros"
        )
    pairs = list(zip(first, second, strict=True))
    if not pairs:
        return torch.zeros(()), torch.zeros(())
    # Pair by pair, so that wide copies and differences live one at a time.
    found = [_products(*pair, sizes if summed else (1, 1)) for pair in pairs]
    gradient_sq, difference_sq = (
        torch.stack([v.to(column[0]) for v in column]).sum() for column in zip(*found, strict=True)
    )
    return gradient_sq, difference_sq / (1 / sizes[0] + 1 / sizes[1])


def _products(a: Tensor, b: Tensor, divisors: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return ``<a, b>`` and ``|a - b|^2`` of two gradients, each divided by its number first."""
    a, b = ((g.float() if g.itemsize < 4 else g).reshape(-1) / n for g, n in zip((a, b), divisors, strict=True))
    difference = a - b
    return torch.dot(a, b), torch.dot(difference, difference)


def adascale_gain(gradient_sq: float, trace_sigma: float, global_batch: float, base_batch: float) -> float:
    """Return by how many steps at the base batch one step at the global batch counts.

    ``gain = (tr(Sigma)/B0 + |G|^2) / (tr(Sigma)/B + |G|^2)``: B/B0 where noise rules, 1 where the gradient does.

    Args:
        gradient_sq: ``|G|^2``, squared loss per squared parameter.
        trace_sigma: ``tr(Sigma)``, that unit times samples.
        global_batch: B, samples.
        base_batch: B0, samples.

    Returns:
        The gain, without unit; NaN where an estimate is negative by its noise, or both are zero.

    Raises:
        ValueError: If a batch size is not positive.

    References:
        Johnson et al. (2020), arXiv 2007.05105, section 3 (there per number of devices S = B/B0).
    """
    if not (global_batch > 0 and base_batch > 0):
        raise ValueError(
            f"global_batch and base_batch must be above 0, got {global_batch!r} and {base_batch!r} samples"
        )
    if not (gradient_sq >= 0 and trace_sigma >= 0 and gradient_sq + trace_sigma > 0):
        return math.nan
    return (trace_sigma / base_batch + gradient_sq) / (trace_sigma / global_batch + gradient_sq)
