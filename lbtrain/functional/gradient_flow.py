"""Gradient, weights and updates from layer to layer, and when the gradient vanishes or explodes on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lbtrain.functional._flow_findings import flow_findings as flow_findings
from lbtrain.functional.vectors import norm


@dataclass(frozen=True)
class LayerFlow:
    """Gradient, weights and update of one layer.

    Attributes:
        gradient: Root mean square of the gradient, loss per unit of parameter.
        weight: Root mean square of the weights.
        update: Norm of the update over the norm of the weights, without unit; None where no update is known.
    """

    gradient: float
    weight: float
    update: float | None = None


def flow(
    gradients: Mapping[str, Sequence[Tensor]],
    weights: Mapping[str, Sequence[Tensor]],
    updates: Mapping[str, Sequence[Tensor]] | None = None,
) -> dict[str, LayerFlow]:
    """Take each layer's root mean square gradient and weight, and its update over its weights.

    ``rms(g) = |g| / sqrt(n)``, ``rms(w) = |w| / sqrt(n)`` and ``|dw| / |w|`` with the norms over all ``n`` entries of
    the layer. A common advice is to look for updates of about 1e-3 of the weights.

    Args:
        gradients: By layer, in the order of the network; tensors of the layer's parameters, loss per unit of parameter.
        weights: The parameters themselves, by the same layers.
        updates: What the last step added to them; None where no step was seen. A layer that is missing has none.

    Returns:
        The three numbers by layer, in the order of `gradients`; all of them leave the device at once. The update of
        weights that are all 0 is infinite, or NaN where it is 0 too.

    Raises:
        ValueError: If a layer of the gradients has no weights or no entries.

    References:
        Karpathy (2016), CS231n notes, "Neural Networks Part 3: Learning and Evaluation", ratio of weights to updates.
    """
    rows, sizes = [], []
    for layer, own in gradients.items():
        sizes.append(sum(g.numel() for g in own))
        if layer not in weights or not sizes[-1]:
            raise ValueError(f"layer {layer!r} must have weights and a gradient with entries; leave it out of both")
        moved = (updates or {}).get(layer)
        parts = (own, weights[layer], moved or [own[0].new_full((), torch.nan)])
        rows.append(torch.stack([norm([t.detach() for t in part]).to(_wide(own[0])) for part in parts]))
    if not rows:
        return {}
    device, known, found = rows[0].device, updates or {}, {}
    norms = torch.stack([row.to(device) for row in rows])
    relative = (norms[:, 2] / norms[:, 1]).tolist()
    for i, (layer, (gradient, weight, _)) in enumerate(zip(gradients, norms.tolist(), strict=True)):
        root = float(sizes[i]) ** 0.5
        found[layer] = LayerFlow(gradient / root, weight / root, relative[i] if known.get(layer) else None)
    return found


def _wide(tensor: Tensor) -> torch.dtype:
    """Return the widest precision that the tensor's device has."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64
