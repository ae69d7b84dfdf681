"""The examinations at a run's first batch: gradients, data, reduction, symmetries."""

import math
from collections.abc import Callable, Mapping, Sequence

from lbtrain._lightning import Trainer
from lbtrain.callbacks._batch import batch_size, select
from lbtrain.callbacks._diagnosis_checks import Limits, given
from lbtrain.callbacks._diagnosis_ledger import Ledger, LeftOut, Verdict, over_ranks
from lbtrain.callbacks._diagnosis_scene import Scene
from lbtrain.callbacks._double_loss import double_loss
from lbtrain.callbacks._shards import is_sharded
from lbtrain.callbacks.loss_reduction import LossReductionCheck, reduction_on
from lbtrain.functional.conditioning import (
    balance_finding,
    feature_finding,
    feature_scales,
    label_balance,
)
from lbtrain.functional.gradient_check import gradient_check, gradient_finding
from lbtrain.functional.invalid_data import InvalidValues, named_tensors
from lbtrain.functional.reduction import Reduction
from lbtrain.functional.summed_loss import reduction_finding
from lbtrain.functional.symmetry import symmetries, symmetry_finding

# Samples of the batch for the gradient check, which takes some tens of losses in float64: a choice. A wrong backward is
# as wrong on few samples.
MOST_CHECKED = 16


def examine_start(scene: Scene, checks: Sequence[str], limits: Mapping[str, Limits]) -> Ledger:
    """Make the checks of the first batch; every rank takes part, and all come to the same.

    Args:
        scene: With the first batch.
        checks: Those asked for, of any kind.
        limits: Thresholds by check.

    Returns:
        The verdicts.
    """
    made, mine = Ledger(), [name for name in checks if name in EXAMS]
    if is_sharded(scene.trainer):
        kind = type(scene.trainer.strategy).__name__
        made.leave_out(mine, f"no process holds whole parameters under {kind}")
        return made
    if {"symmetries", "data"} & {*mine}:  # before the rest, since all ranks take this gradient together
        slopes = Ledger()
        slopes.judge("symmetries", scene.take_slopes)
        made.left_out, made.failed = slopes.left_out, slopes.failed
    for name in mine:
        if name not in made.left_out:
            made.judge(name, lambda exam=EXAMS[name], own=limits[name]: exam(scene, own))
    return over_ranks(scene.trainer, made)


def find_invalid(scene: Scene, limits: Limits) -> Verdict:
    """Return which values of the first batch and the fixed subset are not finite, if the loss is not."""
    if scene.loss is not None and math.isfinite(scene.loss):
        return None  # then values that are missing are meant to be
    seen = InvalidValues()
    for batch in (scene.batch, *scene.subset_batches()):
        seen.add(named_tensors(batch))
    return seen.finding()


def check_gradients(scene: Scene, limits: Limits) -> Verdict:
    """Return where autograd disagrees with differences of the loss on some samples of the batch.

    Raises:
        LeftOut: If the loss does not allow it.
    """
    size = batch_size(scene.batch)
    few = select(scene.batch, range(min(size, MOST_CHECKED)), size) if size else scene.batch
    with double_loss(scene.trainer, scene.pl_module, few, scene.batch_idx) as (loss, params, names, _):
        found = gradient_check(loss, params, names, scene.generator, **given(gradient_check, limits))
    scene.evaluations += found.num_evaluations
    if found.reason:
        raise LeftOut(found.reason)
    return gradient_finding(found, **given(gradient_finding, limits))


def check_reduction(scene: Scene, limits: Limits) -> Verdict:
    """Return whether the loss is a sum over its batch.

    Raises:
        LeftOut: If the batch does not tell.
    """
    found = _reduction(scene)
    if found.kind == "unknown":
        raise LeftOut(found.reason)
    return reduction_finding(found, rate_of(scene.trainer), **given(reduction_finding, limits))


def check_inputs(scene: Scene, limits: Limits) -> Verdict:
    """Return which columns of the inputs have unfit means and spreads."""
    inputs = scene.inputs()
    if inputs is None:
        return None  # tokens, say: there is nothing to standardize
    scales = feature_scales(inputs, **given(feature_scales, limits))
    return feature_finding(scales, **given(feature_finding, limits))


def check_labels(scene: Scene, limits: Limits) -> Verdict:
    """Return whether one label outnumbers the others."""
    labels = scene.labels()
    if labels is None:
        return None  # a regression
    balance = label_balance(labels, **given(label_balance, limits))
    return balance_finding(balance, **given(balance_finding, limits))


def check_symmetries(scene: Scene, limits: Limits) -> Verdict:
    """Return which units are equal and stay so."""
    weights = {name: p.detach() for name, p in scene.weights.items()}
    found = symmetries(weights, scene.slopes, **given(symmetries, limits))
    return symmetry_finding(found, **given(symmetry_finding, limits))


EXAMS: dict[str, Callable[[Scene, Limits], Verdict]] = {
    "data": find_invalid,
    "gradients": check_gradients,
    "reduction": check_reduction,
    "inputs": check_inputs,
    "labels": check_labels,
    "symmetries": check_symmetries,
}


def rate_of(trainer: Trainer) -> float:
    """Return the learning rate of the first parameter group; 0 without an optimizer.

    Args:
        trainer: The Trainer.

    Returns:
        The rate at the moment.
    """
    return float(trainer.optimizers[0].param_groups[0]["lr"]) if trainer.optimizers else 0.0


def _reduction(scene: Scene) -> Reduction:
    for callback in scene.trainer.callbacks:
        if isinstance(callback, LossReductionCheck) and callback.result is not None:
            return callback.result
    found = reduction_on(scene.trainer, scene.pl_module, scene.batch)
    scene.evaluations += found.num_losses
    return found

