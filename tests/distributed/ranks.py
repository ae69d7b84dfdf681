"""What both ranks of test_ddp.py run; each writes what it saw to the folder given on its command line."""

import os
import sys
import warnings

import torch
from torch.utils.data import DataLoader, DistributedSampler

from lbtrain import SAM, HessianSpectrum, LearningRateScaling, LossReductionCheck, Sharpness
from lbtrain._lightning import Callback
from tests.modules import Everything, LeastSquares, Plain, digits_like, fit

CALLBACKS = {
    "scaling": lambda: LearningRateScaling(4),
    "check": lambda: LossReductionCheck(on_problem="ignore"),
    "spectrum": lambda: HessianSpectrum(top_k=3, tol=1e-9, max_matvecs=2000),
    "sharpness": lambda: Sharpness({"keskar": {"num_steps": 3}, "sam": {"num_steps": 3}, "average": {"num_pairs": 2}}),
}


def module_of(reduction="mean"):
    """Return the same small float64 module on every rank."""
    torch.manual_seed(0)
    return Plain(dtype=torch.float64, reduction=reduction, lr=0.01)


def in_turn(samples, batch_size):
    """Return a float64 loader that deals samples to the ranks in turn; Lightning's own choice would shuffle them."""
    loader = digits_like(samples, batch_size, dtype=torch.float64)
    if "LOCAL_RANK" not in os.environ:
        return loader
    rank = int(os.environ["LOCAL_RANK"])
    sampler = DistributedSampler(loader.dataset, num_replicas=2, rank=rank, shuffle=False)
    return DataLoader(loader.dataset, batch_size, sampler=sampler)


def measured(reduction, batch_size, **options):
    """Train on batches of the same samples whatever the number of ranks; return all numbers."""
    callbacks = {name: build() for name, build in CALLBACKS.items()}
    # 45 samples: the last batch is short, and two ranks measure on 23 and 22 of them.
    loader = in_turn(45, batch_size)
    module = module_of(reduction)
    trainer = fit(module, loader, callbacks.values(), max_steps=4, **options)
    return {
        "rate": trainer.optimizers[0].param_groups[0]["lr"],
        "verdict": callbacks["check"].result.kind,
        "metrics": {k: v.item() for k, v in trainer.callback_metrics.items() if not k.startswith("time/")},
        "weights": [p.detach().clone() for p in module.parameters()],
    }


def split(reduction, batch_size, **options):
    """Return the weights after 12 steps of 64 samples each, the rate scaled from one batch of 64."""
    module = LeastSquares(reduction)
    fit(module, in_turn(256, batch_size), [LearningRateScaling(64)], max_epochs=3, **options)
    return module.w.detach().clone()


class Reductions(Callback):
    """Counts how often DDP reduces gradients."""

    def on_train_start(self, trainer, pl_module):
        self.count = 0
        trainer.strategy.model.register_comm_hook(None, self.reduce)

    def reduce(self, state, bucket):
        """Average as DDP does, and count."""
        self.count += 1
        done = torch.distributed.all_reduce(bucket.buffer() / 2, async_op=True).get_future()
        return done.then(lambda future: future.value()[0])


def trained(rho, *, build=Everything, loader=None, **options):
    """Train with SAM (rho None: without); return weights, buffers and the number of reductions."""
    torch.manual_seed(0)
    module = build()
    counting = Reductions()
    callbacks = [counting] if rho is None else [SAM(rho), counting]
    options = {"strategy": "ddp_find_unused_parameters_true", "devices": 2, "max_epochs": 3, **options}
    trainer = fit(module, loader or digits_like(96, 8), callbacks, **options)
    return {"state": module.state_dict(), "reductions": counting.count, "steps": trainer.global_step}


class Small(Plain):
    """Without unused parameters, in float64."""

    def __init__(self):
        super().__init__(dtype=torch.float64, lr=0.1)


def refused():
    """Return what SAM says of a static graph."""
    from lbtrain._lightning import MisconfigurationException, strategies

    strategy = strategies.DDPStrategy(static_graph=True)
    try:
        fit(Small(), digits_like(dtype=torch.float64), [SAM()], strategy=strategy, devices=2)
    except MisconfigurationException as error:
        return str(error)
    return "accepted"


def main(folder):
    """Run all cases on this rank."""
    two = {"strategy": "ddp", "devices": 2}
    results = {f"measured {reduction}": measured(reduction, 4, **two) for reduction in ("mean", "sum")}
    results["accumulated"] = measured("mean", 2, accumulate_grad_batches=2, **two)
    for reduction in ("mean", "sum"):
        results[f"split {reduction}"] = split(reduction, 32, **two)
        results[f"split {reduction}, accumulated"] = split(reduction, 16, accumulate_grad_batches=2, **two)
    results["plain"] = trained(None)
    results["rho 0"] = trained(0)
    results["rho 0.1"] = trained(0.1)
    results["rho 0.1, window of 3"] = trained(0.1, accumulate_grad_batches=3)
    loader = in_turn(96, 8)
    results["by hand"] = trained(0.1, build=Small, loader=loader, strategy="ddp", max_steps=5)
    results["static graph"] = refused()
    rank = torch.distributed.get_rank()
    torch.save(results, f"{folder}/rank{rank}.pt")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    main(sys.argv[1])
