"""Whether the training loss is a sum over the batch, and by how much that lengthens each step."""

from lbtrain.functional.diagnosis import Finding, Remedy
from lbtrain.functional.reduction import Reduction


def reduction_finding(reduction: Reduction, rate: float, *, factor: float = 2.0) -> Finding | None:
    """Report a loss that is a sum over its batch: its gradient, and each step, is ``B`` times that of the mean.

    Args:
        reduction: What was found out about the loss on one batch of ``B`` samples.
        rate: Learning rate that the optimizer has, parameter per gradient.
        factor: How many times longer than with a mean a step must be to be reported, without unit. A choice: the
            smallest batch on which a sum differs from a mean, 2 samples.

    Returns:
        The finding, its severity ``B / factor``; None for any other loss.
    """
    size = reduction.num_samples
    if reduction.kind != "sum" or size < factor:
        return None
    evidence = (
        f"the training loss is a sum over the {size} samples of a batch ({reduction.reason}): its gradient, and with "
        f"it each step at the rate {rate:.3g}, is {size} times that of a mean, and grows with the batch"
    )
    mean = Remedy("take the mean over the batch in training_step: reduction='mean'", {"reduction": "mean"})
    lower = Remedy(f"or keep the sum and divide the rate by its {size} samples", {"lr": rate / size})
    return Finding(
        "summed loss", evidence, {"batch": float(size), "rate": rate}, size / factor, since=0, remedies=(mean, lower)
    )
