"""What reaches the first layer of a network: its weights see the inputs as the code before it has left them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lbtrain.callbacks._unit_watch import _is_compiled

# In training these give each column mean 0 and spread 1, whatever comes in; in eval mode they do so only later on.
_NORMS = frozenset({functional.batch_norm, functional.instance_norm})
_LAYERS = frozenset({functional.linear, functional.conv1d, functional.conv2d, functional.conv3d})


class FirstLayer:
    """What was seen of the first layer so far."""

    def __init__(self) -> None:
        self.is_normalized = False
        """Whether a normalization by column stands before all weights."""
        self._inputs: list[Tensor] = []
        self._weight: Any = None

    @property
    def inputs(self) -> Tensor | None:
        """What the first weights were given, all calls together; None where they were not seen."""
        if not self._inputs or len({t.shape[1:] for t in self._inputs}) > 1:
            return None
        return torch.cat(self._inputs)

    def see(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take a call in, if it is the first one or another of the same layer.

        Args:
            function: Of torch.
            args: Its arguments.
            kwargs: Its named ones.
        """
        if self.is_normalized or not (function in _NORMS or function in _LAYERS):
            return
        if self._weight is None and function in _NORMS:
            self.is_normalized = True
            return
        x, weight = (args[0], args[1]) if len(args) > 1 else (kwargs.get("input"), kwargs.get("weight"))
        if self._weight is None:
            self._weight = weight
        if weight is self._weight and isinstance(x, Tensor) and x.ndim > 1:
            self._inputs.append(x.detach())


@contextmanager
def first_layer(module: nn.Module) -> Iterator[FirstLayer]:
    """Watch the first dense or convolutional layer while a module is evaluated; nothing is attached to it.

    Args:
        module: The module; a compiled one is not looked into.

    Yields:
        What was seen.
    """
    seen = FirstLayer()
    if any(_is_compiled(part) for part in module.modules()):
        yield seen
        return
    with _Calls(seen):
        yield seen


class _Calls(TorchFunctionMode):
    """See each call of a torch function from outside; the functions that it calls itself are not seen."""

    def __init__(self, seen: FirstLayer) -> None:
        super().__init__()
        self._seen = seen

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not torch.compiler.is_compiling():
            self._seen.see(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))
