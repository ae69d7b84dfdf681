"""Where runs are: the folders of a sweep, and what else stands among them."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import OmegaConf

from lbtrain.records import SUMMARY_NAME

NO_RUN = f"no {SUMMARY_NAME} and no .hydra/: no run"
FOREIGN_SUMMARY = f"its {SUMMARY_NAME} was not written by lbtrain"
FOREIGN_HYDRA = "written by another program with Hydra: its config has no model and no trainer"
WANDB = "files of Weights & Biases"
CLOSED = "may not be read"
_RUN = "run"
_MARK = "job.json"  # of the launcher, on the directory of a job that it started
_OURS = ("figures", "between", "checkpoints")  # what lbtrain itself puts beside or into runs
# A record that lacks some fields is a damaged one of lbtrain; with fewer than half of these it is somebody else's.
_FIELDS = ("status", "error", "overrides", "config", "metrics", "versions", "started", "duration_s")


@dataclass(frozen=True)
class Found:
    """What stands at a place.

    Args:
        runs: Folders of runs, in natural order.
        others: Folders that hold no run, with the reason.
    """

    runs: list[Path] = field(default_factory=list)
    others: list[tuple[Path, str]] = field(default_factory=list)


def survey(path: Path) -> Found:
    """Look for runs at `path`, below it, or one level further down.

    Args:
        path: A folder.

    Returns:
        The runs and what else is there. Hidden folders, and those that lbtrain itself writes, are not listed.
    """
    kind = _kind(path)
    if kind == _RUN:
        return Found([path])
    return Found([], [(path, kind)]) if kind else _below(path, levels=2)


def newest_sweep(root: Path = Path("multirun")) -> Path | None:
    """Find the sweep that ran last.

    Args:
        root: Where sweeps land.

    Returns:
        The newest folder, at most two levels down, that holds runs; None when there is none.
    """
    days = _subfolders(root) if root.is_dir() else []
    candidates = [
        folder
        for day in days or []
        for folder in (day, *(_subfolders(day) or []))
        if any(_kind(child) == _RUN for child in _subfolders(folder) or [])
    ]
    return max(candidates, key=lambda folder: (folder.stat().st_mtime, str(folder)), default=None)


def suggestion() -> str:
    """Say where runs are, for the error of a command that found none.

    Returns:
        Half a sentence with the newest sweep below the working directory, or with the command that makes one.
    """
    newest = newest_sweep()
    return f"the newest sweep here is {newest}" if newest else "run one first, such as python train.py -m seed=0,1"


def natural(name: str) -> tuple[tuple[bool, int, str], ...]:
    """Give the key that sorts "10" after "9".

    Args:
        name: Name of a folder.

    Returns:
        A tuple that compares with every other.
    """
    parts = re.split(r"(\d+)", name)
    return tuple((not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts)


def _below(path: Path, levels: int) -> Found:
    children = _subfolders(path)
    if children is None:
        return Found([], [(path, CLOSED)])
    found, idle = Found(), []
    for child in children:
        kind = _kind(child)
        inner = Found() if kind or levels == 1 else _below(child, levels - 1)
        told = [(folder, reason) for folder, reason in inner.others if inner.runs or reason not in (NO_RUN, WANDB)]
        if kind == _RUN:
            found.runs.append(child)
        elif kind:
            found.others.append((child, kind))
        elif not inner.runs and not told:
            idle.append(child)
        found.runs.extend(inner.runs)
        found.others.extend(told)
    # Beside runs, a numbered folder with nothing in it is a job that never began to write.
    numbered = [child for child in idle if child.name.isdigit() and (found.runs or (path / "multirun.yaml").is_file())]
    found.runs.extend(numbered)
    found.others.extend((child, NO_RUN) for child in idle if child not in numbered and child.name not in _OURS)
    return found


def _subfolders(path: Path) -> list[Path] | None:
    """Return the folders in natural order, those that are hidden left out; None where they may not be listed."""
    try:
        folders = [child for child in path.iterdir() if not child.name.startswith(".") and child.is_dir()]
    except PermissionError:
        return None
    return sorted(folders, key=lambda child: natural(child.name))


def _kind(path: Path) -> str:
    """Return `_RUN`, or why the folder is none; an empty text where what is below it must tell."""
    try:
        marked = (path / _MARK).is_file()
        if (path / SUMMARY_NAME).is_file():  # below the mark a strange one is damaged
            return _RUN if marked or not _is_foreign(path / SUMMARY_NAME) else FOREIGN_SUMMARY
        if (path / ".hydra").is_dir():
            return FOREIGN_HYDRA if _is_other_app(path / ".hydra" / "config.yaml") else _RUN
        if marked:
            return _RUN
        names = ("wandb", "offline-run-", "latest-run")
        return WANDB if path.name.startswith(names) or (path / "wandb-summary.json").is_file() else ""
    except PermissionError:
        return CLOSED


def _is_foreign(summary: Path) -> bool:
    try:
        fields = json.loads(summary.read_bytes().decode())
    except (OSError, ValueError):  # not to be read, or cut off: a damaged one, which the table names
        return False
    known = sum(name in fields for name in _FIELDS) if isinstance(fields, dict) else 0
    return 2 * known < len(_FIELDS)


def _is_other_app(config: Path) -> bool:
    try:
        nodes = OmegaConf.load(config)
    except Exception:  # absent or half written by a job that was killed: taken for one of lbtrain's
        return False
    return bool(nodes) and not ("model" in nodes or "trainer" in nodes or "optimizer" in nodes)
