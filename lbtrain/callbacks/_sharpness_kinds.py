"""The measures that `Sharpness` can take: which function, with which presets."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from lbtrain._lightning import MisconfigurationException
from lbtrain.callbacks._choice import plain_name
from lbtrain.functional.hvp import MeanLoss
from lbtrain.functional.results import SharpnessValue
from lbtrain.functional.scaled_sharpness import scaled_sharpness
from lbtrain.functional.sharpness import (
    adaptive_average_sharpness,
    adaptive_sharpness,
    average_sharpness,
    keskar_sharpness,
    keskar_subspace_sharpness,
    relative_flatness,
    sam_sharpness,
)
from lbtrain.functional.sharpness_results import RelativeFlatness, ScaledSharpness
from lbtrain.functional.weight_scale import weight_scale

# eta of Kwon et al. (2021), section 5, and their released code.
_ETA = 0.01


def adaptive_kwon(
    loss: MeanLoss,
    params: Sequence[Tensor],
    *,
    module: nn.Module,
    rho: float | None = None,
    p: float = 2,
    eta: float = _ETA,
    num_steps: int = 20,
    generator: torch.Generator,
) -> SharpnessValue:
    """Return the adaptive worst case with Kwon's scale: `|w| + eta` for parameters with "weight" in their name, else 1.

    Args:
        loss: Mean loss.
        params: Its parameters.
        module: Whose parameters they are.
        rho: Radius; None for that of `adaptive_sharpness`.
        p: 2 or infinity.
        eta: Added to the absolute weights.
        num_steps: Ascent steps.
        generator: Source of random directions.

    Returns:
        In the unit of the loss.
    """
    names = {id(q): name for name, q in module.named_parameters()}
    scale = weight_scale(params, eta=eta, adapted=["weight" in names[id(q)] for q in params])
    return adaptive_sharpness(loss, params, rho=rho, p=p, scale=scale, num_steps=num_steps, generator=generator)


def scaled_hessian(
    loss: MeanLoss,
    params: Sequence[Tensor],
    *,
    tol: float = 1e-3,
    max_matvecs: int = 300,
    generator: torch.Generator,
) -> ScaledSharpness:
    """Return the largest eigenvalue of D H D, D = diag(|w|).

    Args:
        loss: Mean loss.
        params: Its parameters.
        tol: Bound on the residual, relative.
        max_matvecs: Largest number of products.
        generator: Source of the start.

    Returns:
        In the unit of the loss.
    """
    return scaled_sharpness(loss, tol=tol, max_matvecs=max_matvecs, generator=generator)


def flatness_of_layer(
    loss: MeanLoss,
    params: Sequence[Tensor],
    *,
    module: nn.Module,
    layer: str | None = None,
    num_probes: int | None = 100,
    generator: torch.Generator,
) -> RelativeFlatness:
    """Return Petzka's relative flatness of one layer.

    Args:
        loss: Mean loss.
        params: Its parameters.
        module: Whose parameters they are.
        layer: Name of a submodule with a weight, or of a parameter; None for the last linear layer that the loss
            depends on.
        num_probes: Largest number of products; None for the exact sum.
        generator: Source of the probes.

    Returns:
        In the unit of the loss.
    """
    weight = weight_of(module, layer) if layer is not None else _last_in_use(loss, candidates(module))
    return relative_flatness(loss, weight, num_probes=num_probes, generator=generator)


def _last_in_use(loss: MeanLoss, weights: Sequence[Tensor]) -> Tensor:
    """Return the last of these weights that the loss depends on; every rank must ask.

    Raises:
        MisconfigurationException: If it depends on none.
    """
    in_use = torch.zeros(len(weights), dtype=torch.float64, device=loss.device)
    with torch.enable_grad():
        for evaluate in loss.losses:
            gradients = torch.autograd.grad(evaluate(), weights, allow_unused=True)
            in_use += torch.tensor([float(g is not None) for g in gradients]).to(in_use)
            if in_use[-1] > 0:
                break
    found = loss.total(in_use).nonzero()
    if not len(found):
        raise MisconfigurationException(
            "relative_flatness of layer=None: the loss depends on the weight of no linear layer: set layer to the name "
            "of a layer that it depends on"
        )
    return weights[int(found[-1])]


def weight_of(module: nn.Module, layer: str | None) -> Tensor:
    """Return the weight that relative flatness is asked of.

    Args:
        module: The module.
        layer: Name of a submodule with a weight, or of a parameter; None for the last linear layer, or if there is none
            the last parameter with two axes or more.

    Returns:
        The parameter.

    Raises:
        MisconfigurationException: If there is none, or it is not trained, or it has fewer than two axes.
    """
    named = _named(module)
    if layer is not None:
        found = named.get(layer, named.get(f"{layer}.weight"))
    else:
        found = next(reversed([None, *candidates(module)]))
    if found is None:
        raise MisconfigurationException(
            f"relative_flatness of layer={layer!r}: no trained parameter of that name has two axes or more; there are "
            f"{', '.join(named) or 'none'}"
        )
    return found


def candidates(module: nn.Module) -> list[Tensor]:
    """Return the weights of which the default of relative flatness is the last that is in use.

    Args:
        module: The module.

    Returns:
        Trained weights of linear layers, in order, or if there is none all trained parameters with two axes or more.
    """
    named = _named(module)
    linear = [m.weight for m in module.modules() if isinstance(m, nn.Linear)]
    trained = {id(p) for p in named.values()}
    return [w for w in linear if id(w) in trained] or list(named.values())


def _named(module: nn.Module) -> dict[str, Tensor]:
    return {plain_name(name): p for name, p in module.named_parameters() if p.requires_grad and p.dim() > 1}


@dataclass(frozen=True)
class Kind:
    """A definition of sharpness."""

    function: Callable[..., Any]
    """Called with the loss, its parameters, `generator=`, the arguments, and `module=` if it takes one."""
    preset: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that make the definition and cannot be chosen."""
    is_maximum: bool = True
    """Whether the mean over batches of each one's own value is another measure, `m_...`."""

    @property
    def arguments(self) -> dict[str, Any]:
        """Defaults of the arguments that can be chosen, by name."""
        parameters = inspect.signature(self.function).parameters.values()
        hidden = {"generator", "module", "scale", *self.preset}
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in hidden}

    @property
    def takes_module(self) -> bool:
        """Whether the function needs the module itself."""
        return "module" in inspect.signature(self.function).parameters


KINDS: Mapping[str, Kind] = MappingProxyType({
    "keskar": Kind(keskar_sharpness),
    "keskar_subspace": Kind(keskar_subspace_sharpness),
    "sam": Kind(sam_sharpness),
    "sam_one_step": Kind(sam_sharpness, {"num_steps": 1}),
    "sam_inf": Kind(sam_sharpness, {"p": math.inf}),
    "average": Kind(average_sharpness, is_maximum=False),
    "adaptive": Kind(adaptive_sharpness),
    "adaptive_inf": Kind(adaptive_sharpness, {"p": math.inf}),
    "adaptive_kwon": Kind(adaptive_kwon),
    "adaptive_average": Kind(adaptive_average_sharpness, is_maximum=False),
    "scaled_hessian": Kind(scaled_hessian, is_maximum=False),
    "relative_flatness": Kind(flatness_of_layer, is_maximum=False),
})
