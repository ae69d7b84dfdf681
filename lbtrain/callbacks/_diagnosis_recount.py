"""Units that were idle on the few samples of the fixed subset, counted again on more of them when training ends."""

from collections.abc import Sequence
from dataclasses import replace

from lbtrain.callbacks._diagnosis_checks import Limits, given
from lbtrain.callbacks._diagnosis_facts import subset_size
from lbtrain.callbacks._diagnosis_scene import Scene
from lbtrain.callbacks._evidence import Point, Units
from lbtrain.callbacks._measure import mean_training_loss
from lbtrain.callbacks._recorder_sample import units_of
from lbtrain.callbacks._unit_watch import UnitWatch
from lbtrain.functional.activity import activity_findings

# Samples to count on. A choice: a unit that speaks on 1 % of all samples is silent on all of 64 in half of the cases,
# and on all of 1,024 once in 30,000.
_MOST_COUNTED = 1024


def is_suspect(points: Sequence[Point], step: int, limits: Limits) -> bool:
    """Return whether units of the last weights look dead or saturated, so that counting them again pays.

    Args:
        points: All samples.
        step: Optimizer steps done.
        limits: Thresholds of the check.

    Returns:
        The verdict on the last sample, if it was taken at the last weights.
    """
    if not points or points[-1].step != step:
        return False
    last = {layer: [(step, units)] for layer, units in points[-1].units.items()}
    return bool(activity_findings(last, 1, **given(activity_findings, limits)))


def count_again(scene: Scene) -> tuple[dict[str, Units], int]:
    """Count the idle units of the last weights on up to 1,024 samples; every rank takes part.

    Args:
        scene: At the end of training.

    Returns:
        Units by layer, and the samples of all ranks.
    """
    trainer, module, watch = scene.trainer, scene.pl_module, UnitWatch(scene.pl_module)
    options = {"num_samples": _MOST_COUNTED, "batch_size": scene.batch_size, "seed": scene.seed}
    with mean_training_loss(trainer, module, **options, around=watch.during) as loss:
        loss.value()
    scene.evaluations += 1
    return units_of(trainer, watch), subset_size(trainer, module, _MOST_COUNTED, scene.seed)


def recounted(points: list[Point], units: dict[str, Units]) -> None:
    """Put new counts in place of those of the last sample.

    Args:
        points: All samples.
        units: By layer.
    """
    old = points[-1].units
    points[-1] = replace(points[-1], units={**old, **{name: new for name, new in units.items() if name in old}})
