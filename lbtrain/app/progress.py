"""Which run of how many: a live bar on a terminal, one line per event elsewhere."""

import math
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from lbtrain.records import RunRecord


class Progress:
    """Tell how a sweep gets on.

    Args:
        total: Number of runs.
        slots: Runs at a time.
    """

    def __init__(self, total: int, slots: int) -> None:
        self._total, self._running, self._failed = total, list[int](), 0
        # Soft wrapping off a terminal: a line of a log stays one line.
        self._console = Console(highlight=False)
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._bar = Bar(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("", total=total)
        self._say(f"{total} runs, {slots} at a time")

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def started(self, number: int, label: str) -> None:
        """Say that a run starts.

        Args:
            number: Of the run, from 0.
            label: What sets it apart.
        """
        self._running.append(number)
        self._say(f"run {number + 1} of {self._total} starts: {label}")
        self._update(0)

    def ended(self, number: int, record: RunRecord, seconds: float) -> None:
        """Say how a run ended.

        Args:
            number: Of the run, from 0.
            record: What it left.
            seconds: How long it took.
        """
        self._running.remove(number)
        self._failed += record.status == "failed"
        said = "FAILED: " + (record.error or "") if record.status == "failed" else _numbers(record)
        self._say(
            f"run {number + 1} of {self._total} {'' if record.status == 'failed' else 'done: '}{said} ({seconds:.0f} s)"
        )
        self._update(1)

    def _update(self, advance: int) -> None:
        runs = ", ".join(str(n + 1) for n in self._running)
        failed = f", {self._failed} failed" if self._failed else ""
        self._bar.update(self._task, advance=advance, description=f"running: {runs or 'none'}{failed}")

    def _say(self, text: str) -> None:
        self._console.print(escape(text), soft_wrap=True)


def _numbers(record: RunRecord) -> str:
    shown = {"train/loss": "train loss", "test/acc": "test acc", "hessian/lambda_max": "lambda_max"}
    found = {label: record.metrics[key] for key, label in shown.items() if key in record.metrics}
    return (
        ", ".join(f"{k} {v:.3g}" for k, v in found.items() if isinstance(v, float) and not math.isinf(v))
        or "no metrics"
    )
