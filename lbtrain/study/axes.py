"""The axes of a study, read off the flat config and the metrics of one run."""

import math
import re
from collections.abc import Mapping
from typing import Any

from lbtrain.study.methods import DEFAULTS, is_number, members

# Within 2 % of the loss of guessing: a network whose units have died predicts the class frequencies, and its
# cross entropy then lies just under ln(classes).
CHANCE_FRACTION = 0.98

# What LearningRateScaling takes for `auto`, by the optimizer's class in lower case. functional/scaling.py has it, too,
# but this room imports no torch.
AUTO_LAWS = {
    **dict.fromkeys(("sgd", "lars"), "linear"),
    **dict.fromkeys(("adam", "adamw", "nadam", "radam", "adamax", "adafactor", "rmsprop", "lamb"), "sqrt"),
}

# Metric key -> (words, unit); the order is the order of the report's columns.
METRICS: dict[str, tuple[str, str]] = {
    "train/loss": ("train loss", "per sample"),
    "val/loss": ("validation loss", "per sample"),
    "test/loss": ("test loss", "per sample"),
    "train/acc": ("train accuracy", "fraction"),
    "val/acc": ("validation accuracy", "fraction"),
    "test/acc": ("test accuracy", "fraction"),
    "gap/loss": ("loss gap", "test minus train"),
    "gap/acc": ("accuracy gap", "test minus train"),
    "hessian/lambda_max": ("lambda_max", "loss per squared parameter"),
    "hessian/lambda_max_residual": ("lambda_max residual", "loss per squared parameter"),
    "hessian/stability": ("stability", "1 = edge"),
    "hessian/trace": ("Hessian trace", "loss per squared parameter"),
    "hessian/frobenius": ("Frobenius norm", "loss per squared parameter"),
    "sharpness/keskar": ("Keskar's sharpness", "%"),
    "sharpness/sam": ("SAM sharpness", "loss"),
    "sharpness/average": ("average sharpness", "loss"),
    "sharpness/adaptive": ("adaptive sharpness", "loss"),
    "noise/b_simple": ("gradient noise scale", "samples"),
    "time/step_ms": ("time per optimizer step", "ms"),
    "time/epoch_s": ("time per epoch", "s"),
    "time/fit_s": ("time of the fit", "s"),
    "time/measure_s": ("time of measuring", "s"),
    "target/value": ("target", "unit of its metric"),
    "target/reached": ("target reached", "fraction of the runs"),
    "target/steps": ("steps to the target", "optimizer steps"),
    "target/epochs": ("epochs to the target", "epochs"),
    "target/s": ("time to the target", "s"),
    "run/attempts": ("attempts of the run", "starts"),
}

_HIGHER_IS_BETTER = {
    *("acc", "accuracy", "f1", "f1score", "auroc", "auc", "ap", "r2", "r2score", "precision", "recall", "specificity"),
    *("iou", "dice", "mcc", "bleu", "psnr", "ssim"),
    *("reached", "converged"),  # of a target; of a measurement
}
_LOWER_IS_BETTER = {"loss", "error", "stderr", "residual"}  # whatever else the name says


def optimizer_label(config: Mapping[str, Any]) -> str:
    """Name the optimizer of a run, with its momentum.

    Args:
        config: Flat config of the run.

    Returns:
        Such as "Adam", "SGD", "SGD momentum 0.9", "SGD Nesterov 0.9"; empty when the config names none.
    """
    prefix, name = _optimizer(config)
    momentum = config.get(f"{prefix}momentum")
    if isinstance(momentum, int | float) and momentum:
        return f"{name} {'Nesterov' if config.get(f'{prefix}nesterov') else 'momentum'} {momentum:g}"
    return name


def sam_rho(config: Mapping[str, Any]) -> float:
    """Read the radius of SAM or of its relative, in the unit of the method; 0 without (with 0, training is plain).

    Args:
        config: Flat config of the run.

    Returns:
        The radius, the method's default where the config leaves it out.
    """
    given = [config.get(f"{node}.rho", DEFAULTS.get(name, {}).get("rho")) for node, name in members(config).items()]
    return max((float(rho) for rho in given if is_number(rho)), default=0.0)


def rate_label(config: Mapping[str, Any]) -> str:
    """Name how the learning rate follows the batch.

    Args:
        config: Flat config of the run.

    Returns:
        "fixed" (no scaling, rule none, or exponent 0), the rule ("linear", "sqrt"; for auto the one that the optimizer
        gets), or "power p" for an exponent; rules that differ by optimizer as "linear / sqrt".
    """
    key = "callbacks.lr_scaling.rule"
    rules = [config.get(key)] if key in config else [config[name] for name in config if name.startswith(f"{key}.")]
    named = dict.fromkeys(_rule_label(rule, _optimizer(config)[1]) for rule in rules)
    return " / ".join(named) or "fixed"


def batch_size(config: Mapping[str, Any], metrics: Mapping[str, Any]) -> float | None:
    """Read the global batch size; the config's per-device size for a run that never got to report it.

    Args:
        config: Flat config of the run.
        metrics: Metrics of the run.

    Returns:
        Samples per optimizer step, or None when the run names none.
    """
    return _first_number(metrics.get("batch/global"), config.get("data.batch_size"))


def learning_rate(config: Mapping[str, Any], metrics: Mapping[str, Any]) -> float | None:
    """Read the rate that the run used, after scaling.

    Args:
        config: Flat config of the run.
        metrics: Metrics of the run.

    Returns:
        Learning rate, or None when the run names none.
    """
    return _first_number(metrics.get("lr/scaled"), metrics.get("lr/base"), config.get("optimizer.lr"))


def num_classes(config: Mapping[str, Any]) -> int | None:
    """Read the number of classes, where any part of the config names it.

    Args:
        config: Flat config of the run.

    Returns:
        The number, or None.
    """
    found = [
        value
        for key, value in config.items()
        if key.rpartition(".")[2] == "num_classes" and isinstance(value, int) and value > 1
    ]
    return max(found, default=None)


def diverged(metrics: Mapping[str, Any], classes: int | None) -> bool:
    """Decide whether a finished run has diverged.

    It has, when its training or test loss is not finite, or its training loss is at least 98 % of ln(classes), the
    cross entropy of guessing: then there is no minimum whose sharpness would mean anything.

    Args:
        metrics: Metrics of the run.
        classes: Number of classes, None when unknown or not a classification.

    Returns:
        Whether the run counts as diverged.
    """
    losses = [metrics[key] for key in ("train/loss", "test/loss") if isinstance(metrics.get(key), int | float)]
    if any(not math.isfinite(loss) for loss in losses):
        return True
    train = metrics.get("train/loss")
    return isinstance(train, int | float) and classes is not None and train >= CHANCE_FRACTION * math.log(classes)


def higher_is_better(metric: str) -> bool:
    """Tell by the last part of its key whether a metric is to be raised.

    Args:
        metric: Key, such as "test/acc" or "val/acc_epoch".

    Returns:
        True for accuracies and their like, for a target that is reached and for what has converged; anything else,
        such as losses, sharpness, and the steps and seconds to a target, is to be low.
    """
    parts = set(re.split(r"[^a-z0-9]+", metric.rpartition("/")[2].lower()))
    return bool(parts & _HIGHER_IS_BETTER) and not parts & _LOWER_IS_BETTER


def words(metric: str) -> str:
    """Name a metric in words.

    Args:
        metric: Key, such as "test/acc".

    Returns:
        Such as "test accuracy"; the key itself when it is not one of lbtrain's.
    """
    return METRICS[metric][0] if metric in METRICS else metric


def capital(text: str) -> str:
    """Write a text as the beginning of a line; names within it, such as SAM, stay as they are.

    Args:
        text: Words of a metric.

    Returns:
        Such as "Steps to the target"; lambda_max and keys such as "val/mine", which are no words, as they are.
    """
    return text if "_" in text or "/" in text else text[:1].upper() + text[1:]


def bounds(metric: str) -> tuple[float, float] | None:
    """Tell between which values a metric lies.

    Args:
        metric: Key.

    Returns:
        The lowest and the highest value there is, for accuracies and their gap; None for all others.
    """
    if metric == "gap/acc":
        return -1.0, 1.0
    return (0.0, 1.0) if metric in METRICS and METRICS[metric][1] == "fraction" else None


def _rule_label(rule: Any, optimizer: str) -> str:
    if rule == "auto":
        return AUTO_LAWS.get(optimizer.lower(), "auto")
    try:
        power = float(rule)
    except (TypeError, ValueError):
        return "fixed" if rule in {None, "", "none"} else str(rule)
    return f"power {power:g}" if power else "fixed"


def _optimizer(config: Mapping[str, Any]) -> tuple[str, str]:
    """Return the key under which the optimizer stands, with its dot, and the name of its class; empty without one."""
    keys = sorted((key for key in config if f".{key}".endswith(".optimizer._target_")), key=len)
    return (keys[0].removesuffix("_target_"), str(config[keys[0]]).rpartition(".")[2]) if keys else ("", "")


def _first_number(*values: Any) -> float | None:
    for value in values:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    return None
