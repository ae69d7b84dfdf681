"""Whoever reads what is printed may stop before its end, as in `lbtrain --help | head`."""

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# What a shell reports of a program that SIGPIPE has ended, as it ends other tools.
_CUT_OFF = 141


@contextmanager
def may_stop_reading() -> Iterator[None]:
    """End quietly with code 141 where nobody reads the standard output any more; a failure keeps its own end.

    Raises:
        BrokenPipeError: If it was another pipe that broke, such as one to a worker.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # the interpreter does so otherwise, too late to be quiet
    except BrokenPipeError as error:
        if not _is_unread():
            raise
        # As Python's documentation of SIGPIPE says: the interpreter flushes once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        before: BaseException | None = error
        while isinstance(before, BrokenPipeError):
            before = before.__context__
        if before is not None and not (isinstance(before, SystemExit) and not before.code):
            raise before from None
        sys.exit(_CUT_OFF)


def _is_unread() -> bool:
    watched = select.poll()
    watched.register(sys.stdout.fileno(), 0)  # errors are reported unasked
    return bool(watched.poll(0))
