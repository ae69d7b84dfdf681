"""Whether autograd's gradients are those of the loss: central differences along random directions, then by tensor."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lbtrain.functional._gradient_trial import Around, Trial
from lbtrain.functional._gradient_trial import TensorCheck as TensorCheck
from lbtrain.functional.diagnosis import Finding, Remedy

# Names of a random direction over all tensors, where no single one is to blame.
_TOGETHER = "all parameters together"


@dataclass(frozen=True)
class GradientCheck:
    """What central differences say about autograd.

    Attributes:
        tensors: Of each parameter, the largest error first; empty where the directions over all of them agreed.
        directions: Along random directions over all parameters.
        tolerance: Relative error that was still right.
        num_evaluations: Of the loss, with the gradients.
        reason: Why nothing was judged: the loss is random, or not finite; empty where something was.
    """

    tensors: tuple[TensorCheck, ...]
    directions: tuple[TensorCheck, ...]
    tolerance: float
    num_evaluations: int
    reason: str = ""

    @property
    def passes(self) -> bool:
        """Whether no gradient was found wrong."""
        return not self.wrong

    @property
    def wrong(self) -> tuple[TensorCheck, ...]:
        """The wrong ones: tensors, or the directions if no single tensor is to blame."""
        tensors = tuple(t for t in self.tensors if t.kind == "error")
        return tensors or tuple(d for d in self.directions if d.kind == "error")


def gradient_check(
    loss: Callable[[], Tensor],
    params: Sequence[Tensor],
    names: Sequence[str],
    generator: torch.Generator,
    *,
    directions: int = 2,
    step: float | None = None,
    tolerance: float | None = None,
    per_tensor: bool = False,
) -> GradientCheck:
    """Compare ``g'd`` with ``(f(w + h d) - f(w - h d)) / (2 h)`` and find the tensors at fault.

    Each direction moves every tensor by its own size, so that small ones count. Where one disagrees, each tensor is
    looked at alone. Weights that stand at kinks (ReLU, max pooling, abs) are looked at once more a little beside them.

    Args:
        loss: Evaluates the loss at the current weights, 0-dim with its graph; the same value each time.
        params: The weights, floating tensors that require gradients, each listed once; put back bit for bit.
        names: One per parameter.
        generator: Of the random directions, on the CPU.
        directions: Over all parameters.
        step: Relative change ``h`` of the weights, without unit. None takes ``eps^(1/3)`` of the coarsest type among
            weights and loss, where truncation, ``h^2``, and rounding, ``eps / h``, balance.
        tolerance: Relative error that is still right. None takes 1e-3 in float64 and 0.05 below it. A choice: a wrong
            gradient is off by factors, differences leave 1e-9 and 1e-3; half of that is kinks.
        per_tensor: Look at each tensor alone in any case.

    Returns:
        The verdicts, with what they cost.

    Raises:
        ValueError: If there are no parameters, not as many names, or an argument is out of range.

    References:
        Press et al. (2007), Numerical Recipes, 5.7 (the step).

    Example:
        >>> w = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
        >>> gradient_check(lambda: (w**3).sum(), [w], ["w"], torch.Generator().manual_seed(0)).passes
        True
    """  # noqa: DOC502 - _check_arguments raises it
    _check_arguments(params, names, directions, step, tolerance)
    around = Around(loss, params)
    try:
        base, again = around.values(), around.value(None, 0.0)
        eps = around.eps
        chosen = tolerance if tolerance is not None else 1e-3 if eps < 1e-12 else 0.05
        reason = _reason(base.loss, again, eps)
        if reason:
            return GradientCheck((), (), chosen, around.count, reason)
        trial = Trial(around, base, generator, step or eps ** (1 / 3), chosen)
        found = tuple(trial.check(_TOGETHER, None) for _ in range(directions))
        tensors: list[TensorCheck] = []
        if per_tensor or any(d.kind != "ok" for d in found):
            tensors = [trial.check(name, i) for i, name in enumerate(names)]
        tensors.sort(key=lambda t: (t.kind != "error", -t.error if math.isfinite(t.error) else 0.0))
        return GradientCheck(tuple(tensors), found, chosen, around.count)
    finally:
        around.restore()


def gradient_finding(check: GradientCheck) -> Finding | None:
    """Say which gradients are wrong.

    Args:
        check: Of `gradient_check`.

    Returns:
        ``incorrect gradients`` with the worst tensor and both numbers; None if none is wrong, or nothing was judged.
    """
    if check.passes:
        return None
    worst, others = check.wrong[0], [t.name for t in check.wrong[1:] if t.name != check.wrong[0].name]
    where = worst.name if worst.name == _TOGETHER else f"layer {worst.name}"
    words = (
        f"{where}: autograd says {worst.autograd:.3g}, central differences {worst.difference:.3g} "
        f"(error {worst.error:.0%}, {worst.expected:.0e} expected)"
    )
    if others:
        shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        words += f"; {len(others)} more of {len(check.tensors)} tensors are wrong: {shown}"
    remedy = Remedy(
        "let autograd differentiate: look for a custom backward, a detach() or .data, and in-place edits under "
        "no_grad, after these layers; if it is meant (stop-gradient, straight-through), leave this check out"
    )
    return Finding(
        "incorrect gradients",
        words,
        {"autograd": worst.autograd, "difference": worst.difference, "error": worst.error, "tensors": len(check.wrong)},
        max(1.0, worst.error / check.tolerance),
        since=0,
        remedies=(remedy,),
    )


def _reason(first: float, again: float, eps: float) -> str:
    """Return why the loss cannot be differentiated by its values, empty where it can."""
    if not (math.isfinite(first) and math.isfinite(again)):
        return f"the loss is {first:g}, so its differences say nothing"
    # Over a step of eps^(1/3) this much would be an error of eps^(1/3) in the slope.
    if abs(first - again) > eps ** (2 / 3) * max(abs(first), abs(again)):
        return f"the loss is random: {first:.9g} and then {again:.9g} at the same weights, with the same random numbers"
    return ""


def _check_arguments(
    params: Sequence[Tensor], names: Sequence[str], directions: int, step: float | None, tolerance: float | None
) -> None:
    if not params or len(params) != len(names):
        raise ValueError(
            f"params and names must be as many, at least one, got {len(params)} and {len(names)}; pass the trained "
            "parameters with the names that named_parameters() gives them"
        )
    if any(not p.is_floating_point() for p in params):
        raise ValueError(f"params must be floating tensors, got {[str(p.dtype) for p in params]}; leave others out")
    if directions < 1:
        raise ValueError(f"directions must be at least 1, got {directions}; 2 is the default")
    for name, value in (("step", step), ("tolerance", tolerance)):
        if value is not None and not 0 < value < 1:
            raise ValueError(f"{name} must be between 0 and 1, got {value}; None chooses one")
