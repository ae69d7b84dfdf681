"""What wandb has kept on disk: the offline runs below a folder, told from their own files."""

import os
import struct
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# LevelDB's log format, in which wandb writes a run: blocks of this many bytes; each part of a record begins with a
# checksum (4 bytes), a length (2) and a kind (1: all of a record, 4: the last part of one).
_BLOCK, _HEADER, _ENDS = 32768, 7, (1, 4)
_MAGIC = b":W&B"
# The run is among the first records, and its exit among the last ones.
_NEAR_AN_END = 20
# Seconds without a change after which nobody writes to a run any more; wandb's own measurements of the machine come
# every 15 s.
_QUIET_S = 120.0


@dataclass(frozen=True)
class OfflineRun:
    """One session of one run; a resumed run has several, with one id."""

    folder: Path
    """The `offline-run-...` folder."""
    id: str
    name: str | None
    """None where the file does not say: it was cut off at once, or is of another format."""
    group: str | None
    project: str | None
    entity: str | None
    exit_code: int | None
    """None where the file does not say how the run ended: it was killed, or goes on."""
    size: int
    """Of all its files, bytes."""
    changed: float
    """When its file was written last, seconds since the epoch."""
    is_empty: bool
    """Whether no record can be read: wandb writes what it has about every 15 s, and a job may be killed before."""

    @property
    def is_synced(self) -> bool:
        """Whether wandb has uploaded it, by wandb's own mark."""
        return any(self.folder.glob("*.wandb.synced"))

    def is_open(self) -> bool:
        """Say whether a job seems to be writing to it still.

        Returns:
            True where it has no end and was changed in the last two minutes.
        """
        return self.exit_code is None and time.time() - self.changed < _QUIET_S


def offline_runs(folder: Path) -> list[OfflineRun]:
    """Find the runs that wandb has kept offline.

    Args:
        folder: Of a sweep or a run.

    Returns:
        One entry for each session, in the order of the paths; links such as `latest-run` are not followed.
    """
    return [_described(path) for path in _session_files(folder, "offline-run-")]


def online_runs(folder: Path) -> list[Path]:
    """Find the runs that were uploaded while they ran.

    Args:
        folder: Of a sweep or a run.

    Returns:
        Their files.
    """
    return list(_session_files(folder, "run-"))


def _session_files(folder: Path, start: str) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders.sort()
        path = Path(place)
        if path.name.startswith(start) and path.parent.name in ("wandb", ".wandb"):
            folders.clear()
            yield from (path / name for name in sorted(files) if name.endswith(".wandb"))
        elif path.name.startswith(("run-", "offline-run-")):
            folders.clear()


def _described(file: Path) -> OfflineRun:
    header, code, count = _read(file)
    size = sum(path.stat().st_size for path in file.parent.rglob("*") if path.is_file() and not path.is_symlink())
    return OfflineRun(
        folder=file.parent,
        id=header.run_id if header else file.stem.removeprefix("run-"),
        name=header.display_name or None if header else None,
        group=header.run_group or None if header else None,
        project=header.project or None if header else None,
        entity=header.entity or None if header else None,
        exit_code=code,
        size=size,
        changed=file.stat().st_mtime,
        is_empty=count == 0,
    )


def _read(file: Path) -> tuple[Any, int | None, int]:
    """Return what describes the run, if it is there, the exit code, if the run has ended, and the number of records."""
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    first, last, count = list[bytes](), deque[bytes](maxlen=_NEAR_AN_END), 0
    for count, record in enumerate(_records(file.read_bytes()), start=1):
        first += [record] if count <= _NEAR_AN_END else []
        last.append(record)
    header, code = None, None
    for data in [*first, *last]:
        record = wandb_internal_pb2.Record()
        try:
            record.ParseFromString(data)
        except DecodeError:
            continue  # wandb passes over it, too, and says so when it uploads
        if record.WhichOneof("record_type") == "run":
            header = header or record.run
        elif record.WhichOneof("record_type") == "exit":
            code = record.exit.exit_code
    return header, code, count


def _records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a file; one that was cut off while it was written is left out."""
    if not data.startswith(_MAGIC):
        return
    position, parts = _HEADER, list[bytes]()  # the file's own header is as long as that of a record
    while position + _HEADER <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < _HEADER:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + _HEADER])
        end = position + _HEADER + length
        if kind == 0 or end > len(data):
            return
        parts.append(data[position + _HEADER : end])
        position = end
        if kind in _ENDS:
            yield b"".join(parts)
            parts = []
