"""The loss around its weights, and the slopes along random directions there."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lbtrain.functional._gradient_line import Slope, judge

# Tensors that are much smaller than the others, a bias at zero above all, move by this share of the weights' root mean
# square. A choice: enough for a loss to notice, and a step of eps^(1/3) of it is still short.
_LEAST = 0.1
# How far from the weights, in steps, the gradient is looked at once more where they stand at kinks: of the units that
# met there, so many times fewer are within a step. A choice; a wrong gradient is wrong there, too.
_BESIDE = 1000.0
# But no farther than this, in the scale of the weights. A choice: half of it is still a network of their kind.
_FARTHEST = 0.5
# Longer steps, those of float32, pass several kinks: an error found with them must be one beside the weights, too.
_LONG = 1e-3


@dataclass(frozen=True)
class TensorCheck:
    """Autograd against central differences along a direction within one tensor.

    Attributes:
        name: Of the parameter.
        autograd: The slope that autograd gives, loss per unit of relative change of the tensor.
        difference: The slope by central differences, same unit.
        error: Their distance over the larger of the two, without unit.
        kind: ``ok``; ``error``: the gradient is wrong; ``kink``: the weights stand where two slopes meet, and beside
            them the gradient is right; ``unknown``: the differences do not decide.
        expected: The error that rounding leaves in a right gradient, without unit.
    """

    name: str
    autograd: float
    difference: float
    error: float
    kind: str
    expected: float = math.nan


@dataclass(frozen=True)
class Values:
    """The loss at some weights, and its gradients there."""

    weights: list[Tensor]
    loss: float
    gradients: list[Tensor]


class Around:
    """The loss around the weights, which come back as they were."""

    def __init__(self, loss: Callable[[], Tensor], params: Sequence[Tensor]) -> None:
        self._loss, self.params = loss, list(params)
        self._targets = [p.detach() for p in params]
        self._first = [t.clone() for t in self._targets]
        self.weights = self._first
        self.eps = max(torch.finfo(p.dtype).eps for p in params)
        self.count = 0

    def restore(self) -> None:
        """Put the weights back bit for bit."""
        torch._foreach_copy_(self._targets, self._first)

    def values(self, offset: Sequence[Tensor] | None = None) -> Values:
        """Return loss and gradients at the first weights plus an offset, around which `value` then looks."""
        if offset is not None:
            self.weights = [w + o for w, o in zip(self._first, offset, strict=True)]
        torch._foreach_copy_(self._targets, self.weights)
        with torch.enable_grad():
            self.count += 1
            value = self._loss()
            if value.dtype.is_floating_point:  # a float32 loss of float64 weights is rounded to float32
                self.eps = max(self.eps, torch.finfo(value.dtype).eps)
            found: Sequence[Tensor | None] = [None] * len(self.params)
            if value.requires_grad:
                found = torch.autograd.grad(value, self.params, allow_unused=True)
        pairs = zip(found, self._targets, strict=True)
        gradients = [torch.zeros_like(t) if g is None else g.detach() for g, t in pairs]
        return Values(self.weights, float(value.detach()), gradients)

    def value(self, direction: Sequence[Tensor] | None, length: float) -> float:
        """Return the loss at a distance along a direction."""
        # From the copies each time: a loss that edits its weights in place must not move the next evaluation.
        torch._foreach_copy_(self._targets, self.weights)
        if direction is not None:
            torch._foreach_add_(self._targets, list(direction), alpha=length)
        with torch.no_grad():
            self.count += 1
            return float(self._loss().detach())


class Trial:
    """Directions, and the verdict on each."""

    def __init__(self, around: Around, base: Values, generator: torch.Generator, step: float, tolerance: float) -> None:
        self._around, self._base, self._generator = around, base, generator
        self._step, self._tolerance = step, tolerance
        self._scales = _scales(base.weights)
        self._beside: Values | None = None

    def check(self, name: str, index: int | None) -> TensorCheck:
        """Return the verdict on one tensor, or on all of them together for None."""
        direction = self._direction(index)
        slope = self._judged(self._base, direction, generic=False)
        if slope.kind in ("kink", "unknown") or (slope.kind == "error" and self._step > _LONG):
            if self._beside is None:
                far = min(_BESIDE * self._step, _FARTHEST)
                self._beside = self._around.values([far * piece for piece in self._direction(None)])
            beside = self._judged(self._beside, direction, generic=True)
            if beside.kind == "error":
                slope = beside
            elif beside.kind != "ok" or slope.kind != "kink":
                slope = replace(slope, kind="unknown")
        return TensorCheck(name, slope.autograd, slope.difference, slope.error, slope.kind, slope.expected)

    def _judged(self, at: Values, direction: list[Tensor], *, generic: bool) -> Slope:
        self._around.weights = at.weights
        slope = sum(float((g.double() * d.double()).sum()) for g, d in zip(at.gradients, direction, strict=True))
        parts = zip(at.gradients, direction, self._scales, strict=True)
        size = math.hypot(*(scale * float(g.double().norm()) for g, d, scale in parts if d.any()))
        return judge(
            lambda length: self._around.value(direction, length),
            at.loss,
            slope,
            eps=self._around.eps,
            step=self._step,
            tolerance=self._tolerance,
            size=size if math.isfinite(size) else 0.0,
            generic=generic,
        )

    def _direction(self, index: int | None) -> list[Tensor]:
        """Return random numbers of the size of each tensor, or of one of them and zeros."""
        drawn = []
        for i, (w, scale) in enumerate(zip(self._base.weights, self._scales, strict=True)):
            if index not in (None, i):
                drawn.append(torch.zeros_like(w))
                continue
            piece = torch.randn(w.shape, generator=self._generator, dtype=torch.float64)
            drawn.append((piece * scale).to(w))
        return drawn


def _scales(weights: Sequence[Tensor]) -> list[float]:
    """Return by how much an entry of each tensor moves: its root mean square, if it is not too small for the loss."""
    squares = [float(w.double().square().sum()) for w in weights]
    entries = [w.numel() for w in weights]
    typical = math.sqrt(sum(squares) / max(1, sum(entries))) or 1.0
    return [max(math.sqrt(s / max(1, n)), _LEAST * typical) for s, n in zip(squares, entries, strict=True)]
