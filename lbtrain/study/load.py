"""Run folders to rows: one row per job, also for jobs that failed or left nothing."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from lbtrain.records import SUMMARY_NAME, RunRecord, read_record
from lbtrain.study.axes import batch_size, diverged, learning_rate, num_classes, optimizer_label, rate_label, sam_rho
from lbtrain.study.folders import natural, run_folders, suggestion
from lbtrain.study.methods import arguments, method_label

CONFIG = "config."  # keeps config keys apart from metrics and from the columns below
ARGUMENT = "method."  # and so for the arguments of the method, whatever key its callback stands under
COLUMNS = (
    "run",
    "status",  # finished, failed, unfinished (no summary), unreadable (broken summary)
    "outcome",  # ok or diverged for a finished run, else the status
    "error",
    "optimizer",
    "rate",
    "batch",
    "method",  # of SAM's family; empty without
    "rho",
    "lr",
    "seed",
    "overrides",
    "objective",
    "classes",
    "started",
    "duration_s",
    "git_commit",
    "versions",
)
_NUMBERS = ("batch", "rho", "lr", "classes", "duration_s")


class NoRunsError(ValueError):
    """No run was found where one was looked for; the message is one line and names the next move."""


def load_sweep(sweep_dir: str | Path | Sequence[str | Path]) -> pd.DataFrame:
    """Read every run of a sweep into one table.

    A run is a folder with `summary.json` or `.hydra/`, or a numbered folder; it is looked for at the given folder
    itself, in its subfolders, and one level further down. Several folders are put together in one table.

    Args:
        sweep_dir: Folder of a sweep or of a single run, or several of them (seeds that ran apart, for example).

    Returns:
        One row per run: `COLUMNS`, then each config key behind `config.`, each argument of the method behind
        `method.`, and each metric under its own key.

    Raises:
        NoRunsError: If a folder is not there or holds no run.
    """
    given = [sweep_dir] if isinstance(sweep_dir, str | Path) else list(sweep_dir)
    folders: dict[Path, None] = {}
    for path in map(Path, given):
        if not path.is_dir():
            raise NoRunsError(f"{path} is not a folder; {suggestion()}")
        found = run_folders(path)
        if not found:
            raise NoRunsError(f"{path} holds no run: no {SUMMARY_NAME}, .hydra/ or numbered folder; {suggestion()}")
        folders.update(dict.fromkeys(folder.resolve() for folder in found))
    if not folders:
        raise NoRunsError(f"sweep_dir names no folder; {suggestion()}")
    root = Path(os.path.commonpath([Path(path).resolve() for path in given]))
    rows = [_row(folder, _name(folder, root)) for folder in folders]
    table = _table(rows)
    return table.sort_values("run", key=lambda names: names.map(natural), kind="stable", ignore_index=True)


def _name(folder: Path, root: Path) -> str:
    return folder.name if folder == root else folder.relative_to(root).as_posix()


def _row(folder: Path, name: str) -> dict[str, Any]:
    try:
        record = read_record(folder)
    except ValueError as error:
        return _described(name, "unreadable", str(error).replace(str(folder), name), *_hydra_files(folder), {})
    if record is None:
        reason = f"no {SUMMARY_NAME}: still running, or killed"
        return _described(name, "unfinished", reason, *_hydra_files(folder), {})
    row = _described(name, record.status, record.error, record.overrides, record.config, record.metrics)
    return {**row, **_provenance(record)}


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    columns = dict.fromkeys([*COLUMNS, *sorted({key for row in rows for key in row})])
    # As objects, so that a key that one run lacks does not turn the whole numbers of the others into floats.
    table = pd.DataFrame(rows, columns=list(columns), dtype=object)
    for column in table.columns:
        values = table[column].dropna()
        measured = column in _NUMBERS or (column not in COLUMNS and not column.startswith((CONFIG, ARGUMENT)))
        if measured and all(isinstance(value, int | float) for value in values):
            table[column] = table[column].astype(float)
    return table


def _provenance(record: RunRecord) -> dict[str, Any]:
    versions = ", ".join(f"{package} {version}" for package, version in sorted(record.versions.items()))
    return {
        "started": record.started,
        "duration_s": record.duration_s,
        "git_commit": record.git_commit,
        "versions": versions,
    }


def _described(
    name: str, status: str, error: str | None, overrides: Sequence[str], config: dict[str, Any], metrics: dict[str, Any]
) -> dict[str, Any]:
    classes = num_classes(config)
    outcome = status
    if status == "finished":
        outcome = "diverged" if diverged(metrics, classes) else "ok"
    return {
        "run": name,
        "status": status,
        "outcome": outcome,
        "error": error,
        "optimizer": optimizer_label(config),
        "rate": rate_label(config) if config else None,
        "batch": batch_size(config, metrics),
        "method": method_label(config) if config else None,
        "rho": sam_rho(config) if config else None,
        "lr": learning_rate(config, metrics),
        "seed": config.get("seed"),
        "overrides": " ".join(overrides),
        "objective": config.get("objective"),
        "classes": classes,
        **{f"{CONFIG}{key}": value for key, value in config.items()},
        **{f"{ARGUMENT}{name}": value for name, value in arguments(config).items()},
        **metrics,
    }


def _hydra_files(folder: Path) -> tuple[list[str], dict[str, Any]]:
    # What a run without a record was asked to do stands in the files that Hydra writes first.
    try:
        overrides = OmegaConf.to_container(OmegaConf.load(folder / ".hydra" / "overrides.yaml"))
        config = OmegaConf.to_container(OmegaConf.load(folder / ".hydra" / "config.yaml"), resolve=False)
    except Exception:  # absent or half written by a job that was killed: the row then shows only its name
        return [], {}
    flat: dict[str, Any] = {}
    _flatten(config, "", flat)
    return [str(override) for override in overrides] if isinstance(overrides, list) else [], flat


def _flatten(node: Any, prefix: str, flat: dict[str, Any]) -> None:
    for key, value in node.items() if isinstance(node, dict) else ():
        if isinstance(value, dict):
            _flatten(value, f"{prefix}{key}.", flat)
        # An interpolation stands for a value that only the running job could work out.
        elif not isinstance(value, list) and "${" not in str(value):
            flat[f"{prefix}{key}"] = value
