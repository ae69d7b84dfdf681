"""Both ends of the spectrum of ``D H D``: curvature with respect to relative changes of the weights."""

import torch
from torch import Tensor

from lbtrain.functional.hvp import MeanLoss
from lbtrain.functional.lanczos import lanczos
from lbtrain.functional.progress import Watch
from lbtrain.functional.results import Spectrum
from lbtrain.functional.weight_scale import checked_scale, weight_scale


def scaled_spectrum(
    loss: MeanLoss,
    *,
    scale: Tensor | None = None,
    top_k: int = 1,
    tol: float = 1e-3,
    max_matvecs: int = 300,
    generator: torch.Generator,
    start: Tensor | None = None,
    keep_vectors: bool = False,
    smallest: bool = True,
    repeated: bool = True,
    watch: Watch | None = None,
) -> Spectrum:
    """Find the ``top_k`` largest eigenvalues and the smallest one of ``D H D``, ``D = diag(c)``, by Lanczos.

    With ``c = |w|`` they do not change under rescalings of the weights that leave the function of a ReLU network alone,
    and ``rho^2 / 2 lambda_max(D H D)`` is the adaptive worst-case sharpness with p = 2 at a minimum, to second order.

    Args:
        loss: Mean loss over all batches of all ranks, ``n`` parameters; they are not moved.
        scale: ``c``, shape ``(n,)``; None for ``|w|``.
        top_k: How many of the largest eigenvalues.
        tol: Bound on each residual, in units of the largest absolute eigenvalue.
        max_matvecs: Largest number of products.
        generator: Source of the start vectors; seeded alike on all ranks.
        start: First start vector ``(n,)`` in relative changes, such as an eigenvector found earlier; None draws it.
        keep_vectors: Whether to return the eigenvectors, in relative changes: ``D v`` is the direction in the weights.
        smallest: Whether ``lambda_min`` must meet the tolerance too.
        repeated: Whether to look for repeated eigenvalues.
        watch: Called after each product.

    Returns:
        Eigenvalues and residuals in the unit of the loss (for ``c`` in the unit of the weights).

    Raises:
        ValueError: If ``scale`` or the arguments of Lanczos do not fit.

    References:
        Andriushchenko et al. (2023), arXiv 2302.07011, whose worst case this is to second order.

    Example:
        >>> w = torch.tensor([1.0, -3.0], dtype=torch.float64, requires_grad=True)
        >>> loss = MeanLoss([w], [lambda: 2 * w[0] ** 2 + w[1] ** 2], [1.0])
        >>> found = scaled_spectrum(loss, top_k=2, generator=torch.Generator().manual_seed(0))
        >>> [round(value, 6) for value in found.eigenvalues]  # 2 * (-3)^2 and 4 * 1^2
        [18.0, 4.0]
    """  # noqa: DOC502 - the calls raise it
    c = checked_scale(weight_scale(loss.params) if scale is None else scale, loss)
    return lanczos(
        lambda v: c * loss.hvp(c * v),
        loss.dim,
        top_k=top_k,
        tol=tol,
        max_matvecs=max_matvecs,
        generator=generator,
        dtype=loss.dtype,
        device=loss.device,
        start=start,
        keep_vectors=keep_vectors,
        smallest=smallest,
        repeated=repeated,
        watch=watch,
    )
