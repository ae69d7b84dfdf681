"""Values, gradients and Hessian-vector products of a mean loss over weighted batches."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lbtrain.functional._double_backward import refuse_inference_mode, saved_bytes, second_derivative
from lbtrain.functional.vectors import unflatten

Loss = Callable[[], Tensor]
AllReduce = Callable[[Tensor], Tensor]
Gradient = tuple[Tensor | None, ...]


class MeanLoss:
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
            batches, none included: each product and each gradient calls it once.

    Attributes:
        num_values: Mean losses evaluated so far without a gradient.
        num_gradients: Gradients taken so far.
        num_matvecs: Hessian products taken so far.

    Raises:
        ValueError: If there is no parameter, one of them has no gradient, or losses and weights differ in number.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        losses: Sequence[Loss],
        weights: Sequence[float],
        *,
        graph_memory_bytes: int = 2**30,
        all_reduce: AllReduce | None = None,
    ) -> None:
        if not params or not all(p.requires_grad for p in params):
            raise ValueError(
                f"params must be one or more tensors that require a gradient, got {len(params)} tensors of which "
                f"{sum(not p.requires_grad for p in params)} do not; pass only the trained ones"
            )
        if len(losses) != len(weights):
            raise ValueError(f"need one weight per batch, got {len(losses)} losses and {len(weights)} weights")
        self.params, self.losses, self.weights = tuple(params), tuple(losses), tuple(float(w) for w in weights)
        self.graph_memory_bytes = graph_memory_bytes
        self.dim = sum(p.numel() for p in self.params)
        self.device = self.params[0].device
        # Half-precision weights get float32 vectors: a Krylov basis needs the digits.
        self.dtype = torch.float64 if any(p.dtype == torch.float64 for p in self.params) else torch.float32
        self.num_values = self.num_gradients = self.num_matvecs = 0
        self._all_reduce = all_reduce
        self.release()

    def release(self) -> None:
        """Drop the kept graphs and their memory; the next product builds them again."""
        self._kept: dict[int, Gradient] = {}
        self._too_large: set[int] = set()
        self._kept_bytes = 0
        self._versions = [p._version for p in self.params]

    def total(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over ranks.

        Args:
            tensor: Any shape, the same on every rank.

        Returns:
            The sum, same shape and unit; the tensor itself in a single process.
        """
        return tensor if self._all_reduce is None else self._all_reduce(tensor)

    @torch.no_grad()
    def batch_values(self) -> Tensor:
        """Evaluate each local batch without a graph.

        Returns:
            Losses in double precision, shape ``(B,)`` with the local number of batches, without a gradient.
        """
        self.num_values += 1
        return self._stack([self._evaluate(i) for i in range(len(self.losses))])

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
        values, gradient = self._gradient()
        return self.mean_of(values), gradient

    def hvp(self, v: Tensor) -> Tensor:
        """Multiply the Hessian of the mean loss with a vector, ``H v = d(g . v)/dw``.

        Args:
            v: Shape ``(n,)``, the same on every rank.

        Returns:
            Shape ``(n,)``, loss per parameter for ``v`` in the unit of the parameters.

        Raises:
            ValueError: If ``v`` has another shape.
            RuntimeError: If an operation of the loss has no second derivative.
        """  # noqa: DOC502 - unflatten and the autograd engine raise them
        if self._versions != [p._version for p in self.params]:
            self.release()
        self.num_matvecs += 1
        pieces = [x.to(p) for x, p in zip(unflatten(v.detach().contiguous(), self.params), self.params, strict=True)]
        product = torch.zeros(self.dim, dtype=self.dtype, device=self.device)
        try:
            with second_derivative():
                for i in range(len(self.losses)):
                    self._add_product(i, pieces, product)
        except RuntimeError:
            self.release()  # neither a graph without a second derivative nor the memory of one that did not fit stays
            raise
        return self.total(product)

    __call__ = hvp

    def _evaluate(self, i: int) -> Tensor:
        """Return the loss of batch ``i`` as a 0-dim tensor.

        Raises:
            ValueError: If it is not one number.
        """
        loss = self.losses[i]()
        if loss.numel() != 1:
            raise ValueError(f"losses[{i}] must return one number, got shape {tuple(loss.shape)}; reduce it first")
        return loss.reshape(())

    def _first_order(self, loss: Tensor, *, create_graph: bool) -> Gradient:
        """Return the gradient of one batch, None where the loss does not depend on a parameter."""
        if not loss.requires_grad:
            return (None,) * len(self.params)
        return torch.autograd.grad(loss, self.params, create_graph=create_graph, allow_unused=True)

    def _gradient(self) -> tuple[Tensor, Tensor]:
        """Return the local batch values ``(B,)`` and the gradient over all ranks ``(n,)``."""
        refuse_inference_mode()
        self.num_gradients += 1
        total = torch.zeros(self.dim, dtype=self.dtype, device=self.device)
        values = []
        for i, weight in enumerate(self.weights):
            with torch.enable_grad():
                loss = self._evaluate(i)
                gradient = self._first_order(loss, create_graph=False)
            values.append(loss.detach())
            self._add(total, gradient, weight)
        return self._stack(values), self.total(total)

    def _graph(self, i: int) -> tuple[Gradient, bool]:
        """Return the gradient of batch ``i`` with its graph, and whether that graph is kept."""
        if i in self._kept:
            return self._kept[i], True
        if i in self._too_large:
            return self._first_order(self._evaluate(i), create_graph=True), False
        with saved_bytes(self.params) as storages:
            gradient = self._first_order(self._evaluate(i), create_graph=True)
        num_bytes = sum(storages.values()) + sum(g.nbytes for g in gradient if g is not None)
        if self._kept_bytes + num_bytes > self.graph_memory_bytes:
            self._too_large.add(i)
            return gradient, False
        self._kept_bytes += num_bytes
        self._kept[i] = gradient
        return gradient, True

    def _add_product(self, i: int, pieces: list[Tensor], product: Tensor) -> None:
        """Add the weighted Hessian product of batch ``i`` in place."""
        gradient, keep = self._graph(i)
        pairs = [(g, x) for g, x in zip(gradient, pieces, strict=True) if g is not None and g.requires_grad]
        if pairs:
            outputs, directions = zip(*pairs, strict=True)
            rows = torch.autograd.grad(outputs, self.params, directions, retain_graph=keep, allow_unused=True)
            self._add(product, rows, self.weights[i])

    def _add(self, vector: Tensor, rows: Gradient, weight: float) -> None:
        """Add ``weight * rows`` to the vector in place."""
        for target, row in zip(unflatten(vector, self.params), rows, strict=True):
            if row is not None:
                target.add_(row.detach().to(target.device), alpha=weight)

    def _stack(self, values: list[Tensor]) -> Tensor:
        """Return the values of the local batches in double precision, shape ``(B,)``, empty without batches."""
        # Apple's device has no double precision.
        wide = torch.float32 if self.device.type == "mps" else torch.float64
        empty = torch.zeros(0, dtype=wide, device=self.device)
        return torch.stack([v.to(empty) for v in values]) if values else empty

    def mean_of(self, values: Tensor) -> float:
        """Average values of the local batches, ``sum_b weight_b * value_b``, over all ranks.

        Args:
            values: Shape ``(B,)``, as ``batch_values`` returns them.

        Returns:
            The mean, in the unit of the values.
        """
        return float(self.total((values * values.new_tensor(self.weights)).sum()))
