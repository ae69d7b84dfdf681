"""One job of a sweep, seen from inside its process."""

import os
import signal
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection


def work(argv: tuple[str, ...], log: str, threads: int, lifeline: Connection) -> None:
    """Be the command `argv`, in a session of one's own, with all output in a file.

    Args:
        argv: Program and arguments.
        log: File that takes standard output and error.
        threads: Of torch, unless OMP_NUM_THREADS says otherwise.
        lifeline: Pipe of which only the sweep's own process holds the other end.
    """
    # The processes that the job starts, ranks and loaders, stay in its group, so one signal reaches all of them.
    os.setsid()
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    _start_torch(threads)
    sys.argv = list(argv)
    from lbtrain.app.cli import main

    main()


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
