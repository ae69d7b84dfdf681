"""However a sweep ends, nothing that it has started goes on."""

import os
import signal
import time

import pytest

from lbtrain.records import read_record
from tests.cli.commands import Command

pytestmark = pytest.mark.distributed


def asleep(planted):
    """Start a sweep of two jobs of two ranks each: one falls asleep in training, the other waits for its turn."""
    overrides = ["callbacks.fault.kind=sleep", "seed=0,1", "trainer=ddp_cpu", "hydra.launcher.slots=1"]
    return Command(["-m", *planted.small, *overrides, "hydra.sweep.dir=sweep"], planted.directory)


def ranks(planted):
    return {path.name for path in (planted.directory / "sweep" / "0").glob("seen*.json")}


def test_ctrl_c_ends_jobs_and_their_ranks_and_says_so(planted):
    with asleep(planted) as command:
        command.wait_until(lambda: len(ranks(planted)) == 2)
        start = time.monotonic()
        os.kill(command.process.pid, signal.SIGINT)
        done = command.done(timeout=30)
        assert time.monotonic() - start < 25
        assert command.wait_alone() == []
    assert done.code == 130
    assert "Traceback" not in done.err
    assert "interrupted" in done.err
    record = read_record(planted.directory / "sweep" / "0")
    assert record.status == "failed"
    assert record.error.startswith("the sweep was interrupted before the run was complete")
    assert not (planted.directory / "sweep" / "1").exists()
    assert (planted.directory / "sweep" / "report.html").is_file()


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_jobs_do_not_outlive_a_sweep_that_is_killed(number, planted):
    with asleep(planted) as command:
        command.wait_until(lambda: len(ranks(planted)) == 2)
        os.kill(command.process.pid, number)
        command.done(timeout=30)
        assert command.wait_alone() == []
    assert not (planted.directory / "sweep" / "1").exists()
