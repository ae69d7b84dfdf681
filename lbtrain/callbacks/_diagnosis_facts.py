"""Facts of a run that its diagnosis asks for, read off the Trainer and the module."""

from typing import Any

import torch
from torch import nn

from lbtrain._lightning import LightningModule, MisconfigurationException, Trainer
from lbtrain.callbacks._agreement import sum_over_ranks
from lbtrain.callbacks._batch import batch_size
from lbtrain.callbacks._diagnosis_verdicts import Case
from lbtrain.callbacks._evidence import Evidence
from lbtrain.callbacks._measured_data import measured_batches
from lbtrain.callbacks._trainer import global_batch, steps_per_epoch

# Lightning's callbacks that average weights; releases differ in which of them they have.
_AVERAGING = frozenset({"WeightAveraging", "StochasticWeightAveraging"})
# What the parameter groups of optimizers have that divide by second moments: Adam and its kin, RMSprop, Adagrad.
_RESCALING = frozenset({"betas", "alpha", "lr_decay"})


def case_of(trainer: Trainer, pl_module: LightningModule, evidence: Evidence, **known: Any) -> Case:
    """Collect what is known of a run that has ended.

    Args:
        trainer: The Trainer.
        pl_module: Its module.
        evidence: What was recorded.
        known: Further fields of the case.

    Returns:
        The case.
    """
    return Case(
        evidence,
        momentum=momentum_of(trainer),
        rescales=bool(_RESCALING & {*_group(trainer)}),
        batch_size=samples_per_step(trainer),
        per_device=samples_per_step(trainer, per_device=True),
        scales_rate="lr/factor" in trainer.callback_metrics,
        steps_per_epoch=epoch_length(trainer),
        averages=any(kind.__name__ in _AVERAGING for c in trainer.callbacks for kind in type(c).__mro__),
        is_linear=is_linear(pl_module, evidence),
        **known,
    )


def subset_size(trainer: Trainer, pl_module: LightningModule, num_samples: int, seed: int) -> int:
    """Return how many samples of the fixed subset all processes have; each of them must ask.

    Args:
        trainer: The Trainer, with its loaders set up.
        pl_module: Its module.
        num_samples: Asked for.
        seed: Of the draw.

    Returns:
        The count; without those that a process cannot read.
    """
    try:
        own = sum(batch_size(batch) or 0 for batch in measured_batches(trainer, pl_module, num_samples, None, seed))
    except Exception:  # of the user's data, with which the first sample fails too, and says so
        own = 0
    return int(sum_over_ranks(trainer, torch.tensor(float(own), dtype=torch.float64)))


def samples_per_step(trainer: Trainer, *, per_device: bool = False) -> int | None:
    """Return the samples of an optimizer step; None where the loader does not tell.

    Args:
        trainer: The Trainer.
        per_device: Whether to count those of one batch of one device only.

    Returns:
        The count.
    """
    try:
        batch = global_batch(trainer)
        return batch.per_device if per_device else batch.size
    except MisconfigurationException:
        return None


def epoch_length(trainer: Trainer) -> int | None:
    """Return the optimizer steps of an epoch; None where the loader does not tell, or was not set up.

    Args:
        trainer: The Trainer.

    Returns:
        The count.
    """
    return steps_per_epoch(trainer) if trainer.train_dataloader is not None else None


def momentum_of(trainer: Trainer) -> float:
    """Return the momentum of the first parameter group, Adam's beta1 included; 0 without one.

    Args:
        trainer: The Trainer.

    Returns:
        Without unit.
    """
    group = _group(trainer)
    return float(group.get("momentum") or (group.get("betas") or (0.0,))[0])


def is_linear(pl_module: LightningModule, evidence: Evidence) -> bool:
    """Return whether the outputs are linear in the parameters: one linear layer, and no activation seen.

    Args:
        pl_module: The module.
        evidence: With the activations at the samples.

    Returns:
        The verdict; a nonlinearity that is no activation, such as a softmax in front of a squared loss, is not seen.
    """
    weighted = [m for m in pl_module.modules() if any(p.requires_grad for p in m.parameters(recurse=False))]
    single = len(weighted) == 1 and isinstance(weighted[0], nn.Linear | nn.modules.conv._ConvNd)
    return single and bool(evidence.points) and not any(point.units for point in evidence.points)


def _group(trainer: Trainer) -> dict[str, Any]:
    """Return the first parameter group; an empty one without an optimizer."""
    return trainer.optimizers[0].param_groups[0] if trainer.optimizers else {}
