"""Curvature of sharded parameters on two ranks; test_sharded_curvature.py compares what is written here."""

import os
import sys
import warnings
from functools import partial
from pathlib import Path

import torch

from lbtrain import HessianSpectrum, LossReductionCheck, Sharpness
from lbtrain._lightning import Callback, MisconfigurationException
from lbtrain.functional.lanczos import lanczos
from tests.distributed.climbers import data, module_of, strategy_of, weights
from tests.distributed.curvature import AtEnd, caught, state
from tests.modules import digits_like, fit

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.0),
    "SGD with momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
}


def whole(loss, local):
    """Return the whole vector, of which each rank holds one part of each parameter; in one process itself."""
    if not torch.distributed.is_initialized():
        return local
    here = [x.clone() for x in torch.split(local, [p.numel() for p in loss.params])]
    everywhere = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everywhere, here)
    return torch.cat([torch.cat(pieces) for pieces in zip(*everywhere, strict=True)])


def numbers(loss):
    """Return what a loss tells, along the direction of ones."""
    ones = torch.ones(loss.dim, dtype=loss.dtype)
    along = loss.curvature(ones)
    halves = loss.halves() if along.num_batches > 1 else ()
    return {
        "value": loss.value(),
        "gradient": whole(loss, loss.gradient()),
        "product": whole(loss, loss.hvp(ones)),
        "error": loss.error,
        "engine": (loss.engine, loss.reason),
        "curvature": (along.value, along.stderr, along.num_batches),
        "halves": [half.value() for half in halves] + [half.curvature(ones).value for half in halves],
        "passes": getattr(getattr(loss, "_passes", None), "num_passes", None),
    }


def module_for(kind, optimizer="SGD"):
    """Return the module as the strategy cuts it."""
    cut, options = strategy_of(kind)
    module = module_of(cut)
    module.configure_optimizers = lambda: OPTIMIZERS[optimizer](module.parameters())
    return module, options


def all_numbers(kind, samples, batch_size=4, *, summed=False):
    """Return what the loss tells of the module as it is built: the rate is zero."""
    module, options = module_for(kind)
    if summed:
        plain = module.training_step
        module.training_step = lambda batch, batch_idx: plain(batch, batch_idx) * len(batch[0])
    callback = AtEnd(lambda loss, _: numbers(loss), num_samples=samples, batch_size=batch_size)
    fit(module, digits_like(45, 4, dtype=torch.float64), [callback], max_steps=2, **options)
    return callback.found


def spectrum(kind, optimizer, **options):
    """Return all metrics of the spectrum after a training whose steps see the same samples on any number of ranks."""
    module, strategy = module_for(kind, optimizer)
    measuring = HessianSpectrum(**{"top_k": 3, "tol": 1e-5, "trace_probes": 4, "figures": (), **options})
    trainer = fit(module, data(96, 8, shared=kind == "alone"), [measuring], **strategy)
    found = measuring.result
    return {"metrics": found.metrics(), "tracks": measuring.tracks, "weights": weights(module, trainer)}


class Around(HessianSpectrum):
    """Looks at the module before and after each measurement."""

    seen = ()

    def track(self, trainer, pl_module):
        pl_module.losses, pl_module.calls = [], 0
        before = local_state(pl_module)
        found = super().track(trainer, pl_module)
        self.seen = (*self.seen, before, local_state(pl_module))
        return found


def local_state(module):
    """Return copies of what a measurement must leave alone, of the parts held here."""
    found = state(module)
    local = lambda x: None if x is None else (x.to_local() if hasattr(x, "to_local") else x).detach().clone()
    parts = {n: local(p) for n, p in module.named_parameters()}
    return {**found, "state": parts, "grads": {n: local(p.grad) for n, p in module.named_parameters()}}


def trained(kind, measure, **options):
    """Return the weights after a training with or without measurements, and what was seen around these."""
    module, strategy = module_for(kind, "SGD with momentum")
    measuring = Around(top_k=1, tol=1e-2, every_n_steps=2, trace_probes=0, figures=(), split_check=False)
    trainer = fit(module, data(96, 8), [measuring] if measure else [], max_epochs=2, **strategy, **options)
    return {"weights": weights(module, trainer), "seen": measuring.seen, "tracks": measuring.tracks}


def refused(callback, kind):
    """Return the message of a refusal."""
    module, options = module_for(kind)
    try:
        fit(module, data(96, 8, shared=kind == "tensor"), [callback], **options)
    except MisconfigurationException as error:
        return str(error)
    return "accepted"


def agreed_failure(loss):
    """Return how a product ends on each rank when rank 1 cannot load its batch, and whether the next one is right."""
    ones = torch.ones(loss.dim, dtype=loss.dtype)
    before, load = loss.hvp(ones), loss._passes._load

    def broken(batch):
        raise OSError("a bad file")

    loss._passes._load = broken if torch.distributed.get_rank() == 1 else load
    ended = caught(partial(loss.hvp, ones))
    loss._passes._load = load
    return {"ended": ended, "again": torch.equal(loss.hvp(ones), before)}


def interruption(loss):
    """Return the spectrum that is left when rank 1 alone wants to stop, from the eleventh product on."""

    def watch(progress):
        wish.extend([1] if torch.distributed.get_rank() == 1 and progress.num_matvecs >= 10 else [])

    wish = []
    loss._passes._ranks.should_stop = lambda: bool(wish)
    options = {"generator": loss.generator(0), "dtype": loss.dtype, "space": loss.space, "watch": watch}
    found = lanczos(loss.hvp, loss.dim, top_k=3, tol=1e-12, **options)
    return {"interrupted": found.interrupted, "eigenvalues": found.eigenvalues, "num_matvecs": found.num_matvecs}


def breaking(kind):
    """Return how a fit ends on each rank when rank 1 fails inside a pass, between the ranks' exchanges."""
    module, options = module_for(kind)

    def fail(*_):
        raise ArithmeticError("inside a layer")

    class Break(Callback):
        def on_train_end(self, trainer, pl_module):
            if trainer.global_rank == 1:
                pl_module.net.first.register_forward_hook(fail)

    options = {**options, "use_distributed_sampler": False}
    callbacks = [LossReductionCheck("ignore"), Break(), HessianSpectrum(figures=())]
    return caught(lambda: fit(module, data(96, 8), callbacks, **options))


def ended(kind, function):
    """Return what a function finds at the end of a training."""
    module, options = module_for(kind)
    callback = AtEnd(lambda loss, _: function(loss))
    fit(module, data(96, 8), [callback], max_steps=2, **options)
    return callback.found


def main(folder):
    """Run all cases of the strategy that the folder is named after, on this rank."""
    kind, found = Path(folder).name, {}
    for samples in (None, 9, 1):
        found["numbers", samples] = all_numbers(kind, samples)
    found["summed"] = all_numbers(kind, 9, summed=True)
    for optimizer in OPTIMIZERS:
        found["spectrum", optimizer] = spectrum(kind, optimizer)
    for measure in (True, False):
        found["trained", measure] = trained(kind, measure, accumulate_grad_batches=2)
    found["failure"] = ended(kind, agreed_failure)
    found["interrupted"] = ended(kind, interruption)
    found["sharpness"] = refused(Sharpness(), kind)
    found["ggn"] = refused(HessianSpectrum(matrix="ggn"), kind)
    found["autograd"] = refused(HessianSpectrum(engine="autograd"), kind)
    if kind == "fsdp2":
        found["tensor"] = refused(HessianSpectrum(), "tensor")
    found["breaking"] = breaking(kind)  # the last one: nothing can be sent after it
    torch.save(found, f"{folder}/rank{os.environ['LOCAL_RANK']}.pt")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    main(sys.argv[1])
