"""Frozen results of the measures of sharpness that say more than a value and its error; every field says its unit."""

import math
from dataclasses import dataclass

from lbtrain.functional.results import SharpnessValue


@dataclass(frozen=True)
class KeskarSharpness(SharpnessValue):
    """Keskar's measure, in percent of ``1 + loss``.

    Attributes:
        corner: The measure at the corner of the box that the gradient at the weights points to, percent; negative where
            the loss is lower there, NaN where that gradient is zero. ``value`` is at least this.
        num_starts: Random starts of the search, beside the weights.
    """

    corner: float = math.nan
    num_starts: int = 0


@dataclass(frozen=True)
class AverageSharpness:
    """The mean rise of the loss under random perturbations of the weights.

    Attributes:
        value: In the unit of the loss; may be negative.
        stderr: Standard error over the pairs of draws, same unit: how far more draws on the same data could move the
            value. NaN with fewer than 2 pairs.
        batch_stderr: Standard error over batches of the rise, same unit: how far other data could move it. NaN with
            fewer than 2 batches.
        num_pairs: Pairs ``w + d``, ``w - d`` that were drawn.
        num_values: Values of the mean loss without a gradient that were taken.
    """

    value: float
    stderr: float
    batch_stderr: float
    num_pairs: int
    num_values: int


@dataclass(frozen=True)
class RelativeFlatness:
    """The relative flatness of one layer; small is flat.

    Attributes:
        value: In the unit of the loss; may be negative away from a minimum.
        stderr: Standard error over probes, same unit; 0 for the exact sum, NaN with a single probe.
        exact: Whether the sum over all directions was taken instead of probes.
        num_matvecs: Products with the Hessian block of that layer: the number of probes, or of directions.
    """

    value: float
    stderr: float
    exact: bool
    num_matvecs: int


@dataclass(frozen=True)
class ScaledSharpness:
    """The largest eigenvalue of the Hessian with respect to relative changes of the weights.

    Attributes:
        value: ``lambda_max(D H D)``, in the unit of the loss.
        stderr: Standard error over batches of the curvature along its eigenvector, same unit; NaN with fewer than 2
            batches.
        residual: An eigenvalue lies that near to ``value``, same unit.
        converged: Whether the residual met the tolerance.
        num_matvecs: Hessian products, all of them.
    """

    value: float
    stderr: float
    residual: float
    converged: bool
    num_matvecs: int
