"""SAM on ranks that others start: torchrun, tasks of a Slurm job, submitit."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress

import pytest
import torch

from tests.distributed.climbers import CLIMBERS, trained
from tests.distributed.start import ROOT

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def run(commands):
    """Run commands beside each other, given with their environments, and end them by their process groups."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SUBMITIT"))}
    options = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started = [
        subprocess.Popen(c, env={**env, "OMP_NUM_THREADS": "1", **more}, start_new_session=True, **options)
        for c, more in commands
    ]
    try:
        said = [p.communicate(timeout=120)[0] for p in started]
    finally:
        for p in started:
            with suppress(ProcessLookupError):
                os.killpg(p.pid, signal.SIGKILL)
    assert all(p.returncode == 0 for p in started), "\n".join(said)[-3000:]


def by_torchrun(folder):
    """One torchrun starts both ranks."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port()}"]
    run([([sys.executable, *launcher, "-m", "tests.distributed.launched", str(folder)], {})])


def by_slurm(folder):
    """Two tasks with the variables that srun gives them."""
    job = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "12345"}
    shared = {**job, "SLURM_NNODES": "1", "SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": str(port())}
    shared |= {"SLURM_NODEID": "0", "MASTER_ADDR": "127.0.0.1"}
    command = [sys.executable, "-m", "tests.distributed.launched", str(folder)]
    run([(command, {**shared, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}) for i in range(2)])


def by_submitit(folder):
    """A job of submitit's local executor."""
    submitit = pytest.importorskip("submitit")
    from tests.distributed.launched import under_submitit

    executor = submitit.LocalExecutor(folder=folder / "jobs")
    setup = [f"export PYTHONPATH={ROOT}", "export OMP_NUM_THREADS=1"]
    executor.update_parameters(tasks_per_node=2, timeout_min=2, local_setup=setup)
    job = executor.submit(under_submitit, str(folder))
    try:
        job.results()
    finally:
        job.cancel()


@pytest.mark.parametrize(
    ("launch", "environment"),
    [(by_torchrun, "TorchElasticEnvironment"), (by_slurm, "SLURMEnvironment"), (by_submitit, "LightningEnvironment")],
)
def test_sam_trains_alike_however_ranks_are_started(launch, environment, tmp_path):
    launch(tmp_path)
    expected = trained([CLIMBERS["SAM"](scope="global")], "alone")[0]
    for i in range(2):
        rank = torch.load(tmp_path / f"rank{i}.pt")
        assert rank["environment"] == environment
        for a, b in zip(rank["weights"], expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
