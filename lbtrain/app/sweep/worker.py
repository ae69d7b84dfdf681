"""One job of a sweep, seen from inside its process."""

import os
import signal
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from multiprocessing.connection import Connection

from lbtrain.app.sweep.interrupts import heed

# Begins a line of a log that the launcher has written, not the job.
MARK = "--- "


@dataclass(frozen=True)
class Order:
    """What a job's process is to do.

    Args:
        argv: Program and arguments.
        log: File that takes standard output and error.
        threads: Of torch, unless OMP_NUM_THREADS says otherwise.
        variables: Environment variables of the job alone.
        note: Why the log, where there is one already, goes on.
    """

    argv: tuple[str, ...]
    log: str
    threads: int
    variables: tuple[tuple[str, str], ...] = ()
    note: str = "started again"


def work(order: Order, lifeline: Connection) -> None:
    """Be the command that is ordered, in a session of one's own, with all output in a file.

    Args:
        order: What to do.
        lifeline: Pipe of which only the sweep's own process holds the other end.
    """
    # The processes that the job starts, ranks and loaders, stay in its group, so one signal reaches all of them.
    os.setsid()
    heed()  # what started this process ignores Ctrl-C, which no longer reaches it here
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    # CUDA reads which GPUs it may see when it starts, which no import does.
    os.environ.update(order.variables)
    _redirect(order.log, order.note)
    _start_torch(order.threads)
    sys.argv = list(order.argv)
    from lbtrain.app.cli import main

    main()


def _redirect(log: str, note: str) -> None:
    """Send all output to the end of a file, line by line, so that nothing is lost with the process."""
    with open(log, "ab", buffering=0) as file:
        if file.tell():
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            file.write(f"\n{MARK}{note}, {now}\n".encode())
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def _start_torch(threads: int) -> None:
    import numpy
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # read by the processes that this one starts
        torch.set_num_threads(threads)
    # Jobs that are forked from one server begin with the same random streams: without a seed they would all be one run.
    torch.seed()
    numpy.random.seed()  # noqa: NPY002 - other people's data sets draw from the global stream


def _end_with(lifeline: Connection) -> None:
    """Kill this job's process group when the sweep's process is gone: nobody would wait for it or stop it."""
    with suppress(EOFError, OSError):
        lifeline.recv_bytes()
    os.killpg(os.getpgrp(), signal.SIGKILL)
