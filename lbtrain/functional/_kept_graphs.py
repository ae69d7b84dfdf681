"""Graphs that stay between products, for as many batches as a memory budget holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from lbtrain.functional._batch_losses import Gradient
from lbtrain.functional._double_backward import saved_bytes


class Graph(Protocol):
    """What the product of one batch starts from."""

    def tensors(self) -> Sequence[Tensor]:
        """Return the tensors that the graph holds itself, beside those that autograd saved."""
        ...

    def product(self, params: Sequence[Tensor], pieces: Sequence[Tensor], *, keep: bool) -> Gradient:
        """Return the product with a vector in pieces like the parameters; None where it is zero."""
        ...

    def block(self, positions: Sequence[int]) -> Graph:
        """Return the graph for some of the parameters."""
        ...


class Budget:
    """Memory that several stores of graphs share.

    Args:
        limit: Bytes.
        watched: Tensors whose change in place makes every graph stale.
    """

    def __init__(self, limit: int, watched: Sequence[Tensor]) -> None:
        self.limit, self.watched, self.used = limit, tuple(watched), 0

    def versions(self) -> list[int]:
        """Return how often each watched tensor was written in place."""
        return [t._version for t in self.watched]


class KeptGraphs:
    """The graphs of the local batches, built when they are asked for.

    Args:
        build: Makes the graph of batch ``i``.
        budget: Memory for those that are kept.
    """

    def __init__(self, build: Callable[[int], Graph], budget: Budget) -> None:
        self.build, self.budget = build, budget
        self._kept: dict[int, Graph] = {}
        self._too_large: set[int] = set()
        self._bytes = 0
        self._versions = budget.versions()

    @property
    def num_bytes(self) -> int:
        """Memory of the graphs that are kept here, bytes."""
        return self._bytes

    def get(self, i: int) -> tuple[Graph, bool]:
        """Return the graph of batch ``i``, and whether it is kept."""
        if i in self._kept:
            return self._kept[i], True
        if i in self._too_large:
            return self.build(i), False
        with saved_bytes(self.budget.watched) as storages:
            graph = self.build(i)
        num_bytes = sum(storages.values()) + sum(t.nbytes for t in graph.tensors())
        if self.budget.used + num_bytes > self.budget.limit:
            self._too_large.add(i)
            return graph, False
        self.budget.used += num_bytes
        self._bytes += num_bytes
        self._kept[i] = graph
        return graph, True

    def peek(self, i: int) -> Graph | None:
        """Return the graph of batch ``i`` if it is kept and the weights are as they were."""
        return self._kept.get(i) if self._versions == self.budget.versions() else None

    def refresh(self) -> None:
        """Drop the graphs if a parameter was written in place since."""
        if self._versions != self.budget.versions():
            self.release()

    def release(self) -> None:
        """Drop the graphs and their memory."""
        self.budget.used -= self._bytes
        self._kept, self._too_large, self._bytes = {}, set(), 0
        self._versions = self.budget.versions()

    def __del__(self) -> None:
        # The memory goes back to those that share the budget, also when nobody called release.
        self.budget.used -= self._bytes


class SomeBatches(KeptGraphs):
    """A part of the batches of another store, whose graphs it shares.

    Args:
        parent: The store.
        indices: The batches.
    """

    def __init__(self, parent: KeptGraphs, indices: Sequence[int]) -> None:
        super().__init__(parent.build, parent.budget)
        self._parent, self._indices = parent, tuple(indices)

    def get(self, i: int) -> tuple[Graph, bool]:
        """Return the graph of the part's batch ``i``, and whether it is kept."""
        return self._parent.get(self._indices[i])

    def peek(self, i: int) -> Graph | None:
        """Return the graph of the part's batch ``i`` if it is kept."""
        return self._parent.peek(self._indices[i])

    def refresh(self) -> None:
        """Drop the shared graphs if a parameter was written in place since."""
        self._parent.refresh()


class SomeParameters(KeptGraphs):
    """Graphs for a part of the parameters: those of another store where it keeps them, others of its own.

    Args:
        parent: The store.
        positions: Where the parameters of the part stand among the parent's.
        build: Makes the graph of batch ``i`` for the part alone, which is smaller.
    """

    def __init__(self, parent: KeptGraphs, positions: Sequence[int], build: Callable[[int], Graph]) -> None:
        super().__init__(build, parent.budget)
        self._parent, self._positions = parent, tuple(positions)

    def get(self, i: int) -> tuple[Graph, bool]:
        """Return the graph of batch ``i`` for the part, and whether it is kept."""
        shared = self.peek(i)
        return super().get(i) if shared is None else (shared, True)

    def peek(self, i: int) -> Graph | None:
        """Return the graph of batch ``i`` if the parent or this store keeps it."""
        whole = self._parent.peek(i)
        return super().peek(i) if whole is None else whole.block(self._positions)
