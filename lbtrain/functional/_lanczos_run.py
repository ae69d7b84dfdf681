"""One Lanczos run from its first product to its result."""

import math

import torch
from torch import Tensor

from lbtrain.functional._probes import NotFiniteError, Probes
from lbtrain.functional._search import Search
from lbtrain.functional.density import quadrature
from lbtrain.functional.interruption import Interrupted
from lbtrain.functional.progress import Progress, Watch
from lbtrain.functional.results import Spectrum
from lbtrain.functional.spectral_results import SpectralDensity, TraceEstimate, mean_and_stderr


class Run:
    """The products of one call, in order: the search, the residual of the largest eigenvalue, the trace.

    Args:
        search: With the basis, in which a sweep has begun.
        probes: Multiplies, and draws random vectors.
        max_matvecs: Largest number of products but those for the trace.
        trace_probes: Products for the trace.
        watch: Called after each product.
        confirm: Whether the residual of the largest eigenvalue is measured.
    """

    def __init__(
        self,
        search: Search,
        probes: Probes,
        max_matvecs: int,
        trace_probes: int,
        watch: Watch | None,
        *,
        confirm: bool,
    ) -> None:
        self.search, self.basis, self.probes = search, search.basis, probes
        self.max_matvecs, self.trace_probes, self.watch = max_matvecs, trace_probes, watch
        self.confirm, self._limit = confirm, max_matvecs - confirm
        self.spent = 0
        self.residual = 0.0
        self.trace: TraceEstimate | None = None

    def finish(self, keep_vectors: bool) -> Spectrum:
        """Return the result; of what is known when the user asked to stop."""
        try:
            if not self._solve():
                nan, k = math.nan, self.search.top_k
                return Spectrum((nan,) * k, (nan,) * k, nan, nan, False, self.spent)
            if self.confirm:
                self._measure_residual()
            if self.trace_probes:
                self._probe_complement()
        except Interrupted:
            return self._report(keep_vectors, interrupted=True)
        return self._report(keep_vectors, interrupted=False)

    def _solve(self) -> bool:
        """Multiply until all is known or the budget is spent.

        Returns:
            Whether all products were finite.
        """
        search, basis = self.search, self.basis
        while not search.settled and self.spent < self._limit:
            if basis.full:
                search.make_room()
            is_finite = basis.step(self.probes.matvec)
            self.spent += 1
            if not is_finite:
                return False
            is_last = self.spent == self._limit
            verdict = search.look() if search.is_due() or is_last else "go on"
            self._tell(search.stage, search.worst)
            if verdict in {"restart", "remainder"} and not is_last:
                search.begin_again(verdict, self.probes.normals() if verdict == "restart" else None)
        return True

    def _measure_residual(self) -> None:
        """Measure ``||H x - theta x||`` of the largest eigenvalue, which shows the noise of the products too."""
        basis, ritz = self.basis, self.search.ritz
        x = basis.vectors(ritz.coefficients[:, -1:])[:, 0].contiguous()
        product = self.probes.matvec(x).to(x)
        self.spent += 1
        self.residual = float(basis.space.norm_of(product - float(ritz.values[-1]) * x) / basis.space.norm_of(x))
        self._tell("residual", self.search.worst)

    def _probe_complement(self) -> None:
        """Estimate trace and Frobenius norm from what is known inside the basis and from random signs outside."""
        basis = self.basis
        samples: list[tuple[float, float]] = []
        try:
            while len(samples) < self.trace_probes and basis.rows < basis.total_dim:
                product, along, square = self.probes.product(basis.project_out(self.probes.signs())[0])
                self.spent += 1
                samples.append((along, square + float((basis.inside(product).double() ** 2).sum())))
                self.trace = self._estimate(samples)
                self._tell("trace", math.nan)
        except NotFiniteError:
            self.trace = TraceEstimate(*(math.nan,) * 4, "lanczos", len(samples) + 1)
        else:
            self.trace = self._estimate(samples)

    def _estimate(self, samples: list[tuple[float, float]]) -> TraceEstimate:
        """Return the part inside the basis plus the mean over the samples outside."""
        inside = self.basis.projected()
        value, square = float(inside.trace()), float((inside**2).sum())
        if not samples:
            return TraceEstimate(value, 0.0, square, 0.0, "lanczos", 0)
        rest = torch.tensor(samples, dtype=torch.float64)
        mean, stderr = mean_and_stderr(rest[:, 0])
        square_mean, square_stderr = mean_and_stderr(rest[:, 1])
        return TraceEstimate(value + mean, stderr, square + square_mean, square_stderr, "lanczos", len(samples))

    def _density(self) -> SpectralDensity | None:
        """Return the quadrature of the first sweep, if its start was random."""
        self.search.leave_first()
        first = self.search.first
        if first is None:
            return None
        steps = len(first.values)
        eps = torch.finfo(self.probes.like.dtype).eps
        return quadrature([first], self.basis.total_dim, math.pi / (4 * max(2, steps)), eps, steps)

    def _report(self, keep_vectors: bool, interrupted: bool) -> Spectrum:
        """Return the frozen result, NaN for eigenvalues that are not known yet."""
        search, basis, k = self.search, self.basis, self.search.top_k
        density = self._density()
        ritz = basis.ritz()  # a compression may have followed the last look
        order = list(range(basis.rows - 1, max(-1, basis.rows - 1 - k), -1))
        missing = [math.nan] * (k - len(order))
        values, bounds = ritz.values[order].tolist(), ritz.bounds[order].tolist()
        if bounds:
            bounds[0] = max(bounds[0], self.residual)
        return Spectrum(
            eigenvalues=tuple(values + missing),
            residuals=tuple(bounds + missing),
            lambda_min=search.minimum[0],
            lambda_min_residual=search.minimum[1],
            # The bounds are below the slack where the search has settled; noise lifts the measured residual above it.
            converged=search.settled and not interrupted and bounds[0] <= search.slack,
            num_matvecs=self.spent,
            vectors=self._padded(basis.vectors(ritz.coefficients[:, order])) if keep_vectors else None,
            min_vector=self._min_vector() if keep_vectors else None,
            trace=self.trace,
            density=density,
            interrupted=interrupted,
            num_restarts=search.num_restarts,
        )

    def _padded(self, vectors: Tensor) -> Tensor:
        """Return the vectors with NaN columns for the eigenvalues that are not known yet, shape ``(n, top_k)``."""
        missing = vectors.new_full((len(vectors), self.search.top_k - vectors.shape[1]), math.nan)
        return torch.cat([vectors, missing], 1)

    def _min_vector(self) -> Tensor:
        """Return the unit vector of the smallest Ritz value, shape ``(n,)``."""
        known = self.search.minimum_coefficients
        coefficients = torch.zeros(self.basis.rows, 1, dtype=torch.float64)
        coefficients[: len(known), 0] = known if len(known) else math.nan
        return self.basis.vectors(coefficients)[:, 0]

    def _tell(self, stage: str, residual: float) -> None:
        """Tell the watcher how far this is."""
        if self.watch is not None:
            limit = self.max_matvecs + self.trace_probes
            self.watch(Progress(stage, self.spent, limit, residual, self.search.tol))
