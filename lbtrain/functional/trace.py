"""Trace and Frobenius norm of a symmetric matrix from products with random vectors."""

import math

import torch
from torch import Tensor

from lbtrain.functional._probes import MatVec, NotFiniteError, Probes, reporter
from lbtrain.functional.progress import Watch
from lbtrain.functional.space import WHOLE, Space
from lbtrain.functional.spectral_results import TraceEstimate, mean_and_stderr

# Fewest products with which each method is defined; xtrace needs two vectors to leave one out.
_FEWEST = {"hutchinson": 1, "hutch++": 3, "xtrace": 4}


def trace(
    matvec: MatVec,
    dim: int,
    *,
    num_matvecs: int,
    method: str = "hutchinson",
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    space: Space = WHOLE,
    watch: Watch | None = None,
) -> TraceEstimate:
    """Estimate the trace ``sum_i H_ii`` and ``||H||_F^2`` without bias, with their standard errors.

    ``hutchinson``: the mean of ``x'H x`` over Rademacher vectors ``x``, variance ``2 (||H||_F^2 - sum_i H_ii^2)`` for
    each, so exact for a diagonal matrix; the mean of ``||H x||^2`` for ``||H||_F^2``. Memory: 2 vectors.
    ``hutch++``, with ``k = num_matvecs // 3``: ``tr(Q'H Q)`` over an orthonormal basis ``Q`` of ``H S``, ``S`` of ``k``
    normal vectors, plus Hutchinson's mean over what ``Q`` leaves. Exact for a rank of ``k`` at most, and better than
    ``hutchinson`` where few eigenvalues dominate. Memory: about 3 k vectors.
    ``xtrace``, with ``k = num_matvecs // 2``: uses each of ``k`` vectors for the basis and, left out of it in turn, for
    what is left. Exact for a rank below ``k``. Its ``k`` terms share most of the basis, so its standard error is
    too small: on a network's Hessian of dimension 67 the errors were 1.27 times as large as it says with 30 products,
    and 1.74 times with 12; take ``hutch++`` where the bar matters. Memory: about 5 k vectors.
    Where ``num_matvecs >= dim`` the columns of ``H`` are taken instead, and the result is exact.

    Args:
        matvec: Maps ``v`` of shape ``(n,)`` to ``H v``, same shape. ``H`` symmetric; every product is counted.
        dim: Number of rows ``n`` of ``H``.
        num_matvecs: Largest number of products; ``xtrace`` uses an even number.
        method: ``hutchinson``, ``hutch++`` or ``xtrace``.
        generator: Source of the vectors; seeded alike on all ranks, so that these are the same there.
        dtype: Type of the vectors; sums over vectors are taken in float64.
        device: Place of the vectors.
        space: How inner products are taken; a ``ShardedSpace`` if each process holds a part of every vector, for
            ``hutchinson`` only. There the generators are seeded differently, but alike for what several processes hold.
        watch: Called after each product.

    Returns:
        The trace in the unit of ``H``, with the Frobenius norm; NaN when a product was not finite.

    Raises:
        ValueError: If ``method`` is unknown, or ``dim`` or ``num_matvecs`` too small, or a product has another shape.

    References:
        Hutchinson (1990), Commun. Stat. Simul. Comput. 19(2). Meyer et al. (2021), arXiv 2010.09649, algorithm 1.
        Epperly, Tropp and Webber (2024), arXiv 2301.07825, sections 2.1 and 2.3.

    Example:
        >>> A = torch.diag(torch.tensor([4.0, 1.0, -2.0, 0.5, 0.0]))
        >>> found = trace(lambda v: A @ v, 5, num_matvecs=2, generator=torch.Generator().manual_seed(0))
        >>> found.value, found.stderr, found.num_matvecs
        (3.5, 0.0, 2)
    """
    if method not in _FEWEST:
        raise ValueError(f"method must be one of {', '.join(_FEWEST)}, got {method!r}")
    dimension = space.dimension(dim)
    if dimension < 1 or num_matvecs < min(dimension, _FEWEST[method]):
        raise ValueError(
            f"need dim >= 1 and num_matvecs >= {_FEWEST[method]} for {method}, got dim = {dimension} and "
            f"num_matvecs = {num_matvecs}; 30 products are usual"
        )
    is_whole = type(space) is Space
    if not is_whole and method != "hutchinson":
        raise ValueError(f'method must be "hutchinson" where each process holds a part of the vectors, got {method!r}')
    report = reporter(watch, "trace", num_matvecs)
    probes = Probes(matvec, dim, generator, dtype, device, space, report)
    try:
        if num_matvecs >= dim and is_whole:
            return _exact(probes)
        if method == "hutchinson":
            return _hutchinson(probes, num_matvecs)
        return _hutch_plus_plus(probes, num_matvecs) if method == "hutch++" else _xtrace(probes, num_matvecs // 2)
    except NotFiniteError:
        return TraceEstimate(*(math.nan,) * 4, method, probes.num_matvecs)


def _exact(probes: Probes) -> TraceEstimate:
    """Return what all columns of the matrix give."""
    columns = [probes.product(probes.unit(i))[1:] for i in range(probes.dim)]
    diagonal, squares = (math.fsum(x) for x in zip(*columns, strict=True))
    return TraceEstimate(diagonal, 0.0, squares, 0.0, "exact", probes.num_matvecs)


def _hutchinson(probes: Probes, count: int) -> TraceEstimate:
    """Return the means of ``x'H x`` and ``||H x||^2`` over random signs."""
    samples = torch.tensor([probes.product(probes.signs())[1:] for _ in range(count)], dtype=torch.float64)
    return TraceEstimate(*mean_and_stderr(samples[:, 0]), *mean_and_stderr(samples[:, 1]), "hutchinson", count)


def _hutch_plus_plus(probes: Probes, num_matvecs: int) -> TraceEstimate:
    """Return the part of the trace in the range of a sketch, taken exactly, plus Hutchinson's estimate of the rest."""
    k = num_matvecs // 3
    # Normal vectors, since signs may be orthogonal to a range: (1, -1) is to that of a matrix of ones.
    sketch = torch.stack([probes.product(probes.normals())[0] for _ in range(k)])
    Q = _orthonormal(sketch.T)[0]
    del sketch
    inside = [probes.product(q)[1:] for q in Q]
    within, within_squared = (math.fsum(x) for x in zip(*inside, strict=True))
    samples = []
    for _ in range(num_matvecs - 2 * k):
        x = probes.signs()
        for _ in range(2):  # the second pass removes what rounding left of the first
            x = torch.addmv(x, Q.T, Q @ x, alpha=-1)
        samples.append(probes.product(x)[1:])
    rest = torch.tensor(samples, dtype=torch.float64)
    value, stderr = mean_and_stderr(rest[:, 0])
    squared, squared_stderr = mean_and_stderr(rest[:, 1])
    squared += within_squared
    return TraceEstimate(within + value, stderr, squared, squared_stderr, "hutch++", num_matvecs)


def _xtrace(probes: Probes, k: int) -> TraceEstimate:
    """Return the mean over ``i`` of the split by the basis ``Q_i`` of ``H X`` without its column ``i``.

    ``Q_i Q_i' = Q (I - s_i s_i') Q'``, where the unit vector ``s_i`` is orthogonal to all columns of ``R`` but the i-th
    (``H X = Q R``), so that all ``k`` splits come from ``H Q``. The remainder ``r_i = (I - Q_i Q_i') x_i`` is uniform
    in direction, and its length is set to the root of its dimension, which keeps the mean and takes variance away.
    """
    X = torch.stack([probes.normals() for _ in range(k)])
    Y = torch.stack([probes.product(x)[0] for x in X])
    Q, R = _orthonormal(Y.T)
    Z = torch.stack([probes.product(q)[0] for q in Q])
    S = _left_out(R)
    W = (Q @ X.T).cpu().double()  # the small matrices live on the CPU, in double precision
    P = (W - S * (S * W).sum(0)).to(X)  # coefficients of Q_i Q_i' x_i, as columns
    rests, products = X.addmm_(P.T, Q, alpha=-1), Y.addmm_(P.T, Z, alpha=-1)
    along = torch.stack([torch.dot(r, p) for r, p in zip(rests, products, strict=True)]).cpu().double()
    lengths, images = (torch.linalg.vector_norm(v, dim=1).cpu().double() for v in (rests, products))
    scale = (probes.dim - k + 1) / lengths**2
    inside, squared = (Q @ Z.T).cpu().double(), (Z @ Z.T).cpu().double()
    terms = inside.trace() - (S * (inside @ S)).sum(0) + scale * along
    squares = squared.trace() - (S * (squared @ S)).sum(0) + scale * images**2
    return TraceEstimate(*mean_and_stderr(terms), *mean_and_stderr(squares), "xtrace", probes.num_matvecs)


def _orthonormal(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return an orthonormal basis of the columns as rows ``(k, n)``, and the triangular factor ``(k, k)``."""
    Q, R = torch.linalg.qr(columns)
    return Q.T.contiguous(), R


def _left_out(R: Tensor) -> Tensor:
    """Return unit columns ``s_i`` with ``s_i'R e_j = 0`` for ``j != i``: the columns of ``R^-T``, normalized.

    Where ``R`` is singular beyond its rounding, ``s_i`` is orthogonal to the whole range, which is then not left out.
    """
    U, values, Vh = torch.linalg.svd(R.cpu().double())
    floor = torch.finfo(R.dtype).eps * values[0]
    S = U @ (Vh / values.clamp_min(torch.where(floor > 0, floor, torch.ones_like(floor)))[:, None])
    left_out: Tensor = S / torch.linalg.vector_norm(S, dim=0)
    return left_out
