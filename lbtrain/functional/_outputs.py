"""Which tensors are the network's outputs: what the loss functions of torch take, noted while a loss is evaluated."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

_NAMES = ("cross_entropy", "binary_cross_entropy", "binary_cross_entropy_with_logits", "kl_div")
_LOSSES = frozenset(
    f for name, f in vars(functional).items() if callable(f) and (name.endswith("_loss") or name in _NAMES)
)
# Likelihoods of probabilities or their logarithms: with the softmax or sigmoid before them they count as one function
# of the logits, in which they are convex, and without which the first is linear.
_LIKELIHOODS = frozenset([functional.nll_loss, functional.kl_div, functional.ctc_loss, functional.binary_cross_entropy])
_LINKS = frozenset({"log_softmax", "softmax", "sigmoid", "logsigmoid"})
# What may stand between a softmax and its likelihood.
_BETWEEN = (
    {"log", "clamp", "clamp_min", "clamp_max", "add", "__add__", "to", "float", "double", "clone", "contiguous"}
    | {"view", "view_as", "reshape", "flatten", "unflatten", "permute", "transpose", "swapaxes", "movedim"}
    | {"t", "squeeze", "unsqueeze", "__getitem__", "select", "narrow", "index_select", "masked_select"}
)


class OutputWatch(TorchFunctionMode):
    """Note the inputs of loss functions that depend on the parameters, each under a name of its own in the graph.

    Attributes:
        outputs: The noted tensors, in the order of the calls.
        linear: Whether a likelihood got what does not come from a softmax, so that it is linear in it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[Tensor] = []
        self.linear = False
        self._logits: list[Tensor] = []
        self._origins: Any = WeakTensorKeyDictionary()

    def found(self) -> list[Tensor]:
        """Return the outputs; without a loss function the inputs of ``log_softmax``."""
        return self.outputs or self._logits

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function, on outputs under names of their own.

        Returns:
            What it returns.
        """
        kwargs = kwargs or {}
        if func in _LOSSES:
            origins = func in _LIKELIHOODS
            self.linear |= func is functional.nll_loss and not self._known(args, kwargs)
            return func(
                *[self._note(a, origins) for a in args], **{k: self._note(a, origins) for k, a in kwargs.items()}
            )
        name = getattr(func, "__name__", "")
        if name in _LINKS and args and _differentiable(args[0]):
            return self._link(func, name, args, kwargs)
        found = func(*args, **kwargs)
        follows = name in _BETWEEN and args and isinstance(args[0], Tensor) and isinstance(found, Tensor)
        if follows and args[0] in self._origins:
            self._origins[found] = self._origins[args[0]]
        return found

    def _known(self, args: Iterable[Any], kwargs: dict[str, Any]) -> bool:
        """Tell whether all that a likelihood takes comes from a softmax, where it depends on the parameters.

        Returns:
            Whether it does.
        """
        origins = self._origins
        return all(a in origins for a in [*args, *kwargs.values()] if _differentiable(a))

    def _note(self, value: Any, origins: bool) -> Any:
        """Note a tensor that depends on the parameters.

        Returns:
            What stands for it.
        """
        if not _differentiable(value):
            return value
        if origins and value in self._origins:
            if not any(known is self._origins[value] for known in self.outputs):
                self.outputs.append(self._origins[value])
            return value
        # A tensor of its own: the same logits may also lead to another loss, or on into the network.
        self.outputs.append(value.view_as(value))
        return self.outputs[-1]

    def _link(self, func: Callable[..., Any], name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """Call a softmax or sigmoid and remember what it was of.

        Returns:
            What it returns.
        """
        logits = args[0].view_as(args[0])
        found = func(logits, *args[1:], **kwargs)
        self._origins[found] = logits
        if name == "log_softmax":
            self._logits.append(logits)
        return found


def _differentiable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in what a loss returns as its outputs.

    Args:
        value: A tensor, or a list, tuple or mapping of them at any depth.

    Returns:
        Those that depend on a parameter, in order.
    """
    if isinstance(value, Tensor):
        return [value] if value.requires_grad else []
    parts = value.values() if isinstance(value, dict) else value
    return [t for part in parts for t in tensors_in(part)] if isinstance(value, (dict, list, tuple)) else []
