"""What a second derivative asks of torch: the memory of a kept graph, and readable refusals."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

# What torch 2.4 to 2.13 writes when an operation has no second derivative.
_NO_SECOND_DERIVATIVE = ("not implemented", "double backward", "differentiate twice", "_cudnn_rnn_backward")
_WAY_OUT = (
    'Take engine="differences" of HessianOperator, or, for attention, evaluate the loss under '
    "torch.nn.attention.sdpa_kernel(SDPBackend.MATH); for a compiled module, use the uncompiled one "
    "(module._orig_mod); for a recurrent network on a GPU, set torch.backends.cudnn.enabled = False"
)


class NoSecondDerivativeError(RuntimeError):
    """An operation of the loss has no second derivative in torch.

    Args:
        operation: What has none, in words.
    """

    def __init__(self, operation: str) -> None:
        self.operation = operation
        super().__init__(f"the loss has no second derivative in torch: {operation}. {_WAY_OUT}")


@contextmanager
def saved_bytes(outside: Sequence[Tensor]) -> Iterator[dict[int, int]]:
    """Note what autograd saves in this block, each storage once.

    Args:
        outside: Tensors that exist anyway, such as the parameters; they are left out.

    Yields:
        Bytes by address of the storage, filled while the block runs; complete after it.
    """
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield storages
    for tensor in outside:
        storages.pop(tensor.untyped_storage().data_ptr(), None)


def refuse_inference_mode() -> None:
    """Raise inside ``torch.inference_mode()``, which ``enable_grad`` cannot undo.

    Raises:
        RuntimeError: If inference mode is on.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "gradients cannot be taken inside torch.inference_mode(); measure outside of it, in Lightning for example "
            "in on_train_end and not in a validation or test hook"
        )


@contextmanager
def second_derivative() -> Iterator[None]:
    """Enable gradients in this block, and tell an operation without a second derivative from other errors.

    Yields:
        Nothing.

    Raises:
        NoSecondDerivativeError: If an operation in the block cannot be differentiated twice.
        RuntimeError: If inference mode is on.
    """
    refuse_inference_mode()
    try:
        with torch.enable_grad():
            yield
    except NoSecondDerivativeError:
        raise
    except RuntimeError as error:
        if not any(text in str(error).lower() for text in _NO_SECOND_DERIVATIVE):
            raise
        raise NoSecondDerivativeError(str(error).strip().splitlines()[0].rstrip(".")) from error
