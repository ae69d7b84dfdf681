"""Values, gradients and Hessian-vector products of a mean loss over weighted batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from torch import Tensor

from lbtrain.functional._batch_losses import BatchLosses, Gradient, Loss
from lbtrain.functional._batch_mean import BatchMean, add_rows
from lbtrain.functional._engines import DoubleBackward, Engine
from lbtrain.functional._kept_graphs import Budget, KeptGraphs
from lbtrain.functional._matrices import HessianMatrix, Matrix
from lbtrain.functional._parts import block_of, halves_of
from lbtrain.functional.curvature_along import CurvatureAlong, batch_sums, mean_of_batches
from lbtrain.functional.ranks import AllReduce, Gather
from lbtrain.functional.vectors import dot, unflatten

if TYPE_CHECKING:
    from typing_extensions import Self

_T = TypeVar("_T")


class MeanLoss(BatchMean):
    """The mean training loss ``L(w) = sum_b weight_b * L_b(w)`` over all batches of all ranks.

    A Hessian product is the gradient of ``g . v`` (Pearlmutter 1994, Neural Computation 6(1), eq. 2.1). The graph of
    ``g`` is kept for as many batches as ``graph_memory_bytes`` holds, so that a product costs about 2 gradients and not
    3; the other batches rebuild it each time. Kept graphs fall away by themselves when a parameter is written in place
    (writes through ``.data`` go unseen: call ``release``). ``.grad`` is never read or written.

    Args:
        params: Leaf parameters that require a gradient, ``n`` entries together, each listed once.
        losses: One function per local batch: the scalar loss of that batch at the current weights, with its graph.
        weights: One share per local batch, its samples over all samples of all ranks; all shares sum to 1.
        graph_memory_bytes: Bound on the memory of the kept graphs, bytes.
        all_reduce: Sums a tensor over ranks and returns it; None for one process. Ranks may hold different numbers of
            batches, none included: each product and each gradient calls it once. When one rank fails, all raise.
        gather: Returns the texts of all ranks, for the message of ranks that did not fail; None leaves the cause out.
        should_stop: Says whether the user asked to stop; products, gradients and values then raise ``Interrupted``, on
            all ranks if one of them says so.

    Attributes:
        num_values: Mean losses evaluated so far without a gradient.
        num_gradients: Gradients taken so far, those of finite differences and of a check of custom operations included.
        num_matvecs: Hessian products taken so far.

    Raises:
        ValueError: If there is no parameter, one of them has no gradient or is complex, or losses and weights differ in
            number.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        losses: Sequence[Loss],
        weights: Sequence[float],
        *,
        graph_memory_bytes: int = 2**30,
        all_reduce: AllReduce | None = None,
        gather: Gather | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        super().__init__(params, losses, weights, all_reduce=all_reduce, gather=gather, should_stop=should_stop)
        self.graph_memory_bytes = graph_memory_bytes
        matrix = self._matrix(self._batches)
        budget = Budget(graph_memory_bytes, self.params)
        self._engine: Engine = DoubleBackward(matrix, KeptGraphs(matrix.build, budget), self._tally.add)

    def _matrix(self, batches: BatchLosses) -> Matrix:
        """Return what products are taken with."""
        return HessianMatrix(batches)

    @property
    def kept_bytes(self) -> int:
        """Memory of the kept graphs, bytes."""
        return self._engine.kept_bytes

    def release(self) -> None:
        """Drop the kept graphs and their memory; the next product builds them again."""
        self._engine.release()

    def hvp(self, v: Tensor) -> Tensor:
        """Multiply the Hessian of the mean loss with a vector, ``H v = d(g . v)/dw``.

        Args:
            v: Shape ``(n,)``, the same on every rank.

        Returns:
            Shape ``(n,)``, loss per parameter for ``v`` in the unit of the parameters.

        Raises:
            ValueError: If ``v`` has another shape.
            NoSecondDerivativeError: If an operation of the loss has no second derivative.
        """  # noqa: DOC502 - unflatten and the autograd engine raise them
        pieces = self._pieces(v)
        self.num_matvecs += 1
        return self._decided(lambda: self._ranks.sum(lambda out: self._multiply(pieces, out), self._empty, self.dim))

    __call__ = hvp

    def slope(self) -> tuple[float, Tensor]:
        """Take the mean loss and its gradient where products follow: from the graphs that these will use.

        Returns:
            What ``value_and_gradient`` returns; the pass over the data is then saved with the first product.
        """
        return self._valued(*self._decided(self._slope))

    def _slope(self) -> tuple[Tensor, Tensor]:
        engine = self._engine
        if not (isinstance(engine, DoubleBackward) and isinstance(engine.matrix, HessianMatrix)):
            return self._gradient()
        self._tally.add(1)
        values: list[Tensor] = []

        def add(out: Tensor) -> None:
            values.clear()
            targets = unflatten(out, self.params)
            for (loss, rows), weight in zip(engine.slopes(), self.weights, strict=True):
                values.append(loss)
                add_rows(targets, rows, weight)

        gradient = self._ranks.sum(add, self._empty, self.dim)
        return self._stack(values), gradient

    def curvatures(self, v: Tensor) -> Tensor:
        """Take ``v' H_b v`` of each local batch, for the cost of one product.

        In several processes all of them call; an error on one rank waits for the next sum.

        Args:
            v: Shape ``(n,)``, the same on every rank.

        Returns:
            Shape ``(B,)`` in double precision, loss per squared parameter for a unit vector; their weighted mean over
            all ranks is ``v' H v``.
        """
        pieces = self._pieces(v)
        self.num_matvecs += 1
        return self._decided(lambda: self._ranks.local(lambda: self._quadratic(pieces), self._wide, len(self.losses)))

    def curvature(self, v: Tensor) -> CurvatureAlong:
        """Take the mean of ``v' H_b v`` over the batches of all ranks, for the cost of one product.

        Args:
            v: Shape ``(n,)``, the same on every rank.

        Returns:
            The mean with its standard error over batches, loss per squared parameter for a unit vector.
        """
        pieces = self._pieces(v)
        self.num_matvecs += 1

        def add(part: Tensor) -> None:
            values = self._quadratic(pieces)
            part += batch_sums(values, self._shares(values))

        return mean_of_batches(self._decided(lambda: self._ranks.sum(add, self._wide, 5)))

    def halves(self) -> tuple[Self, Self]:
        """Split the data: the local batches of even and of odd index, sharing the kept graphs.

        Returns:
            Two losses whose weights sum to 1 over all ranks, counting for themselves.

        Raises:
            ValueError: If one half would be empty on all ranks.
        """  # noqa: DOC502 - halves_of raises it
        return halves_of(self)

    def block(self, params: Sequence[Tensor]) -> Self:
        """Restrict gradient and Hessian to some parameters, such as one layer's; the others stay as they are.

        Kept graphs serve the block too. Its products walk only what lies between its parameters and the loss.

        Args:
            params: Some of ``params``, in any order.

        Returns:
            The loss as a function of these parameters, counting for itself.

        Raises:
            ValueError: If one of them is not among the parameters, or there is none.
        """  # noqa: DOC502 - block_of raises it
        return block_of(self, params)

    def _decided(self, work: Callable[[], _T]) -> _T:
        """Do what is done with products.

        Returns:
            The result of it.
        """
        return work()

    def _pieces(self, v: Tensor) -> list[Tensor]:
        return unflatten(v.detach().to(self._empty).contiguous(), self.params)

    def _multiply(self, pieces: list[Tensor], out: Tensor) -> None:
        """Add the weighted products of the local batches to a vector."""
        targets = unflatten(out, self.params)
        self._engine.multiply(pieces, lambda i, factor, rows: add_rows(targets, rows, self.weights[i] * factor))

    def _quadratic(self, pieces: list[Tensor]) -> Tensor:
        """Return ``v' H_b v`` of the local batches, shape ``(B,)``."""
        found = self._wide.new_zeros(len(self.losses))

        def add(i: int, factor: float, rows: Gradient) -> None:
            for row, x in zip(rows, pieces, strict=True):
                if row is not None:
                    found[i] += factor * dot([row.detach().to(found)], [x.to(found)])

        self._engine.multiply(pieces, add)
        return found
