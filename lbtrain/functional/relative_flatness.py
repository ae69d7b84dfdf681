"""Relative flatness of one layer: the trace of its Hessian blocks, weighted by products of the weights."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lbtrain.functional.hvp import MeanLoss
from lbtrain.functional.sharpness_results import RelativeFlatness


def relative_flatness(
    loss: MeanLoss, weight: Tensor, *, num_probes: int | None = 100, generator: torch.Generator
) -> RelativeFlatness:
    """Return ``kappa = sum_{s,s'} <w_s, w_s'> tr(H_ss')`` of the layer with the rows ``w_s``, one per neuron.

    ``H_ss'`` is the block ``d^2 L / dw_s dw_s'`` of the Hessian, ``m x m``. Each probe costs one product: for random
    signs x and z in ``R^m``, ``U = (W x) z'`` has ``E vec(U)' H vec(U) = kappa``. The exact sum over
    ``U = sigma_r v_r e_t'``, with the singular values and left vectors of ``W``, costs ``min(d, m) m`` products; it is
    taken where that is no more than the probes. Rescaling a whole layer of a ReLU network and undoing it in the next
    one changes nothing.

    Args:
        loss: Mean loss over all batches of all ranks; only the layer's part of its gradient is taken. Its own counters
            are not touched; its kept graphs serve here too.
        weight: One of its parameters, shape ``(d, m)``: d neurons, m inputs. Further axes count as inputs, so that a
            convolution is the affine map of its patches.
        num_probes: Largest number of products; None for the exact sum at any price, as in the paper.
        generator: Source of the signs; seeded alike on all ranks.

    Returns:
        In the unit of the loss, with the standard error over probes; NaN when a product is not finite.

    Raises:
        ValueError: If ``weight`` is not a parameter of the loss, has fewer than two axes, or ``num_probes`` is not
            positive.

    References:
        Petzka et al. (2021), arXiv 2001.00939, definition 3. Signs as in Hutchinson (1990), Comm. Stat. 19(2).

    Example:
        For ``|W x|^2`` it is ``2 |W|^2 |x|^2``.

        >>> W = torch.tensor([[1.0, 2.0]], dtype=torch.float64, requires_grad=True)
        >>> x = torch.tensor([3.0, 1.0], dtype=torch.float64)
        >>> loss = MeanLoss([W], [lambda: ((W @ x) ** 2).sum()], [1.0])
        >>> found = relative_flatness(loss, W, generator=torch.Generator().manual_seed(0))
        >>> round(found.value, 9), 2 * 5 * 10, found.exact
        (100.0, 100, True)
    """
    if not any(weight is p for p in loss.params) or weight.dim() < 2:
        raise ValueError(
            f"weight must be one of the {len(loss.params)} parameters of the loss with at least 2 axes, got shape "
            f"{tuple(weight.shape)}; pass the weight of a linear or convolutional layer, such as model.fc.weight"
        )
    if num_probes is not None and num_probes < 1:
        raise ValueError(f"num_probes must be at least 1 or None for the exact sum, got {num_probes}")
    W = weight.detach().to(loss.dtype).reshape(weight.shape[0], -1)
    exact = num_probes is None or min(W.shape) * W.shape[1] <= num_probes
    if not bool(torch.isfinite(W).all()):
        return RelativeFlatness(math.nan, math.nan, exact, 0)
    layer = loss.block([weight])
    directions = _all_directions(W) if exact else _probes(W, num_probes or 0, generator)
    terms = torch.stack([_quotient(layer, U.reshape(-1)) for U in directions])
    if exact:
        return RelativeFlatness(float(terms.sum()), 0.0, True, layer.num_matvecs)
    stderr = float(terms.std()) / math.sqrt(len(terms)) if len(terms) > 1 else math.nan
    return RelativeFlatness(float(terms.mean()), stderr, False, layer.num_matvecs)


def _quotient(layer: MeanLoss, u: Tensor) -> Tensor:
    """Return ``u' H u`` in double precision where the device has it."""
    wide = torch.float32 if u.device.type == "mps" else torch.float64
    return u.to(wide) @ layer.hvp(u.to(layer.device)).to(wide)


def _all_directions(W: Tensor) -> Iterator[Tensor]:
    """Yield matrices ``U`` over which ``vec(U)' H vec(U)`` sums to kappa, since ``W W' = sum_r sigma_r^2 v_r v_r'``."""
    V, sigma, _ = torch.linalg.svd(W, full_matrices=False)
    for column in (V * sigma).T:
        for t in range(W.shape[1]):
            U = torch.zeros_like(W)
            U[:, t] = column
            yield U


def _probes(W: Tensor, count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield random matrices ``U = (W x) z'`` with ``E vec(U)' H vec(U) = kappa``."""
    for _ in range(count):
        bits = torch.randint(0, 2, (2, W.shape[1]), generator=generator, device=generator.device)
        x, z = (2 * bits - 1).to(W)
        yield torch.outer(W @ x, z)
