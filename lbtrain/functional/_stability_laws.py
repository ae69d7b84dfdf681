"""Laws of the edge of stability, one for each class of optimizer."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Group = dict[str, Any]


class Law(NamedTuple):
    """The edge of an optimizer: ``factor * lambda_max(P^-1 (H + wd)) = 1``.

    Attributes:
        name: Of the optimizer.
        factor: Of a group: squared parameters per loss where ``P`` is 1.
        divisor: ``P`` of a parameter, given its group and state; None where it is 1.
    """

    name: str
    factor: Callable[[Group], float]
    divisor: Callable[[Group, Group], Tensor] | None = None


def law_of(optimizer: torch.optim.Optimizer) -> Law | None:
    """Return the law of the optimizer's class.

    Args:
        optimizer: A bare torch optimizer.

    Returns:
        The law; None for a class that steps in its own way.
    """
    for cls, law in _LAWS:
        # torch wraps `step` for profiling and for its gradient mode: compare what lies inside.
        if isinstance(optimizer, cls) and inspect.unwrap(type(optimizer).step) is inspect.unwrap(cls.step):
            return law
    return None


def is_decoupled(optimizer: torch.optim.Optimizer, group: Group) -> bool:
    """Return whether weight decay shrinks the weights beside the gradient step.

    Args:
        optimizer: Adam, AdamW or another.
        group: One of its groups; torch 2.4 has no flag for AdamW's decay.

    Returns:
        True for AdamW, in either way to ask for it.
    """
    return isinstance(optimizer, torch.optim.AdamW) or bool(group.get("decoupled_weight_decay", False))


def in_words(law: Law, group: Group, optimizer: torch.optim.Optimizer) -> str:
    """Return the law in words, without the numbers, which may differ between groups.

    Args:
        law: Of the optimizer.
        group: One of its groups.
        optimizer: Itself.

    Returns:
        Name and formula.
    """
    if law.name == "SGD":
        if group.get("nesterov"):
            return "SGD with Nesterov momentum, edge at lr (1 + 2 mu) (lambda_max + wd) = 2 + 2 mu"
        if group.get("momentum"):
            return "SGD, edge at lr (1 - dampening) (lambda_max + wd) = 2 + 2 mu"
        return "SGD, edge at lr (lambda_max + wd) = 2"
    if law.name == "RMSprop":
        return "RMSprop, edge at lr lambda_max(P^-1 (H + wd)) = 2 + 2 mu"
    if is_decoupled(optimizer, group):
        return f"{law.name}, edge at lr (1 - b1) lambda_max(P^-1 H) = (2 - lr wd) (1 + b1)"
    return f"{law.name}, edge at lr (1 - b1) lambda_max(P^-1 (H + wd)) = 2 + 2 b1"


def _sgd(group: Group) -> float:
    """Return the factor of SGD, where the buffer ``v = mu v + (1 - dampening) g`` flips sign too."""
    lr, mu = float(group["lr"]), float(group["momentum"])
    if not mu:
        return lr / 2  # torch dampens only the buffer
    if group["nesterov"]:
        return lr * (1 + 2 * mu) / (2 + 2 * mu)
    return lr * (1 - float(group["dampening"])) / (2 + 2 * mu)


def _adam(group: Group) -> float:
    """Return the factor of Adam; a decoupled decay passes by the momentum."""
    b1, lr = float(group["betas"][0]), float(group["lr"])
    decay = lr * float(group["weight_decay"]) if group.get("decoupled_weight_decay", False) else 0.0
    return lr * (1 - b1) / ((2 - decay) * (1 + b1))


def _adamw(group: Group) -> float:
    """Return the factor of AdamW; torch 2.4 has no flag for its decay."""
    return _adam({**group, "decoupled_weight_decay": True})


def _adam_divisor(group: Group, state: Group) -> Tensor:
    """Return ``(1 - b1^t) (sqrt(v / (1 - b2^t)) + eps)``, shape of the parameter."""
    (b1, b2), t = group["betas"], float(state["step"])
    v: Tensor = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
    P: Tensor = (1 - b1**t) * ((v / (1 - b2**t)).sqrt() + group["eps"])
    return P


def _rmsprop(group: Group) -> float:
    """Return the factor of RMSprop."""
    return float(group["lr"]) / (2 + 2 * float(group["momentum"]))


def _rmsprop_divisor(group: Group, state: Group) -> Tensor:
    """Return ``sqrt(v) + eps``, with ``v`` less the squared mean gradient if centered, shape of the parameter."""
    v: Tensor = state["square_avg"]
    if group["centered"]:
        v = (v - state["grad_avg"] ** 2).clamp_min(0.0)  # below zero only by rounding
    P: Tensor = v.sqrt() + group["eps"]
    return P


# AdamW before Adam: it is a subclass of Adam in newer torch.
_LAWS: tuple[tuple[type[torch.optim.Optimizer], Law], ...] = (
    (torch.optim.AdamW, Law("AdamW", _adamw, _adam_divisor)),
    (torch.optim.Adam, Law("Adam", _adam, _adam_divisor)),
    (torch.optim.RMSprop, Law("RMSprop", _rmsprop, _rmsprop_divisor)),
    (torch.optim.SGD, Law("SGD", _sgd)),
)
