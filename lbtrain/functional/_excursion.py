"""The mean loss beside the weights, the highest point met there, and the way back."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from lbtrain.functional.curvature_along import batch_sums, mean_of_batches
from lbtrain.functional.hvp import MeanLoss
from lbtrain.functional.results import SharpnessValue
from lbtrain.functional.vectors import unflatten


class Excursion:
    """Evaluates the loss beside the weights, and remembers the highest point met.

    Args:
        loss: Mean loss.
        params: Its parameters.
        name: Name of the size, for the message.
        size: Of the neighbourhood.
        num_steps: Number of steps.

    Raises:
        ValueError: If ``size`` or ``num_steps`` is not positive, or ``params`` are not those of the loss.
    """

    def __init__(self, loss: MeanLoss, params: Sequence[Tensor], name: str, size: float, num_steps: int) -> None:
        if not size > 0 or num_steps < 1:
            raise ValueError(f"need {name} > 0 and num_steps >= 1, got {name} = {size} and num_steps = {num_steps}")
        if [id(p) for p in params] != [id(p) for p in loss.params]:
            raise ValueError(f"params must be the {len(loss.params)} tensors of the loss, in order; pass loss.params")
        self.loss = loss
        self.saved = [p.detach().clone() for p in params]
        self.before = loss.num_gradients, loss.num_values
        self.base_values = loss.batch_values()
        self.base = self.highest = loss.mean_of(self.base_values)
        self.argmax: Tensor | None = None

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Put the weights back at the end of this block, bit for bit.

        Yields:
            Nothing.
        """
        try:
            yield
        finally:
            with torch.no_grad():
                for p, saved in zip(self.loss.params, self.saved, strict=True):
                    p.copy_(saved)

    def move(self, offset: Tensor) -> None:
        """Set the weights to ``w + offset``."""
        with torch.no_grad():
            pieces = unflatten(offset, self.saved)
            for p, saved, piece in zip(self.loss.params, self.saved, pieces, strict=True):
                p.copy_(saved + piece.to(saved))

    def value(self, offset: Tensor) -> float:
        """Return the mean loss at ``w + offset``."""
        self.move(offset)
        return self.loss.value()

    def value_and_gradient(self, offset: Tensor) -> tuple[float, Tensor]:
        """Return the mean loss and its gradient at ``w + offset``."""
        self.move(offset)
        return self.loss.value_and_gradient()

    def note(self, value: float, offset: Tensor) -> None:
        """Remember the point if it is the highest finite one."""
        if math.isfinite(value) and value > self.highest:
            self.highest, self.argmax = value, offset

    def result(self, factor: float) -> SharpnessValue:
        """Return the rise at the highest point and its standard error over batches, both times a factor."""
        if not math.isfinite(self.base):
            return SharpnessValue(math.nan, math.nan, *self._cost())
        rises = torch.zeros_like(self.base_values)
        if self.argmax is not None:
            self.move(self.argmax)
            rises = self.loss.batch_values() - self.base_values
        mean, stderr = mean_and_stderr(self.loss, rises)
        return SharpnessValue(factor * max(0.0, mean), factor * stderr, *self._cost())

    def _cost(self) -> tuple[int, int]:
        """Return the numbers of gradients and of values taken since the start."""
        return self.loss.num_gradients - self.before[0], self.loss.num_values - self.before[1]


def mean_and_stderr(loss: MeanLoss, rises: Tensor) -> tuple[float, float]:
    """Return ``m = sum_b w_b d_b`` and ``sqrt(B / (B - 1) sum_b w_b^2 (d_b - m)^2)`` over all ranks."""
    found = mean_of_batches(loss.total(batch_sums(rises, rises.new_tensor(loss.weights))))
    return found.value, found.stderr
