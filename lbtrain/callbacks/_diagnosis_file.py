"""`diagnosis.json` in a run's directory, and the same rows as a table for loggers that take one."""

import json
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lbtrain._lightning import Trainer, rank_zero_only
from lbtrain.callbacks._diagnosis_result import Diagnosis, Names
from lbtrain.callbacks._pictures import run_directory
from lbtrain.functional.diagnosis import Finding

DIAGNOSIS_NAME = "diagnosis.json"
FORMAT = 1
COLUMNS = ("problem", "evidence", "since", "severity", "remedy", "overrides")


@rank_zero_only
def write_diagnosis(trainer: Trainer, diagnosis: Diagnosis, names: Names) -> None:
    """Write `diagnosis.json` whole or not at all; with `fast_dev_run`, which leaves nothing behind, there is no file.

    Args:
        trainer: The Trainer.
        diagnosis: What was found.
        names: Of the run's config.
    """
    if trainer.fast_dev_run:
        return
    path = run_directory(trainer) / DIAGNOSIS_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(as_json(diagnosis, names), indent=1, allow_nan=False, ensure_ascii=False)
    _replace(path, f"{text}\n".encode())


@rank_zero_only
def log_rows(trainer: Trainer, diagnosis: Diagnosis, names: Names) -> None:
    """Hand the problems to wandb as a table, `diagnosis`; a healthy run has an empty one.

    Args:
        trainer: The Trainer.
        diagnosis: What was found.
        names: Of the run's config.
    """
    for logger in trainer.loggers:
        if hasattr(logger, "log_table"):  # wandb's
            step = trainer.fit_loop.epoch_loop._batches_that_stepped
            rows = [_row(finding, names) for finding in diagnosis.findings]
            logger.log_table("diagnosis", columns=list(COLUMNS), data=rows, step=step)


def as_json(diagnosis: Diagnosis, names: Names) -> dict[str, Any]:
    """Lay a diagnosis out as `diagnosis.json` has it.

    Args:
        diagnosis: What was found.
        names: Of the run's config.

    Returns:
        Plain values; numbers that JSON has no word for are the texts nan, inf and -inf.
    """
    made = {
        "format": FORMAT,
        "status": diagnosis.status,
        "error": diagnosis.error,
        "findings": [_finding(finding, names) for finding in diagnosis.findings],
        "checked": list(diagnosis.checked),
        "left_out": dict(diagnosis.left_out),
        "steps": diagnosis.steps,
        "samples": diagnosis.samples,
        "seconds": diagnosis.seconds,
    }
    return _plain(made)


def _finding(finding: Finding, names: Names) -> dict[str, Any]:
    remedies = [
        {"words": names.words(r), "changes": dict(r.changes), "overrides": names.overrides(r)} for r in finding.remedies
    ]
    return {
        "problem": finding.problem,
        "evidence": finding.evidence,
        "numbers": dict(finding.numbers),
        "since": finding.since,
        "severity": finding.severity,
        "remedies": remedies,
        "figure": finding.figure,
    }


def _row(finding: Finding, names: Names) -> list[Any]:
    words = "; ".join(names.words(remedy) for remedy in finding.remedies)
    overrides = " ".join(names.overrides(finding.remedies[0])) if finding.remedies else ""
    # A column of a wandb table has one kind of value: a text for what may be unknown.
    since = "" if finding.since is None else str(finding.since)
    return [finding.problem, finding.evidence, since, float(finding.severity), words, overrides]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _replace(path: Path, data: bytes) -> None:
    """Put `data` at `path` so that a reader sees the old file or the new one, never a part."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # os.replace is atomic within one file system
    try:
        with draft.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
