"""Environment variables of the sweep's process that a job must not take for its own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

# Ranks, rendezvous and seed, of Lightning (fabric/plugins/environments, fabric/utilities/seed.py) and of torchrun.
_TRAINING = frozenset({
    "LOCAL_RANK",
    "RANK",
    "NODE_RANK",
    "GROUP_RANK",
    "ROLE_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_WORLD_SIZE",
    "ROLE_WORLD_SIZE",
    "ROLE_NAME",
    "WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "STANDALONE_PORT",
    "PL_GLOBAL_SEED",
    "PL_SEED_WORKERS",
})
# By these Lightning tells that Slurm has started it as one of several tasks; a sweep within an allocation is one task,
# and its jobs are none. What describes the allocation itself (SLURM_JOB_ID, SLURM_CPUS_ON_NODE, ...) stays.
_TASK = frozenset({
    "SLURM_NTASKS",
    "SLURM_NPROCS",
    "SLURM_NTASKS_PER_NODE",
    "SLURM_TASKS_PER_NODE",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_STEP_TASKS_PER_NODE",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_NODEID",
})
# The identity of a wandb run and of its service; project, mode, key and server stay. A sweep agent gives one run to one
# process, not to all jobs of a sweep.
_WANDB = frozenset({
    "WANDB_RUN_ID",
    "WANDB_NAME",
    "WANDB_RESUME",
    "WANDB_RESUME_FROM",
    "WANDB_FORK_FROM",
    "WANDB_RUN_STORAGE_ID",
    "WANDB_RUN_DIR",
    "WANDB_SERVICE",
    "WANDB_SWEEP_ID",
    "WANDB_SWEEP_PARAM_PATH",
})
# torchrun's own; MPI's and LSF's way to say which process of several this is.
_PREFIXES = ("TORCHELASTIC_", "OMPI_COMM_WORLD_", "PMI_", "PMIX_", "JSM_NAMESPACE_")


def leaks(names: Iterator[str] | list[str]) -> list[str]:
    """Pick the names of variables that would leak.

    Args:
        names: Of environment variables.

    Returns:
        Those that a job must not inherit.
    """
    known = _TRAINING | _TASK | _WANDB
    return [name for name in names if name in known or name.startswith(_PREFIXES)]


@contextmanager
def cleared_environment() -> Iterator[None]:
    """Take the variables that leak out of this process's environment, from which jobs start, and put them back."""
    taken = {name: os.environ.pop(name) for name in leaks(list(os.environ))}
    try:
        yield
    finally:
        os.environ.update(taken)
