"""How a sweep gets on: one line per event, and on a terminal a live view below them."""

import math
import re
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.markup import escape

from lbtrain.app.names import job_name
from lbtrain.app.sweep.job import PULSE_NAME, Job, quoted
from lbtrain.app.sweep.view import Row, read_beat, time_left, view
from lbtrain.records import RunRecord

# Seconds between two looks at how far the jobs are.
_INTERVAL = 0.5


@dataclass(frozen=True)
class _Start:
    job: Job
    since: float


class Progress:
    """Tell how a sweep gets on.

    Args:
        total: Number of runs, those included that were finished before.
        together: Runs at a time.
        console: To write to; None: standard output.
        sweep: Directory of the sweep; None: not told.
    """

    def __init__(self, total: int, together: int, console: Console | None = None, sweep: Path | None = None) -> None:
        self._total, self._together, self._sweep = total, together, sweep
        self._running: dict[str, _Start] = {}
        self._failed, self._before, self._durations = 0, 0, list[float]()
        self._done = 0
        self._console = console or Console(highlight=False)
        self._live: Live | None = None
        if self.live:
            # Drawn by refresh() alone: a thread of its own could write in the middle of a line.
            self._live = Live(console=self._console, auto_refresh=False, transient=True, get_renderable=self._drawn)
        self._say(f"{total} run{'' if total == 1 else 's'}, {together} at a time")

    @property
    def live(self) -> bool:
        """Whether a live view is shown, and jobs should tell how far they are."""
        return self._console.is_terminal and not self._console.is_dumb_terminal

    @property
    def interval(self) -> float:
        """Seconds until refresh() should be called at the latest."""
        return _INTERVAL if self.live else math.inf

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def refresh(self) -> None:
        """Draw the live view anew, where there is one."""
        if self._live:
            self._live.refresh()

    def same(self, groups: Sequence[Sequence[Job]]) -> None:
        """Say which runs are the same, in one line; nothing where all differ.

        Args:
            groups: Jobs that are equal, at least two in each group.
        """
        if not groups:
            return
        first, more = groups[0], len(groups) - 1
        names = [job.title.removeprefix("run ").partition(" of ")[0] for job in first]
        times = "twice" if len(first) == 2 else f"{len(first)} times"
        others = f"; so it is with {more} more setting{'' if more == 1 else 's'}" if more else ""
        self._say(
            f"runs {', '.join(names[:-1])} and {names[-1]} are the same: {job_name(first[0].overrides)} is given "
            f"{times}; the report counts one of them{others}"
        )

    def skipped(self, job: Job, record: RunRecord) -> None:
        """Say that a run was finished before.

        Args:
            job: Which.
            record: What it left then.
        """
        self._before += 1
        self._say(f"{job.title} was finished before: {job.label} ({_numbers(record)})")

    def started(self, job: Job, attempt: int) -> None:
        """Say that a run starts.

        Args:
            job: Which.
            attempt: How many times it has started by now.
        """
        self._running[job.title] = _Start(job, time.monotonic())
        how = "starts" if job.ckpt is None else f"goes on from {job.ckpt.name}"
        again = f", attempt {attempt}" if attempt > 1 else ""
        self._say(f"{job.title} {how}{again}: {job.label}")
        self.refresh()

    def retried(self, job: Job, record: RunRecord, seconds: float, attempt: int, attempts: int) -> None:
        """Say that a run has failed, and that it starts once more.

        Args:
            job: Which.
            record: What it left.
            seconds: How long it took.
            attempt: How many times it has started by now.
            attempts: How many times it may start.
        """
        del self._running[job.title]
        where = f"({seconds:.0f} s; folder {job.folder})"
        self._say(f"{job.title} failed in attempt {attempt} of {attempts}: {record.error} {where}")
        self.refresh()

    def ended(self, job: Job, record: RunRecord, seconds: float, attempts: int) -> None:
        """Say how a run ended.

        Args:
            job: Which.
            record: What it left.
            seconds: How long it took.
            attempts: How many times it was started.
        """
        del self._running[job.title]
        failed = record.status == "failed"
        if not failed:
            self._durations.append(seconds)
        self._failed += failed
        self._done += not failed
        again = f", in attempt {attempts}" if attempts > 1 and not failed else ""
        where = f"; folder {job.folder}" if failed else ""
        said = f"FAILED: {record.error or ''}" if failed else f"done: {_numbers(record)}"
        self._say(f"{job.title} {said}{again} ({seconds:.0f} s{where})")
        self.refresh()

    def so_far(self) -> str:
        """Say how many runs are finished, and how the others are started.

        Returns:
            One line, for the end of a sweep that was interrupted.
        """
        again = f"hydra.sweep.dir={_word(self._sweep)}" if self._sweep else "the same hydra.sweep.dir"
        done = f"{self._before + self._done} of {self._total} run{'' if self._total == 1 else 's'} finished"
        return f"{done}; to go on, repeat the command with {again}"

    def _drawn(self) -> object:
        now = time.monotonic()
        rows = [
            Row(title, start.job.label, now - start.since, read_beat(start.job.directory / PULSE_NAME))
            for title, start in self._running.items()
        ]
        waiting = self._total - self._before - self._done - self._failed - len(rows)
        counts = {"done": self._before + self._done, "running": len(rows), "failed": self._failed, "left": waiting}
        return view(counts, rows, time_left(self._durations, rows, waiting, self._together))

    def _say(self, text: str) -> None:
        # Soft wrapping off a terminal: a line of a log stays one line.
        self._console.print(escape(text), soft_wrap=True)


def _word(path: Path) -> str:
    """Return a path as one types it in a shell after `hydra.sweep.dir=`."""
    plain = re.fullmatch(r"[\w./-]+", str(path))
    return str(path) if plain else shlex.quote(quoted(path))


def _numbers(record: RunRecord) -> str:
    shown = {"train/loss": "train loss", "test/acc": "test acc", "hessian/lambda_max": "lambda_max"}
    found = {label: record.metrics[key] for key, label in shown.items() if key in record.metrics}
    told = [f"{k} {v:.3g}" for k, v in found.items() if isinstance(v, float) and not math.isinf(v)]
    problem = record.metrics.get("diagnosis/first", "none")
    return ", ".join(told if problem == "none" else [*told, str(problem)]) or "no metrics"
