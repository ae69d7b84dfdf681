"""Both ends of the spectrum of a symmetric matrix, with residual bounds, from one Krylov run."""

from collections.abc import Callable

import torch
from torch import Tensor

from lbtrain.functional._krylov import KrylovBasis
from lbtrain.functional._lanczos_run import Run
from lbtrain.functional._probes import Probes
from lbtrain.functional._search import Search
from lbtrain.functional.progress import Watch
from lbtrain.functional.results import Spectrum
from lbtrain.functional.space import WHOLE, Space

MatVec = Callable[[Tensor], Tensor]

# Rows that a bounded basis needs beside the wanted pairs and the lowest one: fewer hardly gain anything between
# two compressions.
_WORKING_ROWS = 4


def lanczos(
    matvec: MatVec,
    dim: int,
    *,
    top_k: int = 1,
    tol: float = 1e-3,
    max_matvecs: int = 300,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    start: Tensor | None = None,
    keep_vectors: bool = False,
    smallest: bool = True,
    repeated: bool = True,
    confirm: bool = True,
    trace_probes: int = 0,
    memory_bytes: int | None = None,
    space: Space = WHOLE,
    watch: Watch | None = None,
) -> Spectrum:
    """Find the ``top_k`` largest eigenvalues and the smallest one of ``H`` by Lanczos with full reorthogonalization.

    Stops when ``||H x - theta x|| <= tol * max|theta|`` for all of them. One start meets each repeated eigenvalue only
    once; for ``top_k > 1`` further random starts in the complement of what is known go on until the chance that a
    repeated one above the k-th (by more than the tolerance) was overlooked is below 1e-3, or until the largest value of
    the complement has converged below it. One more product, if asked for, measures the residual of the largest value.

    The trace is ``tr(Q H Q')``, which the basis ``Q`` of the run knows, plus the mean of ``x'H x`` over random signs
    ``x`` projected to the complement of ``Q``; ``||H||_F^2`` is ``||Q H Q'||_F^2`` plus the mean of
    ``||H x||^2 + ||Q H x||^2``. Both are unbiased, and vary only by what lies outside the basis.

    Args:
        matvec: Maps ``v`` of shape ``(n,)`` to ``H v``, same shape. ``H`` symmetric; every product is counted. It may
            raise ``Interrupted``: the result then holds what is known.
        dim: Number of rows ``n`` of ``H``; in a sharded space, of the part held here.
        top_k: How many of the largest eigenvalues, counted algebraically and with multiplicity.
        tol: Bound on each residual, in units of the largest absolute eigenvalue.
        max_matvecs: Largest number of products, the one at the end included, those for the trace not. Memory: at most
            that many vectors.
        generator: Source of the random vectors; seeded alike on all ranks, so that these are the same there. In a
            sharded space seeded differently, since each draws its own part, but alike for what several of them hold.
        dtype: Type of the vectors; the projected problem is solved in float64.
        device: Place of the vectors.
        start: First start ``(n,)``; None draws it. Eigenvectors of a nearby Hessian, ``(n,)`` or ``(n, j)`` columns of
            which the sum is taken, save products; what the start has no part in may stay unseen.
        keep_vectors: Whether to return the eigenvectors.
        smallest: Whether ``lambda_min`` must meet the tolerance too; it is reported with its residual anyway.
        repeated: Whether to look for repeated eigenvalues; without, a repeated one may count only once.
        confirm: Whether to spend a product on the residual of the largest eigenvalue; without, its residual is the
            bound of the projected problem, which does not know the noise of products.
        trace_probes: Random vectors for the trace, one product each; 0 leaves it out.
        memory_bytes: Bound on the memory of the basis, bytes, reserved at once; None for as much as ``max_matvecs``
            needs. Where it is reached the basis is compressed to the pairs looked for and some next to them, which
            costs products (thick restart).
        space: How inner products are taken; a ``ShardedSpace`` if each process holds a part of every vector.
        watch: Called after each product.

    Returns:
        Eigenvalues and residuals in the unit of ``H``; all NaN when a product was not finite.

    Raises:
        ValueError: If ``dim``, ``top_k``, ``tol``, ``max_matvecs``, ``start``, ``trace_probes`` or ``memory_bytes`` do
            not fit each other.

    References:
        Parlett (1998), The Symmetric Eigenvalue Problem, chapter 13. Paige (1972), IMA J. Appl. Math. 10(3). Wu and
        Simon (2000), SIAM J. Matrix Anal. Appl. 22(2), for the restart.

    Example:
        >>> A = torch.diag(torch.tensor([4.0, 4.0, 1.0, 0.5, -2.0]))
        >>> found = lanczos(lambda v: A @ v, 5, top_k=3, generator=torch.Generator().manual_seed(0))
        >>> [round(x, 3) for x in found.eigenvalues], round(found.lambda_min, 3), found.converged
        ([4.0, 4.0, 1.0], -2.0, True)
    """  # noqa: DOC502 - the checks raise it
    total = space.dimension(dim)
    _check_arguments(total, top_k, tol, max_matvecs, trace_probes)
    size = torch.empty((), dtype=dtype).element_size() * space.largest(dim)
    unbounded = min(max_matvecs - confirm, total)
    rows = _rows(memory_bytes, size, top_k, unbounded)
    basis = KrylovBasis(dim, rows, dtype, device, space, reserve=memory_bytes is not None)
    search = Search(
        basis,
        top_k,
        tol,
        smallest=smallest,
        repeated=repeated,
        is_random=start is None,
        bounded=rows < unbounded,
    )
    probes = Probes(matvec, dim, generator, dtype, device, space)
    basis.begin(probes.normals() if start is None else _joined(start, dim, space))
    return Run(search, probes, max_matvecs, trace_probes, watch, confirm=confirm).finish(keep_vectors)


def _check_arguments(dim: int, top_k: int, tol: float, max_matvecs: int, trace_probes: int) -> None:
    """Check that the arguments fit each other.

    Raises:
        ValueError: If they do not.
    """
    if top_k < 1 or dim < top_k:
        raise ValueError(f"need 1 <= top_k <= dim, got top_k = {top_k} and dim = {dim}; ask for fewer eigenvalues")
    if max_matvecs <= top_k:
        raise ValueError(f"need max_matvecs > top_k, got max_matvecs = {max_matvecs} and top_k = {top_k}; raise it")
    if not tol > 0:
        raise ValueError(f"tol must be positive, got {tol}; 1e-3 gives about three digits of the largest eigenvalue")
    if trace_probes < 0:
        raise ValueError(f"trace_probes must be at least 0, got {trace_probes}; 10 give an error bar")


def _rows(memory_bytes: int | None, row_bytes: int, top_k: int, wanted: int) -> int:
    """Return how many rows the basis may have.

    Raises:
        ValueError: If the memory does not hold enough to make progress.
    """
    if memory_bytes is None:
        return wanted
    rows, fewest = int(memory_bytes) // max(1, row_bytes), min(wanted, top_k + 1 + _WORKING_ROWS)
    if rows < fewest:
        raise ValueError(
            f"memory_bytes must be at least {fewest * row_bytes}, {fewest} vectors of {row_bytes} bytes for "
            f"top_k = {top_k}, got {memory_bytes}; raise it or ask for fewer eigenvalues"
        )
    return min(rows, wanted)


def _joined(start: Tensor, dim: int, space: Space) -> Tensor:
    """Return the sum of the start's unit columns, shape ``(n,)``.

    Raises:
        ValueError: If there is none, or it has another shape.
    """
    columns = start[:, None] if start.dim() == 1 else start
    norms = space.norms(*columns.T) if columns.dim() == 2 and columns.shape[0] == dim and columns.shape[1] else None
    if norms is None or not bool((norms > 0).all()):
        raise ValueError(
            f"start must be a nonzero vector of shape ({dim},), or columns, got shape {tuple(start.shape)}"
        )
    joined: Tensor = columns @ norms.reciprocal().to(columns)
    return joined
