"""Jobs of a sweep: how each way of ending is recorded, and what becomes of those that fail or take too long."""

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from lbtrain.app.sweep import jobs
from lbtrain.app.sweep.endings import ATTEMPTS, recorded
from lbtrain.app.sweep.groups import signal_group
from lbtrain.app.sweep.interrupts import Interrupts, start
from lbtrain.app.sweep.job import Job
from lbtrain.app.sweep.jobs import Limits, run_jobs
from lbtrain.app.sweep.needs import Machine, Need
from lbtrain.app.sweep.progress import Progress
from lbtrain.app.sweep.slots import Slots
from lbtrain.app.sweep.worker import MARK
from lbtrain.records import RunRecord, read_record, write_record

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def job(directory, number=0, *words, need=None):
    place = directory / str(number)
    overrides, config = ("seed=1", "api_key=sk-1"), {"data.batch_size": 16}
    own = Job(f"run {number + 1} of 3", "seed=1", overrides, place, (str(place), *words), config, "mark")
    return own if need is None else Job(**{**own.__dict__, "need": need})


def record(status="finished", error=None):
    return RunRecord("r", status, error, (), {}, {"test/acc": 0.5}, {}, None, "2026-01-01T00:00:00+00:00", 1.0)


def ended(directory, exitcode, cause=None, left=None, log=None, **options):
    own = job(directory)
    own.directory.mkdir()
    if left is not None:
        write_record(own.directory, left)
    if log is not None:
        (own.directory / "out.log").write_text(log)
    found = recorded(own, exitcode, 1.0, cause, **options)
    assert read_record(own.directory) == found
    return found


def test_record_of_a_good_end_stays(tmp_path):
    assert ended(tmp_path, 0, left=record()) == record()


def test_record_of_a_failure_stays(tmp_path):
    failed = record("failed", "ValueError: x")
    assert ended(tmp_path, 1, left=failed) == failed


@pytest.mark.parametrize(
    ("exitcode", "how"),
    [
        (-9, "ended by signal SIGKILL"),
        (3, "ended with exit code 3"),
        (0, "ended with exit code 0"),
        (255, "ended with exit code 255, or was lost with the server that jobs are forked from,"),
    ],
)
def test_job_without_a_record_gets_one(exitcode, how, tmp_path):
    found = ended(tmp_path, exitcode, log="first\n\nlast words \n")
    assert found.status == "failed"
    assert found.error == f"{how} before the run was complete; its last words: last words; all of them are in 0/out.log"
    assert (found.name, found.overrides) == ("seed=1", ("seed=1",))
    assert found.config == {"data.batch_size": 16}


def test_a_line_of_the_launcher_is_not_taken_for_the_job_s_last_words(tmp_path):
    found = ended(tmp_path, -9, log=f"of the first attempt\n\n{MARK}started again, now\n")
    assert found.error == "ended by signal SIGKILL before the run was complete; see 0/out.log"


def test_death_after_the_record_keeps_the_numbers(tmp_path):
    found = ended(tmp_path, -11, left=record())
    assert (found.status, found.error) == ("failed", "ended by signal SIGSEGV after its results were written")
    assert found.metrics == {"test/acc": 0.5}


def test_interrupted_job_says_so_whatever_it_said_itself(tmp_path):
    left = record("failed", "SIGTERMException")
    found = ended(tmp_path, 1, cause="the sweep was interrupted", left=left, log="Received SIGTERM: 15\n")
    assert found.error == "the sweep was interrupted before the run was complete; see 0/out.log"


def test_job_that_was_done_when_the_sweep_was_interrupted_stays_done(tmp_path):
    assert ended(tmp_path, 0, cause="the sweep was interrupted", left=record()) == record()


def test_a_record_that_cannot_be_read_is_a_failure_of_that_job_alone(tmp_path):
    own = job(tmp_path)
    own.directory.mkdir()
    (own.directory / "summary.json").write_text("{")
    found = recorded(own, 0, 1.0)
    assert found.error.startswith("left a record that cannot be read (")
    assert read_record(own.directory) == found


def test_attempts_are_counted_where_there_was_more_than_one(tmp_path):
    assert ended(tmp_path, 0, left=record(), attempt=2).metrics == {"test/acc": 0.5, ATTEMPTS: 2}


# What stands for a job: the words after the directory say what it does, attempt by attempt.
def stand_in(order, lifeline):
    os.setsid()
    directory, *acts = order.argv
    log = open(order.log, "a")  # noqa: SIM115 - open as long as the job lives
    attempt = Path(order.log).read_text().count("begins")
    log.write(f"begins {order.note} {dict(order.variables)} {order.threads}\n")
    log.flush()
    act = acts[min(attempt, len(acts) - 1)] if acts else "finish"
    if act == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if act == "fail":
        write_record(directory, record("failed", "ValueError: planted"))
        raise SystemExit(1)
    if act.startswith("deaf"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if act == "tidy":
        signal.signal(signal.SIGTERM, lambda *_: (Path(directory, "tidied").touch(), os._exit(1)))
    if act in ("sleep", "deaf", "tidy"):
        time.sleep(60)
    if act == "child":
        child = os.fork()
        if child == 0:
            time.sleep(60)
        Path(directory, "child").write_text(str(child))
    if act == "pause":
        time.sleep(0.3)
    write_record(directory, record())


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return what runs jobs that act as told; a fork inherits the stand-in, which takes no time to start."""
    monkeypatch.setattr(jobs, "work", stand_in)
    monkeypatch.setattr(jobs, "_PATIENCE", 0.3)
    monkeypatch.setattr(jobs, "_TICK", 0.2)

    def run(*acts, slots=2, machine=None, needs=None, shared=1, **limits):
        machine = machine or Machine(2)
        todo = [job(tmp_path, n, *words, need=needs and needs[n]) for n, words in enumerate(acts)]
        for own in todo:
            write_record(own.directory, record("failed", "of an earlier sweep"))
        context, free = multiprocessing.get_context("fork"), Slots(machine, shared, slots)
        try:
            run_jobs(context, todo, machine, free, Limits(**limits), Progress(len(todo), slots))
        finally:
            assert multiprocessing.active_children() == []
        return [read_record(own.directory) for own in todo]

    return run


def test_all_jobs_run_and_stale_records_do_not_count(run, capsys):
    found = run([], ["kill"], [])
    assert [own.status for own in found] == ["finished", "failed", "finished"]
    assert found[1].error.startswith("ended by signal SIGKILL")
    assert "run 2 of 3 FAILED: ended by signal SIGKILL" in capsys.readouterr().out


def test_a_failed_attempt_is_repeated_as_often_as_asked(run, capsys):
    found = run(["fail", "kill", "finish"], ["fail"], retries=2)
    assert [own.status for own in found] == ["finished", "failed"]
    assert [own.metrics[ATTEMPTS] for own in found] == [3, 3]
    assert found[1].error == "ValueError: planted (attempt 3)"
    out = capsys.readouterr().out
    assert "run 1 of 3 failed in attempt 1 of 3: ValueError: planted (" in out
    assert "run 1 of 3 starts, attempt 3: seed=1" in out
    assert "run 1 of 3 done: no metrics, in attempt 3" not in out
    assert "run 1 of 3 done: test acc 0.5, in attempt 3 (" in out
    assert out.count("FAILED") == 1


def test_a_repeated_attempt_goes_on_from_the_last_checkpoint(run, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(jobs, "last_checkpoint", lambda directory: directory / "last.ckpt")
    order = jobs.Order
    monkeypatch.setattr(jobs, "Order", lambda argv, *rest: seen.append(argv) or order(argv, *rest))
    run(["fail", "finish"], retries=1)
    assert seen[0] == (str(tmp_path / "0"), "fail", "finish")
    assert seen[1] == (*seen[0], f"ckpt_path='{tmp_path}/0/last.ckpt'")
    assert "begins attempt 2 from last.ckpt" in (tmp_path / "0" / "out.log").read_text()


def alive(pid):
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("act", ["sleep", "deaf"])
def test_a_job_that_takes_too_long_is_ended_and_the_others_go_on(act, run):
    start = time.monotonic()
    found = run([act], [], [], timeout_s=0.5)
    assert time.monotonic() - start < 10
    assert [own.status for own in found] == ["failed", "finished", "finished"]
    assert found[0].error == "stopped by the time limit of 0.5 s before the run was complete; see 0/out.log"


def test_a_job_is_asked_to_end_before_it_is_made_to(run, tmp_path):
    run(["tidy"], timeout_s=0.5)
    assert (tmp_path / "0" / "tidied").exists()


def test_what_a_job_has_started_ends_after_it(run, tmp_path):
    start = time.monotonic()
    assert run(["child"])[0].status == "finished"
    assert time.monotonic() - start < 10
    until = time.monotonic() + 5  # a signal is delivered soon, not at once
    while alive((tmp_path / "0" / "child").read_text()) and time.monotonic() < until:
        time.sleep(0.02)
    assert not alive((tmp_path / "0" / "child").read_text())


def test_jobs_of_one_slot_run_one_after_the_other(run, tmp_path):
    run(["pause"], [], slots=1)
    first, second = (read_record(tmp_path / n) for n in "01")
    assert first.status == second.status == "finished"
    times = [(tmp_path / n / "summary.json").stat().st_mtime for n in "01"]
    assert times[0] <= (tmp_path / "1" / "job.json").stat().st_mtime <= times[1]


def test_each_job_sees_the_gpus_of_its_slot_and_no_two_the_same(run, tmp_path):
    machine, two, one = Machine(4, ("5", "GPU-3")), Need("gpu", 2, 2), Need("gpu", 1, 1)
    run(["pause"], ["pause"], ["finish"], slots=None, machine=machine, needs=[one, one, two])
    logs = [(tmp_path / str(n) / "out.log").read_text() for n in range(3)]
    assert ["'5'" in logs[0], "'GPU-3'" in logs[1], "'5,GPU-3'" in logs[2]] == [True] * 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_jobs_and_a_second_one_does_not_disturb_that(number, run, tmp_path, capsys):
    def signals():
        while not all((tmp_path / n / "out.log").exists() for n in "01"):
            time.sleep(0.01)
        for _ in range(5):
            os.kill(os.getpid(), number)
            time.sleep(0.05)

    thread = threading.Thread(target=signals)
    thread.start()
    before = signal.getsignal(number)
    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)) as error:
            run(["deaf"], ["sleep"], ["finish"])
    finally:
        thread.join()
    assert getattr(error.value, "code", 130) == 128 + number
    assert signal.getsignal(number) == before
    records = [read_record(tmp_path / str(n)) for n in range(3)]
    assert [own.error.partition(" before")[0] for own in records[:2]] == ["the sweep was interrupted"] * 2
    assert records[2].error == "of an earlier sweep"
    told = str(error.value) if number == signal.SIGINT else capsys.readouterr().err
    begin = {signal.SIGINT: "interrupted", signal.SIGTERM: "ended by SIGTERM"}[number]
    assert told.startswith(f"{begin}: 0 of 3 runs finished; to go on, repeat the command with the same hydra.sweep.dir")


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts() as own:
            os.kill(os.getpid(), signal.SIGINT)
            assert own.asked is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_process_of_a_sweep_starts_deaf_to_ctrl_c_and_this_one_is_not():
    before = signal.getsignal(signal.SIGINT)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(signal.getsignal(signal.SIGINT)))
    start(context, process)
    assert signal.getsignal(signal.SIGINT) == before
    process.join()
    assert receiver.recv() == signal.SIG_IGN


def test_threads_without_handlers_can_run_jobs():
    found = []
    thread = threading.Thread(target=lambda: found.append(Interrupts().__enter__().__exit__(None, None, None)))
    thread.start()
    thread.join()
    assert found == [None]


def test_no_signal_goes_to_the_group_of_the_tests():
    class Ended:
        pid = None

        def is_alive(self):
            return False

    assert signal_group(Ended(), signal.SIGKILL) is False
