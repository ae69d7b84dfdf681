"""Cross-entropy of logits of length 1, for measures that a rescaling of the last layer must not change."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.overrides import TorchFunctionMode

# Least length to divide by, as in the released code of Andriushchenko et al. (2023).
_LEAST = 1e-10


class NormalizedLogits(TorchFunctionMode):
    """Inside this context, `torch.nn.functional.cross_entropy` sees `(z - mean z) / ||z - mean z||_2` for logits `z`.

    Cross-entropy can be lowered by longer logits alone, and every measure of sharpness changes with their length. With
    this, a network whose last layer is multiplied by any positive number has the same loss.

    Attributes:
        num_calls: How often `cross_entropy` was called inside, so that a loss without it can be told.

    References:
        Andriushchenko et al. (2023), arXiv 2302.07011, section 3 and the released code.

    Example:
        >>> import torch
        >>> logits, target = torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0])
        >>> with NormalizedLogits() as mode:
        ...     short, long = (cross_entropy(factor * logits, target) for factor in (1, 100))
        >>> torch.allclose(short, long), mode.num_calls
        (True, 2)
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_calls = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Pass each function on, `cross_entropy` with other logits.

        Args:
            func: The function that was called.
            types: Not used.
            args: Its arguments.
            kwargs: Its keyword arguments.

        Returns:
            What the function returns.
        """
        named = dict(kwargs or {})
        if func is cross_entropy:
            self.num_calls += 1
            if args:
                args = (normalized(args[0]), *args[1:])
            else:
                named["input"] = normalized(named["input"])
        return func(*args, **named)


def normalized(logits: Tensor) -> Tensor:
    """Return ``(z - mean z) / ||z - mean z||_2`` over the classes.

    Args:
        logits: As `cross_entropy` takes them: shape ``(C,)`` or ``(N, C, ...)``.

    Returns:
        Same shape, half precision as float32; zeros where all classes have equal logits.
    """
    axis = 0 if logits.dim() == 1 else 1
    wide = logits.float() if logits.element_size() < 4 else logits
    centred = wide - wide.mean(dim=axis, keepdim=True)
    length: Tensor = centred.norm(dim=axis, keepdim=True)
    return centred / length.clamp_min(_LEAST)
