"""Run the command line as a user does, in a process group that ends with the test."""

import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from tests.warm import Warm, may_be_warm

ROOT = Path(__file__).parents[2]
TRAIN = (sys.executable, str(ROOT / "train.py"))
# Enough to train, evaluate and leave everything that a run leaves.
SMALL = ("trainer.max_epochs=1", "data.batch_size=256", "callbacks=[lr_scaling,checkpoint]")

# A callback that goes wrong on demand, and tells what it saw.
FAULT = """
import json
import os
import signal
import time
from pathlib import Path

from lbtrain._lightning import Callback


class Fault(Callback):
    def __init__(self, directory, kind="none"):
        self.directory, self.kind = Path(directory), kind

    def on_train_epoch_end(self, trainer, pl_module):
        seen = {name: os.environ.get(name) for name in ("PL_GLOBAL_SEED", "RANK", "WANDB_RUN_ID", "OMP_NUM_THREADS")}
        seen |= {"pid": os.getpid(), "lr": trainer.optimizers[0].param_groups[0]["lr"]}
        (self.directory / f"seen{trainer.global_rank}.json").write_text(json.dumps(seen))
        if self.kind == "raise":
            raise RuntimeError(f"planted fault, token {os.environ.get('TEST_API_TOKEN')}")
        if self.kind == "kill" and trainer.is_global_zero:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        if self.kind == "sleep":
            time.sleep(120)
"""
FAULT_YAML = """
fault:
  _target_: planted_fault.Fault
  directory: ${hydra:runtime.output_dir}
  kind: none
"""


@dataclass
class Done:
    """What a command left: exit code, output, and its duration in seconds."""

    code: int
    out: str
    err: str
    seconds: float


class Command:
    """A command that runs in a group of its own; leaving the `with` block ends all that it has started.

    `train.py` is forked from a process that has imported what it needs, unless it is to start `cold`.
    """

    def __init__(self, arguments, cwd, *, program=TRAIN, cold=False, **environment):
        self.mark = uuid.uuid4().hex
        env = {**os.environ, "OMP_NUM_THREADS": "1", "LBTRAIN_TEST_MARK": self.mark}
        env |= {"PYTHONPATH": os.pathsep.join([str(cwd), *filter(None, [env.get("PYTHONPATH")])]), **environment}
        # A text stands for a value, None for no variable at all.
        env = {key: value for key, value in env.items() if value is not None}
        self.start = time.monotonic()
        self.is_warm = not cold and tuple(program) == TRAIN and may_be_warm(env)
        if self.is_warm:
            self.process = Warm([*program[1:], *arguments], cwd, env)
            return
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([*program, *arguments], cwd=cwd, env=env, start_new_session=True, **pipes)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for pid in self.alive():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.communicate()

    def alive(self):
        """Return the process numbers of all that this command has started, itself included."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                # A zombie has an empty environment, and a forked process that of the one it was forked from.
                marked = self.mark.encode() in (entry / "environ").read_bytes()
                if marked or (self.is_warm and session(entry) == self.process.pid):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def wait_until(self, condition, timeout=60.0):
        """Wait for a condition while the command runs."""
        until = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < until, "timed out"
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.05)

    def wait_alone(self, timeout=20.0):
        """Wait until nothing that the command has started lives; return what still does after the timeout."""
        until = time.monotonic() + timeout
        while (alive := self.alive()) and time.monotonic() < until:
            time.sleep(0.05)
        return alive

    def done(self, timeout=120.0):
        """Wait for the end."""
        out, err = self.process.communicate(timeout=timeout)
        return Done(self.process.returncode, out, err, time.monotonic() - self.start)


def session(entry):
    """Return the session of a process by its folder in /proc, None if it has ended."""
    state, _, _, number = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
    return None if state == "Z" else int(number)


def run(arguments, cwd, *, timeout=120.0, **options):
    """Run a command to its end."""
    with Command(arguments, cwd, **options) as command:
        return command.done(timeout)


def plant(directory):
    """Write the callback that goes wrong, and the config group member that names it; return the flag that adds it."""
    (directory / "planted_fault.py").write_text(FAULT)
    (directory / "own" / "callbacks").mkdir(parents=True)
    (directory / "own" / "callbacks" / "fault.yaml").write_text(FAULT_YAML)
    return "--config-dir=own"
