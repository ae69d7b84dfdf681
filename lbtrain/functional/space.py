"""Inner product and norm of vectors that are lists of tensors, on one device or cut into shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lbtrain.functional.vectors import dot, norm


class Space:
    """Measure vectors that this process holds whole."""

    def norm(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the Euclidean norm, `sqrt(sum_i |t_i|^2)`.

        Args:
            tensors: Any shapes, together one vector.

        Returns:
            0-dim tensor, in the unit of the tensors.
        """
        return norm(tensors)

    def dot(self, left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
        """Return the inner product, `sum_i <l_i, r_i>`.

        Args:
            left: Any shapes, together one vector.
            right: As many tensors of the same shapes.

        Returns:
            0-dim tensor, in the product of the two units.
        """
        return dot(left, right)


class ShardedSpace(Space):
    """Measure vectors of which each process holds a part: `sum over processes of sum_i <l_i, r_i> / copies_i`.

    Every process of the group must call, also one that holds nothing.

    Args:
        copies: Per tensor, how many processes of the group hold the same part of it (1: each has its own).
        all_reduce: Sums a 0-dim tensor over the processes.
        device: Where the sums are made, also by a process that holds nothing.
    """

    def __init__(
        self, copies: Sequence[int], all_reduce: Callable[[Tensor], Tensor], device: torch.device | str = "cpu"
    ) -> None:
        self._copies = copies
        self._all_reduce = all_reduce
        self._device = device

    def norm(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the Euclidean norm of the whole vector, the same on every process.

        Args:
            tensors: The parts held here.

        Returns:
            0-dim tensor, in the unit of the tensors.
        """
        return self._total([norm([t]) ** 2 for t in tensors]).sqrt()

    def dot(self, left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
        """Return the inner product of the whole vectors, the same on every process.

        Args:
            left: The parts held here.
            right: As many tensors of the same shapes.

        Returns:
            0-dim tensor, in the product of the two units.
        """
        return self._total([dot([a], [b]) for a, b in zip(left, right, strict=True)])

    def _total(self, parts: Sequence[Tensor]) -> Tensor:
        # In double precision whatever the tensors are: a process that holds nothing cannot know their type.
        here = torch.zeros((), dtype=torch.float64, device=self._device)
        for part, copies in zip(parts, self._copies, strict=True):
            here = here + part.double() / copies
        return self._all_reduce(here)


WHOLE = Space()
