"""Ctrl-C and SIGTERM while jobs run: noted at once, acted on where nothing is half done."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from types import FrameType, TracebackType
from typing import Any

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


class SweepInterrupted(KeyboardInterrupt):
    """Ctrl-C has ended a sweep; the message says how far it was, and how it goes on."""


def start(context: BaseContext, process: BaseProcess) -> None:
    """Start a process that ignores Ctrl-C, which a terminal sends to all that is in the foreground.

    Otherwise a process that is still importing torch would fill the screen with its traceback.

    Args:
        context: Of `multiprocessing`, with which the process was made.
        process: To be started.
    """
    if context.get_start_method() == "forkserver":
        # Its children are forked with what it ignores. The wait for its imports can be interrupted.
        with _ignored():
            forkserver.ensure_running()
        process.start()
    else:
        with _ignored():
            process.start()


def ignore() -> None:
    """Ignore Ctrl-C from now on: this process has been interrupted, and ends."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def heed() -> None:
    """Raise KeyboardInterrupt on Ctrl-C, as a program does that nobody has told otherwise."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Interrupts:
    """Note signals that ask for the end of the sweep; further ones do not disturb the end that has begun.

    Attributes:
        asked: The first of SIGINT and SIGTERM that has come; None before.
        reader: A file descriptor that becomes readable then, for the one who waits.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self._before: dict[int, Any] = {}
        self.reader, self._writer = os.pipe()
        for end in (self.reader, self._writer):
            os.set_blocking(end, False)

    def __enter__(self) -> "Interrupts":
        # Python lets only the main thread have handlers; elsewhere signals do what they did.
        if threading.current_thread() is threading.main_thread():
            self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            for number in _NUMBERS:
                # A program in the background, or under nohup, may have been told to ignore it.
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._wakeup)
        os.close(self.reader)
        os.close(self._writer)

    def end(self, told: str) -> None:
        """End as the signal asks, if one has come.

        Args:
            told: How far the sweep was, and how it goes on.

        Raises:
            SweepInterrupted: After SIGINT.
            SystemExit: After SIGTERM, with the code that a shell would report.
        """
        if self.asked == signal.SIGINT:
            raise SweepInterrupted(f"interrupted: {told}")
        if self.asked is not None:
            print(f"ended by {signal.Signals(self.asked).name}: {told}", file=sys.stderr)
            raise SystemExit(128 + self.asked)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked is None:
            self.asked = number
