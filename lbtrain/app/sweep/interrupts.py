"""Ctrl-C and SIGTERM while jobs run: noted at once, acted on where nothing is half done."""

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


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

    def end(self) -> None:
        """End as the signal asks, if one has come.

        Raises:
            KeyboardInterrupt: After SIGINT.
            SystemExit: After SIGTERM, with the code that a shell would report.
        """
        if self.asked == signal.SIGINT:
            raise KeyboardInterrupt
        if self.asked is not None:
            print(f"ended by {signal.Signals(self.asked).name}", file=sys.stderr)
            raise SystemExit(128 + self.asked)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked is None:
            self.asked = number
