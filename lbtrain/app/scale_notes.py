"""What `lbtrain scale` says about its table in words: the laws with their sources, their range, and the overrides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lbtrain.app.signatures import HYDRA_KEYS
from lbtrain.functional.optimizers import decay_per_step, names_of
from lbtrain.functional.scaling import EXPONENTS, exponent, scaled_moments

if TYPE_CHECKING:
    from lbtrain.app.scale_table import Scaled

_LAWS = {
    "linear": "k small steps become one large one, {source}",
    "sqrt": "the noise of a step stays, for an optimizer that divides by the size of its gradients, {source}",
    "none": "the rate stays as it is",
}
_SOURCES = {
    "linear": "Goyal et al. (2017), arXiv 1706.02677, section 2.1",
    "sqrt": "Malladi et al. (2022), arXiv 2205.10287, Definition 5.2",
    "lars": "You et al. (2017), arXiv 1708.03888",
    "lamb": "You et al. (2020), arXiv 1904.00962",
}
# Goyal et al. (2017), figure 1: on ImageNet the linear law holds up to this batch, 32 times its base of 256.
_LINEAR_BATCH, _LINEAR_K = 8192, 32
# From here on the betas that the square-root law asks for are far from the usual ones: 0.2 in the place of 0.9.
_MOMENTS_K = 8


def notes(settings: Mapping[str, Any], result: Scaled) -> list[str]:
    """Say which laws were used, and where they end.

    Args:
        settings: As `lbtrain.app.scale.read` gives them.
        result: The optimizer before and after.

    Returns:
        Sentences.
    """
    found = [_law(settings, result)]
    if settings["reduction"] == "sum":
        found.append(_sum(settings, result))
    found += [*_linear_range(settings, result), *_moments_range(settings, result), *_decay(result)]
    if settings["samples"] is not None and settings["batch"] > settings["samples"]:
        found.append(
            f"The batch of {settings['batch']} is larger than the training set of {settings['samples']}: a step sees "
            "no more than that, so give batch its size."
        )
    if result.steps != result.steps_before:
        found.append(
            f"An epoch has {result.steps} steps where the base batch makes {result.steps_before}: a schedule counted "
            "in steps follows with callbacks.lr_scaling.stretch_schedule=true."
        )
    return found


def overrides(settings: Mapping[str, Any], result: Scaled) -> list[str]:
    """Write the settings as overrides of `train.py`.

    Args:
        settings: As `lbtrain.app.scale.read` gives them.
        result: The optimizer before and after.

    Returns:
        One text per value that is not a default.
    """
    given, default = settings["node"], settings["default"]
    if default is None:
        words = ["optimizer=<your YAML>"]
    else:
        changed = [key for key in given if key not in HYDRA_KEYS and given[key] != default[key]]
        words = [f"optimizer={settings['name']}", *(f"optimizer.{key}={_word(given[key])}" for key in changed)]
    words.append(f"data.batch_size={settings['per_device']}")
    words += [f"trainer.devices={settings['devices']}"] if settings["devices"] > 1 else []
    words += [f"trainer.accumulate_grad_batches={settings['accumulate']}"] if settings["accumulate"] > 1 else []
    callback = {"base_batch_size": settings["base_batch"], "rule": result.factors.rule}
    callback |= {"reduction": "sum"} if settings["reduction"] == "sum" else {}
    callback |= {"base_batches": settings["base_batches"]} if settings["base_batches"] > 1 else {}
    callback |= {"adam_moments": True} if settings["adam_moments"] else {}
    callback |= {"weight_decay": "scale"} if settings["decay"] == "scale" else {}
    return words + [f"callbacks.lr_scaling.{key}={_word(value)}" for key, value in callback.items()]


def _law(settings: Mapping[str, Any], result: Scaled) -> str:
    rule, name = result.factors.rule, type(result.optimizer).__name__
    chosen = f", which rule=auto takes for {name}" if settings["rule"] == "auto" else ""
    own = next((_SOURCES[n] for n in names_of(result.optimizer) if n in _SOURCES and settings["rule"] == "auto"), None)
    if rule not in _LAWS:
        return f"Law: lr' = lr k^{float(rule):g}, an exponent of your own."
    words = {"linear": "linear, lr' = lr k", "sqrt": "square root, lr' = lr sqrt(k)", "none": "none, lr' = lr"}[rule]
    return f"Law: {words}{chosen}: {_LAWS[rule].format(source=own or _SOURCES.get(rule))}."


def _sum(settings: Mapping[str, Any], result: Scaled) -> str:
    batches = settings["devices"] * settings["accumulate"] / settings["base_batches"]
    if result.factors.k == batches:
        return (
            "The loss is a sum, so its gradient grows with the batch by itself: k counts batches per step "
            f"({batches:g}), and not samples, which keeps the update per sample."
        )
    name = type(result.optimizer).__name__
    return f"The loss is a sum, but {name} divides by the size of its gradients and cannot see that: k counts samples."


def _linear_range(settings: Mapping[str, Any], result: Scaled) -> list[str]:
    if exponent(result.factors.rule) != EXPONENTS["linear"] or result.k <= 1:
        return []
    found = [
        "Warm up, or the large rate may diverge at the start: callbacks.lr_scaling.warmup_epochs=5 (Goyal et al. 2017, "
        "section 2.2)."
    ]
    if result.k > _LINEAR_K or settings["batch"] > _LINEAR_BATCH:
        found.append(
            f"Range: the linear law was seen to hold on ImageNet up to batch {_LINEAR_BATCH} and k = {_LINEAR_K}; "
            f"batch {settings['batch']} and k = {result.k:g} are past it, so compare a few rates."
        )
    return found


def _moments_range(settings: Mapping[str, Any], result: Scaled) -> list[str]:
    is_root = exponent(result.factors.rule) == EXPONENTS["sqrt"]
    if not is_root or "betas" not in result.before or settings["adam_moments"] or result.k < _MOMENTS_K:
        return []
    try:
        new = scaled_moments(result.before, result.k)
    except ValueError:
        smallest = min(float(beta) for beta in result.before["betas"] if float(beta) > 0)
        return [
            f"Range: the law's own betas, 1 - k (1 - beta), end at k = {1 / (1 - smallest):.4g}, and k is "
            f"{result.k:g}: take a larger base batch, or compare a few rates."
        ]
    betas = ", ".join(f"{float(beta):.6g}" for beta in new["betas"])
    return [f"Range: at k = {result.k:g} the law asks for betas {betas}, too: adam_moments=true sets them."]


def _decay(result: Scaled) -> list[str]:
    if not result.before.get("weight_decay"):
        return []
    old, new = (decay_per_step(result.optimizer, group) for group in (result.before, result.after))
    name = type(result.optimizer).__name__
    if old is None or new is None:
        return [
            f"Weight decay is part of the gradient that {name} normalizes, so no share of a weight decays per step."
        ]
    ratio = new / old / result.k
    if abs(ratio - 1) < 1e-9:
        return ["Weight decay takes the same share of each weight over as many samples as at the base batch."]
    return [
        f"Weight decay takes {ratio:.4g} times the share of each weight over as many samples as at the base batch; "
        "decay=scale keeps that share."
    ]


def _word(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_word, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)
