"""The loss on a line and on a plane through the weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lbtrain.functional._excursion import Excursion, mean_and_stderr
from lbtrain.functional.hvp import MeanLoss


@dataclass(frozen=True)
class LossLine:
    """The mean loss at ``w + d u``, ``|u| = 1``.

    Attributes:
        distances: Every ``d``, in units of parameter norm.
        values: The loss at each, in its unit; not finite where it diverges.
        stderr: Standard error over batches of its rise from the loss at the weights, same unit; NaN with fewer than 2
            batches.
        base: The loss at the weights.
        num_values: Values of the mean loss that were taken.
    """

    distances: tuple[float, ...]
    values: tuple[float, ...]
    stderr: tuple[float, ...]
    base: float
    num_values: int


@dataclass(frozen=True)
class LossPlane:
    """The mean loss at ``w + a u + b v``, where ``u`` and ``v`` are unit vectors at a right angle.

    Attributes:
        first: Every ``a``, in units of parameter norm.
        second: Every ``b``, in units of parameter norm.
        values: The loss, ``values[i][j]`` at ``first[i]`` and ``second[j]``, in its unit; not finite where it diverges.
        base: The loss at the weights.
        num_values: Values of the mean loss that were taken.
    """

    first: tuple[float, ...]
    second: tuple[float, ...]
    values: tuple[tuple[float, ...], ...]
    base: float
    num_values: int


def loss_along(loss: MeanLoss, direction: Tensor, distances: Sequence[float]) -> LossLine:
    """Evaluate ``L(w + d u)`` with ``u = direction / |direction|`` at each distance ``d``, by one value each.

    Args:
        loss: Mean loss over all batches of all ranks; its parameters are put back bit for bit, on an error too.
        direction: Shape ``(n,)``, not zero, the same on every rank; for example an eigenvector.
        distances: In units of parameter norm, either sign; ``line_distances`` picks them by the curvature.

    Returns:
        The loss at each, with the standard error over batches of its rise.

    Raises:
        ValueError: If the direction is zero or of another shape, or the distances are not finite or all zero.
    """  # noqa: DOC502 - _unit and Excursion raise it
    unit = _unit(loss, direction, "direction")
    trip = _trip(loss, distances, "distances", len(distances))
    values, errors = [], []
    with trip.restored():
        for distance in distances:
            trip.move(distance * unit)
            here = loss.batch_values()
            values.append(loss.mean_of(here))
            errors.append(mean_and_stderr(loss, here - trip.base_values)[1])
    return LossLine(tuple(map(float, distances)), tuple(values), tuple(errors), trip.base, 1 + len(values))


def loss_on_plane(
    loss: MeanLoss,
    first: Tensor,
    second: Tensor,
    distances: Sequence[float],
    *,
    second_distances: Sequence[float] | None = None,
) -> LossPlane:
    """Evaluate ``L(w + a u + b v)`` at each pair of distances; ``u`` is along ``first``, ``v`` what ``second`` adds.

    Args:
        loss: Mean loss over all batches of all ranks; its parameters are put back bit for bit, on an error too.
        first: Shape ``(n,)``, not zero, the same on every rank.
        second: Shape ``(n,)``, not along ``first``; what of it is along ``first`` is left out, so that distances in the
            plane are distances between weights.
        distances: Every ``a``, in units of parameter norm.
        second_distances: Every ``b``; None for those of ``a``.

    Returns:
        The loss at each pair.

    Raises:
        ValueError: If a direction is zero or of another shape, both are parallel, or the distances are not finite or
            all zero.
    """
    others = distances if second_distances is None else second_distances
    u, v = _unit(loss, first, "first"), _unit(loss, second, "second")
    for _ in range(2):  # twice: what rounding leaves after the first time is gone after the second
        v = v - torch.dot(u, v) * u
    # Parallel up to rounding: what is left has no direction.
    if float(torch.linalg.vector_norm(v)) <= 100 * torch.finfo(v.dtype).eps:
        raise ValueError("first and second must not be parallel, since they span no plane; pass two eigenvectors")
    v = _unit(loss, v, "second")
    _trip_distances(others, "second_distances")
    trip = _trip(loss, distances, "distances", len(distances) * len(others))
    with trip.restored():
        values = tuple(tuple(trip.value(a * u + b * v) for b in others) for a in distances)
    return LossPlane(
        tuple(map(float, distances)), tuple(map(float, others)), values, trip.base, 1 + len(distances) * len(others)
    )


def line_distances(
    curvature: float, rise: float, *, limit: float = math.inf, num_points: int = 41
) -> tuple[float, ...]:
    """Space distances evenly from ``-r`` to ``r`` with ``r = min(sqrt(2 rise / |curvature|), limit)``.

    So far out the quadratic ``curvature d^2 / 2`` has changed the loss by ``rise``.

    Args:
        curvature: ``v'Hv`` along the unit direction, loss per squared parameter; either sign.
        rise: In the unit of the loss, above 0; for example the loss itself.
        limit: Largest distance, in units of parameter norm, for directions that hardly curve.
        num_points: An odd number, at least 3, so that the weights themselves are among the points.

    Returns:
        ``num_points`` distances in units of parameter norm, ascending and symmetric.

    Raises:
        ValueError: If an argument is out of its range, or nothing bounds the distance.
    """
    if not rise > 0 or not limit > 0 or num_points < 3 or num_points % 2 == 0:
        given = f"rise = {rise}, limit = {limit} and num_points = {num_points}"
        raise ValueError(f"need rise > 0, limit > 0 and an odd num_points of at least 3, got {given}")
    r = min(math.sqrt(2 * rise / abs(curvature)) if curvature else math.inf, limit)
    if not 0 < r < math.inf:
        raise ValueError(f"nothing bounds the distance with curvature = {curvature} and limit = {limit}; set limit")
    half = num_points // 2
    return tuple(r * i / half for i in range(-half, half + 1))


def _unit(loss: MeanLoss, direction: Tensor, name: str) -> Tensor:
    """Return the direction with norm 1.

    Raises:
        ValueError: If it has another shape, or no finite positive norm.
    """
    vector = direction.detach().to(loss.device, loss.dtype)
    size = float(torch.linalg.vector_norm(vector)) if vector.shape == (loss.dim,) else math.nan
    if not 0 < size < math.inf:
        raise ValueError(
            f"{name} must be finite and not zero, of shape ({loss.dim},), got shape {tuple(direction.shape)} and norm "
            f"{size:g}; pass an eigenvector, for example"
        )
    return vector / size


def _trip(loss: MeanLoss, distances: Sequence[float], name: str, num_points: int) -> Excursion:
    """Return the way to all points and back."""
    return Excursion(loss, loss.params, name, _trip_distances(distances, name), num_points)


def _trip_distances(distances: Sequence[float], name: str) -> float:
    """Return the largest distance.

    Raises:
        ValueError: If there is none, one is not finite, or all are zero.
    """
    largest = max((abs(d) for d in distances), default=0.0)
    if not all(math.isfinite(d) for d in distances) or not largest > 0:
        raise ValueError(f"{name} must be finite and not all zero, got {list(distances)[:5]}; see line_distances")
    return largest
