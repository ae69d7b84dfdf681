"""Frozen results of the measures of sharpness that are means or sums, not maxima; every field says its unit."""

from dataclasses import dataclass


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
