"""An excursion in coordinates of its own, ``w + M u``."""

from collections.abc import Callable, Sequence

from torch import Tensor

from lbtrain.functional._excursion import Excursion
from lbtrain.functional.hvp import MeanLoss


class LinearExcursion(Excursion):
    """Evaluates the loss at ``w + M u``; every offset and every gradient is one in ``u``.

    Args:
        loss: Mean loss of ``n`` parameters.
        params: Its parameters.
        name: Name of the size, for the message.
        size: Of the neighbourhood.
        num_steps: Number of steps.
        forward: Maps ``u`` to ``M u``, shape ``(n,)``.
        adjoint: Maps a gradient ``g``, shape ``(n,)``, to ``M' g``.
    """

    def __init__(
        self,
        loss: MeanLoss,
        params: Sequence[Tensor],
        name: str,
        size: float,
        num_steps: int,
        *,
        forward: Callable[[Tensor], Tensor],
        adjoint: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__(loss, params, name, size, num_steps)
        self._forward, self._adjoint = forward, adjoint

    def move(self, offset: Tensor) -> None:
        """Set the weights to ``w + M offset``."""
        super().move(self._forward(offset))

    def value_and_gradient(self, offset: Tensor) -> tuple[float, Tensor]:
        """Return the mean loss and its gradient in ``u`` at ``w + M offset``."""
        value, gradient = super().value_and_gradient(offset)
        return value, self._adjoint(gradient)

    def batch_values(self, offset: Tensor) -> Tensor:
        """Return the losses of the local batches at ``w + M offset``, shape ``(B,)``."""
        self.move(offset)
        return self.loss.batch_values()
