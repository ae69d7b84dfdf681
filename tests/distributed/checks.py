"""LossReductionCheck on two ranks, under every strategy; test_checks.py compares what is written here."""

import os
import sys
import warnings

import torch
from torch import nn
from torch.utils.data import DataLoader

from lbtrain import LossReductionCheck
from tests.distributed.climbers import module_of, strategy_of, weights
from tests.modules import digits_like, fit

STRATEGIES = ("ddp", "fsdp", "fsdp2", "tensor")
WINDOW, BATCHES = 4, 9


def loss_of(kind, net, batch):
    """Return the loss of one of three reductions."""
    x, y = batch
    logits = net(x)
    weight = torch.tensor([1.0, 2.0, 5.0], dtype=logits.dtype) if kind == "units" else None
    return nn.functional.cross_entropy(logits, y, weight=weight, reduction="sum" if kind == "sum" else "mean")


def trained(strategy, kind, check, loader, boost=1.0):
    """Train for an epoch; `boost` multiplies the losses of the last, partial window."""
    cut, options = strategy_of(strategy)
    module, evaluated = module_of(cut), []

    def training_step(batch, batch_idx):
        evaluated.append(len(batch[0]))
        loss = loss_of(kind, module.net, batch)
        return loss * boost if batch_idx >= BATCHES - BATCHES % WINDOW else loss

    module.training_step = training_step
    options = {"accumulate_grad_batches": WINDOW, "use_distributed_sampler": False, **options}
    trainer = fit(module, loader, [check], **options)
    return {"verdict": check.result, "evaluated": len(evaluated) - BATCHES, "weights": weights(module, trainer)}


def main(folder):
    """Train on this rank: 8 samples per batch on the first, 1 on the other, which could tell nothing by itself."""
    rank, found = int(os.environ["LOCAL_RANK"]), {}
    data = digits_like(81, 8, dtype=torch.float64).dataset
    for strategy in STRATEGIES:
        shared = strategy == "tensor"  # its ranks see the same samples
        mine = [[8 * i + j for j in range(8)] if rank == 0 or shared else [72 + i] for i in range(BATCHES)]
        loader = DataLoader(data, batch_sampler=mine)
        for kind in ("mean", "sum", "units"):
            found[strategy, kind] = trained(strategy, kind, LossReductionCheck("ignore"), loader, WINDOW)
        fixed = LossReductionCheck("ignore", fix_partial_window=True)
        found[strategy, "fixed"] = trained(strategy, "mean", fixed, loader)
        found[strategy, "plain"] = trained(strategy, "mean", LossReductionCheck("ignore"), loader)
    found = {key: {**value, "verdict": vars(value["verdict"])} for key, value in found.items()}
    torch.save(found, f"{folder}/rank{rank}.pt")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    main(sys.argv[1])
