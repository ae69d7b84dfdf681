"""What a rank does under a launcher of someone else: train with SAM, and write the weights to FOLDER/rankN.pt."""

import sys
import warnings
from pathlib import Path

import torch

from tests.distributed.climbers import CLIMBERS, trained


def train(folder):
    """Train on two ranks, however they were started."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    weights, _, trainer = trained([CLIMBERS["SAM"](scope="global")], "ddp")
    environment = type(trainer.strategy.cluster_environment).__name__
    torch.save({"weights": weights, "environment": environment}, f"{folder}/rank{trainer.global_rank}.pt")


def under_submitit(folder):
    """Take the ranks' addresses from submitit, as its documentation says."""
    import submitit

    submitit.helpers.TorchDistributedEnvironment().export()
    sys.path.insert(0, str(Path(__file__).parents[2]))
    train(folder)


if __name__ == "__main__":
    train(sys.argv[1])
