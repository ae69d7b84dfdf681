"""The mean training loss of a model that is cut into shards: gradients from whole passes, products by differences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lbtrain._lightning import Trainer
from lbtrain.callbacks._sharded_mean import ShardedMean
from lbtrain.callbacks._sharded_passes import Passes
from lbtrain.callbacks._shards import shard_of
from lbtrain.functional.ascent import shifted
from lbtrain.functional.curvature_along import CurvatureAlong, batch_sums, mean_of_batches
from lbtrain.functional.finite_differences import FiniteDifferenceMatvec
from lbtrain.functional.vectors import unflatten

# Far from each other, so that neighbouring seeds of users give other numbers on all shards.
_APART = 1_000_003


class ShardedLoss(ShardedMean):
    """A mean loss of sharded parameters with Hessian products; it stands in for a `MeanLoss`.

    The products are central differences of gradients, two gradients each: only an ordinary `.backward()` brings
    gradients to shards, and it cannot be differentiated again.

    Args:
        trainer: The Trainer, inside `traceless`.
        passes: Of the batches to measure on.
        indices: Of the passes that the loss is made of; None for all.
        chosen: Positions, among the parameters of the passes, of those that are measured; None for all.

    Attributes:
        engine: How products are made.
        reason: Why.
    """

    matrix = "hessian"
    engine = "differences"

    def __init__(
        self,
        trainer: Trainer,
        passes: Passes,
        indices: Sequence[int] | None = None,
        chosen: Sequence[int] | None = None,
    ) -> None:
        super().__init__(trainer, passes, indices, chosen)
        self.reason = (
            f"{type(trainer.strategy).__name__} cuts the parameters into shards, which only an ordinary backward "
            "reaches, and that cannot be differentiated again"
        )
        self._differences = FiniteDifferenceMatvec(self._gradient_of_differences, self.params, space=self.space)
        self._error: float | None = None

    @property
    def error(self) -> float:
        """Bound on the relative error of the products, from the check that chose the step along the gradient."""
        return self._choose_step()

    def generator(self, seed: int) -> torch.Generator:
        """Return a source of random vectors: each shard draws its own part.

        Args:
            seed: Of the whole vector.

        Returns:
            The same on processes that hold the same shard.
        """
        return torch.Generator().manual_seed(seed + _APART * shard_of(self._trainer))

    def hvp(self, v: Tensor) -> Tensor:
        """Multiply the Hessian with a vector, by central differences at a step that was chosen once.

        Args:
            v: The part held here, shape `(dim,)`.

        Returns:
            The part held here, shape `(dim,)`, loss per parameter for `v` in the unit of the parameters.
        """
        self._choose_step()
        self.num_matvecs += 1
        return self._differences(v)

    __call__ = hvp

    def curvature(self, v: Tensor) -> CurvatureAlong:
        """Return the mean of `v' H_b v` over batches with its standard error; costs a product.

        Args:
            v: The part held here, shape `(dim,)`.

        Returns:
            The curvature along `v`; the batches of all ranks that one pass evaluates count as one.
        """
        shares, curvatures = self._curvatures(v)
        return mean_of_batches(batch_sums(curvatures[shares > 0], shares[shares > 0]))

    def curvatures(self, v: Tensor) -> Tensor:
        """Return `v' H_b v` of each batch; costs a product.

        Args:
            v: The part held here, shape `(dim,)`.

        Returns:
            In double precision, shape `(B,)`, the same on every rank.
        """
        return self._curvatures(v)[1]

    def halves(self) -> tuple[ShardedLoss, ShardedLoss]:
        """Split the batches into those of even and of odd index.

        Returns:
            Two mean losses, with the step of this one's products.

        Raises:
            ValueError: If there is only one batch.
        """
        if len(self._indices) < 2:
            raise ValueError("halves need two batches or more; take a smaller batch size to measure with")
        return self._like(self._indices[::2], self._chosen), self._like(self._indices[1::2], self._chosen)

    def block(self, params: Sequence[Tensor]) -> ShardedLoss:
        """Return the same loss as a function of some of the parameters.

        Args:
            params: Of the module, or parts of them as in `params`.

        Returns:
            Its products cost as much as this one's, since every pass takes all gradients.

        Raises:
            ValueError: If one of them is not measured.
        """
        known = {id(p): i for kind in (self.originals, self.params) for p, i in zip(kind, self._chosen, strict=True)}
        if not all(id(p) in known for p in params):
            raise ValueError("params must be among the parameters that are measured; take them from `originals`")
        return self._like(self._indices, [known[id(p)] for p in params])

    def _like(self, indices: Sequence[int], chosen: Sequence[int]) -> ShardedLoss:
        self._choose_step()
        loss = ShardedLoss(self._trainer, self._passes, indices, chosen)
        loss._error, loss._differences.step = self._error, self._differences.step
        return loss

    def _choose_step(self) -> float:
        """Return the products' relative error, after choosing their step if this is the first time."""
        if self._error is None:
            step = self._differences.choose_step()
            direction = self.gradient()
            size = float(self.space.norm(unflatten(self._differences(direction), self.params)))
            length = float(self.space.norm(unflatten(direction, self.params)))
            self._error = step.error * length / size if size else float("inf") if step.error else 0.0
        return self._error

    def _gradient_of_differences(self) -> Tensor:
        self.num_gradients += 1
        return self._sweep()[1]

    def _curvatures(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return the share of each batch, over all ranks, and `v' H_b v` of each; shapes `(B,)`."""
        self._choose_step()
        self.num_matvecs += 1
        self.num_gradients += 2
        pieces = unflatten(v.detach().to(self.device, self.dtype).contiguous(), self.params)
        length = float(self.space.norm(pieces))
        step = self._differences.step.length
        unit = step / (length or 1.0)
        offsets = [(unit * x).to(p) for x, p in zip(pieces, self.params, strict=True)]
        ahead, behind = (self._slopes(pieces, [sign * x for x in offsets]) for sign in (1.0, -1.0))
        shares = self.total(torch.tensor(self.weights, dtype=torch.float64))
        sums = (ahead - behind) * (length / (2 * step))
        return shares, torch.where(shares > 0, sums / shares, 0.0)

    def _slopes(self, pieces: list[Tensor], offsets: list[Tensor]) -> Tensor:
        """Return `v . g_b` of each weighted batch at the weights plus the offsets, shape `(B,)`."""
        slopes: list[float] = []

        def add(i: int, value: float, gradients: list[Tensor | None]) -> None:
            rows = unflatten(self._vector(gradients), self.params)
            slopes.append(float(self.space.dot(pieces, rows)) * self._scale)

        with shifted(self.params, offsets):
            self._passes.run(self._indices, add)
        return torch.tensor(slopes, dtype=torch.float64)
