"""Jobs of a sweep: how each way of ending is recorded."""

import multiprocessing
import os
import signal

import pytest

from lbtrain.app import jobs
from lbtrain.app.jobs import Job, run_jobs
from lbtrain.records import RunRecord, read_record, write_record


class Ended:
    """A process that has ended."""

    pid = None

    def __init__(self, exitcode):
        self.exitcode = exitcode

    def is_alive(self):
        return False


def job(directory, number=0):
    config = {"data.batch_size": 16}
    return Job(number, ("seed=1", "api_key=sk-1"), directory / str(number), ("train.py",), "seed=1", config)


def record(status="finished", error=None):
    return RunRecord("r", status, error, (), {}, {"test/acc": 0.5}, {}, None, "2026-01-01T00:00:00+00:00", 1.0)


def recorded(directory, exitcode, cause=None, left=None, log=None):
    own = job(directory)
    own.directory.mkdir()
    if left is not None:
        write_record(own.directory, left)
    if log is not None:
        (own.directory / "out.log").write_text(log)
    found = jobs._recorded(jobs._Running(own, Ended(exitcode), 0.0), cause)
    assert read_record(own.directory) == found
    return found


def test_record_of_a_good_end_stays(tmp_path):
    assert recorded(tmp_path, 0, left=record()) == record()


def test_record_of_a_failure_stays(tmp_path):
    failed = record("failed", "ValueError: x")
    assert recorded(tmp_path, 1, left=failed) == failed


@pytest.mark.parametrize(
    ("exitcode", "how"), [(-9, "ended by signal SIGKILL"), (3, "ended with exit code 3"), (0, "ended with exit code 0")]
)
def test_job_without_a_record_gets_one(exitcode, how, tmp_path):
    found = recorded(tmp_path, exitcode, log="first\n\nlast words \n")
    assert found.status == "failed"
    assert (
        found.error == f"{how} before the run was complete; its last words: last words; all of them are in its out.log"
    )
    assert (found.name, found.overrides) == ("seed=1", ("seed=1",))
    assert found.config == {"data.batch_size": 16}


def test_death_after_the_record_keeps_the_numbers(tmp_path):
    found = recorded(tmp_path, -11, left=record())
    assert (found.status, found.error) == ("failed", "ended by signal SIGSEGV after its results were written")
    assert found.metrics == {"test/acc": 0.5}


def test_interrupted_job_says_so_whatever_it_said_itself(tmp_path):
    found = recorded(tmp_path, 1, cause="the sweep was interrupted", left=record("failed", "SIGTERMException"))
    assert found.error.startswith("the sweep was interrupted before the run was complete")


def test_job_that_was_done_when_the_sweep_was_interrupted_stays_done(tmp_path):
    assert recorded(tmp_path, 0, cause="the sweep was interrupted", left=record()) == record()


def leave_a_record(argv, log, threads, lifeline):
    number = int(argv[1])
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    write_record(argv[0], record())


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_all_jobs_run_and_stale_records_do_not_count(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jobs, "work", leave_a_record)
    todo = []
    for number in range(3):
        directory = tmp_path / str(number)
        write_record(directory, record("failed", "of an earlier sweep"))
        todo.append(Job(number, (), directory, (str(directory), str(number)), f"n={number}", {}))
    # A fork inherits the replaced function, which takes no time to start.
    run_jobs(multiprocessing.get_context("fork"), todo, slots=2, threads=1)
    found = [read_record(own.directory) for own in todo]
    assert [own.status for own in found] == ["finished", "failed", "finished"]
    assert found[1].error.startswith("ended by signal SIGKILL")
    assert "run 2 of 3 FAILED: ended by signal SIGKILL" in capsys.readouterr().out


def test_no_signal_goes_to_the_group_of_the_tests():
    assert jobs._signal_group(Ended(0), signal.SIGKILL) is False
