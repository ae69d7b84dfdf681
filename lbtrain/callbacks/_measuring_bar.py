"""How far a measurement has come: a bar on a terminal, gone when it is done; elsewhere one line if it takes long."""

import math
import time
from collections import deque
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from lbtrain._lightning import Trainer, rank_zero_info
from lbtrain.functional.progress import Progress

_LONG = 10.0  # seconds after which a line is due where no bar can be shown: as long as a user may wait unaware
_FEWEST = 8  # products of a stage before its time left is told: the first ones build graphs
_WINDOW = 16  # products that the decline of the residual is read off: Lanczos residuals fall by leaps


class MeasuringBar:
    """Show the stage, the products done, the residual against the tolerance and the time left.

    A context manager, called with each `Progress`. The bar is shown by rank zero, on a terminal, where the Trainer's
    own progress bar is on.

    Args:
        trainer: The Trainer.
        name: What measures.
        console: Where to show it; None for the standard output.
    """

    def __init__(self, trainer: Trainer, name: str, console: Console | None = None) -> None:
        console = console or Console()
        own = trainer.progress_bar_callback
        shown = trainer.is_global_zero and console.is_terminal and not console.is_dumb_terminal
        self._name, self._start, self._told = name, time.perf_counter(), False
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(24), TimeElapsedColumn())
        disabled = not (shown and own is not None and own.is_enabled)
        self._bar = Bar(*columns, console=console, transient=True, disable=disabled)
        self._task = self._bar.add_task(name, total=None)
        self._pace = Pace()

    def __enter__(self) -> "MeasuringBar":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, progress: Progress) -> None:
        """Show one more product.

        Args:
            progress: The state after it.
        """
        left = self._pace.left(progress, time.perf_counter() - self._start)
        if self._bar.disable and math.isfinite(progress.residual):
            left = math.nan  # a line that stays must be right: only products that are counted give a time
        text = f"{self._name}: {words(progress, left)}"
        if not self._bar.disable:
            total, done = progress.limit, progress.num_matvecs
            if math.isfinite(progress.residual):  # a run that ends at a residual ends long before its limit
                total, done = 100, round(100 * share_done(progress))
            self._bar.update(self._task, description=text, total=total, completed=done)
        elif not self._told and time.perf_counter() - self._start > _LONG:
            self._told = True
            rank_zero_info(text)


class Pace:
    """The time left, from the decline of the residual or the products left."""

    def __init__(self) -> None:
        self._stage, self._began, self._seen = "", 0.0, deque[tuple[float, float]](maxlen=_WINDOW)

    def left(self, progress: Progress, now: float) -> float:
        """Return the seconds left.

        Args:
            progress: The state after a product.
            now: Seconds since the start.

        Returns:
            Seconds until the residual meets its tolerance if it goes on falling by the same factor in the same time,
            and no longer than the products left would take at the pace of this stage; NaN where nothing is known: in
            the first products of a stage, and where the residual has met its tolerance and the search goes on.
        """
        if progress.stage != self._stage:
            self._stage, self._began, self._seen = progress.stage, now, deque(maxlen=_WINDOW)
            self._first, self._calls = progress.num_matvecs, 0
        self._calls += 1
        done = progress.num_matvecs - self._first
        by_count = (now - self._began) / done * (progress.limit - progress.num_matvecs) if done > 0 else math.nan
        known = self._calls >= _FEWEST
        if not (progress.residual > 0 and progress.tol > 0):
            return by_count if known else math.nan
        self._seen.append((now, math.log(progress.residual / progress.tol)))
        (then, high), (_, low) = self._seen[0], self._seen[-1]
        if low <= 0 or not known:
            return math.nan
        return min(low * (now - then) / (high - low), by_count) if high > low else by_count


def share_done(progress: Progress) -> float:
    """Return how much of the way to the tolerance the residual has gone, on a log scale from 1.

    Args:
        progress: With a finite residual.

    Returns:
        0 to 1.
    """
    if not (0 < progress.tol < 1 and progress.residual > 0):
        return 0.0
    return min(max(math.log(progress.residual) / math.log(progress.tol), 0.0), 1.0)


def words(progress: Progress, left: float) -> str:
    """Return the state in words.

    Args:
        progress: The state after a product.
        left: Seconds left; NaN where nothing is known.

    Returns:
        For example `lanczos, 23 products, residual 3.1e-02 (until 1e-03), about 4 s left`.
    """
    text = f"{progress.stage}, {progress.num_matvecs} {progress.unit}"
    if math.isfinite(progress.residual):
        text += f", residual {progress.residual:.1e} (until {progress.tol:.0e})"
    return text + (f", about {left:.0f} s left" if math.isfinite(left) else "")
