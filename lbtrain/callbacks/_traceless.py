"""Evaluate a LightningModule and leave no trace: everything that the evaluation disturbs comes back bit for bit."""

import random
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lbtrain._lightning import DummyLogger, LightningModule, Trainer

# What every nn.Module keeps in its __dict__ and what the other contexts here take care of.
_MODULE_INTERNALS = frozenset(nn.Module().__dict__)
# Plain tensor attributes above this many elements (a data set kept on the module, say) are watched instead of copied.
_COPY_LIMIT = 2**20
# Containers with more entries than this (a vocabulary, a sample list) are kept whole, but not searched for containers
# inside.
_NESTED_LIMIT = 1000


def random_streams(device: torch.device) -> dict[str, Any]:
    """Return the state of every global random-number stream.

    Args:
        device: The device in use; only its own stream is read, not those of other GPUs.

    Returns:
        States by name, for `set_random_streams`.
    """
    streams = {"torch": torch.get_rng_state(), "numpy": np.random.get_state(), "python": random.getstate()}  # noqa: NPY002 - the global stream is the subject
    if device.type == "cuda":
        streams["cuda"] = torch.cuda.get_rng_state(device)
    return streams


def set_random_streams(streams: dict[str, Any], device: torch.device) -> None:
    """Put the global random-number streams back to the states of `random_streams`.

    Args:
        streams: What `random_streams` returned.
        device: The device in use.
    """
    torch.set_rng_state(streams["torch"])
    np.random.set_state(streams["numpy"])  # noqa: NPY002
    random.setstate(streams["python"])
    if "cuda" in streams and device.type == "cuda":
        torch.cuda.set_rng_state(streams["cuda"], device)


@contextmanager
def traceless(
    trainer: Trainer, pl_module: LightningModule, *, training: bool | None = None, keep_gradients: bool = False
) -> Iterator[None]:
    """Let `training_step` run without a trace, also when it raises.

    Silent: `log`, `log_dict`, `print` and every logger. Restored bit for bit: random-number streams, buffers, `.grad`,
    requires_grad, train/eval mode of each submodule, torchmetrics states, and plain attributes of all submodules
    (numbers, lists, dictionaries, sets, small tensors), so a `training_step` that appends to a list does not append
    twice.

    Args:
        trainer: The Trainer that the module is attached to.
        pl_module: The module to protect.
        training: Mode inside the context: True train, False eval, None as it is.
        keep_gradients: Leave `.grad` to the caller, for a second backward pass whose gradient is wanted.

    Yields:
        Nothing.
    """
    with (
        _silence(trainer, pl_module),
        _streams(pl_module.device),
        _attributes(pl_module),
        _buffers(pl_module),
        _gradients(pl_module, keep=keep_gradients),
        _modes(pl_module, training),
    ):
        yield


def _nothing(*_args: Any, **_kwargs: Any) -> None:
    """Stand in for `log`, `log_dict` and `print`."""


@contextmanager
def _silence(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    muted = [m.__dict__ for m in pl_module.modules() if isinstance(m, LightningModule)]
    before = [{name: d[name] for name in ("log", "log_dict", "print") if name in d} for d in muted]
    loggers = trainer.loggers
    try:
        for attributes in muted:
            attributes.update(log=_nothing, log_dict=_nothing, print=_nothing)
        trainer.loggers = [DummyLogger() for _ in loggers]
        yield
    finally:
        trainer.loggers = loggers
        for attributes, own in zip(muted, before, strict=True):
            for name in ("log", "log_dict", "print"):
                attributes.pop(name, None)
            attributes.update(own)


@contextmanager
def _streams(device: torch.device) -> Iterator[None]:
    streams = random_streams(device)
    try:
        yield
    finally:
        set_random_streams(streams, device)


@contextmanager
def _buffers(module: nn.Module) -> Iterator[None]:
    owned = [(m._buffers, name, b) for m in module.modules() for name, b in m._buffers.items() if b is not None]
    copies = [b.clone() for _, _, b in owned]
    try:
        yield
    finally:
        with torch.no_grad():
            for (holder, name, buffer), copy in zip(owned, copies, strict=True):
                holder[name] = buffer
                buffer.copy_(copy)


@contextmanager
def _gradients(module: nn.Module, *, keep: bool) -> Iterator[None]:
    before = [(p, p.grad, p.requires_grad) for p in module.parameters()]
    try:
        if not keep:
            for p, _, _ in before:
                p.grad = None
        yield
    finally:
        for p, gradient, required in before:
            p.requires_grad_(required)
            if not keep:
                p.grad = gradient


@contextmanager
def _modes(module: nn.Module, training: bool | None) -> Iterator[None]:
    before = [(m, m.training) for m in module.modules()]
    try:
        if training is not None:
            module.train(training)
        yield
    finally:
        for m, mode in before:
            m.training = mode


@contextmanager
def _attributes(module: nn.Module) -> Iterator[None]:
    """Keep plain attributes of all submodules, among them the states and counters of torchmetrics."""
    before = []
    for m in module.modules():
        plain = {name: value for name, value in m.__dict__.items() if name not in _MODULE_INTERNALS}
        before.append((m, plain, [_restorer(value, f"{type(m).__name__}.{name}") for name, value in plain.items()]))
    try:
        yield
    finally:
        for m, plain, restorers in before:
            now = m.__dict__
            for name in [name for name in now if name not in plain and name not in _MODULE_INTERNALS]:
                del now[name]
            now.update(plain)
            for restore in filter(None, restorers):
                restore()


def _restorer(value: Any, name: str) -> Callable[[], None] | None:
    """Return a function that puts the content of a mutable value back in place; None for what cannot change."""
    if isinstance(value, Tensor):
        return _tensor_restorer(value, name)
    if isinstance(value, list | deque):
        items, inner = list(value), _nested(value, name)
        return lambda: _refill(value, value.extend, items, inner)
    if isinstance(value, dict):
        entries, inner = dict(value), _nested(value.values(), name)
        return lambda: _refill(value, value.update, entries, inner)
    if isinstance(value, set):
        members = set(value)
        return lambda: _refill(value, value.update, members, [])
    return None


def _refill(holder: Any, fill: Callable[[Any], None], content: Any, inner: list[Callable[[], None]]) -> None:
    holder.clear()
    fill(content)
    for restore in inner:
        restore()


def _nested(values: Collection[Any], name: str) -> list[Callable[[], None]]:
    if len(values) > _NESTED_LIMIT:
        return []
    found = (_restorer(value, name) for value in values if isinstance(value, list | dict | deque | set))
    return [restore for restore in found if restore is not None]


def _tensor_restorer(value: Tensor, name: str) -> Callable[[], None]:
    version = value._version
    if value.numel() <= _COPY_LIMIT:
        copy = value.detach().clone()
        return lambda: _copy_back(value, copy)

    def check() -> None:
        if value._version != version:
            raise RuntimeError(
                f"training_step changed the tensor attribute {name} in place; lbtrain evaluates training_step more "
                "than "
                f"once and puts back what it changed, but copies plain tensors only up to {_COPY_LIMIT} elements and "
                f"this one has {value.numel()}: register it with register_buffer"
            )

    return check


def _copy_back(value: Tensor, copy: Tensor) -> None:
    value.detach().copy_(copy)
