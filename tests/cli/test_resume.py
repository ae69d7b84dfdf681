"""A run that goes on in its own directory."""

import csv
import os
import signal

import pytest

from lbtrain.app.sweep.earlier import last_checkpoint
from lbtrain.records import read_record
from tests.cli.commands import Command, run
from tests.cli.wandb_file import read

RUN = ("data.batch_size=256", "callbacks=[lr_scaling,checkpoint]", "logger=[csv,wandb]", "hydra.run.dir=run")


def rows(directory):
    """Return the rows of metrics.csv by step and key, without the times, which differ from run to run."""
    with (directory / "metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    return sorted(
        (int(row["step"]), k, v)
        for row in table
        for k, v in row.items()
        if v and not k.startswith("time/") and k != "step"
    )


@pytest.fixture(scope="module")
def sessions(tmp_path_factory, wandb_service):
    whole, parts = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("parts")
    ends = [run([*RUN, "trainer.max_epochs=4"], whole)]
    ends.append(run([*RUN, "trainer.max_epochs=2"], parts, **wandb_service.variables))
    again = [*RUN, "trainer.max_epochs=4", "ckpt_path=run/checkpoints/last.ckpt"]
    ends.append(run(again, parts, **wandb_service.variables))
    return whole / "run", parts / "run", ends


def test_resumed_run_ends_where_the_uninterrupted_one_does(sessions):
    whole, parts, ends = sessions
    assert [end.code for end in ends] == [0, 0, 0], ends
    metrics = [
        {k: v for k, v in read_record(run).metrics.items() if not k.startswith("time/")} for run in (whole, parts)
    ]
    assert metrics[0] == metrics[1]


def test_metrics_file_of_a_resumed_run_is_that_of_the_uninterrupted_one(sessions):
    whole, parts, _ = sessions
    expected, found = rows(whole), rows(parts)
    # Scaling says what it did at the start of each session.
    told = [row for row in found if row not in expected]
    assert {key.split("/")[0] for _, key, _ in told} <= {"lr", "batch"}
    assert [row for row in found if row in expected] == expected


def test_resuming_warns_of_nothing(sessions):
    _, _, ends = sessions
    assert "Warn" not in ends[2].out + ends[2].err
    assert "not empty" not in ends[2].out + ends[2].err


def test_resumed_run_goes_on_in_its_wandb_run(sessions):
    _, parts, _ = sessions
    files = sorted(parts.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    assert len({read(file)["run"].run_id for file in files}) == 1


def test_fresh_run_in_an_old_directory_takes_nothing_over(sessions):
    _, parts, _ = sessions
    before = (parts / "wandb_id.txt").read_text()
    done = run([*RUN, "trainer.max_epochs=1"], parts.parent)
    assert done.code == 0, done.err
    assert max(step for step, _, _ in rows(parts)) == 6
    assert (parts / "wandb_id.txt").read_text() != before
    assert "Warning: Checkpoint directory" not in done.err


def test_run_that_a_batch_system_ends_leaves_a_record_and_a_checkpoint(tmp_path):
    endless = ("trainer.max_epochs=100000", "model=linear", "callbacks=[checkpoint]", "hydra.run.dir=run")
    with Command(endless, tmp_path) as command:
        command.wait_until((tmp_path / "run" / "checkpoints" / "last.ckpt").exists)
        os.kill(command.process.pid, signal.SIGTERM)
        done = command.done(30)
    assert done.code == 143, done.err
    record = read_record(tmp_path / "run")
    assert (record.status, record.error) == ("failed", "ended by SIGTERM")
    assert last_checkpoint(tmp_path / "run") is not None
    assert "Traceback" not in done.err
