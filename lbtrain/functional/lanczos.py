"""Both ends of the spectrum of a symmetric matrix, with residual bounds, from one Krylov run."""

from collections.abc import Callable

import torch
from torch import Tensor

from lbtrain.functional._krylov import KrylovBasis, Ritz, chance_of_oversight
from lbtrain.functional.results import Spectrum

MatVec = Callable[[Tensor], Tensor]

# Accepted chance that the search for repeated eigenvalues overlooks one; each factor 10 costs about one product.
_OVERSIGHT = 1e-3


def lanczos_spectrum(
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
) -> Spectrum:
    """Find the ``top_k`` largest eigenvalues and the smallest one of ``H`` by Lanczos with full reorthogonalization.

    Stops when ``||H x - theta x|| <= tol * max|theta|`` for all of them. One start meets each repeated eigenvalue only
    once; for ``top_k > 1`` further random starts in the complement of what is known go on until the chance that a
    repeated one above the k-th (by more than the tolerance) was overlooked is below 1e-3, or until the largest value of
    the complement has converged below it. One product at the end measures the residual of the largest eigenvalue.

    Args:
        matvec: Maps ``v`` of shape ``(n,)`` to ``H v``, same shape. ``H`` symmetric; every product is counted.
        dim: Number of rows ``n`` of ``H``.
        top_k: How many of the largest eigenvalues, counted algebraically and with multiplicity.
        tol: Bound on each residual, in units of the largest absolute eigenvalue.
        max_matvecs: Largest number of products, the one at the end included. Memory: at most that many vectors.
        generator: Source of the start vectors; seeded alike on all ranks, so that these are the same there.
        dtype: Type of the vectors; the projected problem is solved in float64.
        device: Place of the vectors.
        start: First start vector ``(n,)``; None draws it. One from a nearby Hessian saves products.
        keep_vectors: Whether to return the eigenvectors.
        smallest: Whether ``lambda_min`` must meet the tolerance too; it is reported with its residual anyway.

    Returns:
        Eigenvalues and residuals in the unit of ``H``; all NaN when a product was not finite.

    Raises:
        ValueError: If ``dim``, ``top_k``, ``tol``, ``max_matvecs`` or ``start`` do not fit each other.

    References:
        Parlett (1998), The Symmetric Eigenvalue Problem, chapter 13. Paige (1972), IMA J. Appl. Math. 10(3).
    """  # noqa: DOC502 - _check_arguments raises it
    _check_arguments(dim, top_k, tol, max_matvecs, start)
    basis = KrylovBasis(dim, max_matvecs - 1, dtype, device)
    search = _Search(basis, top_k, tol, smallest, is_random=start is None)
    basis.begin(_random_vector(dim, generator, dtype) if start is None else start)
    while not search.settled and not basis.full:
        if not basis.step(matvec):
            return _not_finite(top_k, basis.rows)
        if not search.is_due():
            continue
        verdict = search.look()
        if verdict == "restart":
            basis.begin(_random_vector(dim, generator, dtype))
        elif verdict == "remainder":
            basis.begin(basis.take_end(search.ritz.coefficients[:, search.wanted]))
    return _report(search, matvec, keep_vectors)


class _Search:
    """Decides after each step whether all is found, to go on, or where to start the next sweep."""

    def __init__(self, basis: KrylovBasis, top_k: int, tol: float, smallest: bool, is_random: bool) -> None:
        self.basis, self.top_k, self.tol, self.smallest, self.is_random = basis, top_k, tol, smallest, is_random
        self.settled = False
        self.ritz: Ritz
        self.minimum = (float("nan"), float("nan"))  # smallest Ritz value and its bound
        self.main_sweep = 1  # the sweep that has to find both ends; the later ones look for what repeats

    @property
    def slack(self) -> float:
        """The tolerance in the unit of the matrix."""
        return self.tol * float(self.ritz.values.abs().max())

    @property
    def wanted(self) -> list[int]:
        """Indices of the Ritz pairs that must converge; the smallest one only in the main sweep, which finds it."""
        m, is_main = self.basis.rows, self.basis.num_sweeps == self.main_sweep
        return [m - 1 - i for i in range(min(self.top_k, m))] + [0] * (self.smallest and is_main)

    def is_due(self) -> bool:
        """Return whether to solve the projected problem now: at each step while it is small, later at each 3 %."""
        m = self.basis.rows
        return m <= 64 or m % (m // 32) == 0 or self.basis.broken or self.basis.full

    def look(self) -> str:
        """Return ``settled``, ``go on``, ``restart`` or ``remainder`` after solving the projected problem."""
        self.ritz, basis = self.basis.ritz(), self.basis
        if basis.num_sweeps == self.main_sweep or self.ritz.bounds[0] <= self.slack:
            self.minimum = float(self.ritz.values[0]), float(self.ritz.bounds[0])
        enough = basis.rows >= self.top_k and bool((self.ritz.bounds[self.wanted] <= self.slack).all())
        verdict = self._after_enough() if enough else self._before_enough()
        self.settled = verdict == "settled"
        if verdict in {"restart", "remainder"}:
            self.is_random = verdict == "restart"
        return "go on" if basis.full else verdict

    def _before_enough(self) -> str:
        """Return where to go while a wanted pair has not converged."""
        basis = self.basis
        if basis.broken and basis.rows < self.top_k:
            return "restart"
        here = 0.0 if basis.broken else basis.beta * float(self.ritz.coefficients[-1, self.wanted].abs().max())
        # What keeps them from converging leads out of an earlier sweep, so that going on here cannot help.
        stalled = basis.num_sweeps > 1 and basis.rows >= self.top_k and here <= self.slack / 2
        return "remainder" if stalled else "go on"

    def _after_enough(self) -> str:
        """Return where to go once all wanted pairs have converged, since repeated ones may be left."""
        basis = self.basis
        if basis.rows == basis.dim:
            return "settled"
        if basis.num_sweeps == 1 and not self.is_random and basis.broken:
            self.main_sweep = 2  # the caller's start lies in an invariant subspace, which a random one does not
            return "restart"
        if basis.num_sweeps == 1 and self.top_k == 1:
            return "settled"
        if basis.num_sweeps == 1 or not self.is_random:
            return "restart"
        top, residual = basis.sweep_top()
        ceiling = float(self.ritz.values[-self.top_k]) + self.slack
        if residual <= self.slack:
            return "settled" if top <= ceiling else "restart"
        # An eigenvector that no earlier start contained is orthogonal to those whole sweeps, so it is an eigenvector of
        # this sweep's matrix too, and this start does contain it.
        low = self.minimum[0] - self.minimum[1] - self.slack
        chance = chance_of_oversight(basis.dim - basis.sweep_start, basis.rows - basis.sweep_start, low, top, ceiling)
        return "settled" if chance <= _OVERSIGHT else "go on"


def _check_arguments(dim: int, top_k: int, tol: float, max_matvecs: int, start: Tensor | None) -> None:
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
    if start is not None and (start.shape != (dim,) or not float(torch.linalg.vector_norm(start)) > 0):
        raise ValueError(f"start must be a nonzero vector of shape ({dim},), got shape {tuple(start.shape)}")


def _random_vector(dim: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Return a normal vector ``(n,)`` on the generator's device."""
    return torch.randn(dim, generator=generator, device=generator.device, dtype=dtype)


def _not_finite(top_k: int, num_matvecs: int) -> Spectrum:
    """Return the result of a matrix whose products are not finite."""
    nan = float("nan")
    return Spectrum((nan,) * top_k, (nan,) * top_k, nan, nan, False, num_matvecs)


def _report(search: _Search, matvec: MatVec, keep_vectors: bool) -> Spectrum:
    """Return the frozen result, after one product that measures the residual of the largest eigenvalue."""
    basis, ritz, k = search.basis, search.ritz, search.top_k
    order = list(range(basis.rows - 1, basis.rows - 1 - k, -1))
    vectors = basis.vectors(ritz.coefficients[:, order] if keep_vectors else ritz.coefficients[:, order[:1]])
    values, bounds = ritz.values[order].tolist(), ritz.bounds[order].tolist()
    x = vectors[:, 0].contiguous()
    residual = torch.linalg.vector_norm(matvec(x) - values[0] * x) / torch.linalg.vector_norm(x)
    bounds[0] = max(bounds[0], float(residual))
    return Spectrum(
        eigenvalues=tuple(values),
        residuals=tuple(bounds),
        lambda_min=search.minimum[0],
        lambda_min_residual=search.minimum[1],
        # Rounding may lift the measured residual a little above its bound; more than twice is noise worth telling.
        converged=search.settled and bounds[0] <= 2 * search.slack,
        num_matvecs=basis.rows + 1,
        vectors=vectors if keep_vectors else None,
    )
