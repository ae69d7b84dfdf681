"""Frozen results: a value, its error and its cost; every field says its unit."""

import math
from dataclasses import dataclass, field

from torch import Tensor

from lbtrain.functional.spectral_results import SpectralDensity, TraceEstimate


@dataclass(frozen=True)
class Spectrum:
    """Both ends of the spectrum of a symmetric matrix, each value with a bound on its error.

    For a Hessian the unit of every eigenvalue and residual is loss per squared parameter.

    Attributes:
        eigenvalues: The largest ones (algebraically, repeated ones repeated), descending, ``top_k`` of them.
        residuals: ``||H x - theta x||`` or a bound on it, one per eigenvalue: an eigenvalue of ``H`` lies that near.
            The first one is measured by a product of its own, so it also contains the noise of the products.
        lambda_min: The smallest eigenvalue (algebraically).
        lambda_min_residual: An eigenvalue lies that near to ``lambda_min``; where the lower end is dense, the smallest
            one may lie a little further below.
        converged: Whether every residual met the tolerance, and repeated eigenvalues were looked for.
        num_matvecs: Products with the matrix, all of them.
        vectors: Unit eigenvectors as columns, shape ``(n, top_k)``, or None when they were not asked for.
        min_vector: Unit vector of ``lambda_min``, shape ``(n,)``, or None when the vectors were not asked for.
        trace: Trace and Frobenius norm, or None when they were not asked for.
        density: Quadrature of the spectrum by the first sweep, one probe; None where its start was not random.
        interrupted: Whether the user ended the run before it was done.
        num_restarts: How often the basis was compressed to stay within the memory.
    """

    eigenvalues: tuple[float, ...]
    residuals: tuple[float, ...]
    lambda_min: float
    lambda_min_residual: float
    converged: bool
    num_matvecs: int
    vectors: Tensor | None = field(default=None, compare=False, repr=False)
    min_vector: Tensor | None = field(default=None, compare=False, repr=False)
    trace: TraceEstimate | None = None
    density: SpectralDensity | None = None
    interrupted: bool = False
    num_restarts: int = 0

    @property
    def lambda_max(self) -> float:
        """The largest eigenvalue, loss per squared parameter."""
        return self.eigenvalues[0]

    @property
    def lambda_max_residual(self) -> float:
        """An eigenvalue lies that near to ``lambda_max``, same unit; the products' noise is contained."""
        return self.residuals[0]


@dataclass(frozen=True)
class Stability:
    """How near the optimizer is to the edge of stability.

    Attributes:
        value: 1 at the edge, above it the top direction grows; without unit. NaN when no law is known.
        residual: Bound on the error of ``value``; without unit.
        law: The formula in words, or the reason why ``value`` is NaN.
        num_matvecs: Hessian products that this value cost beyond the spectrum's.
        threshold: The ``lambda_max`` at the edge where all entries share one step (``2 / lr`` for plain SGD), loss per
            squared parameter; NaN where each entry has a step of its own.
        preconditioned: ``lambda_max(P^-1 H)``, weight decay included, where an adaptive optimizer divides the gradient
            by ``P``, in the unit of ``preconditioned_threshold``; NaN otherwise.
        preconditioned_threshold: Its value at the edge, ``(2 + 2 b1) / ((1 - b1) lr)`` for Adam; NaN otherwise.
        vector: Unit eigenvector of the scaled matrix, shape ``(n,)``, where each entry has its own step; else None.
    """

    value: float
    residual: float
    law: str
    num_matvecs: int
    threshold: float = math.nan
    preconditioned: float = math.nan
    preconditioned_threshold: float = math.nan
    vector: Tensor | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class SharpnessValue:
    """The rise of the loss in a neighbourhood of the weights.

    Attributes:
        value: Keskar's measure in percent of ``1 + loss``; SAM's in the unit of the loss.
        stderr: Standard error over batches of the rise at the maximizer, same unit; NaN with fewer than 2 batches.
        num_gradients: Gradients of the mean loss that were taken.
        num_values: Values of the mean loss without a gradient that were taken.
    """

    value: float
    stderr: float
    num_gradients: int
    num_values: int = 0
