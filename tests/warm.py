"""Start commands from a process that has imported what they need: most of a short command's time is importing.

`python -m tests.warm SOCKET` imports, and does nothing else; each command is forked from it, with arguments, directory,
environment and session of its own, and ends as Python ends. Where imports themselves matter (their order, what is not
imported, Ctrl-C meanwhile) a test starts its command cold; so do all tests of the README and of the wheel.
"""

import atexit
import importlib
import json
import logging
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What is read when torch or Python start, so that a forked process would not notice it.
_READ_AT_START = ("OMP_", "MKL_", "KMP_", "CUDA_", "TORCH", "LD_", "PYTHON")


class Warm:
    """A command that was forked; to be asked as a `subprocess.Popen` is.

    Args:
        arguments: What stands behind `python`: a script, or `-m` and a module, and their arguments.
        cwd: Its directory.
        env: All of its environment, see `may_be_warm`.
    """

    def __init__(self, arguments, cwd, env):
        self.args, self.returncode = arguments, None
        mine, theirs = zip(*(os.pipe() for _ in range(2)), strict=True)
        self._end = socket.socket(socket.AF_UNIX)
        self._end.connect(_nursery())
        wanted = {"arguments": list(arguments), "cwd": str(cwd), "env": env}
        socket.send_fds(self._end, [json.dumps(wanted).encode() + b"\n"], theirs)
        for fd in theirs:
            os.close(fd)
        self._said = [b"", b""]
        self._readers = [threading.Thread(target=self._read, args=pair, daemon=True) for pair in enumerate(mine)]
        for reader in self._readers:
            reader.start()
        self._lines = self._end.makefile()
        self.pid = int(self._lines.readline())

    def poll(self):
        """Return the exit code, None while it runs; negative for the signal that ended it."""
        if self.returncode is None and select.select([self._end], [], [], 0)[0]:
            self.returncode = int(self._lines.readline())
            self._end.close()
        return self.returncode

    def wait(self, timeout=None):
        """Wait for the end."""
        if self.returncode is None and not select.select([self._end], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.poll()

    def communicate(self, timeout=None):
        """Wait for the end of the command and of its output, and return that."""
        for reader in self._readers:
            reader.join(timeout)
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout)
        self.wait(timeout)
        return tuple(said.decode() for said in self._said)

    def _read(self, i, fd):
        with open(fd, "rb", buffering=0) as pipe:
            while part := pipe.read(2**16):
                self._said[i] += part


def may_be_warm(env):
    """Return whether a command with this environment is the same when it is forked."""
    own = _own()
    changed = {name for name in {*own, *env} if own.get(name) != env.get(name)} - {"PYTHONPATH"}
    return not any(name.startswith(_READ_AT_START) for name in changed)


def _own():
    """Return the environment of the process that commands are forked from."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@cache
def _nursery():
    """Start that process, once in each process of tests, and return its address."""
    folder = tempfile.TemporaryDirectory(prefix="lbtrain")
    path, said = f"{folder.name}/warm", Path(folder.name, "said")
    with said.open("wb") as errors:
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        nursery = subprocess.Popen([sys.executable, "-m", "tests.warm", path], cwd=ROOT, env=_own(), **options)
    atexit.register(folder.cleanup)
    atexit.register(nursery.kill)
    assert nursery.stdout.readline() == b"ready\n", said.read_text()
    return path


def _serve(path):
    """Fork a process for each connection and report its end; return in the forked ones, with their arguments."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    print("ready", flush=True)
    running = {}
    while True:
        ready, _, _ = select.select([listener, woken, sys.stdin], [], [])
        if sys.stdin in ready:  # the tests have ended
            os._exit(0)
        if woken in ready:
            os.read(woken, 2**10)
            for pid in [*running]:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    _tell(running.pop(pid), os.waitstatus_to_exitcode(status))
        if listener in ready:
            asker, _ = listener.accept()
            text, pipes = _wanted(asker)
            if (pid := os.fork()) == 0:
                for other in (*running.values(), asker, listener):
                    other.close()
                return _become(json.loads(text), pipes)
            for fd in pipes:
                os.close(fd)
            running[pid] = asker
            _tell(asker, pid)


def _wanted(asker):
    text, pipes, _, _ = socket.recv_fds(asker, 2**16, 2)
    while not text.endswith(b"\n"):
        text += asker.recv(2**16)
    return text, pipes


def _tell(asker, number):
    try:
        asker.sendall(f"{number}\n".encode())
    except OSError:
        asker.close()  # nobody waits for it


def _become(wanted, pipes):
    """Take over what makes a process another one."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    for fd, own in zip((os.open(os.devnull, os.O_RDONLY), *pipes), range(3), strict=True):
        os.dup2(fd, own)
        os.close(fd)
    os.chdir(wanted["cwd"])
    program = wanted["arguments"][0]
    first = wanted["cwd"] if program == "-m" else str(Path(program).parent)
    given = filter(None, wanted["env"].get("PYTHONPATH", "").split(os.pathsep))
    before = {*os.environ.get("PYTHONPATH", "").split(os.pathsep), str(ROOT), ""}
    sys.path[:] = [first, *given, *(entry for entry in sys.path if entry not in before)]
    os.environ.clear()
    os.environ.update(wanted["env"])
    return wanted["arguments"]


if __name__ == "__main__":
    # Commands import Lightning after Hydra has set up logging: Lightning's loggers then have no handlers of their own.
    logging.root.addHandler(meanwhile := logging.NullHandler())
    for name in ("lbtrain.app.cli", "lbtrain.app.train"):
        importlib.import_module(name)
    logging.root.removeHandler(meanwhile)
    sys.argv = _serve(sys.argv[1])
    if sys.argv[0] == "-m":
        del sys.argv[0]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")
