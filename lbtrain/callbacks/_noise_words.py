"""What GradientNoiseScale says: what it cannot serve, and at the end what its numbers mean."""

from collections.abc import Mapping
from typing import Any

from lbtrain._lightning import MisconfigurationException, Trainer
from lbtrain.callbacks._batch import batch_size, describe
from lbtrain.callbacks._shards import is_sharded
from lbtrain.callbacks.momentum_sam import MomentumSAM
from lbtrain.functional.running_noise import NoiseScale


def refuse_unmeasurable(trainer: Trainer, callback: Any) -> None:
    """Refuse a Trainer in which no rank ever has the gradient of a micro-batch at the weights.

    Args:
        trainer: The Trainer, with its strategy set up.
        callback: The GradientNoiseScale.

    Raises:
        MisconfigurationException: With the reason and the way out.
    """
    strategy = trainer.strategy
    kind = type(strategy).__name__
    engine = "DeepSpeed" in kind or "XLA" in kind or strategy.handles_gradient_accumulation
    if engine or is_sharded(trainer):
        raise MisconfigurationException(
            f"GradientNoiseScale compares each rank's own gradient with that of all ranks, and {kind} never has the "
            "first as a whole: use strategy='ddp' or a single device, if need be for a short run, or drop "
            "GradientNoiseScale"
        )
    before = trainer.callbacks[: trainer.callbacks.index(callback)]
    if any(isinstance(c, MomentumSAM) for c in before):
        raise MisconfigurationException(
            "MomentumSAM moves the weights before GradientNoiseScale can measure at them: put GradientNoiseScale "
            "before MomentumSAM in the list of callbacks"
        )


def check_arguments(every_n_steps: int, base_batch_size: int | None, batch_size: int | None, reduction: str) -> None:
    """Check the arguments of the callback that nobody else checks.

    Args:
        every_n_steps: A whole number.
        base_batch_size: A whole number or None.
        batch_size: A whole number or None.
        reduction: A word.

    Raises:
        ValueError: If one is out of range.
    """
    counts = (("every_n_steps", every_n_steps, "optimizer steps"), ("base_batch_size", base_batch_size, "samples"))
    for name, value, unit in (*counts, ("batch_size", batch_size, "samples")):
        optional = value is None and name != "every_n_steps"
        if not optional and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{name} must be a whole number of {unit}, at least 1, got {value!r}")
    if reduction not in ("auto", "mean", "sum"):
        raise ValueError(f"reduction must be auto, mean or sum, got {reduction!r}; auto finds it on the first batch")


def numbers(scale: NoiseScale) -> dict[str, float]:
    """Return what is logged of a result.

    Args:
        scale: The result.

    Returns:
        Values by key, in the units of the key table in the README.
    """
    return {
        "noise/b_simple": scale.b_simple,
        "noise/b_simple_stderr": scale.stderr,
        "noise/gradient_sq": scale.gradient_sq,
        "noise/trace_sigma": scale.trace_sigma,
        "noise/adascale_gain": scale.gain,
    }


def sentence(scale: NoiseScale, skipped: Mapping[str, int]) -> str:
    """Say what the numbers mean for the batch in use, or why they mean nothing.

    Args:
        scale: The result at the end of training.
        skipped: What could not be used, with how often.

    Returns:
        One sentence.
    """
    count = f"{scale.num_estimates} estimate{'s' * (scale.num_estimates != 1)}"
    if scale.num_estimates == 0:
        why = ", ".join(f"{number} x {what}" for what, number in skipped.items()) or "no step was measured"
        return f"the gradient noise scale is unknown, there was no estimate: {why}"
    if scale.num_estimates == 1:
        return f"the gradient noise scale is {scale.b_simple:.3g} samples by 1 estimate, which shows no error"
    if scale.trace_sigma == 0 == scale.gradient_sq:
        return f"the gradient noise scale cannot be told: by {count} the gradient is zero"
    if scale.trace_sigma < 0:
        return f"the gradient noise scale cannot be told: by {count} the gradient shows no variance"
    if not scale.resolved:
        found = f"by {count} the squared gradient is {scale.gradient_sq:.2g} +- {scale.gradient_sq_stderr:.2g}"
        return f"the gradient noise scale cannot be told: {found}, {_why_unresolved(scale)}"
    return _verdict(scale)


def _verdict(scale: NoiseScale) -> str:
    batch, b = scale.global_batch, scale.b_simple
    found = f"the noise scale ({b:.3g} +- {scale.stderr:.2g})"
    if abs(batch - b) <= 2 * scale.stderr:
        # Within a factor of two the error itself leaves no doubt that batch and scale are of one size.
        if b <= 0 or max(batch / b, b / batch) > 2:
            return f"at global batch {batch} you may be below or above {found}, which is too uncertain to tell"
        return f"at global batch {batch} you are at {found}: the linear rule is at the end of its range"
    if batch > b:
        times = f"{batch / b:.2g} times above " if b > 0 else "above "
        return f"at global batch {batch} you are {times}{found}: the linear rule is past its range"
    return (
        f"at global batch {batch} you are {b / batch:.2g} times below {found}: the linear rule still holds up to about "
        f"{b:.3g}"
    )


def _why_unresolved(scale: NoiseScale) -> str:
    largest = scale.gradient_sq + 2 * scale.gradient_sq_stderr
    if largest <= 0:
        # Two samples drawn without replacement from M have covariance -Sigma / M: |G|^2 comes out tr(Sigma) / M lower.
        return "below zero, as batches drawn without replacement make it: it is above the number of training samples"
    smallest = max(scale.trace_sigma - 2 * scale.trace_sigma_stderr, 0.0) / largest
    bound = f"it is at least about {smallest:.2g} samples, " if smallest >= 1 else ""
    return f"zero within its error; {bound}more estimates tell more"


def samples_in(batch: Any, given: int | None) -> int:
    """Return the number of samples of a micro-batch.

    Args:
        batch: As `training_step` gets it.
        given: What the user says, or None.

    Returns:
        The count.

    Raises:
        MisconfigurationException: If nothing was given, and the batch does not tell.
    """
    size = given or batch_size(batch)
    if not size:
        raise MisconfigurationException(
            f"GradientNoiseScale must count the samples of each batch, and cannot in this one ({describe(batch)}): "
            "give them, per device and batch, with GradientNoiseScale(batch_size=...) or callbacks.noise.batch_size=..."
        )
    return size
