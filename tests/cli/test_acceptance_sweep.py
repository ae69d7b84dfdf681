"""A sweep over ranks of which one job fails on one rank, and the same command given again."""

import json
import os

import pytest

from lbtrain.records import read_record
from tests.cli.commands import Command

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.timeout(420)]
# Fails on rank zero alone, where the other rank waits for it, until the cause is gone.
FRAIL = """
import json
import os
from pathlib import Path

from lbtrain._lightning import Callback


class Frail(Callback):
    def __init__(self, directory):
        self.directory = Path(directory)

    def on_train_start(self, trainer, pl_module):
        with (self.directory / f"starts{trainer.global_rank}.txt").open("a") as file:
            file.write(json.dumps([trainer.optimizers[0].param_groups[0]["lr"], os.getpid()]) + "\\n")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.directory.name == "1" and Path("cause").exists() and trainer.is_global_zero and batch_idx == 1:
            raise RuntimeError("only rank zero fails")
"""
FRAIL_YAML = """
frail:
  _target_: planted_frail.Frail
  directory: ${hydra:runtime.output_dir}
"""
COMMAND = ["-m", "--config-dir=own", "trainer=ddp_cpu", "trainer.max_epochs=1", "data.batch_size=256"]
COMMAND += [
    "model=linear",
    "callbacks=[lr_scaling,checkpoint,frail]",
    "optimizer.lr=0.01,0.02,0.03",
    "hydra.sweep.dir=sweep",
]
# The acceptance check gives a quiet machine this long, in seconds.
LIMIT = 60.0


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """The sweep's directory, how each of two runs of the command ended, and each job's record after the first."""
    directory = tmp_path_factory.mktemp("twice")
    (directory / "planted_frail.py").write_text(FRAIL)
    (directory / "own" / "callbacks").mkdir(parents=True)
    (directory / "own" / "callbacks" / "frail.yaml").write_text(FRAIL_YAML)
    (directory / "cause").touch()
    ends, texts = [], []
    for _ in range(2):
        with Command(COMMAND, directory) as command:
            ends.append(command.done(200))
            assert command.wait_alone() == []
        assert (directory / "sweep" / "2" / "summary.json").is_file(), ends
        texts.append([(directory / "sweep" / str(number) / "summary.json").read_text() for number in range(3)])
        (directory / "cause").unlink(missing_ok=True)
    return directory, ends, texts


def starts(directory, number, rank=0):
    text = (directory / "sweep" / str(number) / f"starts{rank}.txt").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_the_jobs_beside_one_that_fails_on_one_rank_finish(twice):
    _, (first, _), (texts, _) = twice
    statuses = [json.loads(text)["status"] for text in texts]
    assert statuses == ["finished", "failed", "finished"], first
    assert json.loads(texts[1])["error"] == "RuntimeError: only rank zero fails"
    assert first.code == 1
    assert "3 runs: 2 finished" in first.out
    assert "only rank zero fails" in first.out
    # Other work on the machine may share the cores with the test.
    assert first.seconds < LIMIT * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def test_the_same_command_again_starts_only_the_job_that_failed(twice):
    directory, (_, second), (before, after) = twice
    assert second.code == 0, second
    assert [len(starts(directory, number)) for number in range(3)] == [1, 2, 1]
    assert (after[0], after[2]) == (before[0], before[2])
    assert read_record(directory / "sweep" / "1").status == "finished"
    assert "3 runs: 3 finished" in second.out


def test_both_ranks_start_again_with_the_rate_of_their_job(twice):
    directory, _, _ = twice
    for number in range(3):
        ranks = [starts(directory, number, rank) for rank in (0, 1)]
        rates = {rate for rank in ranks for rate, _ in rank}
        assert rates == {read_record(directory / "sweep" / str(number)).metrics["lr/scaled"]}
        assert len({process for rank in ranks for _, process in rank}) == 2 * len(ranks[0])
    assert {path.name for path in directory.iterdir()} <= {"own", "planted_frail.py", "sweep", "__pycache__"}
