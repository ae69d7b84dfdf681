"""Curvature on two ranks under DDP; test_curvature_ranks.py compares what is written here."""

import os
import random
import signal
import sys
import time
import warnings
from collections import Counter
from unittest import mock

import numpy as np
import torch

from lbtrain import HessianSpectrum
from lbtrain._lightning import Callback
from lbtrain.callbacks._measure import mean_training_loss
from tests.distributed.ranks import in_turn
from tests.modules import Everything, Plain, digits_like, fit

TWO = {"strategy": "ddp", "devices": 2}
COLLECTIVES = ("all_reduce", "all_gather", "all_gather_object", "broadcast", "broadcast_object_list", "barrier")


class Hooked(Plain):
    """Calls `on_step` before each evaluation, once it is set."""

    on_step = None

    def training_step(self, batch, batch_idx):
        if self.on_step is not None:
            self.on_step()
        return super().training_step(batch, batch_idx)


def module_of(dtype=torch.float64, lr=0.01):
    """Return the same small module on every rank."""
    torch.manual_seed(0)
    return Hooked(dtype=dtype, lr=lr)


class AtEnd(Callback):
    """Calls a function with the mean training loss when training ends."""

    def __init__(self, function, **options):
        self.function, self.found = function, None
        self.options = {"num_samples": None, "batch_size": 4, "seed": 0, **options}

    def on_train_end(self, trainer, pl_module):
        with mean_training_loss(trainer, pl_module, **self.options) as loss:
            self.found = self.function(loss, pl_module)


def at_end(function, module=None, *, options=None, loader=None, **measured):
    """Return what a function finds at the end of a short training."""
    callback = AtEnd(function, **measured)
    fit(module or module_of(), loader or in_turn(45, 4), [callback], max_steps=3, **(options or {}))
    return callback.found


def all_numbers(dtype, samples, **options):
    """Return what the loss tells of the module as it is built, whatever the number of ranks: the rate is zero."""
    loader = digits_like(45, 4, dtype=getattr(torch, dtype))
    module = module_of(getattr(torch, dtype), lr=0.0)
    return at_end(numbers, module, options=options, loader=loader, num_samples=samples)


def vector(loss):
    """Return the same direction in every process."""
    return torch.randn(loss.dim, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(loss.dtype)


def numbers(loss, module):
    """Return all that a loss tells, and which collectives one product took."""
    v = vector(loss)
    loss.hvp(v)  # the first product may look at the engine
    with counted() as calls:
        product = loss.hvp(v)
    along = loss.curvature(v)
    return {
        "value": loss.value(),
        "gradient": loss.gradient(),
        "product": product,
        "curvature": (along.value, along.stderr, along.num_batches),
        "collectives": dict(calls),
        "batches": len(loss.losses),
    }


class counted:  # noqa: N801 - a context
    """Counts collectives by name."""

    def __enter__(self):
        self.calls, self.patches = Counter(), []
        for name in COLLECTIVES:
            plain = getattr(torch.distributed, name)

            def counting(*args, name=name, plain=plain, **kwargs):
                self.calls[name] += 1
                return plain(*args, **kwargs)

            self.patches.append(mock.patch.object(torch.distributed, name, counting))
        for patch in self.patches:
            patch.start()
        return self.calls

    def __exit__(self, *exception):
        for patch in self.patches:
            patch.stop()


def caught(function):
    """Return how a function ended, in words, and after how many seconds."""
    start = time.monotonic()
    try:
        function()
    except BaseException as error:
        return type(error).__name__, str(error), time.monotonic() - start
    return "nothing", "", time.monotonic() - start


def third_product_fails(loss, module):
    """Return how three products end, of which rank 1 fails in the last, and one more."""
    v = vector(loss)
    first, second = loss.hvp(v), loss.hvp(v)

    def fail():
        raise ArithmeticError("the third product")

    module.on_step = fail if torch.distributed.get_rank() == 1 else None
    ended = caught(lambda: loss.hvp(v))
    module.on_step = None
    return {"ended": ended, "again": torch.equal(second, first) and torch.equal(loss.hvp(v), first)}


class Arm(Callback):
    """Sets `on_step` of the module on one rank when training ends: to be called at the n-th evaluation from then on."""

    def __init__(self, rank, after, action):
        self.rank, self.after, self.action = rank, after, action

    def on_train_end(self, trainer, pl_module):
        calls = []

        def on_step():
            calls.append(1)
            if len(calls) == self.after:
                self.action()

        pl_module.on_step = on_step if trainer.global_rank == self.rank else None


def spectrum(**options):
    """Return the callback without graphs kept between products, so that each of them evaluates the loss."""
    chosen = {"top_k": 3, "tol": 1e-9, "trace_probes": 2, "figures": (), "graph_memory_mb": 0, **options}
    return HessianSpectrum(**chosen)


def fit_fails():
    """Return how a whole fit ends on each rank when rank 1 fails while it measures."""

    def fail():
        raise ArithmeticError("in the middle of the measurement")

    callbacks = [Arm(1, 40, fail), spectrum()]
    return caught(lambda: fit(module_of(), in_turn(45, 4), callbacks, max_steps=3, **TWO))


def fit_interrupted():
    """Return how a fit ends whose rank 1 alone gets a SIGINT while it measures, and what it has measured."""
    measuring = spectrum()
    callbacks = [Arm(1, 60, lambda: os.kill(os.getpid(), signal.SIGINT)), measuring]
    ended = caught(lambda: fit(module_of(), in_turn(45, 4), callbacks, max_steps=3, **TWO))
    found = measuring.result
    return {"ended": ended, "interrupted": found.interrupted, "metrics": found.metrics(), "tracks": measuring.tracks}


def tracked(batch_size, **options):
    """Return the points of a measurement after every second step, and the weights."""
    measuring, module = spectrum(every_n_steps=2, graph_memory_mb=64), module_of()
    fit(module, in_turn(48, batch_size), [measuring], max_steps=6, **options)
    return {"tracks": measuring.tracks, "weights": module.state_dict()}


def state(module):
    """Return copies of all that a measurement must leave alone."""
    grads = {n: None if p.grad is None else p.grad.clone() for n, p in module.named_parameters()}
    return {
        "state": {k: v.clone() for k, v in module.state_dict().items()},
        "grads": grads,
        "modes": [m.training for m in module.modules()],
        "required": [p.requires_grad for p in module.parameters()],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": random.getstate(),
        "plain": (list(module.losses), module.calls),
    }


class Around(HessianSpectrum):
    """Looks at the module before and after each measurement."""

    seen = ()

    def measure(self, trainer, pl_module):
        before = state(pl_module)
        found = super().measure(trainer, pl_module)
        self.seen = (*self.seen, before, state(pl_module))
        return found

    def track(self, trainer, pl_module):
        before = state(pl_module)
        found = super().track(trainer, pl_module)
        self.seen = (*self.seen, before, state(pl_module))
        return found


def everything(measure):
    """Train the module that has everything; return its end and what was seen around each measurement."""
    torch.manual_seed(0)
    module, options = Everything(), {"strategy": "ddp_find_unused_parameters_true", "devices": 2}
    measuring = Around(top_k=2, every_n_steps=3, max_matvecs=40, figures=()) if measure else None
    fit(module, digits_like(90, 8), [measuring] if measure else [], max_epochs=2, **options)
    return {"end": module.state_dict(), "seen": measuring.seen if measure else (), "next": torch.rand(1)}


def main(folder):
    """Run all cases on this rank."""
    found = {}
    for dtype in ("float64", "float32"):
        for samples in (None, 9, 1):
            found["numbers", dtype, samples] = all_numbers(dtype, samples, **TWO)
    found["third product"] = at_end(third_product_fails, options=TWO, num_samples=9)
    found["tracked"] = tracked(4, **TWO)
    found["everything"], found["plain"] = everything(True), everything(False)
    found["fit fails"] = fit_fails()
    found["interrupted"] = fit_interrupted()  # the last one: Lightning ignores SIGINT from here on
    torch.save(found, f"{folder}/rank{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    main(sys.argv[1])
