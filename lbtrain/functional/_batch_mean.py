"""The mean loss over weighted batches: values and gradients, summed over ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from lbtrain.functional._batch_losses import BatchLosses, Gradient, Loss
from lbtrain.functional._double_backward import refuse_inference_mode
from lbtrain.functional.ranks import AllReduce, Gather, Ranks
from lbtrain.functional.vectors import unflatten


class Tally:
    """A count that others add to without holding on to what is counted."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, count: int) -> None:
        """Add to the count."""
        self.count += count


class BatchMean:
    """Values and gradients of ``L(w) = sum_b weight_b * L_b(w)`` over all batches of all ranks.

    Args:
        params: Leaf parameters that require a gradient, ``n`` entries together, each listed once.
        losses: One function per local batch.
        weights: One share per local batch; all shares of all ranks sum to 1.
        all_reduce: Sums a tensor over ranks and returns it; None for one process.
        gather: Returns the texts of all ranks.
        should_stop: Says whether the user asked to stop.

    Raises:
        ValueError: If there is no parameter, one of them is listed twice, has no gradient or is complex, or losses and
            weights differ in number.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        losses: Iterable[Loss],
        weights: Iterable[float],
        *,
        all_reduce: AllReduce | None = None,
        gather: Gather | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        params, losses, weights = listed_once(params), tuple(losses), tuple(weights)
        if not params or not all(p.requires_grad for p in params):
            raise ValueError(
                f"params must be one or more tensors that require a gradient, got {len(params)} tensors of which "
                f"{sum(not p.requires_grad for p in params)} do not; pass only the trained ones"
            )
        if any(p.is_complex() for p in params):
            raise ValueError("params must be real; keep a complex one as the real and the imaginary part")
        if len(losses) != len(weights):
            raise ValueError(f"need one weight per batch, got {len(losses)} losses and {len(weights)} weights")
        self._ranks = Ranks(all_reduce, gather, should_stop)
        self._take(BatchLosses(params, losses), weights)

    @property
    def num_gradients(self) -> int:
        """Gradients taken so far, those of finite differences and of a check of custom operations included."""
        return self._tally.count

    def _take(self, batches: BatchLosses, weights: Sequence[float]) -> None:
        """Become the loss of these batches."""
        self._batches = batches
        self.params, self.losses, self.weights = batches.params, batches.losses, tuple(float(w) for w in weights)
        self.dim = sum(p.numel() for p in self.params)
        self.device = self.params[0].device
        # Half-precision weights get float32 vectors: a Krylov basis needs the digits.
        self.dtype = torch.float64 if any(p.dtype == torch.float64 for p in self.params) else torch.float32
        # Apple's device has no double precision.
        wide = torch.float32 if self.device.type == "mps" else torch.float64
        self._empty, self._wide = (torch.zeros(0, dtype=t, device=self.device) for t in (self.dtype, wide))
        self.num_values = self.num_matvecs = 0
        self._tally = Tally()

    def total(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over ranks.

        Args:
            tensor: Any shape, the same on every rank.

        Returns:
            The sum, same shape and unit; the tensor itself in a single process.
        """
        return self._ranks.total(tensor)

    def mean_of(self, values: Tensor) -> float:
        """Average values of the local batches, ``sum_b weight_b * value_b``, over all ranks.

        Args:
            values: Shape ``(B,)``, as ``batch_values`` returns them.

        Returns:
            The mean, in the unit of the values.
        """
        return float(self._ranks.sum(lambda part: part.add_((values * self._shares(values)).sum()), values, 1))

    def batch_values(self) -> Tensor:
        """Evaluate each local batch without a graph; an error on one rank of several waits for the next sum.

        Returns:
            Losses in double precision, shape ``(B,)`` with the local number of batches, without a gradient.
        """
        self.num_values += 1
        return self._ranks.local(self._values, self._wide, len(self.losses))

    def value(self) -> float:
        """Evaluate the mean loss.

        Returns:
            The mean over all ranks, in the unit of the loss.
        """
        return self.mean_of(self.batch_values())

    def gradient(self) -> Tensor:
        """Take the gradient of the mean loss.

        Returns:
            Shape ``(n,)``, loss per parameter; zero where the loss does not depend on a parameter.
        """
        return self._gradient()[1]

    def value_and_gradient(self) -> tuple[float, Tensor]:
        """Take the mean loss and its gradient from one pass; the value is summed over ranks in double precision.

        Returns:
            What ``value`` and ``gradient`` return.
        """
        return self._valued(*self._gradient())

    def _valued(self, values: Tensor, gradient: Tensor) -> tuple[float, Tensor]:
        return self.mean_of(values), gradient

    def _shares(self, like: Tensor) -> Tensor:
        return like.new_tensor(self.weights)

    @torch.no_grad()
    def _values(self) -> Tensor:
        return self._stack([self._batches.evaluate(i) for i in range(len(self._batches))])

    def _gradient(self) -> tuple[Tensor, Tensor]:
        """Return the local batch values ``(B,)`` and the gradient over all ranks ``(n,)``."""
        self._tally.add(1)
        values: list[Tensor] = []

        def add(out: Tensor) -> None:
            refuse_inference_mode()
            targets = unflatten(out, self.params)
            for i, weight in enumerate(self.weights):
                with torch.enable_grad():
                    loss = self._batches.evaluate(i)
                    rows = self._batches.gradient(loss, create_graph=False)
                values.append(loss.detach())
                add_rows(targets, rows, weight)

        gradient = self._ranks.sum(add, self._empty, self.dim)
        return self._stack(values), gradient

    def _stack(self, values: list[Tensor]) -> Tensor:
        """Return the values of the local batches in double precision, shape ``(B,)``, empty without batches."""
        return torch.stack([v.detach().to(self._wide) for v in values]) if values else self._wide


def listed_once(params: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Return the parameters, each of which must be there once: a second time would double its part of every product.

    Raises:
        ValueError: If it is one tensor in place of several, or one of them is there twice.
    """
    if isinstance(params, Tensor):
        raise ValueError(f"params must be several tensors, got one of shape {tuple(params.shape)}; pass [tensor]")
    listed = tuple(params)
    double = len(listed) - len({id(p) for p in listed})
    if double:
        raise ValueError(
            f"params must list each tensor once, got {len(listed)} of which {double} repeat an earlier one; "
            "list(dict.fromkeys(params)) leaves the repeats out"
        )
    return listed


def add_rows(targets: Sequence[Tensor], rows: Gradient, factor: float) -> None:
    """Add a multiple of the rows in place."""
    for target, row in zip(targets, rows, strict=True):
        if row is not None:
            target.add_(row.detach().to(target.device), alpha=factor)
