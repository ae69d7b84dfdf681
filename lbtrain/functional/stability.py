"""How near an optimizer is to the edge of stability on the local quadratic."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lbtrain.functional._stability_laws import in_words, is_decoupled, law_of
from lbtrain.functional.lanczos import lanczos
from lbtrain.functional.progress import Watch
from lbtrain.functional.results import Spectrum, Stability
from lbtrain.functional.space import WHOLE, Space
from lbtrain.functional.vectors import flatten

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
    law = law_of(optimizer)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    moved = [p for p in params if id(p) in groups]
    if law is None:
        return _NAN, 0.0, f"no law for {type(optimizer).__name__}"
    if not moved:
        return _NAN, 0.0, "no measured parameter is in the optimizer"
    if any(groups[id(p)].get("maximize", False) for p in moved):
        return _NAN, 0.0, "maximize=True climbs, which has no edge"
    if law.divisor is not None and not any(optimizer.state.get(p) for p in moved):
        return _NAN, 0.0, f"{law.name}: no optimizer step yet, its second moments are unknown"
    steps: list[Tensor | float] = []
    decays: list[Tensor | float] = []
    for p in params:
        group, state = groups.get(id(p)), optimizer.state.get(p) or {}
        # A parameter that never had a gradient has no state and does not move.
        if group is None or (law.divisor is not None and not state):
            steps.append(0.0)
            decays.append(0.0)
            continue
        steps.append(law.factor(group) if law.divisor is None else law.factor(group) / law.divisor(group, state))
        decays.append(0.0 if is_decoupled(optimizer, group) else float(group["weight_decay"]))
    return _join(steps, params), _join(decays, params), in_words(law, groups[id(moved[0])], optimizer)


def stability(
    optimizer: torch.optim.Optimizer,
    params: Sequence[Tensor],
    hvp: Callable[[Tensor], Tensor],
    spectrum: Spectrum,
    *,
    tol: float = 1e-3,
    max_matvecs: int = 300,
    generator: torch.Generator,
    start: Tensor | None = None,
    watch: Watch | None = None,
    space: Space = WHOLE,
    confirm: bool = True,
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
        start: First start vector, shape ``(n,)``, such as ``.vector`` of an earlier result; None draws it.
        watch: Called after each product.
        space: How inner products are taken; a ``ShardedSpace`` if each process holds a part of every vector.
        confirm: Whether to spend a product on the residual, as ``lanczos`` has it.

    Returns:
        The value without unit, its residual, the law in words and the products spent; NaN with the reason if unknown.
    """
    step, decay, law = step_scale(optimizer, params)
    if isinstance(step, float) and step != step:
        return Stability(_NAN, _NAN, law, 0)
    if isinstance(step, float) and isinstance(decay, float):
        value, edge = step * (spectrum.lambda_max + decay), 1 / step - decay if step else math.inf
        return Stability(value, step * spectrum.lambda_max_residual, law, 0, threshold=edge)
    dtype = torch.float64 if any(p.dtype == torch.float64 for p in params) else torch.float32
    device = params[0].device
    root = torch.as_tensor(step, dtype=dtype, device=device).sqrt()
    shift = torch.as_tensor(decay, dtype=dtype, device=device)

    def scaled(v: Tensor) -> Tensor:
        u = root * v
        return root * (hvp(u) + shift * u)

    n = sum(p.numel() for p in params)
    found = lanczos(
        scaled,
        n,
        tol=tol,
        max_matvecs=max_matvecs,
        generator=generator,
        dtype=dtype,
        device=device,
        start=start,
        keep_vectors=True,
        smallest=False,
        watch=watch,
        space=space,
        confirm=confirm,
    )
    value, edge = found.lambda_max, _preconditioned_edge(optimizer, params)
    vector = None if found.vectors is None else found.vectors[:, 0].contiguous()
    return Stability(value, found.lambda_max_residual, law, found.num_matvecs, _NAN, value * edge, edge, vector)


def _preconditioned_edge(optimizer: torch.optim.Optimizer, params: Sequence[Tensor]) -> float:
    """Return the ``lambda_max(P^-1 H)`` at the edge; NaN where nothing divides or groups differ in their edge."""
    law, ids = law_of(optimizer), {id(p) for p in params}
    if law is None or law.divisor is None:
        return _NAN
    factors = {law.factor(group) for group in optimizer.param_groups if any(id(p) in ids for p in group["params"])}
    factor = factors.pop()
    return 1 / factor if not factors and factor else _NAN


def _join(values: Sequence[Tensor | float], params: Sequence[Tensor]) -> Tensor | float:
    """Return one number if all values are that number, else one value per entry, shape ``(n,)``."""
    first = values[0]
    if not isinstance(first, Tensor) and all(not isinstance(v, Tensor) and v == first for v in values):
        return first
    return flatten([
        torch.as_tensor(v, dtype=p.dtype, device=p.device).expand_as(p) for v, p in zip(values, params, strict=True)
    ])
