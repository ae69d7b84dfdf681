"""The two matrices that products are taken with, batch by batch: exactly from a graph, or by differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from lbtrain.functional._batch_losses import BatchLosses, Gradient
from lbtrain.functional._convolution import FastConvolutions
from lbtrain.functional._graph_nodes import custom_functions, refuse_undifferentiable
from lbtrain.functional._hessian_graph import HessianGraph
from lbtrain.functional._kept_graphs import Graph
from lbtrain.functional.ascent import shifted
from lbtrain.functional.vectors import flatten

# Takes the batch's index, a factor and the pieces that it multiplies.
Add = Callable[[int, float, Gradient], object]


class Matrix(Protocol):
    """A matrix that is a weighted sum over batches; ``custom`` names the operations that torch cannot vouch for."""

    batches: BatchLosses
    gradients_per_difference: int
    custom: list[str]

    def build(self, i: int) -> Graph:
        """Return the graph from which the products of batch ``i`` are made."""
        ...

    def differences(self, indices: Sequence[int], unit: Sequence[Tensor], step: float, add: Add) -> None:
        """Add the products of some batches with a unit vector, by central differences at a step."""
        ...

    def gradient(self, graph: Graph) -> Gradient:
        """Return the gradient of the batch that a graph was built for."""
        ...

    def exact(self, graph: Graph, unit: Sequence[Tensor]) -> Tensor:
        """Return by double backward what the difference of ``sides`` comes near to, as one vector."""
        ...

    def sides(self, indices: Sequence[int], unit: Sequence[Tensor], step: float) -> tuple[Tensor, Tensor]:
        """Return what is differenced, ahead and behind, as two vectors."""
        ...

    def on(self, batches: BatchLosses) -> Matrix:
        """Return the same matrix of other batches or parameters."""
        ...


class HessianMatrix:
    """The second derivatives of the loss.

    Args:
        batches: The losses.
    """

    gradients_per_difference = 2

    def __init__(self, batches: BatchLosses) -> None:
        self.batches = batches
        self.custom: list[str] = []
        self._inspected: set[int] = set()
        self._backup: list[Tensor] = []

    def build(self, i: int) -> HessianGraph:
        """Return the gradient of batch ``i`` with its graph.

        Raises:
            NoSecondDerivativeError: If the graph holds an operation that cannot be differentiated twice.
        """  # noqa: DOC502 - refuse_undifferentiable raises it
        with FastConvolutions():
            loss = self.batches.evaluate(i)
        gradient = self.batches.gradient(loss, create_graph=True)
        if i not in self._inspected:
            refuse_undifferentiable([g for g in gradient if g is not None], loss)
            self.custom = self.custom or custom_functions(loss)
            self._inspected.add(i)
        return HessianGraph(gradient, loss.detach())

    def gradient(self, graph: Graph) -> Gradient:
        """Return the gradient that the graph is of."""
        return graph.gradient if isinstance(graph, HessianGraph) else ()

    def exact(self, graph: Graph, unit: Sequence[Tensor]) -> Tensor:
        """Return ``H u``, shape ``(n,)``."""
        params = self.batches.params
        return self._flat(graph.product(params, [x.to(p) for x, p in zip(unit, params, strict=True)], keep=True), unit)

    def sides(self, indices: Sequence[int], unit: Sequence[Tensor], step: float) -> tuple[Tensor, Tensor]:
        """Return the sums of the batches' gradients at ``w + h u`` and ``w - h u``, shape ``(n,)`` each."""
        found = [torch.zeros(sum(x.numel() for x in unit)).to(unit[0]) for _ in range(2)]
        self.differences(indices, unit, step, lambda _, f, rows: found[int(f < 0)].add_(self._flat(rows, unit)))
        return found[0], found[1]

    @staticmethod
    def _flat(rows: Gradient, like: Sequence[Tensor]) -> Tensor:
        return flatten([
            torch.zeros_like(x) if r is None else r.detach().to(x) for r, x in zip(rows, like, strict=True)
        ])

    def differences(self, indices: Sequence[int], unit: Sequence[Tensor], step: float, add: Add) -> None:
        """Add ``(g_b(w + h u) - g_b(w - h u)) / (2 h)``; two gradients of each batch."""
        params = self.batches.params
        self._backup = self._backup or [torch.empty_like(p, requires_grad=False) for p in params]
        for sign in (1.0, -1.0):
            offsets = [(sign * step * x).to(p) for x, p in zip(unit, params, strict=True)]
            with shifted(params, offsets, backup=self._backup), torch.enable_grad():
                for i in indices:
                    add(i, sign / (2 * step), self.batches.gradient(self.batches.evaluate(i), create_graph=False))

    def on(self, batches: BatchLosses) -> HessianMatrix:
        """Return the Hessian of other batches or parameters."""
        return HessianMatrix(batches)
