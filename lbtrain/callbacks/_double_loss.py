"""The training loss of a few samples in float64, as a function of copies of the weights: for differences of it."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lbtrain._lightning import LightningModule, MisconfigurationException, Trainer
from lbtrain.callbacks._attributes import plain_attributes_kept
from lbtrain.callbacks._batch import _rebuilt, batch_size, select
from lbtrain.callbacks._measure import refuse_sharded
from lbtrain.callbacks._objective import TrainingLoss
from lbtrain.callbacks._random_loss import own_generators
from lbtrain.callbacks._traceless import random_streams, traceless

DoubleLoss = tuple[Callable[[], Tensor], list[Tensor], list[str], torch.dtype]

# A gradient that is wrong is so for any sample; the cost grows with them. A choice.
_MAX_SAMPLES = 32


@contextmanager
def double_loss(trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int = 0) -> Iterator[DoubleLoss]:
    """Open the training loss of up to 32 samples of a batch in float64, without autocast and without a trace.

    The module holds float64 copies of its parameters, floating buffers and plain tensors inside; its own come back
    untouched. Each evaluation starts from the same random numbers, buffers and plain attributes, in the modes of the
    run, so the loss is a function of the copies. Where `training_step` fails in float64 the copies have the types of
    the originals. Under DDP the module is used without its wrapper, so each rank may evaluate alone.

    Args:
        trainer: The Trainer of the run.
        pl_module: Its module.
        batch: On the device, as `training_step` gets it.
        batch_idx: The index that `training_step` is told.

    Yields:
        The loss, 0-dim with its graph; the copies of the trained floating parameters, tied ones once; their names; the
        type that it is evaluated in: float64, or the coarsest of the copies.

    Raises:
        MisconfigurationException: If the module has manual optimization, no process holds whole parameters, or nothing
            is trained.
    """
    refuse_sharded(trainer, "the gradient check")
    step = _EagerLoss(trainer, pl_module)
    if not any(p.requires_grad and p.is_floating_point() for p in pl_module.parameters()):
        raise MisconfigurationException(
            "the gradient check needs parameters, and none of the module's requires a gradient: unfreeze some, or "
            "leave the check out"
        )
    size = batch_size(batch)
    if size is not None and size > _MAX_SAMPLES:
        batch = select(batch, range(_MAX_SAMPLES), size)
    with traceless(trainer, pl_module), torch.enable_grad(), own_generators(pl_module, None) as restart:
        streams = random_streams(pl_module.device)

        def begin() -> dict[str, Any]:
            restart()
            return streams

        dtype = torch.float64 if _runs(step, pl_module, batch, batch_idx, begin) else None
        with _Copies(pl_module, dtype) as copies, ExitStack() as opened:

            def loss() -> Tensor:
                opened.close()  # after the gradient, since plain tensors that the graph needs come back in place
                copies.renew_buffers()
                opened.enter_context(plain_attributes_kept(copies.modules))
                return step(_cast(batch, dtype), batch_idx, begin())

            params = [copies.of[id(p)] for p in copies.trained.values()]
            yield loss, params, list(copies.trained), dtype or _coarsest(params)


def _runs(
    step: TrainingLoss, pl_module: LightningModule, batch: Any, batch_idx: int, begin: Callable[[], dict[str, Any]]
) -> bool:
    """Return whether `training_step` can be evaluated in float64.

    It cannot where it makes tensors of another type for a matrix product, or on devices without float64; an error of
    another origin comes again in the module's own type, and is raised there.
    """
    with _Copies(pl_module, torch.float64) as copies, plain_attributes_kept(copies.modules):
        try:
            step(_cast(batch, torch.float64), batch_idx, begin())
        except Exception:
            return False
    return True


class _EagerLoss(TrainingLoss):
    """The training loss without autocast, DDP and compiled code, in the type of the weights."""

    def _step(self, *args: Any) -> Any:
        module, before = self._module, torch.get_default_dtype()
        weights = next(p.dtype for p in module.parameters() if p.is_floating_point())
        with ExitStack() as plain, torch.autocast(module.device.type, enabled=False):
            # Compiled code would be compiled again for float64, which takes longer than all evaluations together.
            if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
                plain.enter_context(torch.compiler.set_stance("force_eager"))
            torch.set_default_dtype(weights if weights in (torch.float64, torch.float32) else before)
            plain.callback(torch.set_default_dtype, before)
            return module.training_step(*args)


class _Copies:
    """A module that holds copies of its tensors while the context is open.

    Args:
        pl_module: The module.
        dtype: Of the copies of floating tensors; None copies their types, too.

    Attributes:
        modules: All modules, each once.
        trained: The parameters that are trained, by name, each once.
        of: The copy of a parameter, by the id of the parameter.
    """

    def __init__(self, pl_module: LightningModule, dtype: torch.dtype | None) -> None:
        self.modules = list(pl_module.modules())
        named = pl_module.named_parameters()
        self.trained = {name: p for name, p in named if p.requires_grad and p.is_floating_point()}
        self._dtype = dtype
        self.of: dict[int, Tensor] = {}

    def __enter__(self) -> "_Copies":
        found = [(m._parameters, name, p) for m in self.modules for name, p in m._parameters.items() if p is not None]
        for _, _, p in found:
            if id(p) not in self.of:
                self.of[id(p)] = nn.Parameter(self._copy(p), requires_grad=p.requires_grad)
        self._held: list[tuple[dict[str, Any], str, Any]] = list(found)
        self._buffers = [(m._buffers, name, b) for m in self.modules for name, b in m._buffers.items() if b is not None]
        plain = [(vars(m), name, v) for m in self.modules for name, v in vars(m).items() if isinstance(v, Tensor)]
        self._held += [*self._buffers, *plain]
        if self._dtype is not None:  # what `self.dtype` says
            self._held += [(vars(m), "_dtype", m._dtype) for m in self.modules if isinstance(m, LightningModule)]
        for holder, name, p in found:
            holder[name] = self.of[id(p)]
        for holder, name, value in plain:
            holder[name] = self._copy(value)
        for holder, name, _ in self._held:
            if name == "_dtype":
                holder[name] = self._dtype
        self.renew_buffers()
        return self

    def __exit__(self, *_: object) -> None:
        for holder, name, value in self._held:
            holder[name] = value

    def renew_buffers(self) -> None:
        """Give the module new copies of its buffers, since a graph may hold on to the last ones."""
        copies = {id(b): self._copy(b) for _, _, b in self._buffers}
        for holder, name, buffer in self._buffers:
            holder[name] = copies[id(buffer)]

    def _copy(self, tensor: Tensor) -> Tensor:
        floating = self._dtype is not None and tensor.is_floating_point()
        return tensor.detach().to(self._dtype if floating else tensor.dtype, copy=True)


def _cast(value: Any, dtype: torch.dtype | None) -> Any:
    """Return the batch with its floating tensors in another type."""
    if dtype is None:
        return value
    if isinstance(value, Tensor | PackedSequence):
        floating = (value if isinstance(value, Tensor) else value.data).is_floating_point()
        return value.to(dtype) if floating else value
    return _rebuilt(value, lambda part: _cast(part, dtype))


def _coarsest(params: Sequence[Tensor]) -> torch.dtype:
    return max((p.dtype for p in params), key=lambda dtype: torch.finfo(dtype).eps)
