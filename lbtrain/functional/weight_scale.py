"""How far each weight may move in a measure that rescales with the weights."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lbtrain.functional.hvp import MeanLoss


def weight_scale(params: Sequence[Tensor], *, eta: float = 0.0, adapted: Sequence[bool] | None = None) -> Tensor:
    """Return ``c_i = |w_i| + eta`` for the adapted tensors and 1 for the others.

    With the defaults ``c = |w|`` everywhere (Andriushchenko et al.). For Kwon et al. adapt the weights and not the
    biases, with ``eta = 0.01``. Only ``eta = 0`` makes a measure blind to a rescaling of weights that leaves the
    function of the network unchanged.

    Args:
        params: Any shapes, ``n`` entries together; not changed.
        eta: Added to the absolute weights, in their unit; keeps a weight of zero movable.
        adapted: Per tensor, whether it has the scale of its weights; None for all.

    Returns:
        New vector of shape ``(n,)``, in the unit of the weights (no unit where not adapted); half precision as float32.

    Raises:
        ValueError: If ``eta`` is negative, or ``adapted`` has another length than ``params``.

    References:
        Kwon et al. (2021), arXiv 2102.11600, section 3 and the released code. Andriushchenko et al. (2023), arXiv
        2302.07011, section 3.
    """
    if not eta >= 0:
        raise ValueError(f"eta must be at least 0, got {eta}; it is added to absolute weights")
    flags = [True] * len(params) if adapted is None else list(adapted)
    if len(flags) != len(params):
        raise ValueError(f"need one entry of adapted per tensor, got {len(flags)} for {len(params)} tensors of params")
    wide = torch.float64 if any(p.dtype == torch.float64 for p in params) else torch.float32
    absolute = [p.detach().to(wide).abs().reshape(-1) for p in params]
    return torch.cat([a + eta if flag else torch.ones_like(a) for a, flag in zip(absolute, flags, strict=True)])


def checked_scale(scale: Tensor, loss: MeanLoss) -> Tensor:
    """Return the scale in the type and place of the loss's vectors.

    Args:
        scale: Shape ``(n,)``, no entry below zero.
        loss: Mean loss of ``n`` parameters.

    Returns:
        Shape ``(n,)``, same unit.

    Raises:
        ValueError: If the shape is another one or an entry is negative.
    """
    if scale.shape != (loss.dim,) or bool((scale < 0).any()):
        raise ValueError(
            f"scale must have shape ({loss.dim},), one entry per parameter and none below 0, got shape "
            f"{tuple(scale.shape)} with smallest entry {float(scale.min()) if scale.numel() else 'none'}; "
            "build it with weight_scale(params)"
        )
    return scale.detach().to(loss.device, loss.dtype)
