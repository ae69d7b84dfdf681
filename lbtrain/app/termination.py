"""SIGTERM, as a batch system or a sweep sends it: the run ends at once, and still leaves its record."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

# What a shell reports for a program that SIGTERM has ended.
EXIT_CODE = 128 + signal.SIGTERM


class Terminated(SystemExit):
    """The end of a run that was asked to end; exit code 143."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


@contextmanager
def sigterm_ends() -> Iterator[None]:
    """Let SIGTERM raise `Terminated` where the run stands; a second one does not disturb what the first has begun.

    Lightning notes SIGTERM while it trains, looks at the end of a batch, and exits with code 0; in measurements and
    evaluation it does not look. Where somebody else has taken the signal, as Slurm's requeue and submitit do, it stays
    theirs.

    Raises:
        Terminated: When the signal comes, also where Lightning has seen it first.
    """  # noqa: DOC501 - other exits pass through
    free = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL and "SLURM_JOB_ID" not in os.environ
    ours = free and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGTERM, _end)
    try:
        yield
    except SystemExit as error:
        if is_sigterm(error) and not isinstance(error, Terminated):
            raise Terminated from error
        raise
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def is_sigterm(error: BaseException | None) -> bool:
    """Tell whether SIGTERM has ended a run.

    Args:
        error: What has ended it.

    Returns:
        True for `Terminated`, and for Lightning's own exception, which has no exit code.
    """
    return isinstance(error, SystemExit) and type(error).__name__ in ("Terminated", "SIGTERMException")


def _end(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)
    raise Terminated
