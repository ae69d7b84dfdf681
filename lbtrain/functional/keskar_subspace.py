"""Keskar's sharpness in a random subspace of few dimensions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lbtrain.functional._keskar import check_starts, keskar_rise
from lbtrain.functional._linear_excursion import LinearExcursion
from lbtrain.functional.hvp import MeanLoss
from lbtrain.functional.sharpness_results import KeskarSharpness
from lbtrain.functional.vectors import flatten


def keskar_subspace_sharpness(
    loss: MeanLoss,
    params: Sequence[Tensor],
    *,
    eps: float = 1e-3,
    dim: int = 100,
    num_steps: int = 10,
    num_starts: int = 1,
    generator: torch.Generator,
) -> KeskarSharpness:
    """Return ``100 (max_z L(w + A z) - L(w)) / (1 + L(w))`` over ``|z_i| <= eps (|(A+ w)_i| + 1)``, in percent.

    ``A`` has ``dim`` random columns of length 1 (isotropic; the paper does not name its distribution), ``A+`` is its
    pseudo-inverse. The ascent is that of ``keskar_sharpness``. The largest loss met counts, ``L(w)`` included: a lower
    bound of the maximum, never negative. The value also depends on the subspace: call again with the same generator for
    the spread over subspaces.

    Args:
        loss: Mean loss over all batches of all ranks, ``n`` parameters.
        params: Its parameters, the same tensors in the same order; put back bit for bit, on an error too.
        eps: Half the width of the box for a coordinate of zero; 1e-3 and 5e-4 in the paper.
        dim: Dimensions of the subspace, at most ``n``; 100 in the paper. Memory: twice as many vectors for a moment,
            then once.
        num_steps: Steps from each start, one gradient each; 10 iterations in the paper.
        num_starts: Random starts, beside the weights.
        generator: Source of the subspace, then of the starts; seeded alike on all ranks.

    Returns:
        Percent of ``1 + L(w)``, with the standard error over batches; NaN where the loss is not finite or at most -1.

    Raises:
        ValueError: If ``eps``, ``num_steps`` or ``num_starts`` is not positive, ``dim`` is not between 1 and ``n``, or
            ``params`` are not those of the loss.

    References:
        Keskar et al. (2017), arXiv 1609.04836, metric 2.1 and table 4.

    Example:
        A subspace of one dimension: from the minimum of ``w^2`` by ``eps (|a'w| + 1)`` along a unit vector ``a``.

        >>> w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        >>> loss = MeanLoss([w], [lambda: (w**2).sum()], [1.0])
        >>> found = keskar_subspace_sharpness(loss, [w], eps=0.1, dim=1, generator=torch.Generator().manual_seed(0))
        >>> round(found.value, 6), round(100 * 0.1**2, 6)
        (1.0, 1.0)
    """
    if not 1 <= dim <= loss.dim:
        raise ValueError(
            f"dim must lie between 1 and the {loss.dim} parameters of the loss, got {dim}; "
            "keskar_sharpness measures in the full space"
        )
    check_starts(num_starts)
    Q, R = _random_columns(loss, dim, generator)
    ascent = LinearExcursion(
        loss, params, "eps", eps, num_steps, forward=lambda z: Q @ (R @ z), adjoint=lambda g: R.T @ (Q.T @ g)
    )

    def half_width() -> Tensor:
        w = flatten([p.detach().to(loss.dtype) for p in params])
        coordinates: Tensor = torch.linalg.solve_triangular(R, (Q.T @ w)[:, None], upper=True)[:, 0]
        return eps * (coordinates.abs() + 1)

    return keskar_rise(ascent, half_width, num_starts=num_starts, num_steps=num_steps, generator=generator)


def _random_columns(loss: MeanLoss, dim: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return ``Q`` with orthonormal columns and an upper triangular ``R``, where ``A = Q R`` has columns of length 1.

    Then ``A+ = R^-1 Q'``, and ``A`` itself need not stay in memory.
    """
    A = torch.randn(loss.dim, dim, generator=generator, device=generator.device, dtype=loss.dtype).to(loss.device)
    Q, R = torch.linalg.qr(A)
    return Q, R / torch.linalg.vector_norm(R, dim=0)
