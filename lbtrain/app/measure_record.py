"""What a measurement of a checkpoint leaves on disk."""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lbtrain._lightning import rank_zero_only
from lbtrain.app.config import flat, git_commit, redacted, versions, without_secrets
from lbtrain.app.loggers import close_wandb
from lbtrain.app.measure import Line
from lbtrain.app.measure_reading import Facts
from lbtrain.app.outcome import reason
from lbtrain.records import RunRecord, replace_file

MEASUREMENT_NAME = "measurement.json"


@rank_zero_only
def clear(directory: Path) -> None:
    """Remove the file of an earlier measurement in the same directory.

    Args:
        directory: Of the measurement.
    """
    (directory / MEASUREMENT_NAME).unlink(missing_ok=True)


@rank_zero_only
def leave(
    cfg: DictConfig,
    line: Line,
    metrics: Mapping[str, float | str],
    facts: Facts,
    start: float,
    directory: Path,
    error: BaseException | None,
) -> None:
    """Write `measurement.json`, whole or not at all, and close wandb.

    Args:
        cfg: The composed config.
        line: The command line.
        metrics: What is known, by key.
        facts: About the checkpoint.
        start: Seconds since the epoch.
        directory: Of the measurement.
        error: What ended it; None if it is finished.
    """
    try:
        close_wandb(flat(cfg), dict(metrics), failed=error is not None)
    finally:
        record = RunRecord(
            name=line.checkpoint,
            status="finished" if error is None else "failed",
            error=None if error is None else redacted(reason(error), cfg),
            overrides=without_secrets(line.given),
            config=flat(cfg),
            metrics=dict(metrics),
            versions=versions(),
            git_commit=git_commit(Path.cwd()),
            started=datetime.fromtimestamp(start, timezone.utc).isoformat(timespec="seconds"),
            duration_s=time.time() - start,
        )
        run = None if line.run is None else str(line.run.directory)
        checkpoint = {"path": line.checkpoint, "run": run, "epoch": facts.epoch, "global_step": facts.global_step}
        fields = {**asdict(record), "checkpoint": checkpoint}
        text = json.dumps(_plain(fields), indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
        directory.mkdir(parents=True, exist_ok=True)
        replace_file(directory / MEASUREMENT_NAME, text.encode())


def _plain(value: Any) -> Any:
    """Return a value that JSON has a word for: NaN and the infinities become texts, as in `summary.json`."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
