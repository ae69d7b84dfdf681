"""However a sweep ends, nothing that it has started goes on."""

import os
import signal
import time

import pytest

from lbtrain.records import read_record
from tests.cli.commands import Command

pytestmark = pytest.mark.distributed

# The sweep is one task of a batch job. Jobs that took themselves for that task would not start their second rank.
ALLOCATION = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "sweep", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
ALLOCATION |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0"}


def asleep(planted):
    """Start a sweep of two jobs of two ranks each: one falls asleep in training, the other waits for its turn."""
    overrides = ["callbacks.fault.kind=sleep", "seed=0,1", "trainer=ddp_cpu", "hydra.launcher.slots=1"]
    return Command(["-m", *planted.small, *overrides, "hydra.sweep.dir=sweep"], planted.directory, **ALLOCATION)


def ranks(planted):
    return {path.name for path in (planted.directory / "sweep" / "0").glob("seen*.json")}


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "interrupted"),
        pytest.param(signal.SIGTERM, 143, "ended by SIGTERM", marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_jobs_and_their_ranks_and_says_so(number, code, said, planted):
    with asleep(planted) as command:
        command.wait_until(lambda: len(ranks(planted)) == 2, timeout=150)
        start = time.monotonic()
        os.kill(command.process.pid, number)
        done = command.done(timeout=30)
        assert time.monotonic() - start < 25
        assert command.wait_alone() == []
    assert done.code == code
    assert "Traceback" not in done.err
    assert said in done.err
    record = read_record(planted.directory / "sweep" / "0")
    assert record.status == "failed"
    assert record.error.startswith("the sweep was interrupted before the run was complete")
    assert not (planted.directory / "sweep" / "1").exists()
    assert (planted.directory / "sweep" / "report.html").is_file()


def test_jobs_do_not_outlive_a_sweep_that_is_killed(planted):
    with asleep(planted) as command:
        command.wait_until(lambda: len(ranks(planted)) == 2, timeout=150)
        os.kill(command.process.pid, signal.SIGKILL)
        command.done(timeout=30)
        assert command.wait_alone() == []
    assert not (planted.directory / "sweep" / "1").exists()
