"""Plain attributes of modules: kept while a module is evaluated, and put back in place."""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lbtrain._lightning import LightningModule

# Attributes that `training_step` has no business with: nn.Module's own, Lightning's own, and what torchmetrics fixes
# when a state is added. Parameters, buffers and train/eval mode are among nn.Module's own, and are not kept here.
_INTERNALS = frozenset(nn.Module().__dict__) | {"_defaults", "_persistent", "_reductions"}
_LIGHTNING_INTERNALS = _INTERNALS | frozenset(LightningModule().__dict__)
# The layers of torch keep all that changes in buffers; they are most of a model's modules.
# FSDP of the first kind sets attributes of its wrappers in their first forward pass, and needs them ever after.
_LEFT_ALONE = ("torch.nn.modules.", "torch.distributed.fsdp.")
# Tensors above this many elements (a data set kept on the module, say) are watched instead of copied.
_COPY_LIMIT = 2**20
# Containers with more entries than this (a vocabulary, a sample list) are kept whole, but not searched for containers
# inside.
_NESTED_LIMIT = 1000
_CONTAINERS = (list, dict, deque, set)


@contextmanager
def plain_attributes_kept(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Put back, in place, what an evaluation changes of the modules' plain attributes.

    Among them are the states and counters of torchmetrics, and lists to which `training_step` appends. Objects of other
    kinds come back as the same object, whatever happened to their inside.

    Args:
        modules: Each module once, submodules listed too.

    Yields:
        Nothing.
    """
    before, tensors = [], list[tuple[Tensor, str]]()
    for m in modules:
        if type(m).__module__.startswith(_LEFT_ALONE):
            continue
        attributes, internals = m.__dict__, _LIGHTNING_INTERNALS if isinstance(m, LightningModule) else _INTERNALS
        plain = {name: attributes[name] for name in attributes.keys() - internals}
        tensors += [(v, f"{type(m).__name__}.{name}") for name, v in plain.items() if isinstance(v, Tensor)]
        before.append((attributes, internals, plain, _restorers(plain.values())))
    with _tensors_kept(tensors):
        try:
            yield
        finally:
            for attributes, internals, plain, restorers in before:
                for name in attributes.keys() - internals - plain.keys():
                    del attributes[name]
                attributes.update(plain)
                for restore in restorers:
                    restore()


def _restorers(values: Collection[Any]) -> list[Callable[[], None]]:
    return [_restorer(value) for value in values if isinstance(value, _CONTAINERS)]


def _restorer(value: Any) -> Callable[[], None]:
    """Return a function that puts the content of a container back in place, and that of the containers in it."""
    inner = [] if isinstance(value, set) or len(value) > _NESTED_LIMIT else _restorers(_entries(value))
    fill = value.extend if isinstance(value, list | deque) else value.update
    content = type(value)(value) if type(value) in _CONTAINERS else value.copy()

    def restore() -> None:
        value.clear()
        fill(content)
        for again in inner:
            again()

    return restore


def _entries(value: Any) -> Collection[Any]:
    return value.values() if isinstance(value, dict) else value  # type: ignore[no-any-return]


@contextmanager
def _tensors_kept(tensors: Sequence[tuple[Tensor, str]]) -> Iterator[None]:
    small = [t for t, _ in tensors if t.numel() <= _COPY_LIMIT]
    large = [(t, name, t._version) for t, name in tensors if t.numel() > _COPY_LIMIT]
    with torch.no_grad():
        copies = [t.clone() for t in small]
    try:
        yield
    finally:
        with torch.no_grad():
            if small:
                torch._foreach_copy_(small, copies)
        for t, name, version in large:
            if t._version != version:
                raise RuntimeError(
                    f"training_step changed the tensor attribute {name} in place; lbtrain evaluates training_step "
                    "more than once and puts back what it changed, but copies plain tensors only up to "
                    f"{_COPY_LIMIT} elements and this one has {t.numel()}: register it with register_buffer"
                )
