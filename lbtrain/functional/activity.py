"""Dead and saturated units: how many a layer has on given samples, and when that is a problem of the run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lbtrain.functional._activations import ENDS, Ends, can_die, flat, silent
from lbtrain.functional._activity_findings import activity_findings as activity_findings
from lbtrain.functional._activity_findings import check_shares
from lbtrain.functional._histogram import Histogram, histogram


@dataclass(frozen=True)
class UnitActivity:
    """What the units of one layer did on the samples seen so far.

    Attributes:
        kind: The activation: relu, sigmoid, ...
        positions: Outputs of each unit that were seen: samples times positions.
        idle: Outputs of each unit that were silent (first row) and at an end of the range (second), shape (2, units).
        histogram: Of the layer's outputs, of a part of them where they are many.
    """

    kind: str
    positions: int
    idle: Tensor
    histogram: Histogram

    @property
    def units(self) -> int:
        """Units of the layer."""
        return self.idle.shape[1]

    def dead_and_saturated(self, *, sample_share: float = 0.95) -> tuple[int, int]:
        """Count the units that are silent on all samples, and those that are at an end on nearly all.

        Args:
            sample_share: Of a unit's outputs that must be at an end, without unit. A choice: one sample in twenty
                leaves a unit with a twentieth of its gradient, as `derivative_share` does.

        Returns:
            Units that are dead and that are saturated.

        Raises:
            ValueError: If the share is not above 0 and at most 1.
        """  # noqa: DOC502 - check_shares raises it
        check_shares(sample_share=sample_share)
        if not self.positions:
            return 0, 0
        dead = self.idle[0] == self.positions
        saturated = self.idle[1] >= sample_share * self.positions
        found = torch.stack([dead.sum(), saturated.sum()]).tolist()
        return int(found[0]), int(found[1])


def unit_activity(
    outputs: Tensor,
    kind: str,
    *,
    inputs: Tensor | None = None,
    unit_dim: int | None = None,
    derivative_share: float = 0.05,
    ends: Ends | None = None,
    before: UnitActivity | None = None,
) -> UnitActivity:
    """Count where each unit's activation has no derivative, ``|f'(x)| < derivative_share * max |f'|``.

    A relu unit is silent where its output is 0; gelu, silu, mish, hardswish and softplus where the input lies so far
    below 0 that the derivative is near 0. Bounded activations are at an end near their bounds. A kind without such a
    place, leaky_relu say, has neither.

    Args:
        outputs: Of the activation, shape (N, ...).
        kind: Its name: relu, relu6, sigmoid, tanh, hardtanh, hardsigmoid, elu, celu, selu, gelu, silu, mish,
            hardswish, softplus; any other is counted in the histogram alone.
        inputs: Of the activation, same shape; asked for by gelu, silu, mish, hardswish and softplus.
        unit_dim: Dimension of the units; None for the channels, dimension 1, with four dimensions or more, and for the
            last one with fewer.
        derivative_share: What counts as no derivative, without unit. A choice: a unit then learns 20 times slower than
            at its best, beyond |x| = 4.4 for sigmoid and 2.2 for tanh.
        ends: Bounds of the range where they are not the usual ones, as hardtanh and elu may have them.
        before: What earlier batches gave, which is added to.

    Returns:
        The counts; no value leaves the device but the histogram's.

    Raises:
        ValueError: If there are fewer than two dimensions, a share is out of range, or `before` has other units.
    """
    check_shares(derivative_share=derivative_share)
    if outputs.ndim < 2:
        raise ValueError(f"outputs must have samples and units, 2 dimensions or more, got shape {tuple(outputs.shape)}")
    dim = (1 if outputs.ndim >= 4 else -1) if unit_dim is None else unit_dim
    units, outputs = outputs.shape[dim], outputs.detach()
    if before is not None and (before.kind, before.units) != (kind, units):
        raise ValueError(f"before must be of {units} {kind} units, got {before.units} {before.kind} units")
    others = [i for i in range(outputs.ndim) if i != dim % outputs.ndim]
    quiet = (
        silent(kind, outputs, None if inputs is None else inputs.detach(), derivative_share) if can_die(kind) else None
    )
    idle = torch.stack([
        _count(mask, others, outputs, units) for mask in (quiet, flat(kind, outputs, derivative_share, ends))
    ])
    limits = ends or ENDS.get(kind, (None, None))
    bounded = None if limits[0] is None or limits[1] is None else (limits[0], limits[1])
    counted = histogram(outputs, before.histogram if before else None, limits=bounded)
    positions = outputs.numel() // units if units else 0
    if before is not None:
        idle, positions = idle + before.idle, positions + before.positions
    return UnitActivity(kind, positions, idle, counted)


def _count(mask: Tensor | None, dims: list[int], like: Tensor, units: int) -> Tensor:
    """Return how often each unit is in the mask."""
    if mask is None:
        return torch.zeros(units, dtype=torch.int64, device=like.device)
    return mask.sum(dim=dims)
