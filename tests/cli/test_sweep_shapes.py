"""Sweeps over ranks, beside each other, and for a sweeper."""

import json

import pytest

from lbtrain.records import read_record
from tests.cli.commands import SMALL, Command, run

# Hydra's own sweeper, which also keeps what the jobs return.
SWEEPER = """
import json
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.plugins.sweeper import Sweeper


class Keeping(BasicSweeper):
    def sweep(self, arguments):
        returned = super().sweep(arguments)
        Path("returned.json").write_text(json.dumps([job.return_value for batch in returned for job in batch]))
        return returned
"""


@pytest.mark.slow
@pytest.mark.distributed
def test_ranks_of_a_job_have_the_same_settings(planted):
    # Two draws from shuffle() would differ: Lightning repeats the whole command for the second rank.
    arguments = [*planted.small, "trainer=ddp_cpu", "optimizer.lr=shuffle(0.001,0.002,0.003)", "hydra.sweep.dir=sweep"]
    with Command(["-m", *arguments], planted.directory) as command:
        done = command.done()
        assert command.wait_alone() == []
    assert done.code == 0, done.err
    jobs = [planted.directory / "sweep" / str(number) for number in range(3)]
    for job in jobs:
        rank0, rank1 = (json.loads((job / f"seen{rank}.json").read_text()) for rank in (0, 1))
        assert rank0["lr"] == rank1["lr"]
        assert rank0["pid"] != rank1["pid"]
        metrics = read_record(job).metrics
        assert metrics["batch/data_parallel"] == 2
        assert metrics["lr/scaled"] == pytest.approx(rank0["lr"])
        assert metrics["test/acc"] * 360 == pytest.approx(round(metrics["test/acc"] * 360), abs=1e-3)
    assert {read_record(job).metrics["lr/base"] for job in jobs} == {0.001, 0.002, 0.003}
    assert {path.name for path in planted.directory.iterdir()} <= {"own", "planted_fault.py", "sweep", "__pycache__"}


@pytest.mark.slow
@pytest.mark.distributed
def test_job_that_loses_a_rank_fails_alone(planted):
    overrides = ["trainer=ddp_cpu", "callbacks.fault.kind=kill,none"]
    with Command(["-m", *planted.small, *overrides, "hydra.sweep.dir=sweep"], planted.directory) as command:
        done = command.done()
        assert command.wait_alone() == []
    assert done.code == 1
    killed, other = (read_record(planted.directory / "sweep" / number) for number in ("0", "1"))
    assert killed.error.startswith("ended by signal SIGKILL")
    assert other.status == "finished"


@pytest.mark.slow
def test_of_two_sweeps_into_one_named_directory_the_later_is_refused(tmp_path):
    arguments = ["-m", *SMALL, "hydra.sweep.dir=same"]
    with (
        Command([*arguments, "seed=0"], tmp_path) as first,
        Command([*arguments, "seed=1"], tmp_path) as second,
    ):
        ends = first.done(), second.done()
    assert sorted(end.code for end in ends) == [0, 1], ends
    done, refused = sorted(ends, key=lambda end: end.code)
    told = f"another sweep writes to {tmp_path}/same; wait for it, end it, or give another hydra.sweep.dir"
    assert told in refused.err
    assert [path.parent.name for path in tmp_path.glob("*/*/summary.json")] == ["0"]
    assert [path.name for path in tmp_path.iterdir()] == ["same"]
    assert done.out.count("Report: ") == 1
    assert "Report: " not in refused.out


@pytest.mark.slow
def test_sweeper_gets_the_objective(tmp_path):
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins" / "keeping.py").write_text(SWEEPER)
    arguments = [
        "-m",
        *SMALL,
        "seed=0,1",
        "objective=train/loss",
        "hydra.sweeper._target_=hydra_plugins.keeping.Keeping",
    ]
    done = run([*arguments, "hydra.sweep.dir=sweep"], tmp_path)
    assert done.code == 0, done.err
    returned = json.loads((tmp_path / "returned.json").read_text())
    assert returned == [read_record(tmp_path / "sweep" / str(number)).metrics["train/loss"] for number in range(2)]
