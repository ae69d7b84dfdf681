"""Evaluate a LightningModule and leave no trace: everything that the evaluation disturbs comes back bit for bit."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from lbtrain._lightning import DummyLogger, LightningModule, Trainer
from lbtrain.callbacks._attributes import plain_attributes_kept


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


def same_streams(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Return whether two states of `random_streams` are the same.

    Args:
        first: One.
        second: Another, of the same device.

    Returns:
        Whether no random number was drawn between them.
    """
    tensors = all(torch.equal(first[name], second[name]) for name in first.keys() & {"torch", "cuda"})
    arrays = all(map(np.array_equal, first["numpy"], second["numpy"]))
    return tensors and arrays and first["python"] == second["python"]


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
    modules = list(pl_module.modules())  # walked once: in a small model the walk costs as much as a layer
    with (
        _silence(trainer, modules),
        _streams(pl_module.device),
        plain_attributes_kept(modules),
        _buffers(modules),
        _gradients(modules, keep=keep_gradients),
        _modes(pl_module, modules, training),
    ):
        yield


def _nothing(*_args: Any, **_kwargs: Any) -> None:
    """Stand in for `log`, `log_dict` and `print`."""


@contextmanager
def _silence(trainer: Trainer, modules: Sequence[nn.Module]) -> Iterator[None]:
    muted = [m.__dict__ for m in modules if isinstance(m, LightningModule)]
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
def _buffers(modules: Sequence[nn.Module]) -> Iterator[None]:
    owned = [(m._buffers, name, b) for m in modules for name, b in m._buffers.items() if b is not None]
    copies = [b.clone() for _, _, b in owned]
    try:
        yield
    finally:
        with torch.no_grad():
            for (holder, name, buffer), copy in zip(owned, copies, strict=True):
                holder[name] = buffer
                buffer.copy_(copy)


@contextmanager
def _gradients(modules: Sequence[nn.Module], *, keep: bool) -> Iterator[None]:
    params = {id(p): p for m in modules for p in m._parameters.values() if p is not None}
    before = [(p, p.grad, p.requires_grad) for p in params.values()]
    try:
        if not keep:
            for p, _, _ in before:
                p.grad = None
        yield
    finally:
        for p, gradient, required in before:
            if p.requires_grad != required:
                p.requires_grad_(required)
            if not keep:
                p.grad = gradient


@contextmanager
def _modes(pl_module: LightningModule, modules: Sequence[nn.Module], training: bool | None) -> Iterator[None]:
    before = [(m, m.training) for m in modules]
    try:
        if training is not None:
            pl_module.train(training)
        yield
    finally:
        for m, mode in before:
            if m.training != mode:
                m.training = mode
