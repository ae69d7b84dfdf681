"""Keskar's sharpness in a random subspace of few dimensions."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lbtrain.functional._climb import climb_box
from lbtrain.functional._linear_excursion import LinearExcursion
from lbtrain.functional.hvp import MeanLoss
from lbtrain.functional.results import SharpnessValue
from lbtrain.functional.vectors import flatten


def keskar_subspace_sharpness(
    loss: MeanLoss,
    params: Sequence[Tensor],
    *,
    eps: float = 1e-3,
    dim: int = 100,
    num_steps: int = 10,
    num_starts: int = 3,
    generator: torch.Generator,
) -> SharpnessValue:
    """Return ``100 (max_z L(w + A z) - L(w)) / (1 + L(w))`` over ``|z_i| <= eps (|(A+ w)_i| + 1)``, in percent.

    ``A`` has ``dim`` random columns of length 1 (isotropic; the paper does not name its distribution), ``A+`` is its
    pseudo-inverse. The ascent starts from random points inside the box, never from ``z = 0``, where the gradient of a
    minimum is zero. The largest loss met counts, ``L(w)`` included: a lower bound of the maximum, never negative. The
    value also depends on the subspace: call again with the same generator for the spread over subspaces.

    Args:
        loss: Mean loss over all batches of all ranks, ``n`` parameters.
        params: Its parameters, the same tensors in the same order; put back bit for bit, on an error too.
        eps: Half the width of the box for a coordinate of zero; 1e-3 and 5e-4 in the paper.
        dim: Dimensions of the subspace, at most ``n``; 100 in the paper. Memory: twice as many vectors for a moment,
            then once.
        num_steps: Gradients after the first one of each start; 10 as in the paper.
        num_starts: Starting points, ``1 + num_steps`` gradients each at most.
        generator: Source of the subspace, then of the starts; seeded alike on all ranks.

    Returns:
        Percent of ``1 + L(w)``, with the standard error over batches; NaN when the loss is not finite.

    Raises:
        ValueError: If ``eps``, ``num_steps`` or ``num_starts`` is not positive, ``dim`` is not between 1 and ``n``, or
            ``params`` are not those of the loss.

    References:
        Keskar et al. (2017), arXiv 1609.04836, metric 2.1 and table 4.
    """
    if not 1 <= dim <= loss.dim:
        raise ValueError(
            f"dim must lie between 1 and the {loss.dim} parameters of the loss, got {dim}; "
            "keskar_sharpness measures in the full space"
        )
    if num_starts < 1:
        raise ValueError(f"num_starts must be at least 1, got {num_starts}; each one is a separate ascent")
    Q, R = _random_columns(loss, dim, generator)
    ascent = LinearExcursion(
        loss, params, "eps", eps, num_steps, forward=lambda z: Q @ (R @ z), adjoint=lambda g: R.T @ (Q.T @ g)
    )
    with ascent.restored():
        if math.isfinite(ascent.base):
            w = flatten([p.detach().to(loss.dtype) for p in params])
            coordinates = torch.linalg.solve_triangular(R, (Q.T @ w)[:, None], upper=True)[:, 0]
            half_width = eps * (coordinates.abs() + 1)
            for _ in range(num_starts):
                uniform = torch.rand(dim, generator=generator, device=generator.device, dtype=loss.dtype)
                climb_box(ascent, (2 * uniform - 1).to(loss.device) * half_width, half_width, num_steps)
        return ascent.result(100 / (1 + ascent.base))


def _random_columns(loss: MeanLoss, dim: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return ``Q`` with orthonormal columns and an upper triangular ``R``, where ``A = Q R`` has columns of length 1.

    Then ``A+ = R^-1 Q'``, and ``A`` itself need not stay in memory.
    """
    A = torch.randn(loss.dim, dim, generator=generator, device=generator.device, dtype=loss.dtype).to(loss.device)
    Q, R = torch.linalg.qr(A)
    return Q, R / torch.linalg.vector_norm(R, dim=0)
