"""Whether the training loss is a sum over the batch, and by how much that lengthens each step."""

from dataclasses import replace

from lbtrain.functional.diagnosis import Finding, Remedy
from lbtrain.functional.reduction import Reduction


def reduction_finding(
    reduction: Reduction, rate: float, *, factor: float = 2.0, scale_free: bool = False
) -> Finding | None:
    """Report a loss that is a sum over its batch: its gradient, and each step, is ``B`` times that of the mean.

    Args:
        reduction: What was found out about the loss on one batch of ``B`` samples.
        rate: Learning rate that the optimizer has, after its warmup, parameter per gradient.
        factor: How many times longer than with a mean a step must be to be reported, without unit. A choice: the
            smallest batch on which a sum differs from a mean, 2 samples.
        scale_free: Whether the optimizer divides the gradient by its size, as Adam does: then the steps stay as long.

    Returns:
        The finding, its severity ``B / factor``; None for any other loss.
    """
    size = reduction.num_samples
    if reduction.kind != "sum" or size < factor:
        return None
    mean = Remedy("take the mean over the batch in training_step: reduction='mean'", {"reduction": "mean"})
    if scale_free:
        follows = (
            f"its gradient is {size} times that of a mean, and grows with the batch; the optimizer takes the factor "
            "out of its steps again, but clipping and penalties on the weights depend on it"
        )
        remedies: tuple[Remedy, ...] = (mean,)
    else:
        follows = (
            f"its gradient, and with it each step at the rate {rate:.3g}, is {size} times that of a mean, and grows "
            "with the batch"
        )
        lower = f"or keep the sum and divide the rate by its {size} samples, to {rate / size:.2g}, once"
        remedies = (mean, Remedy(lower, {"lr": rate / size}))
    evidence = f"the training loss is a sum over the {size} samples of a batch ({reduction.reason}): {follows}"
    numbers = {"batch": float(size), "rate": rate}
    return Finding("summed loss", evidence, numbers, size / factor, since=0, remedies=remedies)


def at_its_rate(finding: Finding) -> Finding:
    """Return the finding of a sum for a run whose rate suits the sum: to divide it once more would stop the run.

    Args:
        finding: Of `reduction_finding`.

    Returns:
        The mean as the only remedy, with the rate ``B`` times as large at which it takes the same steps.
    """
    mean, *others = finding.remedies
    if not others:
        return finding
    rate = finding.numbers["rate"] * finding.numbers["batch"]
    words = f"{mean.words}; the rate suits the sum, and with a mean {rate:.2g} takes the same steps"
    return replace(finding, remedies=(replace(mean, words=words),))
