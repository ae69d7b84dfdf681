"""What a Krylov run does next: go on, start again elsewhere, compress its basis, or end."""

import math

import torch
from torch import Tensor

from lbtrain.functional._krylov import KrylovBasis
from lbtrain.functional._oversight import chance_of_oversight
from lbtrain.functional._ritz import Ritz

# Accepted chance that the search for repeated eigenvalues overlooks one; each factor 10 costs less than one product.
_OVERSIGHT = 1e-3


class Search:
    """Decides after each step whether all is found, to go on, or where to start the next sweep.

    Args:
        basis: As it grows.
        top_k: How many of the largest eigenvalues.
        tol: Bound on each residual, in units of the largest absolute eigenvalue.
        smallest: Whether the smallest eigenvalue must converge too.
        repeated: Whether to look for repeated eigenvalues.
        is_random: Whether the first start is random.
        bounded: Whether memory lets the basis hold fewer rows than the products that may be spent.

    Attributes:
        settled: Whether all is found.
        ritz: Eigenpairs of the projected matrix as of the last look.
        minimum: Smallest Ritz value and its bound.
        minimum_coefficients: Of its vector, ``(m,)`` of the rows there were then.
        first: Eigenpairs that the first sweep left; None until it ends, and where its start was not random.
        num_restarts: Compressions of the basis.
    """

    def __init__(
        self,
        basis: KrylovBasis,
        top_k: int,
        tol: float,
        *,
        smallest: bool,
        repeated: bool,
        is_random: bool,
        bounded: bool,
    ) -> None:
        self.basis, self.top_k, self.tol, self.smallest, self.bounded = basis, top_k, tol, smallest, bounded
        self.repeated, self.is_random, self._keep_first = repeated and top_k > 1, is_random, is_random
        self.settled = False
        self.ritz = basis.ritz()  # empty as yet
        self.minimum = (math.nan, math.nan)
        self.minimum_coefficients = torch.zeros(0, dtype=torch.float64)
        self.first: Ritz | None = None
        self.num_restarts = 0
        self._main_sweep = 1  # the sweep that has to find both ends; the later ones look for what repeats
        self._size = 0.0

    @property
    def slack(self) -> float:
        """The tolerance in the unit of the matrix."""
        return self.tol * self._size

    @property
    def wanted(self) -> list[int]:
        """Indices of the Ritz pairs that must converge; the smallest one only in the main sweep, which finds it."""
        m = len(self.ritz.values)
        return [m - 1 - i for i in range(min(self.top_k, m))] + [0] * (self.smallest and self._in_main_sweep)

    @property
    def stage(self) -> str:
        """What the products are for."""
        return "lanczos" if self._in_main_sweep else "repeated"

    @property
    def worst(self) -> float:
        """Largest residual bound of the wanted pairs as of the last look, in units of the largest eigenvalue."""
        return float(self.ritz.bounds[self.wanted].max()) / self._size if self._size else 0.0

    def is_due(self) -> bool:
        """Return whether to solve the projected problem now: at each step while it is small, later at each 3 %."""
        m = self.basis.rows
        return m <= 64 or m % (m // 32) == 0 or self.basis.broken or self.basis.full

    def look(self) -> str:
        """Return ``settled``, ``go on``, ``restart`` or ``remainder`` after solving the projected problem."""
        self.ritz, basis = self.basis.ritz(), self.basis
        self._size = max(self._size, float(self.ritz.values.abs().max()))
        # After a compression a later sweep may not hold on to what it takes for the smallest.
        if self._in_main_sweep or (self.ritz.bounds[0] <= self.slack and not self.num_restarts):
            self.minimum = float(self.ritz.values[0]), float(self.ritz.bounds[0])
            self.minimum_coefficients = self.ritz.coefficients[:, 0]
        enough = basis.rows >= self.top_k and bool((self.ritz.bounds[self.wanted] <= self.slack).all())
        verdict = self._after_enough() if enough else self._before_enough()
        self.settled = verdict == "settled"
        return verdict

    def begin_again(self, verdict: str, fresh: Tensor | None) -> None:
        """Start the next sweep: ``restart`` from a fresh vector, ``remainder`` from what disturbs the wanted pairs."""
        basis = self.basis
        self.leave_first()
        direction = basis.take_end(self.ritz.coefficients[:, self.wanted]) if fresh is None else fresh
        self.is_random = verdict == "restart"
        if self.bounded and 2 * basis.rows > basis.limit and basis.rows > self.top_k + 1:
            self._compress(self._ends_of_spectrum(0), 0)
        basis.begin(direction)

    def make_room(self) -> None:
        """Compress a full basis: keep the wanted pairs and half of what could be kept beside them."""
        basis = self.basis
        self.leave_first()
        if self._in_main_sweep or not self.is_random:
            self._compress(self._ends_of_spectrum((basis.limit - self.top_k - 1) // 2), 0)
            return
        # What a search for repeated values knows of its own complement must not be mixed with the rest.
        start, rows = basis.sweep_start, basis.rows
        kept = max(1, (basis.limit - start) // 2)
        Y = torch.zeros(rows, start + kept, dtype=torch.float64)
        Y[:start, :start] = torch.eye(start, dtype=torch.float64)
        Y[start:, start:] = basis.sweep_ritz().coefficients[:, -kept:]
        self._compress(Y, start)

    def leave_first(self) -> None:
        """Note the eigenpairs of the first sweep before its rows are mixed with others."""
        if self._keep_first and self.basis.rows:
            self.first, self._keep_first = self.basis.ritz(), False

    @property
    def _in_main_sweep(self) -> bool:
        return self.basis.num_sweeps <= self._main_sweep

    def _ends_of_spectrum(self, extra: int) -> Tensor:
        """Return the Ritz vectors of the wanted pairs, the lowest one, and ``extra`` ones next to them."""
        coefficients = self.basis.ritz().coefficients
        low = 1 + (extra // 2 if self.smallest and self._in_main_sweep else 0)
        high = self.top_k + 1 + extra - low
        return torch.cat([coefficients[:, :low], coefficients[:, -high:]], 1)

    def _compress(self, Y: Tensor, sweep_start: int) -> None:
        """Compress the basis and what is remembered in its terms."""
        self.minimum_coefficients = Y[: len(self.minimum_coefficients)].T @ self.minimum_coefficients
        self.basis.compress(Y, sweep_start)
        self.num_restarts += 1

    def _before_enough(self) -> str:
        """Return where to go while a wanted pair has not converged."""
        basis = self.basis
        if basis.broken and basis.rows < self.top_k:
            return "restart"
        here = 0.0 if basis.live is None else float(basis.live.along(self.ritz.coefficients)[self.wanted].abs().max())
        # What keeps them from converging leads out of an earlier sweep, so that going on here cannot help.
        stalled = basis.num_sweeps > 1 and basis.rows >= self.top_k and here <= self.slack / 2
        return "remainder" if stalled else "go on"

    def _after_enough(self) -> str:
        """Return where to go once all wanted pairs have converged, since repeated ones may be left."""
        basis = self.basis
        if basis.rows == basis.total_dim:
            return "settled"
        if basis.num_sweeps == 1 and not self.is_random and basis.broken:
            self._main_sweep = 2  # the caller's start lies in an invariant subspace, which a random one does not
            return "restart"
        if self._in_main_sweep and not self.repeated:
            return "settled"
        if basis.num_sweeps == 1 or not self.is_random:
            return "restart" if self.repeated else "settled"
        own = basis.sweep_ritz()
        top, residual = float(own.values[-1]), float(own.bounds[-1])
        ceiling = float(self.ritz.values[-self.top_k]) + self.slack
        if residual <= self.slack:
            return "settled" if top <= ceiling or not self.repeated else "restart"
        # An eigenvector that no earlier start contained is orthogonal to those whole sweeps, so it is an eigenvector of
        # this sweep's matrix too, and this start does contain it.
        dim = basis.total_dim - basis.sweep_start
        chance = chance_of_oversight(dim, basis.alphas, basis.betas, ceiling)
        return "settled" if chance <= _OVERSIGHT else "go on"
