"""Losses whose curvature is known in closed form, as operators on samples that lie in batches of very unequal sizes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from lbtrain.curvature import HessianOperator, lanczos
from lbtrain.functional.results import Spectrum
from tests.problems import SmallNetwork, generator

SIZES = (9, 1, 14, 6)  # of 30 samples; an unweighted mean over these batches is far from the mean over samples


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Return standard normal numbers in float64, the same each time."""
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def split(columns: Sequence[Tensor], sizes: Sequence[int] = SIZES) -> list[tuple[Tensor, ...]]:
    """Return tuples of the columns' parts, as a loader would; the sizes must add up to the samples."""
    return list(zip(*(c.split(list(sizes)) for c in columns), strict=True))


def operator(
    loss: Callable[..., Tensor],
    params: Sequence[Tensor],
    columns: Sequence[Tensor],
    sizes: Sequence[int] = SIZES,
    **options: Any,
) -> HessianOperator:
    """Return the operator of ``loss(*batch)``, a mean over samples, with the samples cut into batches."""
    return HessianOperator(lambda batch: loss(*batch), params, split(columns, sizes), **options)


def dense(matrix: HessianOperator) -> Tensor:
    """Return the whole matrix ``(n, n)``, column by column."""
    return torch.stack([matrix @ e for e in torch.eye(matrix.dim, dtype=matrix.dtype)], dim=1)


def ends(matrix: HessianOperator, top_k: int = 1, seed: int = 0, **options: Any) -> Spectrum:
    """Return both ends of the spectrum to 1e-10, unless another tolerance is asked for."""
    options = {"tol": 1e-10, "generator": generator(seed), "dtype": matrix.dtype, **options}
    return lanczos(matrix, matrix.dim, top_k=top_k, **options)


def size(v: Tensor) -> float:
    """Return the Euclidean norm."""
    return float(torch.linalg.vector_norm(v.double()))


def regression(X: Tensor, Y: Tensor, W: Tensor, sizes: Sequence[int] = SIZES, **options: Any) -> HessianOperator:
    """Return least squares, the mean of ``(x.W - y)^2`` over samples and outputs."""
    return operator(lambda x, y: mse_loss(x @ W, y), [W], [X, Y], sizes, **options)


def quadratic(
    A: Tensor, w: Tensor, b: Tensor | None = None, *, height: float = 0.0, spread: float = 1.0, **options: Any
) -> HessianOperator:
    """Return ``height + b'w + w'Aw / 2`` as a mean over 30 samples.

    Each sample has a matrix and a slope of its own, which differ from ``A`` and ``b`` by noise of mean zero.
    """
    n, count = len(A), sum(SIZES)
    noise = spread * normal(count, n, n, seed=31)
    noise = noise + noise.mT
    slopes = spread * normal(count, n, seed=32)
    matrices = A + noise - noise.mean(0)
    slopes = (torch.zeros(n, dtype=torch.float64) if b is None else b) + slopes - slopes.mean(0)

    def loss(M: Tensor, s: Tensor) -> Tensor:
        return height + (s @ w + 0.5 * (M @ w) @ w).mean()

    return operator(loss, [w], [matrices, slopes], **options)


def of_network(
    problem: SmallNetwork, sizes: Sequence[int] = SIZES, factor: float = 1.0, **options: Any
) -> HessianOperator:
    """Return the cross-entropy of a small network, times a factor."""
    loss = lambda x, y: factor * nn.functional.cross_entropy(problem.net(x), y)
    return operator(loss, problem.params, [problem.X, problem.y], sizes, **options)
