"""The generalized Gauss-Newton matrix from the scalar loss alone: ``J' (d2 loss / dz2) J`` with the outputs ``z``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lbtrain.functional._batch_losses import BatchLosses, Gradient
from lbtrain.functional._convolution import FastConvolutions
from lbtrain.functional._graph_nodes import custom_functions, nodes, refuse_undifferentiable
from lbtrain.functional._kept_graphs import Graph
from lbtrain.functional._matrices import Add
from lbtrain.functional._outputs import OutputWatch, tensors_in
from lbtrain.functional.ascent import shifted
from lbtrain.functional.vectors import flatten, norm

# The gradient through the outputs and the whole one may differ by this share: roundings, which grow with the network.
_ROUNDED = 1e-3
_SAY_OUTPUTS = (
    'return the outputs beside the loss: {"loss": loss, "outputs": outputs} from training_step or a function of the '
    "batch, or (loss, outputs) from the latter"
)


class GaussNewtonGraph:
    """What the product of one batch starts from: the outputs, the loss's gradient in them, and ``u -> J'u``.

    ``J v`` is the gradient of ``v . J'u`` in ``u``, on which it does not depend (double backward, Townsend 2017).

    Args:
        outputs: The outputs ``z``.
        slopes: ``d loss / dz`` with its graph, None where the loss does not depend on one.
        dummies: The ``u``, like the outputs.
        pullback: ``J'u`` with its graph, None where a parameter reaches no output.
    """

    def __init__(
        self, outputs: Sequence[Tensor], slopes: Gradient, dummies: Sequence[Tensor], pullback: Gradient
    ) -> None:
        self.outputs, self.slopes, self.dummies, self.pullback = outputs, slopes, dummies, pullback

    def tensors(self) -> Sequence[Tensor]:
        """Return what this graph holds itself."""
        return [t for t in (*self.outputs, *self.slopes, *self.dummies, *self.pullback) if t is not None]

    def bent(self, pieces: Sequence[Tensor]) -> Gradient:
        """Return ``(d2 loss / dz2) J v`` for each output, None where it is zero."""
        pairs = [(r, x) for r, x in zip(self.pullback, pieces, strict=True) if r is not None and r.requires_grad]
        slopes = [(k, s) for k, s in enumerate(self.slopes) if s is not None and s.requires_grad]
        if not pairs or not slopes:
            return (None,) * len(self.outputs)
        rows, directions = zip(*pairs, strict=True)
        moves = torch.autograd.grad(rows, self.dummies, directions, retain_graph=True, allow_unused=True)
        full = [torch.zeros_like(z) if m is None else m for m, z in zip(moves, self.outputs, strict=True)]
        return torch.autograd.grad(
            [s for _, s in slopes], self.outputs, [full[k] for k, _ in slopes], retain_graph=True, allow_unused=True
        )

    def product(self, params: Sequence[Tensor], pieces: Sequence[Tensor], *, keep: bool) -> Gradient:
        """Return ``J' (d2 loss / dz2) J v`` in pieces, None where it is zero."""
        return pulled_back(self.outputs, params, self.bent(pieces), keep=keep)

    def block(self, positions: Sequence[int]) -> GaussNewtonGraph:
        """Return the graph for the parameters at these positions."""
        return GaussNewtonGraph(self.outputs, self.slopes, self.dummies, tuple(self.pullback[k] for k in positions))


def pulled_back(outputs: Sequence[Tensor], params: Sequence[Tensor], slopes: Gradient, *, keep: bool) -> Gradient:
    """Return ``J's``, None where it is zero.

    Args:
        outputs: The outputs with their graph.
        params: The parameters.
        slopes: One entry ``s`` per output, or None.
        keep: Whether the graph serves again.

    Returns:
        One piece per parameter.
    """
    pairs = [(z, s) for z, s in zip(outputs, slopes, strict=True) if s is not None]
    if not pairs:
        return (None,) * len(params)
    tensors, given = zip(*pairs, strict=True)
    return torch.autograd.grad(tensors, params, given, retain_graph=keep, allow_unused=True)


class GaussNewtonMatrix:
    """The generalized Gauss-Newton matrix.

    Args:
        batches: The losses.
    """

    gradients_per_difference = 2

    def __init__(self, batches: BatchLosses) -> None:
        self.batches = batches
        self.custom: list[str] = []
        self._inspected: set[int] = set()

    def build(self, i: int) -> GaussNewtonGraph:
        """Return the graph of batch ``i``.

        Raises:
            NoSecondDerivativeError: If the graph holds an operation that cannot be differentiated twice.
            ValueError: If the outputs are not known, or the loss depends on the parameters past them.
        """  # noqa: DOC502 - what is called raises them
        with FastConvolutions():
            loss, outputs = self._evaluate(i)
        slopes = _slopes(loss, outputs, create_graph=True)
        dummies = [torch.zeros_like(z).requires_grad_() for z in outputs]
        params = self.batches.params
        pullback: Gradient = (None,) * len(params)
        if outputs:
            pullback = torch.autograd.grad(outputs, params, dummies, create_graph=True, allow_unused=True)
        if i not in self._inspected:
            refuse_undifferentiable([t for t in (*pullback, *slopes) if t is not None], loss)
            self.custom = self.custom or custom_functions(loss)
            self._inspected.add(i)
        return GaussNewtonGraph(outputs, slopes, dummies, pullback)

    def gradient(self, graph: Graph) -> Gradient:
        """Return the gradient of the graph's batch."""
        if not isinstance(graph, GaussNewtonGraph):
            return ()
        return pulled_back(graph.outputs, self.batches.params, graph.slopes, keep=True)

    def exact(self, graph: Graph, unit: Sequence[Tensor]) -> Tensor:
        """Return ``(d2 loss / dz2) J u`` as one vector."""
        if not isinstance(graph, GaussNewtonGraph):
            return torch.zeros(0)
        pieces = [x.to(p) for x, p in zip(unit, self.batches.params, strict=True)]
        return _flat(graph.bent(pieces), graph.outputs)

    def sides(self, indices: Sequence[int], unit: Sequence[Tensor], step: float) -> tuple[Tensor, Tensor]:
        """Return ``d loss / dz`` at ``w + h u`` and ``w - h u`` as one vector each."""
        ahead, behind = (self._slopes_beside(indices, unit, h) for h in (step, -step))
        return flatten([t for i in indices for t in ahead[i]]), flatten([t for i in indices for t in behind[i]])

    def differences(self, indices: Sequence[int], unit: Sequence[Tensor], step: float, add: Add) -> None:
        """Add ``J' (s(w + h u) - s(w - h u)) / (2 h)``, ``s = d loss / dz``; three forward passes and one backward."""
        ahead, behind = (self._slopes_beside(indices, unit, h) for h in (step, -step))
        for i in indices:
            with torch.enable_grad():
                outputs = self._evaluate(i)[1]
                bent = tuple((a - b) / (2 * step) for a, b in zip(ahead.pop(i), behind.pop(i), strict=True))
                add(i, 1.0, pulled_back(outputs, self.batches.params, bent, keep=False))

    def on(self, batches: BatchLosses) -> GaussNewtonMatrix:
        """Return the matrix of other batches or parameters."""
        return GaussNewtonMatrix(batches)

    def _slopes_beside(self, indices: Sequence[int], unit: Sequence[Tensor], step: float) -> dict[int, list[Tensor]]:
        """Return ``d loss / dz`` of some batches at ``w + h u``."""
        found = {}
        offsets = [(step * x).to(p) for x, p in zip(unit, self.batches.params, strict=True)]
        with shifted(self.batches.params, offsets), torch.enable_grad():
            for i in indices:
                loss, outputs = self._evaluate(i)
                slopes = _slopes(loss, outputs, create_graph=False)
                found[i] = [torch.zeros_like(z) if s is None else s for s, z in zip(slopes, outputs, strict=True)]
        return found

    def _evaluate(self, i: int) -> tuple[Tensor, list[Tensor]]:
        """Return the loss of batch ``i`` and the outputs that depend on the parameters.

        Raises:
            ValueError: If the outputs are not known, or the loss depends on the parameters past them.
        """
        with OutputWatch() as watch:
            loss, own = self.batches.with_outputs(i)
        outputs = watch.found() if own is None else tensors_in(own)
        if own is None and watch.linear:
            raise ValueError(
                "nll_loss got what does not come from log_softmax, and is linear in it, so that the Gauss-Newton "
                f"matrix would be zero; {_SAY_OUTPUTS}"
            )
        if loss.requires_grad and not outputs:
            raise ValueError(
                f"found no loss function of torch.nn.functional in the loss of batch {i}, so that the network's "
                f"outputs are not known; {_SAY_OUTPUTS}"
            )
        if i not in self._inspected:
            self._refuse_other_paths(loss, outputs, i)
        return loss, outputs

    def _refuse_other_paths(self, loss: Tensor, outputs: Sequence[Tensor], i: int) -> None:
        """Refuse a loss that depends on the parameters past the outputs.

        Raises:
            ValueError: If it does.
        """
        ends = frozenset(z.grad_fn for z in outputs if z.grad_fn is not None)
        reached = {id(getattr(node, "variable", None)) for node in nodes([loss], ends)}
        suspects = [p for p in self.batches.params if id(p) in reached and all(p is not z for z in outputs)]
        if not suspects:
            return
        whole = torch.autograd.grad(loss, suspects, retain_graph=True, allow_unused=True)
        through = pulled_back(outputs, suspects, _slopes(loss, outputs, create_graph=False, keep=True), keep=True)
        rest = norm([_flat(whole, suspects) - _flat(through, suspects)])
        if rest > _ROUNDED * norm([_flat(whole, suspects)]):
            raise ValueError(
                f"the loss of batch {i} depends on the parameters not only through the outputs, for example by a "
                "penalty on the weights or because it was not computed from the outputs returned beside it, and has no "
                'Gauss-Newton matrix then; leave the penalty out, or take matrix="hessian"'
            )


def _slopes(loss: Tensor, outputs: Sequence[Tensor], *, create_graph: bool, keep: bool | None = None) -> Gradient:
    """Return ``d loss / dz``, None where the loss does not depend on an output."""
    if not outputs:
        return ()
    return torch.autograd.grad(loss, outputs, create_graph=create_graph, retain_graph=keep, allow_unused=True)


def _flat(rows: Gradient, like: Sequence[Tensor]) -> Tensor:
    return flatten([torch.zeros_like(x) if r is None else r.detach() for r, x in zip(rows, like, strict=True)])
