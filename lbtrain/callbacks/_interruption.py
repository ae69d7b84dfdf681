"""Ctrl-C while measuring: the first asks the measurement to stop and keep what it has, the second ends it at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lbtrain._lightning import rank_zero_info


class Wish:
    """Whether the user asked this process to stop measuring."""

    def __init__(self) -> None:
        self.is_stop = False


_wishes: list[Wish] = []  # of the measurements in progress, the innermost last


def stop_wanted() -> bool:
    """Return whether this process was asked to stop the measurement in progress; False outside of one."""
    return any(wish.is_stop for wish in _wishes)


@contextmanager
def stoppable(what: str) -> Iterator[Wish]:
    """Turn the first SIGINT inside into a wish that `stop_wanted` tells; the second acts as without this context.

    Only the main thread can handle signals; elsewhere, and where SIGINT is ignored, nothing changes.

    Args:
        what: What is measured, for the line that answers the first SIGINT.

    Yields:
        The wish.
    """
    wish, before = Wish(), signal.getsignal(signal.SIGINT)

    def first(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        wish.is_stop = True
        rank_zero_info(f"{what}: stopping with what has been measured so far; interrupt once more to end at once")

    handled = threading.current_thread() is threading.main_thread() and callable(before)
    _wishes.append(wish)
    try:
        if handled:
            signal.signal(signal.SIGINT, first)
        yield wish
    finally:
        _wishes.remove(wish)
        if handled:
            _put_back(first, before)


def _put_back(ours: Any, before: Any) -> None:
    # What someone else installed meanwhile stays.
    if signal.getsignal(signal.SIGINT) is ours:
        signal.signal(signal.SIGINT, before)
