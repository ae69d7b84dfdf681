"""The Hessian of a mean loss as a linear operator, for plain torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from lbtrain.functional._batch_losses import BatchLosses
from lbtrain.functional._batch_mean import listed_once
from lbtrain.functional._double_backward import NoSecondDerivativeError
from lbtrain.functional._engines import Differences, Step
from lbtrain.functional._matrices import HessianMatrix, Matrix
from lbtrain.functional._output_step import choose_output_step, relative
from lbtrain.functional._samples import samples_in
from lbtrain.functional.finite_differences import FiniteDifferenceMatvec
from lbtrain.functional.gauss_newton import GaussNewtonMatrix
from lbtrain.functional.hvp import MeanLoss
from lbtrain.functional.ranks import AllReduce, Gather

_T = TypeVar("_T")

_MATRICES: dict[str, Callable[[BatchLosses], Matrix]] = {"hessian": HessianMatrix, "ggn": GaussNewtonMatrix}
_ENGINES = ("auto", "autograd", "differences")


class HessianOperator(MeanLoss):
    """The Hessian of the mean loss over batches, or its generalized Gauss-Newton matrix, as a linear operator.

    ``operator @ v`` is ``H v``; nothing of the module is changed by it. Every sample weighs the same, whatever batch it
    is in. Usable wherever a ``MeanLoss`` is.

    The generalized Gauss-Newton matrix is ``J' (d2 loss / dz2) J`` with ``J = dz/dw`` and ``z`` the network's outputs
    (Schraudolph 2002, Neural Computation 14(7); Martens 2020, arXiv 1412.1193, section 8): what the loss functions of
    ``torch.nn.functional`` take, logits for a softmax or sigmoid and its likelihood; or what the loss returns beside
    itself, as ``(loss, outputs)`` or ``{"loss": ..., "outputs": ...}``.

    Args:
        loss: Maps a batch to its scalar loss at the current weights, with its graph.
        params: Leaf parameters that require a gradient, ``n`` entries together, each listed once, as
            ``model.parameters()`` gives them.
        batches: The batches of this rank, of any kind; read once and kept, so that each product sees the same data.
        sizes: Samples in each batch; None takes the first dimension of the first tensor found in it.
        reduction: How the loss reduces a batch: "mean" or "sum" over its samples. The operator is of the mean.
        matrix: "hessian" or "ggn".
        engine: "autograd" for double backward; "differences" for central differences of gradients, two a product;
            "auto" for double backward, and differences where an operation has no second derivative in torch.
        graph_memory_bytes: Bound on the memory of kept graphs, bytes.
        all_reduce: Sums a tensor over ranks and returns it; None for one process.
        gather: Returns the texts of all ranks.
        should_stop: Says whether the user asked to stop.

    Attributes:
        reason: Why ``engine`` is not double backward though "auto" was asked for, one sentence, or "".

    Raises:
        ValueError: If an argument is out of range, a parameter is there twice, or a batch's samples cannot be counted.

    Example:
        >>> import torch
        >>> from lbtrain.functional.lanczos import lanczos
        >>> X, y = torch.randn(100, 5), torch.randn(100)
        >>> model = torch.nn.Linear(5, 1)
        >>> H = HessianOperator(
        ...     lambda batch: torch.nn.functional.mse_loss(model(batch[0])[:, 0], batch[1]),
        ...     list(model.parameters()),
        ...     list(zip(X.split(32), y.split(32))),
        ... )
        >>> spectrum = lanczos(H, H.dim, top_k=2, generator=torch.Generator().manual_seed(0))
        >>> A = torch.cat([X, torch.ones(100, 1)], 1)
        >>> abs(spectrum.lambda_max - float(torch.linalg.eigvalsh(2 * A.T @ A / 100)[-1])) < 1e-3
        True
    """

    def __init__(
        self,
        loss: Callable[[Any], Any],
        params: Iterable[Tensor],
        batches: Iterable[Any],
        *,
        sizes: Sequence[int] | None = None,
        reduction: str = "mean",
        matrix: str = "hessian",
        engine: str = "auto",
        graph_memory_bytes: int = 2**30,
        all_reduce: AllReduce | None = None,
        gather: Gather | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        for name, value, allowed in (
            ("reduction", reduction, ("mean", "sum")),
            ("matrix", matrix, tuple(_MATRICES)),
            ("engine", engine, _ENGINES),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        self.matrix, self.reason, self._asked = matrix, "", engine
        batches = list(batches)
        counts: list[int] = []  # of all batches, before one of them is evaluated
        super().__init__(
            listed_once(params),
            [partial(_per_sample, loss, batch, counts, i) for i, batch in enumerate(batches)]
            if reduction == "sum"
            else [partial(loss, batch) for batch in batches],
            [1.0] * len(batches),
            graph_memory_bytes=graph_memory_bytes,
            all_reduce=all_reduce,
            gather=gather,
            should_stop=should_stop,
        )
        self.weights = self._weights(batches, sizes, counts)
        if engine == "differences":
            self._differ()

    @property
    def engine(self) -> str:
        """The engine in use, "autograd" or "differences"; "auto" settles with the first product."""
        return self._engine.name

    @property
    def error(self) -> float:
        """Bound on the relative error of a product along the gradient; 0 for autograd, NaN before the first product."""
        return self._engine.error

    def __matmul__(self, v: Tensor) -> Tensor:
        """Return ``H v``, as ``hvp`` does."""
        return self.hvp(v)

    def _matrix(self, batches: BatchLosses) -> Matrix:
        return _MATRICES[self.matrix](batches)

    def _weights(self, batches: Sequence[Any], sizes: Sequence[int] | None, counts: list[int]) -> tuple[float, ...]:
        """Return each batch's share of the samples of all ranks, noting its own; all raise if one cannot count."""

        def count(part: Tensor) -> None:
            counts.extend(_counts(batches, sizes))
            part += sum(counts)

        total = float(self._ranks.sum(count, self._wide, 1, stoppable=False))
        return tuple(size / total for size in counts)

    def _decided(self, work: Callable[[], _T]) -> _T:
        """Do what is done with products; again by differences where an operation has no second derivative.

        Returns:
            The result of it.

        Raises:
            NoSecondDerivativeError: If the engine was asked to be double backward.
        """
        try:
            self._engine.prepare(self._choose_step)
            return work()
        except NoSecondDerivativeError as error:
            if self._asked != "auto":
                raise
            self._differ()
            self.reason = f"products are taken by finite differences: {error.operation}"
        self._engine.prepare(self._choose_step)
        return work()

    def _differ(self) -> None:
        """Change to finite differences."""
        self._engine.release()
        self._engine = Differences(self._engine.matrix, self._tally.add, Step())

    def _choose_step(self) -> tuple[float, float]:
        """Return the step along the gradient, in units of parameter norm, and the relative error of products there."""
        if self.matrix == "hessian":
            search = FiniteDifferenceMatvec(self.gradient, self.params)
            step = search.choose_step()
            return step.length, relative(step.error, search.curvature)
        return choose_output_step(self._engine.matrix, self.gradient(), self._ranks, self._wide, self._tally.add)


def _per_sample(loss: Callable[[Any], Any], batch: Any, counts: Sequence[int], i: int) -> Any:
    """Return a summed loss as a mean, so that batches of any size compare; what it returns beside it stays."""
    found = loss(batch)
    if isinstance(found, Mapping):
        return {**found, "loss": found["loss"] / counts[i]} if "loss" in found else found
    if isinstance(found, tuple) and len(found) == 2:
        return found[0] / counts[i], found[1]
    return found / counts[i] if isinstance(found, Tensor) else found


def _counts(batches: Sequence[Any], sizes: Sequence[int] | None) -> list[int]:
    """Return the samples of each batch.

    Raises:
        ValueError: If they are not given and cannot be counted, or do not fit.
    """
    found = [samples_in(batch) for batch in batches] if sizes is None else list(sizes)
    if len(found) != len(batches) or not all(size is not None and size > 0 for size in found):
        raise ValueError(
            f"sizes must give a positive number of samples for each of {len(batches)} batches, got {found}; pass "
            "sizes=[...] where the batches hold no tensor with the samples in front"
        )
    return [int(size) for size in found if size is not None]
