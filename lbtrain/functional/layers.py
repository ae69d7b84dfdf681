"""Layers: the parameters that one module owns, weight and bias together."""

from collections.abc import Iterable

import torch
from torch import Tensor

from lbtrain.functional.vectors import norm, unflatten

Named = tuple[str, Tensor]

# Modules that torch puts around another one: compile, activation checkpoints, FSDP. They are no layer of the network.
_WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
# What owns parameters without being in any submodule.
_ROOT = "root"


def layer_name(parameter: str) -> str:
    """Return the path of the module that owns a parameter: its name without the last component.

    Wrappers of torch are left out, and a parametrized weight belongs to the module that uses it.

    Args:
        parameter: A name of ``named_parameters()``.

    Returns:
        The path with dots; ``root`` for a parameter of the outermost module.
    """
    path = parameter.split(".")[:-1]
    if "parametrizations" in path:
        path = path[: path.index("parametrizations")]
    return ".".join(part for part in path if part not in _WRAPPERS) or _ROOT


def layers(named_params: Iterable[Named]) -> tuple[tuple[str, tuple[Tensor, ...]], ...]:
    """Group parameters by the module that owns them.

    Args:
        named_params: Names and parameters, as of ``named_parameters()``; a tied one stands under its first name.

    Returns:
        Name and parameters of each layer, in the order in which the layers first occur.
    """
    found: dict[str, list[Tensor]] = {}
    for name, parameter in named_params:
        found.setdefault(layer_name(name), []).append(parameter)
    return tuple((name, tuple(parameters)) for name, parameters in found.items())


def layer_shares(vector: Tensor, named_params: Iterable[Named]) -> tuple[tuple[str, float], ...]:
    """Return which part of a vector lies in which layer, ``|v_layer|^2 / |v|^2``.

    Args:
        vector: Contiguous, shape ``(n,)``, for example an eigenvector; held whole by this process.
        named_params: Names and parameters with ``n`` entries together, in the order of the vector.

    Returns:
        Name and share of each layer, the largest first; the shares have no unit and sum to 1. NaN for a vector with
        entries that are not finite.

    Raises:
        ValueError: If the vector is zero or has another shape.
    """
    named = list(named_params)
    pieces = unflatten(vector.detach(), [parameter for _, parameter in named])
    sizes = torch.stack([norm([piece]) for piece in pieces]).double().cpu() if pieces else torch.zeros(0)
    total = float(torch.linalg.vector_norm(sizes))
    if total == 0:
        raise ValueError("vector must not be zero, since it then lies in no layer; pass an eigenvector")
    shares: dict[str, float] = {}
    for (name, _), size in zip(named, sizes.tolist(), strict=True):
        layer = layer_name(name)
        shares[layer] = shares.get(layer, 0.0) + (size / total) ** 2
    return tuple(sorted(shares.items(), key=lambda item: -item[1]))
