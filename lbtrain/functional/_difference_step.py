"""The step of a central difference of gradients: Richardson's check of it, and the search for the best one."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lbtrain.functional.space import Space
from lbtrain.functional.vectors import unflatten

# Largest share of the direction that may be lost when w + h u is rounded to the weights' type, at the first step.
_LOST = 0.05
# The search goes on while the error falls to this share: to 1/2 each time where rounding rules, 1/4 where truncation.
_PROGRESS = 0.7
# Roundings that a gradient's relative error amounts to: a random walk of 16, long sums and many layers.
_ROUNDINGS = 4.0


def roundings(params: Sequence[Tensor], default: torch.dtype) -> float:
    """Return the relative rounding of the coarsest type among the parameters, or of another one without any."""
    return max((torch.finfo(p.dtype).eps for p in params), default=torch.finfo(default).eps)


class StepSearch:
    """Differences along one direction at the steps ``first * 2^level``, and bounds on their errors.

    Args:
        sides: Maps a unit vector ``u`` and a step ``h`` to the gradients at ``w + h u`` and ``w - h u``.
        params: The weights ``w``, ``n`` entries together.
        unit: The direction ``u``, shape ``(n,)``.
        space: How norms are taken.
        measure: Norm of what ``sides`` returns, where that is not shaped like the weights; None takes the space's.
    """

    def __init__(
        self,
        sides: Callable[[Tensor, float], tuple[Tensor, Tensor]],
        params: Sequence[Tensor],
        unit: Tensor,
        space: Space,
        measure: Callable[[Tensor], float] | None = None,
    ) -> None:
        self.sides, self.params, self.unit, self.space = sides, params, unit, space
        self._measure = measure
        self.eps = roundings(params, unit.dtype)
        # No step is longer than the weights, or than 1.
        self.longest = max(1.0, float(space.norm([p.detach() for p in params])))
        self._known: dict[float, tuple[Tensor, float]] = {}

    def best(self) -> tuple[float, float]:
        """Find the step with the smallest error, first among longer ones, then among shorter ones.

        Returns:
            The step, in units of parameter norm, and the bound on its error, loss per squared parameter.
        """
        first = self.first()
        start = first, self.error(first)
        longer = self._walk(start, 2.0)
        return longer if longer[0] > first else self._walk(start, 0.5)

    def difference(self, step: float) -> Tensor:
        """Return ``D u`` at a step, in the shape of what ``sides`` returns, loss per squared parameter."""
        return self._difference(step)[0]

    def size(self, step: float) -> float:
        """Return ``||D u||`` at a step, loss per squared parameter."""
        return self._norm(self.difference(step))

    def error(self, step: float) -> float:
        """Bound ``||D u - H u||`` for the difference ``D u`` at a step ``h`` by those at ``2 h`` and ``h / 2``.

        Twice the larger of the two distances: of truncation errors at ``h`` that makes 6, of rounding errors 4.5. Two
        pairs, since the roundings of one may agree by chance; that margin makes a bound likely, not certain.

        Args:
            step: The step ``h``, in units of parameter norm.

        Returns:
            Loss per squared parameter; infinite where a gradient is not finite, or where rounding of the weights takes
            more than half of the step.
        """
        (short, _), (here, size), (long, _) = (self._difference(h) for h in (step / 2, step, 2 * step))
        seen = 2 * max(self._norm(long - here), self._norm(here - short))
        # What is alike in all differences does not show in their distance: equal roundings of the gradients or of the
        # weights, or no motion at all.
        lost = self._lost(step)
        if lost > 0.5:
            return math.inf
        unseen = _ROUNDINGS * self.eps * size / (2 * step) + lost / (1 - lost) * self._norm(here)
        return seen + unseen if math.isfinite(seen + unseen) else math.inf

    def _walk(self, start: tuple[float, float], factor: float) -> tuple[float, float]:
        """Return the step and its error after multiplying it by a factor for as long as the error falls."""
        step, error = start
        while factor < 1 or factor * step <= self.longest:
            trial = self.error(factor * step)
            if not trial < _PROGRESS * error:
                break
            step, error = factor * step, trial
            # Of all differences, each as large as the weights, only those that the next trial compares.
            self._known = {h: found for h, found in self._known.items() if step / 2 <= h <= 2 * step}
        return step, error

    def first(self) -> float:
        """Return the smallest step, from ``eps^(1/3)`` on, at which the weights follow the direction.

        Truncation, ``h^2``, and rounding, ``eps / h``, balance near it: Press et al. (2007), Numerical Recipes, 5.7.
        """
        step: float = self.eps ** (1 / 3)
        while self._lost(step) > _LOST and step < self.longest:
            step *= 2
        return step

    def _difference(self, step: float) -> tuple[Tensor, float]:
        """Return the difference at a step, shape ``(n,)``, and the larger norm of its two gradients."""
        if step not in self._known:
            ahead, behind = self.sides(self.unit, step)
            size = max(self._norm(ahead), self._norm(behind))
            self._known[step] = (ahead - behind) / (2 * step), size
        return self._known[step]

    def _lost(self, step: float) -> float:
        """Return the share of the step that is lost when ``w + h u`` is rounded to the type of the weights."""
        rests = []
        for piece, p in zip(unflatten(self.unit, self.params), self.params, strict=True):
            offset = step * piece.to(p.device)
            rests.append(((p.detach() + offset.to(p)) - p.detach()).to(offset) - offset)
        return float(self.space.norm(rests)) / step

    def _norm(self, v: Tensor) -> float:
        if self._measure is not None:
            return self._measure(v)
        return float(self.space.norm(unflatten(v, self.params)))
