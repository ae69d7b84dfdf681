"""metrics.csv, also over several sessions of one run."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lbtrain._lightning import CSVLogger, rank_zero_only

# In every row of a measurement, which is of the weights after its step; other rows are of the batch that follows.
_MEASURED = "time/measure_s"


class MetricsFile(CSVLogger):
    """Lightning's CSVLogger, for a run that is resumed in its own directory.

    Lightning deletes the `metrics.csv` that it finds. Here its rows stay, up to the step at which the run goes on: a
    run that was killed after its last checkpoint repeats the steps behind it, and logs them again.

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

    @property
    def experiment(self) -> Any:
        """The writer of the file; when it is opened, the rows of earlier sessions are written again."""
        if self._experiment is not None or rank_zero_only.rank != 0:
            return super().experiment
        self._earlier = _rows(Path(self.log_dir) / "metrics.csv")
        writer = super().experiment
        writer.metrics = list(self._earlier)
        writer.save()
        return writer

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add a row; the first one decides which rows of earlier sessions are repeated from here on.

        Args:
            metrics: Values by name.
            step: Optimizer steps done.
        """
        writer = self.experiment
        if self._earlier and step is not None:
            kept = [row for row in self._earlier if int(row["step"]) < step + (_MEASURED in row)]
            if len(kept) < len(self._earlier):
                Path(writer.metrics_file_path).unlink(missing_ok=True)
                writer.metrics = kept
                writer.save()
            self._earlier = []
        super().log_metrics(dict(metrics), step)


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
