"""Two ways to multiply with a matrix of second derivatives: by double backward, or by differences of gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from lbtrain.functional._agreement import check_custom_functions
from lbtrain.functional._batch_losses import BatchLosses, Gradient
from lbtrain.functional._double_backward import refuse_inference_mode, second_derivative
from lbtrain.functional._hessian_graph import HessianGraph
from lbtrain.functional._kept_graphs import Graph, KeptGraphs, SomeBatches, SomeParameters
from lbtrain.functional._matrices import Add, Matrix
from lbtrain.functional.vectors import norm

Spend = Callable[[int], None]
Choose = Callable[[], tuple[float, float]]


class Engine(Protocol):
    """What makes the products."""

    name: str
    matrix: Matrix

    @property
    def kept_bytes(self) -> int:
        """Memory that is kept between products."""
        ...

    @property
    def error(self) -> float:
        """Bound on the relative error of a product."""
        ...

    def prepare(self, choose: Choose) -> None:
        """Do what all ranks have to do together before a product; ``choose`` finds a step and its relative error."""
        ...

    def multiply(self, pieces: Sequence[Tensor], add: Add) -> None:
        """Add the product of each local batch with a vector in pieces like the parameters."""
        ...

    def on_batches(self, batches: BatchLosses, indices: Sequence[int], spend: Spend) -> Engine:
        """Return the engine of some of the batches."""
        ...

    def on_parameters(self, batches: BatchLosses, positions: Sequence[int], spend: Spend) -> Engine:
        """Return the engine of some of the parameters."""
        ...

    def release(self) -> None:
        """Give back memory that is kept between products."""
        ...


class DoubleBackward:
    """Products from graphs, kept for as many batches as memory allows.

    Args:
        matrix: The matrix.
        graphs: The store of graphs.
        spend: Takes the number of gradients that a check of custom operations costs.
    """

    name, error = "autograd", 0.0

    def __init__(self, matrix: Matrix, graphs: KeptGraphs, spend: Spend) -> None:
        self.matrix, self.graphs, self.spend = matrix, graphs, spend
        self._vouched = False

    @property
    def kept_bytes(self) -> int:
        """Memory of the kept graphs."""
        return self.graphs.num_bytes

    def prepare(self, choose: Choose) -> None:
        """Do nothing: graphs are built where they are needed."""

    def multiply(self, pieces: Sequence[Tensor], add: Add) -> None:
        """Add the product of each local batch.

        Raises:
            RuntimeError: If an operation of the loss has no second derivative, or torch fails otherwise.
        """
        self.graphs.refresh()
        params = self.matrix.batches.params
        narrow = [x.to(p) for x, p in zip(pieces, params, strict=True)]
        try:
            with second_derivative():
                for i in range(len(self.matrix.batches)):
                    graph, keep = self._graph(i)
                    add(i, 1.0, graph.product(params, narrow, keep=keep))
                    del graph  # before the next one is built
        except RuntimeError:
            self.release()  # neither a graph without a second derivative nor the memory of one that did not fit stays
            raise

    def slopes(self) -> Iterator[tuple[Tensor, Gradient]]:
        """Build the graphs of the Hessian, and read off what they know already.

        Yields:
            The loss of each local batch and its gradient, which are not to be changed.

        Raises:
            RuntimeError: If an operation of the loss has no second derivative, or torch fails otherwise.
        """
        self.graphs.refresh()
        for i in range(len(self.matrix.batches)):
            try:
                with second_derivative():
                    graph, _ = self.graphs.get(i)
            except RuntimeError:
                self.release()
                raise
            if isinstance(graph, HessianGraph):
                yield graph.loss, graph.gradient

    def _graph(self, i: int) -> tuple[Graph, bool]:
        """Return the graph of batch ``i``, and whether it is kept; check the first one with custom operations."""
        graph, keep = self.graphs.get(i)
        if self._vouched or not self.matrix.custom:
            return graph, keep
        check_custom_functions(self.matrix, i, graph, self.matrix.custom, self.spend)
        self._vouched = True
        self.graphs.refresh()  # the check moved the weights, and put them back
        return self.graphs.get(i)

    def on_batches(self, batches: BatchLosses, indices: Sequence[int], spend: Spend) -> DoubleBackward:
        """Return the engine of some of the batches; it shares the graphs."""
        return self._part(self.matrix.on(batches), lambda matrix: SomeBatches(self.graphs, indices), spend)

    def on_parameters(self, batches: BatchLosses, positions: Sequence[int], spend: Spend) -> DoubleBackward:
        """Return the engine of some of the parameters; it takes the graphs that are kept."""
        return self._part(
            self.matrix.on(batches), lambda matrix: SomeParameters(self.graphs, positions, matrix.build), spend
        )

    def _part(self, matrix: Matrix, graphs: Callable[[Matrix], KeptGraphs], spend: Spend) -> DoubleBackward:
        part = DoubleBackward(matrix, graphs(matrix), spend)
        part._vouched = self._vouched
        return part

    def release(self) -> None:
        """Drop the kept graphs."""
        self.graphs.release()


@dataclass
class Step:
    """The step of finite differences, in units of parameter norm, and the relative error with it; NaN until chosen."""

    length: float = math.nan
    error: float = math.nan


class Differences:
    """Products by central differences, with a step that is chosen once.

    Args:
        matrix: The matrix.
        spend: Takes the number of gradients that each product costs.
        step: The step, which several engines may share.
    """

    name, kept_bytes = "differences", 0

    def __init__(self, matrix: Matrix, spend: Spend, step: Step) -> None:
        self.matrix, self.spend, self.step = matrix, spend, step

    @property
    def error(self) -> float:
        """Bound on the relative error along the direction of the check; NaN before the step is chosen."""
        return self.step.error

    def prepare(self, choose: Choose) -> None:
        """Choose the step, once."""
        if math.isnan(self.step.length):
            self.step.length, self.step.error = choose()

    def multiply(self, pieces: Sequence[Tensor], add: Add) -> None:
        """Add the product of each local batch; the weights return bit for bit."""
        refuse_inference_mode()
        length = float(norm(pieces))
        if length == 0:
            return
        unit = [x / length for x in pieces]
        self.spend(self.matrix.gradients_per_difference)
        self.matrix.differences(
            range(len(self.matrix.batches)),
            unit,
            self.step.length,
            lambda i, factor, rows: add(i, length * factor, rows),
        )

    def on_batches(self, batches: BatchLosses, indices: Sequence[int], spend: Spend) -> Differences:
        """Return the engine of some of the batches, with the same step."""
        return Differences(self.matrix.on(batches), spend, self.step)

    def on_parameters(self, batches: BatchLosses, positions: Sequence[int], spend: Spend) -> Differences:
        """Return the engine of some of the parameters, with the same step if it is chosen."""
        return Differences(self.matrix.on(batches), spend, replace(self.step))

    def release(self) -> None:
        """Do nothing: no memory is kept that a next product would build again."""
