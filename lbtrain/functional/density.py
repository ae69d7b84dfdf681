"""Spectral density of a symmetric matrix by stochastic Lanczos quadrature."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lbtrain.functional._krylov import KrylovBasis
from lbtrain.functional._probes import MatVec, reporter
from lbtrain.functional._ritz import Ritz
from lbtrain.functional.interruption import Interrupted
from lbtrain.functional.progress import Watch
from lbtrain.functional.space import WHOLE, Space
from lbtrain.functional.spectral_results import SpectralDensity, mean_and_stderr

# Points of the grid per standard deviation: the trapezoidal rule is then exact to rounding, and the curve looks smooth.
_POINTS = 4
# Reach of a Gaussian, standard deviations: 2e-9 of its mass lies beyond.
_REACH = 6
# Nodes closer together than this many roundings of the largest one are one node, as in the breakdown of the basis.
_ONE_NODE = 100.0


def density(
    matvec: MatVec,
    dim: int,
    *,
    num_probes: int = 10,
    num_steps: int = 80,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    width: float | None = None,
    space: Space = WHOLE,
    watch: Watch | None = None,
) -> SpectralDensity:
    """Estimate how the eigenvalues of ``H`` are spread: ``phi(t) = mean_v sum_i tau_i N(t; theta_i, sigma^2)``.

    ``theta_i`` are the Ritz values of Lanczos from a random direction ``v`` and ``tau_i`` the squared first entries of
    their coefficients: a Gauss quadrature of the spectrum seen by ``v``, ``sum_i tau_i theta_i^j = v'H^j v`` for
    ``j <= 2 num_steps - 1``. So the trace and ``||H||_F^2`` come free. Directions are uniform, so that every one of
    them has a part in each eigenvector. Where a Krylov space is invariant its nodes are eigenvalues, and it ends there.

    ``sigma = width * (largest - smallest node)``, by default with ``width = pi / (4 num_steps)``. ``m`` nodes of a
    Gauss quadrature on a range ``R`` are spaced as cosines of even angles, ``d = pi R / (2 m)`` in the middle; a comb
    of Gaussians at that spacing ripples by ``2 exp(-2 pi^2 sigma^2 / d^2)`` (Poisson summation), and
    ``sigma = d / 2`` makes that 1.4 %. If all nodes are one, ``sigma = width * |node|``, and ``width`` at zero.

    Args:
        matvec: Maps ``v`` of shape ``(n,)`` to ``H v``, same shape. ``H`` symmetric; every product is counted.
        dim: Number of rows ``n`` of ``H``.
        num_probes: Random directions; the standard errors are over them. 10 as in Ghorbani et al. (2019).
        num_steps: Lanczos steps for each, at least 2. 80 as there. Memory: that many vectors.
        generator: Source of the directions; seeded alike on all ranks, so that these are the same there.
        dtype: Type of the vectors; the projected problem is solved in float64.
        device: Place of the vectors.
        width: ``sigma`` as a share of the spectrum's range, between 1e-5 and 1; None for the formula above.
        space: How inner products are taken; a ``ShardedSpace`` if each process holds a part of every vector. There the
            generators are seeded differently, but alike for what several processes hold.
        watch: Called after each product.

    Returns:
        The quadrature, and the density on a grid that carries all of it. Of the probes that were completed if
        ``Interrupted`` came out of a product after the first of them.

    Raises:
        ValueError: If an argument is out of its range, or a product has another shape.
        Interrupted: If a product raised it before the first probe was complete.

    References:
        Ghorbani, Krishnan and Xiao (2019), arXiv 1901.10159, section 2. Ubaru, Chen and Saad (2017), SIAM J. Matrix
        Anal. Appl. 38(4). Golub and Meurant (2010), Matrices, Moments and Quadrature, chapter 6.

    Example:
        >>> A = torch.diag(torch.tensor([3.0, 1.0, 1.0, 1.0]))
        >>> generator = torch.Generator().manual_seed(0)
        >>> found = density(lambda v: A @ v, 4, num_probes=2, num_steps=10, generator=generator)
        >>> [round(x, 4) for x in found.nodes.tolist()], found.num_matvecs
        ([1.0, 3.0, 1.0, 3.0], 4)
    """
    dimension = space.dimension(dim)
    if dimension < 1 or num_probes < 1 or num_steps < 2:
        raise ValueError(
            f"need dim >= 1, num_probes >= 1 and num_steps >= 2, got dim = {dimension}, num_probes = {num_probes} and "
            f"num_steps = {num_steps}; 10 probes of 80 steps are usual"
        )
    width = math.pi / (4 * num_steps) if width is None else width
    if not 1e-5 <= width <= 1:
        raise ValueError(f"width must lie between 1e-5 and 1, a share of the spectrum's range, got {width}")
    runs: list[Ritz] = []
    num_matvecs = 0
    for _ in range(num_probes):
        basis = KrylovBasis(dim, num_steps, dtype, device, space)
        basis.begin(torch.randn(dim, generator=generator, device=generator.device, dtype=dtype))
        try:
            is_finite = _sweep(basis, matvec, reporter(watch, "density", num_probes * basis.limit, num_matvecs))
        except Interrupted:
            if not runs:
                raise
            num_matvecs += basis.rows
            break
        num_matvecs += basis.rows
        if not is_finite:
            return _not_finite(dimension, num_probes, num_matvecs)
        runs.append(basis.ritz())
    return quadrature(runs, dimension, width, torch.finfo(dtype).eps, num_matvecs)


def _sweep(basis: KrylovBasis, matvec: MatVec, report: Callable[[int], None] | None) -> bool:
    """Fill the basis until its space is invariant.

    Returns:
        Whether all products were finite.
    """
    while not basis.full and not basis.broken:
        if not basis.step(matvec):
            return False
        if report is not None:
            report(basis.rows)
    return True


def quadrature(runs: list[Ritz], dim: int, width: float, eps: float, num_matvecs: int) -> SpectralDensity:
    """Return the frozen result of all probes.

    Args:
        runs: Ritz pairs of each, whose first row is the start.
        dim: Number of rows ``n`` of the matrix.
        width: ``sigma`` as a share of the spectrum's range.
        eps: Rounding of the vectors.
        num_matvecs: Products spent.

    Returns:
        Nodes, weights, curve and moments.
    """
    nodes, bounds = torch.cat([run.values for run in runs]), torch.cat([run.bounds for run in runs])
    shares = torch.cat([run.coefficients[0] ** 2 for run in runs])
    probe = torch.repeat_interleave(torch.arange(len(runs)), torch.tensor([len(run.values) for run in runs]))
    low, high, scale = int(nodes.argmin()), int(nodes.argmax()), float(nodes.abs().max())
    span = float(nodes[high] - nodes[low])
    sigma = width * (span if span > _ONE_NODE * eps * scale else scale or 1.0)
    grid, curves = _smooth(nodes, shares, probe, len(runs), sigma)
    sums = torch.zeros(2, len(runs), dtype=torch.float64)
    sums.index_add_(1, probe, torch.stack([shares * nodes, shares * nodes**2]))
    return SpectralDensity(
        nodes,
        shares / len(runs),
        probe,
        grid,
        curves.mean(0),
        curves.std(0) / math.sqrt(len(runs)) if len(runs) > 1 else torch.full_like(grid, math.nan),
        sigma,
        *mean_and_stderr(dim * sums[0]),
        *mean_and_stderr(dim * sums[1]),
        *(float(nodes[high]), float(bounds[high])),
        *(float(nodes[low]), float(bounds[low])),
        dim,
        len(runs),
        num_matvecs,
    )


def _smooth(nodes: Tensor, shares: Tensor, probe: Tensor, count: int, sigma: float) -> tuple[Tensor, Tensor]:
    """Return a grid ``(G,)`` and the density of each probe on it ``(count, G)``, a Gaussian for each node."""
    spacing, margin = sigma / _POINTS, _POINTS * _REACH + 1
    positions = (nodes - nodes.min()) / spacing + margin
    size = int(positions.max().round()) + margin + 1
    # Only the points within reach of a node: the work does not grow with the grid.
    near = positions.round().long()[:, None] + torch.arange(1 - margin, margin)
    distances = (near - positions[:, None]) / _POINTS
    values = shares[:, None] * torch.exp(-0.5 * distances**2) / (sigma * math.sqrt(2 * math.pi))
    curves = torch.zeros(count * size, dtype=torch.float64)
    curves.index_add_(0, (near + size * probe[:, None]).flatten(), values.flatten())
    grid = nodes.min() + spacing * (torch.arange(size, dtype=torch.float64) - margin)
    return grid, curves.view(count, size)


def _not_finite(dim: int, num_probes: int, num_matvecs: int) -> SpectralDensity:
    """Return the result of a matrix whose products are not finite."""
    empty = torch.zeros(0, dtype=torch.float64)
    numbers = (math.nan,) * 9
    return SpectralDensity(empty, empty, empty.long(), empty, empty, empty, *numbers, dim, num_probes, num_matvecs)
