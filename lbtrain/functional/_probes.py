"""Products of an unknown matrix with random vectors: drawn, checked and counted."""

from collections.abc import Callable

import torch
from torch import Tensor

from lbtrain.functional.progress import Progress, Watch
from lbtrain.functional.space import WHOLE, Space

MatVec = Callable[[Tensor], Tensor]


class NotFiniteError(ArithmeticError):
    """A product holds NaN or infinity, so that further ones are of no use."""


class Probes:
    """Draws vectors of ``n`` entries and multiplies a symmetric matrix with them.

    Args:
        matvec: Maps ``v`` of shape ``(n,)`` to ``H v``, same shape.
        dim: Number of rows ``n``.
        generator: Source of the vectors.
        dtype: Type of the vectors.
        device: Place of the vectors.
        space: How inner products are taken.
        report: Called with the number of products so far after each of them.
    """

    def __init__(
        self,
        matvec: MatVec,
        dim: int,
        generator: torch.Generator,
        dtype: torch.dtype,
        device: torch.device | str,
        space: Space = WHOLE,
        report: Callable[[int], None] | None = None,
    ) -> None:
        self.space, self.report = space, report
        self.matvec, self.dim, self.generator, self.num_matvecs = matvec, dim, generator, 0
        self.like = torch.empty(0, dtype=dtype, device=device)
        # Apple's device has no double precision.
        self._wide = torch.float32 if self.like.device.type == "mps" else torch.float64

    def signs(self) -> Tensor:
        """Return ``n`` independent entries of 1 or -1 (Rademacher)."""
        device = self.generator.device
        bits = torch.randint(0, 2, (self.dim,), generator=self.generator, device=device)
        return bits.to(self.like).mul_(2).sub_(1)

    def normals(self) -> Tensor:
        """Return ``n`` independent standard normal entries."""
        device = self.generator.device
        return torch.randn(self.dim, generator=self.generator, device=device, dtype=self.like.dtype).to(self.like)

    def unit(self, index: int) -> Tensor:
        """Return the unit vector ``e_index``."""
        vector = self.like.new_zeros(self.dim)
        vector[index] = 1.0
        return vector

    def product(self, v: Tensor) -> tuple[Tensor, float, float]:
        """Multiply once.

        Args:
            v: Shape ``(n,)``, contiguous.

        Returns:
            ``H v``, and the numbers ``v'H v`` and ``||H v||^2``.

        Raises:
            ValueError: If the product has another shape.
            NotFiniteError: If the product is not finite.
        """
        product = self.matvec(v)
        self.num_matvecs += 1
        if product.shape != v.shape:
            raise ValueError(f"matvec must return shape {tuple(v.shape)}, as its argument, got {tuple(product.shape)}")
        product = product.to(v)
        # The square of a number that float32 holds may be one that it does not.
        size = self.space.norm_of(product.to(self._wide))
        along, length = torch.cat([self.space.products(v[None], product).to(size), size[None]]).tolist()
        if not abs(along) + length < float("inf"):
            raise NotFiniteError
        if self.report is not None:
            self.report(self.num_matvecs)
        return product, along, length**2


def reporter(watch: Watch | None, stage: str, limit: int, before: int = 0) -> Callable[[int], None] | None:
    """Return what tells ``watch`` about products that have no residual, ``before`` of them done already."""
    if watch is None:
        return None
    nan = float("nan")
    return lambda count: watch(Progress(stage, before + count, limit, nan, nan))
