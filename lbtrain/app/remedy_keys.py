"""In which keys of a run's config the remedies of a diagnosis are written: `optimizer.lr`, `data.batch_size`, ..."""

import re
from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lbtrain.app.names import given_overrides
from lbtrain.app.own import unused_groups
from lbtrain.callbacks.diagnostics import OptimizationDiagnostics

# Where a knob is looked for, in this order; the first that has it counts.
_PLACES = ("optimizer", "data", "model", "model.network", "scheduler", "trainer")
# Kinds of values that a knob takes. Elsewhere its name means something else, such as a layer's `bias: true`.
_NUMBER, _COUNT, _WORD, _FLAG = (int, float), (int,), (str,), (bool,)
_KNOBS: dict[str, tuple[type, ...]] = {
    "lr": _NUMBER,
    "momentum": _NUMBER,
    "batch_size": _COUNT,
    "reduction": _WORD,
    "normalize": _FLAG,
    "init_scale": _NUMBER,
    "bias": _NUMBER,
    "activation": _WORD,
    "gradient_clip_val": _NUMBER,
    "warmup_steps": _COUNT,
    "decay_epoch": _NUMBER,
}
_AVERAGING = "weight_averaging"
KNOBS = (*_KNOBS, "averaging")
# What stands before averaging in the list, as far as it is there: the diagnosis judges the weights that were trained,
# whatever measures after it their mean.
_BEFORE_AVERAGING = ("lr_scaling", "loss_reduction", "diagnostics")
_SCALING = "lbtrain.callbacks.lr_scaling.LearningRateScaling"


def remedy_keys(cfg: DictConfig) -> dict[str, str]:
    """Find the config keys of the knobs that remedies turn.

    Args:
        cfg: The composed config of the run.

    Returns:
        By knob, its key, such as `optimizer.lr` for `lr`; a text with `{}` is a whole override instead, with `{}` where
        the value belongs, and one with `=` alone is a whole override as it stands. Knobs without a key that would have
        an effect are left out.
    """
    made = {"decay_epoch": _decay(cfg), "warmup_steps": _warmup(cfg), "averaging": _averaging(cfg)}
    found = {knob: _first(cfg, knob, kinds) or made.get(knob) for knob, kinds in _KNOBS.items()}
    found["averaging"] = made["averaging"]
    return {knob: key for knob, key in found.items() if key is not None}


def name_remedies(callbacks: Iterable[Any], cfg: DictConfig) -> None:
    """Tell the run's diagnosis its config keys, where it was not given any.

    Args:
        callbacks: Of the run; those that take no keys are left alone.
        cfg: The composed config of the run.
    """
    for callback in callbacks:
        if isinstance(callback, OptimizationDiagnostics) and callback.keys is None:
            callback.keys = remedy_keys(cfg)


def _first(cfg: DictConfig, knob: str, kinds: tuple[type, ...]) -> str | None:
    without_effect = unused_groups(cfg)
    for place in _PLACES:
        key = f"{place}.{knob}"
        if place not in without_effect and _takes(cfg, key, kinds):
            return key
    return None


def _takes(cfg: DictConfig, key: str, kinds: tuple[type, ...]) -> bool:
    """Return whether a key exists and holds a value of such a kind; null stands for any."""
    place, _, name = key.rpartition(".")
    node = _at(cfg, place)
    if not isinstance(node, DictConfig) or name not in node:
        return False
    value = _at(cfg, key)
    # In Python a truth value is a number too.
    return value is None or (isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool)))


def _at(cfg: DictConfig, key: str) -> Any:
    """Return what stands at a key; None where there is nothing, or what does not resolve."""
    try:
        return OmegaConf.select(cfg, key)
    except OmegaConfBaseException:
        return None


def _decay(cfg: DictConfig) -> str | None:
    """Return how the epoch of the first decay is written for the schedules of torch that decay in steps."""
    if "scheduler" in unused_groups(cfg) or _at(cfg, "model.scheduler_interval") == "step":
        return None  # those then count optimizer steps and not epochs
    if _takes(cfg, "scheduler.step_size", _COUNT):
        return "scheduler.step_size"
    return "scheduler.milestones=[{}]" if isinstance(_at(cfg, "scheduler.milestones"), ListConfig) else None


def _warmup(cfg: DictConfig) -> str | None:
    """Return the warmup of the learning-rate scaling, where it has an effect and is not set in epochs already."""
    for name, node in _callbacks(cfg):
        if not isinstance(node, DictConfig) or node.get("_target_") != _SCALING:
            continue
        key = f"callbacks.{name}"
        # It climbs from the tuned to the scaled rate: without scaling they are the same. Of the two only one is taken.
        scales = _at(cfg, f"{key}.rule") not in ("none", 0) and not _at(cfg, f"{key}.warmup_epochs")
        return f"{key}.warmup_steps" if scales and "warmup_steps" in node else None
    return None


def _averaging(cfg: DictConfig) -> str | None:
    """Return the callbacks of the run with weight averaging among them, before those that measure its weights."""
    # Those that the command line adds one by one come back by the same words.
    added = {match[1] for o in given_overrides() if (match := re.match(r"\++callbacks\.(\w+)", o))}
    names = [name for name, node in _callbacks(cfg) if node is not None and name not in added]
    if not names or _AVERAGING in names:
        return None
    before = [name for name in names if name in _BEFORE_AVERAGING]
    after = [name for name in names if name not in _BEFORE_AVERAGING]
    return f"callbacks=[{','.join([*before, _AVERAGING, *after])}]"


def _callbacks(cfg: DictConfig) -> list[tuple[str, Any]]:
    group = cfg.get("callbacks")
    names = [str(name) for name in group] if isinstance(group, DictConfig) else []
    return [(name, _at(cfg, f"callbacks.{name}")) for name in names]
