"""The losses of the local batches, one by one: value, and gradient with or without its graph."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Loss = Callable[[], Any]
Gradient = tuple[Tensor | None, ...]


class BatchLosses:
    """The scalar losses of the local batches as functions of the parameters.

    Args:
        params: Leaf parameters, ``n`` entries together.
        losses: One function per batch.
    """

    def __init__(self, params: Sequence[Tensor], losses: Sequence[Loss]) -> None:
        self.params, self.losses = tuple(params), tuple(losses)

    def __len__(self) -> int:
        return len(self.losses)

    def evaluate(self, i: int) -> Tensor:
        """Return the loss of batch ``i`` as a 0-dim tensor."""
        return self.with_outputs(i)[0]

    def with_outputs(self, i: int) -> tuple[Tensor, Any]:
        """Return the loss of batch ``i`` and what it returned as the network's outputs beside it, or None.

        Raises:
            TypeError: If the loss is no tensor.
            ValueError: If it is not one number.
        """
        loss: Any = self.losses[i]()
        outputs: Any = None
        if isinstance(loss, Mapping):
            loss, outputs = loss.get("loss"), loss.get("outputs")
        elif isinstance(loss, tuple) and len(loss) == 2:
            loss, outputs = loss
        if not isinstance(loss, Tensor):
            raise TypeError(
                f"losses[{i}] must return the loss as a tensor, (loss, outputs), or a dict with it under 'loss', got "
                f"{type(loss).__name__}"
            )
        if loss.numel() != 1:
            raise ValueError(f"losses[{i}] must return one number, got shape {tuple(loss.shape)}; reduce it first")
        return loss.reshape(()), outputs

    def gradient(self, loss: Tensor, *, create_graph: bool) -> Gradient:
        """Return the gradient of a loss, None where it does not depend on a parameter.

        Raises:
            ValueError: If a gradient is sparse.
        """
        if not loss.requires_grad:
            return (None,) * len(self.params)
        rows = torch.autograd.grad(loss, self.params, create_graph=create_graph, allow_unused=True)
        for p, row in zip(self.params, rows, strict=True):
            if row is not None and row.layout != torch.strided:
                raise ValueError(
                    f"the gradient of a parameter of shape {tuple(p.shape)} is sparse, and a product needs dense ones; "
                    "build the embedding with sparse=False"
                )
        return rows
