"""Jobs that fail or hang: they are repeated or ended, and a repeated one ends where one that never failed does."""

import re
import sys

import pytest

from lbtrain.records import read_record
from tests.cli.commands import TRAIN, Command, run

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

# Goes wrong once, in the second epoch, and tells with which random numbers and threads.
ONCE = """
import os
import signal
import time
from pathlib import Path

from lbtrain._lightning import Callback


class Once(Callback):
    def __init__(self, directory, kind):
        self.mark, self.kind = Path(directory) / "been_here", kind

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 1 and not self.mark.exists():
            print("begins to go wrong")
            self.mark.touch()
            if self.kind == "raise":
                raise RuntimeError("planted")
            if self.kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.kind == "hang":
                time.sleep(600)
"""
ONCE_YAML = """
once:
  _target_: once.Once
  directory: ${hydra:runtime.output_dir}
  kind: none
"""
SMALL = ("--config-dir=own", "trainer.max_epochs=3", "data.batch_size=256", "callbacks=[lr_scaling,checkpoint,once]")
TIMES = ("time/fit_s", "time/step_ms", "time/epoch_s", "time/measure_s", "run/attempts")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    directory = tmp_path_factory.mktemp("once")
    (directory / "once.py").write_text(ONCE)
    (directory / "own" / "callbacks").mkdir(parents=True)
    (directory / "own" / "callbacks" / "once.yaml").write_text(ONCE_YAML)
    arguments = ["-m", *SMALL, "callbacks.once.kind=none,raise,kill,hang", "hydra.sweep.dir=sweep"]
    arguments += ["hydra.launcher.retries=1", "hydra.launcher.timeout_s=30"]
    with Command(arguments, directory) as command:
        done = command.done(timeout=200)
        assert command.wait_alone() == []
    return directory / "sweep", done


def test_a_failed_killed_or_hung_job_is_repeated_and_ends_as_one_that_never_failed(sweep):
    directory, done = sweep
    assert done.code == 0, done
    records = [read_record(directory / str(number)) for number in range(4)]
    assert [own.status for own in records] == ["finished"] * 4
    metrics = [{k: v for k, v in own.metrics.items() if k not in TIMES} for own in records]
    assert metrics[1:] == metrics[:1] * 3
    assert [own.metrics.get("run/attempts") for own in records] == [None, 2, 2, 2]


def test_progress_tells_of_every_attempt(sweep):
    _, done = sweep
    assert "run 2 of 4 failed in attempt 1 of 2: RuntimeError: planted (" in done.out
    assert "run 3 of 4 failed in attempt 1 of 2: ended by signal SIGKILL before the run was complete" in done.out
    assert "run 4 of 4 failed in attempt 1 of 2: stopped by the time limit of 30 s before the run was co" in done.out
    assert done.out.count("goes on from last.ckpt, attempt 2: callbacks.once.kind=") == 3
    assert len(re.findall(r"run [234] of 4 done: .*, in attempt 2 \(", done.out)) == 3


def test_the_log_of_a_job_has_all_attempts_and_says_where_the_next_begins(sweep):
    directory, _ = sweep
    log = (directory / "2" / "out.log").read_text()
    assert log.index("begins to go wrong") < log.index("--- attempt 2 from last.ckpt, ") < log.index("results: ")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("devices_per_job=1000", r"run 1 of 2: hydra.launcher.devices_per_job must be at most the \d+ CPU cores? of"),
        ("slots=0", "hydra.launcher.slots must be a whole number from 1 on, or null, got 0"),
        ("slot=2", "Did you mean 'slots'?"),
    ],
)
def test_what_the_launcher_cannot_do_is_refused_before_any_job(argument, message, tmp_path):
    done = run(["-m", "seed=0,1", "hydra.sweep.dir=sweep", f"hydra.launcher.{argument}"], tmp_path)
    assert done.code == 1
    assert re.search(message, done.err), done.err
    assert "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_shows_how_far_the_jobs_are(tmp_path):
    small = ["-m", "trainer.max_epochs=60", "data.batch_size=256", "callbacks=[lr_scaling]", "hydra.sweep.dir=sweep"]
    terminal = (sys.executable, "-c", "import pty, sys; pty.spawn(sys.argv[1:])", *TRAIN)
    done = run([*small, "seed=0,1", "hydra.launcher.slots=2"], tmp_path, program=terminal, TERM="xterm", COLUMNS="100")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", done.out)
    assert "0 done, 2 running, 0 failed, 0 left; " in text
    assert re.search(r"run [12] of 2 +seed=[01] +epoch \d+/60 +loss \d", text), text
    assert re.search(r"about \d+ (s|min) left", text)
    assert not list((tmp_path / "sweep").rglob(".pulse*"))
