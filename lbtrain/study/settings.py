"""Which settings of a sweep vary."""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import pandas as pd

from lbtrain.study.load import CONFIG

Row: TypeAlias = dict[str, Any]

# Where a run writes, and what a logger calls it, differ from run to run and change no number.
_PLACES = ("dirpath", "save_dir", "root_dir", "default_root_dir", "log_dir", "ckpt_path", "filename", "tags", "notes")


def rows(table: pd.DataFrame) -> list[Row]:
    """Take the rows out of a table; a missing value is None.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        One dict per run.
    """
    records = table.to_dict("records")
    return [{str(key): None if _is_nan(value) else value for key, value in row.items()} for row in records]


def varying(table: pd.DataFrame) -> list[str]:
    """List the config keys that differ between the runs.

    Copies made by interpolation (`model.optimizer.lr` beside `optimizer.lr`) and places on disk are left out.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        Keys without the `config.` prefix, sorted.
    """
    recorded = [row for row in rows(table) if row["status"] in {"finished", "failed"}]
    keys = sorted((key.removeprefix(CONFIG) for key in table.columns if key.startswith(CONFIG)), key=_by_depth)
    seen: set[tuple[str, tuple[str, ...]]] = set()
    found = []
    for key in keys:
        values = tuple(repr(row.get(CONFIG + key)) for row in recorded)
        last = key.rpartition(".")[2]
        if len(set(values)) < 2 or last in _PLACES or key.startswith("logger.") or (last, values) in seen:
            continue
        seen.add((last, values))
        found.append(key)
    return sorted(found)


def other_keys(table: pd.DataFrame) -> list[str]:
    """List the varying keys that optimizer, rate, batch, SAM and seed do not settle.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        Keys without the `config.` prefix, sorted; empty for a sweep over those axes only.
    """
    recorded = [row for row in rows(table) if row["status"] in {"finished", "failed"}]
    found = []
    for key in varying(table):
        settled: dict[tuple[Any, ...], set[str]] = {}
        for row in recorded:
            axes = tuple(row[name] for name in ("optimizer", "rate", "batch", "rho", "seed"))
            settled.setdefault(axes, set()).add(repr(row.get(CONFIG + key)))
        if any(len(values) > 1 for values in settled.values()):
            found.append(key)
    return found


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Shorten dotted keys to as few last parts as tell them apart.

    Args:
        keys: Such as "model.lr", "data.batch_size".

    Returns:
        Key to short name, such as "lr", "batch_size".
    """
    names = {}
    for key in keys:
        parts = key.split(".")
        for count in range(1, len(parts) + 1):
            names[key] = ".".join(parts[-count:])
            if sum(f".{other}".endswith(f".{names[key]}") for other in keys) == 1:
                break
    return names


def _by_depth(key: str) -> tuple[int, str]:
    return key.count("."), key


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)
