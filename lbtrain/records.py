"""What a run leaves on disk: one frozen record in `summary.json`, the only thing that `app` and `study` share."""

import json
import math
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

Scalar: TypeAlias = bool | int | float | str | None

SUMMARY_NAME = "summary.json"
# JSON has no word for these; as strings they survive any strict reader and come back as floats.
_WORDS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_STATUSES = ("finished", "failed")


@dataclass(frozen=True)
class RunRecord:
    """One run: what was asked, what came out, and with what it was made.

    Args:
        name: Short name of the run, for people.
        status: "finished" or "failed".
        error: Reason of the failure, None for a finished run.
        overrides: Command-line overrides of the run, such as "data.batch_size=64".
        config: The resolved configuration under flat dotted keys; no secrets.
        metrics: Last value of each metric, such as "test/acc"; words only where the key is a word ("loss/reduction").
        versions: Package name to version.
        git_commit: Commit of the working copy, None outside one.
        started: Start in ISO 8601, UTC.
        duration_s: Wall time of the run, seconds.
    """

    name: str
    status: Literal["finished", "failed"]
    error: str | None
    overrides: tuple[str, ...]
    config: dict[str, Scalar]
    metrics: dict[str, float | str]
    versions: dict[str, str]
    git_commit: str | None
    started: str
    duration_s: float


def write_record(run_dir: str | Path, record: RunRecord) -> Path:
    """Write the record as `summary.json`, whole or not at all.

    Args:
        run_dir: Directory of the run; made when absent.
        record: What to keep.

    Returns:
        Path of the file.

    Raises:
        ValueError: If the status is unknown, or a failed run has no error, or a finished one has.
        TypeError: If a config value or a metric is not a plain scalar.
    """  # noqa: DOC502 - raised by the checks below
    _check(record)
    fields = asdict(record)
    fields["config"] = {key: _encode(value) for key, value in record.config.items()}
    fields["metrics"] = {key: _encode(value) for key, value in record.metrics.items()}
    fields["duration_s"] = _encode(record.duration_s)
    text = json.dumps(fields, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
    path = Path(run_dir) / SUMMARY_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text.encode())
    return path


def read_record(run_dir: str | Path) -> RunRecord | None:
    """Read the record of a run; fields that this version does not know are passed over.

    Args:
        run_dir: Directory of the run.

    Returns:
        The record, or None when the run has left none (still running, or killed).

    Raises:
        ValueError: If the file is there and cannot be read as a record.
    """
    path = Path(run_dir) / SUMMARY_NAME
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    advice = "delete the file and repeat the run"
    try:
        fields = json.loads(data.decode())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); {advice}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path} must hold one JSON object, got a {type(fields).__name__}; {advice}")
    missing = [name for name in _FIELDS if name not in fields]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; {advice}")
    try:
        record = RunRecord(**{name: read(fields[name]) for name, read in _FIELDS.items()})
        _check(record)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} does not hold a run record ({error}); {advice}") from error
    return record


def replace_file(path: str | Path, data: bytes) -> None:
    """Put `data` at `path` so that a reader sees the old file or the new one, never a part.

    Args:
        path: File to write; its folder exists.
        data: The whole content.
    """
    path = Path(path)
    # In the same folder: os.replace is atomic only within one file system.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with draft.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _encode(value: Scalar) -> Scalar:
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


def _decode(values: Mapping[str, Scalar]) -> dict[str, Any]:
    return {key: _WORDS.get(value, value) if isinstance(value, str) else value for key, value in values.items()}


def _number(value: Any) -> float:
    return float(_WORDS.get(value, value) if isinstance(value, str) else value)


def _same(value: Any) -> Any:
    return value


# Each field with what turns its JSON value back into the record's.
_FIELDS: dict[str, Callable[[Any], Any]] = {
    "name": _same,
    "status": _same,
    "error": _same,
    "overrides": tuple,
    "config": _decode,
    "metrics": _decode,
    "versions": dict,
    "git_commit": _same,
    "started": _same,
    "duration_s": _number,
}


def _check(record: RunRecord) -> None:
    if record.status not in _STATUSES:
        raise ValueError(f"status must be one of {list(_STATUSES)}, got {record.status!r}")
    if (record.status == "failed") != (record.error is not None):
        raise ValueError(f"error must be given for a failed run and only then, got {record.error!r} ({record.status})")
    for key, value in record.config.items():
        if value is not None and not isinstance(value, bool | int | float | str):
            raise TypeError(f"config[{key!r}] must be a scalar, got {type(value).__name__}; flatten it first")
    for key, metric in record.metrics.items():
        if not isinstance(metric, int | float | str):
            raise TypeError(f"metrics[{key!r}] must be a float or a str, got {type(metric).__name__}; call .item()")
