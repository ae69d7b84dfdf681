"""What both ranks of test_noise_ranks.py run: GradientNoiseScale under DDP."""

import os
import sys
import warnings
from collections import Counter
from dataclasses import asdict

import torch
from torch.utils.data import DataLoader

from lbtrain import SAM
from lbtrain._lightning import Callback, ModelCheckpoint
from lbtrain.callbacks.noise import GradientNoiseScale
from tests.distributed.ranks import Reductions
from tests.modules import Everything, Plain, digits_like, fit

CASES = {
    "ranks": {},
    "ranks, window of 3": {"accumulate_grad_batches": 3},
    "sum": {"reduction": "sum"},
    "sum, window of 3": {"reduction": "sum", "accumulate_grad_batches": 3},
}


class Deal:
    """Deal batches of these sizes to the ranks: a rank's own size, or a mixture."""

    def __init__(self, sizes, samples=96):
        self.sizes, self.samples = sizes, samples

    def batches(self, rank):
        """Return the sample numbers of each batch of a rank."""
        start, found, turn = 0, [], 0
        while start + sum(s[turn % len(s)] for s in self.sizes) <= self.samples:
            for r, sizes in enumerate(self.sizes):
                size = sizes[turn % len(sizes)]
                if r == rank:
                    found.append(list(range(start, start + size)))
                start += size
            turn += 1
        return found

    def loader(self):
        """Return this rank's batches."""
        data = digits_like(self.samples, dtype=torch.float64).dataset
        return DataLoader(data, batch_sampler=self.batches(int(os.environ["LOCAL_RANK"])))


EVEN, UNEVEN = Deal([[4], [4]]), Deal([[4, 2, 6], [8, 3, 1]])
TWO = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False}


def still(reduction="mean"):
    """Return a module that stays where it is."""
    torch.manual_seed(0)
    optimizer = lambda p: torch.optim.SGD(p, lr=0.0)
    return Plain(reduction=reduction, optimizer=optimizer, dtype=torch.float64)


def measured(deal, reduction="mean", callbacks=(), **options):
    """Return what a rank's callback has found on these batches, and the state that it saves."""
    callback = GradientNoiseScale(every_n_steps=1, forget=0.0, reduction="auto")
    fit(still(reduction), deal.loader(), [callback, *callbacks], **TWO, **options)
    return asdict(callback.result), callback.state_dict()


class Collectives(Callback):
    """Counts the collectives that Python asks for, each with its number of entries."""

    def on_train_start(self, trainer, pl_module):
        self.counts, self.plain = Counter(), torch.distributed.all_reduce

        def all_reduce(tensor, *args, **options):
            self.counts[tensor.numel()] += 1
            return self.plain(tensor, *args, **options)

        torch.distributed.all_reduce = all_reduce

    def on_train_end(self, trainer, pl_module):
        torch.distributed.all_reduce = self.plain


class Last(Callback):
    """Keeps the last gradients."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients = {f"grad {n}": p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None}


def trained(callbacks, **options):
    """Return weights, momenta, gradients, random numbers and reductions of a training of the module with everything."""
    torch.manual_seed(0)
    module, counting, asked, last = Everything(), Reductions(), Collectives(), Last()
    options = {"strategy": "ddp_find_unused_parameters_true", "devices": 2, "max_epochs": 2, **options}
    trainer = fit(module, digits_like(96, 8), [counting, asked, *callbacks, last], **options)
    momenta = trainer.optimizers[0].state_dict()["state"]
    state = {**module.state_dict(), **{f"momentum {i}": v["momentum_buffer"] for i, v in momenta.items()}}
    state = {**state, **last.gradients, "next": torch.rand(2)}
    return {"state": state, "reductions": counting.count, "asked": dict(asked.counts), "steps": trainer.global_step}


def resumed(folder):
    """Return the results of an uninterrupted run and of one that is resumed after its first epoch."""
    found = []
    for run, epochs, path in (("whole", 2, None), ("first", 1, None), ("again", 2, f"{folder}/first/epoch=0.ckpt")):
        torch.manual_seed(0)
        callback = GradientNoiseScale(every_n_steps=2)
        saving = ModelCheckpoint(f"{folder}/{run}", filename="{epoch}", save_top_k=-1)
        options = {"max_epochs": epochs, "ckpt_path": path, "enable_checkpointing": True, "default_root_dir": folder}
        fit(Plain(dtype=torch.float64), EVEN.loader(), [callback, saving], **TWO, **options)
        found.append(asdict(callback.result))
    return found


def main(folder):
    """Run all cases on this rank."""
    results = {}
    for name, options in CASES.items():
        results[name] = measured(EVEN, **options)
        results[f"{name}, uneven"] = measured(UNEVEN, **options)
    results["SAM"] = measured(UNEVEN, callbacks=[SAM(0.1)])
    results["one rank has single samples"] = measured(Deal([[4], [1]]), callbacks=[SAM(0.1)])
    for climb in ([], [SAM(0.1)]):
        for options in ({}, {"accumulate_grad_batches": 3, "gradient_clip_val": 0.05}):
            key = "SAM" * bool(climb), "accumulate_grad_batches" in options
            results[("plain", *key)] = trained(climb, **options)
            callback = GradientNoiseScale(every_n_steps=2, reduction="mean")
            results[("beside", *key)] = trained([callback, *climb], **options)
            results[("estimates", *key)] = callback.result.num_estimates
    results["resumed"] = resumed(folder)
    torch.save(results, f"{folder}/rank{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    main(sys.argv[1])
