"""Hessian-vector products by central differences of a gradient, for losses without a second derivative in torch."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lbtrain.functional._difference_step import StepSearch, roundings
from lbtrain.functional.ascent import shifted
from lbtrain.functional.space import WHOLE, Space
from lbtrain.functional.spectral_results import DifferenceStep
from lbtrain.functional.vectors import unflatten


def finite_difference_matvec(
    gradient: Callable[[], Tensor],
    params: Sequence[Tensor],
    *,
    step: float | None = None,
    space: Space = WHOLE,
) -> "FiniteDifferenceMatvec":
    """Make Hessian products from gradients alone, with a step that a Richardson check chose along the gradient.

    Args:
        gradient: Returns the gradient at the current weights, shape ``(n,)``, such as ``MeanLoss.gradient``.
        params: The weights, ``n`` entries together, each listed once; put back bit for bit.
        step: Distance by which the weights move, in units of parameter norm, such as the one of an earlier choice; None
            chooses it, for 11 gradients or more.
        space: How norms are taken; a ``ShardedSpace`` if the weights are parts of a whole, all processes calling.

    Returns:
        The product as a function ``v -> H v``, with its step and error in ``.step``.

    Raises:
        ValueError: If ``step`` is not positive, or there are no parameters, or the gradient has another shape.

    Example:
        >>> w = torch.tensor([1.0, 2.0], dtype=torch.float64)
        >>> hvp = finite_difference_matvec(lambda: w**3 / 3, [w])  # H = diag(w^2)
        >>> [round(x, 6) for x in hvp(torch.tensor([1.0, 1.0])).tolist()], hvp.step.error < 1e-6
        ([1.0, 4.0], True)
    """
    if step is not None and not 0 < step < math.inf:
        raise ValueError(f"step must be positive and finite, got {step}; None chooses one")
    matvec = FiniteDifferenceMatvec(gradient, params, space=space)
    if step is None:
        matvec.choose_step()
    else:
        matvec.step = DifferenceStep(float(step), math.nan, 0)
    return matvec


class FiniteDifferenceMatvec:
    """Hessian products ``D v = |v| (g(w + h u) - g(w - h u)) / (2 h)`` with ``u = v / |v|``: two gradients each.

    The error is ``h^2 |g'''[u, u, u]| / 6`` from truncation and about ``eps |g| / h`` from rounding. Usable as the
    `matvec` of ``lanczos``, ``trace`` and ``density``. The weights move in place and return bit for bit, on an
    error too; graphs kept from before are of no use afterwards. ``finite_difference_matvec`` makes one with its step.

    Args:
        gradient: Returns the gradient at the current weights, shape ``(n,)``, such as ``MeanLoss.gradient``.
        params: The weights, ``n`` entries together, each listed once.
        space: How norms are taken; a ``ShardedSpace`` if the weights are parts of a whole, all processes calling.

    Attributes:
        step: The step ``h`` and the error bound of the check that chose it.
        curvature: ``||D u||`` along the direction ``u`` of that check, ``||u|| = 1``, loss per squared parameter; NaN
            before it.
        num_gradients: Gradients taken so far.
        num_matvecs: Products returned so far.

    Raises:
        ValueError: If there are no parameters.
    """

    def __init__(self, gradient: Callable[[], Tensor], params: Sequence[Tensor], *, space: Space = WHOLE) -> None:
        if not params and space is WHOLE:
            raise ValueError("params must be one or more tensors, got none; pass the trained ones")
        self.gradient, self.params, self.space = gradient, tuple(params), space
        self.dim = sum(p.numel() for p in self.params)
        self.device = self.params[0].device if self.params else torch.device("cpu")
        # As in MeanLoss: half-precision weights get float32 vectors.
        self.dtype = torch.float64 if any(p.dtype == torch.float64 for p in self.params) else torch.float32
        self.num_gradients = self.num_matvecs = 0
        self.step = DifferenceStep(roundings(self.params, self.dtype) ** (1 / 3), math.nan, 0)
        self.curvature = math.nan
        self._backup = [torch.empty_like(p, requires_grad=False) for p in self.params]

    def __call__(self, v: Tensor) -> Tensor:
        """Multiply the Hessian with a vector.

        Args:
            v: Shape ``(n,)``.

        Returns:
            Shape ``(n,)``, loss per parameter for ``v`` in the unit of the parameters; NaN where ``v`` is not finite.

        Raises:
            ValueError: If ``v`` or the gradient has another shape.
        """  # noqa: DOC502 - unflatten and _take_gradient raise it
        self.num_matvecs += 1
        unit, length = self._unit(v)
        if length == 0:
            return torch.zeros_like(unit)
        if not math.isfinite(length):
            return torch.full_like(unit, math.nan)
        ahead, behind = self._sides(unit, self.step.length)
        return (ahead - behind).mul_(length / (2 * self.step.length))

    def choose_step(self, direction: Tensor | None = None) -> DifferenceStep:
        """Choose the step with the smallest error along a direction, by Richardson's check, and keep it.

        Args:
            direction: Shape ``(n,)``, any length. None takes the gradient, which lies mostly along sharp directions,
                where truncation is worst; fixed random numbers where the gradient is zero.

        Returns:
            The step, its error along that direction, and what the choice cost.

        Raises:
            ValueError: If ``direction`` is zero, or it or the gradient has another shape.
        """
        before = self.num_gradients
        unit, length = self._unit(self._sharp_direction() if direction is None else direction)
        if length == 0:
            raise ValueError("direction must not be zero; leave it out to take the gradient's")
        found = self.step.length, math.nan
        if math.isfinite(length):
            search = StepSearch(self._sides, self.params, unit, self.space)
            found = search.best()
            self.curvature = search.size(found[0])
        self.step = DifferenceStep(*found, self.num_gradients - before)
        return self.step

    def check(self, v: Tensor) -> float:
        """Bound the error of the product with a vector at the present step; takes six gradients.

        Args:
            v: Shape ``(n,)``, such as an eigenvector that was found.

        Returns:
            Bound on ``||D v - H v||``, loss per parameter for ``v`` in the unit of the parameters: likely, not certain.
            Infinite where a gradient is not finite or the weights' type is too coarse for the step, NaN where ``v`` is
            not finite.

        Raises:
            ValueError: If ``v`` or the gradient has another shape.
        """  # noqa: DOC502 - unflatten and _take_gradient raise it
        unit, length = self._unit(v)
        if length == 0 or not math.isfinite(length):
            return 0.0 if length == 0 else math.nan
        return length * StepSearch(self._sides, self.params, unit, self.space).error(self.step.length)

    def _sides(self, unit: Tensor, step: float) -> tuple[Tensor, Tensor]:
        """Return the gradients at ``w + h u`` and ``w - h u``, each of shape ``(n,)``; the weights return."""
        offsets = [(step * piece).to(p) for piece, p in zip(unflatten(unit, self.params), self.params, strict=True)]
        ahead = self._gradient_beside(offsets)
        if offsets:
            torch._foreach_neg_(offsets)
        return ahead, self._gradient_beside(offsets)

    def _gradient_beside(self, offsets: list[Tensor]) -> Tensor:
        """Return the gradient at the weights plus the offsets."""
        with shifted(self.params, offsets, backup=self._backup):
            return self._take_gradient()

    def _take_gradient(self) -> Tensor:
        """Return the gradient at the current weights.

        Raises:
            ValueError: If it has another shape than the parameters.
        """
        self.num_gradients += 1
        found = self.gradient()
        if found.shape != (self.dim,):
            raise ValueError(
                f"gradient must return shape ({self.dim},), the entries of params, got {tuple(found.shape)}; build it "
                "with flatten() from the gradients of the same parameters"
            )
        return found.detach().to(self.device, self.dtype, copy=True)

    def _sharp_direction(self) -> Tensor:
        """Return the gradient, or fixed random numbers where it is zero."""
        found = self._take_gradient()
        if self._unit(found)[1] != 0:
            return found
        return torch.randn(self.dim, generator=torch.Generator().manual_seed(0)).to(found)

    def _unit(self, v: Tensor) -> tuple[Tensor, float]:
        """Return ``v / |v|`` in the type of the vectors, and ``|v|``; a zero vector as it is."""
        v = v.detach().to(self.device, self.dtype).contiguous()
        length = float(self.space.norm(unflatten(v, self.params)))
        return (v / length if length else v), length
