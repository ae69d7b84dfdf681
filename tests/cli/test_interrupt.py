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
    record = read_record(planted.directory / "sweep" / "0")
    assert record.status == "failed"
    assert record.error.startswith("the sweep was interrupted before the run was complete")
    sweep = planted.directory / "sweep"
    assert f"{said}: 0 of 2 runs finished; to go on, repeat the command with hydra.sweep.dir={sweep}\n" in done.err
    assert not (planted.directory / "sweep" / "1").exists()
    assert (planted.directory / "sweep" / "report.html").is_file()


def test_ctrl_c_while_torch_is_imported_ends_the_sweep_in_one_line_however_often_it_is_pressed(tmp_path):
    with Command(["-m", "seed=0,1"], tmp_path, cold=True) as command:
        # The command, what tracks its resources, and the server from which jobs are forked.
        command.wait_until(lambda: len(command.alive()) >= 3)
        for _ in range(5):
            os.killpg(command.process.pid, signal.SIGINT)  # as a terminal sends it
            time.sleep(0.2)
        done = command.done(timeout=60)
        assert command.wait_alone() == []
    assert (done.code, done.err) == (130, "interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_jobs_do_not_outlive_a_sweep_that_is_killed(planted):
    with asleep(planted) as command:
        command.wait_until(lambda: len(ranks(planted)) == 2, timeout=150)
        os.kill(command.process.pid, signal.SIGKILL)
        command.done(timeout=30)
        assert command.wait_alone() == []
    assert not (planted.directory / "sweep" / "1").exists()
