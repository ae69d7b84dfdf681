"""A sweep that is killed and started again ends as one that was never killed."""

import csv
import os
import signal

import pytest

from lbtrain.records import read_record
from tests.cli.commands import Command, run

# Four commands come before the first test.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# A callback that kills the sweep's process, or its own job, at the moment that a file next to it asks for, once.
KILLER = """
import os
import signal
import time
from pathlib import Path

from lbtrain._lightning import Callback


class Killer(Callback):
    def __init__(self, batch):
        self.batch = batch

    def at(self, moment):
        order = Path(f"kill {moment} of {self.batch}")
        try:
            order.unlink()
        except FileNotFoundError:
            return
        os.kill(int(Path("sweep.pid").read_text()), signal.SIGKILL)
        time.sleep(120)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.at(f"step {trainer.global_step}")

    def on_train_end(self, trainer, pl_module):
        self.at("end")
"""
KILLER_YAML = """
killer:
  _target_: planted_killer.Killer
  batch: ${data.batch_size}
"""
SWEEP = (
    "-m",
    "--config-dir=own",
    "model=linear",
    "trainer.max_epochs=2",
    "callbacks=[lr_scaling,loss_reduction,sam,killer,hessian,checkpoint]",
    "hydra.launcher.slots=1",
    "hydra.sweep.dir=sweep",
)
BATCHES = "data.batch_size=512,256"
# Seconds that a command may take on a machine that does other things, too.
_PATIENCE = 500.0


def results(directory):
    """Return the rows of results.csv without what the clock says."""
    with (directory / "sweep" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    return [{key: value for key, value in row.items() if not is_of_the_clock(key)} for row in rows]


def is_of_the_clock(key):
    return key.startswith("time/") or key in ("started", "duration_s")


def killed(directory, moment, batches=BATCHES):
    """Start the sweep and let a job kill the sweep's process at this moment; return what it had said."""
    (directory / f"kill {moment}").touch()
    with Command([*SWEEP, batches], directory) as command:
        (directory / "sweep.pid").write_text(str(command.process.pid))
        done = command.done(_PATIENCE)
        assert command.wait_alone() == []
    assert done.code == -signal.SIGKILL
    assert not (directory / f"kill {moment}").exists()
    return done


def states(directory, count):
    records = [read_record(directory / "sweep" / str(number)) for number in range(count)]
    return [record and record.status for record in records]


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """The directories of a sweep that was left alone, and of one that was killed twice; what their commands said."""
    folders = [tmp_path_factory.mktemp(name) for name in ("whole", "broken")]
    for folder in folders:
        (folder / "planted_killer.py").write_text(KILLER)
        (folder / "own" / "callbacks").mkdir(parents=True)
        (folder / "own" / "callbacks" / "killer.yaml").write_text(KILLER_YAML)
    said = [run([*SWEEP, BATCHES], folders[0], timeout=_PATIENCE)]
    # Within an epoch; and when the last step is done, while the end of the run is measured.
    said.append(killed(folders[1], "step 4 of 512"))
    said.append(killed(folders[1], "end of 256"))
    between = states(folders[1], 2)
    said.append(run([*SWEEP, BATCHES], folders[1], timeout=_PATIENCE))
    return *folders, said, between


def test_killed_sweep_gives_the_results_of_one_that_was_left_alone(twins):
    whole, broken, said, between = twins
    assert [done.code for done in (said[0], said[3])] == [0, 0], said
    assert between == ["finished", None]
    assert states(broken, 2) == ["finished"] * 2
    assert results(broken) == results(whole)


def test_records_of_a_killed_sweep_are_those_of_one_that_was_left_alone(twins):
    whole, broken, _, _ = twins
    for number in range(2):
        pair = [read_record(folder / "sweep" / str(number)) for folder in (whole, broken)]
        for name in ("name", "overrides", "config"):
            assert getattr(pair[0], name) == getattr(pair[1], name)
        metrics = [{k: v for k, v in record.metrics.items() if not is_of_the_clock(k)} for record in pair]
        assert metrics[0] == metrics[1]
        assert {"hessian/lambda_max", "sam/rho", "loss/reduction", "gap/acc"} <= metrics[0].keys()


def test_longer_list_starts_only_the_new_jobs(twins):
    _, broken, _, _ = twins
    before = {n: (broken / "sweep" / str(n) / "summary.json").stat().st_mtime_ns for n in range(2)}
    done = run([*SWEEP, BATCHES.replace("=", "=1024,")], broken, timeout=_PATIENCE)
    assert done.code == 0, done
    assert {n: (broken / "sweep" / str(n) / "summary.json").stat().st_mtime_ns for n in range(2)} == before
    assert read_record(broken / "sweep" / "2").config["data.batch_size"] == 1024
    assert len(results(broken)) == 3


def test_sweep_ended_by_sigterm_leaves_records_and_goes_on(tmp_path):
    arguments = ("-m", "model=linear", "data.batch_size=64,32", "trainer.max_epochs=400", "callbacks=[checkpoint]")
    with Command([*arguments, "hydra.sweep.dir=sweep"], tmp_path) as command:
        command.wait_until(lambda: (tmp_path / "sweep" / "0" / "checkpoints" / "last.ckpt").exists(), _PATIENCE)
        os.kill(command.process.pid, signal.SIGTERM)
        done = command.done(_PATIENCE)
        assert command.wait_alone() == []
    assert done.code == 143
    record = read_record(tmp_path / "sweep" / "0")
    assert record.status == "failed"
    assert "SIGTERM" in record.error or "interrupted" in record.error
