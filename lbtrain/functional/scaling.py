"""Laws that carry hyperparameters tuned at one batch size over to another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lbtrain.functional.optimizers import decay_per_step, names_of

Rule = str | float

# Exponent p of lr' = lr * k^p for the named laws.
EXPONENTS = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}

# The law of each optimizer, by the name of its class in lower case (`Lamb` and `LAMB` are the same method). Linear:
# Goyal et al. (2017), arXiv 1706.02677, section 2.1, and You et al. (2017), arXiv 1708.03888, section 5, for LARS.
# Square root: Malladi et al. (2022), arXiv 2205.10287, for Adam and RMSprop, and what divides by a running root mean
# square as they do; You et al. (2020), arXiv 1904.00962, section 4, for LAMB.
AUTO = {
    "linear": ("sgd", "lars"),
    "sqrt": ("adam", "adamw", "nadam", "radam", "adamax", "adafactor", "rmsprop", "lamb"),
}
# Their step does not change when the gradient is multiplied by a constant.
_SCALE_FREE = frozenset({"lars", *AUTO["sqrt"]})


@dataclass(frozen=True)
class Law:
    """What has changed since the hyperparameters were tuned, and what is to follow it."""

    samples: float
    """Global batch over the one that they were tuned at, without unit."""
    batches: float = 1.0
    """Batches per optimizer step, over all devices and the accumulation, over those that they were tuned at."""
    summed: bool = False
    """Whether the loss sums over the samples of a batch."""
    rule: Rule = "auto"
    """For the rate; a parameter group's own `scaling_rule` stands in for it."""
    adam_moments: bool = False
    """Whether betas and eps follow the square-root law, too."""
    scale_decay: bool = False
    """Whether weight decay per epoch is kept, in the place of weight decay per step."""


@dataclass(frozen=True)
class Factors:
    """By what the hyperparameters of one parameter group are multiplied; all without unit."""

    rule: Rule
    """The law in effect."""
    k: float
    """What it was raised from: lr = k^p."""
    lr: float
    """Of the learning rate."""
    moments: float
    """Of 1 - beta, and of 1 / eps^2; 1 if they are kept."""
    decay: float
    """Of the weight decay; 1 if it is kept."""


def exponent(rule: Rule) -> float:
    """Return the exponent p of the scaling law lr' = lr * k^p.

    Args:
        rule: `"linear"` (p = 1), `"sqrt"` (p = 0.5), `"none"` (p = 0), or p itself.

    Returns:
        The exponent, without unit.

    Raises:
        ValueError: If the rule is neither a known name nor a finite number.

    References:
        Goyal et al. (2017), arXiv 1706.02677, section 2.1 (linear); Malladi et al. (2022), arXiv 2205.10287 (square
        root).
    """
    if isinstance(rule, str) and rule in EXPONENTS:
        return EXPONENTS[rule]
    if isinstance(rule, int | float) and not isinstance(rule, bool) and math.isfinite(rule):
        return float(rule)
    raise ValueError(f"rule must be auto, one of {sorted(EXPONENTS)} or a finite exponent, got {rule!r}")


def auto_rule(optimizer: torch.optim.Optimizer) -> str:
    """Return the scaling law of an optimizer.

    Args:
        optimizer: Of a class in `AUTO`, or derived from one.

    Returns:
        `"linear"` or `"sqrt"`.

    Raises:
        ValueError: If no law is known for it.
    """
    known = {name: rule for rule, names in AUTO.items() for name in names}
    for name in names_of(optimizer):
        if name in known:
            return known[name]
    raise ValueError(
        f"rule='auto' knows no scaling law for the optimizer {type(optimizer).__name__} (linear for "
        f"{', '.join(AUTO['linear'])}; sqrt for {', '.join(AUTO['sqrt'])}): give rule='linear', 'sqrt', 'none' or an "
        "exponent"
    )


def scaling_factor(k: float, rule: Rule) -> float:
    """Return k^p, by which the learning rate grows when the batch grows k times.

    Args:
        k: Ratio of the new batch size to the one that the rate was tuned for, without unit.
        rule: The law, as in `exponent`.

    Returns:
        The factor on the learning rate, without unit.

    Raises:
        ValueError: If k is not positive and finite, or the rule is unknown.
    """
    if not (math.isfinite(k) and k > 0):
        raise ValueError(f"k must be positive and finite, got {k!r}")
    return float(k ** exponent(rule))


def factors(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], law: Law) -> Factors:
    """Return by what the hyperparameters of a parameter group are to be multiplied.

    With a mean over the batch, `lr' = lr * k^p` with k the ratio of the global batches. With a sum, the gradient that
    is stepped on is the sum over the global batch divided by the number of batches in it, so `k` is the ratio of these
    numbers: the update per sample stays. An optimizer that divides by the size of its gradients (Adam and others) does
    not see the difference between a sum and a mean, and keeps the first law. `adam_moments` adds
    `beta' = 1 - k (1 - beta)` and `eps' = eps / sqrt(k)`; `scale_decay` adds `decay' = decay * k_samples / (lr'/lr)`,
    with which as much decays per epoch as before.

    Args:
        optimizer: That the group belongs to.
        group: Parameter group, as it was tuned or as it is.
        law: What has changed.

    Returns:
        The factors.

    Raises:
        ValueError: If no law is known for the optimizer, or one does not apply to it.

    References:
        Goyal et al. (2017), arXiv 1706.02677, section 2.1; Malladi et al. (2022), arXiv 2205.10287, Definition 5.2
        (Adam) and 5.1 (RMSprop).
    """
    rule = group.get("scaling_rule", law.rule)
    rule = auto_rule(optimizer) if rule == "auto" else rule
    by_batches = law.summed and _SCALE_FREE.isdisjoint(names_of(optimizer))
    k = law.batches if by_batches else law.samples
    lr = scaling_factor(k, rule)
    has_moments = law.adam_moments and ("betas" in group or "alpha" in group)
    if has_moments and exponent(rule) != EXPONENTS["sqrt"]:
        raise ValueError(
            f"adam_moments=True belongs to the square-root law, and {type(optimizer).__name__} has rule={rule!r}: set "
            "rule='sqrt', or adam_moments=False"
        )
    scale_decay = law.scale_decay and float(group.get("weight_decay", 0.0)) != 0.0
    if scale_decay and decay_per_step(optimizer, group) is None:
        raise ValueError(
            "weight_decay='scale' keeps the share of the weights that decays per epoch, but "
            f"{type(optimizer).__name__} adds the decay to a gradient that it then normalizes, so there is no such "
            "share: use AdamW, or weight_decay='keep'"
        )
    return Factors(rule, k, lr, law.samples if has_moments else 1.0, law.samples / lr if scale_decay else 1.0)


def scaled_moments(group: Mapping[str, Any], k: float) -> dict[str, Any]:
    """Return betas (or alpha) and eps for a batch k times as large, `1 - k (1 - beta)` and `eps / sqrt(k)`.

    Args:
        group: Parameter group with `betas` (Adam and its relatives) or `alpha` (RMSprop), and `eps`.
        k: Ratio of the batch sizes, without unit.

    Returns:
        New values by the group's own keys; eps in the unit of the gradient.

    References:
        Malladi et al. (2022), arXiv 2205.10287, Definitions 5.1 and 5.2.
    """
    known = {key: group[key] for key in ("betas", "alpha") if key in group}
    for key, value in known.items():
        new = tuple(_moment(key, beta, k) for beta in value) if key == "betas" else _moment(key, value, k)
        known[key] = new
    if isinstance(group.get("eps"), float | torch.Tensor):
        known["eps"] = group["eps"] / math.sqrt(k)
    return known


def _moment(name: str, beta: Any, k: float) -> Any:
    """Return 1 - k (1 - beta).

    Raises:
        ValueError: If it is not between 0 and 1: the law ends at k = 1 / (1 - beta).
    """
    new = 1.0 - k * (1.0 - beta)
    # beta1 = 0 is an average over nothing, which stays one. 1 - 10 (1 - 0.9) is 2e-16 in binary, and stands for 0.
    if float(beta) != 0.0 and not 1e-12 < float(new) < 1.0:
        raise ValueError(
            f"adam_moments=True asks for 1 - k (1 - beta) > 0, but k={k:g} and beta={float(beta):g} in {name} give "
            f"{float(new):g}: the law holds up to k = {1.0 / (1.0 - float(beta)):.6g}; take a smaller batch, a larger "
            "base batch, or adam_moments=False"
        )
    return beta if float(beta) == 0.0 else new
