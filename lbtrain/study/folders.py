"""Where runs are: the folders of a sweep."""

import re
from pathlib import Path

from lbtrain.records import SUMMARY_NAME


def run_folders(path: Path) -> list[Path]:
    """List the run folders at `path`, below it, or one level further down.

    Args:
        path: A folder.

    Returns:
        The folders, in natural order; empty when there is none.
    """
    if _holds_run(path):
        return [path]
    found: list[Path] = []
    for child in _subfolders(path):
        if _holds_run(child):
            found.append(child)
            continue
        inner = [folder for folder in _subfolders(child) if _holds_run(folder)]
        # A numbered folder with nothing in it is a job that never began to write.
        found += inner or ([child] if child.name.isdigit() else [])
    return found


def newest_sweep(root: Path = Path("multirun")) -> Path | None:
    """Find the sweep that ran last.

    Args:
        root: Where sweeps land.

    Returns:
        The newest folder, at most two levels down, that holds runs; None when there is none.
    """
    if not root.is_dir():
        return None
    days = _subfolders(root)
    candidates = [
        folder for day in days for folder in (day, *_subfolders(day)) if any(map(_holds_run, _subfolders(folder)))
    ]
    return max(candidates, key=lambda folder: (folder.stat().st_mtime, str(folder)), default=None)


def suggestion() -> str:
    """Say where runs are, for the error of a command that found none.

    Returns:
        Half a sentence with the newest sweep below the working directory, or with the command that makes one.
    """
    newest = newest_sweep()
    return f"the newest sweep here is {newest}" if newest else "run one first, such as python train.py -m seed=0,1"


def _subfolders(path: Path) -> list[Path]:
    folders = (child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
    return sorted(folders, key=lambda child: natural(child.name))


def _holds_run(path: Path) -> bool:
    return (path / SUMMARY_NAME).is_file() or (path / ".hydra").is_dir()


def natural(name: str) -> tuple[tuple[bool, int, str], ...]:
    """Give the key that sorts "10" after "9".

    Args:
        name: Name of a folder.

    Returns:
        A tuple that compares with every other.
    """
    parts = re.split(r"(\d+)", name)
    return tuple((not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts)
