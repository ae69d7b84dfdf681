"""Values and gradients of the mean training loss of a model that is cut into shards, from whole passes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lbtrain._lightning import Trainer
from lbtrain.callbacks._sharded_passes import Passes
from lbtrain.callbacks._shards import part, space_of
from lbtrain.functional.vectors import unflatten


class ShardedMean:
    """The mean training loss as a function of the parts of the parameters that are held here.

    All processes call each method together and make the same passes. A vector is cut as the parameters are: each
    process holds its own `dim` entries of it, and `space` measures it. A batch is what all ranks evaluate in one pass.
    A value costs a gradient, since FSDP frees what it has gathered of the outermost module only after a backward, and
    weights moved meanwhile would be hidden by it.

    Args:
        trainer: The Trainer, inside `traceless`.
        passes: Of the batches to measure on.
        indices: Of the passes that the loss is made of; None for all.
        chosen: Positions, among the parameters of the passes, of those that are measured; None for all.

    Attributes:
        params: The parts held here, `dim` entries together; moving them moves the model.
        originals: The parameters that they are parts of.
        weights: This rank's share of each batch, `(B,)`.
    """

    def __init__(
        self,
        trainer: Trainer,
        passes: Passes,
        indices: Sequence[int] | None = None,
        chosen: Sequence[int] | None = None,
    ) -> None:
        self._trainer, self._passes = trainer, passes
        self._indices = list(range(len(passes.batches)) if indices is None else indices)
        self._chosen = list(range(len(passes.params)) if chosen is None else chosen)
        originals = [passes.params[i] for i in self._chosen]
        self.space = space_of(trainer, originals)
        self.params = tuple(part(p) for p in originals)
        self.originals = tuple(originals)
        self.dim = sum(p.numel() for p in self.params)
        self.device = self.params[0].device
        self.dtype = torch.float64 if any(p.dtype == torch.float64 for p in self.params) else torch.float32
        self.num_values = self.num_gradients = self.num_matvecs = 0
        shares = torch.tensor([passes.weights[i] for i in self._indices], dtype=torch.float64)
        # Halves are means too: their shares sum to 1 over all ranks.
        self._scale = 1.0 / (float(self.total(shares.sum())) or 1.0)
        self.weights = tuple((shares * self._scale).tolist())

    def release(self) -> None:
        """Drop what is kept between products: nothing."""

    def total(self, tensor: Tensor) -> Tensor:
        """Sum over ranks what each has from its own samples.

        Args:
            tensor: Any shape, the same on every rank.

        Returns:
            The sum, same shape and unit.
        """
        on_device = tensor.detach().to(self._trainer.strategy.root_device, copy=True)
        torch.distributed.all_reduce(on_device)
        return on_device.to(tensor.device)

    def mean_of(self, values: Tensor) -> float:
        """Average values of the batches, `sum_b weight_b * value_b`, over all ranks.

        Args:
            values: Shape `(B,)`, as `batch_values` returns them.

        Returns:
            The mean, in the unit of the values.
        """
        return float(self.total((values * values.new_tensor(self.weights)).sum()))

    def batch_values(self) -> Tensor:
        """Evaluate this rank's part of each batch.

        Returns:
            Losses in double precision, shape `(B,)`; of no weight where a batch is only there to keep step.
        """
        self.num_values += 1
        return self._sweep()[0]

    def value(self) -> float:
        """Evaluate the mean loss.

        Returns:
            The mean over all ranks, in the unit of the loss.
        """
        return self.mean_of(self.batch_values())

    def gradient(self) -> Tensor:
        """Take the gradient of the mean loss.

        Returns:
            The part held here, shape `(dim,)`, loss per parameter.
        """
        self.num_gradients += 1
        return self._sweep()[1]

    def value_and_gradient(self) -> tuple[float, Tensor]:
        """Take the mean loss and its gradient from one sweep.

        Returns:
            What `value` and `gradient` return.
        """
        self.num_gradients += 1
        values, gradient = self._sweep()
        return self.mean_of(values), gradient

    # Products are differences here, which no graph serves.
    slope = value_and_gradient

    def _sweep(self) -> tuple[Tensor, Tensor]:
        """Return this rank's batch values `(B,)` and its part of the gradient `(dim,)`."""
        values: list[float] = []
        total = torch.zeros(self.dim, dtype=self.dtype, device=self.device)

        def add(i: int, value: float, gradients: list[Tensor | None]) -> None:
            values.append(value)
            total.add_(self._vector(gradients), alpha=self._scale)

        self._passes.run(self._indices, add)
        return torch.tensor(values, dtype=torch.float64), total

    def _vector(self, gradients: list[Tensor | None]) -> Tensor:
        """Return the gradients of the measured parameters as one vector `(dim,)`."""
        vector = torch.zeros(self.dim, dtype=self.dtype, device=self.device)
        for target, i in zip(unflatten(vector, self.params), self._chosen, strict=True):
            found = gradients[i]
            if found is not None:
                target.copy_(found)
        return vector
