"""The examinations at a run's first batch: gradients, data, reduction, symmetries."""

import math
import re
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from lbtrain._lightning import Trainer
from lbtrain.callbacks._agreement import agreed
from lbtrain.callbacks._batch import batch_size, select
from lbtrain.callbacks._diagnosis_checks import Limits, given
from lbtrain.callbacks._diagnosis_ledger import Ledger, LeftOut, Verdict, over_ranks
from lbtrain.callbacks._diagnosis_scene import Scene
from lbtrain.callbacks._double_loss import double_loss
from lbtrain.callbacks._measured_data import kept_for
from lbtrain.callbacks._shards import is_sharded
from lbtrain.callbacks.loss_reduction import LossReductionCheck, reduction_on
from lbtrain.functional.conditioning import (
    balance_finding,
    feature_finding,
    feature_scales,
    label_balance,
)
from lbtrain.functional.diagnosis import Finding
from lbtrain.functional.gradient_check import gradient_check, gradient_finding
from lbtrain.functional.invalid_data import InvalidValues, named_tensors
from lbtrain.functional.reduction import Reduction
from lbtrain.functional.summed_loss import reduction_finding
from lbtrain.functional.symmetry import symmetries, symmetry_finding

# Samples of the batch for the gradient check, which takes some tens of losses in float64: a choice. A wrong backward is
# as wrong on few samples.
MOST_CHECKED = 16
# Optimizers that divide the gradient by a root mean square or a sign of its own.
_SCALE_FREE = frozenset({"Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adafactor", "RMSprop", "Rprop"})


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
    if "reduction" in mine:  # first of all, since every mean over samples needs to know it
        made.judge("reduction", lambda: check_reduction(scene, limits["reduction"]))
    clear = [name for name in mine if name in _AT_FIRST_SIGHT and not _is_suspect(scene, name, limits[name])]
    made.found |= dict.fromkeys(clear, ())
    asking = (_AT_FIRST_SIGHT.keys() & {*mine}) - {*clear}
    if agreed(scene.trainer, bool(asking)):  # before the rest, since all ranks take this gradient together
        slopes = Ledger()
        slopes.judge("symmetries", scene.take_slopes)
        if "symmetries" in slopes.left_out and "symmetries" in asking:
            made.take(slopes)
    for name in mine:
        if name not in made.left_out and name not in made.found:
            made.judge(name, lambda exam=EXAMS[name], own=limits[name]: exam(scene, own))
    return over_ranks(scene.trainer, made)


def find_invalid(scene: Scene, limits: Limits) -> Verdict:
    """Return which values of the first batch and the fixed subset are not finite, if the loss is not."""
    if scene.loss is not None and math.isfinite(scene.loss):
        return None  # then values that are missing are meant to be
    return _invalid(scene)


def _invalid(scene: Scene) -> Finding | None:
    first, subset = InvalidValues("the first batch"), InvalidValues("the fixed subset", step=0)
    first.add(named_tensors(scene.batch))
    for batch in scene.subset_batches():
        subset.add(named_tensors(batch))
    return subset.finding() or first.finding()


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
        # A message of the module's own error may hold what is no one else's: its kind alone goes into files.
        raise LeftOut(re.sub(r"^(training_step failed .*?) \((\w+): .*", r"\1 (\2)", found.reason, flags=re.DOTALL))
    own = given(reduction_finding, limits)
    return reduction_finding(found, full_rate(scene.trainer), scale_free=is_scale_free(scene.trainer), **own)


def check_inputs(scene: Scene, limits: Limits) -> Verdict:
    """Return which columns of the inputs have unfit means and spreads, unless the network sees to that."""
    inputs = scene.inputs()
    found, reached = _scaled(inputs, limits), scene.first.inputs
    if inputs is None or found is None or scene.first.is_normalized:
        return None
    if reached is None or len(reached) < len(inputs) or not reached.is_floating_point():
        return found
    # What the code before the first weights has standardized is fine there, or comes in other columns.
    return found if _scaled(reached, limits) is not None else None


def _scaled(inputs: Tensor | None, limits: Limits) -> Finding | None:
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
    found = symmetries(scene.weights, scene.slopes, **given(symmetries, limits))
    return symmetry_finding(found, **given(symmetry_finding, limits))


def _has_twins(scene: Scene, limits: Limits) -> bool:
    found = symmetries(scene.weights, **given(symmetries, limits))
    return bool(found.groups or found.zeros)


EXAMS: dict[str, Callable[[Scene, Limits], Verdict]] = {
    "data": find_invalid,
    "gradients": check_gradients,
    "reduction": check_reduction,
    "inputs": check_inputs,
    "labels": check_labels,
    "symmetries": check_symmetries,
}


# Checks that look at the loss and the gradient on the subset only where something is to be seen without them, which
# few runs have.
_AT_FIRST_SIGHT: dict[str, Callable[[Scene, Limits], bool]] = {
    "data": lambda scene, limits: _invalid(scene) is not None,
    "inputs": lambda scene, limits: _scaled(scene.inputs(), limits) is not None,
    "symmetries": _has_twins,
}


def _is_suspect(scene: Scene, check: str, limits: Limits) -> bool:
    """Return whether there is something for a check to look into; also where that cannot be told."""
    try:
        return _AT_FIRST_SIGHT[check](scene, limits)
    except Exception:  # it comes again in the check itself, which is then left out with the reason
        return True


def full_rate(trainer: Trainer) -> float:
    """Return the learning rate of the first parameter group without the warmup of a schedule.

    Args:
        trainer: The Trainer.

    Returns:
        The rate that the schedule starts from or climbs to; 0 without an optimizer.
    """
    if not trainer.optimizers:
        return 0.0
    group = trainer.optimizers[0].param_groups[0]
    return float(group.get("max_lr", group.get("initial_lr", group["lr"])))


def is_scale_free(trainer: Trainer) -> bool:
    """Return whether the first optimizer divides gradients by their size, so that a factor of the loss cancels.

    Args:
        trainer: The Trainer.

    Returns:
        The verdict by the optimizer's kind.
    """
    return bool(trainer.optimizers) and any(k.__name__ in _SCALE_FREE for k in type(trainer.optimizers[0]).__mro__)


def _reduction(scene: Scene) -> Reduction:
    for callback in scene.trainer.callbacks:
        if isinstance(callback, LossReductionCheck) and callback.result is not None:
            return callback.result
    found = reduction_on(scene.trainer, scene.pl_module, scene.batch)
    kept = kept_for(scene.trainer)
    kept.reduction, kept.repeats = found.kind, found.steady  # which measuring need not find again
    scene.evaluations += found.num_losses
    return found
