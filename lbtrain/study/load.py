"""Run folders to rows: one row per job, also for jobs that failed or left nothing."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lbtrain.records import SUMMARY_NAME, RunRecord, read_record
from lbtrain.study.axes import batch_size, diverged, learning_rate, num_classes, optimizer_label, rate_label, sam_rho
from lbtrain.study.folders import natural, suggestion, survey
from lbtrain.study.histories import history as history  # the metrics of one run over time
from lbtrain.study.methods import arguments, method_label
from lbtrain.study.unfinished import asked

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
    "sweep",  # folder that holds the run, below what all given folders share
    "folder",  # absolute path of the run
)
BY_SWEEP = f"{CONFIG}study.sweep"  # the sweep as a setting that names a run, where sweeps are to be compared
TWICE = "given twice, counted once"
_NUMBERS = ("batch", "rho", "lr", "classes", "duration_s")


class NoRunsError(ValueError):
    """No run was found where one was looked for; the message is one line and names the next move."""


@dataclass(frozen=True)
class Reading:
    """What was read from disk.

    Args:
        table: As `load_sweep` gives it.
        others: Name and reason of each folder that holds no run, and of each run that was given twice.
    """

    table: pd.DataFrame
    others: tuple[tuple[str, str], ...]


def load_sweep(sweep_dir: str | Path | Sequence[str | Path]) -> pd.DataFrame:
    """Read every run of a sweep into one table.

    A run is a folder with `summary.json` or `.hydra/`, or a numbered folder beside such; it is looked for at the given
    folder itself, in its subfolders, and one level further down. Several folders are put together in one table.

    Args:
        sweep_dir: Folder of a sweep or of a single run, or several of them (seeds that ran apart, for example).

    Returns:
        One row per run: `COLUMNS`, then each config key behind `config.`, each argument of the method behind
        `method.`, and each metric under its own key.

    Raises:
        NoRunsError: If a folder is not there, or none holds a run.
    """  # noqa: DOC502 - raised by read_sweeps
    return read_sweeps(sweep_dir).table


def read_sweeps(sweep_dir: str | Path | Sequence[str | Path], by_sweep: bool = False) -> Reading:
    """Read every run of one or several sweeps, and keep account of what is no run.

    Args:
        sweep_dir: As for `load_sweep`.
        by_sweep: Whether the sweep is a setting, so that equal runs of two sweeps are compared and not put together.

    Returns:
        The table, and what was left out of it.

    Raises:
        NoRunsError: If a folder is not there, or none holds a run.
    """
    given = [Path(sweep_dir)] if isinstance(sweep_dir, str | Path) else [Path(path) for path in sweep_dir]
    if not given:
        raise NoRunsError(f"sweep_dir names no folder; {suggestion()}")
    # Not resolved: a run that is a link keeps the name that it has in its sweep.
    root = Path(os.path.commonpath([os.path.abspath(path) for path in given]))
    folders: dict[Path, Path] = {}
    others: list[tuple[str, str]] = []
    for path in given:
        if not path.is_dir():
            raise NoRunsError(f"{path} is not a folder; {suggestion()}")
        found = survey(Path(os.path.abspath(path)))
        others += [(_name(folder, root), reason) for folder, reason in found.others]
        if not found.runs:
            others.append((_name(Path(os.path.abspath(path)), root), "holds no run"))
        for folder in found.runs:
            if folders.setdefault(folder.resolve(), folder) is not folder:
                others.append((_name(folder, root), TWICE))
    if not folders:
        raise NoRunsError(_nothing(given, others))
    rows = [_row(folder, path, _name(path, root)) for folder, path in folders.items()]
    table = _table([row | {BY_SWEEP: row["sweep"]} for row in rows] if by_sweep else rows)
    ordered = table.sort_values("run", key=lambda names: names.map(natural), kind="stable", ignore_index=True)
    return Reading(ordered, tuple(dict.fromkeys(others)))


def _nothing(given: Sequence[Path], others: Sequence[tuple[str, str]]) -> str:
    told = "; ".join(f"{name}: {reason}" for name, reason in others if reason != "holds no run")[:300]
    where = " and ".join(map(str, given)) + (" holds" if len(given) == 1 else " hold")
    return f"{where} no run: no {SUMMARY_NAME} of lbtrain and no .hydra/{f' ({told})' if told else ''}; {suggestion()}"


def _name(folder: Path, root: Path) -> str:
    return folder.name if folder == root else folder.relative_to(root).as_posix()


def _row(folder: Path, path: Path, name: str) -> dict[str, Any]:
    place = {"sweep": name.rpartition("/")[0] or None, "folder": str(folder)}
    try:
        record = read_record(path)
    except (OSError, ValueError) as error:
        described = _described(name, "unreadable", str(error).replace(str(path), name), *asked(path), {})
        return {**described, **place}
    if record is None:
        reason = f"no {SUMMARY_NAME}: still running, or killed"
        return {**_described(name, "unfinished", reason, *asked(path), {}), **place}
    row = _described(name, record.status, record.error, record.overrides, record.config, record.metrics)
    return {**row, **_provenance(record), **place}


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
