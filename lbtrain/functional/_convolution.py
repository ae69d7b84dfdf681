"""Convolutions whose second derivative is made of the kernels of the first: on CPUs torch's own takes twice as long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

_DIMENSIONS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
_kernels = torch.ops.aten.convolution_backward
Triple = tuple[Tensor | None, Tensor | None, Tensor | None]


class _Convolution(Function):
    """``y = x * w + b``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, options: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.options, ctx.biased = options, b is not None
        return _convolve(x, w, b, options)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, w = ctx.saved_tensors
        needs = ctx.needs_input_grad
        found = _ConvolutionBackward.apply(  # type: ignore[no-untyped-call]
            g, x, w, ctx.options, (needs[0], needs[1], ctx.biased and needs[2])
        )
        return *found, None


class _ConvolutionBackward(Function):
    """``(g, x, w) -> (dL/dx, dL/dw, dL/db)``, bilinear in ``g`` and in ``w`` or ``x``."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, w: Tensor, options: tuple[Any, ...], needs: tuple[bool, ...]) -> Triple:
        ctx.save_for_backward(g, x, w)
        ctx.options, ctx.bias = options, needs[2]
        ctx.set_materialize_grads(False)
        return _differentiate(g, x, w, options, needs)

    @staticmethod
    def backward(ctx: Any, gx: Tensor | None, gw: Tensor | None, gb: Tensor | None) -> Any:
        if torch.is_grad_enabled():
            # A third derivative: torch's own operations have it.
            return (*_in_torch(ctx, gx, gw, gb), None, None)
        g, x, w = ctx.saved_tensors
        to_g = to_x = to_w = None
        needs_g, needs_x, needs_w = ctx.needs_input_grad[:3]
        if needs_g:
            parts = [_convolve(gx, w, None, ctx.options)] if gx is not None else []
            parts += [_convolve(x, gw, None, ctx.options)] if gw is not None else []
            parts += [gb.view(-1, *[1] * (g.ndim - 2)).expand_as(g)] if gb is not None else []
            if parts:
                # The first of several is new memory; the expanded bias is none, and comes last.
                to_g = parts[0]
                for part in parts[1:]:
                    to_g.add_(part)
        if needs_x and gw is not None:
            to_x = _differentiate(g, x, gw, ctx.options, (True, False, False))[0]
        if needs_w and gx is not None:
            to_w = _differentiate(g, gx, w, ctx.options, (False, True, False))[1]
        return to_g, to_x, to_w, None, None


def _in_torch(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the derivatives with a graph."""
    with torch.enable_grad():
        needs = tuple(c is not None for c in cotangents)
        # Under names of their own: the derivative in w is not to count the way from w through g.
        saved = [t.view_as(t) for t in ctx.saved_tensors]
        found = _differentiate(saved[0], saved[1], saved[2], ctx.options, needs)
        pairs = [(f, c) for f, c in zip(found, cotangents, strict=True) if f is not None and c is not None]
        outputs, given = zip(*pairs, strict=True)
        rows = torch.autograd.grad(outputs, saved, given, create_graph=True, allow_unused=True)
    return tuple(rows)


def _convolve(x: Tensor, w: Tensor, b: Tensor | None, options: tuple[Any, ...]) -> Tensor:
    stride, padding, dilation, groups = options
    return torch.convolution(x, w, b, stride, padding, dilation, False, [0] * len(stride), groups)


def _differentiate(g: Tensor, x: Tensor, w: Tensor, options: tuple[Any, ...], needs: tuple[bool, ...]) -> Triple:
    stride, padding, dilation, groups = options
    bias = [w.shape[0]] if needs[2] else None
    found: Triple = _kernels(g, x, w, bias, stride, padding, dilation, False, [0] * len(stride), groups, list(needs))
    return found


class FastConvolutions(TorchFunctionMode):
    """Evaluate convolutions so that a product with their second derivative is fast; the values stay the same."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function, a convolution by kernels of its own.

        Returns:
            What it returns.
        """
        if func not in _DIMENSIONS:
            return func(*args, **(kwargs or {}))
        found = _arguments(_DIMENSIONS[func], *args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if found is None else _Convolution.apply(*found)  # type: ignore[no-untyped-call]


def _arguments(
    dimensions: int,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Any, ...] | None:
    """Return what ``_Convolution`` takes, or None where torch's own way is the right one."""
    plain = (Tensor, torch.nn.Parameter)
    if (
        type(input) not in plain
        or type(weight) not in plain
        or isinstance(padding, str)
        or input.ndim != dimensions + 2
        or input.device.type != "cpu"
        or input.dtype not in (torch.float32, torch.float64)
        or input.dtype != weight.dtype
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
    ):
        return None
    lengths = [[v] * dimensions if isinstance(v, int) else list(v) for v in (stride, padding, dilation)]
    return input, weight, bias, (*([v * dimensions if len(v) == 1 else v for v in lengths]), groups)
