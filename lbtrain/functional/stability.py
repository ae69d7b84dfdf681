"""How near an optimizer is to the edge of stability on the local quadratic."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lbtrain.functional.lanczos import lanczos_spectrum
from lbtrain.functional.results import Spectrum, Stability
from lbtrain.functional.vectors import flatten

Group = dict[str, Any]
Scale = tuple[Tensor | float, Tensor | float, str]

_NAN = float("nan")


def step_scale(optimizer: torch.optim.Optimizer, params: Sequence[Tensor]) -> Scale:
    """Return the inverse threshold ``s`` per parameter, of the law ``lambda_max(S (H + wd)) = 1`` at the edge.

    On a quadratic an optimizer is a linear filter of the gradient; instability sets in where the weights flip sign at
    each step, ``w_t ~ (-1)^t``. There ``dw = -2 s H w``; with ``lr`` and ``mu`` of each group:

    - SGD ``(1 - dampening) lr / (2 + 2 mu)``; Nesterov ``(1 + 2 mu) lr / (2 + 2 mu)``;
    - Adam ``(1 - b1) lr / ((2 + 2 b1) P)``, ``P = (1 - b1^t) (sqrt(v / (1 - b2^t)) + eps)``;
    - AdamW ``(1 - b1) lr / ((2 - lr wd) (1 + b1) P)``: the decay passes by the momentum;
    - RMSprop ``lr / ((2 + 2 mu) P)``, ``P = sqrt(v) + eps``, with ``v`` less the squared mean gradient if centered.

    ``P`` is taken as frozen. Coupled weight decay adds ``wd`` to the Hessian's diagonal.

    Args:
        optimizer: As it stands after some steps; a bare torch optimizer, not a wrapper around one.
        params: The parameters of the Hessian in its order, ``n`` entries; zero steps for those not in the optimizer.

    Returns:
        ``s`` and ``wd``, each one number if it is the same for all entries, else of shape ``(n,)``, and the law in
        words. ``s`` in squared parameters per loss. NaN with the reason if no law is known or no step was done.

    References:
        Cohen et al. (2021), arXiv 2103.00065 (SGD, momentum); Cohen et al. (2022), arXiv 2207.14484 (Adam).
    """
    law = _law_of(optimizer)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    moved = [p for p in params if id(p) in groups]
    if law is None:
        return _NAN, 0.0, f"no law for {type(optimizer).__name__}"
    if not moved:
        return _NAN, 0.0, "no measured parameter is in the optimizer"
    if any(groups[id(p)].get("maximize", False) for p in moved):
        return _NAN, 0.0, "maximize=True climbs, which has no edge"
    name, scale, needs_state = law
    if needs_state and not any(optimizer.state.get(p) for p in moved):
        return _NAN, 0.0, f"{name}: no optimizer step yet, its second moments are unknown"
    steps, decays = [], []
    for p in params:
        group, state = groups.get(id(p)), optimizer.state.get(p) or {}
        # A parameter that never had a gradient has no state and does not move.
        fixed = group is None or (needs_state and not state)
        steps.append(0.0 if fixed or group is None else scale(group, state))
        decays.append(
            0.0 if fixed or group is None or _is_decoupled(optimizer, group) else float(group["weight_decay"])
        )
    return _join(steps, params), _join(decays, params), _describe(name, groups[id(moved[0])], optimizer)


def stability(
    optimizer: torch.optim.Optimizer,
    params: Sequence[Tensor],
    hvp: Callable[[Tensor], Tensor],
    spectrum: Spectrum,
    *,
    tol: float = 1e-3,
    max_matvecs: int = 300,
    generator: torch.Generator,
) -> Stability:
    """Return ``lambda_max(S^1/2 (H + diag(wd)) S^1/2)``: 1 at the edge of stability, ``lr lambda_max / 2`` for SGD.

    Args:
        optimizer: As it stands after training.
        params: The parameters of the Hessian in its order, ``n`` entries.
        hvp: Maps ``v`` of shape ``(n,)`` to ``H v``.
        spectrum: Of ``H``; it suffices, without further products, where all entries share one step and one decay.
        tol: Bound on the residual, in units of the value.
        max_matvecs: Largest number of products.
        generator: Source of the start vector; seeded alike on all ranks.

    Returns:
        The value without unit, its residual, the law in words and the products spent; NaN with the reason if unknown.
    """
    step, decay, law = step_scale(optimizer, params)
    if isinstance(step, float) and step != step:
        return Stability(_NAN, _NAN, law, 0)
    if isinstance(step, float) and isinstance(decay, float):
        return Stability(step * (spectrum.lambda_max + decay), step * spectrum.lambda_max_residual, law, 0)
    dtype = torch.float64 if any(p.dtype == torch.float64 for p in params) else torch.float32
    device = params[0].device
    root = torch.as_tensor(step, dtype=dtype, device=device).sqrt()
    shift = torch.as_tensor(decay, dtype=dtype, device=device)

    def scaled(v: Tensor) -> Tensor:
        u = root * v
        return root * (hvp(u) + shift * u)

    n = sum(p.numel() for p in params)
    found = lanczos_spectrum(
        scaled, n, tol=tol, max_matvecs=max_matvecs, generator=generator, dtype=dtype, device=device, smallest=False
    )
    return Stability(found.lambda_max, found.lambda_max_residual, law, found.num_matvecs)


def _sgd(group: Group, state: Group) -> float:
    """Return the step of SGD, where the buffer ``v = mu v + (1 - dampening) g`` flips sign too."""
    lr, mu = float(group["lr"]), float(group["momentum"])
    if not mu:
        return lr / 2  # torch dampens only the buffer
    if group["nesterov"]:
        return lr * (1 + 2 * mu) / (2 + 2 * mu)
    return lr * (1 - float(group["dampening"])) / (2 + 2 * mu)


def _adam(group: Group, state: Group) -> Tensor:
    """Return the steps of Adam or AdamW, shape of the parameter."""
    (b1, b2), t, lr = group["betas"], float(state["step"]), float(group["lr"])
    v: Tensor = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
    P: Tensor = (1 - b1**t) * ((v / (1 - b2**t)).sqrt() + group["eps"])
    decay = lr * group["weight_decay"] if group.get("decoupled_weight_decay", False) else 0.0
    factor: float = lr * (1 - b1) / ((2 - decay) * (1 + b1))
    return P.reciprocal() * factor


def _adamw(group: Group, state: Group) -> Tensor:
    """Return the steps of AdamW; torch 2.4 has no flag for its decay."""
    return _adam({**group, "decoupled_weight_decay": True}, state)


def _rmsprop(group: Group, state: Group) -> Tensor:
    """Return the steps of RMSprop, shape of the parameter."""
    v: Tensor = state["square_avg"]
    if group["centered"]:
        v = (v - state["grad_avg"] ** 2).clamp_min(0.0)  # below zero only by rounding
    P: Tensor = v.sqrt() + group["eps"]
    return P.reciprocal() * (float(group["lr"]) / (2 + 2 * float(group["momentum"])))


Law = tuple[str, Callable[[Group, Group], Tensor | float], bool]

# AdamW before Adam: it is a subclass of Adam in newer torch. The last entry says whether the law reads the state.
_LAWS: tuple[tuple[type[torch.optim.Optimizer], Law], ...] = (
    (torch.optim.AdamW, ("AdamW", _adamw, True)),
    (torch.optim.Adam, ("Adam", _adam, True)),
    (torch.optim.RMSprop, ("RMSprop", _rmsprop, True)),
    (torch.optim.SGD, ("SGD", _sgd, False)),
)


def _law_of(optimizer: torch.optim.Optimizer) -> Law | None:
    """Return the law of the optimizer's class; None for a class that steps in its own way."""
    for cls, law in _LAWS:
        # torch wraps `step` for profiling and for its gradient mode: compare what lies inside.
        if isinstance(optimizer, cls) and inspect.unwrap(type(optimizer).step) is inspect.unwrap(cls.step):
            return law
    return None


def _is_decoupled(optimizer: torch.optim.Optimizer, group: Group) -> bool:
    """Return whether weight decay shrinks the weights beside the gradient step."""
    return isinstance(optimizer, torch.optim.AdamW) or bool(group.get("decoupled_weight_decay", False))


def _join(values: Sequence[Tensor | float], params: Sequence[Tensor]) -> Tensor | float:
    """Return one number if all values are that number, else one value per entry, shape ``(n,)``."""
    first = values[0]
    if not isinstance(first, Tensor) and all(not isinstance(v, Tensor) and v == first for v in values):
        return first
    return flatten([
        torch.as_tensor(v, dtype=p.dtype, device=p.device).expand_as(p) for v, p in zip(values, params, strict=True)
    ])


def _describe(name: str, group: Group, optimizer: torch.optim.Optimizer) -> str:
    """Return the law in words, without the numbers, which may differ between groups."""
    edges = {
        "SGD": "lr (lambda_max + wd) = 2"
        if not group.get("momentum")
        else "lr (1 - dampening) (lambda_max + wd) = 2 + 2 mu",
        "Adam": "lr (1 - b1) lambda_max(P^-1 (H + wd)) = 2 + 2 b1",
        "AdamW": "lr (1 - b1) lambda_max(P^-1 H) = (2 - lr wd) (1 + b1)",
        "RMSprop": "lr lambda_max(P^-1 (H + wd)) = 2 + 2 mu",
    }
    if name == "SGD" and group.get("nesterov"):
        return "SGD with Nesterov momentum, edge at lr (1 + 2 mu) (lambda_max + wd) = 2 + 2 mu"
    return f"{name}, edge at {edges['AdamW' if name == 'Adam' and _is_decoupled(optimizer, group) else name]}"
