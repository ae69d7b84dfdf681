"""Four ranks: FSDP2 along one dimension of the mesh, tensor parallelism along the other."""

import os
import sys
import warnings

import torch
from torch.utils.data import DataLoader, DistributedSampler

from lbtrain._lightning import strategies
from tests.distributed.climbers import CLIMBERS, Cut, module_of, weights
from tests.modules import digits_like, fit


def cut(module):
    """Split the layers, then shard what is left of them."""
    Cut.tensor(module)
    Cut.fsdp2(module)


def main(folder):
    """Train the family on this rank; two ranks share each half of the samples."""
    rank, found = int(os.environ["LOCAL_RANK"]), {}
    data = digits_like(96, 8, dtype=torch.float64).dataset
    for name, build in CLIMBERS.items():
        sampler = DistributedSampler(data, num_replicas=2, rank=rank // 2, shuffle=False)
        strategy = strategies.ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=2)
        module, options = module_of(cut), {"strategy": strategy, "devices": 4, "use_distributed_sampler": False}
        trainer = fit(module, DataLoader(data, 8, sampler=sampler), [build(scope="global")], **options)
        found[name] = weights(module, trainer)
    torch.save(found, f"{folder}/rank{rank}.pt")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    main(sys.argv[1])
