"""The largest curvature with respect to relative changes of the weights, with its error over the data."""

import math

import torch
from torch import Tensor

from lbtrain.functional.hvp import MeanLoss
from lbtrain.functional.interruption import Interrupted
from lbtrain.functional.scaled_hessian import scaled_spectrum
from lbtrain.functional.sharpness_results import ScaledSharpness
from lbtrain.functional.weight_scale import checked_scale, weight_scale


def scaled_sharpness(
    loss: MeanLoss,
    *,
    scale: Tensor | None = None,
    tol: float = 1e-3,
    max_matvecs: int = 300,
    generator: torch.Generator,
) -> ScaledSharpness:
    """Return ``lambda_max(D H D)``, ``D = diag(c)``, and how far other batches could move it.

    With ``c = |w|`` it does not change under rescalings of the weights that leave the function of a ReLU network alone;
    ``rho^2 / 2`` times it is the adaptive worst case with p = 2 at a minimum, to second order. The standard error is
    that of ``x' D H_b D x`` over the batches ``b``, at the eigenvector ``x`` found.

    Args:
        loss: Mean loss over all batches of all ranks, ``n`` parameters; they are not moved.
        scale: ``c``, shape ``(n,)``; None for ``|w|``.
        tol: Bound on the residual, in units of the largest absolute eigenvalue.
        max_matvecs: Largest number of products of the search.
        generator: Source of the start vector; seeded alike on all ranks.

    Returns:
        In the unit of the loss, with its residual and its standard error over batches.

    Raises:
        ValueError: If ``scale`` or the arguments of Lanczos do not fit.
        Interrupted: If the user asked to stop.

    References:
        Andriushchenko et al. (2023), arXiv 2302.07011, whose worst case this is to second order.

    Example:
        >>> w = torch.tensor([1.0, -3.0], dtype=torch.float64, requires_grad=True)
        >>> loss = MeanLoss([w], [lambda: 2 * w[0] ** 2 + w[1] ** 2], [1.0])
        >>> found = scaled_sharpness(loss, generator=torch.Generator().manual_seed(0))
        >>> round(found.value, 6)  # the larger one of 4 * 1^2 and 2 * 3^2
        18.0
    """  # noqa: DOC502 - the calls raise ValueError
    before = loss.num_matvecs
    c = checked_scale(weight_scale(loss.params) if scale is None else scale, loss)
    spectrum = scaled_spectrum(
        loss, scale=c, tol=tol, max_matvecs=max_matvecs, generator=generator, keep_vectors=True, smallest=False
    )
    if spectrum.interrupted:
        raise Interrupted("stopped on request before the largest eigenvalue was found")
    stderr = math.nan
    if spectrum.vectors is not None:
        stderr = loss.curvature(c * spectrum.vectors[:, 0]).stderr
    cost = loss.num_matvecs - before
    return ScaledSharpness(spectrum.lambda_max, stderr, spectrum.lambda_max_residual, spectrum.converged, cost)
