"""One directory for all ranks of a run that torchrun or srun has started."""

import os
import sys
from datetime import datetime

from lbtrain.app.sweep.refusals import started_by

# Read by hydra.run.dir in conf/train.yaml; each rank alone would take the second in which it happens to start.
VARIABLE = "LBTRAIN_RUN_DIR"
# Of the store that torchrun keeps for its ranks.
_KEY = "lbtrain/run_dir"


def agree() -> None:
    """Set LBTRAIN_RUN_DIR alike on all ranks, where torchrun or srun has started this process as one.

    Under torchrun it holds the time at which the first of them came, under srun the numbers of job and step, which a
    requeued job keeps. A directory that the user gives, by hydra.run.dir or in the variable, stands.
    """
    if VARIABLE in os.environ or any(word.startswith("hydra.run.dir=") for word in sys.argv[1:]):
        return
    by, ranks = started_by()
    if by == "torchrun" and ranks > 1:
        os.environ[VARIABLE] = _first_comes()
    elif by == "srun" and "SLURM_JOB_ID" in os.environ:
        os.environ[VARIABLE] = f"outputs/slurm/{os.environ['SLURM_JOB_ID']}.{os.environ.get('SLURM_STEP_ID', '0')}"


def _first_comes() -> str:
    """Return what the first rank to ask has proposed: the time of now, as the directory of a run."""
    from torch.distributed import TCPStore

    mine = datetime.now().strftime("outputs/%Y-%m-%d/%H-%M-%S")
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    return store.compare_set(_KEY, "", mine).decode()
