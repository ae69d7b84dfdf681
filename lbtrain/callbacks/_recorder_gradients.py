"""What the batch gradients of the steps behind a sample say: their noise, and where they go along the top direction."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lbtrain.callbacks._evidence import Evidence
from lbtrain.callbacks._noise_norms import wide
from lbtrain.functional.vectors import dot

# A choice: 45 pairs in a run, which tell a correlation of -0.3 from none; 28 pairs do not (two standard errors).
STEPS = 16


class NextGradients:
    """Look at the batch gradients of the steps that follow a sample, the first of which is at the same weights.

    Args:
        point: Index of the sample's point.
        params: The trainable parameters.
        gradient: Of the subset's loss, shape of the parameters each; None for no noise share.
        direction: The unit top eigenvector, shape of the parameters each; None for no products.
    """

    def __init__(
        self,
        point: int,
        params: Sequence[Tensor],
        gradient: Sequence[Tensor] | None,
        direction: Sequence[Tensor] | None,
    ) -> None:
        self._point, self._params, self._gradient, self._direction = point, params, gradient, direction
        self._products: list[Tensor] = []
        self._noise: Tensor | None = None

    @property
    def is_done(self) -> bool:
        """Whether no further gradient is wanted."""
        return self._gradient is None and (self._direction is None or len(self._products) >= STEPS)

    def see(self, factor: float) -> None:
        """Look at one step's gradient in `.grad`, without waiting for the device.

        Args:
            factor: Makes it the gradient of the mean loss over the step's batches.
        """
        if self.is_done:
            return
        batch = [_dense(p) for p in self._params]
        if self._direction is not None and len(self._products) < STEPS:
            self._products.append(_dot(batch, self._direction) * factor)
        if self._gradient is not None:
            pair = [_dot(batch, self._gradient) * factor, _dot(batch, batch) * factor**2]
            self._noise, self._gradient = torch.stack(pair), None

    def move(self, evidence: Evidence) -> None:
        """Wait for the device, and write what was seen into the point.

        Products end where a gradient was not finite: behind it they are no longer of successive steps.

        Args:
            evidence: Whose point it is.
        """
        found: list[float] = torch.stack(self._products).tolist() if self._products else []
        finite = next((i for i, value in enumerate(found) if not _is_finite(value)), len(found))
        point = evidence.points[self._point]
        projections, noise, product = tuple(found[:finite]), point.noise, point.product
        if self._noise is not None:
            product, square = self._noise.tolist()
            noise, product = noise_share(product, square), product if _is_finite(product) else None
        evidence.points[self._point] = replace(point, projections=projections, noise=noise, product=product)


class Following:
    """The steps behind all samples that are still looked at."""

    def __init__(self) -> None:
        self._each: list[NextGradients] = []
        self.is_looking = False
        """Whether some step is still to be looked at."""

    def add(self, gradients: NextGradients) -> None:
        """Look at the steps behind one more sample.

        Args:
            gradients: What looks.
        """
        self._each.append(gradients)
        self.is_looking = True

    def clear(self) -> None:
        """Look at no further step, since points have moved."""
        self._each, self.is_looking = [], False

    def see(self, factor: float) -> None:
        """Look at one step's gradient.

        Args:
            factor: Makes it the gradient of the mean loss over the step's batches.
        """
        for gradients in self._each:
            gradients.see(factor)
        self.is_looking = not all(g.is_done for g in self._each)

    def move(self, evidence: Evidence) -> None:
        """Write what was seen into the points.

        Args:
            evidence: Whose points they are.
        """
        for gradients in self._each:
            gradients.move(evidence)
        self._each = [g for g in self._each if not g.is_done]


def noise_share(product: float, square: float) -> float | None:
    """Return the share of a batch gradient that is noise, ``1 - <g_B, g> / |g_B|^2``.

    With another sample's gradient g, whose noise is independent of the batch's, the product's mean is the squared norm
    of the true gradient: nothing has to be known of either size.

    Args:
        product: <g_B, g>, squared loss per squared parameter.
        square: |g_B|^2, same unit.

    Returns:
        0 to 1, without unit; None for a gradient that is zero or not finite.
    """
    if not (_is_finite(product) and _is_finite(square) and square > 0):
        return None
    return min(max(1.0 - product / square, 0.0), 1.0)


def _is_finite(value: float) -> bool:
    return value - value == 0


def _dense(p: Tensor) -> Tensor:
    if p.grad is None:
        return torch.zeros_like(p)
    gradient = p.grad.detach()
    return gradient.to_dense() if gradient.is_sparse else gradient


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Return the inner product in a precision that holds squares of large gradients."""
    return dot(left, [r.to(t) for r, t in zip(right, left, strict=True)]).to(wide(left[0].device))
