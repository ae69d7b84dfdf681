"""Inner product and norm of vectors that are lists of tensors, on one device or cut into shards."""

from __future__ import annotations

import math
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

    def products(self, rows: Tensor, vector: Tensor) -> Tensor:
        """Return the inner product of each row with a vector.

        Args:
            rows: Shape ``(m, n)``.
            vector: Shape ``(n,)``.

        Returns:
            Shape ``(m,)``, in the product of the two units.
        """
        return rows @ vector

    def norms(self, *vectors: Tensor) -> Tensor:
        """Return the Euclidean norm of each vector.

        Args:
            vectors: Shape ``(n,)`` each.

        Returns:
            One entry for each vector, in its unit.
        """
        return torch.stack([torch.linalg.vector_norm(v) for v in vectors])

    def norm_of(self, vector: Tensor) -> Tensor:
        """Return the Euclidean norm of a vector.

        Args:
            vector: Shape ``(n,)``.

        Returns:
            0-dim tensor, in the unit of the vector.
        """
        return self.norms(vector)[0]

    def dimension(self, here: int) -> int:
        """Return the number of entries of a whole vector.

        Args:
            here: How many of them this process holds.

        Returns:
            ``n``, the same on every process.
        """
        return here

    def largest(self, here: int) -> int:
        """Return a bound on the largest number of entries that a process holds.

        Args:
            here: How many of them this process holds.

        Returns:
            At least the largest number, the same on every process.
        """
        return here


class ShardedSpace(Space):
    """Measure vectors of which each process holds a part: `sum over processes of sum_i <l_i, r_i> / copies_i`.

    Every process of the group must call, also one that holds nothing.

    Args:
        copies: Per tensor, how many processes of the group hold the same part of it (1: each has its own).
        all_reduce: Sums a tensor over the processes; of few entries, and of the same shape on all of them.
        device: Where the sums are made, also by a process that holds nothing.
        sizes: Per tensor, its number of entries here; flat vectors with copies need it.
    """

    def __init__(
        self,
        copies: Sequence[int],
        all_reduce: Callable[[Tensor], Tensor],
        device: torch.device | str = "cpu",
        *,
        sizes: Sequence[int] | None = None,
    ) -> None:
        self._copies, self._sizes = copies, sizes
        self._all_reduce = all_reduce
        self._device = device
        self._shares: Tensor | None = None

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

    def products(self, rows: Tensor, vector: Tensor) -> Tensor:
        """Return the inner product of each whole row with the whole vector, by one sum over the processes.

        Args:
            rows: The parts held here, shape ``(m, n)``.
            vector: The part held here, shape ``(n,)``, all tensors after each other.

        Returns:
            Shape ``(m,)``, in the product of the two units.

        Raises:
            ValueError: If there are copies, and ``sizes`` does not say of what.
        """  # noqa: DOC502 - _shared raises it
        return self._all_reduce((rows @ self._shared(vector)).to(self._device, torch.float64))

    def norms(self, *vectors: Tensor) -> Tensor:
        """Return the Euclidean norm of each whole vector, by one sum over the processes.

        Args:
            vectors: The parts held here, shape ``(n,)`` each.

        Returns:
            One entry for each vector, in its unit.

        Raises:
            ValueError: If there are copies, and ``sizes`` does not say of what.
        """  # noqa: DOC502 - _shared raises it
        # The root first: the square of a number that float32 holds may be one that it does not.
        parts = [torch.linalg.vector_norm(self._shared(v, root=True)).to(self._device, torch.float64) for v in vectors]
        return self._all_reduce(torch.stack(parts) ** 2).sqrt()

    def dimension(self, here: int) -> int:
        """Return the number of entries of a whole vector.

        Args:
            here: How many of them this process holds.

        Returns:
            ``n``, the same on every process.
        """
        return round(float(self.norm_of(torch.ones(here, device=self._device))) ** 2)

    def largest(self, here: int) -> int:
        """Return a bound on the largest number of entries that a process holds, by one sum over the processes.

        Args:
            here: How many of them this process holds.

        Returns:
            At least the largest number, at most 1.14 times it with 64 processes; the same on every process.
        """
        power = torch.tensor([float(here) ** 32], dtype=torch.float64, device=self._device)
        return math.ceil(math.exp(math.log(max(1.0, float(self._all_reduce(power)))) / 32))

    def _shared(self, vector: Tensor, *, root: bool = False) -> Tensor:
        """Return each entry over the number of processes that hold it, or over the root of that number.

        Raises:
            ValueError: If there are copies, and ``sizes`` does not say of what.
        """
        if all(copies == 1 for copies in self._copies):
            return vector
        if self._shares is None or len(self._shares) != len(vector):
            if self._sizes is None or sum(self._sizes) != len(vector):
                raise ValueError(
                    f"some tensors are held by several processes: sizes must say how many entries each has, "
                    f"{len(vector)} together, got {self._sizes}; give sizes=[p.numel() for p in params]"
                )
            counts = torch.tensor(self._copies, dtype=torch.float64).reciprocal()
            self._shares = torch.repeat_interleave(counts, torch.tensor(self._sizes)).to(vector)
        shares = self._shares.to(vector)
        return vector * (shares.sqrt() if root else shares)

    def _total(self, parts: Sequence[Tensor]) -> Tensor:
        # In double precision whatever the tensors are: a process that holds nothing cannot know their type.
        here = torch.zeros((), dtype=torch.float64, device=self._device)
        for part, copies in zip(parts, self._copies, strict=True):
            here = here + part.double() / copies
        return self._all_reduce(here)


WHOLE = Space()
