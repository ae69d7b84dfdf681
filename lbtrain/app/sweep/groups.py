"""Process groups of jobs: a job's process leads one, and all that it starts is in it."""

import os
import signal
from contextlib import suppress
from multiprocessing.process import BaseProcess


def signal_group(process: BaseProcess, number: int) -> bool:
    """Send a signal to a job's process group; 0 only asks.

    Args:
        process: That leads, or led, the group.
        number: Of the signal.

    Returns:
        Whether the group exists.
    """
    if not process.pid:  # 0 would mean this process's own group
        return False
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
        return True
    # Just started, and not yet the leader of a group of its own.
    if number and process.is_alive():
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)
    return False


def kill_group(process: BaseProcess) -> None:
    """End what is left of a group at once.

    Args:
        process: That leads, or led, it.
    """
    signal_group(process, signal.SIGKILL)
