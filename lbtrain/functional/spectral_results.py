"""Frozen results about a whole spectrum: trace, Frobenius norm and density, with error bars and cost."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class TraceEstimate:
    """Trace and Frobenius norm of a symmetric matrix from the same products.

    For a Hessian the trace has the unit loss per squared parameter.

    Attributes:
        value: The trace; NaN when a product was not finite.
        stderr: Its standard error over the random vectors, same unit; 0 when exact, NaN with fewer than 2 of them.
        frobenius_squared: ``||H||_F^2``, the sum of the squared eigenvalues, unit of the trace squared.
        frobenius_squared_stderr: Its standard error, same unit.
        method: ``hutchinson``, ``hutch++``, ``xtrace``, ``exact`` where every column was taken, or ``lanczos``: what a
            Krylov basis knows, and ``hutchinson`` in its complement.
        num_matvecs: Products with the matrix, all of them.
    """

    value: float
    stderr: float
    frobenius_squared: float
    frobenius_squared_stderr: float
    method: str
    num_matvecs: int

    @property
    def frobenius(self) -> float:
        """The Frobenius norm ``||H||_F``, in the unit of the trace."""
        return math.sqrt(self.frobenius_squared)


@dataclass(frozen=True)
class SpectralDensity:
    """How the eigenvalues of a symmetric matrix with ``n`` rows are spread, as a quadrature and as a smooth curve.

    The tensors are float64 on the CPU, and empty when a product was not finite; all numbers are NaN then.

    Attributes:
        nodes: Ritz values of all probes, shape ``(N,)``, unit of the matrix.
        weights: Share of the spectrum at each node, shape ``(N,)``, without unit; they sum to 1.
        probe: Index of the probe that each node comes from, shape ``(N,)``.
        grid: Evenly spaced points, shape ``(G,)``, unit of the matrix.
        density: Share of the eigenvalues per unit of the matrix, at the points of the grid.
        density_stderr: Its standard error over probes, same unit; NaN with one probe.
        sigma: Standard deviation of the Gaussian that stands for each node, unit of the matrix.
        trace: The trace.
        trace_stderr: Its standard error over probes, same unit; NaN with one probe.
        frobenius_squared: ``||H||_F^2``, unit of the trace squared.
        frobenius_squared_stderr: Its standard error over probes, same unit.
        lambda_max: The largest node: never above the largest eigenvalue.
        lambda_max_residual: An eigenvalue lies that near to ``lambda_max``, same unit.
        lambda_min: The smallest node: never below the smallest eigenvalue.
        lambda_min_residual: An eigenvalue lies that near to ``lambda_min``, same unit.
        dim: Number of rows ``n``.
        num_probes: Random vectors that the averages are over.
        num_matvecs: Products with the matrix, all of them.
    """

    nodes: Tensor = field(compare=False, repr=False)
    weights: Tensor = field(compare=False, repr=False)
    probe: Tensor = field(compare=False, repr=False)
    grid: Tensor = field(compare=False, repr=False)
    density: Tensor = field(compare=False, repr=False)
    density_stderr: Tensor = field(compare=False, repr=False)
    sigma: float
    trace: float
    trace_stderr: float
    frobenius_squared: float
    frobenius_squared_stderr: float
    lambda_max: float
    lambda_max_residual: float
    lambda_min: float
    lambda_min_residual: float
    dim: int
    num_probes: int
    num_matvecs: int

    def trace_of(self, function: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        """Estimate ``tr f(H) = sum_i f(lambda_i)``, for example the number of negative eigenvalues.

        Exact for each probe where ``f`` is a polynomial of degree ``2 num_steps - 1`` at most.

        Args:
            function: Maps eigenvalues of shape ``(N,)`` to values, same shape.

        Returns:
            The estimate and its standard error over probes (NaN with one probe), in the unit of ``f``.
        """
        if not len(self.nodes):
            return math.nan, math.nan
        terms = self.dim * self.num_probes * self.weights * function(self.nodes).to(self.weights)
        return mean_and_stderr(terms.new_zeros(self.num_probes).index_add_(0, self.probe, terms))


def mean_and_stderr(samples: Tensor) -> tuple[float, float]:
    """Return the mean of independent samples and its standard error.

    Args:
        samples: Shape ``(N,)``, ``N >= 1``.

    Returns:
        ``m = sum_i x_i / N`` and ``sqrt(sum_i (x_i - m)^2 / (N (N - 1)))``, in their unit; NaN for ``N = 1``.
    """
    count = len(samples)
    return float(samples.mean()), float(samples.std() / math.sqrt(count)) if count > 1 else math.nan


@dataclass(frozen=True)
class DifferenceStep:
    """The step of a finite difference, and how wrong the products with it are.

    Attributes:
        length: Distance by which the weights move each way, in units of parameter norm.
        error: Bound on ``||D u - H u||`` along the direction ``u`` of the check, ``||u|| = 1``, loss per squared
            parameter: twice the disagreement with the steps twice and half as long, and what rounding leaves unseen.
            Likely, not certain. NaN where no check was made or a gradient is not finite.
        num_gradients: Gradients that the choice cost.
    """

    length: float
    error: float
    num_gradients: int
