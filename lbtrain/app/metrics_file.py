"""metrics.csv, also over several sessions of one run."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lbtrain._lightning import CSVLogger, rank_zero_only
from lbtrain.app.leftovers import METRICS_ASIDE, METRICS_NAME

# In every row of a measurement, which is of the weights after its step; other rows are of the batch that follows.
_MEASURED = "time/measure_s"


class MetricsFile(CSVLogger):
    """Lightning's CSVLogger, for a run that is resumed in its own directory.

    Lightning deletes the `metrics.csv` that it finds. Here its rows stay, as many as there were at the checkpoint: a
    run that was killed after its last checkpoint repeats the steps behind it, and logs them again. Where the checkpoint
    does not say how many, they stay up to the step at which the run goes on.

    Args:
        save_dir: Directory of the run.
        name: Folder below it; empty for none.
        version: Folder below that; empty for none.
        prefix: Text before each metric's name.
        flush_logs_every_n_steps: Optimizer steps between two writes.
    """

    def __init__(
        self,
        save_dir: str,
        name: str = "",
        version: str = "",
        prefix: str = "",
        flush_logs_every_n_steps: int = 100,
    ) -> None:
        super().__init__(save_dir, name, version, prefix, flush_logs_every_n_steps)
        self._earlier: list[dict[str, Any]] = []
        self._count = 0

    @property
    def experiment(self) -> Any:
        """The writer of the file; when it is opened, the rows of earlier sessions are written again."""
        if self._experiment is not None or rank_zero_only.rank != 0:
            return super().experiment
        self._set_aside()
        self._earlier = _rows(self._aside)
        writer = super().experiment
        self._write(self._earlier)
        return writer

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add a row; the first one decides which rows of earlier sessions are repeated from here on.

        Args:
            metrics: Values by name.
            step: Optimizer steps done.
        """
        _ = self.experiment
        if self._earlier and step is not None:
            kept = [row for row in self._earlier if int(row["step"]) < step + (_MEASURED in row)]
            if len(kept) < len(self._earlier):
                self._write(kept)
            self._earlier = []
        self._count += 1
        super().log_metrics(dict(metrics), step)

    def kept(self) -> int:
        """Write what has been logged to the disk.

        Returns:
            Rows that the file now has; 0 on ranks that write none.
        """
        self.save()
        return self._count

    @rank_zero_only
    def go_on(self, rows: int | None, pending: Mapping[str, Any] | None) -> None:
        """Take the file back to what it was at a checkpoint.

        Args:
            rows: How many rows it had then; None if that is not known.
            pending: The row that was about to be logged, with its `step`; None for none.
        """
        _ = self.experiment
        if rows is None or not self._earlier:
            return  # another directory than that of the checkpoint: nothing to go on with
        before = f"{self._prefix}-" if self._prefix else ""
        added = [] if pending is None else [{k if k == "step" else before + k: v for k, v in pending.items()}]
        self._write([*self._earlier[:rows], *added])
        self._earlier = []

    def _write(self, rows: list[dict[str, Any]]) -> None:
        """Make these rows the whole file."""
        writer = super().experiment
        self._set_aside()
        Path(writer.metrics_file_path).unlink(missing_ok=True)
        writer.metrics = list(rows)
        writer.save()
        self._aside.unlink(missing_ok=True)
        self._count = len(rows)

    @property
    def _aside(self) -> Path:
        return Path(self.log_dir) / METRICS_ASIDE

    def _set_aside(self) -> None:
        # Killed before the file is whole again, its rows are found here the next time.
        file = self._aside.with_name(METRICS_NAME)
        if file.exists() and not self._aside.exists():
            file.rename(self._aside)


def _rows(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    with file.open(newline="") as opened:
        # A killed run may have left half a row.
        return [
            {key: value for key, value in row.items() if key and value}
            for row in csv.DictReader(opened)
            if (row.get("step") or "").isdigit()
        ]
