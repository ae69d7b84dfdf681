"""The Hessian product of one batch by double backward, from the graph of its gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lbtrain.functional._batch_losses import Gradient


class HessianGraph:
    """The gradient ``g`` of one batch with its graph: ``H v = d(g . v)/dw`` (Pearlmutter 1994, eq. 2.1).

    Args:
        gradient: One entry per parameter, None where the loss does not depend on it.
        loss: Its loss, without a graph.
    """

    def __init__(self, gradient: Gradient, loss: Tensor) -> None:
        self.gradient, self.loss = gradient, loss

    def tensors(self) -> Sequence[Tensor]:
        """Return the gradient."""
        return [g for g in self.gradient if g is not None]

    def product(self, params: Sequence[Tensor], pieces: Sequence[Tensor], *, keep: bool) -> Gradient:
        """Return ``H v`` in pieces, None where it is zero.

        Args:
            params: The parameters of the gradient, in its order.
            pieces: The vector ``v``, shaped and typed like them.
            keep: Whether the graph serves again.

        Returns:
            One piece per parameter.
        """
        pairs = [(g, x) for g, x in zip(self.gradient, pieces, strict=True) if g is not None and g.requires_grad]
        if not pairs:
            return (None,) * len(params)
        outputs, directions = zip(*pairs, strict=True)
        return torch.autograd.grad(outputs, params, directions, retain_graph=keep, allow_unused=True)

    def block(self, positions: Sequence[int]) -> HessianGraph:
        """Return the graph for the parameters at these positions; what only the others need is not walked."""
        return HessianGraph(tuple(self.gradient[k] for k in positions), self.loss)
