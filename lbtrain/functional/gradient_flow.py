"""Gradient, weights and updates from layer to layer, and when the gradient vanishes or explodes on the way."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lbtrain.functional._flow_findings import flow_findings as flow_findings


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
    known, found = updates or {}, {}
    parts = [part[layer] for layer in gradients for part in (gradients, weights, known) if layer in part]
    norms = iter(_norms([t for part in parts for t in part]))
    for layer, own in gradients.items():
        size = sum(g.numel() for g in own)
        if layer not in weights or not size:
            raise ValueError(f"layer {layer!r} must have weights and a gradient with entries; leave it out of both")
        gradient, weight, moved = (
            math.hypot(*itertools.islice(norms, len(part.get(layer, ())))) for part in (gradients, weights, known)
        )
        # Of weights of 0 it is infinite, or NaN where nothing moved them.
        update = (moved / weight if weight else moved * math.inf) if known.get(layer) else None
        found[layer] = LayerFlow(gradient / size**0.5, weight / size**0.5, update)
    return found


def _norms(tensors: Sequence[Tensor]) -> list[float]:
    """Return the norm of each tensor; all of them leave the device at once."""
    if not tensors:
        return []
    norms = torch._foreach_norm([t.detach().float() if t.itemsize < 4 else t.detach() for t in tensors], 2.0)
    device = norms[0].device
    wide = torch.float32 if device.type == "mps" else torch.float64
    found: list[float] = torch.stack([n.to(device, wide) for n in norms]).tolist()
    return found
