"""LearningRateScaling on two ranks under every strategy, stopped and resumed; test_scaling_ranks.py compares."""

import os
import sys
import warnings
from pathlib import Path

import torch

from lbtrain import LearningRateScaling
from lbtrain._lightning import ModelCheckpoint
from tests.distributed.climbers import STRATEGIES, module_of, strategy_of
from tests.distributed.ranks import in_turn
from tests.modules import fit
from tests.unit.callbacks.rates import Rates


def trained(kind, epochs, *, folder=None, start=None, batch_size=4, accumulate=2):
    """Train with a rate tuned at 4 samples; return the rates of all steps, and how many devices see different data."""
    cut, options = strategy_of(kind)
    module, rates = module_of(cut), Rates()
    build = module.configure_optimizers

    def configure_optimizers():
        optimizer = build()
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)]

    module.configure_optimizers = configure_optimizers
    saving = [ModelCheckpoint(dirpath=folder, save_last=True)] if folder else []
    scaling = LearningRateScaling(4, batch_size=batch_size, reduction="mean")
    options |= {"max_epochs": epochs, "enable_checkpointing": bool(folder), "accumulate_grad_batches": accumulate}
    options["use_distributed_sampler"] = False
    loader = in_turn(32, batch_size)
    trainer = fit(module, loader, [scaling, rates, *saving], ckpt_path=start, **options)
    return {"rates": rates.used, "devices": trainer.callback_metrics["batch/data_parallel"].item()}


def main(folder):
    """Train whole, and broken off after two of three epochs and resumed."""
    found = {}
    for kind in STRATEGIES:
        place = Path(folder) / kind
        found[kind, "whole"] = trained(kind, 3)
        if kind == "fsdp":
            continue  # torch's FSDP of the first kind cannot gather its state on the CPU
        found[kind, "first"] = trained(kind, 2, folder=place)
        found[kind, "resumed"] = trained(kind, 3, start=place / "last.ckpt")
    torch.save(found, f"{folder}/rank{os.environ['LOCAL_RANK']}.pt")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    main(sys.argv[1])
