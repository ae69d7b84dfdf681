"""What a run leaves in its directory while it is under way: what it can go on from, and what a fresh start removes."""

import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

from lbtrain.records import SUMMARY_NAME

CHECKPOINTS = "checkpoints"
METRICS_NAME = "metrics.csv"
# While metrics.csv is written again its rows lie here.
METRICS_ASIDE = f".{METRICS_NAME}.earlier"
# Of these a fresh run would take something over; a test holds that they are the names that other files use.
_TAKEN_OVER = (
    SUMMARY_NAME,
    METRICS_NAME,
    METRICS_ASIDE,
    "wandb_id.txt",
    "wandb_run.json",
    "spectrum.json",
    "diagnosis.json",
)
# What Lightning puts into a checkpoint that can resume a run, and not into one of weights alone. It is read in the
# pickle that describes the file, where keys stand as plain text.
_RESUMABLE = (b"optimizer_states", b"loops")
# Written last by the strategies whose checkpoints are folders: Lightning's FSDP, and DeepSpeed.
_LAST_WRITTEN = ("meta.pt", "latest")


def forget(directory: Path) -> None:
    """Remove what a run that starts afresh in this directory would take for its own: records, curves and checkpoints.

    Args:
        directory: Of the run; may be absent.
    """
    # The checkpoints go first: killed in between, the directory must not offer them beside nothing that tells of them.
    for path in [*_checkpoints(directory), *(directory / name for name in _TAKEN_OVER)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def last_checkpoint(directory: Path) -> Path | None:
    """Find the checkpoint from which the run in a directory goes on.

    A file that was cut off, or that holds weights alone, is passed over. `last.ckpt`, and its kin `last-v1.ckpt`, come
    before others; among equals the newest.

    Args:
        directory: Of the run.

    Returns:
        Path of the file, or of the folder in which a sharded strategy saves; None if there is none to go on from.
    """
    found = [(path.stem.partition("-")[0] == "last", path.stat().st_mtime_ns, path) for path in _checkpoints(directory)]
    return next((path for _, _, path in sorted(found, reverse=True) if _is_usable(path)), None)


def _checkpoints(directory: Path) -> Iterator[Path]:
    # A link to a file that is gone is none to go on from, and nothing that a fresh run would take over.
    yield from (path for path in (directory / CHECKPOINTS).glob("*.ckpt") if path.exists())


def _is_usable(path: Path) -> bool:
    """Return whether a checkpoint is whole, as far as can be told without reading all of it, and resumes a run."""
    if path.is_dir():
        return any((path / name).exists() for name in _LAST_WRITTEN)
    try:
        with zipfile.ZipFile(path) as archive:  # its table of contents stands at the end
            described = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            text = archive.read(described[0]) if described else b""  # checked against its checksum
    except (OSError, zipfile.BadZipFile):
        return False
    return all(key in text for key in _RESUMABLE)
