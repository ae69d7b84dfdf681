"""What a terminal shows of a sweep that runs: how many jobs, how far each is, and how long it will take."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

# A job that is not this far says little about how long it will take.
_TELLING = 0.05


@dataclass(frozen=True)
class Beat:
    """How far a job is, as pulse.py writes it; None where that is not known."""

    epoch: float = 0.0
    epochs: int | None = None
    step: int = 0
    steps: int | None = None
    loss: float | None = None
    phase: str = "training"

    @property
    def fraction(self) -> float:
        """Share of the training that is done, from 0 to 1; 0 where the end is not known."""
        shares = [done / whole for done, whole in ((self.epoch, self.epochs), (self.step, self.steps)) if whole]
        return min(1.0, max(shares, default=0.0))

    @property
    def words(self) -> str:
        """Where it is."""
        if self.phase != "training":
            return "measuring"
        if self.epochs:
            return f"epoch {min(self.epochs, int(self.epoch) + 1)}/{self.epochs}"
        return f"step {self.step}/{self.steps}" if self.steps else f"step {self.step}"


@dataclass(frozen=True)
class Row:
    """A job that runs."""

    title: str
    label: str
    seconds: float
    beat: Beat | None


def read_beat(path: Path) -> Beat | None:
    """Read how far a job is.

    Args:
        path: Of the file that it writes.

    Returns:
        None before the first beat.
    """
    try:
        fields = json.loads(path.read_text())
        return Beat(**{name: fields[name] for name in Beat.__dataclass_fields__})
    except (OSError, ValueError, KeyError, TypeError):  # a job without lbtrain's own callbacks has none
        return None


def time_left(done: Sequence[float], running: Iterable[Row], waiting: int, together: int) -> float | None:
    """Estimate how long the rest of a sweep takes: jobs take the mean of what is known of them.

    Args:
        done: Seconds that each job took.
        running: Jobs under way.
        waiting: Jobs that have not started.
        together: Jobs at a time.

    Returns:
        Seconds; None as long as nothing is known.
    """
    rows = [(row.seconds, row.beat.fraction if row.beat else 0.0) for row in running]
    known = [*done, *(seconds / share for seconds, share in rows if share >= _TELLING)]
    if not known:
        return None
    mean = sum(known) / len(known)
    left = [s * (1 - share) / share if _TELLING <= share < 1 else max(0.0, mean - s) for s, share in rows]
    return max([(sum(left) + mean * waiting) / together, *left])


def span(seconds: float) -> str:
    """Write a duration.

    Args:
        seconds: Of it.

    Returns:
        Such as `42 s`, `5 min`, `2 h 05 min`.
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def view(counts: dict[str, int], rows: Sequence[Row], left: float | None) -> RenderableType:
    """Draw a sweep.

    Args:
        counts: Jobs by state, in the order in which they are shown.
        rows: Jobs that run.
        left: Seconds until the end; None if nobody knows.

    Returns:
        What rich prints.
    """
    head = ", ".join(f"{number} {state}" for state, number in counts.items())
    cells = [_cells(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    table = Table.grid(padding=(0, 2), expand=True)
    for position, width in enumerate(widths):
        # The label alone gives way where the terminal is narrow.
        flexible = {"ratio": 1, "overflow": "ellipsis"} if position == 1 else {"width": width}
        table.add_column(justify="left" if position < 2 else "right", no_wrap=True, **flexible)  # type: ignore[arg-type]
    for row in cells:
        table.add_row(*map(Text, row))
    title = Text(f"{head}; {'time left unknown' if left is None else f'about {span(left)} left'}")
    return Group(title, table) if cells else title


def _cells(row: Row) -> tuple[str, ...]:
    where = row.beat.words if row.beat else "starting"
    loss = f"loss {row.beat.loss:.4g}" if row.beat and row.beat.loss is not None else ""
    return row.title, row.label, where, loss, span(row.seconds)
