"""What the recorder has to know of a run: whether it can be sampled, and what its steps are made with."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lbtrain._lightning import LightningModule, MisconfigurationException, Trainer
from lbtrain.callbacks._batch import batch_size
from lbtrain.callbacks._climber import Climber
from lbtrain.callbacks._measured_data import check_measurable, check_not_empty, kept_for, measured_batches
from lbtrain.callbacks._objective import refuse_manual_optimization
from lbtrain.callbacks._shards import is_sharded
from lbtrain.callbacks._trainer import has_scaler
from lbtrain.callbacks.loss_reduction import LossReductionCheck

# Numbers of the samples that are evaluated at once where training takes fewer: a choice, 256 grey images of 32 x 32,
# of which a network with a thousand activations for each number takes 1 GiB.
_AT_ONCE = 2**18


def refusal(trainer: Trainer, pl_module: LightningModule) -> str:
    """Return why no sample can be taken of this training, "" where one can.

    Args:
        trainer: The Trainer, when training starts.
        pl_module: Its module.

    Returns:
        The reason, with what to do about it.
    """
    name = type(trainer.strategy).__name__
    if is_sharded(trainer) or "DeepSpeed" in name:
        return f"no process holds whole parameters under {name}: diagnose with strategy='ddp' or on a single device"
    if not any(p.requires_grad for p in pl_module.parameters()):
        return "the module has no parameter that requires a gradient"
    try:
        refuse_manual_optimization(pl_module, "sampling")
        check_measurable(trainer, pl_module)
        check_not_empty(trainer, pl_module)
    except MisconfigurationException as error:
        return str(error)
    return ""


def has_mean_gradients(trainer: Trainer) -> bool:
    """Return whether the gradient that a step is made with is that of its batches' mean loss.

    Args:
        trainer: The Trainer, after a sample.

    Returns:
        False where SAM or a relative replaces it, and where the loss sums over samples.
    """
    return _reduction(trainer) != "sum" and not any(isinstance(c, Climber) for c in trainer.callbacks)


def evaluation_size(trainer: Trainer, pl_module: LightningModule, num_samples: int, seed: int) -> int | None:
    """Return how many samples of the subset to evaluate at once: more than in training where they are small.

    Args:
        trainer: The Trainer, after a first sample with batches as in training.
        pl_module: Its module.
        num_samples: Of the subset.
        seed: Of its draw.

    Returns:
        The count; None for as in training: where that is as much, where the samples are no dense numbers (tokens make
        more activations than they look), and where the loss is no mean or sum over samples, so that it depends on who
        is in a batch.
    """
    batches = measured_batches(trainer, pl_module, num_samples, None, seed)
    held = batch_size(batches[0]) if batches else None
    if held is None or held >= num_samples or _reduction(trainer) not in {"mean", "sum"}:
        return None
    tensors = _tensors(batches[0])
    if tensors is None or not all(t.is_floating_point() or t.numel() == held for t in tensors):
        return None
    size = int(_AT_ONCE * held / max(1, sum(t.numel() for t in tensors)))
    return min(size, num_samples) if size > held else None


def _tensors(batch: Any) -> list[Tensor] | None:
    """Return the tensors of a batch, None if it holds anything else."""
    if isinstance(batch, Tensor):
        return [batch]
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else [None]
    found = [None if part is None else _tensors(part) for part in parts]
    return None if None in found else [t for tensors in found for t in tensors]  # type: ignore[union-attr]


def _reduction(trainer: Trainer) -> str | None:
    """Return what the loss does with the samples of a batch, None if nobody knows yet."""
    for callback in trainer.callbacks:
        if isinstance(callback, LossReductionCheck) and callback.result is not None:
            return callback.result.kind
    return kept_for(trainer).reduction


def rate_of(trainer: Trainer) -> float | Tensor:
    """Return the learning rate of the first parameter group.

    Args:
        trainer: The Trainer.

    Returns:
        A number, or the tensor that the optimizer keeps it in; 0 without an optimizer.
    """
    return trainer.optimizers[0].param_groups[0]["lr"] if trainer.optimizers else 0.0


def is_scaled(trainer: Trainer) -> bool:
    """Return whether a gradient scaler leaves gradients scaled up to the step itself, as for fused optimizers."""
    return has_scaler(trainer) and bool(getattr(trainer.optimizers[0], "_step_supports_amp_scaling", False))
