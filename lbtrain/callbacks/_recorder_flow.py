"""Gradient, weights and update of each layer, as they are recorded."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from lbtrain.callbacks._evidence import Flow
from lbtrain.functional.gradient_flow import flow
from lbtrain.functional.layers import layer_name


def flow_by_layer(
    named: Sequence[tuple[str, Tensor]], gradient: Sequence[Tensor], before: Mapping[int, Tensor]
) -> dict[str, Flow]:
    """Return the root mean squares of gradient and weights by layer, and the last update beside the weights.

    Args:
        named: Names and parameters.
        gradient: Of the loss, one tensor for each.
        before: Weights before the last step by the id of the parameter; a layer with others has no update.

    Returns:
        By layer, in the order of the parameters; a layer of zero weights has no update beside them.
    """
    gradients: dict[str, list[Tensor]] = {}
    weights: dict[str, list[Tensor]] = {}
    updates: dict[str, list[Tensor]] = {}
    strange = set()
    for (name, param), slope in zip(named, gradient, strict=True):
        layer = layer_name(name)
        gradients.setdefault(layer, []).append(slope)
        weights.setdefault(layer, []).append(param.detach())
        if id(param) in before:
            updates.setdefault(layer, []).append(param.detach() - before[id(param)])
        else:
            strange.add(layer)
    found = flow(gradients, weights, {layer: own for layer, own in updates.items() if layer not in strange})
    return {name: Flow(seen.gradient, seen.weight, _finite(seen.update)) for name, seen in found.items()}


def _finite(ratio: float | None) -> float | None:
    """Return the ratio, where the weights that it is taken of are not zero."""
    return ratio if ratio is not None and math.isfinite(ratio) else None
